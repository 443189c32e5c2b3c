"""Ways to sum rows of logits: slices of the classes first, and then what suits the platform.

The classes are cut into slices of one width, which are merged entry by entry. Each entry of the
result is a row that has one class of every slice. Only these, few of them, take the step that is
expensive: `by_reduction` where moving an array costs more than arithmetic, else `by_sums`.
`by_logsumexp` is the plain way, and the reference for both.
"""

from functools import partial
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from .._elementary import exp
from .._labels import at_label, is_label
from .._numerics import nan_where, weighted_cost
from . import IfRequested, Request, Statistics, finite
from .merging import Named, merged, of_single_classes, seen_from, tops_of

Tree = TypeVar("Tree")
UNIT = 2.0**64
"""Exponentials are reduced in units of 1 / UNIT, so that a small sum's error does not underflow."""
RowAndErrors: TypeAlias = tuple[Statistics, Named]
"""A partly reduced row, and what rounding has taken from its sums."""


def by_reduction(
    logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int, block: int = 0
) -> Statistics:
    """With one reduction of the merged slices, in which rows are merged two by two.

    A plain running sum over 200 000 classes would be off by 10^4 eps, so each sum is carried with
    its rounding error. What remains is one rounding for each step at which the maximum rises. With
    a `block`, so many classes are reduced first, and then the blocks.
    """
    row, *others = _slices(logits, request, dtype, width)
    perturbed = row.maximum
    if others:
        row = merged([row, *others])
        perturbed = row.sumexp_rest
    if request.labels is not None:
        row = row._replace(label_logit=_label_logit(logits, request.labels, dtype, width))
    unit = np.asarray(UNIT, dtype)
    zero = jnp.zeros_like(row.maximum)
    row = row._replace(sumexp_rest=row.sumexp_rest * unit if others else zero)
    if row.exp_gap is not None:
        row = row._replace(exp_gap=row.exp_gap * unit)
    sums = {"sumexp_rest", "weighted_gap", "weight_rest", "exp_gap"}
    errors = {name: zero for name, x in row._asdict().items() if name in sums and x is not None}
    both = _all_perturbed((row, errors), perturbed)
    if block:
        both = _reduced(jax.tree.map(lambda x: x.reshape(*x.shape[:-1], -1, block), both))
    row, errors = jax.tree.map(lambda x: jnp.expand_dims(x, -1), _reduced(both))
    # The error of an infinite sum would make it NaN.
    known = {n: jnp.where(jnp.isinf(x := getattr(row, n)), x, x + errors[n]) for n in errors}
    known |= {n: known[n] / unit for n in ("sumexp_rest", "exp_gap") if n in known}
    return row._replace(**known)


def _reduced(row: RowAndErrors) -> RowAndErrors:
    dtype = row[0].maximum.dtype
    lowest, none = (np.asarray(x, dtype) for x in (-np.inf, 0))
    nothing = Statistics(lowest, none, lowest, none, none, none, none)
    init = Statistics(*(None if x is None else n for x, n in zip(row[0], nothing, strict=True)))
    axis = row[0].maximum.ndim - 1
    reduced: RowAndErrors = jax.lax.reduce(
        row, (init, dict.fromkeys(row[1], none)), _merge, (axis,)
    )
    return reduced


def _merge(a: RowAndErrors, b: RowAndErrors) -> RowAndErrors:
    """The row that has the classes of both. Constants must be NumPy's: JAX refuses its own here."""
    m_a, m_b = a[0].maximum, b[0].maximum
    one, none = (np.asarray(x, m_a.dtype) for x in (UNIT, 0))
    # The higher row leaves out its maximum. The lower one counts its own, also if it is as high.
    # NaN is the highest.
    select = partial(jax.lax.select, (m_a >= m_b) | (m_a != m_a))
    high, high_errors = jax.tree.map(select, a, b)
    low, low_errors = jax.tree.map(select, b, a)
    m = high.maximum
    tops = tops_of([a[0], b[0]]) | {"maximum": m}
    sums, errors = seen_from(m, low, one), seen_from(m, low._replace(**low_errors), none)
    if "weight_rest" in sums:
        second = jax.lax.min(a[0].max_weight, b[0].max_weight)
        sums["weight_rest"] = low.weight_rest + second
    for name in sums:
        # Knuth's two-sum: `lost` is exactly what the rounding of the sum loses.
        x, y = getattr(high, name), sums[name]
        sums[name] = total = x + y
        seen = total - x
        lost = (x - (total - seen)) + (y - seen)
        errors[name] = (high_errors[name] + errors[name]) + lost
    return Statistics(**tops, **sums), errors


