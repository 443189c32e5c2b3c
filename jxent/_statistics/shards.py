"""The statistics of rows whose classes are spread over mesh axes: those of the shards, merged."""

import jax
import jax.numpy as jnp

from .._elementary import exp
from .._numerics import nan_where
from .._sharding import MeshAxes
from . import Statistics, finite


def merged(stats: Statistics, has_label: jax.Array | None, axes: MeshAxes) -> Statistics:
    """The statistics of whole rows, the same on every shard, from those of each shard's part.

    `has_label` ``[..., 1]`` says whether the shard has the label's class. The shards communicate
    twice: about the maxima, and then about all sums.
    """
    no_class = stats.maximum == -jnp.inf
    # A maximum over the shards may ignore NaN, so NaN goes by the sums below.
    own = jnp.where(jnp.isnan(stats.maximum), jnp.inf, stats.maximum)
    m, max_weight = jax.lax.pmax((own, stats.max_weight), axes)
    has_maximum = own == m
    gap = jnp.where(has_maximum, 0.0, m - own)
    scale = jnp.where(has_maximum, 1.0, exp(own - finite(m)))
    exponentials = 1 + stats.sumexp_rest

    # Each shard's sum leaves out its own maximum. Add it back for all but one of the shards that
    # attain the maximum of the row: `ties` is their number.
    sumexp_rest = jnp.where(has_maximum, stats.sumexp_rest, scale * exponentials)
    sums = {
        "sumexp_rest": jnp.where(no_class & ~has_maximum, 0.0, sumexp_rest),
        "ties": nan_where(jnp.isnan(stats.maximum), has_maximum.astype(m.dtype)),
    }
    if has_label is not None:
        sums["label_logit"] = jnp.where(has_label, stats.label_logit, 0.0)
    if stats.weighted_gap is not None:
        # The row's maximum is higher than the shard's by `gap`: each weight costs so much more.
        weight = stats.max_weight + stats.weight_rest
        sums["weighted_gap"] = stats.weighted_gap + jnp.where(weight == 0, 0.0, weight * gap)
        is_heaviest = stats.max_weight == max_weight
        sums["weight_rest"] = jnp.where(is_heaviest, stats.weight_rest, weight)
        sums["heaviest"] = is_heaviest.astype(m.dtype)
    if stats.exp_gap is not None:
        # Likewise each exponential lies further below the maximum by `gap`.
        deep = jnp.where(scale > 0, scale * (stats.exp_gap + exponentials * gap), 0.0)
        sums["exp_gap"] = jnp.where(no_class, 0.0, jnp.where(has_maximum, stats.exp_gap, deep))
    sums = jax.lax.psum(sums, axes)

    ties = sums.pop("ties")
    sums["sumexp_rest"] = nan_where((m == jnp.inf) & (ties > 1), sums["sumexp_rest"] + (ties - 1))
    if stats.weighted_gap is not None:
        sums["weight_rest"] = sums["weight_rest"] + (sums.pop("heaviest") - 1) * max_weight
        sums["max_weight"] = max_weight
    return Statistics(nan_where(jnp.isnan(ties), m), **sums)
