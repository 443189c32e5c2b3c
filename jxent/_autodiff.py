"""One mechanism of differentiation: a gradient rule, and forward mode as its transpose."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.custom_derivatives import SymbolicZero


def with_gradient(
    fwd: Callable[..., tuple[jax.Array, Any]], bwd: Callable[..., tuple[Any, ...]]
) -> Callable[..., jax.Array]:
    """The function ``fwd(*args)[0]``, differentiated by ``bwd`` in every mode.

    Args:
      fwd: ``fwd(*args) -> (out, residuals)``, arrays in, one array out. It must not call the
        function returned here.
      bwd: ``bwd(residuals, cotangent) -> cotangents``, one per argument (None for integers
        and masks). It must be linear in the cotangent in its very operations, since they are
        transposed: select by the residuals, never by the cotangent.
    """
    reverse = jax.custom_vjp(lambda *args: fwd(*args)[0])
    reverse.defvjp(fwd, bwd)
    return in_every_mode(reverse)


def in_every_mode(reverse: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The function of a `jax.custom_vjp`, with forward mode added.

    `jax.custom_vjp` alone refuses `jax.jvp`, `jax.jacfwd` and `jax.linearize`. The tangent map
    is the transpose of the cotangent map, so its rule says it already: the function is pulled
    back, and the pullback transposed. Only the perturbed arguments take part. The others would
    cost residuals, and an infinite cotangent that nobody asked for would turn into NaN.
    """

    @jax.custom_jvp
    def function(*args: jax.Array) -> jax.Array:
        return reverse(*args)

    @partial(function.defjvp, symbolic_zeros=True)
    def tangent_rule(primals: Any, tangents: Any) -> Any:
        perturbed = [i for i, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]

        def of_perturbed(*values: jax.Array) -> jax.Array:
            args = list(primals)
            for i, value in zip(perturbed, values, strict=True):
                args[i] = value
            return reverse(*args)

        out, pullback = jax.vjp(of_perturbed, *(primals[i] for i in perturbed))

        # The checkpoint keeps the residuals those of `fwd`: without it, linearisation would
        # store what `bwd` makes of them, an array as large as the logits for each step.
        @partial(jax.checkpoint, prevent_cse=False)
        def pushforward(pullback: Any, dots: tuple[jax.Array, ...]) -> jax.Array:
            out_dot: jax.Array
            (out_dot,) = jax.linear_transpose(pullback, out)(dots)
            return out_dot

        return out, pushforward(pullback, tuple(tangents[i] for i in perturbed))

    # Compiled as one program, or each eager call would dispatch some thirty of them.
    compiled = jax.jit(function)
    return lambda *args: compiled(*_align(args))


def _align(args: tuple[jax.Array, ...]) -> list[jax.Array]:
    """Inside `jax.shard_map`, makes every argument vary over the mesh axes that any of them does.

    A rule must return cotangents of its arguments' types. Here replicated arguments become
    varying ones, and JAX transposes that step itself, into the sum over the axes.
    """
    varying = [_varying_axes(x) for x in args]
    union = frozenset().union(*varying)
    return [
        jax.lax.pcast(x, tuple(sorted(union - axes)), to="varying") if union - axes else x
        for x, axes in zip(args, varying, strict=True)
    ]


def _varying_axes(x: jax.Array) -> frozenset[Any]:
    return frozenset(jax.typeof(x).mat.varying)
