"""Slices of the classes, which are merged entry by entry.

Each entry of the merged slices is a row that has one class of every slice. Only these, few of them,
take the steps that are expensive.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._dtypes import widened
from .._rows import EVERYTHING, is_label
from . import IfRequested, Request, Statistics, as_array
from .merging import merge_slices, single_classes


def as_arrays(
    logits: jax.Array, request: Request, dtype: np.dtype[Any]
) -> tuple[jax.Array, Request]:
    """Builds logits and weights as arrays and fills masked entries."""
    w, mask = request.weights, request.mask
    w = None if w is None else as_array(w, mask, dtype)
    return mask.fill_logits(logits), replace(request, weights=w, mask=EVERYTHING)


def slice_parts(
    logits: jax.Array, request: Request, start: Any, width: int
) -> tuple[jax.Array, Request]:
    """A slice of the logits, and of all parts of the request that differ between the classes."""

    def of_part(x: jax.Array) -> jax.Array:
        if x.shape[-1] in (1, width):
            return x
        if isinstance(start, int):
            return jax.lax.slice_in_dim(x, start, start + width, axis=x.ndim - 1)
        # Not a reshape, whose result XLA:CPU would write to memory. All slices share the places of
        # the blocks: to load other places for each slice takes up to 1.5 times the time.
        axis, sizes = x.ndim - 1, (*x.shape[:-1], width)
        x = jax.lax.slice_in_dim(x, start[0], start[-1] + width, axis=axis)
        places = jax.lax.GatherDimensionNumbers((*range(axis), axis + 1), (), (axis,))
        firsts = (start - start[0])[:, None]
        return jax.lax.gather(x, firsts, places, sizes, mode="promise_in_bounds")

    mask = request.mask
    parts = logits, request.weights, mask.classes
    z, weights, classes = jax.tree.map(of_part, parts)
    return z, replace(request, weights=weights, mask=mask._replace(classes=classes))


def merged_slices(
    logits: jax.Array,
    request: Request,
    dtype: np.dtype[Any],
    width: int,
    apart: bool,
) -> Statistics:
    """Rows that have one class of each slice; a single slice gives each of its classes as a row.

    Statistics that depend only on weights shared by all rows have one row:
    `broadcast_shared_weights` repeats it.
    """
    x, w = slices(logits, request, dtype, width)
    if len(x) > 1:
        return merge_slices(x, w, request.exp_gap, apart)
    of_classes = None if w[0] is None else jnp.broadcast_to(w[0], x[0].shape)
    return single_classes(x[0], of_classes, request.exp_gap)


def slices(
    logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int, starts: Any = None
) -> tuple[list[jax.Array], list[IfRequested]]:
    """The slices of so many classes of the logits and of the weights.

    If the width does not divide the classes the last slice begins early. Slices that begin before
    the end of the one before leave out the classes that both have. Slices are cut before the
    upcast: otherwise XLA would write the upcast logits to memory.
    """
    starts = starts or starts_of(logits.shape[-1], width)
    # A block begins where the one before it ends, and the first one at 0.
    end = 0 if isinstance(starts[0], int) else np.append(0, starts[-1][:-1] + width)
    logits_of, weights_of = [], []
    for start in starts:
        x, w = _slice(logits, request, dtype, start, width)
        shared, end = end - start, start + width
        if np.any(shared > 0):
            # A constant keeps the loop vectorised: LLVM would split one that compares places.
            is_new = jnp.asarray(np.arange(width) >= np.expand_dims(shared, -1))
            x = jnp.where(is_new, x, -jnp.inf)
            w = None if w is None else jnp.where(is_new, w, 0)
        logits_of.append(x)
        weights_of.append(w)
    return logits_of, weights_of


def broadcast_shared_weights(row: Statistics) -> Statistics:
    """Gives each row its own `max_weight` and `weight_rest`.

    Weights that all rows share have one of each for all rows.
    """
    if row.max_weight is None or row.max_weight.shape == row.maximum.shape:
        return row
    # Without the barrier XLA would compute them again for each row.
    shared = jax.lax.optimization_barrier((row.max_weight, row.weight_rest))
    largest, rest = (jnp.broadcast_to(x, row.maximum.shape) for x in shared)
    return row._replace(max_weight=largest, weight_rest=rest)


def starts_of(classes: int, width: int, blocks: int = 1) -> list[Any]:
    """The first classes of all slices; with blocks an array for each slice, of those in each block.

    A block shares a class or two with the next, which a constant mask leaves out. Without any mask
    LLVM uses half of each register (1.3 times the time).
    """
    if blocks > 1:
        size = classes // blocks + 1
        firsts = np.arange(blocks) * (classes - size) // (blocks - 1)
        return [firsts + start for start in starts_of(size, width)]
    if width == classes:
        return [0]
    return [min(k * width, classes - width) for k in range(-(-classes // width))]


def _slice(
    logits: jax.Array, request: Request, dtype: np.dtype[Any], start: Any, width: int
) -> tuple[jax.Array, IfRequested]:
    x, of_slice = as_arrays(*slice_parts(logits, request, start, width), dtype)
    w = of_slice.weights
    return widened(x, dtype), None if w is None else widened(w, dtype)


def label_logit(logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int) -> jax.Array:
    """The label's logit at the place that it has in its slice, and -inf at the other places.

    A row has one label. The binary digits of the number of its slice choose between two slices,
    then between two of the chosen ones, and so on: one selection for each class, before the upcast.
    """
    labels, classes, of_logits = request.labels, logits.shape[-1], replace(request, weights=None)
    starts = starts_of(classes, width)
    number = jnp.clip(labels // width, 0, len(starts) - 1)
    place = labels - jnp.minimum(number * width, classes - width)
    # Without the barrier XLA would compute both again for each class, not once for a row.
    number, place = jax.lax.optimization_barrier((number, place))
    of_starts = (slice_parts(logits, of_logits, start, width) for start in starts)
    chosen = [as_arrays(*parts, dtype)[0] for parts in of_starts]
    while len(chosen) > 1:
        is_odd = (number % 2 == 1)[..., None]
        pairs = zip(chosen[::2], chosen[1::2], strict=False)
        of_pairs = [jnp.where(is_odd, odd, even) for even, odd in pairs]
        chosen = of_pairs + chosen[2 * len(of_pairs) :]
        number = number // 2
    return jnp.where(is_label(place, width), widened(chosen[0], dtype), -jnp.inf)
