"""The way of summing rows that suits each platform."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.export import is_symbolic_dim

from .._dtypes import widened_bits
from .._sharding import automatic_axes, explicit_sharding
from . import Request, Statistics
from .one_pass import by_reduction
from .parts import Product, made
from .row_sums import by_merged_sums, by_plain_sums, by_sums, is_short, with_label


def on_tpu(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """In one reduction of slices that are made of whole registers, which hold 128 classes.

    With 16 slices the compilers estimate the fewest cycles, few more than reading the logits takes.
    Weights that were made of others, as their dtype tells, are not cut: XLA would write them. Of
    those that come in parts the parts are cut.
    """
    labels, weights = request.labels, request.weights
    given = weights.labels if isinstance(weights, Product) else weights
    if labels is None and weights is not None and given.dtype != logits.dtype:
        return by_reduction(logits, request, dtype, logits.shape[-1], apart=False)
    return by_reduction(logits, request, dtype, _width(logits, 16, 128), apart=False)


def on_gpu(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """By merged sums from 41 to 255 classes, and otherwise in one reduction of slices.

    From 256 classes on it takes, on an H200 and forward, 0.5 to 0.9 of optax's time, and a
    reduction of whole rows 1.1 to 2.3. The label's logit is looked up, which takes less time than
    to carry it along. Short rows have a slice for each class, so that a thread has a whole row;
    there several threads to a row take 2 to 30 times as long. From 41 to 255 classes sums of slices
    take 0.5 to 0.75 of the time of a reduction.
    """
    classes = logits.shape[-1]
    if not has_whole_rows(logits):
        return by_reduction(logits, request, dtype, classes, apart=True)
    if 40 < classes < 256:
        logits, request = made(logits, request, dtype)
        return by_merged_sums(widened_bits(logits), request, dtype, 8)
    z = widened_bits(logits)
    if classes <= 40:
        return by_reduction(z, request, dtype, 1, apart=True)
    # With more slices that have weights or the entropy's sum a thread runs out of registers.
    number = 16 if request.weights is None and not request.exp_gap else 8
    width = max(32, _width(logits, number, 1))
    if explicit_sharding(logits):  # Here to look up would be to compare with every class.
        return by_reduction(z, request, dtype, width, apart=True)
    row = by_reduction(z, request._replace(labels=None), dtype, width, apart=True)
    return with_label(row, logits, request)


def on_cpu(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """With sums, and so cut that XLA:CPU makes vectorised loops (``benchmarks/dense.py``)."""
    logits, request = made(logits, request, dtype)
    classes = logits.shape[-1]
    if not has_whole_rows(logits) or is_short(logits):
        return by_plain_sums(logits, request, dtype)
    return by_sums(logits, request, dtype, _width_on_cpu(classes))


def _width_on_cpu(classes: int) -> int:
    """The width of a CPU's slices.

    From 320 classes on at least 20 slices leave few entries to write. Below 2560 classes powers of
    two take 0.4 to 0.9 of the time of other widths.
    """
    if classes < 48:
        return 8
    if classes < 2560:
        return max(16, 1 << (classes // 20).bit_length() - 1)
    return classes // 20 // 8 * 8


def _width(logits: jax.Array, most: int, unit: int) -> int:
    """The width of at most so many slices, a multiple of the unit."""
    classes = logits.shape[-1]
    if not has_whole_rows(logits):
        return classes
    return min(classes, -(-classes // (most * unit)) * unit)


def has_whole_rows(logits: jax.Array) -> bool:
    """Whether each device certainly has all classes of its rows, so that they can be cut.

    Where XLA has spread them over devices, to cut them would be to move them. The type of an array
    says how it is spread over the explicit axes of a mesh. Over automatic axes it may be.
    """
    of_classes = jax.typeof(logits).sharding.spec[-1]
    if is_symbolic_dim(logits.shape[-1]) or of_classes is not None:
        return False
    return not automatic_axes(logits)


WAYS: dict[str, Callable[[jax.Array, Request, np.dtype[Any]], Statistics]] = {
    "cpu": on_cpu,
    "tpu": on_tpu,
    "cuda": on_gpu,
}
"""Of each platform that has a way of its own. The others sum by `by_logsumexp`."""
