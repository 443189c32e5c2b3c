r"""Kullback-Leibler and Jensen-Shannon divergence of softmax distributions."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, Axis, scalar
from ._autodiff import public, with_gradient
from ._dtypes import computing_dtype
from ._numerics import (
    divergence_terms,
    divide,
    excess,
    expm1,
    log1p,
    mixture_ratio,
    nan_where,
    one_sided_log_quotient,
    sums_of_two,
    two_sum,
    weighted_mixture_ratio,
    zero_if_weightless,
)
from ._rows import Mask, rows_of
from ._sharding import AxisName, sum_classes
from ._statistics import Statistics
from ._statistics.row import Row, plain_surprisal


@public
def softmax_kl_divergence(
    logits: ArrayLike,
    target_logits: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    class_axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Kullback-Leibler divergence of softmaxes: ``[..., classes], [..., classes] -> [...]``.

    .. math::
        D(p \,\|\, q) = \sum_j p_j \log \frac{p_j}{q_j}, \\
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
      class_axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, over which the
        classes are spread: each shard has a slice of them, in their order.

    Returns:
      ``[...]`` in nats, float32 or float64. Both arguments are differentiated.

    Note:
      A class at -inf in both does not exist; at -inf in `logits` alone it makes the divergence
      +inf. An example with no class left by `where` has the divergence 0 and the gradient 0.
      Where a softmax has no limit (NaN, every logit -inf, two +inf) it is NaN.

    Example:
      >>> import jxent
      >>> print(jxent.softmax_kl_divergence([0.0, 0.0], [0.0, 1e-6]))
      1.25e-13
    """
    rows, z_q = rows_of(
        "logits", logits, axis, where, class_axis_name, absent=None, target_logits=target_logits
    )
    z_p = rows.beside("target_logits", target_logits, absent=None)
    row_q, row_p = (Row(z, mesh_axes=rows.mesh_axes) for z in (z_q, z_p))
    return rows.zero_masked(_softmax_kl(row_q, row_p, rows.mask))


@public
def softmax_jensen_shannon_divergence(
    logits: ArrayLike,
    target_logits: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    weight: ArrayLike = 0.5,
) -> jax.Array:
    r"""Jensen-Shannon divergence of softmaxes: ``[..., classes], [..., classes] -> [...]``.

    .. math::
        w D(p \,\|\, m) + (1 - w) D(q \,\|\, m), \qquad m = w p + (1 - w) q, \\
        p = \operatorname{softmax}(\text{target_logits}), \;
        q = \operatorname{softmax}(\text{logits})

    Args:
      logits: floating-point array ``[..., classes]``.
      target_logits: the same shape, or ``[classes]`` for every example.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.
      weight: :math:`w` in [0, 1], that of the target in the mixture; at both ends the divergence is
        0, and near them :math:`w D(p \,\|\, q)` and :math:`(1 - w) D(q \,\|\, p)`.

    Returns:
      ``[...]`` in nats, between 0 and log 2, float32 or float64. Logits and `weight` are
      differentiated.

    Note:
      A class at -inf has the probability 0. An example with no class left by `where` has the
      divergence 0 and the gradient 0. Where a softmax has no limit (NaN, every logit -inf, two
      +inf) it is NaN.

    References:
      J. Lin, `Divergence Measures Based on the Shannon Entropy
      <https://doi.org/10.1109/18.61115>`_, 1991; R. Agarwal et al., `On-Policy Distillation
      <https://arxiv.org/abs/2306.13649>`_, 2024, has other weights.

    Example:
      >>> import jxent
      >>> print(jxent.softmax_jensen_shannon_divergence([0.0, 0.0], [0.0, 1e-6]))
      3.125e-14
    """
    rows, z_q = rows_of("logits", logits, axis, where, absent=None, target_logits=target_logits)
    z_p = rows.beside("target_logits", target_logits, absent=None)
    if isinstance(weight, float) and weight == 0.5:
        return rows.zero_masked(_softmax_js(Row(z_q), Row(z_p), rows.mask))
    w = scalar("weight", weight, jnp.zeros((), computing_dtype(z_q, z_p)))
    return rows.zero_masked(_softmax_js(Row(z_q), Row(z_p), rows.mask, w, 1 - w))


# ---------------------------------------- Two rows beside each other
# The logarithm of the ratio of p and q, class by class. With d_j the difference of the logits less
# that of the two maxima,
#
#     log p_j - log q_j = d_j - log(1 + S), 1 + S = (1 + s_p)/(1 + s_q), S = sum_j q_j expm1(d_j)
#
# where q_j e^d_j = (1 + S) p_j. A shift that the logits share has vanished from all of these, and
# where p and q agree d and S are small without having been differences of anything large.


