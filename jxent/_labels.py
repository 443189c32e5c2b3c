"""Integer labels: where they point to.

Where the classes are spread over the mesh axes `axes`, arrays have those of one shard, and labels
number all of them.
"""

import jax
import jax.numpy as jnp

from ._class_axes import Axes, added_up, number_of_shards, of_this_shard
from ._numerics import nan_where


def is_label(labels: jax.Array, classes: int, axes: Axes = ()) -> jax.Array:
    """``[..., classes]``: whether the class is the one that the label names."""
    labels = of_this_shard(labels, classes, axes)
    shape = (*labels.shape, classes)
    return jax.lax.broadcasted_iota(labels.dtype, shape, labels.ndim) == labels[..., None]


def is_class(labels: jax.Array, classes: int) -> jax.Array:
    """``[..., 1]``: whether the label names any class."""
    return ((labels >= 0) & (labels < classes))[..., None]


def at_label(x: jax.Array, labels: jax.Array, axes: Axes = ()) -> jax.Array:
    """``[..., 1]``, the entry that the label names; any other if there is none."""
    if axes:
        labels = of_this_shard(labels, x.shape[-1], axes)
        is_here = is_class(labels, x.shape[-1])
        return added_up(jnp.where(is_here, at_label(x, labels), 0.0), axes)
    if explicit_sharding(x):
        return _by_comparison(x, labels)
    return jnp.take_along_axis(x, labels[..., None], axis=-1, mode="clip")


def undefined(x: jax.Array, labels: jax.Array, axes: Axes = ()) -> jax.Array:
    """``[..., 1]``: a factor of NaN for labels that name no class, else 1."""
    classes = x.shape[-1] * number_of_shards(axes)
    return nan_where(~is_class(labels, classes), jnp.ones((), x.dtype))


def of_label(weights: jax.Array, labels: jax.Array, axes: Axes = ()) -> jax.Array:
    """``[...]``, the weight of the class that the label names; 0 if there is none."""
    if axes:
        return added_up(of_label(weights, of_this_shard(labels, weights.size, axes)), axes)
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
