"""The statistics of a row from those of its parts: of single classes, of slices, of shards.

A part is a row of its own, with a maximum of its own. Seen from the maximum of the whole row, which
is not lower, each of its exponentials is smaller by one factor, its own maximum counts like every
other class, and each of its weights costs more by the difference of the two maxima. So the sums of
all parts can be added.
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._numerics import exp, finite, nan_where, two_sum
from .._sharding import MeshAxes
from . import IfRequested, Statistics

Named: TypeAlias = dict[str, jax.Array]
"""Some of the statistics, by their names."""


# ---------------------------------------- Classes
# Of two classes the larger one is kept and the other one is left, as in a tournament. So in the end
# one maximum has been kept and all other classes, its equals among them, have been left: their sum
# needs neither comparisons with the maximum nor the number of maxima. One class after the other
# instead of pairs would take XLA:CPU minutes to compile.


def single_classes(logits: jax.Array, weights: IfRequested, exp_gap: bool) -> Statistics:
    """Each class as a row of its own. It has no other classes, so that every sum is zero."""
    no_sum = None if weights is None else jnp.zeros_like(weights)
    no_gap = jnp.zeros_like(logits) if exp_gap else None
    return Statistics(logits, None, None, no_sum, weights, no_sum, no_gap)


def merge_slices(
    logits: Sequence[jax.Array], weights: Sequence[Any], exp_gap: bool, apart: bool
) -> Statistics:
    """The statistics of rows of a few classes, given class by class.

    With `apart` each sum finds the maximum for itself, in an order of its own. XLA:GPU then makes
    one loop of the operations that reduce the rows: it writes to memory what several operands
    share.
    """
    kept, others = _kept_and_others(logits)
    m = reduce(jax.lax.max, logits)
    again = reduce(jax.lax.max, logits[::-1]) if apart else m
    # Comparisons with NaN are false, so it may be left or kept; a compiler's maximum may ignore it.
    s = nan_where(kept != kept, _sumexp(others, kept if apart else m))
    row = Statistics(m, s)
    if weights[0] is not None:
        largest, lighter = reduce(jax.lax.max, weights), _kept_and_others(weights)[1]
        gap = _weighted_gap(logits, weights, again)
        row = row._replace(weighted_gap=gap, max_weight=largest, weight_rest=_added(lighter))
    if exp_gap:
        below = [jnp.where(z == again, -jnp.inf, z) for z in logits] if apart else others
        row = row._replace(exp_gap=_exp_gap(below, again))
    return row


def sums_given_max(
    logits: Sequence[jax.Array], weights: Sequence[Any], exp_gap: bool, maxima: Named
) -> Named:
    """The terms that a few classes, given class by class, add to the sums of a row.

    The maxima of the row are known. In each entry one class that is as large as the row's maximum
    is left out, and likewise one largest weight. "maxima" and "heaviest" tell which entries left
    one out, so that they can be counted.
    """
    m = maxima["maximum"]
    kept, others = _kept_and_others(logits)
    is_max = kept == m
    others.append(jnp.where(is_max, -jnp.inf, kept))
    terms = {"sumexp_rest": _sumexp(others, m), "maxima": is_max}
    if weights[0] is not None:
        heaviest, lighter = _kept_and_others(weights)
        is_heaviest = heaviest == maxima["max_weight"]
        lighter.append(jnp.where(is_heaviest, 0, heaviest))
        gap = _weighted_gap(logits, weights, m)
        terms |= {"weighted_gap": gap, "weight_rest": _added(lighter), "heaviest": is_heaviest}
    if exp_gap:
        terms["exp_gap"] = _exp_gap(others, m)
    return terms


def _sumexp(logits: Sequence[jax.Array], m: jax.Array) -> jax.Array:
    """``sum_j exp(z_j - m)`` of logits that are not above m."""
    anchor = jnp.broadcast_to(finite(m), logits[0].shape)
    # `jax.lax` is used because the operators would trace a promotion of dtypes for each slice.
    return _added([exp(jax.lax.sub(z, anchor)) for z in logits])


def _weighted_gap(
    logits: Sequence[jax.Array], weights: Sequence[jax.Array], m: jax.Array
) -> jax.Array:
    gaps = [jnp.where(z == m, 0, m - z) for z in logits]
    return _added([w * jnp.where(w == 0, 0, gap) for w, gap in zip(weights, gaps, strict=True)])


def _exp_gap(logits: Sequence[jax.Array], m: jax.Array) -> jax.Array:
    anchor = finite(m)
    downs = [z - anchor for z in logits]
    exponentials = [exp(down) for down in downs]
    pairs = zip(exponentials, downs, strict=True)
    return _added([e * jnp.where(e == 0, 0, -down) for e, down in pairs])


def _kept_and_others(arrays: Sequence[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
    """The largest, entry by entry, and the others in any order."""
    kept, others = list(arrays), []
    while len(kept) > 1:
        winners = []
        for a, b in zip(kept[::2], kept[1::2], strict=False):
            is_larger = jax.lax.gt(b, a)
            winners.append(jax.lax.select(is_larger, b, a))
            others.append(jax.lax.select(is_larger, a, b))
        kept = winners + kept[2 * len(winners) :]
    return kept[0], others


def _added(terms: Sequence[jax.Array]) -> jax.Array:
    return reduce(jax.lax.add, terms)


# ---------------------------------------- Parts


def merge_parts(
    part: Statistics, largest: Callable[[Named], Named], total: Callable[[Named], Named]
) -> Statistics:
    """The statistics of rows from those of their parts.

    The functions `largest` and `total` take the maximum and the sum of each array over the parts,
    along an axis or along mesh axes.
    """
    maxima = largest(maxima_of(part))
    m = jnp.broadcast_to(maxima["maximum"], part.maximum.shape)
    is_max = part.maximum == m
    terms = rescaled_to(m, part)
    others = terms["sumexp_rest"]
    own = jnp.zeros_like(others) if part.sumexp_rest is None else part.sumexp_rest
    terms["sumexp_rest"] = jax.lax.select(is_max, own, others)
    terms["maxima"] = is_max.astype(m.dtype)
    if part.max_weight is not None:
        is_heaviest = part.max_weight == maxima["max_weight"]
        rest = jax.lax.select(is_heaviest, part.weight_rest, terms["weight_rest"])
        terms |= {"weight_rest": rest, "heaviest": is_heaviest.astype(m.dtype)}
    return finish_sums(maxima, total(terms))


def finish_sums(maxima: Named, sums: Named) -> Statistics:
    """The statistics of rows from their maxima, their sums, and the numbers of maxima left out."""
    # All but one of the classes that equal the row's maximum belong to the sum; likewise the
    # largest weights. A row of only -inf has no class, but its sum may be NaN.
    rest = sums["sumexp_rest"] + (sums.pop("maxima") - 1)
    has_class = maxima["maximum"] > -jnp.inf
    sums["sumexp_rest"] = jnp.where(has_class, rest, jnp.maximum(rest, 0))
    if "heaviest" in sums:
        sums["weight_rest"] += (sums.pop("heaviest") - 1) * maxima["max_weight"]
    return Statistics(**maxima, **sums)


def maxima_of(part: Statistics) -> Named:
    """The statistics whose value for a row is the largest value of its parts."""
    names = ("maximum", "label_logit", "max_weight")
    return {name: x for name in names if (x := getattr(part, name)) is not None}


def rescaled_to(m: jax.Array, part: Statistics, one: Any = 1.0) -> Named:
    """The sums of a part, as they count in a row whose maximum m is that of another part.

    `one` is the term that a part's own maximum adds to its sum, in the unit of the sums. Pass 0 to
    rescale rounding errors instead of sums.
    """
    # How far the part's maximum is below m, as a negative number; 0 if both are the same.
    lowered = jax.lax.min(part.maximum, jnp.full_like(m, np.finfo(m.dtype).max))
    down, zero = lowered - finite(m), jnp.zeros_like(part.maximum)
    scale = exp(down)
    is_single = part.sumexp_rest is None
    exponentials = scale if is_single else scale * (part.sumexp_rest + one)
    sums = {"sumexp_rest": exponentials}
    if part.weighted_gap is not None:
        weight = part.weight_rest + (part.max_weight if one else 0)
        # Beside +inf every other class is infinitely far. A class without weight costs nothing.
        reaches = part.maximum == m
        gap = jax.lax.select(reaches, -down, m - jax.lax.select(reaches, zero, part.maximum))
        is_nothing = weight == 0
        if not is_single:
            # The sums of shards are differentiated, and a weight of 0 has the gap as derivative.
            is_nothing &= gap == np.inf
        step = weight * jax.lax.select(is_nothing, zero, gap)
        sums |= {"weighted_gap": part.weighted_gap + step, "weight_rest": weight}
    if part.exp_gap is not None:
        gap = jax.lax.select(scale == 0, zero, -down)
        sums["exp_gap"] = scale * part.exp_gap + exponentials * gap
    return sums


def merge_shards(stats: Statistics, has_label: jax.Array | None, axes: MeshAxes) -> Statistics:
    """The statistics of whole rows, the same on every shard, from those of each shard's part.

    `has_label` ``[..., 1]`` says whether the shard has the label's class. The shards communicate
    twice: about the maxima, and then about all sums.
    """
    label = {}
    if has_label is not None:
        label = {"label_logit": jnp.where(has_label, stats.label_logit, 0.0)}
    # A maximum over the shards may ignore NaN; the sums do not.
    largest = partial(jax.lax.pmax, axis_name=axes)
    return merge_parts(
        stats._replace(label_logit=None), largest, lambda sums: jax.lax.psum(sums | label, axes)
    )


# ---------------------------------------- Two parts, in one reduction

UNIT = 2.0**64
"""Exponentials are reduced in units of 1 / UNIT, so that a small sum's error does not underflow."""
RowAndErrors: TypeAlias = tuple[Statistics, Named]
"""A partly reduced row, and the rounding errors of its sums."""


