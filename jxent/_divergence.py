r"""Kullback-Leibler and Jensen-Shannon divergence of softmax distributions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, Axis
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
    weighted,
    weighted_cost,
    weighted_mixture_ratio,
    zero_if_weightless,
)
from ._rows import Mask, Rows, is_label, rows_of
from ._sharding import (
    AxisName,
    explicit_sharding,
    psum_classes,
    resharded,
    sum_classes,
)
from ._statistics import Statistics
from ._statistics.row import Row, nan_if_out_of_range, plain_surprisal


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
    rows, *pair = _two_rows(logits, target_logits, axis, where, class_axis_name)
    return rows.zero_masked(_softmax_kl(*pair, rows.mask))


@public
def softmax_jensen_shannon_divergence(
    logits: ArrayLike,
    target_logits: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    weight: ArrayLike = 0.5,
    class_axis_name: AxisName | None = None,
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
      class_axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, over which the
        classes are spread: each shard has a slice of them, in their order.

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
    rows, *pair = _two_rows(logits, target_logits, axis, where, class_axis_name)
    if isinstance(weight, float) and weight == 0.5:
        return rows.zero_masked(_softmax_js(*pair, rows.mask, None, None))
    dtype = computing_dtype(*(row.z for row in pair))
    w = rows.scalar("weight", weight, jnp.zeros((), dtype))
    return rows.zero_masked(_softmax_js(*pair, rows.mask, w, 1 - w))


@public
def softmax_log_ratio_with_integer_labels(
    logits: ArrayLike,
    target_logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    ignore_index: int | None = None,
    class_axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Log-ratio of softmaxes at a label: ``[..., classes], [..., classes], [...] -> [...]``.

    .. math::
        \log p_y - \log q_y, \qquad p = \operatorname{softmax}(\text{target_logits}), \;
        q = \operatorname{softmax}(\text{logits})

    computed from the differences of the logits, so that it is exact for distributions that hardly
    differ. A difference of two logarithms has the rounding errors of both.

    Args:
      logits: floating-point array ``[..., classes]``.
      target_logits: the same shape, or ``[classes]`` for every example.
      labels: integers ``[...]`` in [0, classes), or one for every example.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.
      ignore_index: the label of examples that do not count.
      class_axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, over which the
        classes are spread: each shard has a slice of them, in their order, and labels number all.

    Returns:
      ``[...]`` in nats, float32 or float64. Both rows of logits are differentiated. With a policy
      as the target and the one that sampled as the prediction it is the logarithm of PPO's ratio.

    Note:
      A label whose logit is -inf gives ±inf, or NaN if it is so in both. Ignored examples, and
      those with no class left by `where`, give 0 with the gradient 0. A label outside [0, classes),
      and a softmax without a limit (NaN, every logit -inf, two +inf), gives NaN.

    References:
      J. Schulman et al., `Proximal Policy Optimization <https://arxiv.org/abs/1707.06347>`_, 2017.

    Example:
      >>> import jxent
      >>> print(jxent.softmax_log_ratio_with_integer_labels([0.0, 0.0], [0.0, 1e-6], 0))
      -5.000001e-07
    """
    rows, *pair = _two_rows(logits, target_logits, axis, where, class_axis_name, labels=labels)
    rows, y = rows.labels(labels, ignore_index)
    return rows.zero_masked(_label_log_ratio(*pair, rows.mask, y))


def _two_rows(
    logits: ArrayLike,
    target_logits: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    class_axis_name: AxisName | None,
    **beside: ArrayLike,
) -> tuple[Rows, Row, Row]:
    """The rows of q and of p, unfilled."""
    beside = {"target_logits": target_logits} | beside
    rows, z_q = rows_of("logits", logits, axis, where, class_axis_name, absent=None, **beside)
    z_p = rows.beside("target_logits", target_logits, absent=None)
    return rows, Row(z_q, mesh_axes=rows.mesh_axes), Row(z_p, mesh_axes=rows.mesh_axes)


# ---------------------------------------- Two rows beside each other
# The logarithm of the ratio of p and q, class by class. With d_j the difference of the logits less
# that of the two maxima,
#
#     log p_j - log q_j = d_j - log(1 + S), 1 + S = (1 + s_p)/(1 + s_q), S = sum_j q_j expm1(d_j)
#
# where q_j e^d_j = (1 + S) p_j. A shift that the logits share has vanished from all of these, and
# where p and q agree d and S are small without having been differences of anything large.


def _known_of_both(
    row_p: Row, row_q: Row, mask: Mask, labels: jax.Array | None = None
) -> tuple[Statistics, Statistics, jax.Array]:
    """The statistics of p, those of q, and S as ``[..., 1]``, from logits as they were given."""
    dtype = computing_dtype(row_p.z, row_q.z)
    of_p, of_q = (row.statistics(mask, dtype, labels=labels) for row in (row_p, row_q))
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
    to_p = -weighted_cost(p, divergence[..., None] - t)
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


# ---------------------------------------- The ratio at a label


