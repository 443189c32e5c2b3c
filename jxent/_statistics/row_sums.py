"""Sums of rows by JAX's own reductions.

They are for CPUs, for rows of middle length on GPUs, and for the plain way, which is the reference.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from .._dtypes import widened
from .._elementary import exp
from .._labels import at_label
from .._numerics import nan_where, sums_of_two, weighted_cost
from . import Request, Statistics, finite
from .merging import Named, added, merged, whole
from .parts import made
from .slices import merged_slices, of_each_row, slices


def by_sums(logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int) -> Statistics:
    """With the maximum first, and then the sums of slices of so many classes, entry by entry."""
    terms, tops = _terms(logits, request, dtype, width)
    # Where the maximum is, the sum's sign tells: another array would be another look at the logits.
    rest = terms.pop("sumexp_rest")
    terms["sumexp_rest"] = jnp.where(terms.pop("maxima"), -rest, rest)
    # Without the barrier XLA:CPU would merge the slices again for each of the sums.
    terms = jax.lax.optimization_barrier(terms)
    signed = terms["sumexp_rest"]
    terms |= {"sumexp_rest": jnp.abs(signed), "maxima": jnp.signbit(signed)}
    row = with_label(of_each_row(whole(tops, _total(terms, dtype))), logits, request)
    if row.label_logit is None:
        return row
    # The barrier keeps the look-up of labels out of the loop of the loss, which LLVM would not
    # vectorise otherwise. With it rows of up to 1000 classes take 0.85 to 0.9 of the time.
    return row._replace(label_logit=jax.lax.optimization_barrier(row.label_logit))


def by_merged_sums(
    logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int
) -> Statistics:
    """With the sums of slices of so many classes, merged as rows with maxima of their own.

    The logits are looked at once: by XLA's model of an H100 0.6 to 0.8 of the time of `by_sums`.
    """
    part = merged_slices(logits, request, dtype, width, apart=False)
    # Without the barrier XLA would merge the slices again for each of the sums.
    part = of_each_row(jax.lax.optimization_barrier(part))

    def largest(tops: Named) -> Named:
        return {name: _largest(x, dtype) for name, x in tops.items()}

    row = merged(part, largest, lambda terms: _in_one_loop(terms, dtype))
    return with_label(row, logits, request)


def is_short(x: jax.Array) -> bool:
    """Whether all sums of a row fit one loop: XLA:CPU then unrolls it, and vectorises over rows.

    It takes 0.5 to 0.85 of the time of slices. A loop of 28 classes is not unrolled any more, and
    takes seven times as long as slices.
    """
    return not is_symbolic_dim(x.shape[-1]) and x.shape[-1] < 28


def by_plain_sums(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """With the maximum first, and then the sums: for short rows, and for those not to be cut."""
    if request.weights is not None:
        request = request._replace(weights=jnp.broadcast_to(request.weights, logits.shape))
    terms, tops = _terms(logits, request, dtype, logits.shape[-1])
    total = _in_one_loop if is_short(logits) else _together
    return with_label(whole(tops, total(terms, dtype)), logits, request)


def _terms(
    logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int
) -> tuple[Named, Named]:
    """What the entries of slices add to the sums of their row, and its maxima."""
    tops = {"maximum": _largest(logits, dtype)}
    if request.weights is not None:
        tops["max_weight"] = _largest(request.weights, dtype)
    # Without the barrier XLA:CPU would search the maximum again for each class.
    z, w, tops = jax.lax.optimization_barrier((logits, request.weights, tops))
    of_slices = slices(z, request._replace(weights=w), dtype, width)
    return added(*of_slices, request.exp_gap, tops), tops


def with_label(row: Statistics, logits: jax.Array, request: Request) -> Statistics:
    """The same with the logit of the label, if it is requested."""
    if request.labels is None:
        return row
    z, mask = at_label(logits, request.labels), request.mask
    if mask.classes is not None:
        of_rows = jnp.broadcast_to(mask.classes, logits.shape)
        mask = mask._replace(classes=at_label(of_rows, request.labels))
    return row._replace(label_logit=widened(mask.fill_logits(z), row.maximum.dtype))


def _largest(x: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    return widened(jnp.max(x, axis=-1, keepdims=True), dtype)


def _total(terms: Named, dtype: np.dtype[Any]) -> Named:
    return {name: _sum(x, dtype) for name, x in terms.items()}


def _sum(x: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    # To sum truth values XLA:CPU first writes them as numbers. Up to 32 of them it sums as integers
    # in one loop.
    kind = np.int32 if x.dtype == bool and x.shape[-1] <= 32 else dtype
    return jnp.sum(x, axis=-1, keepdims=True, dtype=kind).astype(dtype)


def _together(terms: Named, dtype: np.dtype[Any]) -> Named:
    """`_total`, but each sum that leaves maxima out is made in one look with their number.

    In separate loops XLA may compute again what the entries are made of, with other rounding. Then
    an entry that is counted as a maximum in one loop is none in the other.
    """
    terms, totals = dict(terms), {}
    for rest, number in _RESTS_AND_MAXIMA.items():
        if rest in terms:
            pair = terms.pop(rest), terms.pop(number).astype(dtype)
            totals[rest], totals[number] = sums_of_two(*pair)
    return totals | _total(terms, dtype)


_RESTS_AND_MAXIMA = {"sumexp_rest": "maxima", "weight_rest": "heaviest"}


def _in_one_loop(terms: Named, dtype: np.dtype[Any]) -> Named:
    """The sums over a short last axis, for which separate loops would take longer."""
    terms = {name: x.astype(dtype) for name, x in terms.items()}
    none = dict.fromkeys(terms, np.asarray(0, dtype))
    axis = terms["sumexp_rest"].ndim - 1
    total = jax.lax.reduce(terms, none, lambda a, b: jax.tree.map(jax.lax.add, a, b), (axis,))
    return {name: jnp.expand_dims(x, -1) for name, x in total.items()}


def by_logsumexp(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """With `jax.nn.logsumexp` over all classes but the maxima, which are counted."""
    logits, (labels, weights, exp_gap, _) = made(logits, request, dtype)
    z = widened(logits, dtype)
    m = jnp.max(z, axis=-1, keepdims=True)
    anchor = jnp.where(jnp.isinf(m), 0.0, m)
    # NaN is not equal to the maximum, so this sum sees it even if a compiler's maximum ignores it.
    rest = exp(jax.nn.logsumexp(z - anchor, axis=-1, keepdims=True, where=z != m))
    ties = jnp.sum(z == m, axis=-1, keepdims=True).astype(z.dtype)
    beside_infinity = nan_where(jnp.isnan(rest), ties - 1)
    stats = Statistics(m, jnp.where(jnp.isinf(m), beside_infinity, rest + (ties - 1)))
    if labels is not None:
        stats = stats._replace(label_logit=at_label(z, labels))
    if weights is not None:
        weights = jnp.broadcast_to(widened(weights, dtype), z.shape)
        largest = jnp.max(weights, axis=-1, keepdims=True)
        below = jnp.sum(jnp.where(weights == largest, 0.0, weights), axis=-1, keepdims=True)
        ties = jnp.sum(weights == largest, axis=-1, keepdims=True).astype(z.dtype)
        gap = jnp.where(z == m, 0.0, m - jnp.where(z == m, 0.0, z))
        stats = stats._replace(
            weighted_gap=jnp.sum(weighted_cost(weights, gap), axis=-1, keepdims=True),
            max_weight=largest,
            weight_rest=below + (ties - 1) * largest,
        )
    if exp_gap:
        down = jnp.minimum(z - finite(m), 0.0)
        terms = exp(down) * jnp.where(down > -jnp.inf, -down, 0.0)
        stats = stats._replace(exp_gap=jnp.sum(terms, axis=-1, keepdims=True))
    return stats
