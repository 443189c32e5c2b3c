r"""The sigmoid family: each logit is a binary question of its own."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, elementwise, is_off, scalar
from ._autodiff import loss_with_partials, public, with_gradient
from ._dtypes import computing_dtype, upcast, widened
from ._numerics import (
    difference,
    divergence_terms,
    divide,
    expm1,
    log1p,
    nan_where,
    sigmoid,
    softplus,
    weighted,
    weighted_cost,
    zero_if_weightless,
)
from ._rows import Rows, elements_of


@public
def sigmoid_entropy(logits: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    r"""Entropy of the binary distribution with a given logit: ``[...] -> [...]``.

    .. math:: H(p) = -p \log p - (1 - p) \log (1 - p), \qquad p = \sigma(z)

    Args:
      logits: floating-point array of any shape.
      where: boolean, of the shape of `logits`: which elements count.

    Returns:
      The shape of `logits`, in nats, between 0 and log 2, float32 or float64.

    Note:
      0 with the gradient 0 at ±inf and for what `where` leaves out, NaN for NaN.

    Example:
      >>> import jxent
      >>> print(jxent.sigmoid_entropy([0.0, 40.0]))
      [6.9315e-01 1.7418e-16]
    """
    elements, z = elements_of("logits", logits, where)
    return elements.zero_masked(_sigmoid_entropy(elements.fill_examples(z, 0.0)))


@public
def sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
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
      where: boolean, of the shape of `logits`: which elements count.
      pos_weight: :math:`w`, multiplies the positive term; a scalar, or of the shape of the last
        axes of `logits`: ``[n]`` beside ``[n, n]`` is one per class. A negative one is taken at its
        word, as in PyTorch.
      label_smoothing: :math:`\varepsilon` in [0, 1].

    Returns:
      The shape of `logits`, in nats, float32 or float64.

    Note:
      A logit of ±inf gives the limit, in value and gradient: 0 for a label that agrees, +inf for
      any other. A label outside [0, 1] gives NaN, in the gradient too; so does NaN. What `where`
      leaves out has the loss 0 and the gradient 0, whatever its logit and label: for labels of -1
      or 255, say, ``where=labels >= 0`` or ``where=labels != 255``.

    Example:
      >>> import jxent
      >>> print(jxent.sigmoid_binary_cross_entropy([0.0, 20.0, -1000.0], [1.0, 1.0, 1.0]))
      [6.9315e-01 2.0612e-09 1.0000e+03]
    """
    elements, z = elements_of("logits", logits, where, labels=labels, pos_weight=pos_weight)
    weights = binary_weights(elements, z, labels, pos_weight, label_smoothing)
    return elements.zero_masked(binary_loss(elements.fill_examples(z, 0.0), *weights))


