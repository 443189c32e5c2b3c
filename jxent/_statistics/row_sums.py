"""Three ways to sum a row of logits, of which each platform has one that suits it.

`by_logsumexp` is the plain way, and the reference for the others. Each takes logits
``[..., classes]`` in their computing dtype, and what is requested of them.
"""

from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._elementary import exp
from .._labels import at_label, is_label
from .._numerics import nan_where, weighted_cost
from . import Request, Statistics, finite

MaxAndSum: TypeAlias = tuple[jax.Array, jax.Array]
"""`maximum` and `sumexp_rest`."""
Sum: TypeAlias = tuple[jax.Array, jax.Array]
"""A sum and its rounding error."""
PartialRow: TypeAlias = dict[str, Any]
"""Running sums of a partly reduced row, by the names of `Statistics`."""
UNIT = 2.0**64
"""Exponentials are summed in units of 1 / UNIT, so that a small sum's error does not underflow."""


def in_one_pass(z: jax.Array, request: Request, block: int = 0) -> Statistics:
    """In one reduction, in which each logit begins as a row of its own, and rows are merged.

    A merged row has the higher of the two maxima, and the lower one counts in its `sumexp_rest`.
    Seen from the higher maximum, each logit of the lower row lies further down by the difference
    of the two, and each of its weights costs so much more.

    A plain running sum over 200 000 classes would be off by 10^4 eps, so each sum is carried with
    its rounding error. What remains is one rounding for each step at which the maximum rises. With
    a `block`, so many classes are merged first, and then the blocks.
    """
    labels, weights, exp_gap = request
    lowest, none = (np.asarray(x, z.dtype) for x in (-np.inf, 0))
    # A constant, but made from z: lax.reduce cannot be differentiated otherwise.
    zero = jnp.where(jnp.zeros(z.shape, bool), z, none)
    rows: PartialRow = {"maximum": z, "sumexp_rest": (zero, zero)}
    init: PartialRow = {"maximum": lowest, "sumexp_rest": (none, none)}
    if labels is not None:
        rows["label_logit"] = jnp.where(is_label(labels, z.shape[-1]), z, lowest)
        init["label_logit"] = lowest
    if weights is not None:
        rows |= {"weighted_gap": (zero, zero), "max_weight": weights, "weight_rest": (zero, zero)}
        init |= {"weighted_gap": (none, none), "max_weight": none, "weight_rest": (none, none)}
    if exp_gap:
        rows["exp_gap"], init["exp_gap"] = (zero, zero), (none, none)
    if block:
        rows = jax.tree.map(lambda x: x.reshape(*x.shape[:-1], -1, block), rows)
        rows = jax.lax.reduce(rows, init, _merge, (z.ndim,))
    whole = jax.lax.reduce(rows, init, _merge, (z.ndim - 1,))
    row = {name: jnp.expand_dims(_total(x), -1) for name, x in whole.items()}
    m, unit = row["maximum"], np.asarray(UNIT, z.dtype)
    row["sumexp_rest"] = nan_where(~(m > -jnp.inf), row["sumexp_rest"] / unit)
    if exp_gap:
        row["exp_gap"] = row["exp_gap"] / unit
    return Statistics(**row)


