"""The arrays behind losses of linear logits, and loops over chunks of their examples."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.export import is_symbolic_dim

from .._dtypes import computing_dtype
from .._pushforward import of_perturbed_alone
from .._sharding import MeshAxes, varying_axes

Out = TypeVar("Out")


class Name(NamedTuple):
    """The name of an array: its kind, and which of that kind it is."""

    kind: str
    which: int | str = 0

    def __str__(self) -> str:
        return self.which if isinstance(self.which, str) else self.kind


Arrays: TypeAlias = dict[Name, jax.Array]
COUNTED, WEIGHTS = Name("counted", "where"), Name("weights")
DIMENSIONS = {
    "inputs": "ef",
    "kernel": "fc",
    "bias": "c",
    "scale": "",
    "softcap": "",
    "class_mask": "c",
    "of examples": "e",
    "of classes": "c",
    "shared": "",
    "captured": "",
    "counted": "e",
    "weights": "e",
    "cotangents": "e",
}
"""The dimensions of each kind: e for the examples, f for the features, c for the classes.

The first six kinds are the arrays of linear logits. "of examples", "of classes" and "shared" are
arguments of the loss, and "captured" is what the loss closes over, of any shape. "counted" says
which examples count; "cotangents" are those of the outputs.
"""


class Plan(NamedTuple):
    """What is known when the program is traced."""

    loss: Any
    """``loss(logits, arrays) -> (outs, aux)``: of the logits ``[examples, classes]`` of each head
    and the other arrays, tuples of arrays ``[examples]``: those that are differentiated, which are
    floating-point, and the others."""
    precision: jax.lax.PrecisionLike = None
    chunk_size: int | None = None
    mesh_axes: MeshAxes = ()
    """The mesh axes that the classes are spread over."""
    names: tuple[Name, ...] = ()
    reduction: str = "none"
    """What is wanted: the losses, or their sum or mean."""
    may_skip: bool = True
    """Whether shards may differ in what they skip, and in the cotangents of their sums."""

    @property
    def heads(self) -> range:
        """The numbers of the linear logits."""
        return range(sum(name.kind == "inputs" for name in self.names))


def is_of_classes(name: Name) -> bool:
    """Whether shards of the classes have an array of their own, or a gradient of their own.

    The logits of a shard are made of inputs, scale and cap, so that each shard has a part of their
    gradients. The other arrays of examples, and the other scalars, meet the loss of whole rows.
    """
    return "c" in DIMENSIONS[name.kind] or name.kind in ("inputs", "scale", "softcap")


def is_of_examples(name: Name) -> bool:
    """Whether the array is cut along with the examples."""
    return "e" in DIMENSIONS[name.kind]


def number_of_examples(arrays: Arrays) -> Any:
    """Of arrays whose examples are one dimension."""
    return arrays[Name("inputs")].shape[0]


def with_chunk_size(plan: Plan, arrays: Arrays) -> Plan:
    """The plan for these arrays, with a number of examples per chunk.

    By default the logits of a chunk are small beside the gradient of the kernel, or small in any
    case. A chunk has at least 128 examples, so that arithmetic limits the products and not memory;
    and chunks have nearly equal sizes, in whole tiles.
    """
    plan = plan._replace(names=tuple(arrays))
    if plan.chunk_size is not None:
        return plan
    row = kernels = 0
    for i in plan.heads:
        x, w = arrays[Name("inputs", i)], arrays[Name("kernel", i)]
        itemsize = computing_dtype(x, w).itemsize
        row, kernels = row + w.shape[1] * itemsize, kernels + w.size * itemsize
    examples = number_of_examples(arrays)
    budget = 3 * 2**23
    if not is_symbolic_dim(kernels):
        budget = max(budget, kernels // 8)
    # A symbol of `jax.export` may stand for any number: for many classes, or for few examples.
    most = 2 if is_symbolic_dim(row) else max(2, budget // row // 64)
    size = most * 64
    if not is_symbolic_dim(examples):
        number = max(1, math.ceil(examples / size))
        size = max(1, math.ceil(examples / number / 8) * 8)
    return plan._replace(chunk_size=size)


Step: TypeAlias = Callable[[Any, Arrays], tuple[Any, Any]]
"""Takes running totals and the arrays of some examples; returns the totals with these examples
added, and what there is for each of the examples."""


def over_chunks(plan: Plan, arrays: Arrays, step: Step, carry: Any) -> tuple[Any, Any]:
    """`step` over chunks of examples."""
    examples, size = number_of_examples(arrays), plan.chunk_size
    assert size is not None
    if COUNTED in arrays and (is_symbolic_dim(examples) or examples):
        return _over_those_that_count(size, plan.may_skip, arrays, step, carry)
    return _over_all(size, arrays, step, carry)


def _over_all(size: int, arrays: Arrays, step: Step, carry: Any) -> tuple[Any, Any]:
    examples = number_of_examples(arrays)
    if examples <= size:
        return step(carry, arrays)

    def chunk(carry: Any, arrays: Arrays, start: Any, size: int) -> tuple[Any, Any]:
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        return step(carry, _of_examples(arrays, cut))

    return _in_chunks(examples, size, arrays, chunk, carry)


def _over_those_that_count(
    size: int, may_skip: bool, arrays: Arrays, step: Step, carry: Any
) -> tuple[Any, Any]:
    """The examples that count come first, in their order, and chunks that have none are skipped.

    In place of the others the first example that counts is repeated, without weight: what is
    computed of it is as good as what is computed anyway, whereas the others may be NaN, or be no
    arguments for the loss. What there is for each of the others is 0. Where none counts, but chunks
    are computed for others of a `vmap` or a mesh, ones and the label 0 take its place.
    """
    counted, examples = arrays[COUNTED], number_of_examples(arrays)
    arrays = {name: x for name, x in arrays.items() if name != COUNTED}
    order = jnp.argsort(~counted, stable=True)
    count = jnp.sum(counted.astype(order.dtype))

    def chunk(carry: Any, given: Any, start: Any, size: Any) -> tuple[Any, Any]:
        arrays, order, count = given
        place = jnp.asarray(start, order.dtype) + jnp.arange(size, dtype=order.dtype)
        is_counted = place < count

        def compute(carry: Any, arrays: Arrays) -> tuple[Any, Any]:
            index = jnp.where(is_counted, jnp.take(order, place, mode="clip"), order[:1])
            rows = _of_examples(arrays, partial(jnp.take, indices=index, axis=0, mode="clip"))
            for name in rows:
                if name.kind in ("weights", "cotangents"):
                    rows[name] = jnp.where(is_counted, rows[name], 0)
                elif jnp.issubdtype(rows[name].dtype, np.number) and is_of_examples(name):
                    is_floating = jnp.issubdtype(rows[name].dtype, np.floating)
                    harmless = jnp.asarray(is_floating, rows[name].dtype)
                    rows[name] = jnp.where(count > 0, rows[name], harmless)
            carry, outs = step(carry, rows)
            return carry, jax.tree.map(partial(_zero_unless, is_counted), outs)

        def skip(carry: Any, arrays: Arrays) -> tuple[Any, Any]:
            _, outs = jax.eval_shape(compute, carry, arrays)
            return carry, jax.tree.map(_zeros, outs)

        if not may_skip:
            return compute(carry, arrays)
        is_needed = _anywhere(is_counted[0])
        result: tuple[Any, Any] = jax.lax.cond(is_needed, compute, skip, carry, arrays)
        return result

    carry, outs = _in_chunks(examples, size, (arrays, order, count), chunk, carry)
    back = jnp.argsort(order)
    return carry, jax.tree.map(lambda x: jnp.take(x, back, axis=0, mode="clip"), outs)


@custom_vmap
def _anywhere(condition: jax.Array) -> jax.Array:
    """The condition; under `vmap`, whether it holds anywhere.

    So `vmap` skips what nobody needs. Its own rule for conditions that differ computes everything,
    and then selects by operations that JAX cannot transpose.
    """
    return condition


@_anywhere.def_vmap
def _anywhere_rule(size: int, is_mapped: Any, conditions: jax.Array) -> tuple[jax.Array, bool]:
    return _anywhere(jnp.any(conditions, axis=0)), False


def _zero_unless(counted: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(counted.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros((), x.dtype))


def _zeros(like: Any) -> jax.Array:
    zeros = jnp.zeros(like.shape, like.dtype)
    axes = tuple(sorted(varying_axes(like) - varying_axes(zeros)))
    return jax.lax.pcast(zeros, axes, to="varying") if axes else zeros


def _in_chunks(
    examples: Any, most: int, given: Any, chunk: Callable[..., tuple[Any, Any]], carry: Any
) -> tuple[Any, Any]:
    """``chunk(carry, given, start, size)`` for chunks of at most so many examples.

    The last one may be smaller, and none is padded, unless the number of examples is a symbol.
    """
    size = jax.core.min_dim(examples, most)
    if is_symbolic_dim(examples):
        number, rest = (examples + most - 1) // most, 0
    else:
        number, rest = divmod(examples, size)

    # A second derivative would keep what each chunk computes. The checkpoint makes it compute each
    # chunk again.
    whole, remainder = (
        jax.checkpoint(partial(chunk, size=n), prevent_cse=False) for n in (size, rest)
    )

    @_differentiated_whole
    def every(carry: Any, given: Any) -> tuple[Any, Any]:
        starts = jnp.arange(number) * size
        carry, outs = jax.lax.scan(lambda carry, i: whole(carry, given, i), carry, starts)
        outs = jax.tree.map(lambda x: x.reshape(number * size, *x.shape[2:]), outs)
        if rest:
            carry, last = remainder(carry, given, number * size)
            outs = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), outs, last)
        return carry, outs

    return every(carry, given)


def _of_examples(arrays: Arrays, change: Callable[[jax.Array], jax.Array]) -> Arrays:
    return {name: change(x) if is_of_examples(name) else x for name, x in arrays.items()}


def _differentiated_whole(loop: Callable[..., Out]) -> Callable[..., Out]:
    """The function with the same derivatives, whose loop JAX cannot see until it differentiates it.

    JAX 0.10 evaluates a part of each loop that it sees, to separate what is known from what is
    linear, and so forgets the gradient rules of the functions that the loop calls.
    """
    function = jax.custom_jvp(loop)

    @partial(function.defjvp, symbolic_zeros=True)
    def rule(primals: Any, tangents: Any) -> tuple[Out, Out]:
        out: tuple[Out, Out] = jax.jvp(*of_perturbed_alone(loop, primals, tangents))
        return out

    return function
