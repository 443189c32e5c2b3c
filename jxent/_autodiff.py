"""One mechanism of differentiation: a gradient rule, and forward mode as its transpose.

1. Elementary functions are differentiated by their partial derivatives: `with_partials` and
   `with_tangents`.
2. A loss, or a part of one, has a rule for its gradient: `with_gradient`, and `loss_with_partials`
   where the rule is a product with partial derivatives. The rule becomes a `jax.custom_vjp`.
3. `in_every_mode` adds forward mode to a `jax.custom_vjp`, and so derivatives of any order. The
   tangent map is the transpose of the cotangent map.
4. `pushforward` is that transpose as one operation of JAX, so that reverse mode traces a rule once.
5. `aligned` makes the arguments vary over the same axes of a mesh, as a rule needs them.
6. `refused` stands for what must not be differentiated.
7. `with_vmap_rule` gives a function a rule of its own under `jax.vmap`.
8. `computed_once` keeps XLA from computing an array again for each of its readers.

`public` gives what a public function computes its name.
"""

import operator
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import lru_cache, partial, reduce, wraps
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ._dtypes import upcast
from ._sharding import MeshAxes, varying_axes, varying_over

Out = TypeVar("Out")
"""An array, or a tree of arrays."""
Leaves = Sequence[Any]
Function = Callable[..., jax.Array]
Public = TypeVar("Public", bound=Callable[..., Any])

# ---------------------------------------- Names

_name = ContextVar("name", default="jxent")


def public(function: Public) -> Public:
    """Gives what the function computes its name: in profiles, in programs, and in JAX's logs."""

    @wraps(function)
    def under_its_name(*args: Any, **options: Any) -> Any:
        token = _name.set(function.__name__)
        try:
            with jax.named_scope(function.__name__):
                return function(*args, **options)
        finally:
            _name.reset(token)

    return cast(Public, under_its_name)


def as_program(function: Callable[..., Out]) -> Callable[..., Out]:
    """`jax.jit` of the function, with the name of the public function that calls it."""

    @lru_cache
    def compiled(name: str) -> Callable[..., Out]:
        def program(*args: Any) -> Out:
            return function(*args)

        program.__name__ = name
        return jax.jit(program)

    return lambda *args: compiled(_name.get())(*args)


# ---------------------------------------- 1. Elementary functions
# JAX's own derivatives of such expressions lose bits to cancellation, divide by squares that
# overflow, and have NaN from branches that are not taken, where 0 is multiplied by infinity.


def with_partials(*partials: Function) -> Callable[[Function], Function]:
    """Differentiates the decorated elementary function by its partial derivatives."""

    def term(to_argument: Function, dot: jax.Array, *primals: Any) -> jax.Array:
        return to_argument(*primals) * dot

    return with_tangents(*(partial(term, to_argument) for to_argument in partials))


def with_tangents(*terms: Function) -> Callable[[Function], Function]:
    """`with_partials` where a partial derivative may overflow though its product does not.

    Each term gets the tangent of its argument, which it is linear in, and then all arguments.
    """

    def decorate(function: Function) -> Function:
        differentiable = jax.custom_jvp(function)

        @partial(differentiable.defjvp, symbolic_zeros=True)
        def tangent_rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
            dots = [
                term(dot, *primals)
                for term, dot in zip(terms, tangents, strict=True)
                if not isinstance(dot, SymbolicZero)
            ]
            return differentiable(*primals), reduce(operator.add, dots)

        return differentiable

    return decorate


# ---------------------------------------- 2. Gradient rules


