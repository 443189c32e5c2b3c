"""Elementary functions whose derivatives keep the bits that JAX's own derivatives lose."""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def sigmoid(z: jax.Array) -> jax.Array:
    """``1 / (1 + e^-z)``, with the derivative ``s(z) s(-z)``, where ``s (1 - s)`` would cancel."""
    return jax.nn.sigmoid(z)


sigmoid.defjvps(lambda z_dot, s, z: z_dot * (s * sigmoid(-z)))


@jax.custom_jvp
def softplus(z: jax.Array) -> jax.Array:
    """``log(1 + e^z)``, with the derivative `sigmoid`."""
    return jnp.maximum(z, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(z)))


softplus.defjvps(lambda z_dot, _, z: z_dot * sigmoid(z))


@jax.custom_jvp
def expm1(x: jax.Array) -> jax.Array:
    """``e^x - 1``, with the derivative ``e^x``, where ``expm1(x) + 1`` would cancel."""
    return jnp.expm1(x)


expm1.defjvps(lambda x_dot, _, x: x_dot * jnp.exp(x))


@jax.custom_jvp
def log_of_share(share: jax.Array, others: jax.Array) -> jax.Array:
    """The logarithm of a positive share of 1, exact also where the others have little of it.

    The others are ``1 - share``. Their rounding is not that of the share, but the variable is the
    same, so the derivative for the share is the whole one.
    """
    is_small = share < 0.5
    small = jnp.where(is_small, share, 0.5)
    return jnp.where(is_small, jnp.log(small), jnp.log1p(-jnp.where(is_small, 0.5, others)))


log_of_share.defjvps(lambda share_dot, _, share, others: share_dot / share, None)


@jax.custom_jvp
def power_of_share(share: jax.Array, others: jax.Array, exponent: jax.Array) -> jax.Array:
    """``share ** exponent``, with a derivative for the exponent that is exact by `log_of_share`."""
    return share**exponent


@power_of_share.defjvp
def _power_of_share_jvp(
    primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    (share, others, exponent), (share_dot, _, exponent_dot) = primals, tangents
    power = power_of_share(share, others, exponent)
    # In this order no factor underflows while the product does not.
    slope = exponent * power_of_share(share, others, exponent - 1)
    return power, share_dot * slope + exponent_dot * (power * log_of_share(share, others))
