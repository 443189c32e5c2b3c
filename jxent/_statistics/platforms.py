"""The way of summing rows that suits each platform.

Each way gets logits, a `Request` and the computing dtype, and returns the `Statistics` of rows.
`sum_by_logsumexp` is the plain definition, against which the other ways are tested. Platforms
without a way of their own use it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from .._dtypes import widened, widened_bits
from .._numerics import exp, finite, nan_where, sums_of_two, weighted_cost
from .._rows import at_label
from .._sharding import automatic_axes, explicit_sharding
from . import Request, SmoothedWeights, Statistics
from .merging import Named, finish_sums, merge_parts, reduce_parts, sums_given_max
from .slices import (
    as_arrays,
    broadcast_shared_weights,
    label_logit,
    merged_slices,
    slices,
    starts_of,
)

Way: TypeAlias = Callable[[jax.Array, Request, np.dtype[Any]], Statistics]


# ---------------------------------------- The plain way


def sum_by_logsumexp(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """Sums with `jax.nn.logsumexp` over all classes but the maxima, which are counted."""
    logits, request = as_arrays(logits, request, dtype)
    z, weights = widened(logits, dtype), request.weights
    m = jnp.max(z, axis=-1, keepdims=True)
    anchor = jnp.where(jnp.isinf(m), 0.0, m)
    # NaN is not equal to the maximum, so this sum sees it even if a compiler's maximum ignores it.
    rest = exp(jax.nn.logsumexp(z - anchor, axis=-1, keepdims=True, where=z != m))
    ties = jnp.sum(z == m, axis=-1, keepdims=True).astype(z.dtype)
    beside_infinity = nan_where(jnp.isnan(rest), ties - 1)
    stats = Statistics(m, jnp.where(jnp.isinf(m), beside_infinity, rest + (ties - 1)))
    if request.labels is not None:
        stats = stats._replace(label_logit=at_label(z, request.labels))
    if weights is not None:
        weights = jnp.broadcast_to(widened(weights, dtype), z.shape)
        largest = jnp.max(weights, axis=-1, keepdims=True)
        below = jnp.sum(jnp.where(weights == largest, 0.0, weights), axis=-1, keepdims=True)
        ties = jnp.sum(weights == largest, axis=-1, keepdims=True).astype(z.dtype)
        gap = jnp.where(z == m, 0.0, m - jnp.where(z == m, 0.0, z))
        stats = stats._replace(
            weighted_gap=jnp.sum(weighted_cost(weights, gap), axis=-1, keepdims=True),
            max_weight=largest,
            weight_rest=below + (ties - 1) * largest,
        )
    if request.exp_gap:
        down = jnp.minimum(z - finite(m), 0.0)
        terms = exp(down) * jnp.where(down > -jnp.inf, -down, 0.0)
        stats = stats._replace(exp_gap=jnp.sum(terms, axis=-1, keepdims=True))
    return stats


# ---------------------------------------- TPUs
# There moving an array costs more than arithmetic, and a reduction that carries the maximum with
# the sums reads the logits once.


def on_tpu(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """Sums in one reduction of slices of whole registers, which hold 128 classes each.

    With 16 slices the compilers estimate the fewest cycles, few more than reading the logits takes.
    Weights computed from other arrays have another dtype than the logits. They are not sliced: XLA
    would write them to memory. `SmoothedWeights` are sliced by their parts.
    """
    labels, weights = request.labels, request.weights
    given = weights.labels if isinstance(weights, SmoothedWeights) else weights
    if labels is None and weights is not None and given.dtype != logits.dtype:
        return sum_by_reduction(logits, request, dtype, logits.shape[-1], apart=False)
    return sum_by_reduction(logits, request, dtype, _width(logits, 16, 128), apart=False)


def sum_by_reduction(
    logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int, apart: bool
) -> Statistics:
    """Sums in one reduction of the merged slices, in which rows are merged two by two."""
    row = broadcast_shared_weights(merged_slices(logits, request, dtype, width, apart))
    if request.labels is not None:
        row = row._replace(label_logit=label_logit(logits, request, dtype, width))
    return reduce_parts(row)


def _width(logits: jax.Array, most: int, unit: int) -> int:
    """The width of at most so many slices, a multiple of the unit."""
    classes = logits.shape[-1]
    if not has_whole_rows(logits):
        return classes
    return min(classes, -(-classes // (most * unit)) * unit)


def has_whole_rows(logits: jax.Array) -> bool:
    """Whether each device certainly has all classes of its rows, so that they can be cut.

    To cut classes that XLA has spread over devices would be to move them. The type of an array says
    how it is spread over the explicit axes of a mesh. XLA may have spread it over automatic axes.
    """
    of_classes = jax.typeof(logits).sharding.spec[-1]
    if is_symbolic_dim(logits.shape[-1]) or of_classes is not None:
        return False
    return not automatic_axes(logits)


# ---------------------------------------- GPUs


def on_gpu(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """Sums of merged slices from 41 to 255 classes, and otherwise one reduction of slices.

    From 256 classes on it takes, on an H200 and forward, 0.5 to 0.9 of optax's time, and a
    reduction of whole rows 1.1 to 2.3. The label's logit is looked up, which takes less time than
    to carry it along. Short rows have a slice for each class, so that a thread has a whole row;
    there several threads to a row take 2 to 30 times as long. From 41 to 255 classes sums of slices
    take 0.5 to 0.75 of the time of a reduction.
    """
    classes = logits.shape[-1]
    if not has_whole_rows(logits):
        return sum_by_reduction(logits, request, dtype, classes, apart=True)
    if 40 < classes < 256:
        logits, request = as_arrays(logits, request, dtype)
        return sum_merged_slices(widened_bits(logits), request, dtype, 8)
    z = widened_bits(logits)
    if classes <= 40:
        return sum_by_reduction(z, request, dtype, 1, apart=True)
    # With more slices that have weights or the entropy's sum a thread runs out of registers.
    number = 16 if request.weights is None and not request.exp_gap else 8
    width = max(32, _width(logits, number, 1))
    if explicit_sharding(logits):  # Here a look-up compares with every class.
        return sum_by_reduction(z, request, dtype, width, apart=True)
    row = sum_by_reduction(z, replace(request, labels=None), dtype, width, apart=True)
    return _with_label(row, logits, request)


def sum_merged_slices(
    logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int
) -> Statistics:
    """Sums of slices of so many classes, merged as rows with maxima of their own.

    The logits are read once: by XLA's model of an H100 this takes 0.6 to 0.8 of the time of
    `sum_slices`.
    """
    part = merged_slices(logits, request, dtype, width, apart=False)
    # Without the barrier XLA would merge the slices again for each of the sums.
    part = broadcast_shared_weights(jax.lax.optimization_barrier(part))

    def largest(maxima: Named) -> Named:
        return {name: _largest(x, dtype) for name, x in maxima.items()}

    row = merge_parts(part, largest, lambda terms: _in_one_loop(terms, dtype))
    return _with_label(row, logits, request)


# ---------------------------------------- CPUs
# ``benchmarks/dense.py`` measures them. A width or a number of loops that looks arbitrary is one
# for which XLA:CPU makes vectorised loops.


def on_cpu(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """Sums after the maxima, of slices or of whole rows."""
    logits, request = as_arrays(logits, request, dtype)
    classes = logits.shape[-1]
    if not has_whole_rows(logits) or is_short(logits):
        return sum_rows(logits, request, dtype)
    # XLA:CPU would write blocks to memory if a second sum had to read them, and in JAX 0.10 always.
    # One block of up to 1023 classes has narrow slices as well: with wider ones 768 classes take
    # 1.1 times the time.
    has_one_sum = request.weights is None and not request.exp_gap
    may_cut = has_one_sum and not explicit_sharding(logits) and jax.__version_info__ >= (0, 12)
    if classes >= 768 and may_cut:
        return sum_slices(logits, request, dtype, 16, blocks=classes // 512)
    return sum_slices(logits, request, dtype, _width_on_cpu(classes))


def is_short(x: jax.Array) -> bool:
    """Whether all sums of a row fit one loop: XLA:CPU then unrolls it, and vectorises over rows.

    It takes 0.5 to 0.85 of the time of slices. A loop of 28 classes is not unrolled any more, and
    takes seven times as long as slices.
    """
    return not is_symbolic_dim(x.shape[-1]) and x.shape[-1] < 28


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


def sum_rows(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """Finds the maximum, and then sums whole rows: short ones, and those not to be cut."""
    if request.weights is not None:
        request = replace(request, weights=jnp.broadcast_to(request.weights, logits.shape))
    terms, maxima = _terms(logits, request, dtype, logits.shape[-1])
    total = _in_one_loop if is_short(logits) else _together
    return _with_label(finish_sums(maxima, total(terms, dtype)), logits, request)


def sum_slices(
    logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int, blocks: int = 1
) -> Statistics:
    """Finds the maximum, and then sums slices of so many classes, entry by entry.

    Blocks are read one after the other. Without them a row is read in as many places at once as
    there are slices, and the processor waits for memory: from 1280 to 10 000 classes blocks take
    0.4 to 0.75 of the time.
    """
    terms, maxima = _terms(logits, request, dtype, width, blocks)
    terms = _written_once(terms)
    if blocks > 1:
        terms = {name: x.reshape(*x.shape[:-2], blocks * width) for name, x in terms.items()}
    row = broadcast_shared_weights(finish_sums(maxima, _total(terms, dtype)))
    row = _with_label(row, logits, request)
    if row.label_logit is None:
        return row
    # The barrier keeps the look-up of labels out of the loop of the loss, which LLVM would not
    # vectorise otherwise. With it rows of up to 1000 classes take 0.85 to 0.9 of the time.
    return row._replace(label_logit=jax.lax.optimization_barrier(row.label_logit))


def _written_once(terms: Named) -> Named:
    """The terms, written to memory: XLA:CPU would merge the slices again for each of the sums.

    A sum is never negative, so its sign bit stores whether it left out the maximum. A separate mask
    would read the logits again.
    """
    rest = terms.pop("sumexp_rest")
    terms["sumexp_rest"] = jnp.where(terms.pop("maxima"), -rest, rest)
    terms = jax.lax.optimization_barrier(terms)
    signed = terms["sumexp_rest"]
    return terms | {"sumexp_rest": jnp.abs(signed), "maxima": jnp.signbit(signed)}


def _terms(
    logits: jax.Array, request: Request, dtype: np.dtype[Any], width: int, blocks: int = 1
) -> tuple[Named, Named]:
    """Per-entry terms of the row sums, ``[..., blocks, width]`` if blocks, and the row's maxima."""
    maxima = {"maximum": _largest(logits, dtype)}
    if request.weights is not None:
        maxima["max_weight"] = _largest(request.weights, dtype)
    # Without the barrier XLA:CPU would search the maximum again for each class.
    z, w, maxima = jax.lax.optimization_barrier((logits, request.weights, maxima))
    starts, of_terms = starts_of(z.shape[-1], width, blocks), maxima
    if blocks > 1:
        of_terms = {name: x[..., None] for name, x in maxima.items()}
    if width == 8 and len(starts) == 4:
        # XLA:CPU unrolls four slices of 8 into scalar code (1.25 times the time). A fifth,
        # overlapping slice avoids it; overlaps count once.
        starts.insert(-1, (starts[-2] + starts[-1]) // 2)
    of_slices = slices(z, replace(request, weights=w), dtype, width, starts)
    return sums_given_max(*of_slices, request.exp_gap, of_terms), maxima


def _with_label(row: Statistics, logits: jax.Array, request: Request) -> Statistics:
    """The statistics with the logit of the label, if it is requested."""
    if request.labels is None:
        return row
    z, mask = at_label(logits, request.labels), request.mask
    if mask.classes is not None:
        of_rows = jnp.broadcast_to(mask.classes, logits.shape)
        mask = mask._replace(classes=at_label(of_rows, request.labels))
    return row._replace(label_logit=widened(mask.fill_logits(z), row.maximum.dtype))


# ---------------------------------------- Sums over the last axis


def _largest(x: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    return widened(jnp.max(x, axis=-1, keepdims=True), dtype)


def _total(terms: Named, dtype: np.dtype[Any]) -> Named:
    return {name: _sum(x, dtype) for name, x in terms.items()}


def _sum(x: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    # To sum truth values XLA:CPU first writes them as numbers. Up to 32 of them it sums as integers
    # in one loop.
    kind = np.int32 if x.dtype == bool and x.shape[-1] <= 32 else dtype
    return jnp.sum(x, axis=-1, keepdims=True, dtype=kind).astype(dtype)


def _together(terms: Named, dtype: np.dtype[Any]) -> Named:
    """`_total`, but each sum that leaves out maxima is made together with their number.

    In separate loops XLA may compute the entries again, with other rounding. Then an entry that is
    counted as a maximum in one loop is none in the other.
    """
    terms, totals = dict(terms), {}
    for rest, number in (("sumexp_rest", "maxima"), ("weight_rest", "heaviest")):
        if rest in terms:
            pair = terms.pop(rest), terms.pop(number).astype(dtype)
            totals[rest], totals[number] = sums_of_two(*pair)
    return totals | _total(terms, dtype)


def _in_one_loop(terms: Named, dtype: np.dtype[Any]) -> Named:
    """The sums over a short last axis, for which separate loops would take longer."""
    terms = {name: x.astype(dtype) for name, x in terms.items()}
    none = dict.fromkeys(terms, np.asarray(0, dtype))
    axis = terms["sumexp_rest"].ndim - 1
    total = jax.lax.reduce(terms, none, lambda a, b: jax.tree.map(jax.lax.add, a, b), (axis,))
    return {name: jnp.expand_dims(x, -1) for name, x in total.items()}


PLATFORMS: dict[str, Way] = {"cpu": on_cpu, "tpu": on_tpu, "cuda": on_gpu}
"""The platforms that have a way of their own."""
