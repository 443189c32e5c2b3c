"""The rule by which rows of logits are merged: the statistics of a row from those of its parts.

A part is a row of its own, with a maximum of its own. Seen from the maximum of the whole row, which
is not lower, each of its exponentials is smaller by one factor, its own maximum counts like every
other class, and each of its weights costs more by the difference of the two maxima. So the sums of
all parts can be added.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._elementary import exp
from .._numerics import nan_where
from . import IfRequested, Statistics

Named: TypeAlias = dict[str, jax.Array]
"""Some of the statistics, by their names."""


def of_single_classes(logits: jax.Array, weights: IfRequested, exp_gap: bool) -> Statistics:
    """Each class as a row of its own. It has no other classes, so that every sum is zero."""
    no_sum = None if weights is None else jnp.zeros_like(weights)
    no_gap = jnp.zeros_like(logits) if exp_gap else None
    return Statistics(logits, None, None, no_sum, weights, no_sum, no_gap)


# Of two classes the larger one is kept and the other one is left, as in a tournament. So in the end
# one maximum has been kept and all other classes, its equals among them, have been left: their sum
# needs neither comparisons with the maximum nor the number of maxima. One class after the other
# instead of pairs would take XLA:CPU minutes to compile.
def of_classes(
    logits: Sequence[jax.Array], weights: Sequence[Any], exp_gap: bool, apart: bool
) -> Statistics:
    """The statistics of rows of a few classes, given class by class.

    With `apart` each sum finds the maximum for itself, in an order of its own. XLA:GPU then makes
    one loop of what reduces the rows: it writes to memory what several operands share.
    """
    kept, others = _kept_and_others(logits)
    m = reduce(jax.lax.max, logits)
    again = reduce(jax.lax.max, logits[::-1]) if apart else m
    # NaN is never larger. So it is left, or kept, and a compiler's maximum may ignore it.
    s = nan_where(kept != kept, _sumexp(others, kept if apart else m))
    row = Statistics(m, s)
    if weights[0] is not None:
        top, lighter = reduce(jax.lax.max, weights), _kept_and_others(weights)[1]
        gap = _weighted_gap(logits, weights, again)
        row = row._replace(weighted_gap=gap, max_weight=top, weight_rest=_sum(lighter))
    if exp_gap:
        below = [jnp.where(z == again, -jnp.inf, z) for z in logits] if apart else others
        row = row._replace(exp_gap=_exp_gap(below, again))
    return row


def added(logits: Sequence[jax.Array], weights: Sequence[Any], exp_gap: bool, tops: Named) -> Named:
    """What a few classes, given class by class, add to the sums of a row with these maxima.

    In each entry one class that is as large as the row's maximum is left out, and likewise one
    largest weight. Each entry tells whether it left one out, so that they can be counted.
    """
    m = tops["maximum"]
    kept, others = _kept_and_others(logits)
    is_top = kept == m
    others.append(jnp.where(is_top, -jnp.inf, kept))
    terms = {"sumexp_rest": _sumexp(others, m), "maxima": is_top}
    if weights[0] is not None:
        heaviest, lighter = _kept_and_others(weights)
        is_heaviest = heaviest == tops["max_weight"]
        lighter.append(jnp.where(is_heaviest, 0, heaviest))
        gap = _weighted_gap(logits, weights, m)
        terms |= {"weighted_gap": gap, "weight_rest": _sum(lighter), "heaviest": is_heaviest}
    if exp_gap:
        terms["exp_gap"] = _exp_gap(others, m)
    return terms


def _sumexp(logits: Sequence[jax.Array], m: jax.Array) -> jax.Array:
    """Of logits that are not above m."""
    anchor = jnp.broadcast_to(_limited(m), logits[0].shape)
    # By `jax.lax`, as the operators would trace a promotion of dtypes for each slice.
    return _sum([exp(jax.lax.sub(z, anchor)) for z in logits])


def _weighted_gap(
    logits: Sequence[jax.Array], weights: Sequence[jax.Array], m: jax.Array
) -> jax.Array:
    gaps = [jnp.where(z == m, 0, m - z) for z in logits]
    return _sum([w * jnp.where(w == 0, 0, gap) for w, gap in zip(weights, gaps, strict=True)])


def _exp_gap(logits: Sequence[jax.Array], m: jax.Array) -> jax.Array:
    anchor = _limited(m)
    downs = [z - anchor for z in logits]
    exponentials = [exp(down) for down in downs]
    pairs = zip(exponentials, downs, strict=True)
    return _sum([e * jnp.where(e == 0, 0, -down) for e, down in pairs])


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


def _sum(terms: Sequence[jax.Array]) -> jax.Array:
    return reduce(jax.lax.add, terms)


def merged(
    part: Statistics, largest: Callable[[Named], Named], total: Callable[[Named], Named]
) -> Statistics:
    """The statistics of rows from those of their parts.

    The functions `largest` and `total` take the maximum and the sum of each array over the parts,
    along an axis or along mesh axes.
    """
    tops = largest(tops_of(part))
    return whole(tops, total(_terms(part, tops)))


def whole(tops: Named, sums: Named) -> Statistics:
    """The statistics of rows from their maxima, from sums, and from how many these leave out."""
    # All but one of the classes that are the row's maximum belong to the sum; likewise the largest
    # weights. A row at -inf has no class, but perhaps NaN.
    rest = sums["sumexp_rest"] + (sums.pop("maxima") - 1)
    has_class = tops["maximum"] > -jnp.inf
    sums["sumexp_rest"] = jnp.where(has_class, rest, jnp.maximum(rest, 0))
    if "heaviest" in sums:
        sums["weight_rest"] += (sums.pop("heaviest") - 1) * tops["max_weight"]
    return Statistics(**tops, **sums)


def tops_of(part: Statistics) -> Named:
    """Those statistics that are the largest of the parts' statistics."""
    names = ("maximum", "label_logit", "max_weight")
    return {name: x for name in names if (x := getattr(part, name)) is not None}


