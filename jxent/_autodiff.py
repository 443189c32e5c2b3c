"""One mechanism of differentiation: a gradient rule, and forward mode as its transpose."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
from jax.custom_derivatives import SymbolicZero

from ._class_axes import Axes, varying_axes

Out = TypeVar("Out")
"""An array, or a tuple of arrays."""


def with_gradient(
    fwd: Callable[..., tuple[Out, Any]],
    bwd: Callable[..., tuple[Any, ...]],
    class_axes: Axes = (),
    of_classes: tuple[bool, ...] = (),
) -> Callable[..., Out]:
    """The function ``fwd(*args)[0]``, differentiated by ``bwd`` in every mode.

    Args:
      fwd: ``fwd(*args) -> (out, residuals)``, arrays in (None for what is absent), one array
        out or a tuple. It must not call the function returned here.
      bwd: ``bwd(residuals, cotangent) -> cotangents``, one per argument (None for integers
        and masks). It must be linear in the cotangent in its very operations, since they are
        transposed: select by the residuals, never by the cotangent.
      class_axes: the mesh axes over which the classes are spread.
      of_classes: for each argument, whether every shard of the classes has its own; the others
        and the output are the same on all of them.
    """
    reverse = jax.custom_vjp(lambda *args: fwd(*args)[0])
    reverse.defvjp(fwd, bwd)
    return in_every_mode(reverse, class_axes, of_classes)


def in_every_mode(
    reverse: Callable[..., Out], class_axes: Axes = (), of_classes: tuple[bool, ...] = ()
) -> Callable[..., Out]:
    """The function of a `jax.custom_vjp`, with forward mode added.

    `jax.custom_vjp` alone refuses `jax.jvp`, `jax.jacfwd` and `jax.linearize`. The tangent map
    is the transpose of the cotangent map, so its rule says it already: the function is pulled
    back, and the pullback transposed. Only the perturbed arguments take part. The others would
    cost residuals, and an infinite cotangent that nobody asked for would turn into NaN.
    """

    @jax.custom_jvp
    def function(*args: jax.Array | None) -> Out:
        return reverse(*args)

    @partial(function.defjvp, symbolic_zeros=True)
    def tangent_rule(primals: Any, tangents: Any) -> Any:
        perturbed = [
            i for i, t in enumerate(tangents) if not (t is None or isinstance(t, SymbolicZero))
        ]

        def of_perturbed(*values: jax.Array) -> Out:
            args = list(primals)
            for i, value in zip(perturbed, values, strict=True):
                args[i] = value
            return reverse(*args)

        out, pullback = jax.vjp(of_perturbed, *(primals[i] for i in perturbed))

        # The checkpoint keeps the residuals those of `fwd`: without it, linearisation would
        # store what `bwd` makes of them, an array as large as the logits for each step.
        @partial(jax.checkpoint, prevent_cse=False)
        def pushforward(pullback: Any, dots: tuple[jax.Array, ...]) -> Out:
            out_dot: Out
            (out_dot,) = jax.linear_transpose(pullback, out)(dots)
            return out_dot

        return out, pushforward(pullback, tuple(tangents[i] for i in perturbed))

    # Compiled as one program, or each eager call would dispatch some thirty of them.
    compiled = jax.jit(function)
    return lambda *args: compiled(*_align(args, class_axes, of_classes or (True,) * len(args)))


def _align(
    args: tuple[jax.Array | None, ...], class_axes: Axes, of_classes: tuple[bool, ...]
) -> list[jax.Array | None]:
    """Inside `jax.shard_map`, makes the arguments vary over the same mesh axes.

    A rule must return cotangents of its arguments' types. Here replicated arguments become
    varying ones, and JAX transposes that step itself, into the sum over the axes. Only what is
    the same for every shard of the classes stays so, and the output with it.
    """
    given = [x for x in args if x is not None]
    union = frozenset(class_axes).union(*map(varying_axes, given))
    return [
        None if x is None else _varying_over(union if own else union - set(class_axes), x)
        for x, own in zip(args, of_classes, strict=True)
    ]


def _varying_over(axes: frozenset[Any], x: jax.Array) -> jax.Array:
    missing = tuple(sorted(axes - varying_axes(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x
