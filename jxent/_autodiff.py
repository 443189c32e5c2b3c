"""One mechanism of differentiation: a gradient rule, and forward mode as its transpose."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero

from ._dtypes import upcast
from ._pushforward import Out, of_perturbed_alone, pushforward, refused
from ._sharding import MeshAxes, varying_axes


def with_gradient(
    fwd: Callable[..., tuple[Out, tuple[Any, ...]]],
    bwd: Callable[..., tuple[Any, ...]],
    of_classes: tuple[bool, ...] = (),
) -> Callable[..., Out]:
    """The function ``fwd(*args)[0]``, differentiated by ``bwd`` in every mode and to any order.

    Args:
      fwd: ``fwd(*args) -> (out, kept)``. The arguments and `out` are arrays or tuples of them,
        or None for what is absent; `kept` is a tuple of what ``bwd`` needs beside the arguments.
        It must not call the function returned here.
      bwd: ``bwd(cotangent, *args, *kept) -> cotangents``, one per argument, None for integers,
        masks and statistics. It multiplies by the incoming cotangent in the computing dtype, so
        that a loss scale comes before any rounding to 16 bits; each of its results is then cast
        to the dtype of its argument. Its operations are transposed, so each of them must be linear
        in the cotangent: select by the arguments, never by the cotangent. Second derivatives are
        those of ``bwd``, which may call the function returned here on its arguments.
      of_classes: given where the classes may be spread over mesh axes. It says for each argument
        whether every shard of the classes has its own; the other arguments and the output are the
        same on all shards. Both rules and the function returned then take the mesh axes first.
    """

    @lru_cache
    def over(axes: MeshAxes) -> Callable[..., Out]:
        forward, backward = (partial(fwd, axes), partial(bwd, axes)) if of_classes else (fwd, bwd)

        def save(*args: Any) -> tuple[Out, Any]:
            out, kept = forward(*args)
            return out, (args, kept)

        def pull_back(saved: Any, cotangent: Any) -> tuple[Any, ...]:
            args, kept = saved
            return tuple(
                None if c is None else jax.tree.map(lambda c, x: c.astype(x.dtype), c, x)
                for c, x in zip(backward(cotangent, *args, *kept), args, strict=True)
            )

        reverse: jax.custom_vjp[Out] = jax.custom_vjp(lambda *args: forward(*args)[0])
        reverse.defvjp(save, pull_back)
        return in_every_mode(reverse, axes, of_classes)

    return (lambda axes, *args: over(axes)(*args)) if of_classes else over(())


def differentiated_by(
    bwd: Callable[..., tuple[Any, ...]], of_classes: tuple[bool, ...] = ()
) -> Callable[[Callable[..., Out]], Callable[..., Out]]:
    """Decorates a function with its rule as in `with_gradient`, if nothing is kept for the rule."""

    def decorate(function: Callable[..., Out]) -> Callable[..., Out]:
        return with_gradient(lambda *args: (function(*args), ()), bwd, of_classes)

    return decorate


def loss_with_partials(
    *partials: Callable[..., jax.Array], axis: tuple[int, ...] = ()
) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
    """Makes the decorated function a loss of arrays of any floating-point dtype.

    The function is elementwise, or a sum over `axis`. It and its partial derivatives, which are
    elementwise, get the arrays in their computing dtype. A partial derivative times the cotangent
    is the gradient for its argument.
    """

    def bwd(cotangent: jax.Array, *args: jax.Array) -> tuple[jax.Array, ...]:
        cotangent, given = jnp.expand_dims(cotangent, axis), upcast(*args)
        return tuple(cotangent * to_argument(*given) for to_argument in partials)

    def decorate(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return differentiated_by(bwd)(lambda *args: function(*upcast(*args)))

    return decorate


def in_every_mode(
    reverse: jax.custom_vjp[Any],
    mesh_axes: MeshAxes = (),
    of_classes: tuple[bool | None, ...] = (),
    of_aux: tuple[bool, ...] = (),
) -> Callable[..., Any]:
    """The function of a `jax.custom_vjp`, with forward mode added.

    `jax.custom_vjp` alone refuses `jax.jvp`, `jax.jacfwd` and `jax.linearize`. The tangent map
    is the transpose of the cotangent map, so the rule for cotangents is enough: the function is
    pulled back, and the pullback is transposed. Only the perturbed arguments take part. The others
    would cost residuals, and an infinite cotangent that nobody asked for would turn into NaN.

    With `of_aux` the function returns ``(out, aux)``, and `aux`, arrays of any dtype, is not
    differentiated: to do so for an argument for which `of_aux` has True is an error.
    """

    def tangent(primals: Any, tangents: Any) -> tuple[Any, Any]:
        of_perturbed, values, dots = of_perturbed_alone(reverse, primals, tangents)
        vjp: Any = jax.vjp
        out, pullback, *aux = vjp(of_perturbed, *values, has_aux=bool(of_aux))
        out_dot = pushforward(pullback, out, dots)
        if not of_aux:
            return out, out_dot
        dots = tuple(
            dot
            for dot, is_of_aux in zip(tangents, of_aux, strict=True)
            if is_of_aux and not isinstance(dot, SymbolicZero)
        )
        return (out, *aux), (out_dot, *jax.tree.map(partial(refused, dots=dots), aux))

    # It calls the plain function, not `reverse`: where JAX evaluates only a part of a loop it
    # forgets this rule, and would then find a `jax.custom_vjp`, which has no forward mode.
    @jax.custom_jvp
    def function(*args: Any) -> Any:
        out = reverse.fun(*args)
        return _mapped_alike(out, args) if of_aux else out

    # A value that came with its derivative may be differentiated again, and must then meet the
    # rule again. The operations of `fwd` themselves have derivatives that lose bits to
    # cancellation, and NaN from branches that were not taken.
    @jax.custom_jvp
    def known(out: Any, *args: Any) -> Any:
        return _mapped_alike(out, args) if of_aux else out

    @partial(function.defjvp, symbolic_zeros=True)
    def function_rule(primals: Any, tangents: Any) -> tuple[Any, Any]:
        out, out_dot = tangent(primals, tangents)
        return known(out, *primals), out_dot

    @partial(known.defjvp, symbolic_zeros=True)
    def known_rule(primals: Any, tangents: Any) -> tuple[Any, Any]:
        out, *args = primals
        dots = tuple(tangents[1:])
        if all(isinstance(dot, SymbolicZero) for dot in jax.tree.leaves(dots)):
            return out, jax.tree.map(SymbolicZero.from_primal_value, out)
        return known(out, *args), tangent(tuple(args), dots)[1]

    # It is compiled as one program. Otherwise each eager call would dispatch some thirty programs.
    compiled = jax.jit(function)
    return lambda *args: compiled(*aligned(args, mesh_axes, of_classes or (True,) * len(args)))


@custom_vmap
def _mapped_alike(out: Out, args: tuple[Any, ...]) -> Out:
    """`out`, which `vmap` maps as a whole if it maps an argument, as it maps the tangents.

    JAX takes a value that is the same for all for one that it is not, if its tangent differs.
    """
    return out


@_mapped_alike.def_vmap
def _mapped_alike_rule(size: int, is_mapped: Any, out: Any, args: Any) -> tuple[Any, Any]:
    def mapped(x: jax.Array, is_mapped: bool) -> jax.Array:
        return x if is_mapped else jnp.broadcast_to(x, (size, *x.shape))

    out = jax.tree.map(mapped, out, is_mapped[0])
    return _mapped_alike(out, args), jax.tree.map(lambda _: True, out)


def aligned(
    args: tuple[Any, ...], mesh_axes: MeshAxes, of_classes: tuple[bool | None, ...]
) -> list[Any]:
    """Inside `jax.shard_map`, makes the arguments vary over the same mesh axes.

    A rule must return cotangents that vary over the same axes as its arguments. Here replicated
    arguments become varying ones, and JAX transposes this step itself, into a sum over the axes.
    Only the arguments that are the same for every shard of the classes, and the output, do not
    vary over the axes of the classes. An argument for which `of_classes` has None stays as it is.
    """
    union = frozenset(mesh_axes).union(*map(varying_axes, jax.tree.leaves(args)))

    def vary(own: bool | None, x: jax.Array) -> jax.Array:
        return x if own is None else _varying_over(union if own else union - set(mesh_axes), x)

    return [jax.tree.map(partial(vary, own), x) for x, own in zip(args, of_classes, strict=True)]


def _varying_over(axes: frozenset[Any], x: jax.Array) -> jax.Array:
    missing = tuple(sorted(axes - varying_axes(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x
