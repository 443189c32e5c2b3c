r"""The sigmoid family: each logit is a binary question of its own."""

from typing import Any

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, elementwise, floating, is_off, smoothing, trailing
from ._autodiff import with_gradient
from ._divergence import softmax_kl
from ._numerics import chargeable, times
from ._statistics import computing_dtype, upcast


def sigmoid_entropy(logits: ArrayLike) -> jax.Array:
    r"""Entropy of the binary distribution with a given logit: ``[...] -> [...]``.

    .. math:: H(p) = -p \log p - (1 - p) \log (1 - p), \qquad p = \sigma(z)

    Args:
      logits: floating-point array of any shape.

    Returns:
      The shape of `logits`, in nats, between 0 and log 2, float32 or float64.

    Raises:
      TypeError: `logits` is not floating-point.

    Note:
      0 with the gradient 0 at ±inf, NaN for NaN.

    References:
      C. E. Shannon, `A Mathematical Theory of Communication
      <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>`_, 1948.

    Example:
      >>> import jxent
      >>> print(jxent.sigmoid_entropy([0.0, 40.0]))
      [6.9315e-01 1.7418e-16]
    """
    return _sigmoid_entropy(floating("logits", logits))


def sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    r"""Binary cross-entropy of the sigmoid of logits: ``[...], [...] -> [...]``.

    .. math::
        -w \tilde y \log \sigma(z) - (1 - \tilde y) \log \sigma(-z), \qquad
        \tilde y = (1 - \varepsilon) y + \varepsilon / 2

    Args:
      logits: floating-point array of any shape.
      labels: numbers in [0, 1] of the shape of `logits`, or one for every element.
      pos_weight: :math:`w`, multiplies the positive term; a scalar, or of the shape of the last
        axes of `logits` (one per class).
      label_smoothing: :math:`\varepsilon` in [0, 1].

    Returns:
      The shape of `logits`, in nats, float32 or float64.

    Raises:
      TypeError: `logits` is not floating-point.
      ValueError: a shape does not fit, or `label_smoothing` lies outside [0, 1].

    Note:
      A logit of ±inf gives the limit, in value and gradient: 0 for a label that agrees, +inf for
      any other. NaN gives NaN.

    References:
      I. Goodfellow, Y. Bengio, A. Courville, `Deep Learning
      <https://www.deeplearningbook.org>`_, 2016, 6.2.2.2.

    Example:
      >>> import jxent
      >>> print(jxent.sigmoid_binary_cross_entropy([0.0, 20.0, -1000.0], [1.0, 1.0, 1.0]))
      [6.9315e-01 2.0612e-09 1.0000e+03]
    """
    z = floating("logits", logits)
    positive, negative = binary_weights("logits", z, labels, pos_weight, label_smoothing)
    return binary_loss(z, positive, negative)


def sigmoid_kl_divergence(logits: ArrayLike, target_logits: ArrayLike) -> jax.Array:
    r"""Kullback-Leibler divergence of sigmoids: ``[...], [...] -> [...]``.

    .. math::
        p \log \frac pq + (1 - p) \log \frac{1 - p}{1 - q}, \qquad
        p = \sigma(\text{target_logits}), \; q = \sigma(\text{logits})

    Args:
      logits: floating-point array of any shape, the prediction.
      target_logits: the same shape, or one number for every element: the truth.

    Returns:
      The shape of `logits`, in nats, never negative, float32 or float64. Both arguments are
      differentiated.

    Raises:
      TypeError: `logits` is not floating-point.
      ValueError: a shape does not fit.

    Note:
      At ±inf it is the limit: 0 where both agree, +inf where `logits` alone is infinite. NaN
      gives NaN.

    References:
      S. Kullback, R. A. Leibler, `On Information and Sufficiency
      <https://doi.org/10.1214/aoms/1177729694>`_, 1951.

    Example:
      >>> import jxent
      >>> print(jxent.sigmoid_kl_divergence([0.0, 1.0], [1e-6, 0.0]))
      [1.2500e-13 1.2011e-01]
    """
    z_q = floating("logits", logits)
    z_p = elementwise("target_logits", target_logits, "logits", z_q)
    # A binary question is a softmax over two classes, one of which has the logit 0.
    return softmax_kl(*(jnp.stack([jnp.zeros_like(z), z], axis=-1) for z in (z_q, z_p)))


def binary_weights(
    name: str,
    like: jax.Array,
    labels: ArrayLike,
    pos_weight: ArrayLike | None,
    label_smoothing: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """The weights of the positive and of the negative term."""
    y = elementwise("labels", labels, name, like)
    y = y.astype(computing_dtype(like, y))
    positive, negative = y, 1 - y
    if not is_off(label_smoothing):
        epsilon = smoothing("label_smoothing", label_smoothing, y)
        positive = (1 - epsilon) * positive + epsilon / 2
        negative = (1 - epsilon) * negative + epsilon / 2
    if pos_weight is not None:
        positive = positive * trailing("pos_weight", pos_weight, name, like).astype(y.dtype)
    return positive, negative


def _sigmoid_entropy_fwd(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    (z,) = upcast(logits)
    z = jnp.abs(z)
    # The entropy is even; for z >= 0 its two terms are s(z) softplus(-z) and s(-z) softplus(z).
    tail = jnp.where(z < jnp.inf, z, 0.0) * jax.nn.sigmoid(-z)
    return tail + jax.nn.softplus(-z), logits


# H = softplus(z) - z s(z), so dH/dz = -z s'(z) = -z s(z) s(-z).
def _sigmoid_entropy_bwd(logits: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    (z,) = upcast(logits)
    finite = jnp.where(jnp.isinf(z), 0.0, z)
    gradient = -finite * jax.nn.sigmoid(finite) * jax.nn.sigmoid(-finite)
    return ((cotangent * gradient).astype(logits.dtype),)


_sigmoid_entropy = with_gradient(_sigmoid_entropy_fwd, _sigmoid_entropy_bwd)


def _binary_loss_fwd(
    logits: jax.Array, positive: jax.Array, negative: jax.Array
) -> tuple[jax.Array, Any]:
    z, a, b = upcast(logits, positive, negative)
    loss = times(a, jax.nn.softplus(-z)) + times(b, jax.nn.softplus(z))
    return loss, (logits, positive, negative)


# softplus'(z) = s(z): the gradient is b s(z) - a s(-z) for the logit, and the two softplus for
# the weights, 0 for a weight of 0 beside an infinite one.
def _binary_loss_bwd(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    logits, positive, negative = residuals
    z, a, b = upcast(logits, positive, negative)
    to_logits = b * jax.nn.sigmoid(z) - a * jax.nn.sigmoid(-z)
    return (
        (cotangent * to_logits).astype(logits.dtype),
        (cotangent * chargeable(a, jax.nn.softplus(-z))).astype(positive.dtype),
        (cotangent * chargeable(b, jax.nn.softplus(z))).astype(negative.dtype),
    )


binary_loss = with_gradient(_binary_loss_fwd, _binary_loss_bwd)
