"""The core of the softmax losses: what the statistics of a row say of its labels."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._autodiff import with_gradient
from ._class_axes import Axes
from ._distribution import (
    complement,
    finite_surprisal,
    label_probability,
    other_weights,
    probability,
    surprisal,
)
from ._labels import is_label, undefined
from ._one_pass import IfAsked
from ._statistics import statistics, upcast


class Surprisals(NamedTuple):
    """Of each row of logits, ``[...]``."""

    of_label: IfAsked
    """``-log p_y`` for the integer label y"""
    of_weights: IfAsked
    """``sum_j w_j (-log p_j)``"""
    normalizer: jax.Array
    """``log sum_j exp(z_j)``"""


def surprisals(
    logits: jax.Array,
    labels: jax.Array | None,
    weights: jax.Array | None,
    class_axes: Axes = (),
) -> Surprisals:
    """What integer labels ``[...]``, weights ``[..., classes]`` and no labels cost in each row."""
    return _surprisals(logits, labels, weights, class_axes=class_axes)


def _surprisals_fwd(
    axes: Axes, logits: jax.Array, labels: jax.Array | None, weights: jax.Array | None
) -> tuple[Surprisals, Any]:
    z, w = _upcast(logits, weights)
    stats = statistics(z, logits.dtype, labels=labels, weights=w, class_axes=axes)
    m, normalizer = stats.maximum, jnp.log1p(stats.others)
    of_label = of_weights = None
    if labels is not None:
        of_label = surprisal(stats.of_label, stats)
        # Also where softmax has no limit because every logit is -inf; but NaN stays NaN.
        of_label = jnp.where((stats.of_label == -jnp.inf) & ~jnp.isnan(m), jnp.inf, of_label)
        of_label = (of_label * undefined(z, labels, axes))[..., 0]
    if w is not None:
        of_weights = (stats.cost + (stats.rest + stats.top) * normalizer)[..., 0]
    normalizer = jnp.where(jnp.isinf(m), m, m + normalizer)[..., 0]
    return Surprisals(of_label, of_weights, normalizer), (logits, labels, weights, stats)


# d log p_i = dz_i - sum_j p_j dz_j. So the gradient for z_j is p_j from the normalizer; p_j - 1
# at the label, which is taken as -(1 - p_y) from sums without the label, and p_j elsewhere; and
# from the weights p_j sum_i w_i - w_j = p_j sum_{i≠j} w_i - w_j (1 - p_j). For w_j it is -log p_j.
def _surprisals_bwd(
    axes: Axes, residuals: Any, cotangents: Surprisals
) -> tuple[jax.Array | None, ...]:
    logits, labels, weights, stats = residuals
    z, w = _upcast(logits, weights)
    of_label, of_weights, normalizer = jax.tree.map(lambda x: x[..., None], tuple(cotangents))
    p = probability(z, stats, class_axes=axes)
    if of_label is None:
        to_logits = p * normalizer
    else:
        of_label = of_label * undefined(z, labels, axes)
        p_y, not_p_y = label_probability(z, labels, stats, class_axes=axes)
        to_label = normalizer * p_y - of_label * not_p_y
        # Behind a barrier, or XLA may compute what belongs to the row again for each logit.
        to_others, to_label = jax.lax.optimization_barrier((normalizer + of_label, to_label))
        to_logits = jnp.where(is_label(labels, z.shape[-1], axes), to_label, p * to_others)
    to_weights = None
    if w is not None:
        others = other_weights(w, z, stats, class_axes=axes)
        gradient = p * others - w * complement(z, stats, class_axes=axes)
        to_logits = to_logits + of_weights * gradient
        surprisals = finite_surprisal(z, stats, class_axes=axes)
        to_weights = (of_weights * surprisals).astype(weights.dtype)
    return to_logits.astype(logits.dtype), None, to_weights


_surprisals = with_gradient(_surprisals_fwd, _surprisals_bwd, (True, False, True))


def _upcast(logits: jax.Array, weights: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
    if weights is None:
        return upcast(logits)[0], None
    z, w = upcast(logits, weights)
    return z, w
