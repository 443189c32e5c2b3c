"""The one table of tolerances, and the comparison of results with the truth.

An error is counted in units of eps, that of the computing dtype, relative to the sum of the
absolute values of the terms that make the exact result: to the result itself where they have one
sign. What grows with a logarithm (the `extra` of the truth) is allowed on top. Gradients that come
back in 16 bits are allowed one unit in the last place there.
"""

from decimal import Decimal, localcontext

import jax.numpy as jnp
import numpy as np

from jxent._selftest.exact import context, decimals

DTYPES = ("float32", "float64", "bfloat16", "float16")

UNITS = {
    "logsumexp": 4,
    "softmax": 16,
    "sigmoid": 8,
    "power of sigmoid": 8,
    "probability": 8,
    "log-probability": 8,
    "divergence": 64,
}
"""By family of the table of losses."""

SECOND_DERIVATIVE = 64

# Results this small may flush to zero: XLA on CPU has no subnormal numbers.
FLUSHED = {"float32": 1e-33, "float64": 1e-100}

# Enough digits for a root of one minus a probability that small, and for the sum of the largest
# numbers.
DIGITS = {"float32": 100, "float64": 330}


def computing(dtype):
    """The name of the dtype in which inputs of `dtype` are computed."""
    return "float64" if dtype == "float64" else "float32"


def many_digits(dtype):
    """Decimals are computed, inside this context, as a truth for `dtype` takes."""
    return localcontext(context(DIGITS[computing(dtype)]))


def eps(dtype):
    return float(np.finfo(computing(dtype)).eps)


def allowed(quantity, units, dtype, out_dtype):
    """The largest error of a result computed from inputs of `dtype`, returned in `out_dtype`."""
    flushed = Decimal(FLUSHED[computing(dtype)])
    error = Decimal(eps(dtype)) * (units * quantity.terms + quantity.extra) + flushed
    if jnp.dtype(out_dtype).itemsize == 2:
        error = error + _last_place(quantity.exact, out_dtype)
    return error


def worst_error(got, quantity, units, dtype):
    """The largest error as a fraction of the allowed one, and where it is."""
    got = np.asarray(got)
    out_dtype = got.dtype
    exact = np.asarray(quantity.exact, dtype=object)
    assert got.shape == exact.shape, f"shape {got.shape}, not {exact.shape}"
    bound = np.broadcast_to(allowed(quantity, units, dtype, out_dtype), exact.shape)
    largest = Decimal(float(jnp.finfo(out_dtype).max))
    infinity = decimals(np.copysign(np.inf, got.astype(np.float64)))
    overflow = np.where(abs(exact) > largest, infinity, exact)
    ratio = np.frompyfunc(_ratio, 3, 1)(decimals(got), overflow, bound).astype(np.float64)
    at = np.unravel_index(np.argmax(ratio), ratio.shape)
    terms = np.broadcast_to(quantity.terms, exact.shape)[at]
    off = abs(decimals(got)[at] - exact[at])
    in_eps = float(off / (terms * Decimal(eps(dtype)))) if terms else float("inf")
    return ratio[at], (
        f"{ratio[at]:.3g} times the allowed error at {tuple(map(int, at))}: {got[at]!s}"
        f" for {exact[at]:.12g}, off by {in_eps:.3g} eps"
    )


def _ratio(got, exact, bound):
    if got == exact:
        return 0.0
    if not (got.is_finite() and exact.is_finite()):
        return float("inf")
    return float(abs(got - exact) / bound)


def _last_place(exact, dtype):
    info = jnp.finfo(dtype)

    def of(x):
        return float(np.ldexp(1.0, max(_exponent(x, info.minexp) - info.nmant, least)))

    least = info.minexp - info.nmant
    return np.frompyfunc(lambda x: Decimal(of(x)), 1, 1)(exact)


def _exponent(x, least):
    """Of the power of two below ``|x|``; `least` for what is that small, or zero."""
    size = float(abs(x))
    return int(np.frexp(size)[1]) - 1 if np.isfinite(size) and size else least
