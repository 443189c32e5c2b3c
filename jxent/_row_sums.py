"""The sums over a row of logits: the one thing that platforms do differently.

Three ways to the same numbers. `by_logsumexp` is the plain one, and the reference for the others.
Each takes logits ``[..., classes]`` in their computing dtype, and what is asked of them.
"""

from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from ._labels import at_label, explicit_sharding
from ._numerics import nan_where, times
from ._one_pass import Asked, Statistics, in_one_pass

Pair: TypeAlias = tuple[jax.Array, jax.Array]
"""A maximum and the sum of the others."""


def row_sums(z: jax.Array, asked: Asked, stored: np.dtype[Any]) -> Statistics:
    """The statistics by the way that suits the platform and the dtype that z is stored in."""
    labels, weights, spread = asked

    def by(way: Any) -> Any:
        return lambda z, labels, weights: way(z, Asked(labels, weights, spread))

    sums: Statistics = jax.lax.platform_dependent(
        z,
        labels,
        weights,
        cpu=by(partial(on_cpu, stored=stored)),
        cuda=by(on_gpu),
        tpu=by(in_one_pass),
        default=by(by_logsumexp),
    )
    return sums


def on_cpu(z: jax.Array, asked: Asked, stored: np.dtype[Any]) -> Statistics:
    """The way that XLA:CPU compiles best for so many classes."""
    classes = z.shape[-1]
    if is_symbolic_dim(classes):
        return by_blocks(z, asked, stored, 1)
    if classes < 12:  # So short a reduction is unrolled, and then compiled well.
        maximum = in_one_pass(z, Asked())[:2]
        return _with_plain_sums(z, maximum, asked, stored)
    # A number that divides the classes, so that blocks are few and each is a small part.
    numbers = [n for n in range(4, 65) if classes % n == 0 and classes >= 24 * n]
    if not numbers or explicit_sharding(z):
        return by_blocks(z, asked, stored, 1)
    # One block is looked at again, and each of them costs as much as some 24 classes.
    cost = {n: 24 * n + classes // n for n in numbers}
    return by_blocks(z, asked, stored, max(numbers, key=lambda n: (_cuts(n), -cost[n])))


def _cuts(number: int) -> int:
    """The power of two in a number of blocks: sharded classes can be cut along it."""
    return min(number & -number, 64)


def on_gpu(z: jax.Array, asked: Asked) -> Statistics:
    """In one pass by blocks that fit a thread block, where the classes divide into such.

    XLA:GPU cuts longer rows itself, into more blocks, whose sums then move much more memory.
    """
    classes = z.shape[-1]
    if is_symbolic_dim(classes):
        return in_one_pass(z, asked)
    sizes = [n for n in range(256, 2049) if classes % n == 0 and classes > n]
    if not sizes or explicit_sharding(z):
        return in_one_pass(z, asked)
    return in_one_pass(z, asked, max(sizes, key=lambda n: (_cuts(classes // n), n)))


def by_logsumexp(z: jax.Array, asked: Asked) -> Statistics:
    """With `jax.nn.logsumexp` over what is not the maximum, and the ties counted."""
    return _with_plain_sums(z, _by_logsumexp(z), asked, z.dtype)


def by_blocks(z: jax.Array, asked: Asked, stored: np.dtype[Any], number: int) -> Statistics:
    """Sums of blocks of classes, perhaps one, and one once more, without the maximum it has."""
    return _with_plain_sums(z, _by_blocks(z, stored, number), asked, stored)


def _by_logsumexp(z: jax.Array) -> Pair:
    m = jnp.max(z, axis=-1, keepdims=True)
    anchor = jnp.where(jnp.isinf(m), 0.0, m)
    # NaN is not the maximum either, so it is seen even where a compiler's maximum overlooks it.
    rest = jnp.exp(jax.nn.logsumexp(z - anchor, axis=-1, keepdims=True, where=z != m))
    ties = jnp.sum(z == m, axis=-1, keepdims=True).astype(z.dtype)
    beside_infinity = nan_where(jnp.isinf(m) & (ties != 1), jnp.zeros_like(rest))
    s = jnp.where(m < jnp.inf, rest + (ties - 1), beside_infinity)
    s = nan_where(~(m > -jnp.inf), s)
    return nan_where(jnp.isnan(rest), m), nan_where(jnp.isnan(rest), s)


# XLA:CPU sums exponentials fast, and without writing them to memory, while nothing but arithmetic
# stands in the sum, on operands that no other loop shares, be they constants: barriers see to that.
# So the maximum is summed with the others, as a 1. Next to it a small sum would lose its bits; but
# then it is in the largest of the sums over blocks of classes, and that block is summed once more
# without it: the two differ by the number of maxima there, of which the sum shall not have one.
# Where the largest sum has no maximum, the others are at least 1 with it, and 1 less loses nothing.
def _by_blocks(z: jax.Array, stored: np.dtype[Any], number: int) -> Pair:
    # The maximum is that of the numbers as they are stored; two sums would share their upcast.
    z_stored = z.astype(stored)
    m = jnp.max(z_stored, axis=-1, keepdims=True).astype(z.dtype)
    anchor = finite(m)
    if number == 1:
        whole = jax.lax.optimization_barrier(z_stored)
        largest = jnp.sum(jnp.exp(whole.astype(z.dtype) - anchor), axis=-1, keepdims=True)
        elsewhere = jnp.zeros_like(largest)
        block, anchor, largest = jax.lax.optimization_barrier((whole, anchor, largest))
    else:
        blocks = z_stored.reshape(*z.shape[:-1], number, z.shape[-1] // number)
        blocks = jax.lax.optimization_barrier(blocks)
        sums = jnp.sum(jnp.exp(blocks.astype(z.dtype) - anchor[..., None]), axis=-1)
        chosen = jnp.argmax(sums, axis=-1, keepdims=True)
        is_chosen = jax.lax.broadcasted_iota(chosen.dtype, sums.shape, sums.ndim - 1) == chosen
        elsewhere = jnp.sum(jnp.where(is_chosen, 0.0, sums), axis=-1, keepdims=True)
        largest = jnp.sum(jnp.where(is_chosen, sums, 0.0), axis=-1, keepdims=True)
        block = jnp.take_along_axis(blocks, chosen[..., None], axis=-2, mode="clip")[..., 0, :]

    zero, huge = jax.lax.optimization_barrier((z.dtype.type(0), np.finfo(z.dtype).max))
    down = block.astype(z.dtype) - anchor
    # Zero for a maximum; but every infinite one counts, as 1.
    counts = jnp.minimum(jnp.abs(down) * huge, 1.0)
    rest = jnp.sum(jnp.exp(jnp.minimum(down, zero)) * counts, axis=-1, keepdims=True)
    rest, without = jax.lax.stop_gradient((rest, largest))
    maxima = jnp.round(without - rest)
    s = (elsewhere + rest) + (maxima - 1)
    # Zero, with the derivative that the sum has with its maximum.
    s = s + jnp.where(jnp.isinf(largest), 0.0, largest - without)

    # An infinite maximum must be the only one. NaN is seen by the sums, though not by XLA:CPU's
    # maximum.
    is_single = (rest == 1) & (elsewhere < jnp.inf)
    beside_infinity = nan_where(jnp.isinf(m) & ~is_single, jnp.zeros_like(rest))
    s = jnp.where(jnp.isinf(m), beside_infinity, s)
    undefined = jnp.isnan(elsewhere) | jnp.isnan(largest)
    return nan_where(undefined, m), nan_where(undefined | ~(m > -jnp.inf), s)


def _with_plain_sums(
    z: jax.Array, maximum: Pair, asked: Asked, stored: np.dtype[Any]
) -> Statistics:
    """The other statistics, once the maximum is known."""
    m, s = maximum
    labels, weights, spread = asked
    stats = Statistics(m, s)
    if labels is not None:
        of_label = at_label(z.astype(stored), labels).astype(z.dtype)
        stats = stats._replace(of_label=of_label)
    if weights is not None:
        top = jnp.max(weights, axis=-1, keepdims=True)
        below = jnp.sum(jnp.where(weights == top, 0.0, weights), axis=-1, keepdims=True)
        ties = jnp.sum(weights == top, axis=-1, keepdims=True).astype(z.dtype)
        gap = jnp.where(z == m, 0.0, m - jnp.where(z == m, 0.0, z))
        cost = jnp.sum(times(weights, gap), axis=-1, keepdims=True)
        stats = stats._replace(cost=cost, top=top, rest=below + (ties - 1) * top)
    if spread:
        down = jnp.minimum(z - finite(m), 0.0)
        terms = jnp.exp(down) * jnp.where(down > -jnp.inf, -down, 0.0)
        stats = stats._replace(spread=jnp.sum(terms, axis=-1, keepdims=True))
    return stats


def finite(x: jax.Array) -> jax.Array:
    """The largest number in place of the infinite ones, for sums that are infinite, not NaN."""
    return jnp.where(jnp.isinf(x), jnp.sign(x) * np.finfo(x.dtype).max, x)
