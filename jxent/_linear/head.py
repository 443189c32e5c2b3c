"""The loss of a linear head from checked arrays: its products, its gradient rules, its reductions.

Inside the rules inputs are ``[examples, features]``, and what is masked has harmless values.
"""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from .._autodiff import in_every_mode
from .._cross_entropy import softmax_cross_entropy_with_integer_labels
from .._dtypes import computing_dtype, upcast
from .._labels import in_range, weight_of_label
from .._numerics import weighted_cost, zero_if_weightless
from .._sharding import MeshAxes, number_of_shards
from .._soft_cap import soft_cap
from .chunks import Arrays, Head, differs_between_shards, over_chunks, with_chunk_size


def head_losses(head: Head, arrays: Arrays) -> jax.Array:
    """The weighted loss of each example."""
    examples = arrays["labels"].shape
    weights = _weights(arrays)
    arrays = _rows(head, arrays)
    values: jax.Array = _losses_of(with_chunk_size(head, arrays))(*arrays.values())
    return weighted_cost(weights, values.reshape(examples))


def head_total(head: Head, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """The sum of the weighted losses, and the number to divide it by for their mean."""
    weights = _weights(arrays).reshape(-1)
    arrays = _rows(head, arrays) | {"weights": weights}
    total: jax.Array = _total_of(with_chunk_size(head, arrays))(*arrays.values())
    if "class_weights" in arrays:
        of_labels = weight_of_label(arrays["class_weights"], arrays["labels"], head.mesh_axes)
        weights = weights * of_labels
    return total, jnp.sum(jnp.where(arrays["counted"], weights, 0.0))


def _weights(arrays: Arrays) -> jax.Array:
    dtype = computing_dtype(arrays["inputs"], arrays["kernel"])
    weights = arrays.get("weights")
    return jnp.ones_like(arrays["labels"], dtype) if weights is None else weights


def _rows(head: Head, arrays: Arrays) -> Arrays:
    """The arrays without the weights, as rows: inputs ``[examples, features]``, nothing masked."""
    x, w, y = arrays["inputs"], arrays["kernel"], arrays["labels"]
    counted = arrays.get("counted", jnp.ones_like(y, bool))
    if "weights" in arrays:
        # An example of weight zero is dropped only if its inputs are not finite or its label names
        # no class. Otherwise it has a loss, which is the gradient of its weight.
        classes = w.shape[1] * number_of_shards(head.mesh_axes)
        has_loss = jnp.all(jnp.isfinite(x), axis=-1) & in_range(y, classes)[..., 0]
        counted = counted & ((arrays["weights"] != 0) | has_loss)
    mask = arrays.get("class_mask")
    return {name: x for name, x in arrays.items() if name != "weights"} | {
        "inputs": jnp.where(counted[..., None], x, 0.0).reshape(y.size, x.shape[-1]),
        "kernel": w if mask is None else jnp.where(mask[None, :], w, 0.0),
        "labels": y.reshape(-1),
        "counted": counted.reshape(-1),
    }


@lru_cache
def _losses_of(head: Head) -> Any:
    """The loss of each example; its gradients compute the logits again (four products)."""

    @jax.custom_vjp
    def reverse(*values: jax.Array) -> jax.Array:
        return _losses(head, _named(head, values))

    def fwd(*args: Any) -> tuple[jax.Array, Any]:
        arrays = _named(head, [x.value for x in args])
        # Residuals must be arrays, so the names that are wanted are the keys of an empty tree.
        return _losses(head, arrays), (arrays, dict.fromkeys(_wanted(head, args), ()))

    def bwd(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
        arrays, wanted = residuals
        _, gradients = _losses_and_gradients(head, arrays, cotangent, frozenset(wanted))
        return _cotangents(head, gradients, arrays)

    reverse.defvjp(fwd, bwd, symbolic_zeros=True)
    return in_every_mode(reverse, head.mesh_axes, _of_classes(head))


@lru_cache
def _total_of(head: Head) -> Any:
    """The weighted sum of the losses; its gradients come with it (three products)."""

    @jax.custom_vjp
    def reverse(*values: jax.Array) -> jax.Array:
        arrays = _named(head, values)
        return jnp.sum(weighted_cost(arrays["weights"], _losses(head, arrays)))

    def fwd(*args: Any) -> tuple[jax.Array, Any]:
        arrays = _named(head, [x.value for x in args])
        wanted = _wanted(head, args)
        weights = arrays["weights"]
        values, gradients = _losses_and_gradients(head, arrays, weights, wanted - {"weights"})
        if "weights" in wanted:
            gradients["weights"] = zero_if_weightless(weights, values)
        # The rule below needs only the dtypes of the arguments, so it gets empty arrays.
        dtypes = {name: jnp.zeros(0, arrays[name].dtype) for name in wanted}
        return jnp.sum(weighted_cost(weights, values)), (gradients, dtypes)

    # The total is linear in its cotangent: the gradients were computed for 1, and wait for it in
    # the computing dtype, so that a loss scale reaches them before they are rounded.
    def bwd(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
        gradients, dtypes = residuals
        scaled = {name: cotangent * gradients[name] for name in dtypes}
        return _cotangents(head, scaled, dtypes)

    reverse.defvjp(fwd, bwd, symbolic_zeros=True)
    return in_every_mode(reverse, head.mesh_axes, _of_classes(head))


def _named(head: Head, values: Any) -> Arrays:
    return dict(zip(head.names, values, strict=True))


def _wanted(head: Head, args: Any) -> frozenset[str]:
    return frozenset(name for name, x in zip(head.names, args, strict=True) if x.perturbed)


def _of_classes(head: Head) -> tuple[bool, ...]:
    return tuple(differs_between_shards(name) for name in head.names)


def _cotangents(head: Head, gradients: Arrays, like: Arrays) -> tuple[jax.Array | None, ...]:
    return tuple(
        gradients[name].astype(like[name].dtype) if name in gradients else None
        for name in head.names
    )


def _losses(head: Head, arrays: Arrays) -> jax.Array:
    """The loss of every example: one product."""

    def step(carry: None, rows: Arrays) -> tuple[None, jax.Array]:
        return None, _losses_from(_logits(head, rows), head.mesh_axes, rows)

    values: jax.Array
    _, values = over_chunks(head, arrays, step, None)
    return values


def _losses_and_gradients(
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
            lambda logits, options: _losses_from(logits, head.mesh_axes, {**rows, **options}),
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
    totals, (values, of_rows) = over_chunks(head, arrays, step, zeros)
    return values, {**totals, **of_rows}


def _losses_from(logits: jax.Array, axes: MeshAxes, rows: Arrays) -> jax.Array:
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

    The gradient of the logits is float32, and `precision` says how the hardware multiplies it.
    Without a `precision` it is rounded to bfloat16 beside a bfloat16 head. TPUs do so themselves;
    a GPU must be told, or it would first write the whole kernel to memory in float32.
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
