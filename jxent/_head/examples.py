"""Losses of all examples, or their sum or mean, from checked arrays, on one device or a mesh."""

import math
import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from .._arguments import ArrayLike, check_not_negative, elementwise, integer
from .._autodiff import aligned, as_program
from .._dtypes import computing_dtype
from .._numerics import nan_where
from .._reduction import mean
from .._sharding import (
    AxisName,
    MeshAxes,
    as_tuple,
    automatic_axes,
    axes_named,
    bound_axes,
    check_replicated,
    explicit_sharding,
    joint_sharding,
    on_explicit_mesh,
    resharded,
    varying_axes,
)
from .chunks import with_chunk_size
from .logits import without_masked_classes
from .plan import (
    COUNTED,
    DIMENSIONS,
    WEIGHTS,
    Arrays,
    HeadLoss,
    Name,
    Plan,
    is_of_classes,
    is_of_examples,
    made,
    number_of_examples,
)
from .rules import of_classes, of_examples, outputs, weigh, weighed

# ---------------------------------------- Options


AnyMesh: TypeAlias = Mesh | AbstractMesh
Reduction: TypeAlias = Literal["mean", "sum", "none"]
NO_MEAN = "Write reduction='sum' and divide by a number, or reduction='none'"


def check_reduction(reduction: str) -> None:
    """Refuses anything but the three reductions."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")


def checked_size(chunk_size: int | None) -> int | None:
    """`chunk_size` as a positive number."""
    if chunk_size is None:
        return None
    try:
        size = integer(chunk_size)
    except TypeError:
        raise TypeError(f"chunk_size must be an integer, got {chunk_size!r}") from None
    if size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {size}")
    return size


def with_weights(
    weights: ArrayLike, reduction: str, arrays: Arrays, has_loss: jax.Array | None = None
) -> Arrays:
    """The arrays with one real number per example, in the computing dtype of the logits.

    An example of weight 0 is dropped for good only if its inputs are not finite, or if it has no
    loss for another reason. Otherwise its loss may be wanted: it is the gradient of its weight.
    """
    x = arrays[Name("inputs")]
    like = jnp.zeros(x.shape[:-1], computing_dtype(x, arrays.get(Name("kernel"))))
    w = elementwise("weights", weights, "the examples", like, repeats=True).astype(like.dtype)
    if reduction == "mean":
        check_not_negative("weights", weights, NO_MEAN)
    given = {str(name): x for name, x in arrays.items() if is_of_examples(name)}
    joint_sharding(w.ndim, given | {"weights": weights}, lambda *_: range(w.ndim))  # May refuse.
    inputs = [x for name, x in arrays.items() if name.kind == "inputs"]
    usable = [jnp.all(jnp.isfinite(x), axis=-1) for x in inputs]
    usable += [] if has_loss is None else [has_loss]
    counted = (w != 0) | reduce(operator.and_, usable)
    if COUNTED in arrays:
        counted = counted & arrays[COUNTED]
    return arrays | {WEIGHTS: w, COUNTED: counted}


def axes_of_classes(mesh: AnyMesh | None, class_axis_name: AxisName | None) -> MeshAxes:
    """The axes of that name, of the mesh or of the enclosing `jax.shard_map`."""
    if mesh is None:
        return bound_axes(class_axis_name)
    return axes_named("class_axis_name", class_axis_name)


# ---------------------------------------- The loss of all examples


def over_examples(
    plan: Plan,
    arrays: Arrays,
    reduction: str,
    mesh: AnyMesh | None,
    class_axis_name: AxisName | None,
    example_spec: jax.sharding.PartitionSpec | None,
) -> tuple[Any, Any]:
    """The mean or sum, or None, and the outputs for each example."""
    axes = axes_of_classes(mesh, class_axis_name)
    if mesh is None:
        if example_spec is not None:
            raise ValueError(f"example_spec must come with a mesh, got {example_spec} alone")
        for name, array in arrays.items():
            if not is_of_classes(name):
                check_replicated(str(name), array, axes)
    examples = arrays[Name("inputs")].shape[:-1]
    if is_symbolic_dim(math.prod(examples)) and COUNTED not in arrays:
        # Their number is not known, so that the last chunk must be like the others.
        arrays = arrays | {COUNTED: jnp.ones(examples, bool)}
    plan = plan._replace(mesh_axes=axes, names=tuple(arrays), reduction=reduction)
    own = next(filter(None, map(explicit_sharding, arrays.values())), None)
    function: Callable[..., tuple[Any, Any]]
    if mesh is not None:
        spec = _spec_of_examples(mesh, example_spec, plan, arrays)
        function = made(_in_shard_map, plan, mesh, spec)
    elif own is not None and jax.sharding.get_abstract_mesh().empty:
        function = made(_in_own_mesh, plan, own.mesh)
    else:
        function = partial(_in_groups, plan)
    totals, each = function(*arrays.values())
    if reduction == "none":
        return None, each
    return (mean(*totals) if reduction == "mean" else totals[0]), each


# ---------------------------------------- On a mesh whose program XLA partitions
# XLA does not cut a loop over chunks of examples that are spread. So the examples are cut into
# groups, as many as there are devices, and the groups are mapped: the chunks of all groups make one
# step of the loop, which XLA spreads over the devices, and each group has totals of its own, which
# are summed after the loop.


def _in_groups(plan: Plan, *values: jax.Array) -> tuple[Any, Any]:
    """`_reduced` of all examples, in groups that the devices compute side by side."""
    arrays = dict(zip(plan.names, map(on_explicit_mesh, values), strict=True))
    shape = arrays[Name("inputs")].shape[:-1]
    arrays, groups = _laid_out(plan, arrays)
    if not groups:
        totals, each = _reduced(plan, arrays)
        return totals, jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), each)
    number = len(groups)
    rest = [n // m for n, m in zip(arrays[Name("inputs")].shape, groups, strict=False)]
    first, every_other = range(number), range(0, 2 * number, 2)

    def cut(x: jax.Array) -> jax.Array:
        for i in reversed(first):
            x = x.reshape(*x.shape[:i], groups[i], rest[i], *x.shape[i + 1 :])
        x = jnp.moveaxis(x, every_other, first)
        return x.reshape(*groups, math.prod(rest), *x.shape[2 * number :])

    def joined(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x.reshape(*groups, *rest, *x.shape[number + 1 :]), first, every_other)
        for i in first:
            x = x.reshape(*x.shape[:i], groups[i] * rest[i], *x.shape[i + 2 :])
        return x.reshape(*shape, *x.shape[number:])

    arrays = {name: cut(x) if is_of_examples(name) else x for name, x in arrays.items()}
    totals, each = _reduced(plan._replace(groups=number), arrays)
    return totals, jax.tree.map(joined, each)


def _in_own_mesh(plan: Plan, mesh: Any) -> Callable[..., tuple[Any, Any]]:
    """`_in_groups` in the mesh that the types of the arrays have: `jax.vmap` must be told of it."""

    def function(*values: jax.Array) -> tuple[Any, Any]:
        with jax.sharding.use_abstract_mesh(mesh):
            return _in_groups(plan, *values)

    return as_program(function)


def _laid_out(plan: Plan, arrays: Arrays) -> tuple[Arrays, tuple[int, ...]]:
    """The arrays, and the number of groups for each dimension of their examples.

    Explicit axes say how the examples are spread. Automatic ones do not: then the examples become
    one dimension, and there is a group for each device, however many devices share an example.
    """
    dimensions = arrays[Name("inputs")].ndim - 1
    spread = {str(name): range(dimensions) for name in arrays if is_of_examples(name)}
    joint = joint_sharding(
        dimensions,
        {str(name): x for name, x in arrays.items()},
        lambda name, _: spread.get(name, ()),
    )
    if joint is None:
        arrays = _in_one_dimension(arrays)
        number = number_of_examples(arrays)
        devices = math.prod(automatic_axes(arrays[Name("inputs")]).values())
        is_cut = devices > 1 and not is_symbolic_dim(number) and number % devices == 0
        return arrays, (devices,) if is_cut else ()
    mesh = joint.mesh
    examples = PartitionSpec(
        *(tuple(a for a in as_tuple(axes) if mesh.shape[a] > 1) or None for axes in joint.spec)
    )
    kernels = [explicit_sharding(x) for name, x in arrays.items() if name.kind == "kernel"]
    of_classes = [axis for own in kernels if own for axis in as_tuple(own.spec[1])]
    # Where the axes of the examples spread the classes, too, the kernel is gathered.
    classes = tuple(dict.fromkeys(axis for axis in of_classes if axis not in _axes_in(examples)))
    arrays = {
        name: resharded(x, joint.update(spec=_spec_of(name, examples, classes)))
        for name, x in arrays.items()
    }
    if not _axes_in(examples):
        return _in_one_dimension(arrays), ()
    return arrays, tuple(_size(mesh, as_tuple(axes)) for axes in examples)


# ---------------------------------------- On one device, or in one shard


def _reduced(plan: Plan, arrays: Arrays) -> tuple[Any, Any]:
    """``((total, count), outputs per example)``; the count is for a mean, the total may be None."""
    arrays = without_masked_classes(arrays)
    values = aligned(tuple(arrays.values()), plan.mesh_axes, of_classes(plan))
    arrays = dict(zip(plan.names, values, strict=True))
    plan = with_chunk_size(plan, arrays)
    plan, arrays = _traced(plan, arrays)
    if plan.reduction != "none" and plan.may_skip:
        total, aux = of_examples(plan, arrays, reduced=True)
        outs: tuple[jax.Array, ...] = ()
    else:
        outs, aux = of_examples(plan, arrays, reduced=False)
        total = None
        if plan.reduction != "none":
            losses, aux = weighed(arrays, outs, aux)
            total, outs = jnp.sum(losses), ()
    each = plan.loss.unflatten(outs, aux)
    if plan.reduction == "mean":
        return (total, _count(plan, arrays, aux, total.dtype)), each
    return (total,), each


def _in_one_dimension(arrays: Arrays) -> Arrays:
    """The arrays with the dimensions of the examples as one."""
    shape = arrays[Name("inputs")].shape[:-1]
    number = math.prod(shape)
    return {
        name: x.reshape(number, *x.shape[len(shape) :]) if is_of_examples(name) else x
        for name, x in arrays.items()
    }


def _traced(plan: Plan, arrays: Arrays) -> tuple[Plan, Arrays]:
    """The plan with the loss traced, and the arrays with those that it closes over."""

    def run(loss: HeadLoss) -> None:
        tracing = plan._replace(loss=loss)
        for x in jax.tree.leaves(jax.eval_shape(partial(outputs, tracing), arrays)):
            remedy = ": give class_axis_name to its losses"
            check_replicated("what loss returns", x, plan.mesh_axes, remedy)

    loss, captured = plan.loss.traced(run)
    # Inside `jax.shard_map` the loss knows the type of what it closes over. If that varies over
    # fewer axes than the examples, its gradient is summed over the others in each chunk. Then all
    # shards must compute as many chunks, and no cotangent can come after that sum.
    axes = frozenset().union(*map(varying_axes, arrays.values())) - set(plan.mesh_axes)
    may_skip = not any(
        isinstance(x, jax.core.Tracer)
        and jnp.issubdtype(x.dtype, jnp.floating)
        and axes - varying_axes(x)
        for x in captured.values()
    )
    arrays = arrays | {name: on_explicit_mesh(x) for name, x in captured.items()}
    return plan._replace(loss=loss, names=tuple(arrays), may_skip=may_skip), arrays


def _count(plan: Plan, arrays: Arrays, aux: Any, dtype: Any) -> jax.Array:
    """The sum of the weights of the examples that count, by which a mean is divided."""
    weights = arrays.get(WEIGHTS, jnp.ones(arrays[Name("inputs")].shape[:-1], dtype))
    is_negative = weights < 0
    if (of_labels := plan.loss.mean_weights(arrays, aux)) is not None:
        weights = weigh(weights, of_labels)
    if COUNTED in arrays:
        weights = jnp.where(arrays[COUNTED], weights, 0.0)
        is_negative &= arrays[COUNTED]
    return nan_where(jnp.any(is_negative), jnp.sum(weights.astype(dtype)))


# ---------------------------------------- On a mesh that is given: `jax.shard_map`


def _in_shard_map(plan: Plan, mesh: AnyMesh, spec: PartitionSpec) -> Callable[..., Any]:
    in_specs = tuple(_spec_of(name, spec, plan.mesh_axes) for name in plan.names)

    def local(*values: jax.Array) -> Any:
        arrays = dict(zip(plan.names, values, strict=True))
        examples = arrays[Name("inputs")].shape[:-1]
        totals, each = _reduced(plan, _in_one_dimension(arrays))
        each = jax.tree.map(lambda x: x.reshape(*examples, *x.shape[1:]), each)
        return jax.lax.psum(totals, _axes_in(spec)), each

    out_specs = (PartitionSpec(), spec)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    if AxisType.Explicit not in mesh.axis_types:
        return as_program(mapped)
    shardings = [NamedSharding(mesh, spec) for spec in in_specs]
    return as_program(lambda *values: mapped(*map(jax.reshard, values, shardings)))


def _spec_of(name: Name, examples: PartitionSpec, classes: MeshAxes) -> PartitionSpec:
    """The spec of an array; it is whole in the dimensions that neither spec names."""
    axes = {"e": tuple(examples), "f": (None,), "c": (classes or None,)}
    return PartitionSpec(*(axis for d in DIMENSIONS[name.kind] for axis in axes[d]))


def _axes_in(spec: PartitionSpec) -> MeshAxes:
    return sum(map(as_tuple, spec), ())


def _spec_of_examples(
    mesh: AnyMesh, example_spec: PartitionSpec | None, plan: Plan, arrays: Arrays
) -> PartitionSpec:
    """The spec of the examples, with an entry for each of their dimensions."""
    heads = {name: x.shape for name, x in arrays.items() if name.kind in ("inputs", "kernel")}
    if any(is_symbolic_dim(math.prod(shape)) for shape in heads.values()):
        got = " and ".join(f"{name} {shape}" for name, shape in heads.items())
        raise ValueError(
            f"mesh must come with sizes that are numbers: what JAX exports of jax.shard_map crashes"
            f" when it is called with others; got {got}"
        )
    examples = heads[Name("inputs")][:-1]
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
    for name, shape in heads.items():
        if name.kind == "kernel":
            _check_classes(mesh, plan.mesh_axes, shape[1])
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
