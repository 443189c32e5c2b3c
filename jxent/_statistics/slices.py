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
from .merging import Compiler, of_classes, of_single_classes
from .parts import cut, made


def classes_as_rows(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """Each class as a row of its own."""
    x, w = _slice(logits, request, dtype, 0, logits.shape[-1])
    return of_single_classes(x, w, request.exp_gap)


def merged_slices(
    logits: jax.Array,
    request: Request,
    dtype: np.dtype[Any],
    width: int,
    compiler: Compiler,
) -> Statistics:
    """Rows that have one class of each slice of so many classes; of a single slice, its classes.

    If the width does not divide the classes the last slice begins early, and what it shares with
    the one before is left out. Slices are cut before the upcast: otherwise XLA would write that.
    """
    classes = logits.shape[-1]
    if width == classes:  # Perhaps not a number, where shapes are symbolic.
        return classes_as_rows(logits, request, dtype)
    logits_of, weights_of = [], []
    for start in _starts(classes, width):
        x, w = _slice(logits, request, dtype, start, width)
        if start % width:
            entries = jax.lax.broadcasted_iota(np.int32, x.shape, x.ndim - 1)
            is_new = entries >= width - classes % width
            x = jnp.where(is_new, x, -jnp.inf)
            w = None if w is None else jnp.where(is_new, w, 0)
        logits_of.append(x)
        weights_of.append(w)
    return of_classes(logits_of, weights_of, request.exp_gap, compiler)


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

    A row has one label, so that its slice is chosen once for the row, not for each class.
    """
    labels, of_logits = request.labels, request._replace(weights=None)
    x, _ = _slice(logits, of_logits, dtype, 0, width)
    first = jnp.zeros_like(labels)
    for start in _starts(logits.shape[-1], width)[1:]:
        from_here = labels >= start
        x = jnp.where(from_here[..., None], _slice(logits, of_logits, dtype, start, width)[0], x)
        first = jnp.where(from_here, start, first)
    return jnp.where(is_label(labels - first, width), x, -jnp.inf)
