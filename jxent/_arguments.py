"""Arguments, each checked by itself at the boundary."""

import operator
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ._labels import explicit_sharding
from ._statistics import computing_dtype

ArrayLike: TypeAlias = jax.typing.ArrayLike | Sequence["ArrayLike"]
Axis: TypeAlias = int | tuple[int, ...] | None


def floating(name: str, x: ArrayLike) -> jax.Array:
    """`x` as an array of a floating-point dtype."""
    array = any_array(name, x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must have a floating-point dtype, got {array.dtype}")
    return array


def elementwise(name: str, x: ArrayLike, like_name: str, like: jax.Array) -> jax.Array:
    """`x` as real numbers beside those of `like`: of its shape, or one for all."""
    array = real(name, x, like)
    if array.shape not in ((), like.shape):
        raise ValueError(
            f"{name} must have the shape of {like_name} {like.shape} or be a scalar,"
            f" got shape {array.shape}"
        )
    return broadcast(array, like, like.shape, explicit_sharding(like))


def trailing(name: str, x: ArrayLike, like_name: str, like: jax.Array) -> jax.Array:
    """`x` as real numbers for the last axes of `like`."""
    array = real(name, x, like)
    if array.shape != like.shape[like.ndim - array.ndim :]:
        raise ValueError(
            f"{name} must have the last dimensions of {like_name} {like.shape} or be a scalar,"
            f" got shape {array.shape}"
        )
    return broadcast(array, like, like.shape, explicit_sharding(like))


def boolean(name: str, x: ArrayLike) -> jax.Array:
    """`x` as an array of truth values."""
    array = any_array(name, x)
    if array.dtype != jnp.bool_:
        raise TypeError(f"{name} must be boolean, got dtype {array.dtype}")
    return array


def scalar(name: str, x: ArrayLike, like: jax.Array) -> jax.Array:
    """The option `x` as one real number of the dtype of `like`."""
    array = real(name, x, like)
    if array.shape != ():
        raise ValueError(f"{name} must be a scalar, got shape {array.shape}")
    return array.astype(like.dtype)


def smoothing(name: str, x: ArrayLike, like: jax.Array) -> jax.Array:
    """The option `x` as a number in [0, 1]; a traced one is taken at its word."""
    number = scalar(name, x, like)
    if not isinstance(x, jax.core.Tracer) and not np.all(
        (np.asarray(x) >= 0) & (np.asarray(x) <= 1)
    ):
        raise ValueError(f"{name} must lie in [0, 1], got {x}")
    return number


def is_off(x: ArrayLike) -> bool:
    """Whether the option `x` is the number 0, known before any array is."""
    return isinstance(x, int | float) and x == 0


def broadcast(
    x: jax.Array,
    like: jax.Array,
    shape: tuple[int, ...],
    sharding: jax.sharding.NamedSharding | None,
) -> jax.Array:
    """`x` in this shape; in its computing dtype where its gradient is going to be a sum.

    The sum is over shards where the sharding says so, or they would be gathered.
    """
    if x.shape == shape:
        return x
    x = x.astype(computing_dtype(x, like))
    return jnp.broadcast_to(x, shape, out_sharding=sharding)


def any_array(name: str, x: ArrayLike) -> jax.Array:
    """`x` as an array of whatever dtype."""
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array, got {type(x).__name__}") from error


def real(name: str, x: ArrayLike, like: jax.Array) -> jax.Array:
    """`x` as floating-point numbers; integers, truth values and Python numbers suit `like`."""
    array = any_array(name, x)
    if jnp.issubdtype(array.dtype, jnp.complexfloating) or not (
        jnp.issubdtype(array.dtype, jnp.number) or array.dtype == jnp.bool_
    ):
        raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}")
    if jnp.issubdtype(array.dtype, jnp.floating) and not array.weak_type:
        return array
    return array.astype(computing_dtype(like))


def axes_of(name: str, ndim: int, axis: Axis) -> tuple[int, ...]:
    """`axis` as different numbers in [0, ndim)."""
    if axis is None:
        axis = tuple(range(ndim))
    try:
        given = tuple(operator.index(a) for a in (axis if isinstance(axis, tuple) else (axis,)))
    except TypeError:
        raise TypeError(f"axis must be an integer or a tuple of them, got {axis!r}") from None
    if any(not -ndim <= a < ndim for a in given):
        raise ValueError(f"axis must name axes of {name}, which has rank {ndim}, got {axis}")
    axes = tuple(a % ndim for a in given)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis must not name an axis twice, got {axis}")
    return axes
