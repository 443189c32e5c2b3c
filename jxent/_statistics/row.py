r"""A row of logits with its statistics, and the cost of its labels; all derivatives are exact.

The gradient rule of a function of a `Row` gives its whole derivative for the logits, including the
part that goes through the statistics, which therefore get no cotangent of their own: the two parts
would cancel for a class that is nearly certain. Where that is class k, the derivatives

.. math::
    dp_j = p_j \Bigl((1 - p_j) \, dz_j - \sum_{i \ne j} p_i \, dz_i\Bigr), \qquad
    d(-\log p_j) = \sum_{i \ne j} p_i \, dz_i - (1 - p_j) \, dz_j

need sums over the other classes that never contain the term of k. To subtract it from the sum over
all classes would lose the bits of the others.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from .._autodiff import with_gradient
from .._dtypes import computing_dtype, widened
from .._numerics import divide, expm1, nan_where, plain_log1p, rounded_divide
from .._rows import Mask, in_range, is_label
from .._sharding import MeshAxes, number_of_shards, sum_classes
from . import IfRequested, Statistics, Weights, as_array, finite_shift, shift, unnormalized
from .merging import without_limit_nan
from .primitive import raw_statistics, statistics

# ---------------------------------------- Rules of rows

Gradients = tuple[Any, ...]


def _probability_bwd(c: jax.Array, row: "Row") -> Gradients:
    return (row.gradient(row.pull_probabilities(c)),)


def _complement_bwd(c: jax.Array, row: "Row") -> Gradients:
    return (row.gradient(-row.pull_probabilities(c)),)


def _log_probability_bwd(c: jax.Array, row: "Row") -> Gradients:
    return (row.gradient(-row.pull_surprisals(c)),)


# dH = -sum_j (1 + log p_j) dp_j = sum_j p_j (-log p_j - H) dz_j.
def _entropy_bwd(c: jax.Array, row: "Row") -> Gradients:
    return (row.gradient(c * row.probability() * (row.surprisal() - row.entropy())),)


# dp_y = p_y ((1 - p_y) dz_y - sum_{i≠y} p_i dz_i), an entry for each class: nothing is added.
def _label_probability_bwd(c: Any, row: "Row", labels: jax.Array) -> Gradients:
    p_y, q_y = row.label_probability(labels)
    slope = (c[0] - c[1]) * p_y
    is_named = is_label(labels, row.z.shape[-1], row.mesh_axes)
    return row.gradient(jnp.where(is_named, slope * q_y, -slope * row.probability())), None


# The function is linear in the weights, so its tangents are sums of the same kind. They may have
# either sign, so they are summed as in `sum_of_others`.
def _other_weights_bwd(c: jax.Array, row: "Row", weights: jax.Array) -> Gradients:
    return None, row.sum_of_others(c)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Row:
    """Rows of logits, their statistics, and the mesh axes that their classes are spread over."""

    z: jax.Array
    """``[..., classes]``; beside statistics in the computing dtype, with masked entries filled"""
    stats: Any = None
    """`Statistics`; None if they are not known yet"""
    mesh_axes: MeshAxes = dataclasses.field(default=(), metadata={"static": True})

    @property
    def of_classes(self) -> "Row":
        """Whether every shard of the classes has its own: see `with_gradient`."""
        return Row(cast(Any, True), False, self.mesh_axes)

    def gradient(self, to_z: jax.Array) -> "Row":
        """The cotangent of a row: statistics get none."""
        return Row(to_z, None, self.mesh_axes)

    def filled(self, mask: Mask, dtype: Any, stats: Any) -> "Row":
        """The row with its statistics, from logits as they were given."""
        return Row(widened(mask.fill_logits(self.z), dtype), stats, self.mesh_axes)

    def statistics(self, mask: Mask, dtype: Any, **request: Any) -> Statistics:
        """The statistics of logits as they were given."""
        return statistics(self.z, dtype, self.mesh_axes, mask=mask, **request)

    @property
    def exists(self) -> jax.Array:
        """Whether the class has a probability."""
        return shift(self.z, self.stats.maximum) > -jnp.inf

    @with_gradient(_probability_bwd, (True,))
    def probability(self) -> jax.Array:
        """``p_j``."""
        return _probability(self.z, self.stats)

    @with_gradient(_complement_bwd, (True,))
    def complement(self) -> jax.Array:
        """``1 - p_j``."""
        return _complement(self.z, self.stats)

    @with_gradient(_log_probability_bwd, (True,))
    def log_probability(self) -> jax.Array:
        """``log p_j``, -inf where the logit is."""
        return -plain_surprisal(self.z, self.stats)

    def surprisal(self) -> jax.Array:
        """``-log p_j``, 0 where the logit is -inf: there the class does not exist."""
        return jnp.where(self.exists, -self.log_probability(), 0.0)

    @with_gradient(_entropy_bwd, (True,))
    def entropy(self) -> jax.Array:
        """``sum_j p_j (-log p_j)`` as ``[..., 1]``, with ``-log p_j = log1p(s) + (m - z_j)``."""
        mean_gap: jax.Array = divide(self.stats.exp_gap, 1 + self.stats.sumexp_rest)
        return plain_log1p(self.stats.sumexp_rest) + mean_gap

    @with_gradient(_label_probability_bwd, (True, False))
    def label_probability(self, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``p_y`` and ``1 - p_y`` as ``[..., 1]`` for the integer labels y."""
        z_y = self.stats.label_logit
        return _probability(z_y, self.stats), _complement(z_y, self.stats)

    @with_gradient(_other_weights_bwd, (True, True))
    def other_weights(self, weights: jax.Array) -> jax.Array:
        """``sum_{i≠j} w_i``, none of them negative, for each class j."""
        others: jax.Array = self.stats.weight_rest + (self.stats.max_weight - weights)
        return others

    def sum_of_others(self, x: jax.Array) -> jax.Array:
        """``sum_{i≠j} x_i`` for each class j, exact where p_j is nearly 1; linear in x.

        For a class with less than half of the probability the term of j is subtracted from the sum
        of all, which may cancel. There 1 - p_j is at least a half, and what is added to this sum is
        as large as the term was.
        """
        # The class that has more than half of the probability, if there is one.
        dominant = (self.z == self.stats.maximum) & (self.stats.sumexp_rest < 1)
        rest = sum_classes(jnp.where(dominant, 0.0, x), self.mesh_axes)
        whole = rest + sum_classes(jnp.where(dominant, x, 0.0), self.mesh_axes)
        return jnp.where(dominant, rest, whole - x)

    def pull_probabilities(self, c: jax.Array) -> jax.Array:
        """``sum_j c_j dp_j/dz_i``: the cotangent of the logits for one of the probabilities."""
        p, q = self.probability(), self.complement()
        to_logits: jax.Array = p * (c * q - self.sum_of_others(p * c))
        return to_logits

    def pull_surprisals(self, c: jax.Array) -> jax.Array:
        """The cotangent of the logits for one of ``-log p_j``; 0 for a logit of -inf."""
        p, q = self.probability(), self.complement()
        c = jnp.where(self.z > -jnp.inf, c, 0.0)
        to_logits: jax.Array = p * self.sum_of_others(c) - c * q
        return to_logits


