"""Rows: the arguments beside each other, checked once and brought to one form.

In that form the classes are the last axis, and masked entries are filled: a class has the logit
-inf or the probability 0, and an example has harmless numbers. Logits whose statistics are wanted
come unfilled, with the mask, because the statistics read them repeatedly and fill them themselves.
`Rows.zero_masked` gives the examples that do not count the loss 0 and the gradient 0.

Elements, each a yes-or-no question of its own, are rows without an axis of classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from ._arguments import (
    ArrayLike,
    Axis,
    any_array,
    axes_of,
    boolean,
    broadcast,
    fits,
    floating,
    integer,
    real,
    remedy,
    scalar,
)
from ._autodiff import computed_once
from ._dtypes import computing_dtype
from ._sharding import (
    AxisName,
    MeshAxes,
    along,
    bound_axes,
    check_replicated,
    explicit_sharding,
    in_any_shard,
    is_explicit,
    joint_sharding,
    number_of_shards,
    of_this_shard,
    psum_classes,
    resharded,
    sum_classes,
)

# ---------------------------------------- The mask


class Mask(NamedTuple):
    """Boolean masks; None keeps everything."""

    classes: Any = None
    """``[..., classes]``"""
    examples: Any = None
    """``[...]``"""

    def fill(self, x: jax.Array, absent: float, uncounted: float) -> jax.Array:
        """Puts these values into the classes and into the examples that do not count."""
        if self.classes is not None:
            x = jnp.where(self.classes, x, absent)
        if self.examples is not None:
            x = jnp.where(self.examples[..., None], x, uncounted)
        return x

    def fill_logits(self, x: jax.Array) -> jax.Array:
        """Logits in which a class that does not count does not exist."""
        return self.fill(x, -jnp.inf, 0.0)


EVERYTHING = Mask()
"""The mask that leaves nothing out."""


# ---------------------------------------- Integer labels
# Where the classes are spread over the mesh axes `axes`, an array has the classes of one shard, and
# the labels number the classes of all shards.


def is_label(labels: jax.Array, classes: int, axes: MeshAxes = ()) -> jax.Array:
    """``[..., classes]``: whether the class is the one that the label names."""
    labels = of_this_shard(labels, classes, axes)
    shape = (*labels.shape, classes)
    return jax.lax.broadcasted_iota(labels.dtype, shape, labels.ndim) == labels[..., None]


def in_range(labels: jax.Array, classes: int) -> jax.Array:
    """``[..., 1]``: whether the label names a class."""
    return ((labels >= 0) & (labels < classes))[..., None]


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
    if is_explicit(labels, weights):
        return _by_comparison(as_row(weights, labels.ndim + 1), labels)[..., 0]
    chosen = jnp.take(weights, labels, mode="clip")
    return jnp.where(in_range(labels, weights.size)[..., 0], chosen, 0.0)


def _by_comparison(x: jax.Array, labels: jax.Array) -> jax.Array:
    named = is_label(labels, x.shape[-1])
    places = range(named.ndim)
    joint = joint_sharding(named.ndim, {"labels": named, "classes": x}, lambda *_: places)
    # `jnp.where` would bring arrays to each other's shardings, and fail under `jax.vmap` if one has
    # no mesh.
    x = x if x.shape == named.shape else jnp.broadcast_to(x, named.shape, out_sharding=joint)
    chosen = jnp.where(resharded(named, joint), resharded(x, joint), 0.0)
    return jnp.sum(chosen, axis=-1, keepdims=True)


def as_row(weights: jax.Array, ndim: int) -> jax.Array:
    """``[1, ..., 1, classes]``, to stand beside an array of this rank."""
    return weights.reshape((1,) * (ndim - 1) + (-1,))


# ---------------------------------------- Rows


@dataclass(frozen=True)
class Rows:
    """Layout and mask of the array called `name`, shared by the arrays beside it."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    """The axes of `shape` that are classes; none for elements."""
    mask: Mask = EVERYTHING
    sharding: jax.sharding.NamedSharding | None = None
    """The sharding of `shape` beside all arguments, if the type of one of them has one."""
    mesh_axes: MeshAxes = ()
    """The mesh axes that the classes are spread over; arrays then have the classes of one shard."""

    @classmethod
    def of(
        cls,
        name: str,
        x: jax.Array | jax.ShapeDtypeStruct,
        axes: tuple[int, ...],
        where: ArrayLike | None,
        class_axis_name: AxisName | None = None,
        **beside: ArrayLike | None,
    ) -> Self:
        """The rows of `x` along `axes` without what `where` leaves out, beside other arguments."""
        rows = cls(name, x.shape, axes, mesh_axes=bound_axes(class_axis_name))
        arrays = {name: x, **beside, "where": where}
        rows = replace(rows, sharding=joint_sharding(x.ndim, arrays, rows._axes_along))
        if where is None:
            return rows
        mask = boolean("where", where)
        if axes and fits(mask.shape, x.shape):
            if mask.shape == x.shape or any(mask.shape[i] != 1 for i in axes):
                classes = rows.canonical(_repeated(mask, x.shape, rows.sharding))
                counted = in_any_shard(jnp.any(classes, axis=-1), rows.mesh_axes)
                return replace(rows, mask=Mask(classes, counted))
            mask = jnp.squeeze(mask, axes)
        if fits(mask.shape, rows.examples):
            check_replicated("where", mask, rows.mesh_axes)
            mask = _said("where", mask) if axes else mask
            mask = _repeated(mask, rows.examples, rows.along())
            return replace(rows, mask=Mask(examples=resharded(mask, rows.along())))
        or_examples = f" or of its examples {rows.examples}" if axes else ""
        raise ValueError(
            f"where must have the shape of {name} {x.shape}{or_examples}, got shape {mask.shape}"
            f"{remedy('where', mask.shape, rows.examples) or remedy('where', mask.shape, x.shape)}"
        )

    @property
    def examples(self) -> tuple[int, ...]:
        return tuple(self.shape[i] for i in self._example_axes)

    @property
    def _example_axes(self) -> tuple[int, ...]:
        return tuple(i for i in range(len(self.shape)) if i not in self.axes)

    @property
    def classes(self) -> tuple[int, ...]:
        return tuple(self.shape[i] for i in self.axes)

    def _axes_along(self, name: str, x: jax.Array) -> Sequence[int | None]:
        """The axes of `shape` that an argument lies along; None for one of its own."""
        if not self.axes:
            return range(len(self.shape) - x.ndim, len(self.shape))
        if x.ndim == len(self.shape):
            return [i if n == self.shape[i] else None for i, n in enumerate(x.shape)]
        is_number = jnp.issubdtype(x.dtype, jnp.floating) or name == "class_weights"
        return self.axes if is_number else self._example_axes

    def along(self, *dimensions: Any) -> jax.sharding.NamedSharding | None:
        """The sharding of an array of the examples that has these dimensions, too."""
        return along((*self._example_axes, *dimensions), self.sharding)

    def number_present(self) -> jax.Array | int:
        """How many classes count; ``[..., 1]`` where that differs between examples."""
        if self.mask.classes is None:
            return math.prod(self.classes) * number_of_shards(self.mesh_axes)
        return sum_classes(self.mask.classes, self.mesh_axes)

    def canonical(self, x: jax.Array) -> jax.Array:
        """``[..., classes]``, from the layout the user gave."""
        x = jnp.moveaxis(resharded(x, self.sharding), self.axes, range(-len(self.axes), 0))
        shape = (*self.examples, math.prod(self.classes))
        return x if x.ndim == len(shape) else x.reshape(shape, out_sharding=self.along(self.axes))

    def row(self, x: jax.Array) -> jax.Array:
        """``[classes]``, from the layout the user gave."""
        x = resharded(x, along(self.axes, self.sharding))
        return x if x.ndim == 1 else x.reshape(-1, out_sharding=along([self.axes], self.sharding))

    def to_user_layout(self, x: jax.Array) -> jax.Array:
        """The layout the user gave, from ``[..., classes]``."""
        x = x.reshape(self.examples + self.classes, out_sharding=self.along(*self.axes))
        return jnp.moveaxis(x, range(-len(self.axes), 0), self.axes)

    def beside(self, name: str, x: ArrayLike, absent: float | None = -math.inf) -> jax.Array:
        """Floating-point numbers ``[..., classes]``; `absent` for a class that does not count.

        By default the numbers are logits. An example that does not count has zeros. If `absent` is
        None nothing is filled: the statistics do that.
        """
        return self.logits(name, floating(name, x), absent)

    def logits(self, name: str, x: jax.Array, absent: float | None) -> jax.Array:
        """`beside` for an array that has been checked."""
        return self._placed(name, computed_once(x) if absent is None else x, absent)

    def _placed(self, name: str, x: jax.Array, absent: float | None) -> jax.Array:
        if x.shape not in ((), self.classes, self.shape):
            raise ValueError(
                f"{name} must have the shape of {self.name} {self.shape}, that of its classes"
                f" {self.classes}, or be a scalar, got shape {x.shape}"
                f"{remedy(name, x.shape, self.shape) if x.ndim == len(self.shape) else ''}"
            )
        if x.shape == self.shape:
            x = self.canonical(x)
        else:
            shape = (*self.examples, math.prod(self.classes))
            row = self.row(x) if x.ndim else x.reshape(-1)
            x = broadcast(row, x, shape, self.along(self.axes))
        return x if absent is None else self.mask.fill(x, absent, 0.0)

    def distributions(
        self,
        name: str,
        x: ArrayLike,
        like: jax.Array,
        of_labels: str,
        absent: float | None = 0.0,
    ) -> jax.Array:
        """Real numbers ``[..., classes]``: 0 for what does not count, unless `absent` is None.

        Integers and truth values are one-hot rows. One such row for every example is refused: it
        is probably class numbers by mistake, which `of_labels` accepts.
        """
        array = any_array(name, x)
        is_shared = array.shape in ((), self.classes) and array.shape != self.shape
        if is_shared and not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(
                f"{name} must have a floating-point dtype to stand for every example, or else the"
                f" shape of {self.name} {self.shape}, got {array.dtype} of shape {array.shape}:"
                f" class numbers are for {of_labels}"
            )
        return self._placed(name, real(name, x, like), absent)

    def labels(self, x: ArrayLike, ignore_index: int | None) -> tuple[Self, jax.Array]:
        """The rows without those whose label is `ignore_index`, and the labels ``[...]``."""
        array = any_array("labels", x)
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(f"labels must be integers, got dtype {array.dtype}")
        if array.shape not in ((), self.examples):
            raise ValueError(
                f"labels must have the shape of the examples of {self.name} {self.examples} or be"
                f" a scalar, got shape {array.shape}{remedy('labels', array.shape, self.examples)}"
            )
        check_replicated("labels", array, self.mesh_axes)
        # At least 32 bits, so that the labels can be compared with every class number.
        array = array if array.dtype.itemsize >= 4 else array.astype(jnp.int32)
        array = resharded(jnp.broadcast_to(array, self.examples), self.along())
        rows = self
        if ignore_index is not None:
            array = _said("ignore_index", array)
            counted, others = _differs(array, ignore_index), self.mask.examples
            counted = counted if others is None else others & counted
            rows = replace(self, mask=self.mask._replace(examples=counted))
        return rows, rows.fill_examples(array, 0)

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
        return self.row(_said(name, array)).astype(computing_dtype(like))

    def scalar(self, name: str, x: ArrayLike, like: jax.Array) -> jax.Array:
        """An option that is one number, the same for all shards of the classes."""
        number = scalar(name, x, like)
        check_replicated(name, number, self.mesh_axes)
        return number

    def zero_masked(self, losses: jax.Array) -> jax.Array:
        """The loss 0, with the gradient 0, for the examples that do not count."""
        return self.fill_examples(losses, 0.0)

    def fill_examples(self, x: jax.Array, value: float) -> jax.Array:
        """Numbers ``[...]`` with this value in the examples that do not count."""
        return x if self.mask.examples is None else jnp.where(self.mask.examples, x, value)

    def fill_elements(self, x: jax.Array, value: float) -> jax.Array:
        """`fill_examples` for an array that need not be sharded like the elements yet."""
        return self.fill_examples(resharded(x, self.sharding), value)


def rows_of(
    name: str,
    x: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    class_axis_name: AxisName | None = None,
    absent: float | None = -math.inf,
    **beside: ArrayLike | None,
) -> tuple[Rows, jax.Array]:
    """The rows of `x`, and `x` as in `Rows.beside`; unfilled if `absent` is None."""
    rows, array = _rows_of_classes(name, x, axis, where, class_axis_name, **beside)
    return rows, rows.logits(name, array, absent)


def labelled_rows(
    name: str,
    x: ArrayLike,
    labels: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    ignore_index: int | None,
    class_weights: ArrayLike | None,
    class_axis_name: AxisName | None = None,
    absent: float | None = None,
) -> tuple[Rows, jax.Array, jax.Array]:
    """The rows of `x` without those that are ignored, `x`, and its labels."""
    beside = {"labels": labels, "class_weights": class_weights}
    rows, array = _rows_of_classes(name, x, axis, where, class_axis_name, **beside)
    rows, y = rows.labels(labels, ignore_index)
    return rows, rows.logits(name, array, absent), y


def two_distributions(
    p: ArrayLike, q: ArrayLike, axis: Axis, where: ArrayLike | None, of_labels: str
) -> tuple[Rows, jax.Array, jax.Array]:
    """Probabilities ``[..., classes]``; one of both may be integers or truth values: one-hot."""
    x, y = any_array("p", p), any_array("q", q)
    one_hot = not jnp.issubdtype(x.dtype, jnp.floating)
    like = y if one_hot and jnp.issubdtype(y.dtype, jnp.floating) else floating("p", x)
    rows, x = _rows_of_classes("p", real("p", x, like), axis, where, None, q=y)
    return rows, rows._placed("p", x, 0.0), rows.distributions("q", y, like, of_labels)


def elements_of(
    name: str, x: ArrayLike, where: ArrayLike | None, **beside: ArrayLike | None
) -> tuple[Rows, jax.Array]:
    """The elements of `x`, and `x` with the sharding that suits the other arguments, unfilled."""
    array = floating(name, x)
    rows = Rows.of(name, array, (), where, None, **beside)
    return rows, resharded(array, rows.sharding)


def _rows_of_classes(
    name: str,
    x: ArrayLike,
    axis: Axis,
    where: ArrayLike | None,
    class_axis_name: AxisName | None,
    **beside: ArrayLike | None,
) -> tuple[Rows, jax.Array]:
    array = floating(name, x)
    axes = axes_of(name, array.ndim, axis)
    if array.ndim == 0:
        raise ValueError(f"{name} must have an axis of classes, got shape ()")
    if not axes or math.prod(array.shape[i] for i in axes) == 0:
        raise ValueError(f"{name} must have at least one class, got shape {array.shape}")
    return Rows.of(name, array, axes, where, class_axis_name, **beside), array


COUNTS = "jxent_counts_by_"


def _said(argument: str, x: jax.Array) -> jax.Array:
    """`x`, marked as what says how much an example counts, for a mean that is taken elsewhere."""
    result: jax.Array = checkpoint_name(x, COUNTS + argument)
    return result


def _repeated(
    mask: jax.Array, shape: tuple[int, ...], sharding: jax.sharding.NamedSharding | None
) -> jax.Array:
    return mask if mask.shape == shape else jnp.broadcast_to(mask, shape, out_sharding=sharding)


def _differs(labels: jax.Array, ignore_index: int) -> jax.Array:
    try:
        number = integer(ignore_index)
    except TypeError:
        raise TypeError(f"ignore_index must be an integer, got {ignore_index!r}") from None
    bounds = np.iinfo(labels.dtype)
    if not bounds.min <= number <= bounds.max:
        return jnp.ones(labels.shape, bool)
    # The number must have the dtype of the labels: JAX makes int32 of a Python number.
    return labels != np.asarray(number, labels.dtype)
