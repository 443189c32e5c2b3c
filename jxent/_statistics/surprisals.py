r"""A row's distribution and the cost of its labels, with derivatives that are exact.

Each function of the distribution takes logits ``[..., classes]`` in their computing dtype and the
statistics of their rows; those that are differentiated take first the mesh axes that the classes
are spread over. `surprisals`, the core of the softmax losses, is made of them.

The gradient rule of a function gives its whole derivative for the logits, including the part that
goes through the statistics, which therefore get no cotangent of their own: the two parts would
cancel for a class that is nearly certain. Where that is class k, the derivatives

.. math::
    dp_j = p_j \Bigl((1 - p_j) \, dz_j - \sum_{i \ne j} p_i \, dz_i\Bigr), \qquad
    d(-\log p_j) = \sum_{i \ne j} p_i \, dz_i - (1 - p_j) \, dz_j

need sums over the other classes that never contain the term of k. To subtract it from the sum over
all classes would lose the bits of the others.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from .._autodiff import differentiated_by, with_gradient
from .._dtypes import computing_dtype, widened
from .._elementary import expm1, plain_log1p
from .._labels import is_label, nan_if_out_of_range
from .._mask import Mask
from .._sharding import MeshAxes, sum_classes
from . import IfRequested, Statistics, finite_shift, shift, unnormalized
from .merging import without_limit_nan
from .parts import Weights, product
from .primitive import raw_statistics

ToLogits: TypeAlias = tuple[jax.Array, None]
"""The cotangent of the logits; that of the statistics is None."""
_OF_CLASSES = (True, False)


def sum_of_others(axes: MeshAxes, x: jax.Array, z: jax.Array, stats: Statistics) -> jax.Array:
    """``sum_{i≠j} x_i`` for each class j, exact where p_j is nearly 1; linear in x.

    For a class with less than half of the probability the term of j is subtracted from the sum of
    all, which may cancel. There 1 - p_j is at least a half, and what is added to this sum is as
    large as the term was.
    """
    # The class that has more than half of the probability, if there is one.
    dominant = (z == stats.maximum) & (stats.sumexp_rest < 1)
    rest = sum_classes(jnp.where(dominant, 0.0, x), axes)
    whole = rest + sum_classes(jnp.where(dominant, x, 0.0), axes)
    return jnp.where(dominant, rest, whole - x)


def to_logits_of_probabilities(
    axes: MeshAxes, cotangent: jax.Array, z: jax.Array, stats: Statistics
) -> jax.Array:
    """``sum_j c_j dp_j/dz_i``: the cotangent of the logits for one of the probabilities."""
    p, q = probability(axes, z, stats), complement(axes, z, stats)
    return p * (cotangent * q - sum_of_others(axes, p * cotangent, z, stats))


def to_logits_of_surprisals(
    axes: MeshAxes, cotangent: jax.Array, z: jax.Array, stats: Statistics
) -> jax.Array:
    """The cotangent of the logits for one of ``-log p_j``, where a logit of -inf has none."""
    p, q = probability(axes, z, stats), complement(axes, z, stats)
    cotangent = jnp.where(z > -jnp.inf, cotangent, 0.0)
    return p * sum_of_others(axes, cotangent, z, stats) - cotangent * q


def _probability_bwd(axes: MeshAxes, c: jax.Array, z: jax.Array, stats: Statistics) -> ToLogits:
    return to_logits_of_probabilities(axes, c, z, stats), None


@differentiated_by(_probability_bwd, _OF_CLASSES)
def probability(axes: MeshAxes, z: jax.Array, stats: Statistics) -> jax.Array:
    """``p_j``."""
    return _probability(z, stats)


def _probability(z: jax.Array, stats: Statistics) -> jax.Array:
    # Without the barrier XLA would compute the quotient again for each logit, not once for a row.
    unit: jax.Array = jax.lax.optimization_barrier(1 / (1 + stats.sumexp_rest))
    return unnormalized(z, stats.maximum) * unit


def _complement_bwd(axes: MeshAxes, c: jax.Array, z: jax.Array, stats: Statistics) -> ToLogits:
    return -to_logits_of_probabilities(axes, c, z, stats), None


@differentiated_by(_complement_bwd, _OF_CLASSES)
def complement(axes: MeshAxes, z: jax.Array, stats: Statistics) -> jax.Array:
    """``1 - p_j``."""
    return _complement(z, stats)


def _complement(z: jax.Array, stats: Statistics) -> jax.Array:
    below = -expm1(finite_shift(z, stats.maximum))
    complements: jax.Array = (stats.sumexp_rest + below) * (1 / (1 + stats.sumexp_rest))
    return complements


def surprisal(z: jax.Array, stats: Statistics) -> jax.Array:
    """``-log p_j``, +inf where the logit is -inf. Only for rules: its derivative is not exact."""
    return plain_log1p(stats.sumexp_rest) - shift(z, stats.maximum)


def _finite_surprisal_bwd(
    axes: MeshAxes, c: jax.Array, z: jax.Array, stats: Statistics
) -> ToLogits:
    return to_logits_of_surprisals(axes, c, z, stats), None


@differentiated_by(_finite_surprisal_bwd, _OF_CLASSES)
def finite_surprisal(axes: MeshAxes, z: jax.Array, stats: Statistics) -> jax.Array:
    """``-log p_j``, 0 where the logit is -inf: there the class does not exist."""
    exists = shift(z, stats.maximum) > -jnp.inf
    surprisals = surprisal(jnp.where(exists, z, stats.maximum), stats)
    return jnp.where(exists, surprisals, 0.0)


# dH = -sum_j (1 + log p_j) dp_j = sum_j p_j (-log p_j - H) dz_j.
def _row_entropy_bwd(axes: MeshAxes, c: jax.Array, z: jax.Array, stats: Statistics) -> ToLogits:
    p, n, h = (f(axes, z, stats) for f in (probability, finite_surprisal, row_entropy))
    return c * p * (n - h), None


@differentiated_by(_row_entropy_bwd, _OF_CLASSES)
def row_entropy(axes: MeshAxes, z: jax.Array, stats: Statistics) -> jax.Array:
    """``sum_j p_j (-log p_j)`` as ``[..., 1]``, with ``-log p_j = log1p(s) + (m - z_j)``."""
    mean_gap: jax.Array = stats.exp_gap / (1 + stats.sumexp_rest)
    return plain_log1p(stats.sumexp_rest) + mean_gap


# dp_y = p_y ((1 - p_y) dz_y - sum_{i≠y} p_i dz_i), an entry for each class: nothing is added.
def _label_probability_bwd(
    axes: MeshAxes, cotangents: Any, z: jax.Array, labels: jax.Array, stats: Statistics
) -> tuple[jax.Array, None, None]:
    p_y, q_y = label_probability(axes, z, labels, stats)
    slope = (cotangents[0] - cotangents[1]) * p_y
    p = probability(axes, z, stats)
    return jnp.where(is_label(labels, z.shape[-1], axes), slope * q_y, -slope * p), None, None


@differentiated_by(_label_probability_bwd, (True, False, False))
def label_probability(
    axes: MeshAxes, z: jax.Array, labels: jax.Array, stats: Statistics
) -> tuple[jax.Array, jax.Array]:
    """``p_y`` and ``1 - p_y`` as ``[..., 1]`` for the integer labels y."""
    return _probability(stats.label_logit, stats), _complement(stats.label_logit, stats)


# The function is linear in the weights, so that its tangents are such sums, too. But tangents may
# have either sign, so they are summed as in `sum_of_others`.
def _other_weights_bwd(
    axes: MeshAxes, cotangent: jax.Array, weights: jax.Array, z: jax.Array, stats: Statistics
) -> tuple[jax.Array, None, None]:
    return sum_of_others(axes, cotangent, z, stats), None, None


@differentiated_by(_other_weights_bwd, (True, True, False))
def other_weights(axes: MeshAxes, weights: jax.Array, z: jax.Array, stats: Statistics) -> jax.Array:
    """``sum_{i≠j} w_i``, none of them negative, for each class j."""
    others: jax.Array = stats.weight_rest + (stats.max_weight - weights)
    return others


class Surprisals(NamedTuple):
    """Of each row of logits, ``[...]``."""

    of_label: IfRequested
    """``-log p_y`` for the integer label y"""
    of_weights: IfRequested
    """``sum_j w_j (-log p_j)``"""
    normalizer: jax.Array
    """``log sum_j exp(z_j)``"""


def _surprisals_fwd(
    axes: MeshAxes,
    logits: jax.Array,
    labels: jax.Array | None,
    weights: Weights | None,
    mask: Mask,
) -> tuple[Surprisals, Any]:
    dtype = computing_dtype(logits, *jax.tree.leaves(weights))
    raw = raw_statistics(axes, dtype, logits, labels, weights, mask=mask)
    m, normalizer = raw.maximum, plain_log1p(raw.sumexp_rest)
    of_label = of_weights = None
    is_impossible: jax.Array | bool = False
    if labels is not None:
        # A label at -inf costs +inf even where every logit is -inf and softmax has no limit; but
        # where a logit is NaN, or the label names no class, the loss stays NaN.
        nan_or_one = nan_if_out_of_range(logits.astype(dtype), labels, axes)
        is_impossible = (raw.label_logit == -jnp.inf) & ~jnp.isnan(raw.sumexp_rest * nan_or_one)
        stats = without_limit_nan(raw, is_impossible)
        label, top = (jnp.where(is_impossible, 0.0, x) for x in (stats.label_logit, stats.maximum))
        of_label = surprisal(label, stats._replace(maximum=top)) * nan_or_one
        # The selection comes last, because XLA:CPU would write both factors of a last product.
        of_label = jnp.where(is_impossible, jnp.inf, of_label)[..., 0]
    if weights is not None:
        stats = without_limit_nan(raw, is_impossible)
        weight = raw.weight_rest + raw.max_weight
        of_weights = (raw.weighted_gap + weight * plain_log1p(stats.sumexp_rest))[..., 0]
    # Unlike softmax it has a limit: -inf for a row of nothing but these, and +inf beside one.
    normalizer = jnp.where(jnp.isinf(m) & ~jnp.isnan(normalizer), m, m + normalizer)[..., 0]
    return Surprisals(of_label, of_weights, normalizer), (raw,)


# d log p_i = dz_i - sum_j p_j dz_j. So the gradient for z_j is p_j from the normalizer; p_j - 1
# at the label, which is taken as -(1 - p_y) from sums without the label, and p_j elsewhere; and
# from the weights p_j sum_i w_i - w_j = p_j sum_{i≠j} w_i - w_j (1 - p_j). For w_j it is -log p_j.
def _surprisals_bwd(
    axes: MeshAxes,
    cotangents: Surprisals,
    logits: jax.Array,
    labels: jax.Array | None,
    weights: Weights | None,
    mask: Mask,
    raw: Any,
) -> tuple[Any, ...]:
    stats, dtype = without_limit_nan(raw), computing_dtype(logits, *jax.tree.leaves(weights))
    z = widened(mask.fill_logits(logits), dtype)
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
    if weights is None:
        return mask.fill(to_logits, 0.0, 0.0), None, None, None

    def of_each_row(parts: Weights) -> jax.Array:
        return jnp.broadcast_to(product(parts, mask, dtype), z.shape)

    whole, to_parts = jax.vjp(of_each_row, weights)
    w = widened(whole, dtype)
    gradient = p * other_weights(axes, w, z, stats) - w * complement(axes, z, stats)
    to_weights = of_weights * finite_surprisal(axes, z, stats)
    to_logits = mask.fill(to_logits + of_weights * gradient, 0.0, 0.0)
    (to_weights,) = to_parts(to_weights.astype(whole.dtype))
    return to_logits, None, to_weights, None


surprisals = with_gradient(_surprisals_fwd, _surprisals_bwd, (True, False, True, True))
"""``surprisals(axes, logits, labels, weights, mask)``: what integer labels ``[...]``, weights
``[..., classes]``, and neither of them cost in each row of logits ``[..., classes]``. Weights may
come in parts; what the mask leaves out counts as -inf, and as a weight of 0."""