def _merge(a: PartialRow, b: PartialRow) -> PartialRow:
    """The row that has the classes of both. Constants must be NumPy's: JAX refuses its own here."""
    lowest, none, unit = (np.asarray(x, a["maximum"].dtype) for x in (-np.inf, 0, UNIT))
    m_a, m_b = a["maximum"], b["maximum"]
    a_is_higher = (m_a >= m_b) | (m_a != m_a)  # NaN is the highest, and stays.

    def of_higher(x: Any, y: Any) -> Any:
        return jax.tree.map(partial(jax.lax.select, a_is_higher), x, y)

    def of_both(name: str) -> Any:
        return of_higher(a[name], b[name]), of_higher(b[name], a[name])

    (m, low), (high_sum, low_sum) = of_both("maximum"), of_both("sumexp_rest")
    # A row at -inf has no class. The difference of two such rows would be NaN, as that of two rows
    # at +inf shall be.
    scale = exp(jax.lax.select(low == lowest, low, low - m))
    exponentials = low_sum[0] + unit
    merged = {
        "maximum": m,
        "sumexp_rest": _plus(high_sum, scale * exponentials, scale * low_sum[1]),
    }
    if "exp_gap" in a:
        high_gap, low_gap = of_both("exp_gap")
        gap = jax.lax.select(scale > none, m - low, jnp.zeros_like(m))
        total, error = low_gap[0] + exponentials * gap, low_gap[1] + low_sum[1] * gap
        merged["exp_gap"] = _plus(high_gap, scale * total, scale * error)
    if "label_logit" in a:
        merged["label_logit"] = jax.lax.max(a["label_logit"], b["label_logit"])
    if "weighted_gap" in a:
        a_rest, b_rest = a["weight_rest"], b["weight_rest"]
        weight_a, weight_b = (
            x["max_weight"] + (x["weight_rest"][0] + x["weight_rest"][1]) for x in (a, b)
        )
        low_weight = of_higher(weight_b, weight_a)
        gap = jax.lax.select(low == m, jnp.zeros_like(m), m - low)
        step = jax.lax.select(low_weight == none, jnp.zeros_like(m), low_weight * gap)
        b_gap, b_error = b["weighted_gap"]
        merged["weighted_gap"] = _plus(a["weighted_gap"], b_gap + step, b_error)
        merged["max_weight"] = jax.lax.max(a["max_weight"], b["max_weight"])
        second = jax.lax.min(a["max_weight"], b["max_weight"])
        merged["weight_rest"] = _plus(a_rest, b_rest[0] + second, b_rest[1])
    return merged


def _plus(x: Sum, added: jax.Array, error: jax.Array) -> Sum:
    """Knuth's two-sum: `lost` is exactly what the rounding of the total loses."""
    total = x[0] + added
    seen = total - x[0]
    lost = (x[0] - (total - seen)) + (added - seen)
    return total, x[1] + (error + lost)


def _total(x: jax.Array | Sum) -> jax.Array:
    """A sum together with its rounding error; the error of an infinite sum would make it NaN."""
    if not isinstance(x, tuple):
        return x
    return jnp.where(jnp.isinf(x[0]), x[0], x[0] + x[1])


def by_logsumexp(z: jax.Array, request: Request) -> Statistics:
    """With `jax.nn.logsumexp` over all classes but the maxima, which are counted."""
    return with_plain_sums(z, _by_logsumexp(z), request, z.dtype)


def _by_logsumexp(z: jax.Array) -> MaxAndSum:
    m = jnp.max(z, axis=-1, keepdims=True)
    anchor = jnp.where(jnp.isinf(m), 0.0, m)
    # NaN is not equal to the maximum, so this sum sees it even if a compiler's maximum ignores it.
    rest = exp(jax.nn.logsumexp(z - anchor, axis=-1, keepdims=True, where=z != m))
    ties = jnp.sum(z == m, axis=-1, keepdims=True).astype(z.dtype)
    beside_infinity = nan_where(jnp.isinf(m) & (ties != 1), jnp.zeros_like(rest))
    s = jnp.where(m < jnp.inf, rest + (ties - 1), beside_infinity)
    s = nan_where(~(m > -jnp.inf), s)
    return nan_where(jnp.isnan(rest), m), nan_where(jnp.isnan(rest), s)


def by_blocks(z: jax.Array, request: Request, stored: np.dtype[Any], number: int) -> Statistics:
    """With sums over blocks of classes (perhaps one), and one block summed without its maxima."""
    return with_plain_sums(z, _by_blocks(z, stored, number), request, stored)


