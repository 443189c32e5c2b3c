"""The statistics of logits: the way of summing that suits the platform, and their derivative."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from .._labels import at_label, in_range
from .._sharding import MeshAxes, explicit_sharding, of_this_shard, sum_classes
from . import Request, Statistics, finite_shift, unnormalized
from .row_sums import by_blocks, by_logsumexp, in_one_pass, with_plain_sums
from .shards import merged


@partial(jax.custom_jvp, nondiff_argnums=(0, 2, 5))
def statistics(
    axes: MeshAxes,
    z: jax.Array,
    stored: np.dtype[Any],
    labels: jax.Array | None = None,
    weights: jax.Array | None = None,
    exp_gap: bool = False,
) -> Statistics:
    """The statistics of each row of logits, upcast from the dtype that they are stored in.

    `labels`, `weights` and `exp_gap` say which, as in `Request`. Where the classes are spread over
    the mesh axes `axes` the statistics are those of the whole row, and labels number all classes.
    """
    if not axes:
        return sums_on_platform(z, Request(labels, weights, exp_gap), stored)
    here = None if labels is None else of_this_shard(labels, z.shape[-1], axes)
    has_label = None if here is None else in_range(here, z.shape[-1])
    of_shard = sums_on_platform(z, Request(here, weights, exp_gap), stored)
    return merged(of_shard, has_label, axes)


# m is only where the sums are anchored: what is made of them does not depend on it, so its
# tangent may be taken as zero. Then 1 + s = sum_j exp(z_j - m) gives s its tangent, in which the
# maximum counts like every other class; and likewise with the largest weight and the rest.
@statistics.defjvp
def _statistics_jvp(
    axes: MeshAxes,
    stored: np.dtype[Any],
    exp_gap: bool,
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[Statistics, Statistics]:
    (z, labels, weights), (z_dot, _, weights_dot) = primals, tangents
    stats = statistics(axes, z, stored, labels, weights, exp_gap)
    e, down = unnormalized(z, stats.maximum), finite_shift(z, stats.maximum)
    total = partial(sum_classes, axes=axes)

    stats_dot = Statistics(jnp.zeros_like(stats.maximum), total(e * z_dot))
    if labels is not None:
        stats_dot = stats_dot._replace(label_logit=at_label(z_dot, labels, axes))
    if weights is not None:
        gap_dot = weights_dot * jnp.where(z > -jnp.inf, down, 0.0) + weights * z_dot
        stats_dot = stats_dot._replace(
            weighted_gap=-total(gap_dot),
            max_weight=jnp.zeros_like(stats.maximum),
            weight_rest=total(weights_dot),
        )
    if exp_gap:
        terms = jnp.where(e > 0, -e * (down + 1), 0.0) * z_dot
        stats_dot = stats_dot._replace(exp_gap=total(terms))
    return stats, stats_dot


def sums_on_platform(z: jax.Array, request: Request, stored: np.dtype[Any]) -> Statistics:
    """The statistics by the way that suits the platform and the dtype that z is stored in."""
    labels, weights, exp_gap = request

    def by(way: Any) -> Any:
        return lambda z, labels, weights: way(z, Request(labels, weights, exp_gap))

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


def on_cpu(z: jax.Array, request: Request, stored: np.dtype[Any]) -> Statistics:
    """The way that XLA:CPU compiles best for so many classes."""
    classes = z.shape[-1]
    if is_symbolic_dim(classes):
        return by_blocks(z, request, stored, 1)
    if classes < 12:  # XLA:CPU unrolls so short a reduction, and then compiles it well.
        maximum = in_one_pass(z, Request())[:2]
        return with_plain_sums(z, maximum, request, stored)
    # A number of blocks that divides the classes: few blocks, each a small part of the classes.
    numbers = [n for n in range(4, 65) if classes % n == 0 and classes >= 24 * n]
    if not numbers or explicit_sharding(z):
        return by_blocks(z, request, stored, 1)
    # A block costs as much as some 24 classes, and the classes of one block are read twice.
    cost = {n: 24 * n + classes // n for n in numbers}
    return by_blocks(z, request, stored, max(numbers, key=lambda n: (_cuts(n), -cost[n])))


def on_gpu(z: jax.Array, request: Request) -> Statistics:
    """In one pass by blocks that fit a thread block, if some size of them divides the classes.

    XLA:GPU cuts longer rows itself, into more blocks, whose sums then move much more memory.
    """
    classes = z.shape[-1]
    if is_symbolic_dim(classes):
        return in_one_pass(z, request)
    sizes = [n for n in range(256, 2049) if classes % n == 0 and classes > n]
    if not sizes or explicit_sharding(z):
        return in_one_pass(z, request)
    return in_one_pass(z, request, max(sizes, key=lambda n: (_cuts(classes // n), n)))


def _cuts(number: int) -> int:
    """The power of two in a number of blocks: sharded classes can be cut along it."""
    return min(number & -number, 64)
