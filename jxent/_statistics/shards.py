"""The statistics of rows whose classes are spread over mesh axes: those of the shards, merged."""

import jax
import jax.numpy as jnp

from .._sharding import MeshAxes
from . import Statistics
from .merging import Named, merged


def of_all_shards(stats: Statistics, has_label: jax.Array | None, axes: MeshAxes) -> Statistics:
    """The statistics of whole rows, the same on every shard, from those of each shard's part.

    `has_label` ``[..., 1]`` says whether the shard has the label's class. The shards communicate
    twice: about the maxima, and then about all sums.
    """
    label = {}
    if has_label is not None:
        label = {"label_logit": jnp.where(has_label, stats.label_logit, 0.0)}

    def largest(tops: Named) -> Named:
        # A maximum over the shards may ignore NaN, and then the sums have it.
        of_row: Named = jax.lax.pmax(tops, axes)
        return of_row

    def total(sums: Named) -> Named:
        of_row: Named = jax.lax.psum(sums | label, axes)
        return of_row

    return merged(stats._replace(label_logit=None), largest, total)
