"""Classes that are spread over mesh axes, inside `jax.shard_map`.

Each shard has a slice of the classes, in the order of the shards. What belongs to an example (its
label, its weight, its loss) is the same on all of them, and typed so.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

AxisName: TypeAlias = str | tuple[str, ...]
Axes: TypeAlias = tuple[str, ...]


def bound_axes(class_axis_name: AxisName | None) -> Axes:
    """The mesh axes of that name, of which `jax.shard_map` must keep track."""
    axes = axes_named("class_axis_name", class_axis_name)
    if not axes:
        return ()
    try:
        index = jax.lax.axis_index(axes)
    except NameError:
        raise ValueError(
            f"class_axis_name must name mesh axes of an enclosing jax.shard_map,"
            f" got {class_axis_name!r}"
        ) from None
    if not varying_axes(index) >= set(axes):
        raise ValueError("class_axis_name needs jax.shard_map with check_vma=True")
    return axes


def axes_named(argument: str, name: AxisName | None) -> Axes:
    """The names as a tuple."""
    axes = () if name is None else name if isinstance(name, tuple) else (name,)
    if not all(isinstance(axis, str) for axis in axes) or len(set(axes)) < len(axes):
        raise ValueError(
            f"{argument} must be the name of a mesh axis or a tuple of different ones, got {name!r}"
        )
    return axes


def number_of_shards(axes: Axes) -> int:
    """How many slices the classes have."""
    return int(jax.lax.axis_size(axes)) if axes else 1


def of_this_shard(labels: jax.Array, classes: int, axes: Axes) -> jax.Array:
    """The labels counted from the first class of this shard."""
    if not axes:
        return labels
    return labels - (jax.lax.axis_index(axes) * classes).astype(labels.dtype)


def added_up(x: jax.Array, axes: Axes) -> jax.Array:
    """The sum over the shards."""
    return jax.lax.psum(x, axes) if axes else x


def in_any_shard(x: jax.Array, axes: Axes) -> jax.Array:
    """Whether it is true in one shard at least."""
    return jax.lax.psum(x.astype(jnp.int32), axes) > 0 if axes else x


def check_replicated(name: str, x: jax.Array, axes: Axes) -> None:
    """What belongs to examples must be the same on every shard of their classes."""
    if wrong := sorted(varying_axes(x) & set(axes)):
        raise ValueError(
            f"{name} must be the same for every shard of the classes,"
            f" but varies over the mesh axes {', '.join(wrong)}"
        )


def varying_axes(x: jax.Array) -> frozenset[Any]:
    """The mesh axes over which an array inside `jax.shard_map` differs."""
    return frozenset(jax.typeof(x).mat.varying)
