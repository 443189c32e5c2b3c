r"""Cross-entropies that weigh easy and hard examples differently: PolyLoss and focal loss."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, Axis, scalar
from ._autodiff import computed_once, public, with_gradient, with_partials, with_tangents
from ._dtypes import upcast
from ._numerics import (
    LARGEST,
    exp,
    expm1,
    finite,
    log_of_share,
    no_tangent,
    power_of_share,
    quotient,
    sigmoid,
    softplus,
    weighted_cost,
    zero_if_weightless,
)
from ._rows import EVERYTHING, elements_of, labelled_rows, rows_of, weight_of_label
from ._sharding import AxisName, sum_classes
from ._sigmoid import binary_loss, binary_weights, finite_binary_loss
from ._statistics.row import Row, surprisals


@public
def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    epsilon: ArrayLike = 2.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    class_axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Cross-entropy plus a multiple of 1 - p (Poly1): ``[..., classes], [..., classes] -> [...]``.

    .. math:: -\sum_j y_j \log p_j + \epsilon \sum_j y_j (1 - p_j)

    Args:
      logits: floating-point array ``[..., classes]``.
      labels: non-negative numbers of the shape of `logits`, or floating-point ``[classes]`` for
        every example.
      epsilon: the coefficient, any finite scalar.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.
      class_axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, over which the
        classes are spread: each shard has a slice of them, in their order.

    Returns:
      ``[...]`` in nats, float32 or float64.

    Note:
      As `softmax_cross_entropy` at ±inf, under zero labels and for what `where` leaves out.

    References:
      Z. Leng et al., `PolyLoss <https://arxiv.org/abs/2204.12511>`_, 2022.

    Example:
      >>> import jxent
      >>> print(jxent.poly_loss_cross_entropy([0.0, 0.0], [1.0, 0.0], epsilon=2.0))
      1.6931
    """
    rows, z = rows_of("logits", logits, axis, where, class_axis_name, labels=labels)
    y = rows.distributions("labels", labels, z, "jax.nn.one_hot")
    # Two terms use both arrays. Upcast here, their gradients are added before they are rounded.
    z, y = upcast(computed_once(z), y)
    row = Row(z, mesh_axes=rows.mesh_axes)
    losses = surprisals(row, None, y, EVERYTHING, None).of_weights
    # With the labels as weights these are the statistics of the losses, which XLA computes once.
    row = replace(row, stats=jax.lax.stop_gradient(row.statistics(EVERYTHING, z.dtype, weights=y)))
    return rows.zero_masked(losses + rows.scalar("epsilon", epsilon, losses) * _missed(row, y))


