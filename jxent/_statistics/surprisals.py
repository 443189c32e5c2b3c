"""The core of the softmax losses: what the statistics of a row say of its labels."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._autodiff import with_gradient
from .._dtypes import upcast
from .._labels import is_label, nan_if_out_of_range
from .._sharding import MeshAxes
from . import IfRequested
from .dispatch import statistics
from .distribution import (
    complement,
    finite_surprisal,
    label_probability,
    other_weights,
    probability,
    surprisal,
)


class Surprisals(NamedTuple):
    """Of each row of logits, ``[...]``."""

    of_label: IfRequested
    """``-log p_y`` for the integer label y"""
    of_weights: IfRequested
    """``sum_j w_j (-log p_j)``"""
    normalizer: jax.Array
    """``log sum_j exp(z_j)``"""


def _surprisals_fwd(
    axes: MeshAxes, logits: jax.Array, labels: jax.Array | None, weights: jax.Array | None
) -> tuple[Surprisals, Any]:
    z, w = upcast(logits, weights)
    stats = statistics(axes, z, logits.dtype, labels, w)
    m, normalizer = stats.maximum, jnp.log1p(stats.sumexp_rest)
    of_label = of_weights = None
    if labels is not None:
        of_label = surprisal(stats.label_logit, stats)
        # A label at -inf costs +inf even where every logit is -inf and softmax has no limit; but
        # where a logit is NaN the loss stays NaN.
        is_impossible = (stats.label_logit == -jnp.inf) & ~jnp.isnan(m)
        of_label = jnp.where(is_impossible, jnp.inf, of_label)
        of_label = (of_label * nan_if_out_of_range(z, labels, axes))[..., 0]
    if w is not None:
        weight = stats.weight_rest + stats.max_weight
        of_weights = (stats.weighted_gap + weight * normalizer)[..., 0]
    normalizer = jnp.where(jnp.isinf(m), m, m + normalizer)[..., 0]
    return Surprisals(of_label, of_weights, normalizer), (stats,)


# d log p_i = dz_i - sum_j p_j dz_j. So the gradient for z_j is p_j from the normalizer; p_j - 1
# at the label, which is taken as -(1 - p_y) from sums without the label, and p_j elsewhere; and
# from the weights p_j sum_i w_i - w_j = p_j sum_{i≠j} w_i - w_j (1 - p_j). For w_j it is -log p_j.
def _surprisals_bwd(
    axes: MeshAxes,
    cotangents: Surprisals,
    logits: jax.Array,
    labels: jax.Array | None,
    weights: jax.Array | None,
    stats: Any,
) -> tuple[jax.Array | None, ...]:
    z, w = upcast(logits, weights)
    of_label, of_weights, normalizer = jax.tree.map(lambda x: x[..., None], tuple(cotangents))
    p = probability(axes, z, stats)
    if labels is None:
        to_logits = p * normalizer
    else:
        of_label = of_label * nan_if_out_of_range(z, labels, axes)
        p_y, not_p_y = label_probability(axes, z, labels, stats)
        to_label = normalizer * p_y - of_label * not_p_y
        # Without the barrier XLA may compute these again for each logit, not once for a row.
        to_others, to_label = jax.lax.optimization_barrier((normalizer + of_label, to_label))
        to_logits = jnp.where(is_label(labels, z.shape[-1], axes), to_label, p * to_others)
    if w is None:
        return to_logits, None, None
    gradient = p * other_weights(axes, w, z, stats) - w * complement(axes, z, stats)
    to_weights = of_weights * finite_surprisal(axes, z, stats)
    return to_logits + of_weights * gradient, None, to_weights


surprisals = with_gradient(_surprisals_fwd, _surprisals_bwd, (True, False, True))
"""``surprisals(axes, logits, labels, weights)``: what integer labels ``[...]``, weights
``[..., classes]``, and neither of them cost in each row of logits ``[..., classes]``."""
