"""Elementary functions in their most accurate form, and expressions made of them that are exact.

The usual form of an expression may lose bits, overflow, or make a NaN in a branch that is not
taken; so may JAX's own derivative of it.
"""

import math
import operator
from collections.abc import Callable
from functools import partial, wraps
from inspect import signature
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ._autodiff import Function, aligned, as_one_program, with_partials, with_tangents

# ---------------------------------------- Elementary functions
# A TPU takes `exp`, `log` and their like from approximations in its hardware. It can be asked for
# an accurate form, whose error JAX publishes for `exp` and `expm1` alone. So for TPUs the other
# functions, and quotients, are made of these two, of sums, and of products. The rest of the package
# takes all from here; only the plain reference for row sums keeps `jax.nn.logsumexp`.

HIGHEST = jax.lax.AccuracyMode.HIGHEST
LOG2_HIGH, LOG2_LOW = 0.693359375, -2.121944400546905827679e-4
"""Their sum is log 2. The first has few bits, so that its product with an exponent is exact."""
# The upper half of the bits of a number, whose products with such halves are exact.
_upper = partial(jax.lax.reduce_precision, exponent_bits=8, mantissa_bits=11)

FORMS: dict[Primitive, tuple[Function, Function]] = {}
"""The operations that TPUs compute in a form of their own: the function, and what TPUs compute."""


def on_tpus(
    form: Function, *terms: Function, dtype: Any = np.float32
) -> Callable[[Function], Function]:
    """Makes the decorated elementary function an operation of JAX with another form for TPUs.

    The form is for arguments of this dtype. Programs for other platforms do not change: a choice by
    `jax.lax.platform_dependent` would show there. The `terms` are as in `with_tangents`.
    """

    def decorate(function: Function) -> Function:
        def of_tpus(*args: jax.Array) -> jax.Array:
            return (form if args[-1].dtype == dtype else function)(*args)

        operation = Primitive(function.__name__)
        operation.def_impl(as_one_program(operation.bind))
        operation.def_abstract_eval(lambda a, *b: jax.lax.mul_p.abstract_eval(a, *(b or (a,)))[0])
        kind = "vectorized" if len(signature(function).parameters) == 1 else "broadcasting"
        getattr(batching, f"def{kind}")(operation)
        ad.defjvp(operation, *terms)
        ad.primitive_transposes[operation] = lambda c, a, b: (operation.bind(c, b), None)  # of a/b
        FORMS[operation] = function, of_tpus
        mlir.register_lowering(operation, mlir.lower_fun(function, multiple_results=False))
        mlir.register_lowering(operation, mlir.lower_fun(of_tpus, multiple_results=False), "tpu")

        def bind(*args: Any) -> Any:
            arrays = [x if hasattr(x, "dtype") else args[-1].dtype.type(x) for x in args]
            return operation.bind(*aligned(arrays, (), (True,) * len(args)))

        return wraps(function)(bind)

    return decorate


def exp(x: jax.Array) -> jax.Array:
    """``e^x``."""
    return jax.lax.exp(x, accuracy=HIGHEST)


@with_partials(exp)
def expm1(x: jax.Array) -> jax.Array:
    """``e^x - 1``, with the derivative ``e^x``, where ``expm1(x) + 1`` would cancel."""
    return jax.lax.expm1(x, accuracy=HIGHEST)


# If b r = 1 + h then r (2 - b r) = (1 - h²)/b. The factor is 2 or NaN where r is 0 or infinite.
def _inverse_on_tpu(b: jax.Array) -> jax.Array:
    r = 1 / b
    factor = 2 - b * r
    return r * jnp.where(factor < 2, factor, 1.0)


def _rounded_divide_on_tpu(a: jax.Array, b: jax.Array) -> jax.Array:
    r = 1 / b
    q = a * r
    # Newton's method again; with halves the remainder a - q b is exact.
    q_upper, b_upper = _upper(q), _upper(b)
    rest = ((a - q_upper * b_upper) - q_upper * (b - b_upper)) - (q - q_upper) * b
    return q + jnp.where(jnp.abs(rest) < jnp.inf, rest * r, 0.0)


