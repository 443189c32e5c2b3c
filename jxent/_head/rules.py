"""A loss of linear logits: its values, its sum, and their gradient rules.

Here examples are one dimension. The rules take the arrays in the order of the plan's names.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from .._autodiff import differentiated_whole, in_every_mode, with_vmap_rule
from .._dtypes import computing_dtype, upcast
from .._sharding import automatic_axes, explicit_sharding, varying_axes
from .chunks import over_chunks, zero_unless
from .logits import finished, gradients_of_product, product
from .plan import COUNTED, WEIGHTS, Arrays, Name, Plan, is_of_classes, is_of_examples, made

Out = TypeVar("Out")
SAVED = "jxent_head_gradients"
"""The name by which a policy of `jax.checkpoint` may save the gradients of a reduced head."""


def values_of(plan: Plan) -> Any:
    """The function ``(*arrays) -> (outs, aux)``; gradients compute the logits again.

    There is one case in which they do not: where one output is differentiated for inputs alone, as
    beside a frozen kernel, the gradient of each example is kept. It needs only to be multiplied.
    """

    @jax.custom_vjp
    def reverse(*values: jax.Array) -> Any:
        return outputs(plan, _named(plan, values))

    def fwd(*args: Any) -> tuple[Any, Any]:
        wanted, arrays = _wanted(plan, args), _named(plan, [x.value for x in args])
        keeps = plan.loss.has_one_out and all(name.kind == "inputs" for name in wanted)
        if keeps:
            outs, aux, kept = _outputs_and_gradients(plan, arrays, [], wanted)
        else:
            (outs, aux), kept = outputs(plan, arrays), {}
        if WEIGHTS in arrays:
            # The losses are multiplied by the weights later. A loss of NaN without weight must have
            # the gradient 0.
            is_usable = (arrays[WEIGHTS] != 0) | jnp.isfinite(outs[0])
            arrays |= {COUNTED: arrays[COUNTED] & is_usable}
            kept = {name: jnp.where(is_usable[..., None], x, 0) for name, x in kept.items()}
        # Residuals must be arrays, so the names that are wanted are the keys of a tree.
        return (outs, aux), (kept, _dtypes(arrays, wanted), {} if keeps else arrays)

    def bwd(residuals: Any, cotangents: Any) -> tuple[jax.Array | None, ...]:
        kept, dtypes, arrays = residuals
        to_outs, _ = cotangents
        if arrays:
            *_, gradients = _outputs_and_gradients(plan, arrays, to_outs, frozenset(dtypes))
        else:
            gradients = {name: _times(to_outs[0][..., None], x) for name, x in kept.items()}
        return _cotangents(plan, gradients, dtypes)

    reverse.defvjp(fwd, bwd, symbolic_zeros=True)
    return in_every_mode(reverse, _of_aux(plan))


def total_of(plan: Plan) -> Any:
    """The function ``(*arrays) -> (total, aux)``, the weighted sum of the first output.

    Its gradients are computed together with it, from the same logits.
    """

    @jax.custom_vjp
    def reverse(*values: jax.Array) -> Any:
        arrays = _without_weightless(_named(plan, values))
        (losses,), aux = outputs(plan, arrays)
        return jnp.sum(weigh(arrays.get(WEIGHTS), losses)), aux

    def fwd(*args: Any) -> tuple[Any, Any]:
        wanted, given = _wanted(plan, args), _named(plan, [x.value for x in args])

        def of_all(arrays: Arrays) -> Any:
            to_losses = _cotangents_of_losses(arrays)
            return _outputs_and_gradients(plan, arrays, to_losses, wanted - {WEIGHTS})

        # Examples without weight are not computed, but where the gradients are differentiated: the
        # weight multiplies what they would add, and is its derivative there.
        function = differentiated_whole(of_all, lambda arrays: of_all(_without_weightless(arrays)))
        (losses,), aux, gradients = function(given)
        losses, aux = _zero_weightless(given, (losses, aux))
        if WEIGHTS in wanted:
            # The loss of an example is the gradient of its weight. Examples without weight were not
            # computed above.
            rest = given | {COUNTED: given[COUNTED] & (given[WEIGHTS] == 0)}
            (of_rest,), _ = outputs(plan, rest)
            gradients[WEIGHTS] = losses + _finite_if_weightless(given[WEIGHTS], of_rest)
        gradients = {name: checkpoint_name(x, SAVED) for name, x in gradients.items()}
        total = jnp.sum(weigh(given.get(WEIGHTS), losses))
        return (total, aux), (gradients, _dtypes(given, wanted))

    # The total is linear in its cotangent: the gradients were computed for 1, and wait for it in
    # the computing dtype, so that a loss scale reaches them before they are rounded.
    def bwd(residuals: Any, cotangents: Any) -> tuple[jax.Array | None, ...]:
        gradients, dtypes = residuals
        scaled = {name: _times(cotangents[0], gradients[name]) for name in dtypes}
        return _cotangents(plan, scaled, dtypes)

    reverse.defvjp(fwd, bwd, symbolic_zeros=True)
    return in_every_mode(reverse, _of_aux(plan))


def of_examples(plan: Plan, arrays: Arrays, reduced: bool) -> tuple[Any, Any]:
    """``(total, aux)`` if `reduced`, else ``(outs, aux)``.

    To map examples beside a shared kernel is to have more examples. Otherwise the chunks of all
    that is mapped would be computed side by side, with a gradient of the kernel for each.
    """
    function = made(total_of if reduced else values_of, plan)
    values = tuple(arrays.values())
    out: tuple[Any, Any]
    # On a mesh the mapped dimension may be spread over devices, and then it must stay.
    if any(varying_axes(x) or explicit_sharding(x) or automatic_axes(x) for x in values):
        out = function(*values)
    else:
        rule = made(_as_more_examples, plan, function, reduced)
        out = with_vmap_rule(function, rule, *values)
    return out


def _as_more_examples(
    plan: Plan, function: Callable[..., Any], reduced: bool
) -> Callable[..., tuple[Any, Any]]:
    """The rule of `function` under `jax.vmap`. Each total needs cotangents of its losses."""

    def rule(size: int, is_mapped: tuple[bool, ...], *values: jax.Array) -> tuple[Any, Any]:
        mapped = dict(zip(plan.names, is_mapped, strict=True))
        if size == 0 or not all(is_of_examples(name) for name in plan.names if mapped[name]):
            mapped_function = jax.vmap(function, [0 if m else None for m in is_mapped])
            out: tuple[Any, Any] = mapped_function(*values)
            return out
        arrays = {}
        for name, x in zip(plan.names, values, strict=True):
            if is_of_examples(name):
                x = x if mapped[name] else jnp.broadcast_to(x, (size, *x.shape))
                examples = x.shape[1]
                x = x.reshape(size * examples, *x.shape[2:])
            arrays[name] = x
        outs, aux = of_examples(plan, arrays, reduced=False)
        if reduced:
            outs, aux = weighed(arrays, outs, aux)
        outs, aux = jax.tree.map(lambda x: x.reshape(size, examples, *x.shape[1:]), (outs, aux))
        return (jnp.sum(outs, axis=-1) if reduced else outs), aux

    return rule


def of_classes(plan: Plan) -> tuple[bool | None, ...]:
    """Whether each shard of the classes has its own, for each array; None: its type says it."""
    return tuple(None if name.kind == "captured" else is_of_classes(name) for name in plan.names)


def _of_aux(plan: Plan) -> tuple[tuple[bool, ...], ...]:
    """For each array that is not differentiated, of which of the plan's arrays it is made."""
    return tuple(zip(*(plan.loss.reads(name) for name in plan.names), strict=True))


