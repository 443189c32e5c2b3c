r"""Kullback-Leibler divergences of predictions given as log-probabilities."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from ._arguments import ArrayLike, Axis, elementwise
from ._autodiff import loss_with_partials, public
from ._numerics import (
    difference,
    excess,
    exp,
    expm1,
    log,
    plain_log1p,
    replaced_where,
    sum_of_products,
    zero_if_weightless,
)
from ._rows import elements_of, rows_of


@public
def kl_divergence(
    log_predictions: ArrayLike, targets: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> jax.Array:
    r"""KL divergence of targets from log-predictions: ``[..., classes], [..., classes] -> [...]``.

    .. math:: \sum_j t_j (\log t_j - \ell_j)

    Args:
      log_predictions: :math:`\ell`, logarithms of probabilities, ``[..., classes]``.
      targets: :math:`t`, probabilities of the same shape, one-hot integers or booleans, too, or
        floating-point ``[classes]`` for every example.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `log_predictions` or of the examples: what counts.

    Returns:
      ``[...]`` in nats, float32 or float64. It is the exact function of the numbers given, and may
      be negative where these do not sum to one. From logits, `softmax_kl_divergence` never is.

    Note:
      :math:`t_j = 0` contributes 0, with the gradient 0, also where :math:`\ell_j` is -inf; there
      any other target gives +inf. A negative target gives NaN.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> print(jxent.kl_divergence(jnp.log(jnp.array([0.25, 0.25, 0.5])), [0.5, 0.5, 0.0]))
      0.6931
    """
    rows, log_q = rows_of("log_predictions", log_predictions, axis, where, targets=targets)
    t = rows.distributions("targets", targets, log_q, "negative_log_likelihood")
    return rows.zero_masked(_kl(log_q, t))


@public
def kl_divergence_with_log_targets(
    log_predictions: ArrayLike,
    log_targets: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""KL divergence of log-targets and -predictions: ``[..., classes], [..., classes] -> [...]``.

    .. math:: \sum_j e^{\tau_j} (\tau_j - \ell_j)

    Args:
      log_predictions: :math:`\ell`, logarithms of probabilities, ``[..., classes]``.
      log_targets: :math:`\tau`, the same shape, or ``[classes]`` for every example.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `log_predictions` or of the examples: what counts.

    Returns:
      ``[...]`` in nats, float32 or float64. It is the exact function of the numbers given, and may
      be negative where these do not sum to one. From logits, `softmax_kl_divergence` never is.

    Note:
      A target of -inf contributes 0, with the gradient 0. A prediction of -inf under any other
      target gives +inf.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> half, quarter = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
      >>> print(jxent.kl_divergence_with_log_targets(quarter, half))
      0.1438
    """
    rows, log_q = rows_of("log_predictions", log_predictions, axis, where, log_targets=log_targets)
    log_p = rows.beside("log_targets", log_targets)
    return rows.zero_masked(_kl_of_logs(log_q, log_p))


@public
def generalized_kl_divergence(
    log_predictions: ArrayLike, targets: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None
) -> jax.Array:
    r"""KL divergence of measures of any sum: ``[..., classes], [..., classes] -> [...]``.

    .. math:: \sum_j \left[t_j (\log t_j - \ell_j) - t_j + e^{\ell_j}\right]

    computed term by term, none of them negative.

    Args:
      log_predictions: :math:`\ell`, logarithms of non-negative numbers, ``[..., classes]``.
      targets: :math:`t`, non-negative, of the same shape, integers or booleans, too, or
        floating-point ``[classes]`` for every example.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `log_predictions` or of the examples: what counts.

    Returns:
      ``[...]`` in nats, never negative, float32 or float64.

    Note:
      :math:`t_j = 0` contributes :math:`e^{\ell_j}`, with the gradient 0 for the target. A
      prediction of -inf under a positive target gives +inf. A negative target gives NaN.

    References:
      L. M. Bregman, `The relaxation method of finding the common point of convex sets
      <https://doi.org/10.1016/0041-5553(67)90040-7>`_, 1967.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> print(jxent.generalized_kl_divergence(jnp.log(jnp.array([0.5, 1.0])), [1.0, 1.0]))
      0.1931
    """
    rows, log_q = rows_of("log_predictions", log_predictions, axis, where, targets=targets)
    t = rows.distributions("targets", targets, log_q, "jax.nn.one_hot")
    return rows.zero_masked(_generalized_kl(log_q, t))