def _terms(part: Statistics, tops: Named) -> Named:
    m = jnp.broadcast_to(tops["maximum"], part.maximum.shape)
    is_top = part.maximum == m
    terms = seen_from(m, part)
    others = terms["sumexp_rest"]
    own = jnp.zeros_like(others) if part.sumexp_rest is None else part.sumexp_rest
    terms["sumexp_rest"] = jax.lax.select(is_top, own, others)
    terms["maxima"] = is_top.astype(m.dtype)
    if part.max_weight is not None:
        is_heaviest = part.max_weight == tops["max_weight"]
        rest = jax.lax.select(is_heaviest, part.weight_rest, terms["weight_rest"])
        terms |= {"weight_rest": rest, "heaviest": is_heaviest.astype(m.dtype)}
    return terms


def seen_from(m: jax.Array, part: Statistics, one: Any = 1.0) -> Named:
    """The sums of a part, as they count in a row whose maximum m is that of another part.

    `one` is the exponential of 0, in the unit of the sums. If it is 0 the part may have rounding
    errors in place of its sums: they shrink and grow likewise.
    """
    down, zero = _below(part, m), jnp.zeros_like(part.maximum)
    scale = exp(down)
    is_single = part.sumexp_rest is None
    exponentials = scale if is_single else scale * (part.sumexp_rest + one)
    sums = {"sumexp_rest": exponentials}
    if part.weighted_gap is not None:
        weight = part.weight_rest + (part.max_weight if one else 0)
        # Beside +inf every other class is infinitely far. What has no weight costs nothing.
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


def _below(part: Statistics, m: jax.Array) -> jax.Array:
    """How far the part's maximum is below m, as a negative number; 0 if both are the same."""
    lowered = jax.lax.min(part.maximum, jnp.full_like(m, np.finfo(m.dtype).max))
    return lowered - _limited(m)


def _limited(m: jax.Array) -> jax.Array:
    """The largest number in place of infinity: infinity minus itself would be NaN."""
    largest = np.finfo(m.dtype).max
    return jax.lax.clamp(-largest, m, largest)


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