def reduce_parts(row: Statistics) -> Statistics:
    """The statistics of rows from parts along the last axis, which one reduction merges in pairs.

    A plain running sum over 200 000 classes would be off by 10^4 eps, so each sum is carried with
    its rounding error. What remains is one rounding for each step at which the maximum rises.
    """
    dtype = row.maximum.dtype
    unit = np.asarray(UNIT, dtype)
    zero = jnp.zeros_like(row.maximum)
    row = row._replace(sumexp_rest=zero if row.sumexp_rest is None else row.sumexp_rest * unit)
    if row.exp_gap is not None:
        row = row._replace(exp_gap=row.exp_gap * unit)
    sums = {"sumexp_rest", "weighted_gap", "weight_rest", "exp_gap"}
    errors = {name: zero for name, x in row._asdict().items() if name in sums and x is not None}
    lowest, none = (np.asarray(x, dtype) for x in (-np.inf, 0))
    nothing = (lowest, none, lowest, none, none, none, none)
    of_sums: Any = (None if x is None else n for x, n in zip(row, nothing, strict=True))
    init = Statistics(*of_sums), dict.fromkeys(errors, none)
    reduced = jax.lax.reduce((row, errors), init, _merge_two, (zero.ndim - 1,))
    row, errors = jax.tree.map(lambda x: jnp.expand_dims(x, -1), reduced)
    # The error of an infinite sum would make it NaN.
    known = {n: jnp.where(jnp.isinf(x := getattr(row, n)), x, x + errors[n]) for n in errors}
    known |= {n: known[n] * (1 / UNIT) for n in ("sumexp_rest", "exp_gap") if n in known}
    whole: Statistics = row._replace(**known)
    return whole