@public
def sampled_kl_divergence(
    log_probs: ArrayLike, reference_log_probs: ArrayLike, where: ArrayLike | None = None
) -> jax.Array:
    r"""KL divergence estimated from samples of a policy: ``[...], [...] -> [...]``.

    .. math:: e^d - 1 - d, \qquad d = \log q - \log p

    for a sample of p. Its mean over samples is :math:`D(p \,\|\, q)`, and no sample's term is
    negative, as that of :math:`-d` is for half of them.

    Args:
      log_probs: :math:`\log p`, floating-point, of any shape: the policy, which sampled.
      reference_log_probs: :math:`\log q`, of the same shape, or one number for every sample.
      where: boolean, of the shape of `log_probs`: which samples count.

    Returns:
      The shape of `log_probs`, in nats, never negative, float32 or float64. Both arguments are
      differentiated.

    Note:
      Exact however small d is, in the gradient :math:`e^d - 1`, too. But log-probabilities that
      were rounded before they are subtracted err by more than small divergences: from logits,
      `softmax_kl_divergence` and `softmax_log_ratio_with_integer_labels` do not. Beyond the range
      of the exponential it is +inf; it is 0 where both are -inf. What `where` leaves out is 0 with
      the gradient 0.

    References:
      J. Schulman, `Approximating KL Divergence <http://joschu.net/blog/kl-approx.html>`_, 2020: k3.

    Example:
      >>> import jxent
      >>> print(jxent.sampled_kl_divergence([-1.0, -1.0], [-1.5, -2.0]))
      [0.1065 0.3679]
    """
    samples, log_p = elements_of(
        "log_probs", log_probs, where, reference_log_probs=reference_log_probs
    )
    log_q = elementwise("reference_log_probs", reference_log_probs, "log_probs", log_p)
    log_p, log_q = (samples.fill_elements(x, 0.0) for x in (log_p, log_q))
    return samples.zero_masked(_sampled_kl(log_p, log_q))


# d(e^d - 1 - d) = (e^d - 1) (d log q - d log p).
@loss_with_partials(
    lambda log_p, log_q: -expm1(difference(log_q, log_p)),
    lambda log_p, log_q: expm1(difference(log_q, log_p)),
)
def _sampled_kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    d = difference(log_q, log_p)
    near, infinite = jnp.abs(d) < 1, d == jnp.inf
    close, far = jnp.where(near, d, 0.0), jnp.where(near | infinite, -1.0, d)
    # Near agreement the two terms cancel, and `excess(-d)` is their difference times e^-d.
    divergence = jnp.where(near, exp(close) * excess(-close), expm1(far) - far)
    return jnp.where(infinite, jnp.inf, divergence)


# d(t (log t - l)) = (log t - l + 1) dt - t dl, and 0 where t = 0.
@loss_with_partials(
    lambda ell, t: -t,
    lambda ell, t: replaced_where(t == 0, _log_excess(ell, t) + 1, 0.0),
    axis=(-1,),
)
def _kl(ell: jax.Array, t: jax.Array) -> jax.Array:
    return sum_of_products(t, zero_if_weightless(t, _log_excess(ell, t)))


def _log_excess(ell: jax.Array, t: jax.Array) -> jax.Array:
    """``log t - l``, and -l where t = 0."""
    return log(jnp.where(t == 0, 1.0, t)) - ell


# d(e^τ (τ - l)) = e^τ (τ - l + 1) dτ - e^τ dl.
@loss_with_partials(
    lambda ell, tau: -exp(tau),
    lambda ell, tau: _of_log_target(_difference(ell, tau) + 1, tau),
    axis=(-1,),
)
def _kl_of_logs(ell: jax.Array, tau: jax.Array) -> jax.Array:
    difference = _difference(ell, tau)
    return sum_of_products(_exp_beside(difference, tau), difference)


def _of_log_target(x: jax.Array, tau: jax.Array) -> jax.Array:
    return _exp_beside(x, tau) * x


def _difference(ell: jax.Array, tau: jax.Array) -> jax.Array:
    """``τ - l``, but 0 where τ is -inf: the class has no weight there."""
    weightless = tau == -jnp.inf
    return jnp.where(weightless, 0.0, tau - jnp.where(weightless, 0.0, ell))


def _exp_beside(x: jax.Array, tau: jax.Array) -> jax.Array:
    """``e^τ``, but 1 where its product with x would be 0 times infinity."""
    overflows = tau > math.log(np.finfo(tau.dtype).max)
    return exp(jnp.where((x == 0) & overflows | jnp.isinf(x), 0.0, tau))


# d(t (log t - l) - t + e^l) = (log t - l) dt + (e^l - t) dl, and 0 for t where t = 0.
def _generalized_kl_to_log(ell: jax.Array, t: jax.Array) -> jax.Array:
    # Near agreement e^l - t is -e^l expm1(log t - l), if the logarithms are small themselves:
    # otherwise their difference has lost more bits than that of e^l and t.
    size = exp(ell)
    near = (jnp.abs(t - 1) < 0.25) & (jnp.abs(ell) < 0.5)
    u = plain_log1p(jnp.where(near, t - 1, 0.0)) - jnp.where(near, ell, 0.0)
    return jnp.where(near, -size * expm1(u), size - t)


@loss_with_partials(
    _generalized_kl_to_log,
    lambda ell, t: replaced_where(t == 0, _log_excess(ell, t), 0.0),
    axis=(-1,),
)
def _generalized_kl(ell: jax.Array, t: jax.Array) -> jax.Array:
    u = _log_of_quotient(ell, t)
    near = u < 1
    of_near = excess(jnp.where(near, u, 0.0))
    far = jnp.where(near, 1.0, u)
    of_far = t * (far + expm1(-far))
    return jnp.sum(jnp.where(near, _exp_beside(of_near, ell) * of_near, of_far), axis=-1)


def _log_of_quotient(ell: jax.Array, t: jax.Array) -> jax.Array:
    """``log t - l``: -inf where t = 0, and 0 where e^l is 0 as well."""
    return jnp.where(
        t == 0, jnp.where(ell == -jnp.inf, 0.0, -jnp.inf), log(jnp.where(t == 0, 1.0, t)) - ell
    )
