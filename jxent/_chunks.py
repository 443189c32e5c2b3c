"""A linear head's losses and their gradients, some examples at a time.

The arrays go by name: inputs ``[examples, features]``, kernel ``[features, classes]``, labels,
counted (bool) and weights ``[examples]``, and where they are given bias, class_weights and
class_mask (bool) ``[classes]`` and the scalars label_smoothing, z_loss and logit_softcap.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.export import is_symbolic_dim

from ._class_axes import Axes
from ._cross_entropy import softmax_cross_entropy_with_integer_labels
from ._soft_cap import soft_cap
from ._statistics import computing_dtype, upcast

Out = TypeVar("Out")
Arrays = dict[str, jax.Array]
Step = Callable[[Any, Arrays], tuple[Any, Any]]
"""Takes what is added up and the arrays of some examples; adds to it, and says what each has."""
PER_EXAMPLE = ("inputs", "labels", "counted", "cotangents")
SAME_FOR_ALL_CLASSES = ("labels", "counted", "weights", "label_smoothing", "z_loss")


class Head(NamedTuple):
    """What is known when the program is traced."""

    precision: jax.lax.PrecisionLike
    chunk_size: int | None
    class_axes: Axes = ()
    """The mesh axes over which the classes are spread."""
    names: tuple[str, ...] = ()


def losses(head: Head, arrays: Arrays) -> jax.Array:
    """The loss of every example: one product."""

    def step(carry: None, rows: Arrays) -> tuple[None, jax.Array]:
        return None, _losses(head.class_axes, _logits(head, rows), rows)

    values: jax.Array
    _, values = _over_chunks(head, arrays, step, None)
    return values


def losses_and_gradients(
    head: Head, arrays: Arrays, cotangents: jax.Array, wanted: frozenset[str]
) -> tuple[jax.Array, Arrays]:
    """The losses, and the gradients of ``sum(cotangents * losses)`` for the arrays `wanted`.

    Three products; the gradients are in the computing dtype, whatever their arguments' dtypes.
    """
    arrays = {**arrays, "cotangents": cotangents}
    dtype = computing_dtype(arrays["inputs"], arrays["kernel"])
    shared = sorted(wanted - {"inputs"})

    def step(totals: Arrays, rows: Arrays) -> tuple[Arrays, tuple[jax.Array, Arrays]]:
        options = {name: rows[name].astype(dtype) for name in shared if name != "kernel"}
        values, pullback = jax.vjp(
            lambda logits, options: _losses(head.class_axes, logits, {**rows, **options}),
            _logits(head, rows),
            options,
        )
        to_logits, gradients = pullback(rows["cotangents"])
        inputs, kernel, of_rows = rows["inputs"], rows["kernel"], {}
        in_bfloat16 = inputs.dtype == kernel.dtype == jnp.bfloat16
        if "inputs" in wanted:
            of_rows["inputs"] = _dot(head, to_logits, kernel, (1, 1), dtype, in_bfloat16)
        if "kernel" in wanted:
            gradients["kernel"] = _dot(head, inputs, to_logits, (0, 0), dtype, in_bfloat16)
        totals = {name: totals[name] + gradients[name] for name in shared}
        return totals, (values, of_rows)

    zeros = {name: jnp.zeros_like(arrays[name], dtype) for name in shared}
    totals, (values, of_rows) = _over_chunks(head, arrays, step, zeros)
    return values, {**totals, **of_rows}


def _losses(axes: Axes, logits: jax.Array, rows: Arrays) -> jax.Array:
    """The loss of each row, from the product of its inputs with the kernel."""
    z = logits
    if "bias" in rows:
        z = z + rows["bias"].astype(z.dtype)[None, :]
    if "logit_softcap" in rows:
        z = soft_cap(z, rows["logit_softcap"].astype(z.dtype))
    where = rows["counted"]
    if "class_mask" in rows:
        where = where[:, None] & rows["class_mask"][None, :]
    return softmax_cross_entropy_with_integer_labels(
        z,
        rows["labels"],
        where=where,
        label_smoothing=rows.get("label_smoothing", 0.0),
        class_weights=rows.get("class_weights"),
        z_loss=rows.get("z_loss", 0.0),
        class_axis_name=axes or None,
    )


def _logits(head: Head, rows: Arrays) -> jax.Array:
    inputs, kernel = rows["inputs"], rows["kernel"]
    return _dot(head, inputs, kernel, (1, 0), computing_dtype(inputs, kernel))


def _dot(
    head: Head,
    a: jax.Array,
    b: jax.Array,
    axes: tuple[int, int],
    dtype: Any,
    in_bfloat16: bool = False,
) -> jax.Array:
    """The product of two matrices over one axis of each, accumulated in `dtype`.

    The gradient of the logits enters in float32, and `precision` says what the hardware makes of
    it. Where nothing is said GPUs get it in bfloat16, beside a bfloat16 head: TPUs round it
    themselves, but a GPU would first have to have the whole kernel in float32.
    """
    numbers = (((axes[0],), (axes[1],)), ((), ()))

    def product(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.dot_general(
            a, b, numbers, precision=head.precision, preferred_element_type=dtype
        )

    if a.dtype == b.dtype:
        return product(a, b)

    def rounded(a: jax.Array, b: jax.Array) -> jax.Array:
        return product(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))

    def unrounded(a: jax.Array, b: jax.Array) -> jax.Array:
        return product(*upcast(a, b))

    if head.precision is not None or not in_bfloat16:
        return unrounded(a, b)
    result: jax.Array = jax.lax.platform_dependent(a, b, cuda=rounded, default=unrounded)
    return result


def _over_chunks(head: Head, arrays: Arrays, step: Step, carry: Any) -> tuple[Any, Any]:
    """`step` over chunks of whole rows, the last of them smaller if need be: none is padded."""
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

    JAX compares symbols only where the answer never changes. So there is always a chunk, with all
    examples if they are few, the last chunk is filled up with examples that do not count, and what
    is cut is longer than need be.
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
    number: int,
    size: int,
    arrays: Arrays,
    step: Step,
    carry: Any,
) -> tuple[Any, Any]:
    # The body is recomputed where it is differentiated once more, or it would keep every chunk.
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
    return {name: change(x) if name in PER_EXAMPLE else x for name, x in arrays.items()}


def _differentiated_whole(loop: Callable[..., Out]) -> Callable[..., Out]:
    """The function, which is differentiated as ever, but hides its loop until it is.

    To tell what is known already from what is linear, JAX 0.10 evaluates part of each loop that it
    meets, and forgets the gradient rules of what is called in the loop. It does not look into this.
    """
    function = jax.custom_jvp(loop)

    @partial(function.defjvp, symbolic_zeros=True)
    def rule(primals: Any, tangents: Any) -> tuple[Out, Out]:
        leaves, tree = jax.tree.flatten(primals)
        dots = jax.tree.leaves(tangents)
        perturbed = [i for i, dot in enumerate(dots) if not isinstance(dot, SymbolicZero)]

        def of_perturbed(*values: jax.Array) -> Out:
            full = list(leaves)
            for i, value in zip(perturbed, values, strict=True):
                full[i] = value
            return loop(*jax.tree.unflatten(tree, full))

        out: tuple[Out, Out] = jax.jvp(
            of_perturbed, [leaves[i] for i in perturbed], [dots[i] for i in perturbed]
        )
        return out

    return function
