"""Integer labels: where they point to.

Comparison with an iota, not a gather: that could not be partitioned over sharded classes.
"""

import jax
import jax.numpy as jnp


def is_label(x: jax.Array, labels: jax.Array) -> jax.Array:
    """Of the shape of `x`: whether the entry is the one that the row's label names."""
    return jax.lax.broadcasted_iota(labels.dtype, x.shape, x.ndim - 1) == labels[..., None]


def is_class(x: jax.Array, labels: jax.Array) -> jax.Array:
    """``[..., 1]``: whether the label names any entry of the row."""
    return ((labels >= 0) & (labels < x.shape[-1]))[..., None]


def at_label(x: jax.Array, labels: jax.Array) -> jax.Array:
    """``[..., 1]``, the entry that the label names; 0 if there is none."""
    return jnp.sum(jnp.where(is_label(x, labels), x, 0.0), axis=-1, keepdims=True)


def undefined(x: jax.Array, labels: jax.Array) -> jax.Array:
    """``[..., 1]``: a factor of NaN for labels that name no class, else 1."""
    return jnp.where(is_class(x, labels), 1.0, jnp.nan).astype(x.dtype)


def of_label(weights: jax.Array, labels: jax.Array) -> jax.Array:
    """``[...]``, the weight of the label's class; of any class for labels that name none."""
    return jnp.take(weights, labels, mode="clip")
