"""A linear head's losses and their gradients, some examples at a time.

The arrays go by name: inputs ``[examples, features]``, kernel ``[features, classes]``, labels,
counted (bool) and weights ``[examples]``, and where they are given bias, class_weights and
class_mask (bool) ``[classes]`` and the scalars label_smoothing, z_loss and logit_softcap.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._class_axes import Axes
from ._cross_entropy import softmax_cross_entropy_with_integer_labels
from ._soft_cap import soft_cap
from ._statistics import computing_dtype, upcast

Arrays = dict[str, jax.Array]
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

    # The value of a pullback, which is made of plain operations: from a loop inside a rule, as
    # this one is, JAX drops forward rules, and a second derivative would miss them.
    def step(carry: None, rows: Arrays) -> tuple[None, jax.Array]:
        values, _ = jax.vjp(
            lambda logits: _losses(head.class_axes, logits, rows), _logits(head, rows)
        )
        return None, values

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


def _over_chunks(
    head: Head, arrays: Arrays, step: Callable[[Any, Arrays], tuple[Any, Any]], carry: Any
) -> tuple[Any, Any]:
    """`step` over chunks of whole rows, the last of them smaller if need be: none is padded."""
    examples, size = arrays["inputs"].shape[0], head.chunk_size
    assert size is not None

    def chunk(start: Any, size: int) -> Arrays:
        return {
            name: jax.lax.dynamic_slice_in_dim(x, start, size) if name in PER_EXAMPLE else x
            for name, x in arrays.items()
        }

    number, rest = divmod(examples, size)
    if number <= 1 and not (number and rest):
        return step(carry, arrays)
    # The body is recomputed where it is differentiated once more, or it would keep every chunk.
    body = jax.checkpoint(lambda carry, i: step(carry, chunk(i * size, size)), prevent_cse=False)
    carry, outs = jax.lax.scan(body, carry, jnp.arange(number))
    outs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outs)
    if rest:
        carry, last = step(carry, chunk(number * size, rest))
        outs = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), outs, last)
    return carry, outs
