"""Integer labels: the classes that they name.

Where the classes are spread over the mesh axes `axes`, an array has the classes of one shard, and
the labels number the classes of all shards.
"""

import jax
import jax.numpy as jnp

from ._numerics import nan_where, weighted_cost
from ._sharding import MeshAxes, explicit_sharding, number_of_shards, of_this_shard, psum_classes


def is_label(labels: jax.Array, classes: int, axes: MeshAxes = ()) -> jax.Array:
    """``[..., classes]``: whether the class is the one that the label names."""
    labels = of_this_shard(labels, classes, axes)
    shape = (*labels.shape, classes)
    return jax.lax.broadcasted_iota(labels.dtype, shape, labels.ndim) == labels[..., None]


def in_range(labels: jax.Array, classes: int) -> jax.Array:
    """``[..., 1]``: whether the label names a class."""
    return ((labels >= 0) & (labels < classes))[..., None]


def nan_if_out_of_range(x: jax.Array, labels: jax.Array, axes: MeshAxes = ()) -> jax.Array:
    """``[..., 1]``: a factor that is NaN for a label that names no class of `x`, else 1."""
    classes = x.shape[-1] * number_of_shards(axes)
    return nan_where(~in_range(labels, classes), jnp.ones((), x.dtype))


def at_label(x: jax.Array, labels: jax.Array, axes: MeshAxes = ()) -> jax.Array:
    """``[..., 1]``, the entry that the label names; some other entry if it names no class."""
    if axes:
        labels = of_this_shard(labels, x.shape[-1], axes)
        is_here = in_range(labels, x.shape[-1])
        return psum_classes(jnp.where(is_here, at_label(x, labels), 0.0), axes)
    if explicit_sharding(x):
        return _by_comparison(x, labels)
    return jnp.take_along_axis(x, labels[..., None], axis=-1, mode="clip")


def weight_of_label(weights: jax.Array, labels: jax.Array, axes: MeshAxes = ()) -> jax.Array:
    """``[...]``, the weight of the class that the label names; 0 if it names no class."""
    if axes:
        labels = of_this_shard(labels, weights.size, axes)
        return psum_classes(weight_of_label(weights, labels), axes)
    if explicit_sharding(labels) or explicit_sharding(weights):
        return _by_comparison(as_row(weights, labels.ndim + 1), labels)[..., 0]
    chosen = jnp.take(weights, labels, mode="clip")
    return jnp.where(in_range(labels, weights.size)[..., 0], chosen, 0.0)


def times_weight_of_label(
    losses: jax.Array, weights: jax.Array | None, labels: jax.Array, axes: MeshAxes = ()
) -> jax.Array:
    """The losses times the class weights of their labels, with 0 for 0 times infinity."""
    if weights is None:
        return losses
    return weighted_cost(weight_of_label(weights, labels, axes), losses)


def _by_comparison(x: jax.Array, labels: jax.Array) -> jax.Array:
    chosen = jnp.where(is_label(labels, x.shape[-1]), x, 0.0)
    return jnp.sum(chosen, axis=-1, keepdims=True)


def as_row(weights: jax.Array, ndim: int) -> jax.Array:
    """``[1, ..., 1, classes]``, to stand beside an array of this rank."""
    return weights.reshape((1,) * (ndim - 1) + (-1,))
