"""The transpose of a pullback, as one operation of JAX whose own transpose is that pullback.

Reverse mode transposes what forward mode computes. Of this operation it gets the pullback back,
which so is traced once. Written out, it would be traced, transposed, and transposed again.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Out = TypeVar("Out")
"""An array, or a tuple of arrays."""
Leaves = Sequence[Any]


def pushforward(pullback: Callable[..., Any], out: Any, dots: tuple[jax.Array, ...]) -> Any:
    """The tangents of `out` for the tangents of the arguments.

    Args:
      pullback: what `jax.vjp` returns, a pytree of the arrays that it keeps.
      out: the value that it was made with, an array or a tree of them.
      dots: the tangents, one array for each argument.
    """
    kept, pullback_tree = jax.tree.flatten(pullback)
    outs, out_tree = jax.tree.flatten(out)
    avals = tuple(jax.typeof(x).to_tangent_aval() for x in outs)
    out_dots = _pushforward.bind(*kept, *dots, pullback=pullback_tree, out=out_tree, avals=avals)
    return jax.tree.unflatten(out_tree, out_dots)


def refused(x: jax.Array, dots: Leaves) -> Any:
    """The tangent of what is not differentiated: 0, though the arguments have the tangents `dots`.

    A cotangent comes back to it if the gradient is wanted of something that it is a part of, and
    to nothing that is merely returned. Then JAX stops with an error.
    """
    if not dots or not jnp.issubdtype(x.dtype, jnp.floating):
        return SymbolicZero.from_primal_value(x)
    return _refused.bind(x, *dots)


def of_perturbed_alone(
    function: Callable[..., Out], primals: Any, tangents: Any
) -> tuple[Callable[..., Out], tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """`function` of the arrays whose tangents are not zero, those arrays, and their tangents."""
    leaves: list[jax.Array]
    leaves, tree = jax.tree.flatten(primals)
    dots = jax.tree.leaves(tangents)
    perturbed = [i for i, dot in enumerate(dots) if not isinstance(dot, SymbolicZero)]

    def of_perturbed(*values: jax.Array) -> Out:
        full = list(leaves)
        for i, value in zip(perturbed, values, strict=True):
            full[i] = value
        return function(*jax.tree.unflatten(tree, full))

    return of_perturbed, tuple(leaves[i] for i in perturbed), tuple(dots[i] for i in perturbed)


_pushforward = Primitive("pushforward")
_pushforward.multiple_results = True
_pushforward.def_abstract_eval(lambda *args, avals, **_: list(avals))


def _written_out(*args: jax.Array, pullback: Any, out: Any, avals: Leaves) -> list[jax.Array]:
    # With the checkpoint the residuals are the arrays that are given. Without it, linearisation
    # would store what the pullback makes of them, as large as the logits for each step.
    @partial(jax.checkpoint, prevent_cse=False)
    def of_arrays(kept: Leaves, dots: Leaves) -> list[jax.Array]:
        example = jax.tree.unflatten(out, avals)
        transposed = jax.linear_transpose(jax.tree.unflatten(pullback, kept), example)
        return jax.tree.leaves(transposed(tuple(dots)))

    number = pullback.num_leaves
    out_dots: list[jax.Array] = of_arrays(args[:number], args[number:])
    return out_dots


def _eagerly(*args: jax.Array, **parameters: Any) -> list[jax.Array]:
    # As one program, also where the user has disabled `jax.jit`: operations are always compiled.
    with jax.disable_jit(False):
        out_dots: list[jax.Array] = jax.jit(partial(_written_out, **parameters))(*args)
    return out_dots


def _transposed(cotangents: Leaves, *args: Any, pullback: Any, out: Any, avals: Leaves) -> Leaves:
    number = pullback.num_leaves
    pull_back = jax.tree.unflatten(pullback, args[:number])
    to_outs = [ad.instantiate_zeros(c) for c in cotangents]
    return [None] * number + list(pull_back(jax.tree.unflatten(out, to_outs)))


def _tangents(primals: Leaves, tangents: Leaves, **parameters: Any) -> tuple[Any, Any]:
    dots = [SymbolicZero(dot.aval) if type(dot) is ad.Zero else dot for dot in tangents]
    out: tuple[Any, Any] = jax.jvp(
        *of_perturbed_alone(partial(_written_out, **parameters), primals, dots)
    )
    return out


def _mapped(args: Leaves, dims: Leaves, **parameters: Any) -> tuple[Leaves, Leaves]:
    out_dots = jax.vmap(partial(_written_out, **parameters), in_axes=tuple(dims))(*args)
    return out_dots, [0] * len(out_dots)


_pushforward.def_impl(_eagerly)
ad.primitive_transposes[_pushforward] = _transposed
ad.primitive_jvps[_pushforward] = _tangents
batching.primitive_batchers[_pushforward] = _mapped
mlir.register_lowering(_pushforward, mlir.lower_fun(_written_out, multiple_results=True))


def _zero(x: jax.Array, *dots: jax.Array) -> jax.Array:
    return jnp.zeros_like(x)


def _refuse(*args: Any) -> Leaves:
    raise TypeError(
        "aux, what loss returns beside its losses, must not be differentiated, but a gradient of it"
        " is taken: write its part of the objective into the losses, or jax.lax.stop_gradient(aux)"
    )


_refused = Primitive("refused")
_refused.def_impl(_zero)
_refused.def_abstract_eval(lambda x, *dots: x.to_tangent_aval())
ad.primitive_transposes[_refused] = _refuse
ad.primitive_jvps[_refused] = lambda args, _: (_refused.bind(*args), ad.Zero(jax.typeof(args[0])))
batching.primitive_batchers[_refused] = lambda args, dims: (_refused.bind(*args), dims[0])
mlir.register_lowering(_refused, mlir.lower_fun(_zero, multiple_results=False))
