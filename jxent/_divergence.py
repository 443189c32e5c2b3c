r"""Kullback-Leibler and Jensen-Shannon divergence of softmax distributions."""

import operator
from typing import Any

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, Axis, scalar
from ._autodiff import with_gradient
from ._dtypes import computing_dtype
from ._elementary import expm1
from ._mask import Mask
from ._numerics import (
    divergence_terms,
    excess,
    mixture_ratio,
    sums_of_two,
    weighted_mixture_ratio,
    zero_if_weightless,
)
from ._rows import rows_of
from ._sharding import AxisName, MeshAxes, sum_classes
from ._statistics.pairs import Pair, known_of_both, log_ratio


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
        ``[n]`` beside ``[n, n]`` means the examples, not the classes.
      class_axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, over which the
        classes are spread: each shard has a slice of them, in their order.

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
    rows, z_q = rows_of(
        "logits", logits, axis, where, class_axis_name, absent=None, target_logits=target_logits
    )
    z_p = rows.beside("target_logits", target_logits, absent=None)
    return rows.zero_masked(_softmax_kl(rows.mesh_axes, z_q, z_p, rows.mask))


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
        ``[n]`` beside ``[n, n]`` means the examples, not the classes.
      weight: :math:`w` in [0, 1], that of the target in the mixture; at both ends the divergence is
        0, and near them :math:`w D(p \,\|\, q)` and :math:`(1 - w) D(q \,\|\, p)`.

    Returns:
      ``[...]`` in nats, between 0 and log 2, float32 or float64. Logits and `weight` are
      differentiated.

    Raises:
      TypeError: logits are not floating-point, or `where` not boolean.
      ValueError: a shape or `axis` does not fit, there is no class, or `weight` lies outside
        [0, 1].

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
        return rows.zero_masked(_softmax_js(z_q, z_p, rows.mask))
    w = scalar("weight", weight, jnp.zeros((), computing_dtype(z_q, z_p)))
    return rows.zero_masked(_softmax_js(z_q, z_p, rows.mask, w, 1 - w))


def _softmax_kl_fwd(
    axes: MeshAxes, logits: jax.Array, target_logits: jax.Array, mask: Mask
) -> tuple[jax.Array, Any]:
    known = known_of_both(axes, target_logits, logits, mask)
    pair = Pair.after(known, target_logits, logits, mask)
    t = log_ratio(axes, *pair)
    divergence = sum_classes(divergence_terms(t, *pair.probabilities(axes)), axes)[..., 0]
    # Without the barrier XLA would join this sum with one over the examples that follows, and where
    # the gradient needs both, write the terms to memory: on an H100 4 passes of bfloat16 more.
    divergence = jax.lax.optimization_barrier(divergence)
    return divergence, (*known, divergence)


# With D = sum_j p_j t_j and t = log p - log q, the gradient is q_j - p_j = -q_j expm1(t_j) for
# the logits of q, and p_j (t_j - D) for those of p.
def _softmax_kl_bwd(
    axes: MeshAxes,
    cotangent: jax.Array,
    logits: jax.Array,
    target_logits: jax.Array,
    mask: Mask,
    *known: Any,
) -> tuple[jax.Array | None, ...]:
    pair, divergence = Pair.after(known, target_logits, logits, mask), known[-1]
    t = log_ratio(axes, *pair)
    p, q = pair.probabilities(axes)
    near = t < 1
    to_q = jnp.where(near, -q * expm1(jnp.where(near, t, 0.0)), q - p)
    to_p = p * (jnp.where(t == -jnp.inf, 0.0, t) - divergence[..., None])
    to_both = (mask.fill(cotangent[..., None] * x, 0.0, 0.0) for x in (to_q, to_p))
    return *to_both, None


_softmax_kl = with_gradient(_softmax_kl_fwd, _softmax_kl_bwd, (True, True, True))


def _shares(t: jax.Array, *weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``u = log(p/m)`` and ``v = log(q/m)`` for the mixture m, by default of halves."""
    if not weights:
        return mixture_ratio(t), mixture_ratio(-t)
    of_p, of_q = weights
    return weighted_mixture_ratio(t, of_p, of_q), weighted_mixture_ratio(-t, of_q, of_p)


def _softmax_js_fwd(
    logits: jax.Array, target_logits: jax.Array, mask: Mask, *weights: jax.Array
) -> tuple[jax.Array, Any]:
    known = known_of_both((), target_logits, logits, mask)
    pair = Pair.after(known, target_logits, logits, mask)
    of_p, of_q = weights or (0.5, 0.5)
    p, q = pair.probabilities(())
    m = of_p * p + of_q * q
    shares = _shares(log_ratio((), *pair), *weights)
    # With halves no t is above log 2, and the terms need not look at the probabilities again.
    pairs = zip(shares, (p, q), strict=True)
    terms = [divergence_terms(t, x, m) if weights else m * excess(t) for t, x in pairs]
    from_p, from_q = (x[..., 0] for x in sums_of_two(*terms))
    costs = map(zero_if_weightless, weights, (from_p, from_q)) if weights else (from_p, from_q)
    divergence = sum(map(operator.mul, (of_p, of_q), costs))
    return divergence, (*known, from_p, from_q)


# With u = log(p/m), v = log(q/m) the divergence is the sum over j of w p_j u_j + (1 - w) q_j v_j.
# Since w p/m + (1 - w) q/m = 1, and m sums to one, the terms from dm add to nothing:
# w p_j (u_j - sum_i p_i u_i) for the logits of p, likewise for q, and D(p, m) - D(q, m) for w. Only
# with a weight of 0 a divergence from the mixture is infinite: it then counts as 0.
def _softmax_js_bwd(
    cotangent: jax.Array, logits: jax.Array, target_logits: jax.Array, mask: Mask, *given: Any
) -> tuple[jax.Array | None, ...]:
    *weights, of_p, of_q, change, from_p, from_q = given
    pair = Pair.after((of_p, of_q, change, from_p, from_q), target_logits, logits, mask)
    p, q = pair.probabilities(())
    ratios = _shares(log_ratio((), *pair), *weights)
    u, v, from_p, from_q = (jnp.where(jnp.isinf(x), 0.0, x) for x in (*ratios, from_p, from_q))

    def gradient(
        weight: Any, share: jax.Array, ratio: jax.Array, divergence: jax.Array
    ) -> jax.Array:
        gradient: jax.Array = cotangent[..., None] * weight * share
        return mask.fill(gradient * (ratio - divergence[..., None]), 0.0, 0.0)

    w_p, w_q = weights or (0.5, 0.5)
    to_logits = gradient(w_q, q, v, from_q), gradient(w_p, p, u, from_p)
    if not weights:
        return *to_logits, None
    return *to_logits, None, jnp.sum(cotangent * from_p), jnp.sum(cotangent * from_q)


_softmax_js = with_gradient(_softmax_js_fwd, _softmax_js_bwd)
