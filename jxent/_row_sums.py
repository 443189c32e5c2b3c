"""What every loss needs of a row of logits: the one thing that platforms do differently.

Three ways to the same numbers. `by_logsumexp` is the plain one, and the reference for the others.
Each takes logits ``[..., classes]`` in their computing dtype and returns ``m = max_j z_j`` and
``s = sum_{j≠k} exp(z_j - m)``, k being one maximum, as ``[..., 1]``; given labels ``[...]``, the
logit of the label as well. Where softmax has no limit s is NaN: every logit -inf, more than one
+inf, or a NaN logit, which makes m NaN as well.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._labels import at_label, is_label

Labels = jax.Array | None
Sums = tuple[jax.Array, jax.Array, jax.Array | None]


def row_sums(z: jax.Array, labels: Labels, stored: np.dtype[Any]) -> Sums:
    """``(m, s, z_y)`` by the way that suits the platform and the dtype that z is stored in."""
    sums: Sums = jax.lax.platform_dependent(
        z,
        labels,
        cpu=partial(_on_cpu, stored=stored),
        cuda=in_one_pass,
        tpu=in_one_pass,
        default=by_logsumexp,
    )
    return sums


def _on_cpu(z: jax.Array, labels: Labels, stored: np.dtype[Any]) -> Sums:
    classes = z.shape[-1]
    number = _number_of_blocks(classes)
    if classes < 12:  # So short a reduction is unrolled, and then compiled well.
        m, s, _ = in_one_pass(z, None)
    elif number == 1:
        m, s, _ = by_logsumexp(z, None)
    else:
        m, s = by_blocks(z, stored, number)
    return m, s, None if labels is None else at_label(z.astype(stored), labels).astype(z.dtype)


def _number_of_blocks(classes: int) -> int:
    """A divisor of the number of classes, such that blocks are few and each is a small part.

    Preferably a power of two: sharded classes are cut along it.
    """
    candidates = (32, 16, 8, 4, *range(64, 4, -1))
    return next((n for n in candidates if classes % n == 0 and classes >= 24 * n), 1)


def by_logsumexp(z: jax.Array, labels: Labels) -> Sums:
    """With `jax.nn.logsumexp` over what is not the maximum, and the ties counted."""
    m = jnp.max(z, axis=-1, keepdims=True)
    anchor = jnp.where(jnp.isinf(m), 0.0, m)
    # NaN is not the maximum either, so it is seen even where a compiler's maximum overlooks it.
    rest = jnp.exp(jax.nn.logsumexp(z - anchor, axis=-1, keepdims=True, where=z != m))
    ties = jnp.sum(z == m, axis=-1, keepdims=True).astype(z.dtype)
    beside_infinity = jnp.where(ties == 1, 0.0, jnp.nan)
    s = jnp.where(m < jnp.inf, rest + (ties - 1), beside_infinity)
    s = jnp.where(m > -jnp.inf, s, jnp.nan)
    m, s = (jnp.where(jnp.isnan(rest), jnp.nan, x) for x in (m, s))
    return m, s, None if labels is None else at_label(z, labels)


def in_one_pass(z: jax.Array, labels: Labels) -> Sums:
    """Each logit begins as a row of its own, and rows are merged, in one reduction.

    A merged row has the higher maximum, and the lower one among its others. The sum is carried
    with its rounding error, which over 200 000 classes would be 10^4 eps, and in units of 2^-64,
    so that the error of a small sum does not underflow.
    """
    lowest, none, unit = (np.asarray(x, z.dtype) for x in (-np.inf, 0, 2.0**64))

    def merge(a: Any, b: Any) -> Any:
        a_is_higher = (a[0] >= b[0]) | (a[0] != a[0])  # NaN is the highest, and stays.
        m, s, error = (jax.lax.select(a_is_higher, a[i], b[i]) for i in range(3))
        low, t, t_error = (jax.lax.select(a_is_higher, b[i], a[i]) for i in range(3))
        # -inf is no class. Two of them would be NaN otherwise, as two +inf shall be.
        scale = jax.lax.exp(jax.lax.select(low == lowest, low, low - m))
        added = scale * (t + unit)
        # Knuth's two-sum: `lost` is exactly what the rounding of s + added loses.
        total = s + added
        seen = total - s
        lost = (s - (total - seen)) + (added - seen)
        picked = (jax.lax.max(x, y) for x, y in zip(a[3:], b[3:], strict=True))
        return m, total, error + (scale * t_error + lost), *picked

    # A function of z, although a constant one: lax.reduce cannot be differentiated otherwise.
    zero = jnp.where(jnp.zeros(z.shape, bool), z, none)
    rows: tuple[jax.Array, ...] = (z, zero, zero)
    init: tuple[Any, ...] = (lowest, none, none)
    if labels is not None:
        rows += (jnp.where(is_label(labels, z.shape[-1]), z, lowest),)
        init += (lowest,)
    m, s, error, *picked = (x[..., None] for x in jax.lax.reduce(rows, init, merge, (z.ndim - 1,)))
    s = jnp.where(m > -jnp.inf, (s + error) / unit, jnp.nan)
    return m, s, picked[0] if picked else None


def by_blocks(z: jax.Array, stored: np.dtype[Any], number: int) -> tuple[jax.Array, jax.Array]:
    """Sums of whole blocks of classes, and one block once more, without the maximum it has.

    XLA:CPU sums exponentials fast, and without writing them to memory, while nothing but
    arithmetic stands in the sum, on operands that no other sum shares. The comparisons that this
    needs are kept to numbers of blocks, and to one block.
    """
    *examples, classes = z.shape
    # The maximum is that of the numbers as they are stored; two sums would share their upcast.
    blocks = z.astype(stored).reshape(*examples, number, classes // number)
    maxima = jnp.max(blocks, axis=-1).astype(z.dtype)
    m = jnp.max(maxima, axis=-1, keepdims=True)
    anchors, anchor = finite(maxima), finite(m)
    sums = jnp.sum(jnp.exp(blocks.astype(z.dtype) - anchors[..., None]), axis=-1)
    chosen = jnp.argmax(maxima, axis=-1, keepdims=True)
    is_chosen = jax.lax.broadcasted_iota(chosen.dtype, sums.shape, sums.ndim - 1) == chosen
    # The selection comes first, or both sums become one of two levels, which is slow.
    elsewhere = jnp.where(is_chosen, 0.0, sums) * jnp.exp(anchors - anchor)
    elsewhere = jnp.sum(elsewhere, axis=-1, keepdims=True)

    block = jnp.take_along_axis(blocks, chosen[..., None], axis=-2, mode="clip")[..., 0, :]
    block = block.astype(z.dtype)
    is_below = jnp.minimum((anchor - block) * np.finfo(z.dtype).max, 1.0)
    rest = jnp.sum(jnp.exp(block - anchor) * is_below, axis=-1, keepdims=True)
    ties = jnp.sum(block == m, axis=-1, keepdims=True).astype(z.dtype)

    # An infinite maximum must be the only one, and NaN is seen by the sums, though not by XLA:CPU's
    # maximum.
    beside_infinity = jnp.where((ties == 1) & (elsewhere == 0), 0.0, jnp.nan)
    s = jnp.where(jnp.isinf(m), beside_infinity, elsewhere + (rest + (ties - 1)))
    s = jnp.where(m > -jnp.inf, s, jnp.nan)
    undefined = jnp.isnan(elsewhere) | jnp.isnan(rest)
    return jnp.where(undefined, jnp.nan, m), jnp.where(undefined, jnp.nan, s)


def finite(x: jax.Array) -> jax.Array:
    """The largest number in place of the infinite ones, for sums that are infinite, not NaN."""
    return jnp.where(jnp.isinf(x), jnp.sign(x) * np.finfo(x.dtype).max, x)
