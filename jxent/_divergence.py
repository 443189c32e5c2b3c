r"""Kullback-Leibler and Jensen-Shannon divergence of softmax distributions."""

from typing import Any

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, Axis, Rows, floating
from ._autodiff import with_gradient
from ._numerics import divergence_terms, excess, log1p, mixture_ratio
from ._statistics import Statistics, probability, shift, statistics, surprisal, upcast


def softmax_kl_divergence(
    logits: ArrayLike, target_logits: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> jax.Array:
    r"""Kullback-Leibler divergence of softmaxes: ``[..., classes], [..., classes] -> [...]``.

    .. math::
        D(p \,\|\, q) = \sum_j p_j \log \frac{p_j}{q_j}, \qquad
        p = \operatorname{softmax}(\text{target_logits}), \;
        q = \operatorname{softmax}(\text{logits})

    computed as a sum of non-negative terms
    :math:`q_j \varphi(\log p_j - \log q_j)`, :math:`\varphi(t) = t e^t - e^t + 1`: it is never
    negative, and exact for distributions that hardly differ.

    Args:
      logits: floating-point array ``[..., classes]``, the prediction.
      target_logits: the same shape, or ``[classes]`` for every example: the truth.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.

    Returns:
      ``[...]`` in nats, float32 or float64. Both arguments are differentiated.

    Raises:
      TypeError: logits are not floating-point, or `where` not boolean.
      ValueError: a shape or `axis` does not fit, or there is no class.

    Note:
      A class at -inf in both does not exist; at -inf in `logits` alone it makes the divergence
      +inf. An example with no class left by `where` has the divergence 0 and the gradient 0.
      Where a softmax has no limit (NaN, every logit -inf, two +inf) it is NaN.

    References:
      S. Kullback, R. A. Leibler, `On Information and Sufficiency
      <https://doi.org/10.1214/aoms/1177729694>`_, 1951.

    Example:
      >>> import jxent
      >>> print(jxent.softmax_kl_divergence([0.0, 0.0], [0.0, 1e-6]))
      1.25e-13
    """
    rows, z_q, z_p = _two_rows_of_logits(logits, target_logits, axis, where)
    return rows.settle(softmax_kl(z_q, z_p))


def softmax_jensen_shannon_divergence(
    logits: ArrayLike, target_logits: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> jax.Array:
    r"""Jensen-Shannon divergence of softmaxes: ``[..., classes], [..., classes] -> [...]``.

    .. math::
        \tfrac12 D(p \,\|\, m) + \tfrac12 D(q \,\|\, m), \qquad m = \tfrac12 (p + q)

    Args:
      logits: floating-point array ``[..., classes]``.
      target_logits: the same shape, or ``[classes]`` for every example.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.

    Returns:
      ``[...]`` in nats, between 0 and log 2, float32 or float64. Both arguments are
      differentiated.

    Raises:
      TypeError: logits are not floating-point, or `where` not boolean.
      ValueError: a shape or `axis` does not fit, or there is no class.

    Note:
      A class at -inf has the probability 0. An example with no class left by `where` has the
      divergence 0 and the gradient 0. Where a softmax has no limit (NaN, every logit -inf, two
      +inf) it is NaN.

    References:
      J. Lin, `Divergence Measures Based on the Shannon Entropy
      <https://doi.org/10.1109/18.61115>`_, 1991.

    Example:
      >>> import jxent
      >>> print(jxent.softmax_jensen_shannon_divergence([0.0, 0.0], [0.0, 1e-6]))
      3.125e-14
    """
    rows, z_q, z_p = _two_rows_of_logits(logits, target_logits, axis, where)
    return rows.settle(_softmax_js(z_q, z_p))


def _two_rows_of_logits(
    logits: ArrayLike, target_logits: ArrayLike, axis: Axis, where: ArrayLike | None
) -> tuple[Rows, jax.Array, jax.Array]:
    array = floating("logits", logits)
    rows = Rows.of("logits", array, axis, where)
    return rows, rows.logits("logits", array), rows.logits("target_logits", target_logits)


@jax.custom_jvp
def log_ratio(z_p: jax.Array, z_q: jax.Array, of_p: Statistics, of_q: Statistics) -> jax.Array:
    """``log p_j - log q_j``, exact also where p and q agree to many digits.

    With d_j the difference of the logits less that of one class k, log p_j - log q_j =
    d_j - log(q_k/p_k) and q_k/p_k = 1 + S, S = sum_j (q_k p_j/p_k - q_j) = sum_j q_j expm1(d_j):
    a shift that the logits share has vanished from all of these.
    """
    p, q = probability(z_p, of_p), probability(z_q, of_q)
    has_p, has_q = (shift(z, s.maximum) > -jnp.inf for z, s in ((z_p, of_p), (z_q, of_q)))
    both = has_p & has_q
    a = jnp.where(both & (of_p.maximum < jnp.inf), z_p, 0.0)
    b = jnp.where(both & (of_q.maximum < jnp.inf), z_q, 0.0)
    n_p, n_q = (
        surprisal(jnp.where(both, z_p, of_p.maximum), of_p),
        surprisal(jnp.where(both, z_q, of_q.maximum), of_q),
    )
    k = jnp.argmin(jnp.where(both, n_p + n_q, jnp.inf), axis=-1, keepdims=True)
    at_k = jax.lax.broadcasted_iota(k.dtype, both.shape, both.ndim - 1) == k

    def of_k(x: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(at_k, x, 0.0), axis=-1, keepdims=True)

    difference, error = _two_difference(a, b)
    d = (difference - of_k(difference)) + (error - of_k(error))
    p_k, q_k = of_k(p), of_k(q)
    quotient = q_k / jnp.where(p_k > 0, p_k, 1.0)
    near = both & (jnp.abs(d) < 1)
    change = jnp.where(near, q * jnp.expm1(jnp.where(near, d, 0.0)), quotient * p - q)
    change = jnp.sum(change, axis=-1, keepdims=True)
    agreeing = (p_k > 0) & (change > -0.5) & (change < 2)
    t = jnp.where(agreeing, d - log1p(jnp.where(agreeing, change, 0.0)), n_q - n_p)
    one_sided = jnp.where(has_p == has_q, 0.0, jnp.where(has_p, jnp.inf, -jnp.inf))
    undefined = jnp.isnan(of_p.others) | jnp.isnan(of_q.others)
    return jnp.where(undefined, jnp.nan, jnp.where(both, t, one_sided))


# d log p_j = dz_j - sum_i p_i dz_i, for p and for q; the tangents of the statistics are in it.
@log_ratio.defjvp
def _log_ratio_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    z_p, z_q, of_p, of_q = primals
    dot_p, dot_q, _, _ = tangents
    mean_p = jnp.sum(probability(z_p, of_p) * dot_p, axis=-1, keepdims=True)
    mean_q = jnp.sum(probability(z_q, of_q) * dot_q, axis=-1, keepdims=True)
    return log_ratio(z_p, z_q, of_p, of_q), (dot_p - mean_p) - (dot_q - mean_q)


def _two_difference(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``a - b`` rounded, and the rounding error (D. E. Knuth, TAOCP 2, 4.2.2)."""
    difference = a - b
    virtual = difference - a
    return difference, (a - (difference - virtual)) - (b + virtual)


def _p_q_t(
    z_q: jax.Array, z_p: jax.Array, of_q: Statistics, of_p: Statistics
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return probability(z_p, of_p), probability(z_q, of_q), log_ratio(z_p, z_q, of_p, of_q)


def _softmax_kl_fwd(logits: jax.Array, target_logits: jax.Array) -> tuple[jax.Array, Any]:
    z_q, z_p = upcast(logits, target_logits)
    of_q, of_p = statistics(z_q, None, logits.dtype), statistics(z_p, None, target_logits.dtype)
    p, q, t = _p_q_t(z_q, z_p, of_q, of_p)
    return jnp.sum(divergence_terms(t, p, q), axis=-1), (logits, target_logits, of_q, of_p)


# With D = sum_j p_j t_j and t = log p - log q, the gradient is q_j - p_j = -q_j expm1(t_j) for
# the logits of q, and p_j (t_j - D) for those of p.
def _softmax_kl_bwd(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits, target_logits, of_q, of_p = residuals
    z_q, z_p = upcast(logits, target_logits)
    p, q, t = _p_q_t(z_q, z_p, of_q, of_p)
    divergence = jnp.sum(divergence_terms(t, p, q), axis=-1, keepdims=True)
    near = t < 1
    to_q = jnp.where(near, -q * jnp.expm1(jnp.where(near, t, 0.0)), q - p)
    to_p = p * (jnp.where(t == -jnp.inf, 0.0, t) - divergence)
    return (
        (cotangent[..., None] * to_q).astype(logits.dtype),
        (cotangent[..., None] * to_p).astype(target_logits.dtype),
    )


softmax_kl = with_gradient(_softmax_kl_fwd, _softmax_kl_bwd)


def _softmax_js_fwd(logits: jax.Array, target_logits: jax.Array) -> tuple[jax.Array, Any]:
    z_q, z_p = upcast(logits, target_logits)
    of_q, of_p = statistics(z_q, None, logits.dtype), statistics(z_p, None, target_logits.dtype)
    p, q, t = _p_q_t(z_q, z_p, of_q, of_p)
    m = (p + q) / 2
    terms = m * (excess(mixture_ratio(t)) + excess(mixture_ratio(-t)))
    divergence = jnp.sum(terms, axis=-1) / 2
    return divergence, (logits, target_logits, of_q, of_p)


# With u = log(p/m), v = log(q/m) the divergence is half of sum_j p_j u_j + q_j v_j, and since
# p + q = 2m the terms from dm add to nothing: half of p_j (u_j - sum_i p_i u_i) for the logits
# of p, and likewise for q.
def _softmax_js_bwd(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits, target_logits, of_q, of_p = residuals
    z_q, z_p = upcast(logits, target_logits)
    p, q, t = _p_q_t(z_q, z_p, of_q, of_p)
    m = (p + q) / 2

    def gradient(share: jax.Array, ratio: jax.Array) -> jax.Array:
        divergence = jnp.sum(m * excess(ratio), axis=-1, keepdims=True)
        return share * (jnp.where(ratio == -jnp.inf, 0.0, ratio) - divergence) / 2

    return (
        (cotangent[..., None] * gradient(q, mixture_ratio(-t))).astype(logits.dtype),
        (cotangent[..., None] * gradient(p, mixture_ratio(t))).astype(target_logits.dtype),
    )


_softmax_js = with_gradient(_softmax_js_fwd, _softmax_js_bwd)
