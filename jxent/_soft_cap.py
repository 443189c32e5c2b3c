r"""The soft cap of logits, :math:`c \tanh(z / c)`, exact in its derivatives of any order.

With :math:`u = z / c` they are products of three functions, whose derivatives are products of the
same functions:

.. math::
    \tanh' = \operatorname{sech}^2, \qquad
    (\operatorname{sech}^2)' = -2 \tanh \operatorname{sech}^2, \qquad
    (\tanh u - u \operatorname{sech}^2 u)' = 2 u \tanh u \operatorname{sech}^2 u

Computed as :math:`1 - \tanh^2` the second would lose its bits for a large u, and computed as a
difference the third would lose them for a small u.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ._elementary import sigmoid, tanh, with_partials

LARGEST = 1000.0
"""The largest u. Above it nothing depends on u: sech² is 0 already for much smaller u."""


# d(c tanh u) = c sech² u du + tanh u dc with du = (dz - u dc) / c.
@with_partials(
    lambda z, cap: _sech2(_quotient(z, cap)),
    lambda z, cap: _lag(_quotient(z, cap)),
)
def soft_cap(z: jax.Array, cap: jax.Array) -> jax.Array:
    """``cap tanh(z / cap)`` for a positive number `cap` of the dtype of `z`; z for +inf."""
    u = _quotient(z, cap)
    # Where u² is lost beside 1 the result is z itself. This also serves an infinite cap, which is
    # no cap, and a quotient that has underflowed.
    near = u * u < np.finfo(z.dtype).eps / 2
    return jnp.where(near, z, jnp.where(near, 1.0, cap) * tanh(u))


def _slope(z: jax.Array, cap: jax.Array) -> jax.Array:
    return jnp.where(jnp.abs(_quotient(z, cap)) < LARGEST, 1.0, 0.0).astype(z.dtype) / cap


# du = (dz - u dc) / c. JAX would divide by the square of c, which may overflow.
@with_partials(_slope, lambda z, cap: -_quotient(z, cap) * _slope(z, cap))
def _quotient(z: jax.Array, cap: jax.Array) -> jax.Array:
    """``u = z / cap``, at most `LARGEST`, and 0 where the cap is infinite."""
    return jnp.clip(jnp.where(cap == jnp.inf, 0.0, z) / cap, -LARGEST, LARGEST)


@with_partials(lambda u: _sech2(u))
def _tanh(u: jax.Array) -> jax.Array:
    return tanh(u)


@with_partials(lambda u: -2 * _tanh(u) * _sech2(u))
def _sech2(u: jax.Array) -> jax.Array:
    """``sech² u``, by the sigmoid s: ``4 s(2u) s(-2u)``."""
    return 4 * sigmoid(2 * u) * sigmoid(-2 * u)


@with_partials(lambda u: 2 * u * _tanh(u) * _sech2(u))
def _lag(u: jax.Array) -> jax.Array:
    """``tanh u - u sech² u``, which is ``(sinh v - v) sech²(u) / 2`` for ``v = 2u``."""
    near = jnp.abs(u) < 1.5
    v = jnp.where(near, 2 * u, 0.0)
    square, series = v * v, jnp.zeros_like(v)
    for n in reversed(range(_terms(float(np.finfo(u.dtype).eps)))):
        series = series * square + 1 / math.factorial(2 * n + 3)
    slope = _sech2(u)
    return jnp.where(near, v * square * series * (slope / 2), tanh(u) - u * slope)


def _terms(eps: float) -> int:
    """How many terms ``sinh v - v = v³/3! + v⁵/5! + …`` needs at v = 3."""
    n = 1
    while 3.0 ** (2 * n) * 6 / math.factorial(2 * n + 3) > eps / 16:
        n += 1
    return n
