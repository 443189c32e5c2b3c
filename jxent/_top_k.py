r"""Divergence from a teacher of whom only the likeliest classes are known."""

from __future__ import annotations

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ._arguments import ArrayLike, Axis, any_array, floating
from ._autodiff import public, with_gradient, with_partials
from ._dtypes import computing_dtype, upcast
from ._numerics import (
    divergence_terms,
    divide,
    exp,
    expm1,
    log,
    log1p,
    log_of_complement,
    nan_where,
    one_sided_log_quotient,
)
from ._rows import EVERYTHING, Mask, Rows, at_label, in_range, is_label, rows_of
from ._sharding import (
    AxisName,
    MeshAxes,
    check_replicated,
    explicit_sharding,
    number_of_shards,
    of_this_shard,
    resharded,
)
from ._statistics import Statistics, shift
from ._statistics.primitive import raw_statistics
from ._statistics.row import Row, plain_surprisal, surprisals


@public
def softmax_kl_divergence_with_top_k_targets(
    logits: ArrayLike,
    target_indices: ArrayLike,
    target_log_probs: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    *,
    class_axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Divergence from a teacher's top k: ``[..., classes], [..., k], [..., k] -> [...]``.

    .. math::
        \sum_{i=1}^k p_i \log \frac{p_i}{q_{y_i}} + p_* \log \frac{p_*}{q_*}, \\
        q = \operatorname{softmax}(\text{logits}), \;
        p_* = 1 - \sum_i p_i, \; q_* = \sum_{j \notin y} q_j

    The classes that the teacher does not name are one more outcome, for both. This is a divergence
    of distributions, and as a sum of non-negative terms it is never negative, as the sum over the
    named classes alone may be.

    Args:
      logits: floating-point array ``[..., classes]``, the prediction.
      target_indices: :math:`y`, integers ``[..., k]`` in [0, classes), different from each other.
      target_log_probs: :math:`\log p_i`, floating-point ``[..., k]``: the teacher's logarithms of
        probabilities among all classes, not among the k.
      axis: the axis of the classes, and of the k.
      where: boolean, of the shape of `logits` or of the examples: what counts.
      class_axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, over which the
        classes are spread: each shard has a slice of them, in their order, and indices number all.

    Returns:
      ``[...]`` in nats, float32 or float64. Logits and log-probabilities are differentiated.

    Note:
      With all classes named it is `softmax_kl_divergence` of these log-probabilities. Probabilities
      that sum to more than 1, by rounding, are taken as they are, and :math:`p_*` is 0. Those that
      sum to more than rounding to 16 bits explains are none, but perhaps logits: NaN. Where no
      other class is possible, as all are named or at -inf, a :math:`p_*` of up to four roundings is
      none; more of it costs +inf, as does a named class at -inf.

      It is zero where the log-probabilities are those of `log_softmax` of the same logits. Where
      both nearly agree it is exact for log-probabilities that are one rounding away: they are
      rounded themselves, and what they leave to the other classes is uncertain by that.

      Where softmax has no limit (NaN, every logit -inf, two +inf) the divergence is NaN.

      A log-probability of -inf means that the class has none, and its index may then be out of
      range, or named twice, as padding. Otherwise such an index gives NaN. Classes that `where`
      leaves out do not exist, and the teacher is renormalised without those of them that it names.

    References:
      S. Kullback, R. A. Leibler, `On Information and Sufficiency
      <https://doi.org/10.1214/aoms/1177729694>`_, 1951, section 4: grouping outcomes loses
      information, and never gains any.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> indices, log_probs = jnp.array([0, 2]), jnp.log(jnp.array([0.5, 0.25]))
      >>> print(
      ...     jxent.softmax_kl_divergence_with_top_k_targets(jnp.zeros(4), indices, log_probs)
      ... )
      0.1733
    """
    beside = {"target_indices": target_indices, "target_log_probs": target_log_probs}
    rows, z = rows_of(
        "logits", logits, _single(axis), where, class_axis_name, absent=None, **beside
    )
    index, log_p = _targets(rows, target_indices, target_log_probs)
    # Rounded in the dtype that was given, the probabilities of all classes sum to nearly 1.
    dtype, axes = computing_dtype(z, log_p), rows.mesh_axes
    classes = z.shape[-1] * number_of_shards(axes)
    rounding, log_p = jnp.asarray(4 * _eps(log_p), dtype), log_p.astype(dtype)
    index, log_p = _by_class(index, log_p)
    first = jnp.ones_like(index[..., :1], bool)
    is_new = jnp.concatenate([first, index[..., 1:] != index[..., :-1]], axis=-1)
    names = is_new & (index >= 0) & (index < classes)
    undefined = jnp.any(~names & (log_p != -jnp.inf), axis=-1)
    log_p = jnp.where(names, log_p, -jnp.inf)
    # A teacher may have computed them in bfloat16, whatever their dtype is now.
    excess = jnp.sum(exp(log_p), axis=-1, keepdims=True) - 1
    undefined |= (excess > 2**-7 * (1 + _nats(log_p)))[..., 0]
    mask = rows.mask
    if mask.classes is not None:
        is_lost = _at(mask.classes.astype(dtype), index, axes) == 0
        log_p, names = _renormalized(log_p, names & is_lost), names & ~is_lost
    # Shares are wanted only of these; the number of classes stands for no class.
    names = names if mask.examples is None else names & mask.examples[..., None]
    z = z.astype(dtype) if dtype == np.float64 else z
    row = Row(z, mesh_axes=axes)
    shares = _log_shares(row, jnp.where(names, index, classes), mask)
    return rows.zero_masked(nan_where(undefined, _divergence(log_p, *shares, rounding)))


# ---------------------------------------- The teacher


def _eps(x: jax.Array) -> float:
    finfo: Any = jnp.finfo
    return float(finfo(x.dtype).eps)


def _single(axis: Axis) -> Axis:
    if isinstance(axis, tuple) and len(axis) != 1:
        raise ValueError(f"axis must be a single one, got {axis}")
    return axis


def _targets(
    rows: Rows, target_indices: ArrayLike, target_log_probs: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Indices and log-probabilities ``[..., k]``; -inf in the examples that do not count."""
    index, log_p = (
        any_array("target_indices", target_indices),
        floating("target_log_probs", target_log_probs),
    )
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise TypeError(f"target_indices must be integers, got dtype {index.dtype}")
    index = index if index.dtype.itemsize >= 4 else index.astype(jnp.int32)
    (axis,) = rows.axes
    for name, x in (("target_indices", index), ("target_log_probs", log_p)):
        others = (*x.shape[:axis], *x.shape[axis + 1 :])
        is_alike = x.ndim == len(rows.shape) and others == rows.examples and x.shape == index.shape
        if not is_alike or x.shape[axis] == 0:
            raise ValueError(
                f"{name} must have the shape of logits {rows.shape} but for the axis {axis} of the"
                f" classes, where both have k > 0, got target_indices {index.shape} and"
                f" target_log_probs {log_p.shape}"
            )
        check_replicated(name, x, rows.mesh_axes)
    # JAX does not sort along an axis that is spread over a mesh.
    index, log_p = (resharded(jnp.moveaxis(x, axis, -1), rows.along(None)) for x in (index, log_p))
    return index, Mask(examples=rows.mask.examples).fill(log_p, 0.0, -jnp.inf)


def _by_class(index: jax.Array, log_p: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sorts the entries: those of one class lie side by side, the one with a probability first."""
    has_none = (log_p == -jnp.inf).astype(index.dtype)
    # The sum with zeros gives the places the sharding of the index, as JAX wants for sorting.
    place = jax.lax.broadcasted_iota(index.dtype, index.shape, index.ndim - 1)
    keys = (index, has_none, jnp.zeros_like(index) + place)
    index, _, place = jax.lax.sort(keys, dimension=-1, num_keys=2)
    return index, _at(log_p, place)


def _renormalized(log_p: jax.Array, is_lost: jax.Array) -> jax.Array:
    """The log-probabilities renormalised without the lost ones, which become -inf."""
    lost = jnp.where(is_lost, log_p, -jnp.inf)
    any_lost = jnp.any(lost > -jnp.inf, axis=-1, keepdims=True)
    left = _log_complement(jnp.where(any_lost, lost, -1.0))
    kept = jnp.where(is_lost, -jnp.inf, log_p)
    return jnp.where(any_lost, kept - left, kept)


def _nats(log_p: jax.Array) -> jax.Array:
    """``sum_i -p_i log p_i`` as ``[..., 1]``: what the rounded logarithms err by, in their eps."""
    surprisal = jnp.where(log_p == -jnp.inf, 0.0, -log_p)
    return jnp.sum(exp(log_p) * surprisal, axis=-1, keepdims=True)


def _log_complement(log_p: jax.Array) -> jax.Array:
    """``log(1 - sum_i p_i)`` as ``[..., 1]``; -inf where they sum to 1, or to more."""
    normalizer = surprisals(Row(log_p), None, None, EVERYTHING, None).normalizer[..., None]
    return log_of_complement(jnp.minimum(normalizer, 0.0))


# ---------------------------------------- Named classes and the others
# For each row of logits z and k different classes y, with the statistics of the row, and with those
# of the row without the named classes,
#
#     log q_i = (z_{y_i} - m) - log1p(s),   log q_* = (m_* - m) + log1p(s_*) - log1p(s)
#
# The first is what `log_softmax` gives, bit for bit. The second is a sum over the other classes,
# not 1 minus a sum, so that it is exact where the named classes have nearly all of the probability.


Shares: TypeAlias = tuple[jax.Array, jax.Array]
"""``log q`` of the named classes, ``[..., k]``, and of the others, ``[..., 1]``."""


def _at(x: jax.Array, index: jax.Array, axes: MeshAxes = ()) -> jax.Array:
    """``[..., k]``, the entries that the index names; some other entry if it names no class."""
    if axes or explicit_sharding(x):
        return at_label(x[..., None, :], index, axes)[..., 0]
    return jnp.take_along_axis(x, index, axis=-1, mode="clip")


def _here(index: jax.Array, x: jax.Array, axes: MeshAxes) -> jax.Array:
    """The index counted from the first class of this shard, which others get the size of."""
    index = of_this_shard(index, x.shape[-1], axes)
    return jnp.where(in_range(index, x.shape[-1])[..., 0], index, x.shape[-1])


def _without(index: jax.Array, mask: Mask, logits: jax.Array) -> Mask:
    """The mask without the named classes of this shard."""
    if explicit_sharding(logits):
        named = jnp.any(is_label(index, logits.shape[-1]), axis=-2)
    else:
        name = jnp.vectorize(
            lambda named, i: named.at[i].set(True, mode="drop"), signature="(c),(k)->(c)"
        )
        named = name(jnp.zeros(logits.shape, bool), index)
    return mask._replace(classes=~named if mask.classes is None else mask.classes & ~named)


# d log q_i = dz_i - sum_j p_j dz_j, and d log q_* = sum_j r_j dz_j - sum_j p_j dz_j, where r is the
# distribution among the other classes. So with the cotangents c_i and c_* the gradient for z_j is
# c_i if j is the class i, else c_* r_j, and less p_j (sum_i c_i + c_*). A share that is 0 because
# no class is possible has no derivative.
def _log_shares_bwd(
    cotangents: Shares,
    logits: Row,
    index: jax.Array,
    mask: Mask,
    row: Statistics,
    others: Statistics,
) -> tuple[Row, None, None]:
    axes, here = logits.mesh_axes, _here(index, logits.z, logits.mesh_axes)
    is_named = index < logits.z.shape[-1] * number_of_shards(axes)
    mask_of_others, (to_named, to_rest) = _without(here, mask, logits.z), cotangents
    to_named = jnp.where(is_named, to_named, 0.0)
    to_rest = jnp.where(others.maximum == -jnp.inf, 0.0, to_rest)
    z, z_of_others = upcast(mask.fill_logits(logits.z), mask_of_others.fill_logits(logits.z))
    total = jnp.sum(to_named, axis=-1, keepdims=True) + to_rest
    named = jnp.where(is_named, _at(z, index, axes), -jnp.inf)
    to_named -= Row(named, row).probability() * total
    of_all, of_others = Row(z, row, axes), Row(z_of_others, others, axes)
    to_others = to_rest * of_others.probability() - total * of_all.probability()
    to_others = mask_of_others.fill(to_others, 0.0, 0.0)
    # Both parts are rounded to the dtype of the logits before they are put side by side, so that no
    # wider array is written.
    to_others, to_named = (x.astype(logits.z.dtype) for x in (to_others, to_named))
    return logits.gradient(_put(to_others, here, to_named)), None, None


@with_gradient(_log_shares_bwd, (True, False, True), keeps=True)
def _log_shares(logits: Row, index: jax.Array, mask: Mask) -> Any:
    """`Shares` of each row of logits ``[..., classes]``.

    The index ``[..., k]`` has different classes that count, and the number of classes for no class,
    whose share is 0.
    """
    z, axes, dtype = logits.z, logits.mesh_axes, computing_dtype(logits.z)
    mask_of_others = _without(_here(index, z, axes), mask, z)
    row = logits.statistics(mask, dtype)
    others = raw_statistics(z, dtype, axes, mask=mask_of_others)
    # Where no other class is possible the maximum of the others, and so this, is -inf.
    ratio = log1p(others.sumexp_rest) - log1p(row.sumexp_rest)
    log_q_rest = shift(others.maximum, row.maximum) + ratio
    (named,) = upcast(_at(z, index, axes))
    is_named = index < z.shape[-1] * number_of_shards(axes)
    log_q = -plain_surprisal(jnp.where(is_named, named, -jnp.inf), row)
    return (log_q, log_q_rest), (row, others)


def _put(x: jax.Array, index: jax.Array, values: jax.Array) -> jax.Array:
    """Adds `values` at the named classes, where x is 0.

    Addition, not assignment, keeps it linear and transposable.
    """
    if explicit_sharding(x):
        return x + jnp.sum(jnp.where(is_label(index, x.shape[-1]), values[..., None], 0), axis=-2)
    put = jnp.vectorize(lambda x, i, v: x.at[i].add(v, mode="drop"), signature="(c),(k),(k)->(c)")
    result: jax.Array = put(x, index, values)
    return result


# ---------------------------------------- The divergence


@with_partials(
    lambda log_p, log_q: jnp.ones_like(log_p), lambda log_p, log_q: -jnp.ones_like(log_q)
)
def _log_ratio(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """``log(p/q)``: 0 where both are 0, else ±inf where one is."""
    both = (log_p > -jnp.inf) & (log_q > -jnp.inf)
    one_sided = one_sided_log_quotient(log_p, log_q)
    t = jnp.where(both, log_p, 0.0) - jnp.where(both, log_q, 0.0)
    return nan_where(jnp.isnan(log_p) | jnp.isnan(log_q), jnp.where(both, t, one_sided))


# p_* = 1 - sum_i p_i, so that d log(p_*/q_*) = -sum_i (p_i/p_*) d log p_i - d log q_*. No
# derivative for q_i: `_log_shares` already differentiates q_* through the logits.
def _log_ratio_of_rest_bwd(
    cotangent: jax.Array, log_p: jax.Array, log_q: jax.Array, log_q_rest: jax.Array, *rounding: Any
) -> tuple[jax.Array | None, ...]:
    t = _log_ratio_of_rest(log_p, log_q, log_q_rest, *rounding)
    is_there = jnp.isfinite(t) & (log_q_rest > -jnp.inf)
    log_p_rest = jnp.where(is_there, t + log_q_rest, 0.0)
    to_rest = jnp.where(is_there, cotangent, 0.0)
    return -to_rest * exp(log_p - log_p_rest), None, -to_rest, None


@with_gradient(_log_ratio_of_rest_bwd)
def _log_ratio_of_rest(
    log_p: jax.Array, log_q: jax.Array, log_q_rest: jax.Array, rounding: jax.Array
) -> jax.Array:
    """``log(p_*/q_*)`` as ``[..., 1]``; 0 where no other class is possible and p_* is only
    rounding.

    Where the two nearly agree it is made of the differences p_i - q_i, whose sum is q_* - p_*.
    """
    surplus = -jnp.sum(_shortfall(log_p, log_q), axis=-1, keepdims=True)
    q_rest = exp(log_q_rest)
    near = jnp.abs(surplus) < 0.5 * q_rest
    close = log1p(-jnp.where(near, divide(surplus, jnp.where(near, q_rest, 1.0)), 0.0))
    log_p_rest = _log_complement(log_p)
    t = jnp.where(near, close, _log_ratio(log_p_rest, log_q_rest))
    # A rounded logarithm has an error of its own size.
    is_rounding = log_p_rest <= log(rounding * (1 + _nats(log_p)))
    return jnp.where((log_q_rest == -jnp.inf) & is_rounding, 0.0, t)


@with_partials(lambda log_p, log_q: -exp(log_p), lambda log_p, log_q: exp(log_q))
def _shortfall(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """``q - p``, exact where both nearly agree."""
    t, p, q = _log_ratio(log_p, log_q), exp(log_p), exp(log_q)
    near = t < 1
    return jnp.where(near, -q * expm1(jnp.where(near, t, 0.0)), q - p)


def _log_p_rest(log_p: jax.Array, log_q_rest: jax.Array, t_rest: jax.Array) -> jax.Array:
    is_possible = log_q_rest > -jnp.inf
    beside = jnp.where(is_possible, log_q_rest, 0.0) + jnp.where(is_possible, t_rest, 0.0)
    known = jax.lax.stop_gradient(_log_complement(log_p))
    # Far from agreement the two logarithms may be larger than their sum, which then has lost bits.
    far = is_possible & jnp.isfinite(beside) & (jnp.abs(t_rest) > 1) & (known > -jnp.inf)
    lost = jnp.where(far, known, 0.0) - jax.lax.stop_gradient(jnp.where(far, beside, 0.0))
    return jnp.where(is_possible, beside + lost, jnp.where(t_rest == jnp.inf, known, -jnp.inf))


# With t = log(p/q), and the same for the rest, D = sum_i q_i φ(t_i) + q_* φ(t_*), and
# dD = sum_i p_i (t_i - t_*) d log p_i + (q_i - p_i) d log q_i + (q_* - p_*) d log q_*.
def _divergence_bwd(
    cotangent: jax.Array, log_p: jax.Array, log_q: jax.Array, log_q_rest: jax.Array, *rounding: Any
) -> tuple[jax.Array | None, ...]:
    cotangent = cotangent[..., None]
    t = _log_ratio(log_p, log_q)
    t_rest = _log_ratio_of_rest(log_p, log_q, log_q_rest, *rounding)
    # A rest without probability is 0 whatever the log-probabilities that leave it.
    finite, finite_rest = (jnp.where(jnp.isinf(x), 0.0, x) for x in (t, t_rest))
    to_p = exp(log_p) * (finite - finite_rest)
    log_p_rest = _log_p_rest(log_p, log_q_rest, t_rest)
    to_rest = _shortfall(log_p_rest, log_q_rest)
    return cotangent * to_p, cotangent * _shortfall(log_p, log_q), cotangent * to_rest, None


@with_gradient(_divergence_bwd)
def _divergence(
    log_p: jax.Array, log_q: jax.Array, log_q_rest: jax.Array, rounding: jax.Array
) -> jax.Array:
    """The sum of non-negative terms, for ``[..., k]``, ``[..., k]``, and ``[..., 1]``."""
    t_rest = _log_ratio_of_rest(log_p, log_q, log_q_rest, rounding)
    log_p_rest = _log_p_rest(log_p, log_q_rest, t_rest)
    named = divergence_terms(_log_ratio(log_p, log_q), exp(log_p), exp(log_q))
    rest = divergence_terms(t_rest, exp(log_p_rest), exp(log_q_rest))
    return jnp.sum(named, axis=-1) + rest[..., 0]