def _without_weightless(arrays: Arrays) -> Arrays:
    """Drops the examples without weight as well."""
    if WEIGHTS not in arrays:
        return arrays
    return arrays | {COUNTED: arrays[COUNTED] & (arrays[WEIGHTS] != 0)}


def weighed(arrays: Arrays, outs: Any, aux: Any) -> tuple[jax.Array, Any]:
    """The weighted losses, and `aux` of the examples with a weight, from what knows no weights."""
    return weigh(arrays.get(WEIGHTS), outs[0]), _zero_weightless(arrays, aux)


def _zero_weightless(arrays: Arrays, results: Out) -> Out:
    """Results ``[examples, ...]`` with zeros for the examples without weight."""
    if WEIGHTS not in arrays:
        return results
    zeroed: Out = jax.tree.map(partial(zero_unless, arrays[WEIGHTS] != 0), results)
    return zeroed


def _cotangents_of_losses(arrays: Arrays) -> list[jax.Array]:
    """Cotangents of the losses in their weighted sum. An empty list means 1 for each."""
    return [arrays[WEIGHTS]] if WEIGHTS in arrays else []


def weigh(weights: jax.Array | None, losses: jax.Array) -> jax.Array:
    """The losses times their weights, 0 where there is no weight."""
    (losses,) = upcast(losses)
    return losses if weights is None else _times(weights, _finite_if_weightless(weights, losses))


