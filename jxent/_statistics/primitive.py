"""The statistics of logits, as one operation of JAX that each platform computes in its own way.

As an operation it is traced once, not once for each platform, and it has a derivative of its own
wherever JAX differentiates: the rule of a `jax.custom_jvp` gets lost inside of loops.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .._autodiff import as_one_program, restrict_to
from .._dtypes import widened
from .._rows import EVERYTHING, Mask, at_label, in_range
from .._sharding import MeshAxes, of_this_shard
from . import IfRequested, Request, Statistics, Weights, finite_shift, unnormalized
from .merging import merge_shards, without_limit_nan
from .platforms import PLATFORMS, sum_by_logsumexp
from .slices import as_arrays


def statistics(
    logits: jax.Array, dtype: np.dtype[Any], axes: MeshAxes = (), **request: Any
) -> Statistics:
    """The statistics of each row of logits, with NaN where softmax has no limit."""
    return without_limit_nan(raw_statistics(logits, dtype, axes, **request))


def raw_statistics(
    logits: jax.Array,
    dtype: np.dtype[Any],
    axes: MeshAxes = (),
    labels: jax.Array | None = None,
    weights: Weights | None = None,
    mask: Mask = EVERYTHING,
    exp_gap: bool = False,
) -> Statistics:
    """`statistics` in this computing dtype, which are numbers where softmax has no limit.

    The other arguments are those of `Request`. Where the classes are spread over the mesh axes
    `axes` the statistics are those of the whole row, and labels number all classes.
    """
    request = Request(labels, weights, mask, exp_gap)
    if not axes:
        return row_statistics(logits, request, dtype)
    here = None if labels is None else of_this_shard(labels, logits.shape[-1], axes)
    has_label = None if here is None else in_range(here, logits.shape[-1])
    of_shard = row_statistics(logits, replace(request, labels=here), dtype)
    return merge_shards(of_shard, has_label, axes)


def row_statistics(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """The statistics of this shard's classes.

    Rows without a limit are set to NaN later, by `without_limit_nan`.
    """
    arrays, tree = jax.tree.flatten(request)
    values = _row_statistics.bind(logits, *arrays, dtype=dtype, tree=tree)
    return Statistics(**dict(zip(request.names, values, strict=True)))


_row_statistics = Primitive("row_statistics")
_row_statistics.multiple_results = True


def _types(logits: Any, *arrays: Any, dtype: np.dtype[Any], tree: Any) -> list[Any]:
    rows = logits.sharding.update(spec=(*logits.sharding.spec[:-1], None))
    shape = (*logits.shape[:-1], 1)
    row = logits.update(shape=shape, dtype=dtype, weak_type=False, sharding=rows)
    return [row] * len(jax.tree.unflatten(tree, arrays).names)


def _batched(
    args: Sequence[jax.Array], dims: Sequence[Any], *, tree: Any, **parameters: Any
) -> tuple[Any, Any]:
    """The mapped dimension becomes the first one of every array; weights and masks may share it."""
    (size,) = {x.shape[dim] for x, dim in zip(args, dims, strict=True) if dim is not None}
    of_rows = 1 if jax.tree.unflatten(tree, args[1:]).labels is None else 2
    sizes = [size] * of_rows + [1] * (len(args) - of_rows)
    args = [
        jnp.broadcast_to(x, (n, *x.shape)) if dim is None else jnp.moveaxis(x, dim, 0)
        for x, dim, n in zip(args, dims, sizes, strict=True)
    ]
    values = _row_statistics.bind(*args, tree=tree, **parameters)
    return values, [0] * len(values)


# m only anchors the sums: no result depends on the choice of the anchor, so its tangent may be
# taken as zero. Then 1 + s = sum_j exp(z_j - m) gives s its tangent, in which the maximum counts
# like every other class; and likewise with the largest weight and the rest.
def _tangents(
    primals: Sequence[jax.Array], tangents: Sequence[Any], *, dtype: np.dtype[Any], tree: Any
) -> tuple[list[jax.Array], list[Any]]:
    logits, *arrays = primals
    request = jax.tree.unflatten(tree, arrays)
    stats = row_statistics(logits, request, dtype)

    def of_arrays(logits: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, IfRequested]:
        z, filled = as_arrays(logits, jax.tree.unflatten(tree, arrays), dtype)
        w = filled.weights
        return z, None if w is None else jnp.broadcast_to(w, z.shape)

    numbers = [i for i, x in enumerate(primals) if jnp.issubdtype(x.dtype, jnp.floating)]
    values = [primals[i] for i in numbers]
    values_dot = [ad.instantiate_zeros(tangents[i]) for i in numbers]
    of_numbers = restrict_to(of_arrays, primals, numbers)
    (z, w), (z_dot, w_dot) = jax.jvp(of_numbers, values, values_dot)
    z, z_dot = widened(z, dtype), z_dot.astype(dtype)
    e, down = unnormalized(z, stats.maximum), finite_shift(z, stats.maximum)

    dots: dict[str, Any] = {"sumexp_rest": _row_sum(e * z_dot)}
    if request.labels is not None:
        dots["label_logit"] = at_label(z_dot, request.labels)
    if request.weights is not None:
        w, w_dot = widened(w, dtype), w_dot.astype(dtype)
        gap_dot = w_dot * jnp.where(z > -jnp.inf, down, 0.0) + w * z_dot
        dots |= {"weighted_gap": -_row_sum(gap_dot), "weight_rest": _row_sum(w_dot)}
    if request.exp_gap:
        dots["exp_gap"] = _row_sum(jnp.where(e > 0, -e * (down + 1), 0.0) * z_dot)
    none = ad.Zero(jax.typeof(stats.maximum).to_tangent_aval())
    return jax.tree.leaves(stats), [dots.get(name, none) for name in request.names]


def _row_sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=-1, keepdims=True)


def _on(platform: str) -> Any:
    """How a platform lowers the operation: in its own way, or else in the plain one."""

    def of_arrays(
        logits: jax.Array, *arrays: jax.Array, dtype: np.dtype[Any], tree: Any
    ) -> list[jax.Array]:
        way, request = PLATFORMS.get(platform, sum_by_logsumexp), jax.tree.unflatten(tree, arrays)
        counted = request.mask.examples
        request = replace(request, mask=request.mask._replace(examples=None))
        return jax.tree.leaves(_only_of(counted, way(logits, request, dtype), logits.shape[-1]))

    return mlir.lower_fun(of_arrays, multiple_results=True)


def _only_of(counted: IfRequested, stats: Statistics, classes: Any) -> Statistics:
    """Keeps the statistics of the examples that count. The others get those of zeros.

    This selects per row, not per class, and XLA need not write masked logits.
    """
    if counted is None:
        return stats
    of_zeros = {"sumexp_rest": jnp.asarray(classes - 1, stats.maximum.dtype)}
    named = {name: x for name, x in stats._asdict().items() if x is not None}
    counted = counted[..., None]
    return Statistics(
        **{name: jnp.where(counted, x, of_zeros.get(name, 0)) for name, x in named.items()}
    )


_row_statistics.def_abstract_eval(_types)
_row_statistics.def_impl(as_one_program(_row_statistics.bind))
batching.primitive_batchers[_row_statistics] = _batched
ad.primitive_jvps[_row_statistics] = _tangents
mlir.register_lowering(_row_statistics, _on("others"))
for _platform in PLATFORMS:
    mlir.register_lowering(_row_statistics, _on(_platform), platform=_platform)