def _known_of_both(row_p: Row, row_q: Row, mask: Mask) -> tuple[Statistics, Statistics, jax.Array]:
    """The statistics of p, those of q, and S as ``[..., 1]``, from logits as they were given."""
    dtype = computing_dtype(row_p.z, row_q.z)
    of_p, of_q = row_p.statistics(mask, dtype), row_q.statistics(mask, dtype)
    row_p, row_q = row_p.filled(mask, dtype, of_p), row_q.filled(mask, dtype, of_q)
    d = _anchored_difference(row_p, row_q)
    near = row_p.exists & row_q.exists & (jnp.abs(d) < 1)
    p, q = row_p.probability(), row_q.probability()
    far = divide(1 + of_p.sumexp_rest, 1 + of_q.sumexp_rest) * p - q
    terms = jnp.where(near, q * expm1(jnp.where(near, d, 0.0)), far)
    return of_p, of_q, sum_classes(terms, row_p.mesh_axes)


def _rows_after(known: Any, row_p: Row, row_q: Row, mask: Mask) -> tuple[Row, Row, jax.Array]:
    """The rows of p and of q, and S, for the stage that comes after `known`.

    `known` begins with the statistics of p, those of q, and S. Without the barrier XLA:GPU would
    write to memory the arrays that both stages compute from the logits.
    """
    barrier: Any = jax.lax.optimization_barrier
    row_p, row_q, (of_p, of_q, change, *_) = barrier((row_p, row_q, known))
    dtype = computing_dtype(row_p.z, row_q.z)
    return row_p.filled(mask, dtype, of_p), row_q.filled(mask, dtype, of_q), change


def _anchored_difference(row_p: Row, row_q: Row) -> jax.Array:
    """``d_j``, exact also where p and q agree to many digits; 0 where one of them is 0."""
    both = row_p.exists & row_q.exists
    max_p, max_q = row_p.stats.maximum, row_q.stats.maximum
    m_p, m_q = (jnp.where(jnp.isinf(m), 0.0, m) for m in (max_p, max_q))
    a = jnp.where(both & (max_p < jnp.inf), row_p.z, m_p)
    b = jnp.where(both & (max_q < jnp.inf), row_q.z, m_q)
    difference, error = two_sum(a, -b)
    anchor, anchor_error = two_sum(m_p, -m_q)
    return (difference - anchor) + (error - anchor_error)


# d log p_j = dz_j - sum_i p_i dz_i, for p and for q. The rule has the whole derivative for the
# logits, so that S, like the statistics, gets none.
def _log_ratio_bwd(c: jax.Array, row_p: Row, row_q: Row, change: jax.Array) -> tuple[Any, ...]:
    to_p, to_q = -row_p.pull_surprisals(c), row_q.pull_surprisals(c)
    return row_p.gradient(to_p), row_q.gradient(to_q), None


@with_gradient(_log_ratio_bwd, (True, True, False))
def _log_ratio(row_p: Row, row_q: Row, change: jax.Array) -> jax.Array:
    """``log p_j - log q_j``, `change` being S."""
    of_p, of_q = row_p.stats, row_q.stats
    has_p, has_q = row_p.exists, row_q.exists
    both = has_p & has_q
    agreeing = (change > -0.5) & (change < 2)
    close = _anchored_difference(row_p, row_q) - log1p(jnp.where(agreeing, change, 0.0))
    far = plain_surprisal(jnp.where(both, row_q.z, of_q.maximum), of_q) - plain_surprisal(
        jnp.where(both, row_p.z, of_p.maximum), of_p
    )
    undefined = jnp.isnan(of_p.sumexp_rest) | jnp.isnan(of_q.sumexp_rest)
    one_sided = one_sided_log_quotient(has_p, has_q)
    return nan_where(undefined, jnp.where(both, jnp.where(agreeing, close, far), one_sided))


# ---------------------------------------- Kullback-Leibler


