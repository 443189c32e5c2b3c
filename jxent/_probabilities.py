r"""Entropies and cross-entropies of probabilities."""

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, Axis, floating
from ._autodiff import loss_with_partials
from ._dtypes import upcast
from ._elementary import log, log1p
from ._elements import Elements
from ._numerics import quotient_of_weight, sum_of_products
from ._rows import rows_of, two_distributions


def entropy(p: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> jax.Array:
    r"""Entropy of a distribution: ``[..., classes] -> [...]``.

    .. math:: H(p) = -\sum_j p_j \log p_j

    Args:
      p: probabilities, floating-point ``[..., classes]``. They need not sum to one.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `p` or of the examples: what counts.
        ``[n]`` beside ``[n, n]`` means the examples, not the classes.

    Returns:
      ``[...]`` in nats, float32 or float64.

    Raises:
      TypeError: `p` is not floating-point, or `where` not boolean.
      ValueError: a shape or `axis` does not fit, or there is no class.

    Note:
      0 log 0 is 0, with the gradient 0. A negative number gives NaN. What `where` leaves out
      contributes nothing.

    References:
      C. E. Shannon, `A Mathematical Theory of Communication
      <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>`_, 1948.

    Example:
      >>> import jxent
      >>> print(jxent.entropy([0.5, 0.25, 0.25, 0.0]))
      1.0397
    """
    rows, x = rows_of("p", p, axis, where, absent=0.0)
    # The gradient has two parts. Upcast here, they are added before they are rounded to 16 bits.
    (x,) = upcast(x)
    return rows.zero_masked(jnp.sum(weighted_surprisal(x, x), axis=-1))


def cross_entropy(
    p: ArrayLike, q: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> jax.Array:
    r"""Cross-entropy H(p, q), p true, q predicted: ``[..., classes], [..., classes] -> [...]``.

    .. math:: H(p, q) = -\sum_j p_j \log q_j = H(p) + D(p \,\|\, q)

    Args:
      p: true probabilities ``[..., classes]``, one-hot integers or booleans, too.
      q: predicted probabilities, the same shape, or floating-point ``[classes]`` for every example.
        One of both is floating-point.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `p` or of the examples: what counts.
        ``[n]`` beside ``[n, n]`` means the examples, not the classes.

    Returns:
      ``[...]`` in nats, float32 or float64.

    Raises:
      TypeError: neither array is floating-point, `q` are class numbers, or `where` not boolean.
      ValueError: a shape or `axis` does not fit, or there is no class.

    Note:
      A class with :math:`q_j = 0` costs nothing where :math:`p_j = 0`, +inf elsewhere (PyTorch
      clamps the logarithm at -100 in its binary loss; this does not). A negative :math:`q_j`
      gives NaN.

    References:
      C. E. Shannon, `A Mathematical Theory of Communication
      <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>`_, 1948.

    Example:
      >>> import jxent
      >>> print(jxent.cross_entropy([0.0, 1.0], [[0.0, 1.0], [0.5, 0.5]][1]))
      0.6931
    """
    rows, x, y = two_distributions(p, q, axis, where, "cross_entropy_with_integer_labels")
    return rows.zero_masked(_cross_entropy(x, y))


def binary_entropy(p: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    r"""Entropy of a binary distribution: ``[...] -> [...]``.

    .. math:: -p \log p - (1 - p) \log (1 - p)

    Args:
      p: probabilities, floating-point, of any shape.
      where: boolean, of the shape of `p`: which elements count.

    Returns:
      The shape of `p`, in nats, between 0 and log 2, float32 or float64.

    Raises:
      TypeError: `p` is not floating-point, or `where` not boolean.
      ValueError: a shape does not fit.

    Note:
      0 at p = 0 and p = 1 (0 log 0 is 0), where an infinite gradient is cut to the finite part.
      NaN outside [0, 1], in the gradient too. What `where` leaves out is 0, with the gradient 0.

    References:
      C. E. Shannon, `A Mathematical Theory of Communication
      <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>`_, 1948.

    Example:
      >>> import jxent
      >>> print(jxent.binary_entropy([0.0, 0.5]))
      [0.        0.6931]
    """
    (x,) = upcast(floating("p", p))
    elements = Elements.of("p", x, where)
    x = elements.probabilities(x)
    return elements.zero_masked(_binary_cross_entropy(x, *elements.binary_weights(x)))


def binary_cross_entropy(
    probs: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
) -> jax.Array:
    r"""Binary cross-entropy of probabilities: ``[...], [...] -> [...]``.

    .. math::
        -w \tilde y \log p - (1 - \tilde y) \log (1 - p), \qquad
        \tilde y = (1 - \varepsilon) y + \varepsilon / 2

    Args:
      probs: predicted probabilities, floating-point, of any shape.
      labels: numbers in [0, 1] of the shape of `probs`, or one for every element.
      where: boolean, of the shape of `probs`: which elements count.
      pos_weight: :math:`w`, multiplies the positive term; a scalar, or of the shape of the last
        axes of `probs`: ``[n]`` beside ``[n, n]`` is one per class.
      label_smoothing: :math:`\varepsilon` in [0, 1].

    Returns:
      The shape of `probs`, in nats, float32 or float64.

    Raises:
      TypeError: `probs` is not floating-point, or `where` not boolean.
      ValueError: a shape does not fit, or `label_smoothing` lies outside [0, 1].

    Note:
      p = 0 and p = 1 cost nothing under a label that agrees, +inf under any other: PyTorch clamps
      the logarithm at -100, this does not. A probability or a label outside [0, 1] gives NaN, in
      the gradient too. What `where` leaves out has the loss 0 and the gradient 0. From logits,
      `sigmoid_binary_cross_entropy` keeps what rounding to probabilities loses.

    References:
      I. Goodfellow, Y. Bengio, A. Courville, `Deep Learning
      <https://www.deeplearningbook.org>`_, 2016, 6.2.2.2.

    Example:
      >>> import jxent
      >>> print(jxent.binary_cross_entropy([0.5, 0.9, 0.0], [1.0, 1.0, 0.0]))
      [0.6931  0.1054 0.        ]
    """
    x = floating("probs", probs)
    elements = Elements.of("probs", x, where, labels=labels, pos_weight=pos_weight)
    weights = elements.binary_weights(labels, pos_weight, label_smoothing)
    x = elements.probabilities(x)
    return elements.zero_masked(_binary_cross_entropy(x, *weights))


# d(-p log q) = -log q dp - (p/q) dq, without the part that has no weight.
def _surprisal(p: jax.Array, q: jax.Array) -> jax.Array:
    """``-log q``, 0 where q = 0 has no weight: 0 log 0 is 0."""
    return -log(jnp.where((p == 0) & (q == 0), 1.0, q))


def _surprisal_slope(p: jax.Array, q: jax.Array) -> jax.Array:
    return -quotient_of_weight(p, q)


@loss_with_partials(_surprisal, _surprisal_slope)
def weighted_surprisal(p: jax.Array, q: jax.Array) -> jax.Array:
    """``-p log q``, 0 where p = 0."""
    return p * _surprisal(p, q)


@loss_with_partials(_surprisal, _surprisal_slope, axis=(-1,))
def _cross_entropy(p: jax.Array, q: jax.Array) -> jax.Array:
    return sum_of_products(p, _surprisal(p, q))


# The same for -a log p - b log(1 - p).
def _complement_surprisal(b: jax.Array, p: jax.Array) -> jax.Array:
    """``-log(1 - p)``, 0 where p = 1 has no weight."""
    return -log1p(-jnp.where((b == 0) & (p == 1), 0.0, p))


@loss_with_partials(
    lambda p, a, b: quotient_of_weight(b, 1 - p) - quotient_of_weight(a, p),
    lambda p, a, b: _surprisal(a, p),
    lambda p, a, b: _complement_surprisal(b, p),
)
def _binary_cross_entropy(p: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return a * _surprisal(a, p) + b * _complement_surprisal(b, p)
