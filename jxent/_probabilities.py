r"""Entropies, likelihoods and divergences of predictions given as probabilities."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ._arguments import ArrayLike, Axis
from ._autodiff import loss_with_partials, public, with_partials
from ._dtypes import upcast
from ._numerics import (
    divide,
    excess,
    log,
    log1p,
    log_quotient,
    mixture_ratio,
    nan_where,
    quotient,
    quotient_of_weight,
    replaced_where,
    signed_sum,
    sum_of_products,
    weighted_cost,
)
from ._rows import (
    elements_of,
    in_range,
    is_label,
    labelled_rows,
    rows_of,
    two_distributions,
    weight_of_label,
)
from ._sigmoid import binary_weights, checked_probabilities


@public
def entropy(p: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> jax.Array:
    r"""Entropy of a distribution: ``[..., classes] -> [...]``.

    .. math:: H(p) = -\sum_j p_j \log p_j

    Args:
      p: probabilities, floating-point ``[..., classes]``. They need not sum to one.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `p` or of the examples: what counts.

    Returns:
      ``[...]`` in nats, float32 or float64.

    Note:
      0 log 0 is 0, with the gradient 0. A negative number gives NaN. What `where` leaves out
      contributes nothing.

    Example:
      >>> import jxent
      >>> print(jxent.entropy([0.5, 0.25, 0.25, 0.0]))
      1.0397
    """
    rows, x = rows_of("p", p, axis, where, absent=0.0)
    # The gradient has two parts. Upcast here, they are added before they are rounded to 16 bits.
    (x,) = upcast(x)
    return rows.zero_masked(jnp.sum(_weighted_surprisal(x, x), axis=-1))


@public
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

    Returns:
      ``[...]`` in nats, float32 or float64.

    Note:
      A class with :math:`q_j = 0` costs nothing where :math:`p_j = 0`, +inf elsewhere (PyTorch
      clamps the logarithm at -100 in its binary loss; this does not). A negative :math:`q_j`
      gives NaN.

    Example:
      >>> import jxent
      >>> print(jxent.cross_entropy([0.0, 1.0], [[0.0, 1.0], [0.5, 0.5]][1]))
      0.6931
    """
    rows, x, y = two_distributions(p, q, axis, where, "cross_entropy_with_integer_labels")
    return rows.zero_masked(_cross_entropy(x, y))


@public
def cross_entropy_with_integer_labels(
    q: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
) -> jax.Array:
    r"""Cross-entropy of probabilities and integer labels: ``[..., classes], [...] -> [...]``.

    .. math:: -w_y \log q_y

    Args:
      q: predicted probabilities, floating-point ``[..., classes]``.
      labels: integers ``[...]`` in [0, classes), or one for every example.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `q` or of the examples: what counts.
      class_weights: :math:`w`, ``[classes]``.
      ignore_index: the label of examples that do not count.

    Returns:
      ``[...]`` in nats, float32 or float64.

    Note:
      Ignored examples, and those with no class left by `where`, have the loss 0 and the gradient
      0. A label outside [0, classes) gives NaN, in the gradient too. The probability 0, or a
      class left out by `where`, gives +inf.

    Example:
      >>> import jxent
      >>> print(jxent.cross_entropy_with_integer_labels([[0.1, 0.3, 0.6], [0.3, 0.2, 0.5]], [2, 0]))
      [0.5108 1.2040]
    """
    rows, x, y = labelled_rows("q", q, labels, axis, where, ignore_index, class_weights, absent=0.0)
    likelihood = _at_known_label(x, y)
    weights = rows.class_weights("class_weights", class_weights, x)
    weight = jnp.ones_like(likelihood) if weights is None else weight_of_label(weights, y)
    # A masked example has the likelihood 0 and an infinite surprisal: its weight must be 0, too.
    return rows.zero_masked(_weighted_surprisal(rows.zero_masked(weight), likelihood))


