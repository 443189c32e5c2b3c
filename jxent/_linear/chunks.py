"""The arrays of a linear head, and loops over chunks of its examples.

The arrays go by the names of the arguments; those that are not given are missing. Beside them are
"counted", which says which examples `ignore_index` leaves, and "cotangents" of the losses.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from .._autodiff import of_perturbed_alone
from .._dtypes import computing_dtype
from .._sharding import MeshAxes

Out = TypeVar("Out")
Arrays: TypeAlias = dict[str, jax.Array]
Step: TypeAlias = Callable[[Any, Arrays], tuple[Any, Any]]
"""Takes running totals and the arrays of some examples; returns the totals with these examples
added, and what there is for each of the examples."""
DIMENSIONS = {
    "inputs": "ef",
    "kernel": "fc",
    "labels": "e",
    "counted": "e",
    "weights": "e",
    "cotangents": "e",
    "bias": "c",
    "class_weights": "c",
    "class_mask": "c",
    "label_smoothing": "",
    "z_loss": "",
    "logit_softcap": "",
}
"""The dimensions of each array: e for the examples, f for the features, c for the classes."""


class Head(NamedTuple):
    """What is known when the program is traced."""

    precision: jax.lax.PrecisionLike
    chunk_size: int | None
    mesh_axes: MeshAxes = ()
    """The mesh axes that the classes are spread over."""
    names: tuple[str, ...] = ()
    """The names of the arrays."""


def differs_between_shards(name: str) -> bool:
    """Whether shards of the classes have an array of their own, or a gradient of their own.

    The logits of a shard are made of inputs and cap, so that each shard has a part of their
    gradients. The other arrays of examples, and the other scalars, meet the loss of whole rows.
    """
    return "c" in DIMENSIONS[name] or name in ("inputs", "logit_softcap")


def with_chunk_size(head: Head, arrays: Arrays) -> Head:
    """The head of these arrays, with a number of examples per chunk.

    By default the logits of a chunk are small beside the gradient of the kernel, or small in any
    case. A chunk has at least 128 examples, so that arithmetic limits the products and not memory;
    and chunks have nearly equal sizes, in whole tiles.
    """
    head = head._replace(names=tuple(arrays))
    if head.chunk_size is not None:
        return head
    examples, (features, classes) = arrays["labels"].size, arrays["kernel"].shape
    itemsize = computing_dtype(arrays["inputs"], arrays["kernel"]).itemsize
    budget = 3 * 2**23
    if not is_symbolic_dim(features * classes):
        budget = max(budget, features * classes * itemsize // 8)
    # A symbol of `jax.export` may stand for any number: for many classes, or for few examples.
    most = 2 if is_symbolic_dim(classes) else max(2, budget // (classes * itemsize) // 64)
    size = most * 64
    if not is_symbolic_dim(examples):
        number = max(1, math.ceil(examples / size))
        size = max(1, math.ceil(examples / number / 8) * 8)
    return head._replace(chunk_size=size)


def over_chunks(head: Head, arrays: Arrays, step: Step, carry: Any) -> tuple[Any, Any]:
    """`step` over chunks of examples; the last chunk may be smaller, and none is padded."""
    examples, size = arrays["inputs"].shape[0], head.chunk_size
    assert size is not None
    if is_symbolic_dim(examples):
        return _over_any_number(size, arrays, step, carry)
    number, rest = divmod(examples, size)
    if number == 0 or examples == size:
        return step(carry, arrays)
    carry, outs = _over_equal_chunks(number, size, arrays, step, carry)
    if rest:
        cut = partial(jax.lax.slice_in_dim, start_index=number * size, limit_index=examples)
        carry, last = step(carry, _of_examples(arrays, cut))
        outs = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), outs, last)
    return carry, outs


def _over_any_number(size: int, arrays: Arrays, step: Step, carry: Any) -> tuple[Any, Any]:
    """The same where the number of examples is a symbol of `jax.export`.

    JAX refuses to compare symbols unless the answer is the same for all numbers, so the program
    must not depend on how many examples there are. There is always at least one chunk, which has
    all examples if they are few. The last chunk is filled up with examples that do not count, from
    arrays that are made longer than need be, and then cut.
    """

    def longer(x: jax.Array, by: int) -> jax.Array:
        return jnp.concatenate([x, jnp.zeros((by, *x.shape[1:]), x.dtype)])

    examples = arrays["inputs"].shape[0]
    arrays = _of_examples(arrays, partial(longer, by=size))
    number = (examples + size - 1) // size
    size = jax.core.min_dim(examples, size)
    carry, outs = _over_equal_chunks(number, size, arrays, step, carry)
    return carry, jax.tree.map(lambda x: longer(x, examples)[:examples], outs)


def _over_equal_chunks(
    number: int, size: int, arrays: Arrays, step: Step, carry: Any
) -> tuple[Any, Any]:
    # Under a second derivative the loop would keep what each chunk computes. The checkpoint makes
    # it compute each chunk again.
    @partial(jax.checkpoint, prevent_cse=False)
    def body(carry: Any, arrays: Arrays, i: jax.Array) -> tuple[Any, Any]:
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=i * size, slice_size=size)
        return step(carry, _of_examples(arrays, cut))

    @_differentiated_whole
    def loop(carry: Any, arrays: Arrays) -> tuple[Any, Any]:
        return jax.lax.scan(lambda carry, i: body(carry, arrays, i), carry, jnp.arange(number))

    carry, outs = loop(carry, arrays)
    return carry, jax.tree.map(lambda x: x.reshape(number * size, *x.shape[2:]), outs)


def _of_examples(arrays: Arrays, change: Callable[[jax.Array], jax.Array]) -> Arrays:
    return {name: change(x) if "e" in DIMENSIONS[name] else x for name, x in arrays.items()}


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
