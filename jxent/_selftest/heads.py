"""Inputs for losses over linear heads, and the exact values and gradients of such losses.

The arguments have one axis more than those of other losses: each row is a head with its own kernel
and a few examples. All numbers are small multiples of powers of two. Every dtype holds them, and
their products and the sums of these are exact, so the logits have no rounding error. The exact
values are those of the loss of logits, and the chain rule gives the gradients for the head.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from . import exact
from .sizes import Quantity

Array = np.ndarray[Any, Any]
EXAMPLES, FEATURES, CLASSES = 4, 4, 8
SCALES = (2.0**-4, 1.0, 4.0, 16.0, 64.0)
OFFSET = 4096.0


def inputs() -> dict[str, tuple[Array, ...]]:
    """Arguments by kind, as in `inputs.py`."""
    rng = np.random.default_rng(0)
    x, w = _heads(rng)
    likely = np.argmax(x @ w, axis=-1)
    labels = rng.integers(CLASSES, size=likely.shape)
    # In every second head each label has the largest logit, by a margin that grows with the scale.
    labels = np.where(np.arange(len(x))[:, None] % 2, likely, labels).astype(np.int32)
    # Every second head nearly agrees with its teacher. The other teachers have reversed classes.
    near = w + _scales()[:, None, None] / 64 * rng.integers(-1, 2, w.shape)
    near[-2:, 0] = OFFSET
    agree = np.arange(len(x))[:, None, None] % 2 == 1
    other_x = np.where(agree, x, np.flip(x, 1))
    other_w = np.where(agree, near, np.flip(w, -1))
    return {"head, labels": (x, w, labels), "two heads": (x, w, other_x, other_w)}


def _scales() -> Array:
    """The kernels' scales: each scale twice, then 1 for two heads whose logits have an offset."""
    return np.repeat([*SCALES, 1.0], 2)


def _heads(rng: np.random.Generator) -> tuple[Array, Array]:
    scales = _scales()
    x = rng.integers(-8, 9, (len(scales), EXAMPLES, FEATURES)) / 4
    w = rng.integers(-8, 9, (len(scales), FEATURES, CLASSES)) / 4 * scales[:, None, None]
    x[-2:, :, 0], w[-2:, 0] = 1.0, OFFSET
    return x, w


def of_logits(
    kinds: tuple[str, ...], arguments: tuple[Any, ...], product: Callable[..., Any]
) -> list[Any]:
    """Returns the arguments with logits in place of each pair of inputs and kernel."""
    found: list[Any] = []
    for kind, x in zip(kinds, arguments, strict=True):
        if kind == "kernel":
            found[-1] = product(found[-1], x)
        else:
            found.append(x)
    return found


def carried(
    kinds: tuple[str, ...], arguments: tuple[Any, ...], truth: list[Quantity], mean: bool
) -> list[Quantity]:
    """Returns the exact losses and gradients of these heads, from those of their logits.

    Args:
      kinds: the kinds of the arguments.
      arguments: inputs ``[heads, examples, features]``, kernels and labels.
      truth: exact losses ``[heads, examples]``, and their gradients for all logits.
      mean: whether the losses of each head are averaged.
    """
    value, *gradients = truth
    share = exact.ONE / EXAMPLES if mean else exact.ONE
    found = [_linear(value, lambda x: np.sum(x, axis=-1) * share) if mean else value]
    for i, kind in enumerate(kinds):
        if kind == "inputs":
            x, w = (exact.decimals(y) for y in arguments[i : i + 2])
            to_logits = gradients.pop(0)
            found.append(_product(to_logits, np.swapaxes(w, 1, 2) * share, transposed=False))
            found.append(_product(to_logits, np.swapaxes(x, 1, 2) * share, transposed=True))
    return found


def _linear(x: Quantity, function: Callable[[Any], Any]) -> Quantity:
    terms = function(x.terms)
    return Quantity(function(x.exact), terms, function(x.extra), np.zeros(terms.shape, bool))


def _product(x: Quantity, by: Any, transposed: bool) -> Quantity:
    """Multiplies by an exact matrix from the right or, if `transposed`, from the left."""

    def times(a: Any, b: Any) -> Any:
        return b @ a if transposed else a @ b

    terms = times(x.terms, abs(by))
    steep = np.zeros(terms.shape, bool)
    return Quantity(times(x.exact, by), terms, times(x.extra, abs(by)), steep)
