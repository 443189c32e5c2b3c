"""Elementary functions, each asked for in its most accurate form.

A TPU takes `exp`, `log` and their like from approximations in its hardware, unless a program asks
for the accurate form. On a CPU the results are the same, bit for bit. So the rest of the package
takes these functions from here; only the plain reference for row sums keeps `jax.nn.logsumexp`.

The derivatives, too, are exact where JAX's own derivative of an expression is not.
"""

import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

HIGHEST = jax.lax.AccuracyMode.HIGHEST
LOG2_HIGH, LOG2_LOW = 0.693359375, -2.121944400546905827679e-4
"""Their sum is log 2. The first has few bits, so that its product with an exponent is exact."""


def with_partials(
    *partials: Callable[..., jax.Array],
) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
    """Differentiates the decorated elementary function by its partial derivatives.

    JAX's own derivatives of such expressions lose bits to cancellation, divide by squares that
    overflow, and have NaN from branches that are not taken, where 0 is multiplied by infinity.
    """

    def term(to_argument: Callable[..., jax.Array], dot: jax.Array, *primals: Any) -> jax.Array:
        return to_argument(*primals) * dot

    return with_tangents(*(partial(term, to_argument) for to_argument in partials))


def with_tangents(
    *terms: Callable[..., jax.Array],
) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
    """`with_partials` where a partial derivative may overflow though its product does not.

    Each term gets the tangent of its argument, which it is linear in, and then all arguments.
    """

    def decorate(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        differentiable = jax.custom_jvp(function)

        @partial(differentiable.defjvp, symbolic_zeros=True)
        def tangent_rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
            dots = [
                term(dot, *primals)
                for term, dot in zip(terms, tangents, strict=True)
                if not isinstance(dot, SymbolicZero)
            ]
            return differentiable(*primals), reduce(operator.add, dots)

        return differentiable

    return decorate


def exp(x: jax.Array) -> jax.Array:
    """``e^x``."""
    return jax.lax.exp(x, accuracy=HIGHEST)


def log(x: jax.Array) -> jax.Array:
    """The natural logarithm."""
    return jax.lax.log(x, accuracy=HIGHEST)


@with_partials(exp)
def expm1(x: jax.Array) -> jax.Array:
    """``e^x - 1``, with the derivative ``e^x``, where ``expm1(x) + 1`` would cancel."""
    return jax.lax.expm1(x, accuracy=HIGHEST)


def plain_log1p(x: jax.Array) -> jax.Array:
    """``log(1 + x)`` for x >= -1/4, without the selection that `log1p` needs."""
    return jax.lax.log1p(x, accuracy=HIGHEST)


def log1p(x: jax.Array) -> jax.Array:
    """``log(1 + x)``; XLA's own float64 form is off by 120 eps around -0.4 in JAX 0.10."""
    near = jnp.abs(x) < 0.25
    return jnp.where(near, plain_log1p(jnp.where(near, x, 0.0)), log(1 + x))


def tanh(x: jax.Array) -> jax.Array:
    """The hyperbolic tangent."""
    return jax.lax.tanh(x, accuracy=HIGHEST)


# `jax.nn.sigmoid` is the same quotient, but a compiler makes it of an exponential that has lost
# what was asked for.
@with_partials(lambda z: sigmoid(z) * sigmoid(-z))
def sigmoid(z: jax.Array) -> jax.Array:
    """``1 / (1 + e^-z)``, with the derivative ``s(z) s(-z)``, where ``s (1 - s)`` would cancel."""
    return 1 / (1 + exp(-z))


@with_partials(sigmoid)
def softplus(z: jax.Array) -> jax.Array:
    """``log(1 + e^z)``."""
    return jnp.maximum(z, 0.0) + plain_log1p(exp(-jnp.abs(z)))


# The instruction for a power cannot be asked for accuracy, and a TPU makes it of its approximate
# exponential. Other platforms keep the instruction: a CPU computes it within one unit in the last
# place, which `power_by_exp` does not reach. So does float64, which a TPU only emulates: XLA has
# no `reduce_precision` for it there.
def power(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x ** y`` for a positive number x of 1 or less. Its derivatives are left to its caller."""
    on_tpu = jnp.power if x.dtype == jnp.float64 else power_by_exp
    result: jax.Array = jax.lax.platform_dependent(x, y, tpu=on_tpu, default=jnp.power)
    return result


def power_by_exp(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x ** y`` as ``exp(y log x)``, within 2 eps for ``|y| <= 3``.

    The rounding error of ``y log x`` would become a relative error of ``|y log x|`` eps, which may
    be 100 eps. So both factors are split in two parts. The upper parts have half of the bits, so
    that their product is exact. What the lower parts add to it is small.
    """
    info = np.finfo(x.dtype)
    upper = partial(
        jax.lax.reduce_precision, exponent_bits=info.nexp, mantissa_bits=info.nmant // 2
    )
    # Beyond these limits the result is 0, 1 or infinity. An infinite exponent cannot be split.
    y = jnp.clip(y, -(2.0**64), 2.0**64)
    # With x = 2^k m, m being near 1, log x = k log 2 + log m has no error but that of log m.
    x = jnp.maximum(x, info.tiny)
    nearest = jax.lax.reduce_precision(x, exponent_bits=info.nexp, mantissa_bits=0)
    k = jnp.round(log(nearest) / (LOG2_HIGH + LOG2_LOW))
    high, low = k * LOG2_HIGH, k * LOG2_LOW + log(x / nearest)
    log_x, y_upper = upper(high + low), upper(y)
    rest = y * ((high - log_x) + low) + (y - y_upper) * log_x
    # It is larger only where the upper parts give 0 or infinity, which it must not make NaN.
    rest = jnp.clip(rest, -1.0, 1.0)
    # XLA would turn a product of two exponentials into the exponential of the sum.
    return exp(y_upper * log_x) * (1 + expm1(rest))
