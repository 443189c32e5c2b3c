"""Elementary functions where the usual expression loses bits."""

import math

import jax
import jax.numpy as jnp
import numpy as np


def nan_where(condition: jax.Array, x: jax.Array) -> jax.Array:
    """`x`, but NaN where the condition holds, with the gradient NaN there.

    `jax_debug_nans` with `jax_disable_jit` stops at every array that has a NaN, be it a constant
    in a branch that is not taken. Here only the data make it, as 0 times infinity where the
    condition holds (XLA would not fuse the quotient 0/0, but write it to memory).
    """
    zero, infinity = (jnp.where(condition, c, 1.0).astype(x.dtype) for c in (0.0, jnp.inf))
    return x * (zero * infinity)


def chargeable(weight: jax.Array, cost: jax.Array) -> jax.Array:
    """The cost, but 0 where it is infinite and has no weight: 0 log 0 is 0."""
    return jnp.where((weight == 0) & (cost == jnp.inf), 0.0, cost)


def times(weight: jax.Array, cost: jax.Array) -> jax.Array:
    """``weight * cost``, with 0 log 0 = 0."""
    return weight * chargeable(weight, cost)


def log1p(x: jax.Array) -> jax.Array:
    """``log(1 + x)``; XLA's own float64 form is off by 120 eps around -0.4 in JAX 0.10."""
    near = jnp.abs(x) < 0.25
    return jnp.where(near, jnp.log1p(jnp.where(near, x, 0.0)), jnp.log(1 + x))


def excess(t: jax.Array) -> jax.Array:
    """``φ(t) = t e^t - expm1(t) = t²/2 + t³/3 + t⁴/8 + …``, never negative, for t <= 1.

    It is e^t times the error of the tangent of exp at t: what a divergence sums over classes.
    """
    near = jnp.abs(t) < 0.5
    small = jnp.where(near, t, 0.0)
    series = jnp.zeros_like(small)
    for n in reversed(range(_terms(float(np.finfo(t.dtype).eps)))):
        series = series * small + (n + 1) / math.factorial(n + 2)
    # Below -1000 the first term has vanished; -inf would make it NaN.
    far = jnp.clip(jnp.where(near, -1.0, t), -1000.0, 1.0)
    return jnp.where(near, small**2 * series, far * jnp.exp(far) - jnp.expm1(far))


def _terms(eps: float) -> int:
    """How many terms the series needs at t = 1/2."""
    n = 1
    while 0.5**n * (n + 1) / math.factorial(n + 2) > eps / 16:
        n += 1
    return n


def divergence_terms(t: jax.Array, p: jax.Array, q: jax.Array) -> jax.Array:
    """``q φ(t) = p log(p/q) - p + q`` for ``t = log(p/q)``, +inf where t is."""
    near = t < 1
    far = jnp.where(near | (t == jnp.inf), 1.0, t)
    terms = jnp.where(near, q * excess(jnp.where(near, t, 0.0)), p * (far + jnp.expm1(-far)))
    return jnp.where(t == jnp.inf, jnp.inf, terms)


def log_quotient(p: jax.Array, q: jax.Array) -> jax.Array:
    """``log(p/q)`` for non-negative numbers: 0 where both are 0, else ±inf where one is."""
    both = (p > 0) & (q > 0)
    safe_p, safe_q = jnp.where(both, p, 1.0), jnp.where(both, q, 1.0)
    # Close numbers have an exact difference, and the quotient would have lost it.
    close = jnp.abs(safe_p - safe_q) < 0.25 * safe_q
    change = jnp.where(close, (safe_p - safe_q) / safe_q, 0.0)
    ratio = jnp.where(close, jnp.log1p(change), jnp.log(safe_p / safe_q))
    one_sided = jnp.where(p == q, 0.0, jnp.where(p > q, jnp.inf, -jnp.inf))
    undefined = jnp.isnan(p) | jnp.isnan(q) | (p < 0) | (q < 0)
    return nan_where(undefined, jnp.where(both, ratio, one_sided))


def mixture_ratio(t: jax.Array) -> jax.Array:
    """``log(p/m) = log 2 - log(1 + e^-t)`` for m = (p + q)/2 and ``t = log(p/q)``."""
    near = jnp.abs(t) < 1
    close = -log1p(jnp.expm1(jnp.where(near, -t, 0.0)) / 2)
    return jnp.where(near, close, math.log(2) - jax.nn.softplus(-t))


def signed_sum(x: jax.Array) -> jax.Array:
    """Sum over the last axis that stays accurate where terms of both signs cancel.

    Each term is split at one bit position that serves all of them: the upper parts are
    multiples of one number and few enough bits wide that they add without error.
    S. M. Rump, T. Ogita, S. Oishi, Accurate Floating-Point Summation Part I, 2008.
    """
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    anchor = jnp.exp2(jnp.ceil(jnp.log2(jnp.maximum(largest, np.finfo(x.dtype).tiny))))
    anchor = anchor * 2.0 ** math.ceil(math.log2(x.shape[-1] + 2))
    upper = (anchor + x) - anchor
    return jnp.sum(upper, axis=-1) + jnp.sum(x - upper, axis=-1)