# d(a/b) = da/b - (a/b) (db/b). In JAX's own derivative the square of 1/b may overflow.
_OF_QUOTIENT: tuple[Function, Function] = (
    lambda dot, a, b: divide(dot, b),
    lambda dot, a, b: -divide(a, b) * divide(dot, b),
)
divide: Function = on_tpus(lambda a, b: a * _inverse_on_tpu(b), *_OF_QUOTIENT)(operator.truediv)
"""``a / b``, with three roundings on TPUs."""
rounded_divide = on_tpus(_rounded_divide_on_tpu, *_OF_QUOTIENT)(operator.truediv)
"""``a / b`` with one rounding also on TPUs. There it takes six times the cycles of `divide`, with
which second derivatives of a divergence would err by 45 eps instead of 32."""


# If y = log(1 + x) + h then d = e^h - 1, so that h = d - d²/2 + …. Newton's method takes h = d.
def _plain_log1p_on_tpu(x: jax.Array) -> jax.Array:
    y = jax.lax.log1p(x, accuracy=HIGHEST)
    d = (expm1(y) - x) / (1 + x)
    return y - d * (1 - 0.5 * d)


@on_tpus(_plain_log1p_on_tpu, lambda dot, x: divide(dot, x + 1))
def plain_log1p(x: jax.Array) -> jax.Array:
    """``log(1 + x)`` for x from -1/4 to 1e12."""
    return jax.lax.log1p(x, accuracy=HIGHEST)


def _split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The k and f with ``x = 2^k (1 + f)`` and 1 + f between √½ and √2, for a normal number x."""
    root = np.float32(math.sqrt(0.5)).view(np.int32)
    bits = jax.lax.bitcast_convert_type(x, np.int32) - root
    mantissa = jax.lax.bitcast_convert_type((bits & 0x7FFFFF) + root, x.dtype)
    return (bits >> 23).astype(x.dtype), mantissa - 1


def _log_on_tpu(w: jax.Array, x: jax.Array) -> jax.Array:
    """``log(w)`` for w = 1 + x. If x is small, rounding may have taken bits of it from w."""
    k, f = _split(w)
    of_parts = k * LOG2_HIGH + (k * LOG2_LOW + _plain_log1p_on_tpu(jnp.where(k == 0, x, f)))
    return jnp.where((w > 0) & (w < jnp.inf), of_parts, jax.lax.log(w, accuracy=HIGHEST))


@on_tpus(lambda x: _log_on_tpu(x, x - 1), lambda dot, x: divide(dot, x))
def log(x: jax.Array) -> jax.Array:
    """The natural logarithm."""
    return jax.lax.log(x, accuracy=HIGHEST)


@on_tpus(lambda x: _log_on_tpu(1 + x, x), lambda dot, x: divide(dot, x + 1))
def log1p(x: jax.Array) -> jax.Array:
    """``log(1 + x)``; XLA's own float64 form is off by 120 eps around -0.4 in JAX 0.10."""
    near = jnp.abs(x) < 0.25
    return jnp.where(near, plain_log1p(jnp.where(near, x, 0.0)), log(1 + x))


def _tanh_on_tpu(x: jax.Array) -> jax.Array:
    change = expm1(-2 * jnp.abs(x))
    return -jnp.sign(x) * divide(change, 2 + change)


@on_tpus(_tanh_on_tpu, lambda dot, x: sech2(x) * dot)
def tanh(x: jax.Array) -> jax.Array:
    """The hyperbolic tangent."""
    return jax.lax.tanh(x, accuracy=HIGHEST)


