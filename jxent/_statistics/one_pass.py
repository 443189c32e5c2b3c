"""One reduction in which rows are merged two by two: for TPUs and GPUs.

There moving an array costs more than arithmetic, and a reduction that carries the maximum with the
sums reads the logits once.
"""

from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from .._numerics import two_sum
from . import Request, Statistics
from .merging import Named, seen_from, tops_of
from .slices import label_logit, merged_slices, of_each_row

UNIT = 2.0**64
"""Exponentials are reduced in units of 1 / UNIT, so that a small sum's error does not underflow."""
RowAndErrors: TypeAlias = tuple[Statistics, Named]
"""A partly reduced row, and what rounding has taken from its sums."""


def by_reduction(
    logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int, apart: bool
) -> Statistics:
    """With one reduction of the merged slices, in which rows are merged two by two.

    A plain running sum over 200 000 classes would be off by 10^4 eps, so each sum is carried with
    its rounding error. What remains is one rounding for each step at which the maximum rises.
    """
    row = of_each_row(merged_slices(logits, request, dtype, width, apart))
    if request.labels is not None:
        row = row._replace(label_logit=label_logit(logits, request, dtype, width))
    unit = np.asarray(UNIT, dtype)
    zero = jnp.zeros_like(row.maximum)
    row = row._replace(sumexp_rest=zero if row.sumexp_rest is None else row.sumexp_rest * unit)
    if row.exp_gap is not None:
        row = row._replace(exp_gap=row.exp_gap * unit)
    sums = {"sumexp_rest", "weighted_gap", "weight_rest", "exp_gap"}
    errors = {name: zero for name, x in row._asdict().items() if name in sums and x is not None}
    row, errors = jax.tree.map(lambda x: jnp.expand_dims(x, -1), _reduced((row, errors)))
    # The error of an infinite sum would make it NaN.
    known = {n: jnp.where(jnp.isinf(x := getattr(row, n)), x, x + errors[n]) for n in errors}
    known |= {n: known[n] / unit for n in ("sumexp_rest", "exp_gap") if n in known}
    whole: Statistics = row._replace(**known)
    return whole


def _reduced(row: RowAndErrors) -> RowAndErrors:
    dtype = row[0].maximum.dtype
    lowest, none = (np.asarray(x, dtype) for x in (-np.inf, 0))
    nothing = (lowest, none, lowest, none, none, none, none)
    init: Any = (None if x is None else n for x, n in zip(row[0], nothing, strict=True))
    axis = row[0].maximum.ndim - 1
    init_of_errors = dict.fromkeys(row[1], none)
    reduced: RowAndErrors = jax.lax.reduce(
        row, (Statistics(*init), init_of_errors), _merge, (axis,)
    )
    return reduced


def _merge(a: RowAndErrors, b: RowAndErrors) -> RowAndErrors:
    """The row that has the classes of both. Constants must be NumPy's: JAX refuses its own here."""
    m_a, m_b = a[0].maximum, b[0].maximum
    one, none = (np.asarray(x, m_a.dtype) for x in (UNIT, 0))
    # The higher row leaves out its maximum. The lower one counts its own, also if it is as high.
    # NaN is the highest.
    select = partial(jax.lax.select, (m_a >= m_b) | (m_a != m_a))
    high, high_errors = jax.tree.map(select, a, b)
    low, low_errors = jax.tree.map(select, b, a)
    m = high.maximum
    tops = jax.tree.map(jax.lax.max, tops_of(a[0]), tops_of(b[0])) | {"maximum": m}
    sums, errors = seen_from(m, low, one), seen_from(m, low._replace(**low_errors), none)
    if "weight_rest" in sums:
        second = jax.lax.min(a[0].max_weight, b[0].max_weight)
        sums["weight_rest"] = low.weight_rest + second
    for name in sums:
        sums[name], lost = two_sum(getattr(high, name), sums[name])
        errors[name] = (high_errors[name] + errors[name]) + lost
    return Statistics(**tops, **sums), errors
