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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Statistics(NamedTuple):
    """Maximum and sum of the others, of shape ``[..., 1]``."""

    maximum: jax.Array
    others: jax.Array


def computing_dtype(*arrays: jax.Array) -> np.dtype[Any]:
    """float64 if any of the arrays has it, else float32."""
    double = any(x.dtype == np.float64 for x in arrays)
    return np.dtype(np.float64 if double else np.float32)


def upcast(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays in their computing dtype."""
    return tuple(x.astype(computing_dtype(*arrays)) for x in arrays)


@jax.custom_jvp
def statistics(logits: jax.Array) -> Statistics:
    """The statistics of each row. They are NaN where softmax has no limit: a NaN logit, every
    logit -inf, or more than one +inf.
    """
    m = jnp.max(logits, axis=-1, keepdims=True)
    rest = jax.nn.logsumexp(shift(logits, m), axis=-1, keepdims=True, where=logits < m)
    ties = jnp.sum(logits == m, axis=-1, keepdims=True).astype(logits.dtype)
    defined = (m > -jnp.inf) & ((m < jnp.inf) | (ties == 1))
    return Statistics(m, jnp.where(defined, jnp.exp(rest) + (ties - 1), jnp.nan))


@statistics.defjvp
def _statistics_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[Statistics, Statistics]:
    # m is only where the sum is anchored: what is made of (m, s) does not depend on it, so its
    # tangent may be taken as zero. Then 1 + s = sum_j exp(z_j - m) gives s its tangent, in which
    # the maximum counts like every other class.
    (logits,), (dot,) = primals, tangents
    stats = statistics(logits)
    others_dot = jnp.sum(unnormalized(logits, stats) * dot, axis=-1, keepdims=True)
    return stats, Statistics(jnp.zeros_like(stats.maximum), others_dot)


def shift(logits: jax.Array, m: jax.Array) -> jax.Array:
    """``logits - m``, at most zero; beside a single +inf the others are infinitely far."""
    at_infinity = jnp.where(logits == m, 0.0, -jnp.inf)
    return jnp.where(m < jnp.inf, logits - jnp.where(m < jnp.inf, m, 0.0), at_infinity)


def unnormalized(logits: jax.Array, stats: Statistics) -> jax.Array:
    """``exp(z_j - m)``."""
    return jnp.exp(shift(logits, stats.maximum))


def probability(logits: jax.Array, stats: Statistics) -> jax.Array:
    """``p_j``."""
    return unnormalized(logits, stats) / (1 + stats.others)


def complement(logits: jax.Array, stats: Statistics) -> jax.Array:
    """``1 - p_j``."""
    return (stats.others - jnp.expm1(shift(logits, stats.maximum))) / (1 + stats.others)


def surprisal(logits: jax.Array, stats: Statistics) -> jax.Array:
    """``-log p_j``, +inf where the logit is -inf."""
    return jnp.log1p(stats.others) - shift(logits, stats.maximum)


def finite_surprisal(logits: jax.Array, stats: Statistics) -> jax.Array:
    """``-log p_j``, 0 where the logit is -inf: there the class does not exist."""
    exists = shift(logits, stats.maximum) > -jnp.inf
    return jnp.where(exists, surprisal(jnp.where(exists, logits, stats.maximum), stats), 0.0)
