r"""The statistics of a row of logits, from which every softmax loss is made.

For logits :math:`z` with the classes on the last axis,

.. math::
    m = \max_j z_j, \qquad s = \sum_{j \ne k} e^{z_j - m}

where :math:`k` is one maximum. The sum leaves it out because its term is exactly 1: next to 1 a
small :math:`s` would lose its bits, and it is the loss of a confident prediction. From these

.. math::
    p_j = \frac{e^{z_j - m}}{1 + s}, \qquad
    1 - p_j = \frac{s - \operatorname{expm1}(z_j - m)}{1 + s}, \qquad
    -\log p_j = (m - z_j) + \operatorname{log1p}(s)

are quotients and sums of terms of one sign, so that nothing cancels.
"""

import dataclasses
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._dtypes import widened
from .._numerics import exp, finite
from .._rows import EVERYTHING, Mask

IfRequested: TypeAlias = Any
"""An array, or None if it is not requested."""


class Statistics(NamedTuple):
    """The statistics of each row of logits z, each as ``[..., 1]``; None for what is not requested.

    Where softmax has no limit `sumexp_rest` is NaN: every logit -inf, more than one +inf, or a NaN
    logit, which makes the maximum NaN as well.
    """

    maximum: jax.Array
    """``m = max_j z_j``"""
    sumexp_rest: Any
    """``s = sum_{j≠k} exp(z_j - m)``, k being one maximum; None for a single class"""
    label_logit: IfRequested = None
    """``z_y``, y being the label"""
    weighted_gap: IfRequested = None
    """``sum_j w_j (m - z_j)``, w being the weights; a term without weight is 0"""
    max_weight: IfRequested = None
    """``max_j w_j``"""
    weight_rest: IfRequested = None
    """``sum_{j≠k} w_j``, k being one class with the largest weight"""
    exp_gap: IfRequested = None
    """``sum_j exp(z_j - m) (m - z_j)``"""


class SmoothedWeights(NamedTuple):
    """Weights ``(scale * labels + offset) * factor`` by their parts; None for a part left out.

    XLA writes a computed array to memory if it has many readers, and each slice of the classes is
    one. So slices are cut from the parts, and each makes its own weights.
    """

    labels: jax.Array
    """``[..., classes]``"""
    scale: IfRequested = None
    """``[..., 1]``, given together with the offset"""
    offset: IfRequested = None
    factor: IfRequested = None
    """``[..., classes]``"""


Weights: TypeAlias = jax.Array | SmoothedWeights


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Request:
    """The arrays from which the statistics beside the first two are made, if they are wanted."""

    labels: IfRequested = None
    """Integers ``[...]``: for `label_logit`."""
    weights: IfRequested = None
    """For `weighted_gap`, `max_weight` and `weight_rest`: numbers like the logits, or those of a
    row that all rows share, ``[1, ..., 1, classes]``, or `SmoothedWeights`."""
    mask: Mask = EVERYTHING
    """Masks of entries that are not filled yet."""
    exp_gap: bool = dataclasses.field(default=False, metadata={"static": True})
    """Whether `exp_gap` is wanted, which the entropy is made of."""

    @property
    def names(self) -> list[str]:
        """The names of all statistics that are wanted, in the order of their fields."""
        names = ["maximum", "sumexp_rest"]
        names += [] if self.labels is None else ["label_logit"]
        names += [] if self.weights is None else ["weighted_gap", "max_weight", "weight_rest"]
        return names + ["exp_gap"] * self.exp_gap


def as_array(weights: Weights, mask: Mask, dtype: Any) -> jax.Array:
    """The weights as one array, in this dtype if anything is computed.

    Labels are filled before anything multiplies them: NaN among them would reach its cotangent.
    """
    if not isinstance(weights, SmoothedWeights):
        return mask.fill(weights, 0.0, 0.0)
    w, scale, offset, factor = weights._replace(labels=mask.fill(weights.labels, 0.0, 0.0))
    if scale is not None:
        w = scale.astype(dtype) * widened(w, dtype) + offset.astype(dtype)
        w = mask.fill(w, 0.0, 0.0)
    return w if factor is None else widened(w, dtype) * factor.astype(dtype)


def shift(logits: jax.Array, m: jax.Array) -> jax.Array:
    """``logits - m``, at most zero; beside a single +inf the others are infinitely far."""
    at_infinity = jnp.where(logits == m, 0.0, -jnp.inf)
    return jnp.where(m < jnp.inf, logits - jnp.where(m < jnp.inf, m, 0.0), at_infinity)


def finite_shift(logits: jax.Array, m: jax.Array) -> jax.Array:
    """`shift` for exponentials, which need no -inf: 0, and at most a large number below."""
    # Without the barrier XLA would compute the anchor again for each logit, not once for a row.
    anchor: jax.Array = jax.lax.optimization_barrier(finite(m))
    return jnp.minimum(logits, np.finfo(logits.dtype).max) - anchor


def unnormalized(logits: jax.Array, m: jax.Array) -> jax.Array:
    """``exp(z_j - m)``."""
    return exp(finite_shift(logits, m))
