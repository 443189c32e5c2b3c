r"""Divergences of probabilities, and of log-probabilities."""

from typing import Any

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, Axis
from ._autodiff import with_gradient
from ._numerics import divergence_terms, excess, log_quotient, mixture_ratio, signed_sum
from ._rows import two_distributions
from ._statistics import upcast


def relative_entropy(
    p: ArrayLike, q: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> jax.Array:
    r"""Relative entropy (KL divergence) of p from q: ``[..., classes], [..., classes] -> [...]``.

    .. math:: D(p \,\|\, q) = \sum_j p_j \log \frac{p_j}{q_j}

    computed as :math:`\sum_j [p_j \log (p_j/q_j) - p_j + q_j] + \sum_j (p_j - q_j)`: every term of
    the first sum is non-negative, and the second one does not lose bits to cancellation.

    Args:
      p: true probabilities ``[..., classes]``, one-hot integers or booleans, too.
      q: predicted probabilities, the same shape, or floating-point ``[classes]`` for every example.
        One of both is floating-point.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `p` or of the examples: what counts.
        ``[n]`` beside ``[n, n]`` means the examples, not the classes.

    Returns:
      ``[...]`` in nats, float32 or float64. It is the exact function of the numbers given: where
      these do not sum to one it may be negative.

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
    rows, x, y = two_distributions("p", p, "q", q, axis, where, "cross_entropy_with_integer_labels")
    return rows.settle(_relative_entropy(x, y))


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
    rows, x, y = two_distributions("p", p, "q", q, axis, where, "jax.nn.one_hot")
    return rows.settle(_jensen_shannon(x, y))


def _relative_entropy_fwd(p: jax.Array, q: jax.Array) -> tuple[jax.Array, Any]:
    x, y = upcast(p, q)
    terms = divergence_terms(log_quotient(x, y), x, y)
    return jnp.sum(terms, axis=-1) + signed_sum(x - y), (p, q)


# d(p log(p/q)) = (log(p/q) + 1) dp - (p/q) dq, nothing where p = 0.
def _relative_entropy_bwd(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    p, q = residuals
    x, y = upcast(p, q)
    weightless = x == 0
    to_p = jnp.where(weightless, 0.0, log_quotient(x, y) + 1)
    to_q = jnp.where(weightless, 0.0, -x / jnp.where(weightless, 1.0, y))
    return (
        (cotangent[..., None] * to_p).astype(p.dtype),
        (cotangent[..., None] * to_q).astype(q.dtype),
    )


_relative_entropy = with_gradient(_relative_entropy_fwd, _relative_entropy_bwd)


def _jensen_shannon_fwd(p: jax.Array, q: jax.Array) -> tuple[jax.Array, Any]:
    x, y = upcast(p, q)
    m = (x + y) / 2
    t = log_quotient(x, y)
    terms = m * (excess(mixture_ratio(t)) + excess(mixture_ratio(-t)))
    return jnp.sum(terms, axis=-1) / 2, (p, q)


# d(p log(p/m)) = (log(p/m) + 1) dp - (p/m) dm, and with q's term the parts from dm add to
# -2 dm = -dp - dq: half of log(p/m) remains. Where p = 0 only the part from q's term, -q/(4m).
def _jensen_shannon_bwd(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    p, q = residuals
    x, y = upcast(p, q)

    def gradient(share: jax.Array, other: jax.Array) -> jax.Array:
        ratio = mixture_ratio(log_quotient(share, other))
        return jnp.where(share == 0, -jnp.sign(other), ratio) / 2

    return (
        (cotangent[..., None] * gradient(x, y)).astype(p.dtype),
        (cotangent[..., None] * gradient(y, x)).astype(q.dtype),
    )


_jensen_shannon = with_gradient(_jensen_shannon_fwd, _jensen_shannon_bwd)
