r"""Cross-entropy of softmax against integer labels and against distributions."""

from typing import Any

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, Axis, Rows, floating, is_off, scalar, smoothing
from ._autodiff import with_gradient
from ._labels import as_row, is_label, of_label, undefined
from ._numerics import sum_of_others, times
from ._softmax import logsumexp_of_rows
from ._statistics import (
    complement,
    computing_dtype,
    finite_surprisal,
    probability,
    statistics,
    surprisal,
    unnormalized,
    upcast,
)


def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
) -> jax.Array:
    r"""Cross-entropy of softmax and distributions: ``[..., classes], [..., classes] -> [...]``.

    .. math::
        -\sum_j w_j \tilde y_j \log p_j + \zeta \operatorname{lse}(z)^2, \qquad
        \tilde y = (1 - \varepsilon) y + \varepsilon / K

    Args:
      logits: floating-point array ``[..., classes]``.
      labels: non-negative numbers of the shape of `logits`, or ``[classes]`` for every example:
        one-hot or any distribution. They need not sum to one.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.
      label_smoothing: :math:`\varepsilon` in [0, 1]; K is the number of classes that count.
      class_weights: :math:`w`, ``[classes]``, multiplies the smoothed labels.
      z_loss: :math:`\zeta`, the weight of the squared normaliser.

    Returns:
      ``[...]`` in nats, float32 or float64.

    Raises:
      TypeError: `logits` is not floating-point, or `where` not boolean.
      ValueError: a shape or `axis` does not fit, or `label_smoothing` lies outside [0, 1].

    Note:
      A logit of -inf costs nothing under a zero label, +inf under any other. Label mass on a
      class that `where` leaves out is ignored; an example with nothing left has the loss 0 and
      the gradient 0. Where softmax has no limit (NaN, every logit -inf, two +inf) the loss is
      NaN. The gradient with respect to a label is :math:`-\log p_j`, 0 for a logit of -inf.

    References:
      C. Szegedy et al., `Rethinking the Inception Architecture
      <https://arxiv.org/abs/1512.00567>`_, 2016 (smoothing); A. Chowdhery et al., `PaLM
      <https://arxiv.org/abs/2204.02311>`_, 2022 (z-loss).

    Example:
      >>> import jxent
      >>> print(jxent.softmax_cross_entropy([[2.0, 0.0], [20.0, 0.0]], [1.0, 0.0]))
      [1.2693e-01 2.0612e-09]
    """
    array = floating("logits", logits)
    rows = Rows.of("logits", array, axis, where)
    z = rows.logits("logits", array)
    y = rows.soft_labels("labels", labels, array)
    if not is_off(label_smoothing):
        y = y.astype(computing_dtype(z, y))
        epsilon = smoothing("label_smoothing", label_smoothing, y)
        y = (1 - epsilon) * y + epsilon * _uniform(rows, y)
    y = _weighted(y, rows.class_weights("class_weights", class_weights, z))
    if not is_off(z_loss):
        # Terms that share the logits: their gradients add up before they are rounded to 16 bits.
        z, y = upcast(z, y)
    return rows.settle(soft_loss(z, y) + _z_term(z, z_loss))


def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    ignore_index: int | None = None,
) -> jax.Array:
    r"""Cross-entropy of softmax and integer labels: ``[..., classes], [...] -> [...]``.

    .. math::
        (1 - \varepsilon) w_y (-\log p_y) + \frac{\varepsilon}{K} \sum_j w_j (-\log p_j)
        + \zeta \operatorname{lse}(z)^2

    Args:
      logits: floating-point array ``[..., classes]``.
      labels: integers ``[...]`` in [0, classes), or one for every example. With a tuple of axes,
        flat positions in them.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.
      label_smoothing: :math:`\varepsilon` in [0, 1]; K is the number of classes that count.
      class_weights: :math:`w`, ``[classes]``, multiplies the smoothed labels.
      z_loss: :math:`\zeta`, the weight of the squared normaliser.
      ignore_index: the label of examples that do not count.

    Returns:
      ``[...]`` in nats, float32 or float64.

    Raises:
      TypeError: `logits` is not floating-point, `labels` not integer, or `where` not boolean.
      ValueError: a shape or `axis` does not fit, or `label_smoothing` lies outside [0, 1].

    Note:
      Ignored examples, and those with no class left by `where`, have the loss 0 and the gradient
      0, whatever their logits. A label outside [0, classes) gives NaN, in the gradient too; so
      does NaN in a class that counts. A label whose class is left out by `where`, or has the
      logit -inf, gives +inf.

    References:
      C. Szegedy et al., `Rethinking the Inception Architecture
      <https://arxiv.org/abs/1512.00567>`_, 2016 (smoothing); A. Chowdhery et al., `PaLM
      <https://arxiv.org/abs/2204.02311>`_, 2022 (z-loss).

    Example:
      >>> import jxent
      >>> logits, labels = [[2.0, 0.0], [20.0, 0.0], [0.0, 0.0]], [0, 0, -100]
      >>> print(
      ...     jxent.softmax_cross_entropy_with_integer_labels(logits, labels, ignore_index=-100)
      ... )
      [1.2693e-01 2.0612e-09 0.0000e+00]
    """
    array = floating("logits", logits)
    rows, y = Rows.of("logits", array, axis, where).labels("labels", labels, ignore_index)
    z = rows.logits("logits", array)
    if not (is_off(label_smoothing) and is_off(z_loss)):
        (z,) = upcast(z)  # for the same reason
    losses = integer_loss(z, y)
    weights = rows.class_weights("class_weights", class_weights, losses)
    if weights is not None:
        losses = times(of_label(weights, y), losses)
    terms = _z_term(z, z_loss)
    if not is_off(label_smoothing):
        epsilon = smoothing("label_smoothing", label_smoothing, losses)
        terms += soft_loss(z, _weighted(epsilon * _uniform(rows, z), weights))
        losses = times(1 - epsilon, losses)
    # An impossible label is infinitely wrong, also where softmax has no limit and they are NaN.
    return rows.settle(losses + jnp.where(losses == jnp.inf, 0.0, terms))


