"""The statistics of rows of logits, in a single reduction.

Here is also what they are, since this is the least that any of the ways depends on.
"""

from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ._labels import is_label
from ._numerics import nan_where

IfAsked: TypeAlias = Any
"""An array, or None where it was not asked for."""


class Statistics(NamedTuple):
    """Of each row of logits z, as ``[..., 1]``.

    Where softmax has no limit `others` is NaN: every logit -inf, more than one +inf, or a NaN
    logit, which makes the maximum NaN as well.
    """

    maximum: jax.Array
    """``m = max_j z_j``"""
    others: jax.Array
    """``sum_{j≠k} exp(z_j - m)``, k being one maximum"""
    of_label: IfAsked = None
    """the logit of the label"""
    cost: IfAsked = None
    """``sum_j w_j (m - z_j)``, w being the weights, and no cost without a weight"""
    top: IfAsked = None
    """the largest weight"""
    rest: IfAsked = None
    """the sum of the other weights"""
    spread: IfAsked = None
    """``sum_j exp(z_j - m) (m - z_j)``"""


class Asked(NamedTuple):
    """What the sums are wanted for: integer labels ``[...]``, weights like the logits, entropy."""

    labels: jax.Array | None = None
    weights: jax.Array | None = None
    spread: bool = False


Sum: TypeAlias = tuple[jax.Array, jax.Array]
"""A sum and its rounding error."""
Row: TypeAlias = dict[str, Any]
"""What is known of a row while rows are merged."""
UNIT = 2.0**64
"""Of the sums of exponentials meanwhile."""


def in_one_pass(z: jax.Array, asked: Asked, block: int = 0) -> Statistics:
    """Each logit begins as a row of its own, and rows are merged, in one reduction.

    A merged row has the higher maximum, and the lower one among its others; seen from there, each
    weight of the lower row costs more by the difference, and each of its logits lies that much
    further down. The sums are carried with their rounding errors, which over 200 000 classes would
    be 10^4 eps, and those of exponentials in units of 2^-64, so that the error of a small sum does
    not underflow. What remains is one rounding for each step at which the maximum rises. With a
    `block`, so many classes are merged first, and then the blocks.
    """
    labels, weights, spread = asked
    lowest, none = (np.asarray(x, z.dtype) for x in (-np.inf, 0))
    # A function of z, although a constant one: lax.reduce cannot be differentiated otherwise.
    zero = jnp.where(jnp.zeros(z.shape, bool), z, none)
    rows: Row = {"m": z, "s": (zero, zero)}
    init: Row = {"m": lowest, "s": (none, none)}
    if labels is not None:
        rows["label"] = jnp.where(is_label(labels, z.shape[-1]), z, lowest)
        init["label"] = lowest
    if weights is not None:
        rows |= {"cost": (zero, zero), "top": weights, "rest": (zero, zero)}
        init |= {"cost": (none, none), "top": none, "rest": (none, none)}
    if spread:
        rows["spread"], init["spread"] = (zero, zero), (none, none)
    if block:
        rows = jax.tree.map(lambda x: x.reshape(*x.shape[:-1], -1, block), rows)
        rows = jax.lax.reduce(rows, init, _merge, (z.ndim,))
    merged = jax.lax.reduce(rows, init, _merge, (z.ndim - 1,))
    row = {name: jnp.expand_dims(_total(x), -1) for name, x in merged.items()}
    m, unit = row["m"], np.asarray(UNIT, z.dtype)
    return Statistics(
        m,
        nan_where(~(m > -jnp.inf), row["s"] / unit),
        row.get("label"),
        row.get("cost"),
        row.get("top"),
        row.get("rest"),
        row["spread"] / unit if spread else None,
    )


def _merge(a: Row, b: Row) -> Row:
    """The row that has the classes of both. Only NumPy's constants may stand here."""
    lowest, none, unit = (np.asarray(x, a["m"].dtype) for x in (-np.inf, 0, UNIT))
    a_is_higher = (a["m"] >= b["m"]) | (a["m"] != a["m"])  # NaN is the highest, and stays.

    def of_higher(x: Any, y: Any) -> Any:
        return jax.tree.map(partial(jax.lax.select, a_is_higher), x, y)

    m, low = of_higher(a["m"], b["m"]), of_higher(b["m"], a["m"])
    (s, t) = of_higher(a["s"], b["s"]), of_higher(b["s"], a["s"])
    # -inf is no class. Two of them would be NaN otherwise, as two +inf shall be.
    scale = jax.lax.exp(jax.lax.select(low == lowest, low, low - m))
    exponentials = t[0] + unit
    merged = {"m": m, "s": _plus(s, scale * exponentials, scale * t[1])}
    if "spread" in a:
        high, deep = of_higher(a["spread"], b["spread"]), of_higher(b["spread"], a["spread"])
        gap = jax.lax.select(scale > none, m - low, jnp.zeros_like(m))
        total, error = deep[0] + exponentials * gap, deep[1] + t[1] * gap
        merged["spread"] = _plus(high, scale * total, scale * error)
    if "label" in a:
        merged["label"] = jax.lax.max(a["label"], b["label"])
    if "cost" in a:
        mass, mass_of_a = (x["top"] + (x["rest"][0] + x["rest"][1]) for x in (b, a))
        mass = of_higher(mass, mass_of_a)
        gap = jax.lax.select(low == m, jnp.zeros_like(m), m - low)
        step = jax.lax.select(mass == none, jnp.zeros_like(m), mass * gap)
        merged["cost"] = _plus(a["cost"], b["cost"][0] + step, b["cost"][1])
        merged["top"] = jax.lax.max(a["top"], b["top"])
        second = jax.lax.min(a["top"], b["top"])
        merged["rest"] = _plus(a["rest"], b["rest"][0] + second, b["rest"][1])
    return merged


def _plus(x: Sum, added: jax.Array, error: jax.Array) -> Sum:
    """Knuth's two-sum: `lost` is exactly what the rounding of the total loses."""
    total = x[0] + added
    seen = total - x[0]
    lost = (x[0] - (total - seen)) + (added - seen)
    return total, x[1] + (error + lost)


def _total(x: jax.Array | Sum) -> jax.Array:
    """What a sum and its rounding error amount to; an infinite sum has no error."""
    if not isinstance(x, tuple):
        return x
    return jnp.where(jnp.isinf(x[0]), x[0], x[0] + x[1])