@public
def negative_log_likelihood(
    log_probs: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
) -> jax.Array:
    r"""Negative log-likelihood (``nll_loss``) of labels: ``[..., classes], [...] -> [...]``.

    .. math:: -w_y \ell_y

    Args:
      log_probs: :math:`\ell`, logarithms of probabilities, ``[..., classes]``.
      labels: integers ``[...]`` in [0, classes), or one for every example.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `log_probs` or of the examples: what counts.
      class_weights: :math:`w`, ``[classes]``.
      ignore_index: the label of examples that do not count.

    Returns:
      ``[...]`` in nats, float32 or float64.

    Note:
      Ignored examples, and those with no class left by `where`, have the loss 0 and the gradient
      0. A label outside [0, classes) gives NaN, in the gradient too. A class at -inf, or left out
      by `where`, gives +inf.

    Example:
      >>> import jxent
      >>> log_probs = jxent.log_softmax([[2.0, 0.0], [20.0, 0.0]])
      >>> print(jxent.negative_log_likelihood(log_probs, [0, 0]))
      [1.2693e-01 2.0612e-09]
    """
    rows, z, y = labelled_rows(
        "log_probs", log_probs, labels, axis, where, ignore_index, class_weights, absent=-jnp.inf
    )
    (z,) = upcast(z)
    losses = -_at_known_label(z, y)
    weights = rows.class_weights("class_weights", class_weights, losses)
    if weights is not None:
        losses = weighted_cost(weight_of_label(weights, y), losses)
    return rows.zero_masked(losses)