def _times(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product in the common computing dtype: a loss may be less precise than its logits."""
    a, b = upcast(a, b)
    return a * b


def _finite_if_weightless(weights: jax.Array, losses: jax.Array) -> jax.Array:
    return jnp.where((weights == 0) & ~jnp.isfinite(losses), 0.0, losses)


def outputs(plan: Plan, arrays: Arrays) -> Any:
    """The outputs of all examples, with one product for each head."""

    def step(carry: None, rows: Arrays) -> tuple[None, Any]:
        logits = [finished(rows, i, product(plan, rows, i)) for i in plan.heads]
        return None, plan.loss(logits, rows)

    return over_chunks(plan, arrays, step, None)[1]


def _outputs_and_gradients(
    plan: Plan, arrays: Arrays, cotangents: Sequence[jax.Array], wanted: frozenset[Name]
) -> tuple[Any, Any, Arrays]:
    """The outputs, and the gradients of ``sum(cotangents * outs)`` for the arrays `wanted`.

    An empty list of cotangents means 1 for each output. It takes one product for each head, and one
    for each kernel and each inputs that are wanted. The gradients are in the computing dtype,
    whatever their arguments' dtypes.
    """
    numbers = [Name("cotangents", k) for k in range(len(cotangents))]
    arrays = arrays | dict(zip(numbers, cotangents, strict=True))
    of_products = frozenset(name for name in wanted if name.kind in ("inputs", "kernel"))
    shared = sorted(name for name in wanted if not is_of_examples(name))

    def step(totals: Arrays, rows: Arrays) -> tuple[Arrays, Any]:
        products = {i: product(plan, rows, i) for i in plan.heads}
        others = {name: upcast(rows[name])[0] for name in wanted - of_products}

        def outputs(products_wanted: dict[int, jax.Array], others: Arrays) -> Any:
            given = rows | others
            z = products | products_wanted
            return plan.loss([finished(given, i, z[i]) for i in plan.heads], given)

        heads = {name.which for name in of_products}
        of_wanted = {i: z for i, z in products.items() if i in heads}
        outs, pullback, aux = jax.vjp(outputs, of_wanted, others, has_aux=True)
        given = [rows[name].astype(x.dtype) for name, x in zip(numbers, outs, strict=False)]
        to_outs = tuple(given) or jax.tree.map(jnp.ones_like, outs)
        if COUNTED in rows:
            to_outs = tuple(zero_unless(rows[COUNTED], x) for x in to_outs)
        to_products, gradients = pullback(to_outs)
        for i, to_product in to_products.items():
            gradients |= gradients_of_product(plan, rows, i, to_product, of_products)
        totals = {name: totals[name] + gradients[name] for name in shared}
        of_rows = {name: x for name, x in gradients.items() if is_of_examples(name)}
        if given:
            # JAX cannot transpose a chunk if one of its results does not depend on the cotangents.
            nothing = jnp.sum(jnp.where(False, given[0], 0))
            of_rows = {name: x + nothing.astype(x.dtype) for name, x in of_rows.items()}
        return totals, (outs, aux, of_rows)

    zeros = {name: jnp.zeros_like(arrays[name], _gradient_dtype(arrays, name)) for name in shared}
    totals, (outs, aux, of_rows) = over_chunks(plan, arrays, step, zeros)
    return outs, aux, totals | of_rows


def _gradient_dtype(arrays: Arrays, name: Name) -> Any:
    if name.kind == "kernel":
        return computing_dtype(arrays[Name("inputs", name.which)], arrays[name])
    return computing_dtype(arrays[name])


def _named(plan: Plan, values: Any) -> Arrays:
    return dict(zip(plan.names, values, strict=True))


def _wanted(plan: Plan, args: Any) -> frozenset[Name]:
    return frozenset(name for name, x in zip(plan.names, args, strict=True) if x.perturbed)


def _dtypes(arrays: Arrays, wanted: frozenset[Name]) -> Arrays:
    """Empty arrays of the dtypes of those that are wanted, which a rule may keep."""
    return {name: jnp.zeros(0, arrays[name].dtype) for name in wanted}


def _cotangents(plan: Plan, gradients: Arrays, like: Arrays) -> tuple[jax.Array | None, ...]:
    """The gradients in the dtypes of their arguments, in which the groups' gradients are summed."""

    def cotangent(name: Name) -> jax.Array:
        x = gradients[name].astype(like[name].dtype)
        return x if is_of_examples(name) else jnp.sum(x, axis=range(plan.groups))

    return tuple(cotangent(name) if name in gradients else None for name in plan.names)
