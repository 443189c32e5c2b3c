r"""A row's distribution, from its logits and their statistics, with derivatives that are exact.

Each function here takes logits ``[..., classes]`` in their computing dtype and the statistics of
their rows. The statistics are only what is known already: the rule of each function gives its whole
derivative for the logits, the part that goes through the statistics included, since the two parts
would cancel for a class that is nearly certain. Where that is class k,

.. math::
    dp_j = p_j \Bigl((1 - p_j) \, dz_j - \sum_{i \ne j} p_i \, dz_i\Bigr), \qquad
    d(-\log p_j) = \sum_{i \ne j} p_i \, dz_i - (1 - p_j) \, dz_j

need sums over the other classes that do not have the term of k first and lose it again.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ._autodiff import with_gradient
from ._class_axes import Axes, added_up
from ._labels import is_label
from ._one_pass import Statistics
from ._statistics import finite_shift, shift, unnormalized


def sum_of_others(axes: Axes, x: jax.Array, z: jax.Array, stats: Statistics) -> jax.Array:
    """``sum_{i≠j} x_i`` for each class j, exact where p_j is nearly 1; linear in x.

    Elsewhere the term of j is taken from the sum of all, which may cancel: then 1 - p_j is at
    least a half, and what stands beside this sum is as large as the term was.
    """
    # The class that has more than half of the probability, if there is one.
    dominant = (z == stats.maximum) & (stats.others < 1)
    rest = total(axes, jnp.where(dominant, 0.0, x))
    all_of_them = rest + total(axes, jnp.where(dominant, x, 0.0))
    return jnp.where(dominant, rest, all_of_them - x)


def total(axes: Axes, x: jax.Array) -> jax.Array:
    """The sum over the classes, as ``[..., 1]``."""
    return added_up(jnp.sum(x, axis=-1, keepdims=True), axes)


def to_logits_of_probabilities(
    axes: Axes, z: jax.Array, stats: Statistics, cotangent: jax.Array
) -> jax.Array:
    """``sum_j c_j dp_j/dz_i``: the cotangent of the logits for one of the probabilities."""
    p, q = probability(z, stats, class_axes=axes), complement(z, stats, class_axes=axes)
    return p * (cotangent * q - sum_of_others(axes, p * cotangent, z, stats))


def to_logits_of_surprisals(
    axes: Axes, z: jax.Array, stats: Statistics, cotangent: jax.Array
) -> jax.Array:
    """The cotangent of the logits for one of ``-log p_j``, where a logit of -inf has none."""
    p, q = probability(z, stats, class_axes=axes), complement(z, stats, class_axes=axes)
    cotangent = jnp.where(z > -jnp.inf, cotangent, 0.0)
    return p * sum_of_others(axes, cotangent, z, stats) - cotangent * q


def _probability_fwd(axes: Axes, z: jax.Array, stats: Statistics) -> tuple[jax.Array, Any]:
    # Behind a barrier: one quotient for a row, not one for each logit.
    unit: jax.Array = jax.lax.optimization_barrier(1 / (1 + stats.others))
    return unnormalized(z, stats) * unit, (z, stats)


def _probability_bwd(axes: Axes, residuals: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    z, stats = residuals
    return to_logits_of_probabilities(axes, z, stats, cotangent), None


_OF_CLASSES = (True, False)

probability = with_gradient(_probability_fwd, _probability_bwd, _OF_CLASSES)
"""``p_j``"""


def _complement_fwd(axes: Axes, z: jax.Array, stats: Statistics) -> tuple[jax.Array, Any]:
    below = -jnp.expm1(finite_shift(z, stats.maximum))
    return (stats.others + below) * (1 / (1 + stats.others)), (z, stats)


def _complement_bwd(axes: Axes, residuals: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    z, stats = residuals
    return -to_logits_of_probabilities(axes, z, stats, cotangent), None


complement = with_gradient(_complement_fwd, _complement_bwd, _OF_CLASSES)
"""``1 - p_j``"""


def surprisal(z: jax.Array, stats: Statistics) -> jax.Array:
    """``-log p_j``, +inf where the logit is -inf; its derivative is for rules to give."""
    return jnp.log1p(stats.others) - shift(z, stats.maximum)


def _finite_surprisal_fwd(axes: Axes, z: jax.Array, stats: Statistics) -> tuple[jax.Array, Any]:
    exists = shift(z, stats.maximum) > -jnp.inf
    surprisals = surprisal(jnp.where(exists, z, stats.maximum), stats)
    return jnp.where(exists, surprisals, 0.0), (z, stats)


def _finite_surprisal_bwd(axes: Axes, residuals: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    z, stats = residuals
    return to_logits_of_surprisals(axes, z, stats, cotangent), None


finite_surprisal = with_gradient(_finite_surprisal_fwd, _finite_surprisal_bwd, _OF_CLASSES)
"""``-log p_j``, 0 where the logit is -inf: there the class does not exist."""


def _entropy_fwd(axes: Axes, z: jax.Array, stats: Statistics) -> tuple[jax.Array, Any]:
    return jnp.log1p(stats.others) + stats.spread / (1 + stats.others), (z, stats)


# dH = -sum_j (1 + log p_j) dp_j = sum_j p_j (-log p_j - H) dz_j.
def _entropy_bwd(axes: Axes, residuals: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    z, stats = residuals
    n, h = finite_surprisal(z, stats, class_axes=axes), entropy(z, stats, class_axes=axes)
    return cotangent * probability(z, stats, class_axes=axes) * (n - h), None


entropy = with_gradient(_entropy_fwd, _entropy_bwd, _OF_CLASSES)
"""``sum_j p_j (-log p_j)`` as ``[..., 1]``, with ``-log p_j = log1p(s) + (m - z_j)``."""


def _label_probability_fwd(
    axes: Axes, z: jax.Array, labels: jax.Array, stats: Statistics
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    p_y, _ = _probability_fwd(axes, stats.of_label, stats)
    q_y, _ = _complement_fwd(axes, stats.of_label, stats)
    return (p_y, q_y), (z, labels, stats)


# dp_y = p_y ((1 - p_y) dz_y - sum_{i≠y} p_i dz_i), an entry for each class: nothing is added.
def _label_probability_bwd(axes: Axes, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    z, labels, stats = residuals
    p_y, q_y = label_probability(z, labels, stats, class_axes=axes)
    slope = (cotangents[0] - cotangents[1]) * p_y
    p = probability(z, stats, class_axes=axes)
    return jnp.where(is_label(labels, z.shape[-1], axes), slope * q_y, -slope * p), None, None


label_probability = with_gradient(
    _label_probability_fwd, _label_probability_bwd, (True, False, False)
)
"""``p_y`` and ``1 - p_y`` as ``[..., 1]`` for the integer labels y."""


def _other_weights_fwd(
    axes: Axes, weights: jax.Array, z: jax.Array, stats: Statistics
) -> tuple[jax.Array, Any]:
    return stats.rest + (stats.top - weights), (z, stats)


# Linear in the weights, so the tangents add up like these, but they may have either sign.
def _other_weights_bwd(axes: Axes, residuals: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    z, stats = residuals
    return sum_of_others(axes, cotangent, z, stats), None, None


other_weights = with_gradient(_other_weights_fwd, _other_weights_bwd, (True, True, False))
"""``sum_{i≠j} w_i``, none of them negative, for each class j."""