def _probability(z: jax.Array, stats: Statistics) -> jax.Array:
    # Without the barrier XLA would compute the quotient again for each logit, not once for a row.
    unit: jax.Array = jax.lax.optimization_barrier(rounded_divide(1.0, 1 + stats.sumexp_rest))
    return unnormalized(z, stats.maximum) * unit


def _complement(z: jax.Array, stats: Statistics) -> jax.Array:
    s, below = stats.sumexp_rest, -expm1(finite_shift(z, stats.maximum))
    complements: jax.Array = (s + below) * rounded_divide(1.0, 1 + s)
    return complements


def plain_surprisal(z: jax.Array, stats: Statistics) -> jax.Array:
    """``-log p_j``, +inf where the logit is -inf. Only for rules: its derivative is not exact."""
    return plain_log1p(stats.sumexp_rest) - shift(z, stats.maximum)


def of_logits(function: Callable[[Row], jax.Array], **request: Any) -> Callable[..., jax.Array]:
    """Makes a function of rows one of logits as they were given, and a mask, with its gradient.

    `request` says which statistics it needs, as in `Request`.
    """

    def bwd(cotangent: jax.Array, row: Row, mask: Mask, stats: Statistics) -> Gradients:
        known = row.filled(mask, computing_dtype(row.z), stats)

        def of_z(z: jax.Array) -> jax.Array:
            return function(dataclasses.replace(known, z=z))

        (to_z,) = jax.vjp(of_z, known.z)[1](cotangent)
        return row.gradient(mask.fill(to_z, 0.0, 0.0)), None

    @with_gradient(bwd, (True, True), keeps=True)
    def of_rows(row: Row, mask: Mask) -> Any:
        dtype = computing_dtype(row.z)
        stats = row.statistics(mask, dtype, **request)
        return function(row.filled(mask, dtype, stats)), (stats,)

    return of_rows


# ---------------------------------------- The core of the softmax losses


class Surprisals(NamedTuple):
    """The costs of each row of logits, ``[...]``."""

    of_label: IfRequested
    """``-log p_y`` for the integer label y"""
    of_weights: IfRequested
    """``sum_j w_j (-log p_j)``"""
    normalizer: jax.Array
    """``log sum_j exp(z_j)``"""


def nan_if_out_of_range(x: jax.Array, labels: jax.Array, axes: MeshAxes) -> jax.Array:
    """``[..., 1]``: a factor that is NaN for a label that names no class of `x`, else 1."""
    classes = x.shape[-1] * number_of_shards(axes)
    return nan_where(~in_range(labels, classes), jnp.ones((), x.dtype))


