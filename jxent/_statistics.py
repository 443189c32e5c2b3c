r"""The statistics of a row of logits, from which every softmax loss is made.

For logits :math:`z` with the classes on the last axis,

.. math::
    m = \max_j z_j, \qquad s = \sum_{j \ne k} e^{z_j - m}

where :math:`k` is one maximum. The sum leaves it out because its term is exactly 1: next to 1 a
small :math:`s` would lose its bits, and it is the loss of a confident prediction. From these

.. math::
    p_j = \frac{e^{z_j - m}}{1 + s}, \qquad
    1 - p_j = \frac{s - \operatorname{expm1}(z_j - m)}{1 + s}, \qquad
    -\log p_j = (m - z_j) + \operatorname{log1p}(s)

are quotients and sums of terms of one sign, so that nothing cancels.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._class_axes import Axes, added_up, of_this_shard
from ._labels import at_label, is_class
from ._one_pass import Asked, Statistics
from ._row_sums import finite, row_sums
from ._shards import merged


def computing_dtype(*arrays: jax.Array) -> np.dtype[Any]:
    """float64 if any of the arrays has it, else float32."""
    double = any(x.dtype == np.float64 for x in arrays)
    return np.dtype(np.float64 if double else np.float32)


def upcast(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays in their computing dtype."""
    return tuple(x.astype(computing_dtype(*arrays)) for x in arrays)


def statistics(
    z: jax.Array,
    stored: np.dtype[Any],
    *,
    labels: jax.Array | None = None,
    weights: jax.Array | None = None,
    spread: bool = False,
    class_axes: Axes = (),
) -> Statistics:
    """The statistics of each row of logits, upcast from the dtype they are stored in.

    With integer labels ``[...]`` those of the label, with `weights` like the logits those of the
    weights, with `spread` that of the entropy. Where the classes are spread over the mesh axes
    `class_axes`, of the whole row, for labels that number all classes.
    """
    return _statistics(z, labels, weights, spread, stored, class_axes)


@partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _statistics(
    z: jax.Array,
    labels: jax.Array | None,
    weights: jax.Array | None,
    spread: bool,
    stored: np.dtype[Any],
    axes: Axes,
) -> Statistics:
    if not axes:
        return row_sums(z, Asked(labels, weights, spread), stored)
    here = None if labels is None else of_this_shard(labels, z.shape[-1], axes)
    has_label = None if here is None else is_class(here, z.shape[-1])
    return merged(row_sums(z, Asked(here, weights, spread), stored), has_label, axes)


# m is only where the sums are anchored: what is made of them does not depend on it, so its
# tangent may be taken as zero. Then 1 + s = sum_j exp(z_j - m) gives s its tangent, in which the
# maximum counts like every other class; and likewise with the largest weight and the rest.
@_statistics.defjvp
def _statistics_jvp(
    spread: bool,
    stored: np.dtype[Any],
    axes: Axes,
    primals: tuple[Any, ...],
    tangents: tuple[Any, ...],
) -> tuple[Statistics, Statistics]:
    (z, labels, weights), (dot, _, weights_dot) = primals, tangents
    stats = _statistics(z, labels, weights, spread, stored, axes)
    e, down = unnormalized(z, stats), finite_shift(z, stats.maximum)

    def total(terms: jax.Array) -> jax.Array:
        return added_up(jnp.sum(terms, axis=-1, keepdims=True), axes)

    stats_dot = Statistics(jnp.zeros_like(stats.maximum), total(e * dot))
    if labels is not None:
        stats_dot = stats_dot._replace(of_label=at_label(dot, labels, axes))
    if weights is not None:
        cost_dot = -total(weights_dot * jnp.where(z > -jnp.inf, down, 0.0) + weights * dot)
        stats_dot = stats_dot._replace(
            cost=cost_dot, top=jnp.zeros_like(stats.maximum), rest=total(weights_dot)
        )
    if spread:
        terms = jnp.where(e > 0, -e * (down + 1), 0.0) * dot
        stats_dot = stats_dot._replace(spread=total(terms))
    return stats, stats_dot


def shift(logits: jax.Array, m: jax.Array) -> jax.Array:
    """``logits - m``, at most zero; beside a single +inf the others are infinitely far."""
    at_infinity = jnp.where(logits == m, 0.0, -jnp.inf)
    return jnp.where(m < jnp.inf, logits - jnp.where(m < jnp.inf, m, 0.0), at_infinity)


def finite_shift(logits: jax.Array, m: jax.Array) -> jax.Array:
    """`shift` for exponentials, which need no -inf: 0, and at most a large number below."""
    # Behind a barrier: once for a row, not for each logit.
    anchor: jax.Array = jax.lax.optimization_barrier(finite(m))
    return jnp.minimum(logits, np.finfo(logits.dtype).max) - anchor


def unnormalized(logits: jax.Array, stats: Statistics) -> jax.Array:
    """``exp(z_j - m)``."""
    return jnp.exp(finite_shift(logits, stats.maximum))
