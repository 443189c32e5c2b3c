"""Integer labels: where they point to."""

import jax
import jax.numpy as jnp


def is_label(labels: jax.Array, classes: int) -> jax.Array:
    """``[..., classes]``: whether the class is the one that the label names."""
    shape = (*labels.shape, classes)
    return jax.lax.broadcasted_iota(labels.dtype, shape, labels.ndim) == labels[..., None]


def is_class(labels: jax.Array, classes: int) -> jax.Array:
    """``[..., 1]``: whether the label names any class."""
    return ((labels >= 0) & (labels < classes))[..., None]


def at_label(x: jax.Array, labels: jax.Array) -> jax.Array:
    """``[..., 1]``, the entry that the label names; any other if there is none."""
    if explicit_sharding(x):
        return _by_comparison(x, labels)
    return jnp.take_along_axis(x, labels[..., None], axis=-1, mode="clip")


def undefined(x: jax.Array, labels: jax.Array) -> jax.Array:
    """``[..., 1]``: a factor of NaN for labels that name no class, else 1."""
    return jnp.where(is_class(labels, x.shape[-1]), 1.0, jnp.nan).astype(x.dtype)


def of_label(weights: jax.Array, labels: jax.Array) -> jax.Array:
    """``[...]``, the weight of the class that the label names; 0 if there is none."""
    if explicit_sharding(labels) or explicit_sharding(weights):
        return _by_comparison(as_row(weights, labels.ndim + 1), labels)[..., 0]
    chosen = jnp.take(weights, labels, mode="clip")
    return jnp.where(is_class(labels, weights.size)[..., 0], chosen, 0.0)


def explicit_sharding(x: jax.Array) -> jax.sharding.NamedSharding | None:
    """The sharding in the type of `x`, if it has one. A gather, or a reshape of
    the classes, would be ambiguous, and raise.
    """
    sharding = jax.typeof(x).sharding
    return sharding if any(axis is not None for axis in sharding.spec) else None


def _by_comparison(x: jax.Array, labels: jax.Array) -> jax.Array:
    chosen = jnp.where(is_label(labels, x.shape[-1]), x, 0.0)
    return jnp.sum(chosen, axis=-1, keepdims=True)


def as_row(weights: jax.Array, ndim: int) -> jax.Array:
    """``[1, ..., 1, classes]``, to stand beside an array of this rank."""
    return weights.reshape((1,) * (ndim - 1) + (-1,))
