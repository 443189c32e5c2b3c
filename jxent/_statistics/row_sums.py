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
from .merging import Named, merged, tops_of
from .parts import made
from .slices import classes_as_rows, merged_slices, of_each_row


def by_sums(
    logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int, groups: int = 1
) -> Statistics:
    """With the maximum and the sums of the merged slices.

    With `groups`, which must divide the classes, so many groups of neighbouring classes are cut
    into slices each: what is merged then lies close together in memory.
    """
    z, w = logits, request.weights
    if groups > 1:
        z = _in_groups(z, groups)
        w = None if w is None else _in_groups(w, groups)
    rows = merged_slices(z, request._replace(weights=w), dtype, width, "cpu")
    # Without the barrier XLA:CPU would merge the slices again for each of the sums.
    row = jax.lax.optimization_barrier(rows)
    if groups > 1:
        row = jax.tree.map(lambda x: x.reshape(*x.shape[:-2], groups * width), row)
    total = _in_one_loop if row.maximum.shape[-1] <= 64 else _total
    row = merged(of_each_row(row), _largest, total)
    return with_label(row, logits, request)


def is_short(x: jax.Array) -> bool:
    """Whether all sums of a row fit one loop: XLA:CPU then unrolls it, and vectorises over rows."""
    return not is_symbolic_dim(x.shape[-1]) and x.shape[-1] < 27


def by_plain_sums(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """With the maximum first, and then the sums: for short rows, and for those not to be cut."""
    known = _largest(tops_of(classes_as_rows(logits, request, dtype)))
    # Without the barrier XLA:CPU would search the maximum again for each class.
    z, w, tops = jax.lax.optimization_barrier((logits, request.weights, known))
    classes = classes_as_rows(z, request._replace(weights=w), dtype)
    total = _in_one_loop if is_short(logits) else _together
    return with_label(merged(classes, lambda _: tops, total), logits, request)


def _in_groups(x: jax.Array, groups: int) -> jax.Array:
    # Not -1: with no examples it would be undetermined.
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)


def with_label(row: Statistics, logits: jax.Array, request: Request) -> Statistics:
    """The same with the logit of the label, if it is requested."""
    if request.labels is None:
        return row
    z, mask = at_label(logits, request.labels), request.mask
    if mask.classes is not None:
        of_rows = jnp.broadcast_to(mask.classes, logits.shape)
        mask = mask._replace(classes=at_label(of_rows, request.labels))
    return row._replace(label_logit=widened(mask.fill_logits(z), row.maximum.dtype))


def _largest(tops: Named) -> Named:
    return {name: jnp.max(x, axis=-1, keepdims=True) for name, x in tops.items()}


def _total(sums: Named) -> Named:
    return {name: jnp.sum(x, axis=-1, keepdims=True) for name, x in sums.items()}


def _together(sums: Named) -> Named:
    """`_total`, but what leaves the maxima out is summed in one look with their number.

    In separate loops XLA may compute again what the entries are made of, with other rounding. Then
    an entry that is counted as a maximum in one loop is none in the other.
    """
    pairs = [(rest, number) for rest, number in _RESTS_AND_MAXIMA.items() if rest in sums]
    paired = {name for pair in pairs for name in pair}
    totals = _total({name: x for name, x in sums.items() if name not in paired})
    for rest, number in pairs:
        totals[rest], totals[number] = sums_of_two(sums[rest], sums[number])
    return totals


_RESTS_AND_MAXIMA = {"sumexp_rest": "maxima", "weight_rest": "heaviest"}


def _in_one_loop(sums: Named) -> Named:
    """The sums over a short last axis, for which separate loops would take longer."""
    axis = sums["sumexp_rest"].ndim - 1
    none = jax.tree.map(lambda x: np.asarray(0, x.dtype), sums)
    total = jax.lax.reduce(sums, none, lambda a, b: jax.tree.map(jax.lax.add, a, b), (axis,))
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