# `jax.nn.sigmoid` is the same quotient, but compilers expand it with the approximate exponential.
@on_tpus(lambda z: _inverse_on_tpu(1 + exp(-z)), lambda dot, z: sigmoid(z) * sigmoid(-z) * dot)
def sigmoid(z: jax.Array) -> jax.Array:
    """``1 / (1 + e^-z)``, with the derivative ``s(z) s(-z)``, where ``s (1 - s)`` would cancel."""
    return 1 / (1 + exp(-z))


@with_partials(sigmoid)
def softplus(z: jax.Array) -> jax.Array:
    """``log(1 + e^z)``."""
    return jnp.maximum(z, 0.0) + plain_log1p(exp(-jnp.abs(z)))


def power_by_exp(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x ** y`` as ``exp(y log x)``, within 2.6 eps for ``|y| <= 3``.

    The rounding error of ``y log x`` would become a relative error of ``|y log x|`` eps, up to 100
    eps. So both factors are split. Their upper halves have an exact product, to which the lower
    halves add a small number.
    """
    # Beyond these limits the result is 0, 1 or infinity. An infinite exponent cannot be split.
    y = jnp.clip(y, -(2.0**64), 2.0**64)
    # With x = 2^k (1 + f) the sum k log 2 + log(1 + f) has no error but that of its last term, and
    # this has the least as 2 artanh(s) for s = f/(2 + f), that is f - s (f - s² (2/3 + 2s²/5 + …)).
    k, f = _split(jnp.maximum(x, np.finfo(x.dtype).tiny))
    s = divide(f, 2 + f)
    series = s * s * _power_series(lambda n: 2 / (2 * n + 3), s * s, 0.03)
    high, low = k * LOG2_HIGH, k * LOG2_LOW + (f - s * (f - series))
    log_x, y_upper = _upper(high + low), _upper(y)
    rest = y * ((high - log_x) + low) + (y - y_upper) * log_x
    # The rest is larger only where the upper parts give 0 or infinity. It must not make that NaN.
    rest = jnp.clip(rest, -1.0, 1.0)
    # XLA would turn a product of two exponentials into the exponential of the sum.
    return exp(y_upper * log_x) * (1 + expm1(rest))


# A TPU makes its instruction of an approximate exponential. That of a CPU has one unit of error.
@on_tpus(
    power_by_exp,
    lambda dot, x, y: y * power(x, y - 1) * dot,
    lambda dot, x, y: power(x, y) * log(jnp.where(x > 0, x, 1.0)) * dot,
)
def power(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x ** y`` for a positive number x of 1 or less. Its derivatives may overflow."""
    return jnp.power(x, y)


# ---------------------------------------- Quotients, shares and their logarithms


@with_partials(lambda x: divide(-1.0, expm1(-x)))
def log_of_complement(x: jax.Array) -> jax.Array:
    """``log(1 - e^x)`` for ``x <= 0``."""
    near = x > -math.log(2)
    small = log(-expm1(jnp.where(near, x, -1.0)))
    return jnp.where(near, small, log1p(-exp(jnp.where(near, -1.0, x))))


def quotient(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a / b``. If b is broadcast XLA multiplies by 1/b, which underflows for the largest b."""
    maxexp = np.finfo(b.dtype).maxexp
    scale = jnp.where(b > 2.0 ** (3 * maxexp // 4), 2.0 ** (-maxexp // 4), 1.0).astype(b.dtype)
    return divide(a * scale, b * scale)


def quotient_of_weight(weight: jax.Array, x: jax.Array) -> jax.Array:
    """``weight / x``, 0 where both are 0."""
    both = (weight == 0) & (x == 0)
    return jnp.where(both, 0.0, quotient(weight, jnp.where(both, 1.0, x)))


def no_tangent(dot: jax.Array, *args: jax.Array) -> jax.Array:
    return jnp.zeros_like(args[0])


def _relative(dot: jax.Array, share: jax.Array, *others: jax.Array) -> jax.Array:
    return quotient(dot, jnp.where(share == 0, 1.0, share))


@with_tangents(_relative, no_tangent)
def log_of_share(share: jax.Array, others: jax.Array) -> jax.Array:
    """``log(share)`` for a share of 1, exact also for a share that is nearly 1; 0 for the share 0.

    `others` is ``1 - share``. For a share near 1 it has bits that the share has lost. Both stand
    for the same variable, so the derivative for the share is the whole derivative.
    """
    is_small, nothing = share < 0.5, share == 0
    small = jnp.where(is_small & ~nothing, share, 1.0)
    return jnp.where(is_small, log(small), log1p(-jnp.where(is_small, 0.5, others)))


# d(s^e) = e s^e (ds/s) + s^e log(s) de. A lower power, such as the s^(e-2) of the second
# derivative, would overflow before the small tangents multiply it.
@with_tangents(
    lambda dot, share, others, exponent: (
        exponent * power_of_share(share, others, exponent) * _relative(dot, share)
    ),
    no_tangent,
    lambda dot, share, others, exponent: (
        power_of_share(share, others, exponent) * log_of_share(share, others) * dot
    ),
)
def power_of_share(share: jax.Array, others: jax.Array, exponent: jax.Array) -> jax.Array:
    """``share ** exponent`` for a share as in `log_of_share`.

    A large exponent multiplies the rounding error of a share that is nearly 1. That error is known
    from `others`, and the result is corrected by the series of its exponential: calling the
    exponential would take a third more time.
    """
    near_one = jnp.maximum(share, 0.5)
    lost = jnp.where(share < 0.5, 0.0, (1 - near_one) - others)
    x = jnp.clip(exponent * divide(lost, near_one), -1.0, 1.0)
    return power(share, exponent) * (1 + x * (1 + 0.5 * x * (1 + (1 / 3) * x)))


def _inverse(x: jax.Array) -> jax.Array:
    """``1 / x`` where x is positive, else 0."""
    return jnp.where(x > 0, divide(1.0, jnp.where(x > 0, x, 1.0)), 0.0)


@with_partials(lambda p, q: _inverse(p), lambda p, q: -_inverse(q))
def log_quotient(p: jax.Array, q: jax.Array) -> jax.Array:
    """``log(p/q)`` for non-negative numbers: 0 where both are 0, else ±inf where one is."""
    both = (p > 0) & (q > 0)
    a, b = jnp.where(both, p, 1.0), jnp.where(both, q, 1.0)
    # A power of two moves b to the middle of the range. There the difference does not underflow
    # and the quotient does not overflow, unless a and b are far apart.
    middle = 2.0 ** (15 * np.finfo(p.dtype).maxexp // 32)
    scale = jnp.where(b < 1, middle, 1 / middle).astype(p.dtype)
    scaled_a, scaled_b = a * scale, b * scale
    change, ratio = divide(scaled_a - scaled_b, scaled_b), divide(scaled_a, scaled_b)
    # The difference of close numbers is exact. Their quotient, being near 1, has lost its bits.
    close, far = jnp.abs(change) < 0.25, (ratio < 1 / middle) | (ratio > middle)
    of_change, of_ratio = jnp.where(close, change, 0.0), jnp.where(close | far, 1.0, ratio)
    near = jnp.where(close, plain_log1p(of_change), log(of_ratio))
    t = jnp.where(both, jnp.where(far, log(a) - log(b), near), one_sided_log_quotient(p, q))
    return nan_where(jnp.isnan(p) | jnp.isnan(q) | (p < 0) | (q < 0), t)


def one_sided_log_quotient(p: jax.Array, q: jax.Array) -> jax.Array:
    """``log(p/q)`` where p or q is 0: 0 where both are, else ±inf.

    It only compares p and q, so that their logarithms serve, or truth values for what is there.
    """
    return jnp.where(p == q, 0.0, jnp.where(p > q, jnp.inf, -jnp.inf))


# ---------------------------------------- Weights, and values that are not numbers


def finite(x: jax.Array) -> jax.Array:
    """The largest number in place of infinity: infinity minus itself, or times 0, is NaN."""
    largest = np.finfo(x.dtype).max
    return jax.lax.clamp(-largest, x, largest)


def nan_where(condition: jax.Array, x: jax.Array) -> jax.Array:
    """`x`, but NaN where the condition holds, with the gradient NaN there.

    A constant NaN must not be used: `jax_debug_nans` with `jax_disable_jit` stops at each array
    that has a NaN, even in a branch that is not taken. Here a NaN appears only where the condition
    holds, as 0 times infinity. A quotient 0/0 would do the same, but XLA would not fuse it.
    """
    zero, infinity = (jnp.where(condition, c, 1.0).astype(x.dtype) for c in (0.0, jnp.inf))
    return x * (zero * infinity)


def zero_if_weightless(weight: jax.Array, cost: jax.Array) -> jax.Array:
    """The cost, but 0 where it is infinite and has no weight: 0 log 0 is 0."""
    return jnp.where((weight == 0) & (cost == jnp.inf), 0.0, cost)


def weighted_cost(weight: jax.Array, cost: jax.Array) -> jax.Array:
    """``weight * cost``, with 0 log 0 = 0."""
    return weight * zero_if_weightless(weight, cost)


@with_tangents(
    lambda dot, weight, x: dot * x,
    lambda dot, weight, x: jnp.where(weight == 0, 0.0, weight * dot),
)
def weighted(weight: jax.Array, x: jax.Array) -> jax.Array:
    """``weight * x``, where an infinite cotangent without weight is 0 for x."""
    return weight * x


@jax.custom_jvp
def replaced_where(condition: jax.Array, x: jax.Array, value: jax.Array | float) -> jax.Array:
    """`value` where the condition holds, else x, with the derivatives of x in both cases.

    It replaces a gradient where that is infinite. Derivatives of the gradient for other arguments
    are finite there, and must stay, or second derivatives would not be symmetric.
    """
    return jnp.where(condition, value, x)


@replaced_where.defjvp
def _replaced_where_rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return replaced_where(*primals), tangents[1]


# ---------------------------------------- Terms of divergences


@with_partials(lambda a, b: jnp.ones_like(a), lambda a, b: -jnp.ones_like(b))
def difference(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a - b``, 0 for equal infinities."""
    equal = a == b
    return jnp.where(equal, 0.0, a) - jnp.where(equal, 0.0, b)


def excess(t: jax.Array) -> jax.Array:
    """``φ(t) = t e^t - expm1(t) = t²/2 + t³/3 + t⁴/8 + …``, never negative, for t <= 1.

    A divergence is a sum of such terms. It is the error at 0 of the tangent of exp at t.
    """
    near = jnp.abs(t) < 0.5
    small = jnp.where(near, t, 0.0)
    series = _power_series(lambda n: (n + 1) / math.factorial(n + 2), small, 0.5)
    # Below -1000 the first term is 0 in any dtype, but at -inf it would be NaN.
    far = jnp.clip(jnp.where(near, -1.0, t), -1000.0, 1.0)
    return jnp.where(near, small**2 * series, far * exp(far) - expm1(far))


def _power_series(coefficient: Callable[[int], float], x: jax.Array, largest: float) -> jax.Array:
    """``sum_n coefficient(n) x^n`` for ``|x| <= largest``, to the precision of `x`."""
    eps, number, power = float(np.finfo(x.dtype).eps), 1, largest
    while coefficient(number) / coefficient(0) * power > eps / 16:
        number, power = number + 1, power * largest
    series = jnp.zeros_like(x)
    for n in reversed(range(number)):
        series = series * x + coefficient(n)
    return series


def divergence_terms(t: jax.Array, p: jax.Array, q: jax.Array) -> jax.Array:
    """``q φ(t) = p log(p/q) - p + q`` for ``t = log(p/q)``, +inf where t is."""
    near = t < 1
    far = jnp.where(near | (t == jnp.inf), 1.0, t)
    terms = jnp.where(near, q * excess(jnp.where(near, t, 0.0)), p * (far + expm1(-far)))
    return jnp.where(t == jnp.inf, jnp.inf, terms)


def mixture_ratio(t: jax.Array) -> jax.Array:
    """``log(p/m) = log 2 - log(1 + e^-t)`` for m = (p + q)/2 and ``t = log(p/q)``."""
    near = jnp.abs(t) < 1
    close = -log1p(0.5 * expm1(jnp.where(near, -t, 0.0)))
    return jnp.where(near, close, math.log(2) - softplus(-t))


# With m/p = own + other q/p the derivatives of log(p/m) are other q/m, -p/m and -q/m. The largest
# number stands for a ratio that overflows, as infinity times 0 would be NaN.
def _ratio_to_mixture(t: jax.Array, own: jax.Array, other: jax.Array) -> jax.Array:
    return jnp.minimum(exp(weighted_mixture_ratio(t, own, other)), np.finfo(t.dtype).max)


@with_partials(
    lambda t, own, other: sigmoid(_log_odds(t, own, other)),
    lambda t, own, other: -_ratio_to_mixture(t, own, other),
    lambda t, own, other: -_ratio_to_mixture(-t, other, own),
)
def weighted_mixture_ratio(t: jax.Array, own: jax.Array, other: jax.Array) -> jax.Array:
    """``log(p/m)`` for m = own p + other q, with own + other = 1, and ``t = log(p/q)``.

    ``m/p = own + other e^-t = 1 + other expm1(-t)``, and the last form has the bits of what is
    near 1. Otherwise the logarithms of the two terms, which may be 0 or overflow, are added. Where
    m/p is small they are negative, and so are their parts, so that nothing cancels.
    """
    down = jnp.where(t > -60, -t, 0.0)
    change = other * expm1(down)
    near = (t > -60) & (change > -0.5)
    of_change = log1p(jnp.where(near, change, 0.0))
    top = jnp.maximum(*_logs_of_terms(t, own, other))
    of_terms = top + plain_log1p(exp(-jnp.abs(_log_odds(t, own, other))))
    return -jnp.where(near, of_change, of_terms)


def _log_odds(t: jax.Array, own: jax.Array, other: jax.Array) -> jax.Array:
    """``log(other q / (own p))``; 0 where both terms of m/p are 0 or one is infinite."""
    a, b = _logs_of_terms(t, own, other)
    known = jnp.isfinite(jnp.maximum(a, b))
    return jnp.where(known, b, 0.0) - jnp.where(known, a, 0.0)


def _logs_of_terms(t: jax.Array, own: jax.Array, other: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``log(own)`` and ``log(other e^-t)``, the terms of m/p."""
    of_own, of_other = log_of_share(own, other), log_of_share(other, own) - t
    return jnp.where(own > 0, of_own, -jnp.inf), jnp.where(other > 0, of_other, -jnp.inf)


# ---------------------------------------- Sums


def two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``a + b`` rounded, and the rounding error (D. E. Knuth, TAOCP 2, 4.2.2)."""
    total = a + b
    seen = total - a
    return total, (a - (total - seen)) + (b - seen)


def signed_sum(x: jax.Array, bound: jax.Array) -> jax.Array:
    """Sum over the last axis that stays accurate where terms of both signs cancel.

    Each term is split at one bit position that serves all of them: the upper parts are
    multiples of one number and few enough bits wide that they add without error.
    S. M. Rump, T. Ogita, S. Oishi, Accurate Floating-Point Summation Part I, 2008.

    Args:
      x: ``[..., n]``.
      bound: ``[..., 1]``, no less than any ``|x|`` of its row, and far from overflow.
    """
    n = jnp.asarray(x.shape[-1] + 2).astype(x.dtype)
    anchor = power_of_two(bound) * power_of_two(n)
    upper = (anchor + x) - anchor
    return jnp.sum(upper, axis=-1) + jnp.sum(x - upper, axis=-1)


def sums_of_two(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``sum_j a_j`` and ``sum_j b_j`` over the last axis, as ``[..., 1]``, in one look at both.

    They are the parts of one complex sum. For two separate sums XLA may compute the arrays twice,
    with different rounding, or write both to memory.
    """
    both = jnp.sum(jax.lax.complex(a, b), axis=-1, keepdims=True)
    return jnp.real(both), jnp.imag(both)


def _power_of_two(x: jax.Array, dtype: Any) -> jax.Array:
    exponent_bits = np.finfo(dtype).nexp
    nearest = jax.lax.reduce_precision(x.astype(dtype), exponent_bits, mantissa_bits=0)
    nearest = nearest.astype(x.dtype)
    return jnp.where(nearest < x, 2 * nearest, nearest)


# XLA has no `reduce_precision` for the float64 of a TPU, a pair of float32 that has their range.
# Sums of pairs are rounded at no fixed bit, so `signed_sum` is not exact there.
@on_tpus(partial(_power_of_two, dtype=np.float32), no_tangent, dtype=np.float64)
def power_of_two(x: jax.Array) -> jax.Array:
    """The least power of two that is not below the positive number `x`, exactly."""
    return _power_of_two(x, x.dtype)


def sum_of_products(a: jax.Array, b: jax.Array) -> jax.Array:
    """``sum_j a_j b_j`` over the last axis.

    The products are made in a larger unit, so that they do not overflow: otherwise products of
    both signs would be inf and -inf, and their sum NaN.
    """
    unit = 2.0 ** (np.finfo(a.dtype).maxexp // 16)
    return jnp.sum(a * (b * (1 / unit)), axis=-1) * unit


# ---------------------------------------- The soft cap of logits
# With u = z / c, the derivatives of c tanh(u) are products of three functions, whose derivatives
# are products of the same functions:
#
#     tanh' = sech²,   (sech²)' = -2 tanh sech²,   (tanh u - u sech² u)' = 2 u tanh u sech² u
#
# Computed as 1 - tanh² the second would lose its bits for a large u, and computed as a difference
# the third would lose them for a small u.

LARGEST = 1000.0
"""The largest u. Above it nothing depends on u, since e^-u is 0 in any dtype."""


# d(c tanh u) = c sech² u du + tanh u dc with du = (dz - u dc) / c.
@with_partials(
    lambda z, cap: sech2(_quotient(z, cap)),
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
    return divide(jnp.where(jnp.abs(_quotient(z, cap)) < LARGEST, 1.0, 0.0).astype(z.dtype), cap)


# du = (dz - u dc) / c. For an infinite z JAX would multiply infinity by the slope of the clip, 0.
@with_partials(_slope, lambda z, cap: -_quotient(z, cap) * _slope(z, cap))
def _quotient(z: jax.Array, cap: jax.Array) -> jax.Array:
    """``u = z / cap``, at most `LARGEST`, and 0 where the cap is infinite."""
    return jnp.clip(rounded_divide(jnp.where(cap == jnp.inf, 0.0, z), cap), -LARGEST, LARGEST)


@with_partials(lambda u: -2 * tanh(u) * sech2(u))
def sech2(u: jax.Array) -> jax.Array:
    """``sech² u``, by the sigmoid s: ``4 s(2u) s(-2u)``."""
    return 4 * sigmoid(2 * u) * sigmoid(-2 * u)


@with_partials(lambda u: 2 * u * tanh(u) * sech2(u))
def _lag(u: jax.Array) -> jax.Array:
    """``tanh u - u sech² u``, which is ``(sinh v - v) sech²(u) / 2`` for ``v = 2u``."""
    near = jnp.abs(u) < 1.5
    v = jnp.where(near, 2 * u, 0.0)
    square = v * v
    # sinh v - v = v³/3! + v⁵/5! + …
    series = _power_series(lambda n: 1 / math.factorial(2 * n + 3), square, 9.0)
    slope = sech2(u)
    return jnp.where(near, v * square * series * (0.5 * slope), tanh(u) - u * slope)
