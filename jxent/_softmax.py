r"""Softmax, its logarithm, its normaliser and its entropy, each exact to the last bits."""

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, Axis
from ._autodiff import with_gradient
from ._dtypes import upcast
from ._mask import Mask
from ._rows import rows_of
from ._sharding import AxisName, MeshAxes
from ._statistics import Statistics
from ._statistics.primitive import statistics
from ._statistics.surprisals import (
    finite_surprisal,
    probability,
    row_entropy,
    surprisal,
    surprisals,
    to_logits_of_probabilities,
    to_logits_of_surprisals,
)


def logsumexp(logits: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> jax.Array:
    r"""Logarithm of the sum of exponentials: ``[..., classes] -> [...]``.

    .. math:: \operatorname{lse}(z) = \log \sum_j e^{z_j} = m + \operatorname{log1p}(s)

    with :math:`m` the maximum and :math:`s` the sum of :math:`e^{z_j - m}` over the others.

    Args:
      logits: floating-point array ``[..., classes]``.
      axis: the class axis, a tuple of axes, or None for all of them, which is the default of
        `jax.nn.logsumexp`.
      where: boolean, of the shape of `logits` or of the examples: what counts.
        ``[n]`` beside ``[n, n]`` means the examples, not the classes.

    Returns:
      ``[...]`` in nats, float32 or float64. Its gradient is ``softmax(logits)``.

    Raises:
      TypeError: `logits` is not floating-point, or `where` not boolean.
      ValueError: a shape or `axis` does not fit, or there is no class.

    Note:
      Classes at -inf count for nothing. A row of nothing but these, or with no class left by
      `where`, gives -inf; a +inf logit gives +inf, NaN gives NaN. The gradient is NaN where
      softmax has no limit, as in a row of nothing but -inf: ``where=logits > -jnp.inf`` gives
      such a row the gradient 0.

    References:
      P. Blanchard, D. J. Higham, N. J. Higham, `Accurately computing the log-sum-exp and
      softmax functions <https://doi.org/10.1093/imanum/draa038>`_, 2021.

    Example:
      >>> import jxent
      >>> print(jxent.logsumexp([1000.0, 1001.0]))
      1001.3133
    """
    rows, z = rows_of("logits", logits, axis, where, absent=None)
    normalizer = surprisals((), z, None, None, rows.mask).normalizer
    return normalizer if rows.counted is None else jnp.where(rows.counted, normalizer, -jnp.inf)


def log_softmax(logits: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> jax.Array:
    r"""Logarithm of the softmax probabilities: ``[..., classes] -> [..., classes]``.

    .. math:: \log p_j = -\bigl((m - z_j) + \operatorname{log1p}(s)\bigr)

    a sum of terms of one sign: exact also for a class that is nearly certain.

    Args:
      logits: floating-point array ``[..., classes]``.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.
        ``[n]`` beside ``[n, n]`` means the examples, not the classes.

    Returns:
      The shape of `logits`, in nats, float32 or float64.

    Raises:
      TypeError: `logits` is not floating-point, or `where` not boolean.
      ValueError: a shape or `axis` does not fit, or there is no class.

    Note:
      -inf for a class at -inf and for what `where` leaves out, with no gradient there. One +inf
      logit takes all the probability. Where softmax has no limit (NaN, every logit -inf, two
      +inf) the row is NaN.

    References:
      P. Blanchard, D. J. Higham, N. J. Higham, `Accurately computing the log-sum-exp and
      softmax functions <https://doi.org/10.1093/imanum/draa038>`_, 2021.

    Example:
      >>> import jxent
      >>> print(jxent.log_softmax([20.0, 0.0]))
      [-2.0612e-09 -2.0000e+01]
    """
    rows, z = rows_of("logits", logits, axis, where, absent=None)
    return rows.to_user_layout(rows.fill_masked(_log_softmax(z, rows.mask), -jnp.inf, -jnp.inf))


def softmax(logits: ArrayLike, axis: Axis = -1, where: ArrayLike | None = None) -> jax.Array:
    r"""Softmax probabilities: ``[..., classes] -> [..., classes]``.

    .. math:: p_j = \frac{e^{z_j}}{\sum_i e^{z_i}} = \frac{e^{z_j - m}}{1 + s}

    Args:
      logits: floating-point array ``[..., classes]``.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.
        ``[n]`` beside ``[n, n]`` means the examples, not the classes.

    Returns:
      The shape of `logits`, float32 or float64.

    Raises:
      TypeError: `logits` is not floating-point, or `where` not boolean.
      ValueError: a shape or `axis` does not fit, or there is no class.

    Note:
      0 for a class at -inf and for what `where` leaves out. One +inf logit takes all the
      probability. Where softmax has no limit (NaN, every logit -inf, two +inf) the row is NaN.

    References:
      P. Blanchard, D. J. Higham, N. J. Higham, `Accurately computing the log-sum-exp and
      softmax functions <https://doi.org/10.1093/imanum/draa038>`_, 2021.

    Example:
      >>> import jxent
      >>> print(jxent.softmax([1000.0, 1000.0]))
      [0.5 0.5]
    """
    rows, z = rows_of("logits", logits, axis, where, absent=None)
    return rows.to_user_layout(rows.fill_masked(_softmax(z, rows.mask), 0.0, 0.0))


def softmax_entropy(
    logits: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    class_axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Entropy of the softmax distribution: ``[..., classes] -> [...]``.

    .. math:: H(p) = -\sum_j p_j \log p_j, \qquad p = \operatorname{softmax}(z)

    Args:
      logits: floating-point array ``[..., classes]``.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.
        ``[n]`` beside ``[n, n]`` means the examples, not the classes.
      class_axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, over which the
        classes are spread: each shard has a slice of them, in their order.

    Returns:
      ``[...]`` in nats, between 0 and log(classes), float32 or float64.

    Raises:
      TypeError: `logits` is not floating-point, or `where` not boolean.
      ValueError: a shape or `axis` does not fit, or there is no class.

    Note:
      A class at -inf does not exist. An example with no class left by `where` has the entropy 0
      and the gradient 0. Where softmax has no limit (NaN, every logit -inf, two +inf) it is NaN.

    References:
      C. E. Shannon, `A Mathematical Theory of Communication
      <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>`_, 1948.

    Example:
      >>> import jxent
      >>> print(jxent.softmax_entropy([[0.0, 0.0], [40.0, 0.0]]))
      [6.9315e-01 1.7418e-16]
    """
    rows, z = rows_of("logits", logits, axis, where, class_axis_name, absent=None)
    return rows.zero_masked(_softmax_entropy(rows.mesh_axes, z, rows.mask))


def _filled(logits: jax.Array, mask: Mask) -> jax.Array:
    z: jax.Array
    (z,) = upcast(mask.fill_logits(logits))
    return z


def _log_softmax_fwd(logits: jax.Array, mask: Mask) -> tuple[jax.Array, tuple[Statistics]]:
    z = _filled(logits, mask)
    stats = statistics((), z.dtype, logits, mask=mask)
    return -surprisal(z, stats), (stats,)


# d log p_j = dz_j - sum_i p_i dz_i, so with the cotangent c the gradient is c_j - p_j sum_i c_i
# = c_j (1 - p_j) - p_j sum_{i≠j} c_i.
def _log_softmax_bwd(
    cotangent: jax.Array, logits: jax.Array, mask: Mask, stats: Statistics
) -> tuple[jax.Array, None]:
    gradient = -to_logits_of_surprisals((), cotangent, _filled(logits, mask), stats)
    return mask.fill(gradient, 0.0, 0.0), None


_log_softmax = with_gradient(_log_softmax_fwd, _log_softmax_bwd)


def _softmax_fwd(logits: jax.Array, mask: Mask) -> tuple[jax.Array, tuple[Statistics]]:
    z = _filled(logits, mask)
    stats = statistics((), z.dtype, logits, mask=mask)
    return probability((), z, stats), (stats,)


# dp_j = p_j (dz_j - sum_i p_i dz_i), and with the cotangent c the gradient is
# p_j (c_j - sum_i p_i c_i) = p_j (c_j (1 - p_j) - sum_{i≠j} p_i c_i).
def _softmax_bwd(
    cotangent: jax.Array, logits: jax.Array, mask: Mask, stats: Statistics
) -> tuple[jax.Array, None]:
    gradient = to_logits_of_probabilities((), cotangent, _filled(logits, mask), stats)
    return mask.fill(gradient, 0.0, 0.0), None


_softmax = with_gradient(_softmax_fwd, _softmax_bwd)


def _softmax_entropy_fwd(
    axes: MeshAxes, logits: jax.Array, mask: Mask
) -> tuple[jax.Array, tuple[Statistics]]:
    z = _filled(logits, mask)
    stats = statistics(axes, z.dtype, logits, exp_gap=True, mask=mask)
    return row_entropy(axes, z, stats)[..., 0], (stats,)


# dH = -sum_j (1 + log p_j) dp_j = sum_j p_j (-log p_j - H) dz_j.
def _softmax_entropy_bwd(
    axes: MeshAxes, cotangent: jax.Array, logits: jax.Array, mask: Mask, stats: Statistics
) -> tuple[jax.Array, None]:
    z = _filled(logits, mask)
    p, n, h = (f(axes, z, stats) for f in (probability, finite_surprisal, row_entropy))
    return mask.fill(cotangent[..., None] * p * (n - h), 0.0, 0.0), None


_softmax_entropy = with_gradient(_softmax_entropy_fwd, _softmax_entropy_bwd, (True, True))