def safe_softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    r"""Cross-entropy of softmax and distributions: ``[..., classes], [..., classes] -> [...]``.

    .. math:: -\sum_j y_j \log p_j

    The same as `softmax_cross_entropy`, which is safe already; optax has both.

    Args:
      logits: floating-point array ``[..., classes]``.
      labels: non-negative numbers of the shape of `logits`, or ``[classes]`` for every example.

    Returns:
      ``[...]`` in nats, float32 or float64.

    Raises:
      TypeError: `logits` is not floating-point.
      ValueError: a shape does not fit.

    Note:
      A logit of -inf costs nothing under a zero label, +inf under any other.

    References:
      C. E. Shannon, `A Mathematical Theory of Communication
      <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>`_, 1948.

    Example:
      >>> import jxent
      >>> import jax.numpy as jnp
      >>> print(jxent.safe_softmax_cross_entropy([0.0, 0.0, -jnp.inf], [0.5, 0.5, 0.0]))
      0.6931
    """
    return softmax_cross_entropy(logits, labels)


def _weighted(labels: jax.Array, weights: jax.Array | None) -> jax.Array:
    if weights is None:
        return labels
    labels, weights = upcast(labels, weights)
    return labels * as_row(weights, labels.ndim)


def _uniform(rows: Rows, like: jax.Array) -> jax.Array:
    """The uniform distribution over the classes that count."""
    dtype = computing_dtype(like)
    if rows.present is None:
        return jnp.full_like(like, 1 / like.shape[-1], dtype)
    number = jnp.sum(rows.present, axis=-1, keepdims=True).astype(dtype)
    return jnp.where(rows.present, 1 / jnp.maximum(number, 1), 0.0)


def _z_term(z: jax.Array, weight: ArrayLike) -> jax.Array | float:
    if is_off(weight):
        return 0.0
    normalizer = logsumexp_of_rows(z)
    return scalar("z_loss", weight, normalizer) * normalizer**2


def _integer_loss_fwd(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
    (z,) = upcast(logits)
    stats = statistics(z, labels, logits.dtype)
    assert stats.of_label is not None
    loss = surprisal(stats.of_label, stats)
    # Also where softmax has no limit because every logit is -inf; but NaN stays NaN.
    loss = jnp.where((stats.of_label == -jnp.inf) & ~jnp.isnan(stats.maximum), jnp.inf, loss)
    loss = loss * undefined(z, labels)
    return loss[..., 0], (logits, labels, stats)


# The loss is -log p_y, and d log p_y = dz_y - sum_j p_j dz_j: the gradient is p_j for the other
# classes and p_y - 1 for the label, which is taken as -(1 - p_y) from sums without the label.
def _integer_loss_bwd(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, None]:
    logits, labels, stats = residuals
    (z,) = upcast(logits)
    scale = cotangent[..., None] * undefined(z, labels)
    # What belongs to rows is multiplied first: one product for each logit is left.
    others = unnormalized(z, stats) * (scale / (1 + stats.others))
    of_label = -scale * complement(stats.of_label, stats)
    gradient = jnp.where(is_label(labels, z.shape[-1]), of_label, others)
    return gradient.astype(logits.dtype), None


integer_loss = with_gradient(_integer_loss_fwd, _integer_loss_bwd)


def _soft_loss_fwd(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
    z, y = upcast(logits, labels)
    stats = statistics(z, None, logits.dtype)
    return jnp.sum(times(y, surprisal(z, stats)), axis=-1), (logits, labels, stats)


# The loss is sum_i y_i (-log p_i), so the gradient for z_j is p_j sum_i y_i - y_j
# = p_j sum_{i≠j} y_i - y_j (1 - p_j), and for y_j it is -log p_j.
def _soft_loss_bwd(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits, labels, stats = residuals
    z, y = upcast(logits, labels)
    gradient = probability(z, stats) * sum_of_others(y) - y * complement(z, stats)
    return (
        (cotangent[..., None] * gradient).astype(logits.dtype),
        (cotangent[..., None] * finite_surprisal(z, stats)).astype(labels.dtype),
    )


soft_loss = with_gradient(_soft_loss_fwd, _soft_loss_bwd)
