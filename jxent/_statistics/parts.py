"""Logits and weights by what they are made of: the user's arrays, masks and options.

XLA writes a computed array to memory if it has many readers, and each slice of the classes is one.
So slices are cut from the parts, and each makes its own logits and weights.
"""

from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from .._dtypes import widened
from .._mask import EVERYTHING, Mask
from . import IfRequested, Request


class Product(NamedTuple):
    """Weights ``(scale * labels + offset) * factor``. What is None is left out."""

    labels: jax.Array
    """``[..., classes]``"""
    scale: IfRequested = None
    """``[..., 1]``, given together with the offset"""
    offset: IfRequested = None
    factor: IfRequested = None
    """``[..., classes]``"""


Weights: TypeAlias = jax.Array | Product


def product(weights: Weights, mask: Mask, dtype: np.dtype[Any]) -> jax.Array:
    """The weights as one array, in this dtype if anything is computed.

    Labels are filled before anything multiplies them: NaN among them would reach its cotangent.
    """
    if not isinstance(weights, Product):
        return mask.fill(weights, 0.0, 0.0)
    w, scale, offset, factor = weights._replace(labels=mask.fill(weights.labels, 0.0, 0.0))
    if scale is not None:
        w = scale.astype(dtype) * widened(w, dtype) + offset.astype(dtype)
        w = mask.fill(w, 0.0, 0.0)
    return w if factor is None else widened(w, dtype) * factor.astype(dtype)


def made(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> tuple[jax.Array, Request]:
    """The same with logits and weights as arrays in which what does not count is filled."""
    w, mask = request.weights, request.mask
    w = None if w is None else product(w, mask, dtype)
    return mask.fill_logits(logits), request._replace(weights=w, mask=EVERYTHING)


def cut(logits: jax.Array, request: Request, start: int, width: int) -> tuple[jax.Array, Request]:
    """A slice of all parts that differ between the classes."""

    def of_part(x: jax.Array) -> jax.Array:
        if x.shape[-1] in (1, width):
            return x
        return jax.lax.slice_in_dim(x, start, start + width, axis=x.ndim - 1)

    z, weights, mask = jax.tree.map(of_part, (logits, request.weights, request.mask))
    return z, request._replace(weights=weights, mask=mask)