@public
def softmax_focal_loss_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    gamma: ArrayLike = 2.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
    class_axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Focal loss of softmax and integer labels: ``[..., classes], [...] -> [...]``.

    .. math:: w_y (1 - p_y)^\gamma (-\log p_y)

    Args:
      logits: floating-point array ``[..., classes]``.
      labels: integers ``[...]`` in [0, classes), or one for every example.
      gamma: the exponent, a non-negative scalar.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.
      class_weights: :math:`w`, ``[classes]``.
      ignore_index: the label of examples that do not count.
      class_axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, over which the
        classes are spread: each shard has a slice of them, in their order, and labels number all.

    Returns:
      ``[...]`` in nats, float32 or float64.

    Note:
      As `softmax_cross_entropy_with_integer_labels` at ±inf, for labels out of range and for
      what `where` or `ignore_index` leaves out.

    Example:
      >>> import jxent
      >>> print(jxent.softmax_focal_loss_with_integer_labels([0.0, 0.0], 0))
      0.1733
    """
    rows, z, y = labelled_rows(
        "logits", logits, labels, axis, where, ignore_index, class_weights, class_axis_name
    )
    losses = surprisals(Row(z, mesh_axes=rows.mesh_axes), y, None, rows.mask, None).of_label
    losses = _focal(losses, rows.scalar("gamma", gamma, losses))
    weights = rows.class_weights("class_weights", class_weights, losses)
    if weights is not None:
        losses = weighted_cost(weight_of_label(weights, y, rows.mesh_axes), losses)
    return rows.zero_masked(losses)


@public
def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Focal loss of the sigmoid of logits: ``[...], [...] -> [...]``.

    .. math::
        \alpha_t (1 - p_t)^\gamma \operatorname{bce}(z, y), \\
        1 - p_t = y \sigma(-z) + (1 - y) \sigma(z), \\
        \alpha_t = \alpha y + (1 - \alpha) (1 - y)

    Args:
      logits: floating-point array of any shape.
      labels: numbers in [0, 1] of the shape of `logits`, or one for every element.
      alpha: the weight of the positive class, a scalar in [0, 1]; None for no weighting.
      gamma: the exponent, a non-negative scalar.
      where: boolean, of the shape of `logits`: which elements count.

    Returns:
      The shape of `logits`, in nats, float32 or float64.

    Note:
      As `sigmoid_binary_cross_entropy` at ±inf, for labels outside [0, 1] and for what `where`
      leaves out.

    Example:
      >>> import jxent
      >>> print(jxent.sigmoid_focal_loss([0.0, 10.0], [1.0, 1.0]))
      [1.7329e-01 9.3566e-14]
    """
    elements, array = elements_of("logits", logits, where, labels=labels)
    weights = binary_weights(elements, array, labels)
    z, positive, negative = upcast(elements.fill_examples(array, 0.0), *weights)
    losses = _binary_focal(z, positive, negative, scalar("gamma", gamma, z))
    if alpha is not None:
        of_yes = scalar("alpha", alpha, losses)
        losses = weighted_cost(of_yes * positive + (1 - of_yes) * negative, losses)
    return elements.zero_masked(losses)


# The gradient is minus that of the sum of c y_j p_j for the logits, and 1 - p_j for y_j.
def _missed_bwd(c: jax.Array, row: Row, labels: jax.Array) -> tuple[Row, jax.Array]:
    c = c[..., None]
    to_labels = c * jnp.where(row.z > -jnp.inf, row.complement(), 0.0)
    return row.gradient(-row.pull_probabilities(c * labels)), to_labels


@with_gradient(_missed_bwd, (True, True))
def _missed(row: Row, labels: jax.Array) -> jax.Array:
    """``sum_j y_j (1 - p_j)``."""
    return sum_classes(labels * row.complement(), row.mesh_axes)[..., 0]


# ---------------------------------------- Focal losses


def _ratio(a: jax.Array, missed: jax.Array, limit: float) -> jax.Array:
    """``a / missed``, and this limit where both are 0."""
    nothing = missed == 0
    return jnp.where(nothing, limit, quotient(a, jnp.where(nothing, 1.0, missed)))


# With the loss l = -log p, 1 - p = -expm1(-l) is exact where p is nearly 1. The derivative of
# (1-p)^γ l for l is (1-p)^γ (1 + γ l p/(1-p)), and l p/(1-p) is 1 in the limit of l = 0. For γ it
# is (1-p)^γ l log(1-p). No power is lower than γ, so that no derivative of it overflows.
def _focal_to_loss(losses: jax.Array, gamma: jax.Array) -> jax.Array:
    missed, right = -expm1(-losses), exp(-losses)
    ratio = _ratio(right * jnp.minimum(losses, LARGEST), missed, 1.0)
    return power_of_share(missed, right, gamma) * (1 + gamma * ratio)


def _focal_to_gamma(losses: jax.Array, gamma: jax.Array) -> jax.Array:
    missed, right = -expm1(-losses), exp(-losses)
    return weighted_cost(power_of_share(missed, right, gamma) * log_of_share(missed, right), losses)


@with_partials(_focal_to_loss, _focal_to_gamma)
def _focal(losses: jax.Array, gamma: jax.Array) -> jax.Array:
    """``(1 - p) ** gamma * losses``, for the losses ``-log p``."""
    return weighted_cost(power_of_share(-expm1(-losses), exp(-losses), gamma), losses)