def by_sums(logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int) -> Statistics:
    """With the maximum and the sums of the merged slices."""
    parts = _slices(logits, request, dtype, width)
    if width > 8:
        # Without the barrier XLA:CPU would merge the slices again for each of the sums.
        parts = [jax.lax.optimization_barrier(merged(parts))]
    row = merged(parts, _largest, _total if width > 8 else _in_one_loop)
    if request.labels is not None:
        row = row._replace(label_logit=at_label(logits, request.labels).astype(dtype))
    return row


def _largest(tops: Named) -> Named:
    return {name: jnp.max(x, axis=-1, keepdims=True) for name, x in tops.items()}


def _total(sums: Named) -> Named:
    return {name: jnp.sum(x, axis=-1, keepdims=True) for name, x in sums.items()}


def _in_one_loop(sums: Named) -> Named:
    """The sums over a short last axis, for which separate loops would take longer."""
    sums = _all_perturbed(sums, sums["sumexp_rest"])
    axis = sums["sumexp_rest"].ndim - 1
    none = jax.tree.map(lambda x: np.asarray(0, x.dtype), sums)
    total = jax.lax.reduce(sums, none, lambda a, b: jax.tree.map(jax.lax.add, a, b), (axis,))
    return {name: jnp.expand_dims(x, -1) for name, x in total.items()}


def _all_perturbed(arrays: Tree, perturbed: jax.Array) -> Tree:
    """The arrays, each of which is said to depend on one that is perturbed.

    JAX differentiates a reduction of several arrays only if each of them has a tangent.
    """
    never = jnp.zeros(perturbed.shape, bool)
    return jax.tree.map(lambda x: jnp.where(never, perturbed, x), arrays)


def _slices(
    logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int
) -> list[Statistics]:
    """Slices of so many classes, each class as a row of its own.

    If the width does not divide the classes the last slice begins early, and what it shares with
    the one before is left out. Slices are cut before the upcast: otherwise XLA would write that.
    """
    classes, parts = logits.shape[-1], []
    for start in _starts(classes, width):
        x, w = (_slice(a, start, width, dtype) for a in (logits, request.weights))
        if start % width:
            entries = jax.lax.broadcasted_iota(np.int32, x.shape, x.ndim - 1)
            is_new = entries >= width - classes % width
            x = jnp.where(is_new, x, -jnp.inf)
            w = None if w is None else jnp.where(is_new, w, 0)
        parts.append(of_single_classes(x, w, request.exp_gap))
    return parts


def _starts(classes: int, width: int) -> list[int]:
    if width == classes:  # Perhaps not a number, where shapes are symbolic.
        return [0]
    return [min(k * width, classes - width) for k in range(-(-classes // width))]


def _slice(x: IfRequested, start: int, width: int, dtype: np.dtype[Any]) -> IfRequested:
    if x is None:
        return None
    if x.shape[-1] != width:
        x = jax.lax.slice_in_dim(x, start, start + width, axis=x.ndim - 1)
    return x.astype(dtype)


def _label_logit(
    logits: jax.Array, labels: jax.Array, dtype: np.dtype[Any], width: int
) -> jax.Array:
    """The label's logit at the place that it has in its slice, and -inf at the other places.

    A row has one label, so that its slice is chosen once for the row, not for each class.
    """
    x, first = None, jnp.zeros_like(labels)
    for k, start in enumerate(_starts(logits.shape[-1], width)):
        part = _slice(logits, start, width, dtype)
        if x is None:
            x = part
            continue
        from_here = labels >= k * width
        x = jnp.where(from_here[..., None], part, x)
        first = jnp.where(from_here, start, first)
    return jnp.where(is_label(labels - first, width), x, -jnp.inf)


def by_logsumexp(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """With `jax.nn.logsumexp` over all classes but the maxima, which are counted."""
    labels, weights, exp_gap = request
    z = logits.astype(dtype)
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
        weights = weights.astype(dtype)
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
