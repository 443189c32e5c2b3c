r"""Kullback-Leibler and Jensen-Shannon divergence of distributions given as probabilities."""

import jax
import jax.numpy as jnp
import numpy as np

from ._arguments import ArrayLike, Axis
from ._autodiff import loss_with_partials
from ._elementary import with_partials
from ._numerics import (
    excess,
    log_quotient,
    mixture_ratio,
    quotient,
    quotient_of_weight,
    replaced_where,
    signed_sum,
)
from ._rows import two_distributions


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
        ``[n]`` beside ``[n, n]`` means the examples, not the classes.

    Returns:
      ``[...]`` in nats, float32 or float64. It is the exact function of the numbers given, of
      whatever size: where these do not sum to one it may be negative.

    Raises:
      TypeError: neither array is floating-point, `q` are class numbers, or `where` not boolean.
      ValueError: a shape or `axis` does not fit, or there is no class.

    Note:
      :math:`p_j = 0` contributes 0, with the gradient 0; :math:`q_j = 0` beside a positive
      :math:`p_j` gives +inf. A negative number gives NaN.

    References:
      S. Kullback, R. A. Leibler, `On Information and Sufficiency
      <https://doi.org/10.1214/aoms/1177729694>`_, 1951.

    Example:
      >>> import jxent
      >>> print(jxent.relative_entropy([0.5, 0.5, 0.0], [0.25, 0.25, 0.5]))
      0.6931
    """
    rows, x, y = two_distributions(p, q, axis, where, "cross_entropy_with_integer_labels")
    return rows.zero_masked(_relative_entropy(x, y))


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
        ``[n]`` beside ``[n, n]`` means the examples, not the classes.

    Returns:
      ``[...]`` in nats, never negative, at most log 2 for distributions, float32 or float64.

    Raises:
      TypeError: neither array is floating-point, `q` are class numbers, or `where` not boolean.
      ValueError: a shape or `axis` does not fit, or there is no class.

    Note:
      0 log 0 is 0, with the gradient 0 for that term. A negative number gives NaN.

    References:
      J. Lin, `Divergence Measures Based on the Shannon Entropy
      <https://doi.org/10.1109/18.61115>`_, 1991.

    Example:
      >>> import jxent
      >>> print(jxent.jensen_shannon_divergence([1.0, 0.0], [0.0, 1.0]))
      0.6931
    """
    rows, x, y = two_distributions(p, q, axis, where, "jax.nn.one_hot")
    return rows.zero_masked(_jensen_shannon(x, y))


# d(p log(p/q)) = (log(p/q) + 1) dp - (p/q) dq, nothing where p = 0.
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


# d log(p/m) = dp (1/p - 1/(2m)) - dq/(2m), and 1/p - 1/(2m) = q/(2m)/p; nothing to p where p = 0.
def _log_of_share_to_p(p: jax.Array, q: jax.Array) -> jax.Array:
    a = jnp.where(p == 0, 1.0, p)
    return jnp.where(p == 0, 0.0, quotient(quotient(q / 2, a / 2 + q / 2), a))


def _log_of_share_to_q(p: jax.Array, q: jax.Array) -> jax.Array:
    m = p / 2 + q / 2
    return jnp.where(m == 0, 0.0, -0.5 / jnp.where(m == 0, 1.0, m))


@with_partials(_log_of_share_to_p, _log_of_share_to_q)
def _log_of_share(p: jax.Array, q: jax.Array) -> jax.Array:
    """``log(p/m)`` for m = (p + q)/2."""
    return mixture_ratio(log_quotient(p, q))


# d(p log(p/m)) = (log(p/m) + 1) dp - (p/m) dm, and with q's term the parts from dm add to
# -2 dm = -dp - dq: half of log(p/m) remains. Where p = 0 only the part from q's term, -q/(4m).
def _jensen_shannon_to_p(p: jax.Array, q: jax.Array) -> jax.Array:
    return replaced_where(p == 0, _log_of_share(p, q) / 2, -jnp.sign(q) / 2)


def _jensen_shannon_to_q(p: jax.Array, q: jax.Array) -> jax.Array:
    return _jensen_shannon_to_p(q, p)


@loss_with_partials(_jensen_shannon_to_p, _jensen_shannon_to_q, axis=(-1,))
def _jensen_shannon(p: jax.Array, q: jax.Array) -> jax.Array:
    t = log_quotient(p, q)
    quarters = (excess(mixture_ratio(t)) + excess(mixture_ratio(-t))) / 4
    # XLA would turn p / 2 + q / 2 into (p + q) / 2, which overflows for the largest numbers.
    return jnp.sum(p * quarters + q * quarters, axis=-1)
