"""The statistics of rows whose classes are spread over mesh axes: those of the shards, merged."""

import jax
import jax.numpy as jnp

from ._class_axes import Axes
from ._numerics import nan_where
from ._one_pass import Statistics
from ._row_sums import finite


def merged(stats: Statistics, has_label: jax.Array | None, axes: Axes) -> Statistics:
    """The statistics of whole rows, the same on every shard, from those of its part of them.

    `has_label` ``[..., 1]`` says whether the shard has the label's class. Two exchanges: the
    maxima, and then all sums.
    """
    no_class = stats.maximum == -jnp.inf
    # NaN would be lost in a maximum; the sums carry it.
    own = jnp.where(jnp.isnan(stats.maximum), jnp.inf, stats.maximum)
    m, top = jax.lax.pmax((own, stats.top), axes)
    at_top = own == m
    gap = jnp.where(at_top, 0.0, m - own)
    scale = jnp.where(at_top, 1.0, jnp.exp(own - finite(m)))
    exponentials = 1 + stats.others

    # Of the shards that have the maximum all but one must count it: they are counted.
    others = jnp.where(at_top, stats.others, scale * exponentials)
    sums = {
        "others": jnp.where(no_class & ~at_top, 0.0, others),
        "ties": nan_where(jnp.isnan(stats.maximum), at_top.astype(m.dtype)),
    }
    if has_label is not None:
        sums["of_label"] = jnp.where(has_label, stats.of_label, 0.0)
    if stats.cost is not None:  # Seen from the maximum of all, each weight costs the gap more.
        weight = stats.top + stats.rest
        sums["cost"] = stats.cost + jnp.where(weight == 0, 0.0, weight * gap)
        sums["rest"] = jnp.where(stats.top == top, stats.rest, weight)
        sums["heaviest"] = (stats.top == top).astype(m.dtype)
    if stats.spread is not None:  # and each exponential lies the gap further down.
        deep = jnp.where(scale > 0, scale * (stats.spread + exponentials * gap), 0.0)
        sums["spread"] = jnp.where(no_class, 0.0, jnp.where(at_top, stats.spread, deep))
    sums = jax.lax.psum(sums, axes)

    ties = sums.pop("ties")
    others = nan_where((m == jnp.inf) & (ties > 1), sums.pop("others") + (ties - 1))
    if stats.cost is not None:
        sums["rest"] = sums["rest"] + (sums.pop("heaviest") - 1) * top
        sums["top"] = top
    return Statistics(nan_where(jnp.isnan(ties), m), others, **sums)
