"""The way of summing rows that suits each platform."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.export import is_symbolic_dim

from .._sharding import automatic_axes
from . import Request, Statistics
from .one_pass import by_reduction
from .parts import Product, made
from .row_sums import by_plain_sums, by_sums, is_short


def on_tpu(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """In one reduction of slices that are made of whole registers, which hold 128 classes.

    The compilers estimate the fewest cycles with 16 slices, but for labels with 8 where the logits
    have 16 bits or weights come beside them (v6e, bfloat16: 0.62 million cycles in place of 0.73).
    Weights that were made of others, as their dtype tells, are not cut: XLA would write them. Of
    those that come in parts the parts are cut.
    """
    labels, weights = request.labels, request.weights
    given = weights.labels if isinstance(weights, Product) else weights
    if labels is None and weights is not None and given.dtype != logits.dtype:
        return by_reduction(logits, request, dtype, logits.shape[-1])
    is_narrow = logits.dtype.itemsize == 2
    number = 8 if labels is not None and (is_narrow or weights is not None) else 16
    return by_reduction(logits, request, dtype, _width(logits, number, 128))


def on_gpu(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """In one reduction by blocks that fit a thread block, if some size of them divides the classes.

    XLA:GPU cuts longer rows itself, into more blocks, whose sums then move much more memory.

    Of 16 bits, without weights and the entropy's sum, classes are first cut into four slices: on an
    H100 the model of XLA has 0.393 ms in place of 0.428 (``benchmarks/compilers.py``). In float32
    it has 0.62 in place of 0.41. Short rows have a slice for each class, so that a thread has a
    whole row. That takes 0.7 of optax's time on an H200, where 2 to 16 classes on several threads
    take 2 to 9 times that.
    """
    classes = logits.shape[-1]
    if not has_whole_rows(logits):
        return by_reduction(logits, request, dtype, classes)
    if classes <= 32:
        return by_reduction(logits, request, dtype, width=1)
    is_plain = request.weights is None and not request.exp_gap
    is_cut = logits.dtype.itemsize == 2 and is_plain and classes >= 512
    width = _width(logits, 4, 8) if is_cut else classes
    block = max((n for n in range(256, 2049) if width % n == 0 and width > n), default=0)
    return by_reduction(logits, request, dtype, width, block)


def on_cpu(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """With sums, and so cut that XLA:CPU makes vectorised loops (``benchmarks/dense.py``)."""
    logits, request = made(logits, request, dtype)
    classes = logits.shape[-1]
    if not has_whole_rows(logits) or is_short(logits):
        return by_plain_sums(logits, request, dtype)
    if classes < 256:
        # From 40 classes on slices of 8 take 0.7 to 1.1 of the time of slices of 4.
        width = 8 if classes >= 40 else 4 if classes % 4 == 0 else 5
        return by_sums(logits, request, dtype, width)
    # Slices of one register, if so many of them divide the classes that few of the statistics of
    # their entries have to be written.
    number = next((n for n in range(32, 19, -1) if classes % (8 * n) == 0), None)
    if number:
        return by_sums(logits, request, dtype, 8, groups=classes // (8 * number))
    return by_sums(logits, request, dtype, _width(logits, 20, 4))


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
