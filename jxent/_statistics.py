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

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._labels import at_label
from ._row_sums import finite, row_sums


class Statistics(NamedTuple):
    """Maximum, sum of the others and, where labels are given, their logit, as ``[..., 1]``."""

    maximum: jax.Array
    others: jax.Array
    of_label: jax.Array | None


def computing_dtype(*arrays: jax.Array) -> np.dtype[Any]:
    """float64 if any of the arrays has it, else float32."""
    double = any(x.dtype == np.float64 for x in arrays)
    return np.dtype(np.float64 if double else np.float32)


def upcast(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays in their computing dtype."""
    return tuple(x.astype(computing_dtype(*arrays)) for x in arrays)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def statistics(logits: jax.Array, labels: jax.Array | None, stored: np.dtype[Any]) -> Statistics:
    """The statistics of each row of logits, upcast from the dtype they are stored in.

    The sum is NaN where softmax has no limit: a NaN logit, every logit -inf, more than one +inf.
    """
    return Statistics(*row_sums(logits, labels, stored))


@statistics.defjvp
def _statistics_jvp(
    stored: np.dtype[Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Statistics, Statistics]:
    # m is only where the sum is anchored: what is made of (m, s) does not depend on it, so its
    # tangent may be taken as zero. Then 1 + s = sum_j exp(z_j - m) gives s its tangent, in which
    # the maximum counts like every other class.
    (logits, labels), (dot, _) = primals, tangents
    stats = statistics(logits, labels, stored)
    others_dot = jnp.sum(unnormalized(logits, stats) * dot, axis=-1, keepdims=True)
    label_dot = None if labels is None else at_label(dot, labels)
    return stats, Statistics(jnp.zeros_like(stats.maximum), others_dot, label_dot)


def shift(logits: jax.Array, m: jax.Array) -> jax.Array:
    """``logits - m``, at most zero; beside a single +inf the others are infinitely far."""
    at_infinity = jnp.where(logits == m, 0.0, -jnp.inf)
    return jnp.where(m < jnp.inf, logits - jnp.where(m < jnp.inf, m, 0.0), at_infinity)


def _finite_shift(logits: jax.Array, m: jax.Array) -> jax.Array:
    """`shift` for exponentials, which need no -inf: 0, and at most a large number below."""
    below = logits - finite(m)
    return jnp.where(below > 0, 0.0, below)  # Not minimum: at 0 its derivative would be a half.


def unnormalized(logits: jax.Array, stats: Statistics) -> jax.Array:
    """``exp(z_j - m)``."""
    return jnp.exp(_finite_shift(logits, stats.maximum))


def probability(logits: jax.Array, stats: Statistics) -> jax.Array:
    """``p_j``."""
    return unnormalized(logits, stats) * (1 / (1 + stats.others))


def complement(logits: jax.Array, stats: Statistics) -> jax.Array:
    """``1 - p_j``."""
    below = -jnp.expm1(_finite_shift(logits, stats.maximum))
    return (stats.others + below) * (1 / (1 + stats.others))


def surprisal(logits: jax.Array, stats: Statistics) -> jax.Array:
    """``-log p_j``, +inf where the logit is -inf."""
    return jnp.log1p(stats.others) - shift(logits, stats.maximum)


def finite_surprisal(logits: jax.Array, stats: Statistics) -> jax.Array:
    """``-log p_j``, 0 where the logit is -inf: there the class does not exist."""
    exists = shift(logits, stats.maximum) > -jnp.inf
    return jnp.where(exists, surprisal(jnp.where(exists, logits, stats.maximum), stats), 0.0)
