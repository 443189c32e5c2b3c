"""Loops over chunks of examples."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.export import is_symbolic_dim

from .._autodiff import differentiated_whole
from .._dtypes import computing_dtype
from .._sharding import gathered, is_on_cpu, varying_over
from .plan import COUNTED, Arrays, Name, Plan, is_of_examples, number_of_examples


def with_chunk_size(plan: Plan, arrays: Arrays) -> Plan:
    """The plan for these arrays, with a number of examples per chunk.

    A chunk moves the kernel twice, and the kernel's running gradient in float32 in and out: for
    each entry 12 bytes in all if it is bfloat16, beside 6 operations for each example. On a device
    that does I operations while it moves a byte, this takes 2 I / size of the time of the products.
    I is 160 to 560 on accelerators, so a chunk has 2048 examples there, unless that would take the
    temporaries above both a quarter of all logits and 1.6 gradients of the kernel and 0.3 GB. They
    are the running gradient, and the chunk's logits with their gradient in half of the bytes.

    On a CPU arithmetic takes most of the time at any size. The logits of a chunk are then small
    beside the gradient of the kernel, or small in any case.

    Chunks are nearly equal, so that few examples are missing in the last one, which is filled up.
    They have whole tiles of examples: with others the smallest of the heads that
    ``benchmarks/linear_compiled.py`` compiles takes 1.1 to 1.3 times the time on TPUs.
    """
    examples, size = number_of_examples(arrays), plan.chunk_size or _default_size(plan, arrays)
    if not is_symbolic_dim(examples):
        tile = math.gcd(size, 8 if is_on_cpu(arrays[Name("inputs")]) else 64)
        number = max(1, -(-examples // size))
        size = max(1, min(-(-examples // (number * tile)) * tile, examples))
    return plan._replace(chunk_size=size, names=tuple(arrays))


def _default_size(plan: Plan, arrays: Arrays) -> int:
    """The most examples in a chunk."""
    examples, row, inputs, kernels = number_of_examples(arrays), 0, 0, 0
    for i in plan.heads:
        x, w = arrays[Name("inputs", i)], arrays.get(Name("kernel", i))
        itemsize = computing_dtype(x, w).itemsize
        row += (x if w is None else w).shape[-1] * itemsize
        kernels += 0 if w is None else w.size * itemsize
        inputs += examples * x.shape[-1] * itemsize
    # A symbol of `jax.export` may stand for any number: for many classes, or for few examples.
    if is_symbolic_dim(row):
        return 128
    least, kernels = 3 * 2**23 // row, 0 if is_symbolic_dim(kernels) else kernels
    if is_on_cpu(x):
        most = kernels // 8 // row
    else:
        spare = 3 * 10**8 + kernels * 6 // 10
        if not is_symbolic_dim(inputs):
            spare = max(spare, examples * row // 4 - kernels) - inputs
        most = min(2048, spare * 2 // 3 // row)
    return max(128, least // 64 * 64, most // 64 * 64)


Step: TypeAlias = Callable[[Any, Arrays], tuple[Any, Any]]
"""Takes running totals and the arrays of some examples. Returns the totals with these examples
added, and the outputs for each of the examples. What is not counted has cotangents of 0."""


def over_chunks(plan: Plan, arrays: Arrays, step: Step, carry: Any) -> tuple[Any, Any]:
    """`step` over chunks of examples: for each group of them, which has totals of its own."""
    size = plan.chunk_size
    assert size is not None

    def of_group(*values: jax.Array) -> tuple[Any, Any]:
        given = dict(zip(arrays, values, strict=True))
        examples = number_of_examples(given)
        if COUNTED in given and (is_symbolic_dim(examples) or examples):
            return _over_those_that_count(size, plan.may_skip, given, step, carry)
        return _over_all(size, given, step, carry)

    function = of_group
    for _ in range(plan.groups):
        function = jax.vmap(function, [0 if is_of_examples(name) else None for name in arrays])
    # Otherwise a kernel whose features are spread would be gathered again for each chunk.
    return function(*(gathered(x) if name.kind == "kernel" else x for name, x in arrays.items()))


def _over_all(size: int, arrays: Arrays, step: Step, carry: Any) -> tuple[Any, Any]:
    """All examples. The last one, not counted again, fills the rest of the last chunk."""
    examples = number_of_examples(arrays)
    if examples <= size:
        return step(carry, arrays)
    missing = -examples % size

    def filled(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1), mode="edge")

    if missing:
        arrays = _of_examples(arrays, filled)

    def chunk(carry: Any, arrays: Arrays, start: Any) -> tuple[Any, Any]:
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size)
        rows = _of_examples(arrays, cut)
        if missing:
            rows[COUNTED] = start + jnp.arange(size) < examples
        return step(carry, rows)

    carry, outs = _in_chunks(-(-examples // size), size, arrays, chunk, carry)
    return carry, jax.tree.map(lambda x: x[:examples], outs)


def _over_those_that_count(
    size: int, may_skip: bool, arrays: Arrays, step: Step, carry: Any
) -> tuple[Any, Any]:
    """The examples that count come first, in their order, and chunks that have none are skipped.

    Positions of dropped examples are filled with the first counted example, which does not count
    again. The dropped examples may hold NaN or labels that the loss does not accept. Their own
    results are 0. Where no example counts, but chunks are computed for others of a `vmap` or a
    mesh, ones and the label 0 take its place.
    """
    counted, examples = arrays[COUNTED], number_of_examples(arrays)
    number, size = (examples + size - 1) // size, jax.core.min_dim(examples, size)
    arrays = {name: x for name, x in arrays.items() if name != COUNTED}
    order = jnp.argsort(~counted, stable=True)
    count = jnp.sum(counted.astype(order.dtype))

    def chunk(carry: Any, given: Any, start: Any) -> tuple[Any, Any]:
        arrays, order, count = given
        place = jnp.asarray(start, order.dtype) + jnp.arange(size, dtype=order.dtype)
        is_counted = place < count

        def compute(carry: Any, arrays: Arrays) -> tuple[Any, Any]:
            index = jnp.where(is_counted, jnp.take(order, place, mode="clip"), order[:1])
            rows = _of_examples(arrays, partial(jnp.take, indices=index, axis=0, mode="clip"))
            for name in filter(is_of_examples, rows):
                if jnp.issubdtype(rows[name].dtype, np.number):
                    is_floating = jnp.issubdtype(rows[name].dtype, np.floating)
                    harmless = jnp.asarray(is_floating, rows[name].dtype)
                    rows[name] = jnp.where(count > 0, rows[name], harmless)
            carry, outs = step(carry, rows | {COUNTED: is_counted})
            return carry, jax.tree.map(partial(zero_unless, is_counted), outs)

        def skip(carry: Any, arrays: Arrays) -> tuple[Any, Any]:
            _, outs = jax.eval_shape(compute, carry, arrays)
            return carry, jax.tree.map(_zeros, outs)

        if not may_skip:
            return compute(carry, arrays)
        is_needed = _anywhere(is_counted[0])
        result: tuple[Any, Any] = jax.lax.cond(is_needed, compute, skip, carry, arrays)
        return result

    carry, outs = _in_chunks(number, size, (arrays, order, count), chunk, carry)
    back = jnp.argsort(order)
    return carry, jax.tree.map(lambda x: jnp.take(x, back, axis=0, mode="clip"), outs)


@custom_vmap
def _anywhere(condition: jax.Array) -> jax.Array:
    """The condition; under `vmap`, whether it holds anywhere.

    So `vmap` skips a chunk that no example needs. The own rule of `vmap`, for conditions that
    differ, computes everything, and then selects by operations that JAX cannot transpose.
    """
    return condition


@_anywhere.def_vmap
def _anywhere_rule(size: int, is_mapped: Any, conditions: jax.Array) -> tuple[jax.Array, bool]:
    return _anywhere(jnp.any(conditions, axis=0)), False


def zero_unless(counted: jax.Array, x: jax.Array) -> jax.Array:
    """Arrays ``[examples, ...]`` with zeros for the examples that do not count."""
    counted = jnp.expand_dims(counted, range(counted.ndim, x.ndim))
    return jnp.where(counted, x, jnp.zeros((), x.dtype))


def _zeros(like: Any) -> jax.Array:
    axes = frozenset(getattr(like.manual_axis_type, "varying", ()))
    return varying_over(axes, jnp.zeros(like.shape, like.dtype))


def _in_chunks(
    number: Any, size: Any, given: Any, chunk: Callable[..., tuple[Any, Any]], carry: Any
) -> tuple[Any, Any]:
    """``chunk(carry, given, start)`` for so many chunks of this size."""
    # A second derivative would keep what each chunk computes. The checkpoint makes it compute each
    # chunk again.
    whole = jax.checkpoint(chunk, prevent_cse=False)

    @differentiated_whole
    def every(carry: Any, given: Any) -> tuple[Any, Any]:
        starts = jnp.arange(number) * size
        carry, outs = jax.lax.scan(lambda carry, i: whole(carry, given, i), carry, starts)
        return carry, jax.tree.map(lambda x: x.reshape(number * size, *x.shape[2:]), outs)

    return every(carry, given)


def _of_examples(arrays: Arrays, change: Callable[[jax.Array], jax.Array]) -> Arrays:
    return {name: change(x) if is_of_examples(name) else x for name, x in arrays.items()}
