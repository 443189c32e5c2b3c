"""The loss of a linear head over a mesh: global arrays in, `jax.shard_map` inside."""

import math
from functools import lru_cache
from typing import Any

import jax
from jax.export import is_symbolic_dim
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from ._chunks import Arrays, Head
from ._class_axes import Axes
from ._head import head_losses, head_total

AnyMesh = Mesh | AbstractMesh
_OF_EXAMPLES = ("labels", "counted", "weights")
_OF_CLASSES = ("bias", "class_weights", "class_mask")


def losses_on(
    mesh: AnyMesh | None, example_spec: PartitionSpec | None, head: Head, arrays: Arrays
) -> jax.Array:
    """`head_losses`, of global arrays where there is a mesh."""
    if mesh is None:
        return head_losses(head, arrays)
    spec = _checked(mesh, example_spec, head, arrays)
    head = head._replace(names=tuple(arrays))
    losses: jax.Array = _mapped(mesh, spec, head, head_losses)(*arrays.values())
    return losses


def total_on(
    mesh: AnyMesh | None, example_spec: PartitionSpec | None, head: Head, arrays: Arrays
) -> tuple[jax.Array, jax.Array]:
    """`head_total`, of global arrays where there is a mesh."""
    if mesh is None:
        return head_total(head, arrays)
    spec = _checked(mesh, example_spec, head, arrays)
    head = head._replace(names=tuple(arrays))
    total: tuple[jax.Array, jax.Array] = _mapped(mesh, spec, head, head_total)(*arrays.values())
    return total


@lru_cache
def _mapped(mesh: AnyMesh, spec: PartitionSpec, head: Head, function: Any) -> Any:
    classes = head.class_axes or None
    specs = {"inputs": PartitionSpec(*spec, None), "kernel": PartitionSpec(None, classes)}
    specs |= dict.fromkeys(_OF_EXAMPLES, spec)
    specs |= dict.fromkeys(_OF_CLASSES, PartitionSpec(classes))
    in_specs = tuple(specs.get(name, PartitionSpec()) for name in head.names)
    totalled = function is head_total

    def local(*values: jax.Array) -> Any:
        out = function(head, dict(zip(head.names, values, strict=True)))
        return jax.lax.psum(out, _axes_in(spec)) if totalled else out

    out_specs = PartitionSpec() if totalled else spec
    mapped = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    if AxisType.Explicit not in mesh.axis_types:
        return jax.jit(mapped)
    shardings = [NamedSharding(mesh, spec) for spec in in_specs]
    return jax.jit(lambda *values: mapped(*map(jax.reshard, values, shardings)))


def _axes_in(spec: PartitionSpec) -> Axes:
    dimensions = [a if isinstance(a, tuple) else (a,) for a in spec if a is not None]
    return sum(dimensions, ())


def _checked(
    mesh: AnyMesh, example_spec: PartitionSpec | None, head: Head, arrays: Arrays
) -> PartitionSpec:
    """How the examples lie on the mesh, an entry for each of their dimensions."""
    *examples, features = arrays["inputs"].shape
    if is_symbolic_dim(math.prod((*examples, features, arrays["kernel"].shape[1]))):
        raise ValueError(
            f"mesh must come with sizes that are numbers: what JAX exports of jax.shard_map crashes"
            f" when it is called with others; got inputs {arrays['inputs'].shape} and kernel"
            f" {arrays['kernel'].shape}"
        )
    _check_names("class_axis_name", head.class_axes, mesh)
    if example_spec is None:
        rest = tuple(axis for axis in mesh.axis_names if axis not in head.class_axes)
        example_spec = PartitionSpec(rest or None) if examples else PartitionSpec()
    _check_names("example_spec", _axes_in(example_spec), mesh)
    if len(example_spec) > len(examples):
        raise ValueError(
            f"example_spec must have at most one entry per dimension of the examples"
            f" {tuple(examples)}, got {example_spec}"
        )
    if both := set(_axes_in(example_spec)) & set(head.class_axes):
        raise ValueError(
            f"example_spec must not name the mesh axes of the classes, got {sorted(both)} in both"
        )
    _check_classes(mesh, head.class_axes, arrays["kernel"].shape[1])
    for dimension, (size, names) in enumerate(zip(examples, example_spec, strict=False)):
        axes = _axes_in(PartitionSpec(names))
        if size % (shards := _size(mesh, axes)):
            raise ValueError(
                f"dimension {dimension} of the examples, {size}, must be a multiple of {shards},"
                f" the size of the mesh axes {axes}: pad inputs and labels by {-size % shards},"
                f" with labels that are ignore_index"
            )
    return PartitionSpec(*example_spec, *[None] * (len(examples) - len(example_spec)))


def _check_names(argument: str, axes: Axes, mesh: AnyMesh) -> None:
    if unknown := [axis for axis in axes if axis not in mesh.axis_names]:
        raise ValueError(
            f"{argument} must name axes of the mesh {mesh.axis_names}, got {', '.join(unknown)}"
        )


def _check_classes(mesh: AnyMesh, axes: Axes, classes: int) -> None:
    if classes % (shards := _size(mesh, axes)):
        padded = classes + -classes % shards
        raise ValueError(
            f"the classes of kernel, {classes}, must be a multiple of {shards}, the size of the"
            f" mesh axes {axes}: pad kernel (bias, class_weights) by {padded - classes}, to"
            f" {padded}, and mask the padding with class_mask=jnp.arange({padded}) < {classes}"
        )


def _size(mesh: AnyMesh, axes: Axes) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)
