"""Arrays that are spread over the axes of a mesh of devices.

Inside `jax.shard_map` the classes may be spread over mesh axes. Each shard then has a slice of the
classes, in the order of the shards. The label, the weight and the loss of an example are the same
on every shard of its classes, and their types say so.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AxisName: TypeAlias = str | tuple[str, ...]
MeshAxes: TypeAlias = tuple[str, ...]


def bound_axes(class_axis_name: AxisName | None) -> MeshAxes:
    """The mesh axes of that name, after a check that `jax.shard_map` has them and tracks them."""
    axes = axes_named("class_axis_name", class_axis_name)
    if axes and not _tracked("class_axis_name", class_axis_name) >= set(axes):
        raise ValueError("class_axis_name needs jax.shard_map with check_vma=True")
    return axes


def summed_over(argument: str, name: AxisName | None, x: jax.Array) -> jax.Array:
    """The sum over the devices along the axes of that name."""
    axes = axes_named(argument, name)
    if not axes:
        return x
    result: jax.Array = jax.lax.psum(varying_over(_tracked(argument, name), x), axes)
    return result


def _tracked(argument: str, name: AxisName | None) -> frozenset[Any]:
    """Those of the axes for which types say whether an array varies over them."""
    try:
        return varying_axes(jax.lax.axis_index(as_tuple(name)))
    except NameError:
        raise ValueError(
            f"{argument} must name mesh axes of an enclosing jax.shard_map, got {name!r}: for"
            f" global arrays the losses need none, and the head takes mesh="
        ) from None


def axes_named(argument: str, name: AxisName | None) -> MeshAxes:
    """The names as a tuple."""
    axes = as_tuple(name)
    if not all(isinstance(axis, str) for axis in axes) or len(set(axes)) < len(axes):
        raise ValueError(
            f"{argument} must be the name of a mesh axis or a tuple of different ones, got {name!r}"
        )
    return axes


def as_tuple(names: Any) -> tuple[Any, ...]:
    """The axes in an entry of a spec: no axis for None, and one for a single name."""
    return () if names is None else names if isinstance(names, tuple) else (names,)


def number_of_shards(axes: MeshAxes) -> int:
    """How many slices the classes have."""
    return int(jax.lax.axis_size(axes)) if axes else 1


def of_this_shard(labels: jax.Array, classes: int, axes: MeshAxes) -> jax.Array:
    """The labels counted from the first class of this shard."""
    if not axes:
        return labels
    return labels - (jax.lax.axis_index(axes) * classes).astype(labels.dtype)


def psum_classes(x: jax.Array, axes: MeshAxes) -> jax.Array:
    """The sum over the shards of the classes."""
    return jax.lax.psum(x, axes) if axes else x


def sum_classes(x: jax.Array, axes: MeshAxes) -> jax.Array:
    """The sum over all classes, as ``[..., 1]``."""
    return psum_classes(jnp.sum(x, axis=-1, keepdims=True), axes)


def in_any_shard(x: jax.Array, axes: MeshAxes) -> jax.Array:
    """Whether it is true in at least one shard."""
    return jax.lax.psum(x.astype(jnp.int32), axes) > 0 if axes else x


def check_replicated(name: str, x: jax.Array, axes: MeshAxes, remedy: str = "") -> None:
    """Refuses an array of the examples that differs between the shards of their classes."""
    if wrong := sorted(varying_axes(x) & set(axes)):
        raise ValueError(
            f"{name} must be the same for every shard of the classes,"
            f" but varies over the mesh axes {', '.join(wrong)}{remedy}"
        )


def varying_axes(x: jax.Array) -> frozenset[Any]:
    """The mesh axes over which an array inside `jax.shard_map` differs."""
    return frozenset(jax.typeof(x).mat.varying)


def varying_over(axes: frozenset[Any], x: jax.Array) -> jax.Array:
    """The array as one whose type varies over these axes, though its numbers do not."""
    missing = tuple(sorted(axes - varying_axes(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def explicit_sharding(x: jax.Array) -> NamedSharding | None:
    """The sharding that the type of `x` has on a mesh with explicit axes; None if it has none.

    JAX refuses a gather and a reshape of the classes as ambiguous for an array that has one.
    """
    sharding = jax.typeof(x).sharding
    return sharding if any(axis is not None for axis in sharding.spec) else None


def is_explicit(*arrays: jax.Array) -> bool:
    """Whether JAX would refuse a gather: also where `jax.vmap` maps over an explicit axis."""
    mesh = jax.sharding.get_abstract_mesh()
    return AxisType.Explicit in mesh.axis_types or any(map(explicit_sharding, arrays))


def joint_sharding(
    rank: int, arrays: Mapping[str, Any], axes_of: Callable[[str, jax.Array], Sequence[int | None]]
) -> NamedSharding | None:
    """The sharding that suits all these arrays, which lie along the axes of one of this rank.

    A dimension is spread over the mesh axes that one of the arrays names, as in JAX's own
    arithmetic. It is None if the type of no array has a sharding. To bring an array to this
    sharding is to cut it: nothing is sent until its cotangent comes back.
    """
    given = {name: x for name, x in arrays.items() if isinstance(x, jax.Array)}
    shardings = {name: own for name, x in given.items() if (own := explicit_sharding(x))}
    entries = [
        (name, i, axes)
        for name, own in shardings.items()
        for i, axes in zip(axes_of(name, given[name]), own.spec, strict=False)
        if i is not None and axes is not None
    ]
    for (a, i, of_a), (b, j, of_b) in combinations(entries, 2):
        if of_a != of_b if i == j else {*as_tuple(of_a)} & {*as_tuple(of_b)}:
            raise ValueError(
                f"{b} must be sharded in a way that suits {a}, got {shardings[b].spec} beside"
                f" {shardings[a].spec}: change one of them with jax.sharding.reshard"
            )
    spec = {i: axes for _, i, axes in entries}
    whole = PartitionSpec(*map(spec.get, range(rank)))
    return next((own.update(spec=whole) for own in shardings.values()), None)


def along(dimensions: Sequence[Any], sharding: NamedSharding | None) -> NamedSharding | None:
    """The sharding of an array with these dimensions of another one, single, merged, or its own."""
    if sharding is None:
        return None
    merged = [sum((as_tuple(sharding.spec[i]) for i in as_tuple(d)), ()) for d in dimensions]
    return sharding.update(spec=PartitionSpec(*merged))


def resharded(x: jax.Array, sharding: NamedSharding | None) -> jax.Array:
    """`x` with this sharding, if there is one. Its cotangent gets the sharding that `x` had."""
    own: Any = jax.typeof(x).sharding
    # Outside of `jax.set_mesh` JAX moves no array from a single device to a mesh.
    is_elsewhere = own.mesh.empty and jax.sharding.get_abstract_mesh().empty
    moves = sharding is not None and own.spec != sharding.spec and not is_elsewhere
    return jax.sharding.reshard(x, sharding) if moves else x


def on_explicit_mesh(x: jax.Array) -> jax.Array:
    """`x` with the mesh of `jax.set_mesh` in its type, if that has explicit axes and `x` no mesh.

    JAX cannot transpose what `jax.vmap` maps over such an axis to an array without a mesh.
    """
    mesh: Any = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit not in mesh.axis_types or not jax.typeof(x).sharding.mesh.empty:
        return x
    whole = NamedSharding(mesh, PartitionSpec(*[None] * x.ndim))
    result: jax.Array = jax.sharding.reshard(x, whole)
    return result


def gathered(x: jax.Array) -> jax.Array:
    """`x` with its first dimension whole on each device, where XLA may have spread it."""
    if not automatic_axes(x):
        return x
    mesh: Any = next(mesh for mesh in _meshes_of(x) if not mesh.empty)
    spec = PartitionSpec(None, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
    result: jax.Array = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
    return result


def is_on_cpu(x: jax.Array) -> bool:
    """Whether the mesh that `x` is on has CPUs, or else the device that JAX takes by default."""
    for mesh in _meshes_of(x):
        device = getattr(mesh, "abstract_device", None)
        if device is not None:
            return bool(device.device_kind == "cpu")
    return jax.default_backend() == "cpu"


def automatic_axes(x: jax.Array) -> Mapping[Any, int]:
    """The mesh axes over which XLA may have spread `x` without its type saying so, and their sizes.

    A mesh that only the ``in_shardings`` of `jax.jit` know is not seen.
    """
    automatic = AxisType.Auto
    return {
        name: mesh.shape[name]
        for mesh in _meshes_of(x)
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == automatic and mesh.shape[name] > 1
    }


def _meshes_of(x: jax.Array) -> tuple[Any, ...]:
    """The mesh that the type of `x` has, and that of `jax.set_mesh`; each may be empty."""
    return jax.typeof(x).sharding.mesh, jax.sharding.get_abstract_mesh()