@public
def sigmoid_kl_divergence(
    logits: ArrayLike, target_logits: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    r"""Kullback-Leibler divergence of sigmoids: ``[...], [...] -> [...]``.

    .. math::
        p \log \frac pq + (1 - p) \log \frac{1 - p}{1 - q}, \\
        p = \sigma(\text{target_logits}), \; q = \sigma(\text{logits})

    Args:
      logits: floating-point array of any shape, the prediction.
      target_logits: the same shape, or one number for every element: the truth.
      where: boolean, of the shape of `logits`: which elements count.

    Returns:
      The shape of `logits`, in nats, never negative, float32 or float64. Both arguments are
      differentiated.

    Note:
      At ±inf it is the limit: 0 where both agree, +inf where `logits` alone is infinite. NaN
      gives NaN. What `where` leaves out is 0, with the gradient 0.

    Example:
      >>> import jxent
      >>> print(jxent.sigmoid_kl_divergence([0.0, 1.0], [1e-6, 0.0]))
      [1.2500e-13 1.2011e-01]
    """
    elements, z_q = elements_of("logits", logits, where, target_logits=target_logits)
    z_p = elementwise("target_logits", target_logits, "logits", z_q)
    z_q, z_p = (elements.fill_elements(z, 0.0) for z in (z_q, z_p))
    return elements.zero_masked(_sigmoid_kl(z_q, z_p))


# ---------------------------------------- Yes and no


def checked_probabilities(elements: Rows, x: jax.Array) -> jax.Array:
    """Numbers in [0, 1]; NaN for any other number, 1/2 for a masked element."""
    x = elements.fill_elements(x, 0.5)
    return nan_where(~((x >= 0) & (x <= 1)), x)


def binary_weights(
    elements: Rows,
    like: jax.Array,
    labels: ArrayLike,
    pos_weight: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """The weights of the positive and of the negative term; NaN for a label outside [0, 1]."""
    y = elementwise("labels", labels, elements.name, like)
    y = checked_probabilities(elements, widened(y, computing_dtype(like, y)))
    positive, negative = y, 1 - y
    if not is_off(label_smoothing):
        epsilon = scalar("label_smoothing", label_smoothing, y)
        positive = weighted(1 - epsilon, positive) + 0.5 * epsilon
        negative = weighted(1 - epsilon, negative) + 0.5 * epsilon
    if pos_weight is not None:
        weight = elementwise("pos_weight", pos_weight, elements.name, like, trailing=True)
        positive = positive * weight.astype(y.dtype)
    return positive, negative


def finite_binary_loss(z: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """`binary_loss` of finite logits."""
    losses: jax.Array = a * softplus(-z) + b * softplus(z)
    return losses


# softplus'(z) = s(z): the gradient is b s(z) - a s(-z) for the logit, and the two softplus for
# the weights, 0 for a weight of 0 beside an infinite one.
@loss_with_partials(
    lambda z, a, b: b * sigmoid(z) - a * sigmoid(-z),
    lambda z, a, b: zero_if_weightless(a, softplus(-z)),
    lambda z, a, b: zero_if_weightless(b, softplus(z)),
)
def binary_loss(z: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """``a softplus(-z) + b softplus(z)``: a is the weight of the positive term, b of the other."""
    # The one selection is outermost. With selections inside the sum of products, XLA:CPU would
    # write the factors to memory.
    infinite = jnp.isinf(z)
    limit = weighted_cost(jnp.where(z > 0, b, a), jnp.where(infinite, jnp.inf, 0.0))
    z = jnp.where(infinite, 0.0, z)
    return jnp.where(infinite, limit, finite_binary_loss(z, a, b))


# ---------------------------------------- Entropy and divergence


# H = softplus(z) - z s(z), so dH/dz = -z s'(z) = -z s(z) s(-z).
def _sigmoid_entropy_slope(z: jax.Array) -> jax.Array:
    finite = jnp.where(jnp.isinf(z), 0.0, z)
    return -finite * sigmoid(finite) * sigmoid(-finite)


@loss_with_partials(_sigmoid_entropy_slope)
def _sigmoid_entropy(z: jax.Array) -> jax.Array:
    z = jnp.abs(z)
    # The entropy is even; for z >= 0 its two terms are s(z) softplus(-z) and s(-z) softplus(z).
    tail = jnp.where(z < jnp.inf, z, 0.0) * sigmoid(-z)
    return tail + softplus(-z)


# The gradient is q - p = -q (1-q) expm1(d) / (1 + q expm1(d)) for the logit of q, and p (1-p) d
# for that of p. A difference of two sigmoids near 1 is taken from their complements.
def _sigmoid_kl_bwd(
    cotangent: jax.Array, logits: jax.Array, target_logits: jax.Array
) -> tuple[jax.Array, jax.Array]:
    z_q, z_p = upcast(logits, target_logits)
    d = difference(z_p, z_q)
    p, q = sigmoid(z_p), sigmoid(z_q)
    not_p, not_q = sigmoid(-z_p), sigmoid(-z_q)
    near = jnp.abs(d) < 1
    change = expm1(jnp.where(near, d, 0.0))
    far = jnp.where(z_q + z_p > 0, not_p - not_q, q - p)
    to_q = jnp.where(near, divide(-q * not_q * change, 1 + q * change), far)
    slope = p * not_p
    to_p = slope * jnp.where((slope == 0) & jnp.isinf(d), 0.0, d)
    return cotangent * to_q, cotangent * to_p


# With d = z_p - z_q the sigmoids p = q e^d / (1 + q expm1(d)), so that the logarithms of p/q and
# of (1-p)/(1-q) are -log1p((1-q) expm1(-d)) and -log1p(q expm1(d)), exact for a small d.
@with_gradient(_sigmoid_kl_bwd)
def _sigmoid_kl(logits: jax.Array, target_logits: jax.Array) -> jax.Array:
    z_q, z_p = upcast(logits, target_logits)
    d = difference(z_p, z_q)
    near = jnp.abs(d) < 1

    def terms(sign: int) -> jax.Array:
        q, other = sigmoid(sign * z_q), sigmoid(-sign * z_q)
        close = -log1p(other * expm1(jnp.where(near, -sign * d, 0.0)))
        # Elsewhere the logits are replaced by 0: the difference of equal infinities is NaN.
        far = softplus(-sign * jnp.where(near, 0.0, z_q)) - softplus(
            -sign * jnp.where(near, 0.0, z_p)
        )
        return divergence_terms(jnp.where(near, close, far), sigmoid(sign * z_p), q)

    return terms(1) + terms(-1)
