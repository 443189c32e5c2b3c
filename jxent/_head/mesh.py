"""A function of linear logits over a mesh: global arrays in, `jax.shard_map` inside."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
from jax.export import is_symbolic_dim
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from .._sharding import MeshAxes, as_tuple
from .plan import DIMENSIONS, Arrays, Name, Plan, made

AnyMesh: TypeAlias = Mesh | AbstractMesh


def over_mesh(
    function: Callable[[Plan, Arrays], Any],
    mesh: AnyMesh | None,
    example_spec: PartitionSpec | None,
    plan: Plan,
    arrays: Arrays,
) -> Any:
    """``function(plan, arrays)``, of global arrays where there is a mesh.

    The function returns totals over the examples, and numbers ``[...]`` of the examples.
    """
    if mesh is None:
        return function(plan, arrays)
    spec = _checked(mesh, example_spec, plan, arrays)
    return made(_mapped, plan, function, mesh, spec)(*arrays.values())


def _mapped(plan: Plan, function: Any, mesh: AnyMesh, spec: PartitionSpec) -> Callable[..., Any]:
    in_specs = tuple(_spec_of(name, spec, plan.mesh_axes) for name in plan.names)

    def local(*values: jax.Array) -> Any:
        totals, each = function(plan, dict(zip(plan.names, values, strict=True)))
        return jax.lax.psum(totals, _axes_in(spec)), each

    out_specs = (PartitionSpec(), spec)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    if AxisType.Explicit not in mesh.axis_types:
        return jax.jit(mapped)
    shardings = [NamedSharding(mesh, spec) for spec in in_specs]
    return jax.jit(lambda *values: mapped(*map(jax.reshard, values, shardings)))


def _spec_of(name: Name, examples: PartitionSpec, classes: MeshAxes) -> PartitionSpec:
    """How an array lies on the mesh; it is whole in the dimensions that no spec names."""
    axes = {"e": tuple(examples), "f": (None,), "c": (classes or None,)}
    return PartitionSpec(*(axis for d in DIMENSIONS[name.kind] for axis in axes[d]))


def _axes_in(spec: PartitionSpec) -> MeshAxes:
    return sum(map(as_tuple, spec), ())


def _checked(
    mesh: AnyMesh, example_spec: PartitionSpec | None, plan: Plan, arrays: Arrays
) -> PartitionSpec:
    """How the examples lie on the mesh, an entry for each of their dimensions."""
    heads = [(arrays[Name("inputs", i)], arrays[Name("kernel", i)]) for i in plan.heads]
    for x, w in heads:
        if is_symbolic_dim(math.prod((*x.shape, w.shape[1]))):
            raise ValueError(
                f"mesh must come with sizes that are numbers: what JAX exports of jax.shard_map"
                f" crashes when it is called with others; got inputs {x.shape} and kernel {w.shape}"
            )
    examples = heads[0][0].shape[:-1]
    _check_names("class_axis_name", plan.mesh_axes, mesh)
    if example_spec is None:
        rest = tuple(axis for axis in mesh.axis_names if axis not in plan.mesh_axes)
        example_spec = PartitionSpec(rest or None) if examples else PartitionSpec()
    _check_names("example_spec", _axes_in(example_spec), mesh)
    if len(example_spec) > len(examples):
        raise ValueError(
            f"example_spec must have at most one entry per dimension of the examples"
            f" {tuple(examples)}, got {example_spec}"
        )
    if both := set(_axes_in(example_spec)) & set(plan.mesh_axes):
        raise ValueError(
            f"example_spec must not name the mesh axes of the classes, got {sorted(both)} in both"
        )
    for _, w in heads:
        _check_classes(mesh, plan.mesh_axes, w.shape[1])
    for dimension, (size, names) in enumerate(zip(examples, example_spec, strict=False)):
        axes = _axes_in(PartitionSpec(names))
        if size % (shards := _size(mesh, axes)):
            raise ValueError(
                f"dimension {dimension} of the examples, {size}, must be a multiple of {shards},"
                f" the size of the mesh axes {axes}: pad inputs and labels by {-size % shards},"
                f" with labels that are ignore_index"
            )
    return PartitionSpec(*example_spec, *[None] * (len(examples) - len(example_spec)))


def _check_names(argument: str, axes: MeshAxes, mesh: AnyMesh) -> None:
    if unknown := [axis for axis in axes if axis not in mesh.axis_names]:
        raise ValueError(
            f"{argument} must name axes of the mesh {mesh.axis_names}, got {', '.join(unknown)}"
        )


def _check_classes(mesh: AnyMesh, axes: MeshAxes, classes: int) -> None:
    if classes % (shards := _size(mesh, axes)):
        padded = classes + -classes % shards
        raise ValueError(
            f"the classes of kernel, {classes}, must be a multiple of {shards}, the size of the"
            f" mesh axes {axes}: pad kernel (bias, class_weights) by {padded - classes}, to"
            f" {padded}, and mask the padding with class_mask=jnp.arange({padded}) < {classes}"
        )


def _size(mesh: AnyMesh, axes: MeshAxes) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)