# With D = sum_j p_j t_j and t = log p - log q, the gradient is q_j - p_j = -q_j expm1(t_j) for
# the logits of q, and p_j (t_j - D) for those of p.
def _softmax_kl_bwd(
    cotangent: jax.Array, row_q: Row, row_p: Row, mask: Mask, *known: Any
) -> tuple[Row | None, ...]:
    rows, divergence = _rows_after(known, row_p, row_q, mask), known[-1]
    t = _log_ratio(*rows)
    p, q = (row.probability() for row in rows[:2])
    near = t < 1
    to_q = jnp.where(near, -q * expm1(jnp.where(near, t, 0.0)), q - p)
    to_p = p * (jnp.where(t == -jnp.inf, 0.0, t) - divergence[..., None])
    to_q, to_p = (mask.fill(cotangent[..., None] * x, 0.0, 0.0) for x in (to_q, to_p))
    return row_q.gradient(to_q), row_p.gradient(to_p), None


@with_gradient(_softmax_kl_bwd, (True, True, True), keeps=True)
def _softmax_kl(row_q: Row, row_p: Row, mask: Mask) -> tuple[jax.Array, Any]:
    known = _known_of_both(row_p, row_q, mask)
    rows = _rows_after(known, row_p, row_q, mask)
    t = _log_ratio(*rows)
    terms = divergence_terms(t, *(row.probability() for row in rows[:2]))
    # Without the barrier XLA would join this sum with one over the examples that follows, and where
    # the gradient needs both, write the terms to memory: on an H100 4 passes of bfloat16 more.
    divergence = jax.lax.optimization_barrier(sum_classes(terms, row_q.mesh_axes)[..., 0])
    return divergence, (*known, divergence)


# ---------------------------------------- Jensen-Shannon


def _mixture_ratios(t: jax.Array, *weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``u = log(p/m)`` and ``v = log(q/m)`` for the mixture m, by default of halves."""
    if not weights:
        return mixture_ratio(t), mixture_ratio(-t)
    of_p, of_q = weights
    return weighted_mixture_ratio(t, of_p, of_q), weighted_mixture_ratio(-t, of_q, of_p)


# With u = log(p/m), v = log(q/m) the divergence is the sum over j of w p_j u_j + (1 - w) q_j v_j.
# Since w p/m + (1 - w) q/m = 1, and m sums to one, the terms from dm add to nothing:
# w p_j (u_j - sum_i p_i u_i) for the logits of p, likewise for q, and D(p, m) - D(q, m) for w. Only
# with a weight of 0 a divergence from the mixture is infinite: it then counts as 0.
def _softmax_js_bwd(
    cotangent: jax.Array, row_q: Row, row_p: Row, mask: Mask, *given: Any
) -> tuple[Any, ...]:
    *weights, of_p, of_q, change, from_p, from_q = given
    rows = _rows_after((of_p, of_q, change, from_p, from_q), row_p, row_q, mask)
    p, q = (row.probability() for row in rows[:2])
    ratios = _mixture_ratios(_log_ratio(*rows), *weights)
    u, v, from_p, from_q = (jnp.where(jnp.isinf(x), 0.0, x) for x in (*ratios, from_p, from_q))

    def gradient(
        weight: Any, share: jax.Array, ratio: jax.Array, divergence: jax.Array
    ) -> jax.Array:
        gradient: jax.Array = cotangent[..., None] * weight * share
        return mask.fill(gradient * (ratio - divergence[..., None]), 0.0, 0.0)

    w_p, w_q = weights or (0.5, 0.5)
    to_q, to_p = gradient(w_q, q, v, from_q), gradient(w_p, p, u, from_p)
    to_logits = row_q.gradient(to_q), row_p.gradient(to_p)
    if not weights:
        return *to_logits, None
    return *to_logits, None, jnp.sum(cotangent * from_p), jnp.sum(cotangent * from_q)


@with_gradient(_softmax_js_bwd, keeps=True)
def _softmax_js(row_q: Row, row_p: Row, mask: Mask, *weights: jax.Array) -> tuple[jax.Array, Any]:
    known = _known_of_both(row_p, row_q, mask)
    rows = _rows_after(known, row_p, row_q, mask)
    of_p, of_q = weights or (0.5, 0.5)
    p, q = (row.probability() for row in rows[:2])
    m = of_p * p + of_q * q
    ratios = _mixture_ratios(_log_ratio(*rows), *weights)
    # With halves no t is above log 2, and the terms need not look at the probabilities again.
    pairs = zip(ratios, (p, q), strict=True)
    terms = [divergence_terms(t, x, m) if weights else m * excess(t) for t, x in pairs]
    from_p, from_q = (x[..., 0] for x in sums_of_two(*terms))
    costs = map(zero_if_weightless, weights, (from_p, from_q)) if weights else (from_p, from_q)
    divergence = sum(map(operator.mul, (of_p, of_q), costs))
    return divergence, (*known, from_p, from_q)
