"""The statistics of logits: the way of summing that suits the platform, and their derivative."""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from .._labels import at_label, in_range
from .._sharding import MeshAxes, automatic_axes, of_this_shard, sum_classes
from . import Request, Statistics, finite_shift, unnormalized
from .merging import without_limit_nan
from .one_pass import by_reduction
from .row_sums import by_logsumexp, by_plain_sums, by_sums, is_short
from .shards import of_all_shards

Way: TypeAlias = Callable[[jax.Array, Request, np.dtype[Any]], Statistics]


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

    def by(way: Way) -> Callable[..., Statistics]:
        def of_arrays(logits: jax.Array, labels: Any, weights: Any) -> Statistics:
            return way(logits, Request(labels, weights, request.exp_gap), dtype)

        return of_arrays

    sums: Statistics = jax.lax.platform_dependent(
        logits,
        request.labels,
        request.weights,
        cpu=by(on_cpu),
        tpu=by(on_tpu),
        cuda=by(on_gpu),
        default=by(by_logsumexp),
    )
    return sums


def on_tpu(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """In one reduction of slices that are made of whole registers, which hold 128 classes.

    The compilers estimate the fewest cycles with 16 slices, and with 8 where more is requested.
    """
    much = request.labels is not None and request.weights is not None
    return by_reduction(logits, request, dtype, _width(logits, 8 if much else 16, 128))


def on_gpu(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """In one reduction by blocks that fit a thread block, if some size of them divides the classes.

    XLA:GPU cuts longer rows itself, into more blocks, whose sums then move much more memory. With
    slices its model estimates a longer time.
    """
    classes, block = logits.shape[-1], 0
    if has_whole_rows(logits):
        block = max((n for n in range(256, 2049) if classes % n == 0 and classes > n), default=0)
    return by_reduction(logits, request, dtype, classes, block)


def on_cpu(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """With sums, and so cut that XLA:CPU makes vectorised loops (``benchmarks/dense.py``)."""
    classes = logits.shape[-1]
    if not has_whole_rows(logits) or is_short(logits):
        return by_plain_sums(logits, request, dtype)
    if classes < 256:
        width = 8 if classes >= 128 else 4 if classes >= 64 or classes % 4 == 0 else 5
        return by_sums(logits, request, dtype, width)
    # Slices of one register, if so many of them divide the classes that few of the statistics of
    # their entries have to be written.
    number = next((n for n in range(32, 19, -1) if classes % (8 * n) == 0), None)
    if number:
        return by_sums(logits, request, dtype, 8, groups=classes // (8 * number))
    return by_sums(logits, request, dtype, _width(logits, 20, 4))


def _width(logits: jax.Array, most: int, unit: int) -> int:
    """The width of at most so many slices, a multiple of the unit."""
    classes = logits.shape[-1]
    if not has_whole_rows(logits):
        return classes
    return min(classes, -(-classes // (most * unit)) * unit)


def has_whole_rows(logits: jax.Array) -> bool:
    """Whether each device certainly has all classes of its rows, so that they can be cut.

    Where XLA has spread them over devices, to cut them would be to move them. The type of an array
    says how it is spread over the explicit axes of a mesh. Over automatic axes it may be.
    """
    of_classes = jax.typeof(logits).sharding.spec[-1]
    if is_symbolic_dim(logits.shape[-1]) or of_classes is not None:
        return False
    return not automatic_axes(logits)