# s'(z) = s(z) s(-z), where JAX's s(z) (1 - s(z)) loses its bits for a large logit.
@with_partials(
    lambda z, a, b: (b - a) * sigmoid(z) * sigmoid(-z),
    lambda z, a, b: sigmoid(-z),
    lambda z, a, b: sigmoid(z),
)
def _binary_missed(z: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """``1 - p``, for the weights a and b of yes and no."""
    missed: jax.Array = a * sigmoid(-z) + b * sigmoid(z)
    return missed


def _binary_power(z: jax.Array, a: jax.Array, b: jax.Array, gamma: jax.Array) -> jax.Array:
    return power_of_share(_binary_missed(z, a, b), _binary_missed(z, b, a), gamma)


# With the miss m = a s(-z) + b s(z) and the loss l = a softplus(-z) + b softplus(z), the derivative
# of m^γ l is m^γ (dl + γ l dm/m) + m^γ l log(m) dγ. In the limit of m = l = 0 it is dm l/m = dm.
def _binary_focal_to_logits(
    z: jax.Array, a: jax.Array, b: jax.Array, gamma: jax.Array
) -> jax.Array:
    z = finite(z)
    up, down = sigmoid(z), sigmoid(-z)
    # Larger losses, times gamma, may overflow, and their ratio is 0.
    losses = jnp.minimum(finite_binary_loss(z, a, b), LARGEST)
    change = losses * _ratio((b - a) * up * down, _binary_missed(z, a, b), 0.0)
    return _binary_power(z, a, b, gamma) * (b * up - a * down + gamma * change)


# d(γ m^(γ-1) l) is γ m^(γ-1) dl, plus (γ-1) dm/m times itself, plus m^(γ-1) l (1 + γ log m) dγ. The
# quotient dl/m may overflow where m^γ dl/m does not.
@with_tangents(
    lambda dot, losses, missed, right, gamma: (
        gamma * _ratio(power_of_share(missed, right, gamma), missed, 0.0) * dot
    ),
    lambda dot, losses, missed, right, gamma: (
        (gamma - 1) * _power_slope(losses, missed, right, gamma) * _ratio(dot, missed, 0.0)
    ),
    no_tangent,
    lambda dot, losses, missed, right, gamma: (
        power_of_share(missed, right, gamma)
        * _ratio(losses, missed, 1.0)
        * (1 + gamma * log_of_share(missed, right))
        * dot
    ),
)
def _power_slope(
    losses: jax.Array, missed: jax.Array, right: jax.Array, gamma: jax.Array
) -> jax.Array:
    """``γ m^(γ-1) l``, the derivative of a power of the miss m, times the loss l."""
    return gamma * power_of_share(missed, right, gamma) * _ratio(losses, missed, 1.0)


def _binary_focal_to_weight(
    sign: int, z: jax.Array, a: jax.Array, b: jax.Array, gamma: jax.Array
) -> jax.Array:
    near = finite(z)
    missed, right = _binary_missed(near, a, b), _binary_missed(near, b, a)
    slope = _power_slope(finite_binary_loss(near, a, b), missed, right, gamma)
    # Where 1 - p underflows it is e^-|z|, of which a power may be an ordinary number.
    at_zero = exp(-gamma * jnp.abs(near))
    power = jnp.where(missed == 0, at_zero, power_of_share(missed, right, gamma))
    slope = sigmoid(-sign * near) * jnp.where(missed == 0, gamma * at_zero, slope)
    return power * zero_if_weightless(a if sign == 1 else b, softplus(-sign * z)) + slope


def _binary_focal_to_gamma(z: jax.Array, a: jax.Array, b: jax.Array, gamma: jax.Array) -> jax.Array:
    log_missed = log_of_share(_binary_missed(z, a, b), _binary_missed(z, b, a))
    return weighted_cost(_binary_power(z, a, b, gamma) * log_missed, binary_loss(z, a, b))


@with_partials(
    _binary_focal_to_logits,
    partial(_binary_focal_to_weight, 1),
    partial(_binary_focal_to_weight, -1),
    _binary_focal_to_gamma,
)
def _binary_focal(z: jax.Array, a: jax.Array, b: jax.Array, gamma: jax.Array) -> jax.Array:
    """``(1 - p) ** gamma`` times the binary loss, for the weights a and b of yes and no."""
    return weighted_cost(_binary_power(z, a, b, gamma), binary_loss(z, a, b))
