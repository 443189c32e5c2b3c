r"""Two softmax distributions beside each other: the logarithm of their ratio, class by class.

With :math:`d_j` the difference of the logits less that of the two maxima,

.. math::
    \log p_j - \log q_j = d_j - \log(1 + S), \qquad
    1 + S = \frac{1 + s_p}{1 + s_q}, \qquad S = \sum_j q_j \operatorname{expm1}(d_j)

where :math:`q_j e^{d_j} = (1 + S) p_j`. A shift that the logits share has vanished from all of
these, and where p and q agree d and S are small without having been differences of anything large.
"""

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from .._autodiff import differentiated_by
from .._dtypes import upcast
from .._elementary import expm1, log1p
from .._mask import Mask
from .._numerics import nan_where, two_difference
from .._sharding import MeshAxes, sum_classes
from . import Statistics, shift
from .primitive import statistics
from .surprisals import probability, surprisal, to_logits_of_surprisals


class Pair(NamedTuple):
    """Logits of p and of q in their computing dtype, and what is known of their rows."""

    z_p: jax.Array
    z_q: jax.Array
    of_p: Statistics
    of_q: Statistics
    change: Any = None
    """``S``, as ``[..., 1]``, once it is known"""

    @classmethod
    def after(cls, known: Any, target_logits: jax.Array, logits: jax.Array, mask: Mask) -> Self:
        """The pair for a stage that comes after `known`: statistics of p, those of q, S, and more.

        Without the barrier XLA:GPU would write to memory what both stages compute from the logits.
        """
        barrier: Any = jax.lax.optimization_barrier
        target_logits, logits, (of_p, of_q, *_) = barrier((target_logits, logits, known))
        z_p, z_q = upcast(mask.fill_logits(target_logits), mask.fill_logits(logits))
        return cls(z_p, z_q, of_p, of_q, known[2])

    def probabilities(self, axes: MeshAxes) -> tuple[jax.Array, jax.Array]:
        """``p_j`` and ``q_j``, for classes that are spread over the mesh axes."""
        return probability(axes, self.z_p, self.of_p), probability(axes, self.z_q, self.of_q)

    @property
    def has_p(self) -> jax.Array:
        return shift(self.z_p, self.of_p.maximum) > -jnp.inf

    @property
    def has_q(self) -> jax.Array:
        return shift(self.z_q, self.of_q.maximum) > -jnp.inf


def _anchored_difference(pair: Pair) -> jax.Array:
    """``d_j``, exact also where p and q agree to many digits; 0 where one of them is 0."""
    both = pair.has_p & pair.has_q
    m_p, m_q = (jnp.where(jnp.isinf(m), 0.0, m) for m in (pair.of_p.maximum, pair.of_q.maximum))
    a = jnp.where(both & (pair.of_p.maximum < jnp.inf), pair.z_p, m_p)
    b = jnp.where(both & (pair.of_q.maximum < jnp.inf), pair.z_q, m_q)
    difference, error = two_difference(a, b)
    anchor, anchor_error = two_difference(m_p, m_q)
    return (difference - anchor) + (error - anchor_error)


def known_of_both(
    axes: MeshAxes, target_logits: jax.Array, logits: jax.Array, mask: Mask
) -> tuple[Statistics, Statistics, jax.Array]:
    """The statistics of p, those of q, and S."""
    z_p, z_q = upcast(mask.fill_logits(target_logits), mask.fill_logits(logits))
    of_p = statistics(axes, z_p.dtype, target_logits, mask=mask)
    of_q = statistics(axes, z_q.dtype, logits, mask=mask)
    return of_p, of_q, _change(axes, Pair(z_p, z_q, of_p, of_q))


def _change(axes: MeshAxes, pair: Pair) -> jax.Array:
    """``S``, as ``[..., 1]``."""
    d = _anchored_difference(pair)
    near = pair.has_p & pair.has_q & (jnp.abs(d) < 1)
    p, q = pair.probabilities(axes)
    far = (1 + pair.of_p.sumexp_rest) / (1 + pair.of_q.sumexp_rest) * p - q
    terms = jnp.where(near, q * expm1(jnp.where(near, d, 0.0)), far)
    return sum_classes(terms, axes)


# d log p_j = dz_j - sum_i p_i dz_i, for p and for q. The rule has the whole derivative for the
# logits, so that S, like the statistics, gets none.
def _log_ratio_bwd(axes: MeshAxes, cotangent: jax.Array, *given: Any) -> tuple[Any, ...]:
    pair = Pair(*given)
    to_p = to_logits_of_surprisals(axes, cotangent, pair.z_p, pair.of_p)
    to_q = to_logits_of_surprisals(axes, cotangent, pair.z_q, pair.of_q)
    return -to_p, to_q, None, None, None


@differentiated_by(_log_ratio_bwd, (True, True, False, False, False))
def log_ratio(axes: MeshAxes, *given: Any) -> jax.Array:
    """``log p_j - log q_j`` of a `Pair` whose S is known."""
    pair = Pair(*given)
    change = pair.change
    has_p, has_q = pair.has_p, pair.has_q
    both = has_p & has_q
    agreeing = (change > -0.5) & (change < 2)
    close = _anchored_difference(pair) - log1p(jnp.where(agreeing, change, 0.0))
    far = surprisal(jnp.where(both, pair.z_q, pair.of_q.maximum), pair.of_q) - surprisal(
        jnp.where(both, pair.z_p, pair.of_p.maximum), pair.of_p
    )
    one_sided = jnp.where(has_p == has_q, 0.0, jnp.where(has_p, jnp.inf, -jnp.inf))
    undefined = jnp.isnan(pair.of_p.sumexp_rest) | jnp.isnan(pair.of_q.sumexp_rest)
    t = jnp.where(both, jnp.where(agreeing, close, far), one_sided)
    return nan_where(undefined, t)