@public
def relative_entropy(
    p: ArrayLike, q: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> jax.Array:
    r"""Relative entropy (KL divergence) of p from q: ``[..., classes], [..., classes] -> [...]``.

    .. math:: D(p \,\|\, q) = \sum_j p_j \log \frac{p_j}{q_j}

    The terms of classes within a factor of two are computed as
    :math:`\sum_j [p_j \log (p_j/q_j) - p_j + q_j] + \sum_j (p_j - q_j)`: every term of the first
    sum is non-negative, and the second one does not lose bits to cancellation.

    Args:
      p: true probabilities ``[..., classes]``, one-hot integers or booleans, too.
      q: predicted probabilities, the same shape, or floating-point ``[classes]`` for every example.
        One of both is floating-point.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `p` or of the examples: what counts.

    Returns:
      ``[...]`` in nats, float32 or float64. It is the exact function of the numbers given, of
      whatever size: where these do not sum to one it may be negative.

    Note:
      :math:`p_j = 0` contributes 0, with the gradient 0; :math:`q_j = 0` beside a positive
      :math:`p_j` gives +inf. A negative number gives NaN.

    Example:
      >>> import jxent
      >>> print(jxent.relative_entropy([0.5, 0.5, 0.0], [0.25, 0.25, 0.5]))
      0.6931
    """
    rows, x, y = two_distributions(p, q, axis, where, "cross_entropy_with_integer_labels")
    return rows.zero_masked(_relative_entropy(x, y))


@public
def jensen_shannon_divergence(
    p: ArrayLike, q: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> jax.Array:
    r"""Jensen-Shannon divergence of distributions: ``[..., classes], [..., classes] -> [...]``.

    .. math::
        \tfrac12 \sum_j \left(p_j \log \frac{p_j}{m_j} + q_j \log \frac{q_j}{m_j}\right),
        \qquad m = \tfrac12 (p + q)

    Args:
      p: probabilities ``[..., classes]``, one-hot integers or booleans, too.
      q: probabilities, the same shape, or floating-point ``[classes]`` for every example. One of
        both is floating-point.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `p` or of the examples: what counts.

    Returns:
      ``[...]`` in nats, never negative, at most log 2 for distributions, float32 or float64.

    Note:
      0 log 0 is 0, with the gradient 0 for that term. A negative number gives NaN.

    Example:
      >>> import jxent
      >>> print(jxent.jensen_shannon_divergence([1.0, 0.0], [0.0, 1.0]))
      0.6931
    """
    rows, x, y = two_distributions(p, q, axis, where, "jax.nn.one_hot")
    return rows.zero_masked(_jensen_shannon(x, y))


@public
def binary_entropy(p: ArrayLike, *, where: ArrayLike | None = None) -> jax.Array:
    r"""Entropy of a binary distribution: ``[...] -> [...]``.

    .. math:: -p \log p - (1 - p) \log (1 - p)

    Args:
      p: probabilities, floating-point, of any shape.
      where: boolean, of the shape of `p`: which elements count.

    Returns:
      The shape of `p`, in nats, between 0 and log 2, float32 or float64.

    Note:
      0 at p = 0 and p = 1 (0 log 0 is 0), where an infinite gradient is cut to the finite part.
      NaN outside [0, 1], in the gradient too. What `where` leaves out is 0, with the gradient 0.

    Example:
      >>> import jxent
      >>> print(jxent.binary_entropy([0.0, 0.5]))
      [0.        0.6931]
    """
    elements, x = elements_of("p", p, where)
    x = checked_probabilities(elements, *upcast(x))
    return elements.zero_masked(_binary_cross_entropy(x, *binary_weights(elements, x, x)))


@public
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

    Note:
      p = 0 and p = 1 cost nothing under a label that agrees, +inf under any other: PyTorch clamps
      the logarithm at -100, this does not. A probability or a label outside [0, 1] gives NaN, in
      the gradient too. What `where` leaves out has the loss 0 and the gradient 0. From logits,
      `sigmoid_binary_cross_entropy` keeps what rounding to probabilities loses.

    Example:
      >>> import jxent
      >>> print(jxent.binary_cross_entropy([0.5, 0.9, 0.0], [1.0, 1.0, 0.0]))
      [0.6931  0.1054 0.        ]
    """
    elements, x = elements_of("probs", probs, where, labels=labels, pos_weight=pos_weight)
    weights = binary_weights(elements, x, labels, pos_weight, label_smoothing)
    x = checked_probabilities(elements, x)
    return elements.zero_masked(_binary_cross_entropy(x, *weights))


# ---------------------------------------- Surprisals


# d(-p log q) = -log q dp - (p/q) dq; a part without weight is 0.
def _surprisal(p: jax.Array, q: jax.Array) -> jax.Array:
    """``-log q``, 0 where q = 0 has no weight: 0 log 0 is 0."""
    return -log(jnp.where((p == 0) & (q == 0), 1.0, q))


def _surprisal_slope(p: jax.Array, q: jax.Array) -> jax.Array:
    return -quotient_of_weight(p, q)


@loss_with_partials(_surprisal, _surprisal_slope)
def _weighted_surprisal(p: jax.Array, q: jax.Array) -> jax.Array:
    """``-p log q``, 0 where p = 0."""
    return p * _surprisal(p, q)


@loss_with_partials(_surprisal, _surprisal_slope, axis=(-1,))
def _cross_entropy(p: jax.Array, q: jax.Array) -> jax.Array:
    return sum_of_products(p, _surprisal(p, q))


# Likewise for -a log p - b log(1 - p).
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


def _at_known_label(x: jax.Array, labels: jax.Array) -> jax.Array:
    """``[...]``, the entry that the label names; NaN, with a NaN gradient, if it names none."""
    # For an unknown label the whole row is summed: the NaN must reach the gradient of the row.
    unknown = ~in_range(labels, x.shape[-1])
    picked = jnp.where(is_label(labels, x.shape[-1]) | unknown, x, 0.0)
    return nan_where(unknown, jnp.sum(picked, axis=-1, keepdims=True))[..., 0]


# ---------------------------------------- Divergences


# d(p log(p/q)) = (log(p/q) + 1) dp - (p/q) dq, and 0 where p = 0.
def _entropy_to_p(p: jax.Array, q: jax.Array) -> jax.Array:
    return replaced_where(p == 0, log_quotient(p, q) + 1, 0.0)


def _entropy_to_q(p: jax.Array, q: jax.Array) -> jax.Array:
    return -quotient_of_weight(p, q)


@loss_with_partials(_entropy_to_p, _entropy_to_q, axis=(-1,))
def _relative_entropy(p: jax.Array, q: jax.Array) -> jax.Array:
    """``sum_j p_j log(p_j/q_j)``.

    With t = log(p/q), the terms ``p t`` of nearly equal numbers cancel. There, within a factor of
    two, a term is ``q φ(t) + (p - q)``: the first part is never negative, the second one exact.
    Further apart it is ``p t`` itself, which may be far less than its parts.
    """
    t = jnp.where((p == 0) & (q >= 0), 0.0, log_quotient(p, q))
    near = (p <= 2 * q) & (q <= 2 * p)
    change = jnp.where(near, p - q, 0.0)
    bound = jnp.max(jnp.abs(change), axis=-1, keepdims=True)
    # Terms whose sum may overflow are summed in a larger unit, a power of two: no bit is lost.
    size = jnp.max(jnp.where(near, jnp.abs(change), p), axis=-1, keepdims=True)
    is_large = size > 2.0 ** (np.finfo(p.dtype).maxexp - 64)
    unit, back = (jnp.where(is_large, x, 1.0).astype(p.dtype) for x in (2.0**-48, 2.0**48))
    weight = jnp.where(t == jnp.inf, 1.0, jnp.where(near, q, p) * unit)
    terms = weight * jnp.where(near, excess(jnp.where(near, t, 0.0)), t)
    surplus = signed_sum(change * unit, jnp.maximum(bound * unit, np.finfo(p.dtype).tiny))
    return (jnp.sum(terms, axis=-1) + surplus) * back[..., 0]


# d log(p/m) = dp (1/p - 1/(2m)) - dq/(2m), and 1/p - 1/(2m) = q/(2m)/p; 0 for p where p = 0.
def _log_of_share_to_p(p: jax.Array, q: jax.Array) -> jax.Array:
    a = jnp.where(p == 0, 1.0, p)
    return jnp.where(p == 0, 0.0, quotient(quotient(0.5 * q, 0.5 * a + 0.5 * q), a))


def _log_of_share_to_q(p: jax.Array, q: jax.Array) -> jax.Array:
    m = 0.5 * p + 0.5 * q
    return jnp.where(m == 0, 0.0, divide(-0.5, jnp.where(m == 0, 1.0, m)))


@with_partials(_log_of_share_to_p, _log_of_share_to_q)
def _log_of_share(p: jax.Array, q: jax.Array) -> jax.Array:
    """``log(p/m)`` for m = (p + q)/2."""
    return mixture_ratio(log_quotient(p, q))


# d(p log(p/m)) = (log(p/m) + 1) dp - (p/m) dm, and with q's term the parts from dm add to
# -2 dm = -dp - dq: half of log(p/m) remains. Where p = 0 only the part from q's term, -q/(4m).
def _jensen_shannon_to_p(p: jax.Array, q: jax.Array) -> jax.Array:
    return replaced_where(p == 0, 0.5 * _log_of_share(p, q), -0.5 * jnp.sign(q))


def _jensen_shannon_to_q(p: jax.Array, q: jax.Array) -> jax.Array:
    return _jensen_shannon_to_p(q, p)


@loss_with_partials(_jensen_shannon_to_p, _jensen_shannon_to_q, axis=(-1,))
def _jensen_shannon(p: jax.Array, q: jax.Array) -> jax.Array:
    t = log_quotient(p, q)
    quarters = 0.25 * (excess(mixture_ratio(t)) + excess(mixture_ratio(-t)))
    # XLA would turn p / 2 + q / 2 into (p + q) / 2, which overflows for the largest numbers.
    return jnp.sum(p * quarters + q * quarters, axis=-1)