# XLA:CPU sums exponentials fast, and without writing them to memory, only under two conditions:
# nothing but arithmetic stands in the sum, and no other loop shares its operands, constants
# included. The barriers below see to the second. The first forbids to leave out the maximum, so:
# 1. The exponentials of each block are summed, the maximum among them, as a 1. Beside this 1 a
#    small sum of the others would lose its bits.
# 2. The block with the largest sum is summed again without its maxima. The two sums differ by the
#    number of maxima in this block, and all of them but one belong to the result.
# 3. The block with the largest sum may have no maximum. Then its sum is at least 1, and so is that
#    of the block of the maximum: to subtract 1 from the total loses nothing.
def _by_blocks(z: jax.Array, stored: np.dtype[Any], number: int) -> MaxAndSum:
    # The maximum is taken in the stored dtype: otherwise two loops would share the upcast of z.
    z_stored = z.astype(stored)
    m = jnp.max(z_stored, axis=-1, keepdims=True).astype(z.dtype)
    anchor = finite(m)
    if number == 1:
        whole = jax.lax.optimization_barrier(z_stored)
        largest = jnp.sum(exp(whole.astype(z.dtype) - anchor), axis=-1, keepdims=True)
        elsewhere = jnp.zeros_like(largest)
        block, anchor, largest = jax.lax.optimization_barrier((whole, anchor, largest))
    else:
        blocks = z_stored.reshape(*z.shape[:-1], number, z.shape[-1] // number)
        blocks = jax.lax.optimization_barrier(blocks)
        sums = jnp.sum(exp(blocks.astype(z.dtype) - anchor[..., None]), axis=-1)
        chosen = jnp.argmax(sums, axis=-1, keepdims=True)
        is_chosen = jax.lax.broadcasted_iota(chosen.dtype, sums.shape, sums.ndim - 1) == chosen
        elsewhere = jnp.sum(jnp.where(is_chosen, 0.0, sums), axis=-1, keepdims=True)
        largest = jnp.sum(jnp.where(is_chosen, sums, 0.0), axis=-1, keepdims=True)
        block = jnp.take_along_axis(blocks, chosen[..., None], axis=-2, mode="clip")[..., 0, :]

    zero, huge = jax.lax.optimization_barrier((z.dtype.type(0), np.finfo(z.dtype).max))
    down = block.astype(z.dtype) - anchor
    # 0 for a finite maximum and 1 for every other class. An infinite maximum has 1 as well.
    counts = jnp.minimum(jnp.abs(down) * huge, 1.0)
    rest = jnp.sum(exp(jnp.minimum(down, zero)) * counts, axis=-1, keepdims=True)
    rest, without = jax.lax.stop_gradient((rest, largest))
    maxima = jnp.round(without - rest)
    s = (elsewhere + rest) + (maxima - 1)
    # This adds zero, with the derivative of the sum that has the maximum in it.
    s = s + jnp.where(jnp.isinf(largest), 0.0, largest - without)

    # An infinite maximum must be the only one. XLA:CPU's maximum may ignore NaN, but the sums are
    # then NaN.
    is_single = (rest == 1) & (elsewhere < jnp.inf)
    beside_infinity = nan_where(jnp.isinf(m) & ~is_single, jnp.zeros_like(rest))
    s = jnp.where(jnp.isinf(m), beside_infinity, s)
    undefined = jnp.isnan(elsewhere) | jnp.isnan(largest)
    return nan_where(undefined, m), nan_where(undefined | ~(m > -jnp.inf), s)


def with_plain_sums(
    z: jax.Array, known: MaxAndSum, request: Request, stored: np.dtype[Any]
) -> Statistics:
    """The statistics that are requested, added to the two that are known already."""
    m, s = known
    labels, weights, exp_gap = request
    stats = Statistics(m, s)
    if labels is not None:
        stats = stats._replace(label_logit=at_label(z.astype(stored), labels).astype(z.dtype))
    if weights is not None:
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
