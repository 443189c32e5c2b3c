"""The statistics of logits: the way of summing that suits the platform, and their derivative."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from .._labels import at_label, in_range
from .._sharding import MeshAxes, automatic_axes, of_this_shard, sum_classes
from . import Request, Statistics, finite_shift, unnormalized
from .merging import without_limit_nan
from .row_sums import by_logsumexp, by_reduction, by_sums
from .shards import of_all_shards


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 5))
def statistics(
    axes: MeshAxes,
    dtype: np.dtype[Any],
    logits: jax.Array,
    labels: jax.Array | None = None,
    weights: jax.Array | None = None,
    exp_gap: bool = False,
) -> Statistics:
    """The statistics of each row of logits, in this computing dtype.

    `labels`, `weights` and `exp_gap` say which, as in `Request`. Where the classes are spread over
    the mesh axes `axes` the statistics are those of the whole row, and labels number all classes.
    """
    if not axes:
        return without_limit_nan(sums_on_platform(logits, Request(labels, weights, exp_gap), dtype))
    here = None if labels is None else of_this_shard(labels, logits.shape[-1], axes)
    has_label = None if here is None else in_range(here, logits.shape[-1])
    of_shard = sums_on_platform(logits, Request(here, weights, exp_gap), dtype)
    return without_limit_nan(of_all_shards(of_shard, has_label, axes))


# m is only where the sums are anchored: what is made of them does not depend on it, so its
# tangent may be taken as zero. Then 1 + s = sum_j exp(z_j - m) gives s its tangent, in which the
# maximum counts like every other class; and likewise with the largest weight and the rest.
@statistics.defjvp
def _statistics_jvp(
    axes: MeshAxes,
    dtype: np.dtype[Any],
    exp_gap: bool,
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[Statistics, Statistics]:
    (logits, labels, weights), (logits_dot, _, weights_dot) = primals, tangents
    stats = statistics(axes, dtype, logits, labels, weights, exp_gap)
    z, z_dot = logits.astype(dtype), logits_dot.astype(dtype)
    e, down = unnormalized(z, stats.maximum), finite_shift(z, stats.maximum)
    total = partial(sum_classes, axes=axes)

    stats_dot = Statistics(jnp.zeros_like(stats.maximum), total(e * z_dot))
    if labels is not None:
        stats_dot = stats_dot._replace(label_logit=at_label(z_dot, labels, axes))
    if weights is not None:
        weights, weights_dot = weights.astype(dtype), weights_dot.astype(dtype)
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


def sums_on_platform(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """The statistics by the way that suits the platform."""
    labels, weights, exp_gap = request

    def by(way: Any) -> Any:
        return lambda *arrays: way(arrays[0], Request(*arrays[1:], exp_gap), dtype)

    sums: Statistics = jax.lax.platform_dependent(
        logits, labels, weights, cpu=by(on_cpu), tpu=by(on_tpu), cuda=by(on_gpu), default=by(on_any)
    )
    return sums


def on_any(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """The plain way, which asks least of a compiler."""
    return by_logsumexp(logits, request, dtype)


def on_tpu(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """In one reduction of up to 16 slices of whole registers, which are 128 classes wide."""
    return by_reduction(logits, request, dtype, width_of_slices(logits, 16, 128))


def on_cpu(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """With the sums of some slices, for which XLA:CPU makes vectorised loops."""
    return by_sums(logits, request, dtype, width_of_slices(logits, 16, 8))


def on_gpu(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """In one reduction by blocks that fit a thread block, if some size of them divides the classes.

    XLA:GPU cuts longer rows itself, into more blocks, whose sums then move much more memory.
    """
    classes, block = logits.shape[-1], 0
    if has_whole_rows(logits):
        block = max((n for n in range(256, 2049) if classes % n == 0 and classes > n), default=0)
    return by_reduction(logits, request, dtype, classes, block)


def width_of_slices(logits: jax.Array, most: int, unit: int) -> int:
    """The width of the slices: a multiple of the unit, and so that there are at most so many."""
    classes = logits.shape[-1]
    if not has_whole_rows(logits):
        return classes
    return min(classes, -(-classes // (most * unit)) * unit)


def has_whole_rows(logits: jax.Array) -> bool:
    """Whether each device certainly has all classes of its rows, so that they can be cut.

    Where XLA has spread them over devices, to cut them would be to move them. The type of an array
    says what is certain: of a mesh with automatic axes it says that the mesh is there.
    """
    of_classes = jax.typeof(logits).sharding.spec[-1]
    return (
        not is_symbolic_dim(logits.shape[-1]) and of_classes is None and not automatic_axes(logits)
    )
