"""Elementary functions whose derivatives keep the bits that JAX's own derivatives lose."""

import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero


def with_partials(
    *partials: Callable[..., jax.Array],
) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
    """Differentiates the decorated elementary function by its partial derivatives.

    JAX's own derivatives of expressions cancel, divide by squares that overflow, and have NaN from
    the branches not taken, where 0 is multiplied by infinity.
    """

    def decorate(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        differentiable = jax.custom_jvp(function)

        @partial(differentiable.defjvp, symbolic_zeros=True)
        def tangent_rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
            terms = [
                to_argument(*primals) * dot
                for to_argument, dot in zip(partials, tangents, strict=True)
                if not isinstance(dot, SymbolicZero)
            ]
            return differentiable(*primals), reduce(operator.add, terms)

        return differentiable

    return decorate


@with_partials(lambda z: sigmoid(z) * sigmoid(-z))
def sigmoid(z: jax.Array) -> jax.Array:
    """``1 / (1 + e^-z)``, with the derivative ``s(z) s(-z)``, where ``s (1 - s)`` would cancel."""
    return jax.nn.sigmoid(z)


@with_partials(sigmoid)
def softplus(z: jax.Array) -> jax.Array:
    """``log(1 + e^z)``."""
    return jnp.maximum(z, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(z)))


@with_partials(jnp.exp)
def expm1(x: jax.Array) -> jax.Array:
    """``e^x - 1``, with the derivative ``e^x``, where ``expm1(x) + 1`` would cancel."""
    return jnp.expm1(x)


def log1p(x: jax.Array) -> jax.Array:
    """``log(1 + x)``; XLA's own float64 form is off by 120 eps around -0.4 in JAX 0.10."""
    near = jnp.abs(x) < 0.25
    return jnp.where(near, jnp.log1p(jnp.where(near, x, 0.0)), jnp.log(1 + x))


@with_partials(lambda a, b: 1 / b, lambda a, b: -quotient(quotient(a, b), b))
def quotient(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a / b``. JAX's own derivative for b divides by b squared, which overflows."""
    # XLA multiplies by 1/b if b is broadcast, which vanishes for the largest b.
    maxexp = np.finfo(b.dtype).maxexp
    scale = jnp.where(b > 2.0 ** (3 * maxexp // 4), 2.0 ** (-maxexp // 4), 1.0).astype(b.dtype)
    return (a * scale) / (b * scale)


def _nothing(*args: jax.Array) -> jax.Array:
    return jnp.zeros_like(args[0])


@with_partials(lambda share, others: 1 / share, _nothing)
def log_of_share(share: jax.Array, others: jax.Array) -> jax.Array:
    """The logarithm of a positive share of 1, exact also where the others have little of it.

    The others are ``1 - share``. Their rounding is not that of the share, but the variable is the
    same, so the derivative for the share is the whole one.
    """
    is_small = share < 0.5
    small = jnp.where(is_small, share, 0.5)
    return jnp.where(is_small, jnp.log(small), log1p(-jnp.where(is_small, 0.5, others)))


# In this order no factor underflows while the product does not.
@with_partials(
    lambda share, others, exponent: exponent * power_of_share(share, others, exponent - 1),
    _nothing,
    lambda share, others, exponent: (
        power_of_share(share, others, exponent) * log_of_share(share, others)
    ),
)
def power_of_share(share: jax.Array, others: jax.Array, exponent: jax.Array) -> jax.Array:
    """``share ** exponent``, with a derivative for the exponent that is exact by `log_of_share`."""
    return share**exponent
