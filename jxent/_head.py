r"""The loss of a linear head from checked arrays: what counts, reductions, and gradient rules.

The arrays go by the names of the arguments. Those that are not given are missing, and "counted"
says which examples `ignore_index` leaves.
"""

import math
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from ._autodiff import in_every_mode
from ._chunks import SAME_FOR_ALL_CLASSES, Arrays, Head, losses, losses_and_gradients
from ._class_axes import number_of_shards
from ._labels import is_class, of_label
from ._numerics import chargeable, times
from ._statistics import computing_dtype


def head_losses(head: Head, arrays: Arrays) -> jax.Array:
    """The weighted loss of each example."""
    examples = arrays["labels"].shape
    weights = _weights(arrays)
    arrays = _rows(head, arrays)
    values: jax.Array = _losses_of(_chunked(head, arrays))(*arrays.values())
    return times(weights, values.reshape(examples))


def head_total(head: Head, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    """The sum of the weighted losses, and the number to divide it by for their mean."""
    weights = _weights(arrays).reshape(-1)
    arrays = _rows(head, arrays) | {"weights": weights}
    total: jax.Array = _total_of(_chunked(head, arrays))(*arrays.values())
    if "class_weights" in arrays:
        of_labels = of_label(arrays["class_weights"], arrays["labels"], head.class_axes)
        weights = weights * of_labels
    return total, jnp.sum(jnp.where(arrays["counted"], weights, 0.0))


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """0 for no examples."""
    return jnp.where(count == 0, 0.0, total / jnp.where(count == 0, 1.0, count))


def _weights(arrays: Arrays) -> jax.Array:
    dtype = computing_dtype(arrays["inputs"], arrays["kernel"])
    weights = arrays.get("weights")
    return jnp.ones_like(arrays["labels"], dtype) if weights is None else weights


def _rows(head: Head, arrays: Arrays) -> Arrays:
    """The arrays that have losses: inputs ``[examples, features]``, nothing that is masked."""
    x, w, y = arrays["inputs"], arrays["kernel"], arrays["labels"]
    counted = arrays.get("counted", jnp.ones_like(y, bool))
    if "weights" in arrays:
        # What has no weight may be anything; but where it is a number, its weight's gradient is.
        classes = w.shape[1] * number_of_shards(head.class_axes)
        number = jnp.all(jnp.isfinite(x), axis=-1) & is_class(y, classes)[..., 0]
        counted = counted & ((arrays["weights"] != 0) | number)
    mask = arrays.get("class_mask")
    return {name: x for name, x in arrays.items() if name != "weights"} | {
        "inputs": jnp.where(counted[..., None], x, 0.0).reshape(y.size, x.shape[-1]),
        "kernel": w if mask is None else jnp.where(mask[None, :], w, 0.0),
        "labels": y.reshape(-1),
        "counted": counted.reshape(-1),
    }


def _chunked(head: Head, arrays: Arrays) -> Head:
    """The head for these arrays, with a number of examples per chunk.

    By default logits that are small beside the kernel's gradient, or in any case. At least 128, so
    that the products stay bound by arithmetic; and chunks of nearly equal size, in whole tiles.
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


@lru_cache
def _losses_of(head: Head) -> Any:
    """The loss of each example; its gradients compute the logits again (four products)."""

    @jax.custom_vjp
    def reverse(*values: jax.Array) -> jax.Array:
        return losses(head, _named(head, values))

    def fwd(*args: Any) -> tuple[jax.Array, Any]:
        arrays = _named(head, [x.value for x in args])
        # Residuals must be arrays: the keys of the second part say what is wanted.
        return losses(head, arrays), (arrays, dict.fromkeys(_wanted(head, args), ()))

    def bwd(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
        arrays, wanted = residuals
        _, gradients = losses_and_gradients(head, arrays, cotangent, frozenset(wanted))
        return tuple(
            gradients[name].astype(arrays[name].dtype) if name in gradients else None
            for name in head.names
        )

    reverse.defvjp(fwd, bwd, symbolic_zeros=True)
    return in_every_mode(reverse, head.class_axes, _of_classes(head))


@lru_cache
def _total_of(head: Head) -> Any:
    """The weighted sum of the losses; its gradients come with it (three products)."""

    @jax.custom_vjp
    def reverse(*values: jax.Array) -> jax.Array:
        arrays = _named(head, values)
        return jnp.sum(times(arrays["weights"], losses(head, arrays)))

    def fwd(*args: Any) -> tuple[jax.Array, Any]:
        arrays = _named(head, [x.value for x in args])
        wanted = _wanted(head, args)
        weights = arrays["weights"]
        values, gradients = losses_and_gradients(head, arrays, weights, wanted - {"weights"})
        if "weights" in wanted:
            gradients["weights"] = chargeable(weights, values)
        # Of the arguments bwd needs no more than their dtypes.
        dtypes = {name: jnp.zeros(0, arrays[name].dtype) for name in wanted}
        return jnp.sum(times(weights, values)), (gradients, dtypes)

    # The total is linear in its cotangent: the gradients were computed for 1, and wait for it in
    # the computing dtype, so that a loss scale reaches them before they are rounded.
    def bwd(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
        gradients, dtypes = residuals
        return tuple(
            (cotangent * gradients[name]).astype(dtypes[name].dtype) if name in dtypes else None
            for name in head.names
        )

    reverse.defvjp(fwd, bwd, symbolic_zeros=True)
    return in_every_mode(reverse, head.class_axes, _of_classes(head))


def _named(head: Head, values: Any) -> Arrays:
    return dict(zip(head.names, values, strict=True))


def _wanted(head: Head, args: Any) -> frozenset[str]:
    return frozenset(name for name, x in zip(head.names, args, strict=True) if x.perturbed)


def _of_classes(head: Head) -> tuple[bool, ...]:
    return tuple(name not in SAME_FOR_ALL_CLASSES for name in head.names)