def with_gradient(
    bwd: Callable[..., tuple[Any, ...]], of_classes: tuple[bool, ...] = (), keeps: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Differentiates the decorated function by the rule `bwd`, in every mode and to any order.

    The arguments and the result of the function are arrays or trees of them, or None for what is
    absent.

    Args:
      bwd: ``bwd(cotangent, *args) -> cotangents``, one per argument, None for integers, masks and
        statistics. It multiplies by the incoming cotangent in the computing dtype, so that a loss
        scale comes before any rounding to 16 bits; each of its results is then cast to the dtype
        of its argument. Its operations are transposed, so each of them must be linear in the
        cotangent: select by the arguments, never by the cotangent. Second derivatives are those of
        `bwd`, which may call the decorated function on its arguments.
      of_classes: given where the first argument is a row whose classes may be spread over its
        `mesh_axes`. It says for each argument whether every shard of the classes has its own; a row
        says that itself. The other arguments and the output are the same on all shards.
      keeps: the function returns ``(out, kept)``, and `bwd` gets the tuple `kept` after the
        arguments. The decorated function returns `out`, and must not call itself.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        fwd = function if keeps else lambda *args: (function(*args), ())

        def save(*args: Any) -> tuple[Any, Any]:
            out, kept = fwd(*args)
            return out, (args, kept)

        def pull_back(saved: Any, cotangent: Any) -> tuple[Any, ...]:
            args, kept = saved

            def cast(c: Any, x: Any) -> Any:
                return None if c is None else c.astype(x.dtype)

            cotangents = bwd(cotangent, *args, *kept)
            pulled: tuple[Any, ...] = jax.tree.map(cast, cotangents, args, is_leaf=_is_none)
            return pulled

        reverse: jax.custom_vjp[Any] = jax.custom_vjp(lambda *args: fwd(*args)[0])
        reverse.defvjp(save, pull_back)
        in_all_modes = in_every_mode(reverse)

        def of_aligned(*args: Any) -> Any:
            mesh_axes = args[0].mesh_axes if of_classes else ()
            own = [
                getattr(x, "of_classes", flag)
                for x, flag in zip(args, of_classes or (True,) * len(args), strict=True)
            ]
            return in_all_modes(*aligned(args, mesh_axes, own))

        return of_aligned

    return decorate


def _is_none(x: Any) -> bool:
    return x is None


def loss_with_partials(
    *partials: Function, axis: tuple[int, ...] = ()
) -> Callable[[Function], Function]:
    """Makes the decorated function a loss of arrays of any floating-point dtype.

    The function is elementwise, or a sum over `axis`. It and its partial derivatives, which are
    elementwise, get the arrays in their computing dtype. A partial derivative times the cotangent
    is the gradient for its argument.
    """

    def bwd(cotangent: jax.Array, *args: jax.Array) -> tuple[jax.Array, ...]:
        cotangent, given = jnp.expand_dims(cotangent, axis), upcast(*args)
        return tuple(cotangent * to_argument(*given) for to_argument in partials)

    def decorate(function: Function) -> Function:
        return with_gradient(bwd)(lambda *args: function(*upcast(*args)))

    return decorate


# ---------------------------------------- 3. Every mode, to any order


def in_every_mode(
    reverse: jax.custom_vjp[Any], of_aux: tuple[tuple[bool, ...], ...] | None = None
) -> Callable[..., Any]:
    """The function of a `jax.custom_vjp`, with forward mode added.

    `jax.custom_vjp` alone refuses `jax.jvp`, `jax.jacfwd` and `jax.linearize`. The tangent map
    is the transpose of the cotangent map, so the rule for cotangents is enough: the function is
    pulled back, and the pullback is transposed. Only the perturbed arguments take part. The others
    would cost residuals, and an infinite cotangent that nobody asked for would turn into NaN.

    With `of_aux` the function returns ``(out, aux)``, and `aux`, arrays of any dtype, is not
    differentiated: to do so is an error. `of_aux` says of which arguments each of them is made.
    """
    has_aux = of_aux is not None

    def tangent(primals: Any, tangents: Any) -> tuple[Any, Any]:
        of_perturbed, values, dots = restrict_to_perturbed(reverse, primals, tangents)
        vjp: Any = jax.vjp
        out, pullback, *aux = vjp(of_perturbed, *values, has_aux=has_aux)
        out_dot = pushforward(pullback, out, dots)
        if of_aux is None:
            return out, out_dot
        refusals = [
            refused(x, [t for t, r in zip(tangents, read, strict=True) if r and not _is_zero(t)])
            for x, read in zip(*aux, of_aux, strict=True)
        ]
        return (out, *aux), (out_dot, tuple(refusals))

    # It calls the plain function, not `reverse`: where JAX evaluates only a part of a loop it
    # forgets this rule, and would then find a `jax.custom_vjp`, which has no forward mode.
    @jax.custom_jvp
    def function(*args: Any) -> Any:
        out = reverse.fun(*args)
        return _mapped_alike(out, args) if has_aux else out

    # A value that came with its derivative may be differentiated again, and must then meet the
    # rule again. The operations of the function itself have derivatives that lose bits to
    # cancellation, and NaN from branches that were not taken.
    @jax.custom_jvp
    def value_with_rule(out: Any, *args: Any) -> Any:
        return _mapped_alike(out, args) if has_aux else out

    @partial(function.defjvp, symbolic_zeros=True)
    def function_rule(primals: Any, tangents: Any) -> tuple[Any, Any]:
        out, out_dot = tangent(primals, tangents)
        return value_with_rule(out, *primals), out_dot

    @partial(value_with_rule.defjvp, symbolic_zeros=True)
    def value_rule(primals: Any, tangents: Any) -> tuple[Any, Any]:
        out, *args = primals
        dots = tuple(tangents[1:])
        if all(isinstance(dot, SymbolicZero) for dot in jax.tree.leaves(dots)):
            return out, jax.tree.map(SymbolicZero.from_primal_value, out)
        return value_with_rule(out, *args), tangent(tuple(args), dots)[1]

    # It is compiled as one program. Otherwise each eager call would dispatch some thirty programs.
    return as_program(function)


def _is_zero(dot: Any) -> bool:
    return isinstance(dot, SymbolicZero)


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


def restrict_to(function: Callable[..., Out], args: Leaves, chosen: Leaves) -> Callable[..., Out]:
    """`function` of the chosen ones of its arguments, given by their places. The others stay."""

    def restricted(*values: Any) -> Out:
        full = list(args)
        for i, value in zip(chosen, values, strict=True):
            full[i] = value
        return function(*full)

    return restricted


def restrict_to_perturbed(
    function: Callable[..., Out], primals: Any, tangents: Any
) -> tuple[Callable[..., Out], tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """`function` of the arrays whose tangents are not zero, those arrays, and their tangents."""
    leaves: list[jax.Array]
    leaves, tree = jax.tree.flatten(primals)
    dots = jax.tree.leaves(tangents)
    perturbed = [i for i, dot in enumerate(dots) if not isinstance(dot, SymbolicZero)]
    of_leaves = restrict_to(lambda *x: function(*jax.tree.unflatten(tree, x)), leaves, perturbed)
    return of_leaves, tuple(leaves[i] for i in perturbed), tuple(dots[i] for i in perturbed)


def differentiated_whole(
    loop: Callable[..., Out], value: Callable[..., Out] | None = None
) -> Callable[..., Out]:
    """The function with the same derivatives, whose loop JAX cannot see until it differentiates it.

    JAX 0.10 evaluates a part of each loop that it sees, to separate what is known from what is
    linear, and so forgets the gradient rules of the functions that the loop calls. Where nothing is
    differentiated `value` stands for the function, if it is given.
    """
    function = jax.custom_jvp(value or loop)

    @partial(function.defjvp, symbolic_zeros=True)
    def rule(primals: Any, tangents: Any) -> tuple[Out, Out]:
        out: tuple[Out, Out] = jax.jvp(*restrict_to_perturbed(loop, primals, tangents))
        return out

    return function


# ---------------------------------------- 4. The transpose of a pullback
# Reverse mode transposes what forward mode computes. The transpose of this operation is the
# pullback itself, so reverse mode traces the pullback only once. Written out, it would be traced,
# transposed, and transposed again.


def pushforward(pullback: Callable[..., Any], out: Any, dots: tuple[jax.Array, ...]) -> Any:
    """The tangents of `out` for the tangents of the arguments.

    Args:
      pullback: the second result of `jax.vjp`, a pytree of the arrays that it keeps.
      out: the value that it was made with, an array or a tree of them.
      dots: the tangents, one array for each argument.
    """
    kept, pullback_tree = jax.tree.flatten(pullback)
    outs, out_tree = jax.tree.flatten(out)
    avals = tuple(jax.typeof(x).to_tangent_aval() for x in outs)
    out_dots = _pushforward.bind(*kept, *dots, pullback=pullback_tree, out=out_tree, avals=avals)
    return jax.tree.unflatten(out_tree, out_dots)


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


def as_one_program(function: Callable[..., Out]) -> Callable[..., Out]:
    """The eager form of an operation, compiled also where the user has disabled `jax.jit`."""

    def eagerly(*args: jax.Array, **parameters: Any) -> Out:
        of_arrays = partial(function, **parameters) if parameters else function
        with jax.disable_jit(False):
            results: Out = jax.jit(of_arrays)(*args)
        return results

    return eagerly


def _transposed(cotangents: Leaves, *args: Any, pullback: Any, out: Any, avals: Leaves) -> Leaves:
    number = pullback.num_leaves
    pull_back = jax.tree.unflatten(pullback, args[:number])
    to_outs = [ad.instantiate_zeros(c) for c in cotangents]
    return [None] * number + list(pull_back(jax.tree.unflatten(out, to_outs)))


def _tangents(primals: Leaves, tangents: Leaves, **parameters: Any) -> tuple[Any, Any]:
    return _jvp_of_perturbed(partial(_written_out, **parameters), primals, tangents)


def _jvp_of_perturbed(
    function: Callable[..., Any], primals: Leaves, tangents: Leaves
) -> tuple[Any, Any]:
    dots = [SymbolicZero(dot.aval) if type(dot) is ad.Zero else dot for dot in tangents]
    out: tuple[Any, Any] = jax.jvp(*restrict_to_perturbed(function, primals, dots))
    return out


def _batched(args: Leaves, dims: Leaves, **parameters: Any) -> tuple[Leaves, Leaves]:
    out_dots = jax.vmap(partial(_written_out, **parameters), in_axes=tuple(dims))(*args)
    return out_dots, [0] * len(out_dots)


_pushforward.def_impl(as_one_program(_written_out))
ad.primitive_transposes[_pushforward] = _transposed
ad.primitive_jvps[_pushforward] = _tangents
batching.primitive_batchers[_pushforward] = _batched
mlir.register_lowering(_pushforward, mlir.lower_fun(_written_out, multiple_results=True))


# ---------------------------------------- 5. Arguments on a mesh


def aligned(args: Leaves, mesh_axes: MeshAxes, of_classes: Leaves) -> list[Any]:
    """Inside `jax.shard_map`, makes the arguments vary over the same mesh axes.

    A rule must return cotangents that vary over the same axes as its arguments. Here replicated
    arguments become varying ones, and JAX transposes this step itself, into a sum over the axes.
    Only the arguments that are the same for every shard of the classes, and the output, do not
    vary over the axes of the classes. `of_classes` tells them apart, by a truth value or a tree of
    them for each argument. An argument for which it has None stays as it is.
    """
    union = frozenset(mesh_axes).union(*map(varying_axes, jax.tree.leaves(args)))

    def vary(own: bool | None, x: Any) -> Any:
        axes = union if own else union - set(mesh_axes)
        return x if own is None else jax.tree.map(partial(varying_over, axes), x)

    varying: list[Any] = jax.tree.map(vary, list(of_classes), list(args), is_leaf=_is_none)
    return varying


# ---------------------------------------- 6. No derivative


def refused(x: jax.Array, dots: Leaves) -> Any:
    """The tangent 0 of something that must not be differentiated, for the arguments' `dots`.

    A cotangent comes back to it if the gradient is wanted of something that it is a part of, and
    to nothing that is merely returned. Then JAX stops with an error.
    """
    if not dots or not jnp.issubdtype(x.dtype, jnp.floating):
        return SymbolicZero.from_primal_value(x)
    return _refused.bind(x, *dots)


def _zero(x: jax.Array, *dots: jax.Array) -> jax.Array:
    return jnp.zeros_like(x)


def _refuse(*args: Any) -> Leaves:
    raise TypeError(
        "aux and counts, what loss returns beside its losses, must not be differentiated, but a"
        " gradient of them is taken: write their part of the objective into the losses, or use"
        " jax.lax.stop_gradient"
    )


_refused = Primitive("refused")
_refused.def_impl(_zero)
_refused.def_abstract_eval(lambda x, *dots: x.to_tangent_aval())
ad.primitive_transposes[_refused] = _refuse
ad.primitive_jvps[_refused] = lambda args, _: (_refused.bind(*args), ad.Zero(jax.typeof(args[0])))
batching.primitive_batchers[_refused] = lambda args, dims: (_refused.bind(*args), dims[0])
mlir.register_lowering(_refused, mlir.lower_fun(_zero, multiple_results=False))


# ---------------------------------------- 7. A rule for `jax.vmap`


def with_vmap_rule(function: Callable[..., Out], rule: Callable[..., Out], *args: jax.Array) -> Out:
    """``function(*args)``, which `jax.vmap` computes as ``rule(size, is_mapped, *args)``.

    It is differentiated as `function` is, where `jax.custom_batching.custom_vmap` has no reverse
    mode. The dimension that is mapped comes first in the arguments that `is_mapped` tells, and in
    all results. Both functions must be hashable and hold no arrays.
    """
    shapes, tree = jax.tree.flatten(jax.eval_shape(function, *args))
    avals = tuple(jax.core.ShapedArray(x.shape, x.dtype) for x in shapes)
    results = _with_vmap_rule.bind(*args, function=function, rule=rule, avals=avals)
    out: Out = jax.tree.unflatten(tree, results)
    return out


def _plainly(*args: jax.Array, function: Any, **_: Any) -> list[jax.Array]:
    return jax.tree.leaves(function(*args))


def _tangents_of_function(primals: Leaves, tangents: Leaves, **parameters: Any) -> tuple[Any, Any]:
    return _jvp_of_perturbed(partial(_plainly, **parameters), primals, tangents)


def _batched_by_rule(args: Leaves, dims: Leaves, *, rule: Any, **_: Any) -> tuple[Any, Any]:
    (size,) = {x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None}
    is_mapped = tuple(d is not None for d in dims)
    args = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
    results = jax.tree.leaves(rule(size, is_mapped, *args))
    return results, [0] * len(results)


_with_vmap_rule = Primitive("with_vmap_rule")
_with_vmap_rule.multiple_results = True
_with_vmap_rule.def_impl(_plainly)
_with_vmap_rule.def_abstract_eval(lambda *args, avals, **_: list(avals))
ad.primitive_jvps[_with_vmap_rule] = _tangents_of_function
batching.primitive_batchers[_with_vmap_rule] = _batched_by_rule
mlir.register_lowering(_with_vmap_rule, mlir.lower_fun(_plainly, multiple_results=True))


# ---------------------------------------- 8. Computed once
# XLA computes a cheap array again in each loop that reads it. On a CPU LLVM may there round a
# product and a sum once instead of twice. Then the logit of the most likely class differs from the
# maximum, which is the same number, and a confident prediction costs the difference. On a TPU the
# gradient of logits, made anew within each of the two products that read it, slows both down.


def computed_once(x: jax.Array, platform: str = "cpu") -> jax.Array:
    """The array itself, which is written to memory on this platform if it was computed."""
    result: jax.Array = _computed_once.bind(x, platform=platform)
    return result


_computed_once = Primitive("computed_once")
_computed_once.def_impl(lambda x, platform: x)
_computed_once.def_abstract_eval(lambda x, platform: x)
batching.defvectorized(_computed_once)
# The tangents need not be written, so that `jax.lax.optimization_barrier` alone does not serve.
ad.primitive_jvps[_computed_once] = lambda primals, tangents, platform: (
    computed_once(primals[0], platform),
    tangents[0],
)
_written = mlir.lower_fun(jax.lax.optimization_barrier, multiple_results=False)


def _lowered_for(here: str | None) -> Callable[..., Any]:
    return lambda context, x, *, platform: _written(context, x) if platform == here else [x]


for _platform in None, "cpu", "tpu":
    mlir.register_lowering(_computed_once, _lowered_for(_platform), platform=_platform)