# d(log p_y - log q_y) = dz_y - sum_j p_j dz_j, less the same for q.
def _label_log_ratio_bwd(
    cotangent: jax.Array, row_q: Row, row_p: Row, mask: Mask, labels: jax.Array, *known: Any
) -> tuple[Any, ...]:
    is_named = is_label(labels, row_q.z.shape[-1], row_q.mesh_axes)
    is_named = resharded(is_named, explicit_sharding(row_q.z))
    of_p, of_q, _ = _rows_after(known, row_p, row_q, mask)
    cotangent = cotangent[..., None] * _nan_if_undefined(row_q, labels, *known[:2])

    def gradient(row: Row) -> jax.Array:
        to_logits = jnp.where(is_named, row.complement(), -row.probability())
        return mask.fill(cotangent * to_logits, 0.0, 0.0)

    return row_q.gradient(-gradient(of_q)), row_p.gradient(gradient(of_p)), None, None


@with_gradient(_label_log_ratio_bwd, (True, True, True, False), keeps=True)
def _label_log_ratio(
    row_q: Row, row_p: Row, mask: Mask, labels: jax.Array
) -> tuple[jax.Array, Any]:
    of_p, of_q, change = known = _known_of_both(row_p, row_q, mask, labels)
    ratio = _log_ratio(_at_label(of_p), _at_label(of_q), change)
    return (ratio * _nan_if_undefined(row_q, labels, of_p, of_q))[..., 0], known


def _at_label(stats: Statistics) -> Row:
    """The label's logit as a row of one class, ``[..., 1]``."""
    return Row(stats.label_logit, stats)


def _nan_if_undefined(row: Row, labels: jax.Array, of_p: Statistics, of_q: Statistics) -> jax.Array:
    """``[..., 1]``: a factor that is NaN where there is no ratio at the label, else 1."""
    undefined = jnp.isnan(of_p.sumexp_rest) | jnp.isnan(of_q.sumexp_rest)
    undefined |= ~_at_label(of_p).exists & ~_at_label(of_q).exists
    z = row.z.astype(of_p.maximum.dtype)
    return nan_where(undefined, nan_if_out_of_range(z, labels, row.mesh_axes))


# ---------------------------------------- Jensen-Shannon


def _mixture_ratios(t: jax.Array, of_p: Any, of_q: Any) -> tuple[jax.Array, jax.Array]:
    """``u = log(p/m)`` and ``v = log(q/m)`` for the mixture m, by default of halves."""
    if of_p is None:
        return mixture_ratio(t), mixture_ratio(-t)
    return weighted_mixture_ratio(t, of_p, of_q), weighted_mixture_ratio(-t, of_q, of_p)


# With u = log(p/m), v = log(q/m) the divergence is the sum over j of w p_j u_j + (1 - w) q_j v_j.
# Since w p/m + (1 - w) q/m = 1, and m sums to one, the terms from dm add to nothing:
# w p_j (u_j - sum_i p_i u_i) for the logits of p, likewise for q, and D(p, m) - D(q, m) for w. Only
# with a weight of 0 a divergence from the mixture is infinite: it then counts as 0.
def _softmax_js_bwd(
    cotangent: jax.Array, row_q: Row, row_p: Row, mask: Mask, w_p: Any, w_q: Any, *known: Any
) -> tuple[Any, ...]:
    rows = _rows_after(known, row_p, row_q, mask)
    p, q = (row.probability() for row in rows[:2])
    ratios = _mixture_ratios(_log_ratio(*rows), w_p, w_q)
    u, v, from_p, from_q = (jnp.where(jnp.isinf(x), 0.0, x) for x in (*ratios, *known[-2:]))

    def gradient(
        weight: Any, share: jax.Array, ratio: jax.Array, divergence: jax.Array
    ) -> jax.Array:
        factor = weight * share
        cost = zero_if_weightless(factor, divergence[..., None] - ratio)
        return mask.fill(-cotangent[..., None] * weighted(factor, cost), 0.0, 0.0)

    half = w_p is None
    to_q = gradient(0.5 if half else w_q, q, v, from_q)
    to_p = gradient(0.5 if half else w_p, p, u, from_p)
    to_weights = (None if half else jnp.sum(cotangent * x) for x in (from_p, from_q))
    return row_q.gradient(to_q), row_p.gradient(to_p), None, *to_weights


@with_gradient(_softmax_js_bwd, (True, True, True, False, False), keeps=True)
def _softmax_js(
    row_q: Row, row_p: Row, mask: Mask, w_p: jax.Array | None, w_q: jax.Array | None
) -> tuple[jax.Array, Any]:
    known = _known_of_both(row_p, row_q, mask)
    rows = _rows_after(known, row_p, row_q, mask)
    half = w_p is None
    of_p: Any = 0.5 if half else w_p
    of_q: Any = 0.5 if half else w_q
    p, q = (row.probability() for row in rows[:2])
    m = of_p * p + of_q * q
    ratios = _mixture_ratios(_log_ratio(*rows), w_p, w_q)
    pairs = zip(ratios, (p, q), strict=True)
    if half:  # No ratio is above log 2, and the terms need not look at the probabilities again.
        terms = [m * excess(t) for t in ratios]
    else:  # Where a probability is 0 the tangent of its ratio may overflow.
        terms = [divergence_terms(jnp.where(x == 0, -jnp.inf, t), x, m) for t, x in pairs]
    from_p, from_q = (psum_classes(x, row_q.mesh_axes)[..., 0] for x in sums_of_two(*terms))
    costs = (from_p, from_q)
    if not half:
        costs = zero_if_weightless(of_p, from_p), zero_if_weightless(of_q, from_q)
    return of_p * costs[0] + of_q * costs[1], (*known, from_p, from_q)
