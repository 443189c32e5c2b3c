"""Slices of the classes, which are merged entry by entry.

Each entry of what is merged is a row that has one class of every slice. Only these, few of them,
take the steps that are expensive.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._dtypes import widened
from .._labels import is_label
from . import IfRequested, Request, Statistics
from .merging import of_classes, of_single_classes
from .parts import cut, made


def classes_as_rows(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """Each class as a row of its own."""
    x, w = _slice(logits, request, dtype, 0, logits.shape[-1])
    w = None if w is None else jnp.broadcast_to(w, x.shape)
    return of_single_classes(x, w, request.exp_gap)


def merged_slices(
    logits: jax.Array,
    request: Request,
    dtype: np.dtype[Any],
    width: int,
    apart: bool,
) -> Statistics:
    """Rows that have one class of each slice of so many classes; of a single slice, its classes.

    What only depends on weights that rows share has one row: see `of_each_row`.
    """
    if width == logits.shape[-1]:  # Perhaps not a number, where shapes are symbolic.
        return classes_as_rows(logits, request, dtype)
    return of_classes(*slices(logits, request, dtype, width), request.exp_gap, apart)


def slices(
    logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int
) -> tuple[list[jax.Array], list[IfRequested]]:
    """The slices of so many classes of the logits and of the weights.

    If the width does not divide the classes the last slice begins early, and what it shares with
    the one before is left out. Slices are cut before the upcast: otherwise XLA would write that.
    """
    starts = _starts(logits.shape[-1], width)
    if width == 8 and len(starts) == 4:
        # A fifth between the last two counts a part of what the last one would count. Four of them
        # LLVM would unroll into scalars on a CPU, which take 1.25 times as long.
        starts.insert(-1, (starts[-2] + starts[-1]) // 2)
    logits_of, weights_of, end = [], [], 0
    for start in starts:
        x, w = _slice(logits, request, dtype, start, width)
        shared, end = end - start, start + width
        if shared > 0:
            # A constant array: LLVM would split a loop that compares places, and not vectorise it.
            is_new = jnp.asarray(np.arange(width) >= shared)
            x = jnp.where(is_new, x, -jnp.inf)
            w = None if w is None else jnp.where(is_new, w, 0)
        logits_of.append(x)
        weights_of.append(w)
    return logits_of, weights_of


def of_each_row(row: Statistics) -> Statistics:
    """The same, and what weights that rows share have once is given for each row."""
    if row.max_weight is None or row.max_weight.shape == row.maximum.shape:
        return row
    # Without the barrier XLA would compute them again for each row.
    of_all = jax.lax.optimization_barrier((row.max_weight, row.weight_rest))
    top, rest = (jnp.broadcast_to(x, row.maximum.shape) for x in of_all)
    return row._replace(max_weight=top, weight_rest=rest)


def _starts(classes: int, width: int) -> list[int]:
    if width == classes:
        return [0]
    return [min(k * width, classes - width) for k in range(-(-classes // width))]


def _slice(
    logits: jax.Array, request: Request, dtype: np.dtype[Any], start: int, width: int
) -> tuple[jax.Array, IfRequested]:
    x, (_, w, *_) = made(*cut(logits, request, start, width), dtype)
    return widened(x, dtype), None if w is None else widened(w, dtype)


def label_logit(logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int) -> jax.Array:
    """The label's logit at the place that it has in its slice, and -inf at the other places.

    A row has one label. The binary digits of the number of its slice choose between two slices,
    then between two of the chosen ones, and so on: one selection for each class, before the upcast.
    """
    labels, classes, of_logits = request.labels, logits.shape[-1], request._replace(weights=None)
    starts = _starts(classes, width)
    number = jnp.clip(labels // width, 0, len(starts) - 1)
    place = labels - jnp.minimum(number * width, classes - width)
    # Without the barrier XLA would compute both again for each class, not once for a row.
    number, place = jax.lax.optimization_barrier((number, place))
    chosen = [made(*cut(logits, of_logits, start, width), dtype)[0] for start in starts]
    while len(chosen) > 1:
        is_odd = (number % 2 == 1)[..., None]
        pairs = zip(chosen[::2], chosen[1::2], strict=False)
        of_pairs = [jnp.where(is_odd, odd, even) for even, odd in pairs]
        chosen = of_pairs + chosen[2 * len(of_pairs) :]
        number = number // 2
    return jnp.where(is_label(place, width), widened(chosen[0], dtype), -jnp.inf)