# d log p_i = dz_i - sum_j p_j dz_j. So the gradient for z_j is p_j from the normalizer; p_j - 1
# at the label, which is taken as -(1 - p_y) from sums without the label, and p_j elsewhere; and
# from the weights p_j sum_i w_i - w_j = p_j sum_{i≠j} w_i - w_j (1 - p_j). For w_j it is -log p_j.
def _surprisals_bwd(
    cotangents: Surprisals,
    logits: Row,
    labels: jax.Array | None,
    weights: Weights | None,
    mask: Mask,
    is_weightless: jax.Array | None,
    raw: Statistics,
) -> Gradients:
    dtype, axes = computing_dtype(logits.z, *jax.tree.leaves(weights)), logits.mesh_axes
    row = logits.filled(mask, dtype, without_limit_nan(raw))
    of_label, of_weights, normalizer = jax.tree.map(lambda x: x[..., None], tuple(cotangents))
    p = row.probability()
    if labels is None:
        to_logits = p * normalizer
    else:
        of_label = of_label * nan_if_out_of_range(row.z, labels, axes)
        p_y, not_p_y = row.label_probability(labels)
        to_label = normalizer * p_y - of_label * not_p_y
        # Without the barrier XLA may compute these again for each logit, not once for a row.
        to_others, to_label = jax.lax.optimization_barrier((normalizer + of_label, to_label))
        to_logits = jnp.where(is_label(labels, row.z.shape[-1], axes), to_label, p * to_others)
    if weights is None:
        return row.gradient(mask.fill(to_logits, 0.0, 0.0)), None, None, None, None

    def of_each_row(parts: Weights) -> jax.Array:
        return jnp.broadcast_to(as_array(parts, mask, dtype), row.z.shape)

    whole, to_parts = jax.vjp(of_each_row, weights)
    w = widened(whole, dtype)
    gradient = p * row.other_weights(w) - w * row.complement()
    to_weights = of_weights * row.surprisal()
    to_logits = mask.fill(to_logits + of_weights * gradient, 0.0, 0.0)
    (to_weights,) = to_parts(to_weights.astype(whole.dtype))
    return row.gradient(to_logits), None, to_weights, None, None


@with_gradient(_surprisals_bwd, (True, False, True, True, False), keeps=True)
def surprisals(
    logits: Row,
    labels: jax.Array | None,
    weights: Weights | None,
    mask: Mask,
    is_weightless: jax.Array | None,
) -> Any:
    """The costs of integer labels ``[...]`` and of weights ``[..., classes]``, and the normaliser.

    The logits are as they were given, and the result is `Surprisals`. A masked class counts as a
    logit of -inf and as a weight of 0. `is_weightless` says where the cost of the label is
    multiplied by 0.
    """
    dtype, axes = computing_dtype(logits.z, *jax.tree.leaves(weights)), logits.mesh_axes
    raw = raw_statistics(logits.z, dtype, axes, labels, weights, mask)
    m, normalizer = raw.maximum, plain_log1p(raw.sumexp_rest)
    # A label at -inf costs +inf even where every logit is -inf and softmax has no limit; but where
    # a logit is NaN, the label names no class, or it has no weight, the loss stays NaN.
    nan_or_one, is_impossible = jnp.ones((), dtype), False
    if labels is not None:
        nan_or_one = nan_if_out_of_range(logits.z.astype(dtype), labels, axes)
        is_impossible = (raw.label_logit == -jnp.inf) & ~jnp.isnan(raw.sumexp_rest * nan_or_one)
        if is_weightless is not None:
            is_impossible &= ~jnp.expand_dims(is_weightless, range(is_weightless.ndim, m.ndim))
    has_costs = labels is not None or weights is not None
    stats = without_limit_nan(raw, is_impossible) if has_costs else raw
    of_label = of_weights = None
    if labels is not None:
        label, top = (jnp.where(is_impossible, 0.0, x) for x in (stats.label_logit, stats.maximum))
        of_label = plain_surprisal(label, stats._replace(maximum=top)) * nan_or_one
        # The selection comes last, because XLA:CPU would write both factors of a last product.
        of_label = jnp.where(is_impossible, jnp.inf, of_label)[..., 0]
    if weights is not None:
        weight = raw.weight_rest + raw.max_weight
        of_weights = (raw.weighted_gap + weight * plain_log1p(stats.sumexp_rest))[..., 0]
    # Unlike softmax the normaliser has a limit: -inf for a row of only -inf, +inf beside one +inf.
    normalizer = jnp.where(jnp.isinf(m) & ~jnp.isnan(normalizer), m, m + normalizer)[..., 0]
    return Surprisals(of_label, of_weights, normalizer), (raw,)
