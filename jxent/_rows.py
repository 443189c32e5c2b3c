"""Rows: the arguments beside each other, checked once and brought to one form.

In that form the classes are the last axis, and no mask is left: a class that does not count has
the logit -inf, or the probability 0, and an example that does not count has harmless values,
whose loss `Rows.settle` turns into 0 with the gradient 0.
"""

import math
from dataclasses import dataclass, replace
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np

from ._arguments import (
    ArrayLike,
    Axis,
    any_array,
    axes_of,
    boolean,
    broadcast,
    floating,
    integer,
    real,
)
from ._class_axes import (
    Axes,
    AxisName,
    added_up,
    bound_axes,
    check_replicated,
    in_any_shard,
    number_of_shards,
)
from ._labels import explicit_sharding
from ._statistics import computing_dtype


@dataclass(frozen=True)
class Rows:
    """Examples of classes: what is known of the array called `name`, for all beside it."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    present: jax.Array | None = None
    """Which classes count, ``[..., classes]``; None: all."""
    counted: jax.Array | None = None
    """Which examples count, ``[...]``; None: all."""
    sharding: jax.sharding.NamedSharding | None = None
    """Where ``[..., classes]`` lies, if its type says so."""
    class_axes: Axes = ()
    """The mesh axes over which the classes are spread; the rows then have those of one shard."""

    @classmethod
    def of(
        cls,
        name: str,
        x: jax.Array,
        axis: Axis,
        where: ArrayLike | None,
        class_axis_name: AxisName | None = None,
    ) -> Self:
        """The rows of `x` along `axis`, without what `where` leaves out."""
        axes = axes_of(name, x.ndim, axis)
        if x.ndim == 0:
            raise ValueError(f"{name} must have an axis of classes, got shape ()")
        rows = cls(name, x.shape, axes, class_axes=bound_axes(class_axis_name))
        if not rows.axes or math.prod(rows.classes) == 0:
            raise ValueError(f"{name} must have at least one class, got shape {x.shape}")
        if explicit_sharding(x):
            rows = replace(rows, sharding=explicit_sharding(rows.canonical(x)))
        if where is None:
            return rows
        mask = boolean("where", where)
        if mask.shape == x.shape:
            present = rows.canonical(mask)
            counted = in_any_shard(jnp.any(present, axis=-1), rows.class_axes)
            return replace(rows, present=present, counted=counted)
        if mask.shape == rows.examples:
            check_replicated("where", mask, rows.class_axes)
            return replace(rows, counted=mask)
        raise ValueError(
            f"where must have the shape of {name} {x.shape} or of its examples {rows.examples},"
            f" got shape {mask.shape}"
        )

    @property
    def examples(self) -> tuple[int, ...]:
        return tuple(n for i, n in enumerate(self.shape) if i not in self.axes)

    @property
    def classes(self) -> tuple[int, ...]:
        return tuple(self.shape[i] for i in self.axes)

    def number_present(self) -> jax.Array | int:
        """How many classes count, ``[..., 1]`` where that differs."""
        if self.present is None:
            return math.prod(self.classes) * number_of_shards(self.class_axes)
        return added_up(jnp.sum(self.present, axis=-1, keepdims=True), self.class_axes)

    def canonical(self, x: jax.Array) -> jax.Array:
        """``[..., classes]``, from the layout the user gave."""
        x = jnp.moveaxis(x, self.axes, range(-len(self.axes), 0))
        return x if len(self.axes) == 1 else x.reshape((*self.examples, math.prod(self.classes)))

    def restored(self, x: jax.Array) -> jax.Array:
        """The layout the user gave, from ``[..., classes]``."""
        x = x.reshape(self.examples + self.classes)
        return jnp.moveaxis(x, range(-len(self.axes), 0), self.axes)

    def logits(self, name: str, x: ArrayLike) -> jax.Array:
        """Logits ``[..., classes]``: -inf for a class that does not count."""
        z = self._beside(name, floating(name, x))
        if self.present is not None:
            z = jnp.where(self.present, z, -jnp.inf)
        return z if self.counted is None else jnp.where(self.counted[..., None], z, 0.0)

    def values(self, name: str, x: ArrayLike) -> jax.Array:
        """Floating-point numbers ``[..., classes]``: 0 for what does not count."""
        return self.left_out(self._beside(name, floating(name, x)), 0.0)

    def distributions(self, name: str, x: ArrayLike, like: jax.Array, of_labels: str) -> jax.Array:
        """Real numbers ``[..., classes]``: 0 for what does not count.

        Integers and truth values are one-hot rows. As one row for every example they are taken
        for class numbers, which `of_labels` would accept, and refused.
        """
        array = any_array(name, x)
        is_shared = array.shape in ((), self.classes) and array.shape != self.shape
        if is_shared and not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"{name} must have a floating-point dtype to stand for every example, or else the"
                f" shape of {self.name} {self.shape}, got {array.dtype} of shape {array.shape}:"
                f" class numbers are for {of_labels}"
            )
        return self.left_out(self._beside(name, real(name, x, like)), 0.0)

    def labels(
        self, name: str, x: ArrayLike, ignore_index: int | None = None
    ) -> tuple[Self, jax.Array]:
        """Class numbers ``[...]``, and the rows without those that are `ignore_index`."""
        array = any_array(name, x)
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
        if array.shape not in ((), self.examples):
            raise ValueError(
                f"{name} must have the shape of the examples of {self.name} {self.examples}"
                f" or be a scalar, got shape {array.shape}"
            )
        check_replicated(name, array, self.class_axes)
        # At least 32 bits, so that every class number can be compared with the labels.
        array = array if array.dtype.itemsize >= 4 else array.astype(jnp.int32)
        array = jnp.broadcast_to(array, self.examples)
        rows = self
        if ignore_index is not None:
            counted = _differs(array, "ignore_index", ignore_index)
            rows = replace(
                self, counted=counted if self.counted is None else self.counted & counted
            )
        return rows, array if rows.counted is None else jnp.where(rows.counted, array, 0)

    def class_weights(self, name: str, x: ArrayLike | None, like: jax.Array) -> jax.Array | None:
        """One real number per class, ``[classes]``, in the computing dtype of `like`."""
        if x is None:
            return None
        array = real(name, x, like)
        if array.shape != self.classes:
            raise ValueError(
                f"{name} must have one weight per class of {self.name}, shape {self.classes},"
                f" got shape {array.shape}"
            )
        return array.reshape(-1).astype(computing_dtype(like))

    def settle(self, losses: jax.Array) -> jax.Array:
        """The loss 0, with the gradient 0, for the examples that do not count."""
        return losses if self.counted is None else jnp.where(self.counted, losses, 0.0)

    def left_out(self, x: jax.Array, value: float) -> jax.Array:
        """`value` in the entries of canonical `x` that do not count."""
        if self.present is not None:
            x = jnp.where(self.present, x, value)
        if self.counted is not None:
            x = jnp.where(self.counted[..., None], x, value)
        return x

    def _beside(self, name: str, x: jax.Array) -> jax.Array:
        if x.shape not in ((), self.classes, self.shape):
            raise ValueError(
                f"{name} must have the shape of {self.name} {self.shape}, that of its classes"
                f" {self.classes}, or be a scalar, got shape {x.shape}"
            )
        if x.shape == self.shape:
            return self.canonical(x)
        shape = (*self.examples, math.prod(self.classes))
        return broadcast(x.reshape(-1), x, shape, self.sharding)


def two_distributions(
    first: str,
    x: ArrayLike,
    second: str,
    y: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    of_labels: str,
) -> tuple[Rows, jax.Array, jax.Array]:
    """Probabilities ``[..., classes]``; one of both may be integers or truth values: one-hot."""
    p, q = any_array(first, x), any_array(second, y)
    one_hot = not jnp.issubdtype(p.dtype, jnp.floating)
    like = q if one_hot and jnp.issubdtype(q.dtype, jnp.floating) else floating(first, p)
    p = real(first, p, like)
    rows = Rows.of(first, p, axis, where)
    return rows, rows.values(first, p), rows.distributions(second, q, like, of_labels)


def _differs(labels: jax.Array, name: str, number: int) -> jax.Array:
    try:
        number = integer(number)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {number!r}") from None
    bounds = np.iinfo(labels.dtype)
    if not bounds.min <= number <= bounds.max:
        return jnp.ones(labels.shape, bool)
    # In their dtype: as a Python number, JAX would make an int32 of it.
    return labels != np.asarray(number, labels.dtype)
