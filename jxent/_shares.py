r"""The probabilities of a few named classes, and of all other classes together.

For each row of logits z and k different classes y, with the statistics of the row, and with those
of the row without the named classes,

.. math::
    \log q_i = (z_{y_i} - m) - \operatorname{log1p}(s), \qquad
    \log q_* = (m_* - m) + \operatorname{log1p}(s_*) - \operatorname{log1p}(s)

The first is what `log_softmax` gives, bit for bit. The second is a sum over the other classes, not
1 minus a sum, so that it is exact where the named classes have nearly all of the probability.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp

from ._autodiff import with_gradient
from ._dtypes import computing_dtype, upcast
from ._elementary import log1p
from ._labels import at_label, is_label
from ._mask import Mask
from ._sharding import explicit_sharding
from ._statistics import Request, Statistics, shift
from ._statistics.primitive import row_statistics, statistics
from ._statistics.surprisals import probability, surprisal

Shares: TypeAlias = tuple[jax.Array, jax.Array]
"""``log q`` of the named classes, ``[..., k]``, and of the others, ``[..., 1]``."""


def at(x: jax.Array, index: jax.Array) -> jax.Array:
    """``[..., k]``, the entries that the index names; some other entry if it names no class."""
    if explicit_sharding(x):
        return at_label(x[..., None, :], index)[..., 0]
    return jnp.take_along_axis(x, index, axis=-1, mode="clip")


def _log_shares_fwd(
    logits: jax.Array, index: jax.Array, mask: Mask
) -> tuple[Shares, tuple[Statistics, Statistics]]:
    dtype, mask_of_others = computing_dtype(logits), _without(index, mask, logits)
    row = statistics((), dtype, logits, mask=mask)
    others = row_statistics(logits, Request(mask=mask_of_others), dtype)
    # Where no other class is possible the maximum of the others, and so this, is -inf.
    ratio = log1p(others.sumexp_rest) - log1p(row.sumexp_rest)
    log_q_rest = shift(others.maximum, row.maximum) + ratio
    (named,) = upcast(at(logits, index))
    log_q = -surprisal(jnp.where(index < logits.shape[-1], named, -jnp.inf), row)
    return (log_q, log_q_rest), (row, others)


# d log q_i = dz_i - sum_j p_j dz_j, and d log q_* = sum_j r_j dz_j - sum_j p_j dz_j, where r is the
# distribution among the other classes. So with the cotangents c_i and c_* the gradient for z_j is
# c_i if j is the class i, else c_* r_j, and less p_j (sum_i c_i + c_*). A share that is 0 because
# no class is possible has no derivative.
def _log_shares_bwd(
    cotangents: Shares,
    logits: jax.Array,
    index: jax.Array,
    mask: Mask,
    row: Statistics,
    others: Statistics,
) -> tuple[jax.Array, None, None]:
    to_named, to_rest = cotangents
    is_named, mask_of_others = index < logits.shape[-1], _without(index, mask, logits)
    to_named = jnp.where(is_named, to_named, 0.0)
    to_rest = jnp.where(others.maximum == -jnp.inf, 0.0, to_rest)
    z, z_of_others = upcast(mask.fill_logits(logits), mask_of_others.fill_logits(logits))
    total = jnp.sum(to_named, axis=-1, keepdims=True) + to_rest
    named = jnp.where(is_named, at(z, index), -jnp.inf)
    to_named -= probability((), named, row) * total
    to_others = to_rest * probability((), z_of_others, others) - total * probability((), z, row)
    to_others = mask_of_others.fill(to_others, 0.0, 0.0)
    # Both parts are rounded to the dtype of the logits before they are put side by side, so that no
    # wider array is written.
    return _put(to_others.astype(logits.dtype), index, to_named.astype(logits.dtype)), None, None


log_shares = with_gradient(_log_shares_fwd, _log_shares_bwd)
"""``log_shares(logits, index, mask)``: the shares of each row of logits ``[..., classes]``. The
index ``[..., k]`` has different classes that count, and the number of classes for no class, whose
share is 0."""


def _without(index: jax.Array, mask: Mask, logits: jax.Array) -> Mask:
    """The mask without the named classes."""
    if explicit_sharding(logits):
        named = jnp.any(is_label(index, logits.shape[-1]), axis=-2)
    else:
        name = jnp.vectorize(
            lambda named, i: named.at[i].set(True, mode="drop"), signature="(c),(k)->(c)"
        )
        named = name(jnp.zeros(logits.shape, bool), index)
    return mask._replace(classes=~named if mask.classes is None else mask.classes & ~named)


def _put(x: jax.Array, index: jax.Array, values: jax.Array) -> jax.Array:
    """`x`, which is 0 at the named classes, with these values there: as a sum, to be transposed."""
    if explicit_sharding(x):
        return x + jnp.sum(jnp.where(is_label(index, x.shape[-1]), values[..., None], 0), axis=-2)
    put = jnp.vectorize(lambda x, i, v: x.at[i].add(v, mode="drop"), signature="(c),(k),(k)->(c)")
    result: jax.Array = put(x, index, values)
    return result
