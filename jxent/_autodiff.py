"""One mechanism of differentiation: a gradient rule, and forward mode as its transpose."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ._class_axes import Axes, varying_axes

Out = TypeVar("Out")
"""An array, or a tuple of arrays."""


def with_gradient(
    fwd: Callable[..., tuple[Out, Any]],
    bwd: Callable[..., tuple[Any, ...]],
    of_classes: tuple[bool, ...] = (),
) -> Callable[..., Out]:
    """The function ``fwd(*args)[0]``, differentiated by ``bwd`` in every mode and to any order.

    Args:
      fwd: ``fwd(*args) -> (out, residuals)``, arrays or tuples of them in (None for what is
        absent) and out. It must not call the function returned here.
      bwd: ``bwd(residuals, cotangent) -> cotangents``, one per argument (None for integers
        and masks). It must be linear in the cotangent in its very operations, since they are
        transposed: select by the residuals, never by the cotangent. Second derivatives are
        those of ``bwd``, which may call the function returned here on its residuals.
      of_classes: given where classes may be spread over mesh axes: for each argument, whether
        every shard of the classes has its own; the others and the output are the same on all
        of them. Both rules then take the axes first, and the function as `class_axes`.
    """

    @lru_cache
    def over(class_axes: Axes) -> Callable[..., Out]:
        rules = (partial(fwd, class_axes), partial(bwd, class_axes)) if of_classes else (fwd, bwd)
        reverse: jax.custom_vjp[Out] = jax.custom_vjp(lambda *args: rules[0](*args)[0])
        reverse.defvjp(*rules)
        return in_every_mode(reverse, class_axes, of_classes)

    return lambda *args, class_axes=(): over(class_axes)(*args)


def in_every_mode(
    reverse: jax.custom_vjp[Out], class_axes: Axes = (), of_classes: tuple[bool, ...] = ()
) -> Callable[..., Out]:
    """The function of a `jax.custom_vjp`, with forward mode added.

    `jax.custom_vjp` alone refuses `jax.jvp`, `jax.jacfwd` and `jax.linearize`. The tangent map
    is the transpose of the cotangent map, so its rule says it already: the function is pulled
    back, and the pullback transposed. Only the perturbed arguments take part. The others would
    cost residuals, and an infinite cotangent that nobody asked for would turn into NaN.
    """

    def tangent(primals: Any, tangents: Any) -> tuple[Out, Out]:
        leaves: list[jax.Array]
        leaves, tree = jax.tree.flatten(primals)
        dots = jax.tree.leaves(tangents)
        perturbed = [i for i, dot in enumerate(dots) if not isinstance(dot, SymbolicZero)]

        def of_perturbed(*values: jax.Array) -> Out:
            full = list(leaves)
            for i, value in zip(perturbed, values, strict=True):
                full[i] = value
            return reverse(*jax.tree.unflatten(tree, full))

        out, pullback = jax.vjp(of_perturbed, *(leaves[i] for i in perturbed))

        # The checkpoint keeps the residuals those of `fwd`: without it, linearisation would
        # store what `bwd` makes of them, an array as large as the logits for each step.
        @partial(jax.checkpoint, prevent_cse=False)
        def pushforward(pullback: Any, dots: tuple[jax.Array, ...]) -> Out:
            out_dot: Out
            (out_dot,) = jax.linear_transpose(pullback, out)(dots)
            return out_dot

        return out, pushforward(pullback, tuple(dots[i] for i in perturbed))

    # The plain function, not `reverse`: where JAX evaluates only a part of a loop it forgets this
    # rule, and would then meet a `jax.custom_vjp` that has no forward mode.
    @jax.custom_jvp
    def function(*args: Any) -> Out:
        return reverse.fun(*args)

    # Whoever differentiates a value that came with its derivative must meet the rule again. The
    # operations of `fwd` have derivatives that cancel, and NaN from branches that were not taken.
    @jax.custom_jvp
    def known(out: Out, *args: Any) -> Out:
        return out

    @partial(function.defjvp, symbolic_zeros=True)
    def function_rule(primals: Any, tangents: Any) -> tuple[Out, Out]:
        out, out_dot = tangent(primals, tangents)
        return known(out, *primals), out_dot

    @partial(known.defjvp, symbolic_zeros=True)
    def known_rule(primals: Any, tangents: Any) -> tuple[Out, Out]:
        out, *args = primals
        dots = tuple(tangents[1:])
        if all(isinstance(dot, SymbolicZero) for dot in jax.tree.leaves(dots)):
            return out, jax.tree.map(jnp.zeros_like, out)
        return known(out, *args), tangent(tuple(args), dots)[1]

    # Compiled as one program, or each eager call would dispatch some thirty of them.
    compiled = jax.jit(function)
    return lambda *args: compiled(*_align(args, class_axes, of_classes or (True,) * len(args)))


def _align(args: tuple[Any, ...], class_axes: Axes, of_classes: tuple[bool, ...]) -> list[Any]:
    """Inside `jax.shard_map`, makes the arguments vary over the same mesh axes.

    A rule must return cotangents of its arguments' types. Here replicated arguments become
    varying ones, and JAX transposes that step itself, into the sum over the axes. Only what is
    the same for every shard of the classes stays so, and the output with it.
    """
    union = frozenset(class_axes).union(*map(varying_axes, jax.tree.leaves(args)))
    return [
        jax.tree.map(partial(_varying_over, union if own else union - set(class_axes)), x)
        for x, own in zip(args, of_classes, strict=True)
    ]


def _varying_over(axes: frozenset[Any], x: jax.Array) -> jax.Array:
    missing = tuple(sorted(axes - varying_axes(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x