def _merge_two(a: RowAndErrors, b: RowAndErrors) -> RowAndErrors:
    """Merges two rows. Constants must be NumPy's: JAX refuses its own inside of a reduction."""
    m_a, m_b = a[0].maximum, b[0].maximum
    one, none = (np.asarray(x, m_a.dtype) for x in (UNIT, 0))
    # The higher row leaves out its maximum. The lower row counts its own, also if both are equal.
    # NaN counts as the highest.
    select = partial(jax.lax.select, (m_a >= m_b) | (m_a != m_a))
    high, high_errors = jax.tree.map(select, a, b)
    low, low_errors = jax.tree.map(select, b, a)
    m = high.maximum
    maxima = jax.tree.map(jax.lax.max, maxima_of(a[0]), maxima_of(b[0])) | {"maximum": m}
    sums, errors = rescaled_to(m, low, one), rescaled_to(m, low._replace(**low_errors), none)
    if "weight_rest" in sums:
        second = jax.lax.min(a[0].max_weight, b[0].max_weight)
        sums["weight_rest"] = low.weight_rest + second
    for name in sums:
        sums[name], lost = two_sum(getattr(high, name), sums[name])
        errors[name] = (high_errors[name] + errors[name]) + lost
    return Statistics(**maxima, **sums), errors


# ---------------------------------------- Rows without a limit


def without_limit_nan(stats: Statistics, exempt: jax.Array | bool = False) -> Statistics:
    """NaN for a row that has no limit: with a NaN logit, only -inf, or more than one +inf.

    Rows that are `exempt` keep numbers, as their result is known.
    """
    m, s = stats.maximum, stats.sumexp_rest
    # A compiler's maximum may ignore NaN, but the sum does not. Beside one +inf the sum is 0.
    is_nan = jnp.isnan(s)
    undefined = is_nan | ~(m > -jnp.inf) | ((m == jnp.inf) & (s != 0))
    undefined &= jnp.logical_not(exempt)
    return stats._replace(maximum=nan_where(is_nan, m), sumexp_rest=nan_where(undefined, s))
