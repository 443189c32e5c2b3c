"""The statistics of logits, as one operation of JAX that each platform computes in its own way.

As an operation it is traced once, not once for each platform, and it has a derivative of its own
wherever JAX differentiates: the rule of a `jax.custom_jvp` gets lost inside of loops.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from .._dtypes import widened
from .._labels import at_label, in_range
from .._mask import EVERYTHING, Mask
from .._sharding import MeshAxes, of_this_shard
from . import IfRequested, Request, Statistics, finite_shift, unnormalized
from .dispatch import WAYS
from .merging import without_limit_nan
from .parts import Weights, made
from .row_sums import by_logsumexp
from .shards import of_all_shards


def statistics(
    axes: MeshAxes, dtype: np.dtype[Any], logits: jax.Array, **request: Any
) -> Statistics:
    """The statistics of each row of logits, with NaN where softmax has no limit."""
    return without_limit_nan(raw_statistics(axes, dtype, logits, **request))


def raw_statistics(
    axes: MeshAxes,
    dtype: np.dtype[Any],
    logits: jax.Array,
    labels: jax.Array | None = None,
    weights: Weights | None = None,
    exp_gap: bool = False,
    mask: Mask = EVERYTHING,
) -> Statistics:
    """`statistics` in this computing dtype, which are numbers where softmax has no limit.

    The other arguments say which, as in `Request`. Where the classes are spread over
    the mesh axes `axes` the statistics are those of the whole row, and labels number all classes.
    """
    request = Request(labels, weights, exp_gap, mask)
    if not axes:
        return row_statistics(logits, request, dtype)
    here = None if labels is None else of_this_shard(labels, logits.shape[-1], axes)
    has_label = None if here is None else in_range(here, logits.shape[-1])
    of_shard = row_statistics(logits, request._replace(labels=here), dtype)
    return of_all_shards(of_shard, has_label, axes)


def row_statistics(logits: jax.Array, request: Request, dtype: np.dtype[Any]) -> Statistics:
    """The statistics of the classes that are here, which say nothing where there is no limit."""
    labels, weights, mask = jax.tree.map(lambda _: True, arrays := request.arrays)
    given = Request(labels, weights, request.exp_gap, mask)
    args = jax.tree.leaves((logits, arrays))
    return _named(given, _row_statistics.bind(*args, dtype=dtype, given=given))


def _named(given: Request, values: Sequence[Any]) -> Statistics:
    """The statistics that this request asks for, of which only whether each is given is read."""
    names = ["maximum", "sumexp_rest"]
    names += ["label_logit"] if given.labels else []
    names += ["weighted_gap", "max_weight", "weight_rest"] if given.weights else []
    names += ["exp_gap"] if given.exp_gap else []
    return Statistics(**dict(zip(names, values, strict=True)))


def _request(given: Request, args: Sequence[Any]) -> Request:
    labels, weights, mask = jax.tree.unflatten(jax.tree.structure(given.arrays), args)
    return Request(labels, weights, given.exp_gap, mask)


_row_statistics = Primitive("row_statistics")
_row_statistics.multiple_results = True


def _types(logits: Any, *_: Any, dtype: np.dtype[Any], given: Request) -> list[Any]:
    rows = logits.sharding.update(spec=(*logits.sharding.spec[:-1], None))
    shape = (*logits.shape[:-1], 1)
    row = logits.update(shape=shape, dtype=dtype, weak_type=False, sharding=rows)
    return [row] * (2 + bool(given.labels) + 3 * bool(given.weights) + given.exp_gap)


_row_statistics.def_abstract_eval(_types)


def _eagerly(*args: jax.Array, **parameters: Any) -> list[jax.Array]:
    # As one program, also where the user has disabled `jax.jit`: operations are always compiled.
    with jax.disable_jit(False):
        results: list[jax.Array] = jax.jit(partial(_row_statistics.bind, **parameters))(*args)
    return results


_row_statistics.def_impl(_eagerly)


def _mapped(
    args: Sequence[jax.Array], dims: Sequence[Any], *, given: Request, **parameters: Any
) -> tuple[Any, Any]:
    """The mapped dimension becomes the first one of every array; weights and masks may share it."""
    (size,) = {x.shape[dim] for x, dim in zip(args, dims, strict=True) if dim is not None}
    of_rows = 1 + bool(given.labels)
    sizes = [size] * of_rows + [1] * (len(args) - of_rows)
    args = [
        jnp.broadcast_to(x, (n, *x.shape)) if dim is None else jnp.moveaxis(x, dim, 0)
        for x, dim, n in zip(args, dims, sizes, strict=True)
    ]
    values = _row_statistics.bind(*args, given=given, **parameters)
    return values, [0] * len(values)


batching.primitive_batchers[_row_statistics] = _mapped


# m is only where the sums are anchored: what is made of them does not depend on it, so its
# tangent may be taken as zero. Then 1 + s = sum_j exp(z_j - m) gives s its tangent, in which the
# maximum counts like every other class; and likewise with the largest weight and the rest.
def _tangents(
    primals: Sequence[jax.Array], tangents: Sequence[Any], *, dtype: np.dtype[Any], given: Request
) -> tuple[list[jax.Array], list[Any]]:
    logits, *others = primals
    request = _request(given, others)
    stats = row_statistics(logits, request, dtype)
    numbers = [i for i, x in enumerate(primals) if jnp.issubdtype(x.dtype, jnp.floating)]

    def of_numbers(*values: jax.Array) -> tuple[jax.Array, IfRequested]:
        args = list(primals)
        for i, value in zip(numbers, values, strict=True):
            args[i] = value
        z, (_, w, *_) = made(args[0], _request(given, args[1:]), dtype)
        return z, None if w is None else jnp.broadcast_to(w, z.shape)

    values = [primals[i] for i in numbers]
    values_dot = [ad.instantiate_zeros(tangents[i]) for i in numbers]
    (z, w), (z_dot, w_dot) = jax.jvp(of_numbers, values, values_dot)
    z, z_dot = widened(z, dtype), z_dot.astype(dtype)
    e, down = unnormalized(z, stats.maximum), finite_shift(z, stats.maximum)

    dots: dict[str, Any] = {"sumexp_rest": _sum(e * z_dot)}
    if request.labels is not None:
        dots["label_logit"] = at_label(z_dot, request.labels)
    if request.weights is not None:
        w, w_dot = widened(w, dtype), w_dot.astype(dtype)
        gap_dot = w_dot * jnp.where(z > -jnp.inf, down, 0.0) + w * z_dot
        dots |= {"weighted_gap": -_sum(gap_dot), "weight_rest": _sum(w_dot)}
    if given.exp_gap:
        dots["exp_gap"] = _sum(jnp.where(e > 0, -e * (down + 1), 0.0) * z_dot)
    known = {n: x for n, x in stats._asdict().items() if x is not None}
    none = ad.Zero(jax.typeof(stats.maximum).to_tangent_aval())
    return list(known.values()), [dots.get(name, none) for name in known]


ad.primitive_jvps[_row_statistics] = _tangents


def _sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=-1, keepdims=True)


def _only_of(counted: IfRequested, stats: Statistics, classes: Any) -> Statistics:
    """The statistics of the examples that count; the others get those of zeros.

    So nothing has to be selected class by class, and XLA has no masked logits to write.
    """
    if counted is None:
        return stats
    of_zeros = {"sumexp_rest": jnp.asarray(classes - 1, stats.maximum.dtype)}
    named = {name: x for name, x in stats._asdict().items() if x is not None}
    return Statistics(
        **{name: jnp.where(counted, x, of_zeros.get(name, 0)) for name, x in named.items()}
    )


def _by_the_way_of(platform: str) -> Callable[..., Any]:
    def of_arrays(
        logits: jax.Array, *others: jax.Array, dtype: np.dtype[Any], given: Request
    ) -> list[jax.Array]:
        way, request = WAYS.get(platform, by_logsumexp), _request(given, others)
        counted = request.mask.examples
        request = request._replace(mask=request.mask._replace(examples=None))
        return jax.tree.leaves(_only_of(counted, way(logits, request, dtype), logits.shape[-1]))

    return mlir.lower_fun(of_arrays, multiple_results=True)


mlir.register_lowering(_row_statistics, _by_the_way_of("others"))
for _platform in WAYS:
    mlir.register_lowering(_row_statistics, _by_the_way_of(_platform), platform=_platform)
