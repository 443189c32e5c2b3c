"""The ways to a row's maximum and sums, against exact sums, also of weights by their parts."""

import functools
import math
from dataclasses import replace
from operator import itemgetter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxent._rows import Mask
from jxent._statistics import Request, SmoothedWeights
from jxent._statistics.merging import merge_parts, merge_slices, without_limit_nan
from jxent._statistics.platforms import (
    on_cpu,
    on_gpu,
    on_tpu,
    sum_by_logsumexp,
    sum_by_reduction,
    sum_rows,
    sum_slices,
)
from jxent._statistics.primitive import row_statistics
from jxent._statistics.slices import as_arrays
from support.cases import fast_jit
from support.tiers import quick, quick_rows
from support.tolerances import eps

INF, NAN = np.inf, np.nan
FLOAT32 = np.dtype(np.float32)
WAYS = {
    "by_logsumexp": sum_by_logsumexp,
    "cpu": on_cpu,
    "short": sum_rows,
    "gpu": on_gpu,
    "tpu": on_tpu,
    # Slices that do not divide the classes, and blocks of slices.
    "reduction_of_3": lambda z, *args, **kwargs: sum_by_reduction(
        z, *args, **kwargs, width=-(-z.shape[-1] // 3), apart=False
    ),
    "blocks_of_7": lambda z, *args, **kwargs: sum_slices(
        z, *args, **kwargs, width=-(-z.shape[-1] // 21), blocks=3
    ),
}
WAYS = {
    name: lambda z, request, way=way: without_limit_nan(way(z, request, dtype=FLOAT32))
    for name, way in WAYS.items()
}
SERIAL = ("gpu", "tpu", "reduction_of_3")
EVERY_WAY = pytest.mark.parametrize("way", WAYS)


def _each_way(classes, several, *rows):
    """Quick with this number of classes, and in these rows, where a way does something else."""
    everything = [(way, n) for n in (classes, *several) for way in WAYS]
    quick = [i for i, row in enumerate(everything) if row[1] == classes or row in rows]
    return pytest.mark.parametrize(("way", "classes"), quick_rows(everything, *quick))


def _jit_of(way):
    """A CPU's own ways are compiled as they are for users."""
    return jax.jit if way in ("cpu", "short") else fast_jit


@functools.cache
def _compiled(way):
    return _jit_of(way)(lambda z, labels, w: WAYS[way](z, Request(labels, w, exp_gap=True)))


def _statistics(way, z, w=0, labels=0):
    """All of them, of 24 rows, so that tests with as many classes share a program."""
    more = [(0, 24 - len(z)), (0, 0)]
    w, labels = np.broadcast_to(w, z.shape), np.broadcast_to(labels, len(z))
    padded = np.pad(z, more), np.pad(labels, more[0]), np.pad(w, more)
    arguments = (x.astype(d) for x, d in zip(padded, ("f", "i", "f"), strict=True))
    return jax.tree.map(lambda x: np.asarray(x)[: len(z)], _compiled(way)(*arguments))


_assert_close = functools.partial(chex.assert_trees_all_close, rtol=1e-6, strict=True)


def _rows(classes):
    """Ordinary rows, rows with ties, and rows that one class dominates."""
    rng = np.random.default_rng(classes)
    normal = rng.normal(size=classes)
    ahead, far_ahead = normal.copy(), np.zeros(classes)
    ahead[classes // 2], far_ahead[-1] = 25, 80
    rows = [1e-3 * normal, normal, 30 * normal, 1e3 * normal, ahead, far_ahead]
    rows += [np.round(normal), np.zeros(classes), np.full(classes, 1e8), np.sort(normal)]
    return np.float32(rows)


def _weights(z):
    """Random ones, one-hot, nearly one-hot, and the same for every class."""
    rng = np.random.default_rng(1)
    w = rng.uniform(size=z.shape)
    w[1::4] = 0
    w[1::4, 0] = 1
    w[2::4] *= 1e-7
    w[2::4, -1] += 1
    w[3::4] = 1 / z.shape[-1]
    return np.float32(w)


def _exact(z, w):
    """The sums of a row: sumexp_rest, weighted_gap, weight_rest and exp_gap."""
    down = z.max() - z.astype(np.longdouble)
    e = np.exp(-down)
    terms = np.delete(e, np.argmax(z)), w * down, np.delete(w, np.argmax(w)), e * down
    return [math.fsum(x) for x in terms]


@_each_way(
    8, [4, 29, 100, 1028, 50_000],
    ("cpu", 29), ("cpu", 100), ("short", 100), ("reduction_of_3", 50_000),
    *((way, 1028) for way in ("cpu", "gpu", "tpu", "blocks_of_7")),
)  # fmt: skip
def test_sums(way, classes):
    z = _rows(classes)
    if way in SERIAL and classes > 10_000 and jax.default_backend() == "cpu":
        z = z[:-1]  # A sorted row rounds at every step, of which accelerators take fewer.
    w, labels = _weights(z), np.arange(len(z)) * classes // len(z)
    stats = _statistics(way, z, w, labels)
    np.testing.assert_array_equal(stats.maximum[:, 0], z.max(-1))
    np.testing.assert_array_equal(stats.max_weight[:, 0], w.max(-1))
    np.testing.assert_array_equal(stats.label_logit[:, 0], z[np.arange(len(z)), labels])
    exact = np.array([_exact(*row) for row in zip(z, w, strict=True)]).T
    # A sum below 1 may be a logarithm's exponential, which has so many more units of error.
    logarithm = np.abs(np.log(np.maximum(exact[0], 1e-38)))
    allowed = [12 + logarithm, 12, 12, 12]
    names = ("sumexp_rest", "weighted_gap", "weight_rest", "exp_gap")
    for name, right, units in zip(names, exact, allowed, strict=True):
        chex.assert_shape(x := getattr(stats, name), (len(z), 1))
        error = np.abs(x[:, 0] - right) / eps("float32")
        assert np.all(error <= units * right + 1e-33 / eps("float32")), (name, error, right)


@pytest.mark.parametrize("classes", quick([1028, 1101], 1101))
@pytest.mark.parametrize("way", ["cpu", "gpu", "tpu"])
def test_labels_of_16_bit_logits(way, classes):
    """For which accelerators cut other slices; some begin early, as they do not divide 1101."""
    z = _rows(classes).astype(jnp.bfloat16)
    labels = np.arange(len(z)) * (classes - 1) // (len(z) - 1)
    stats = fast_jit(lambda z: WAYS[way](z, Request(labels)))(z)
    z = z.astype(np.float32)
    np.testing.assert_array_equal(stats.maximum[:, 0], z.max(-1))
    np.testing.assert_array_equal(stats.label_logit[:, 0], z[np.arange(len(z)), labels])
    exact = [_exact(row, 0 * row)[0] for row in z]
    rtol = 20 * eps("float32")
    np.testing.assert_allclose(stats.sumexp_rest[:, 0], exact, rtol=rtol, atol=1e-33)


_SPECIAL = [
    # the first, the middle and the last logit, among ordinary ones; then m and s
    ((INF, 0, 0), INF, 0), ((0, INF, -INF), INF, 0),
    ((INF, 0, INF), INF, NAN), ((INF, INF, 0), INF, NAN),
    ((NAN, 0, 0), NAN, NAN), ((0, 0, NAN), NAN, NAN), ((INF, 0, NAN), NAN, NAN),
    ((NAN, INF, 0), NAN, NAN), ((-INF, NAN, 0), NAN, NAN),
]  # fmt: skip


@_each_way(8, [4, 100, 4096], ("cpu", 100), ("short", 100))
def test_without_limit(way, classes):
    """With nothing else requested."""
    z = np.tile(np.linspace(-1, 1, classes, dtype=np.float32), (len(_SPECIAL) + 4, 1))
    for row, (numbers, _, _) in zip(z, _SPECIAL, strict=False):
        row[[0, classes // 2, -1]] = numbers
    *_, nothing, one, infinite, unknown = z
    nothing[:] = one[:] = infinite[:] = unknown[:] = -INF
    one[classes // 3], infinite[-1], unknown[1] = 3, INF, NAN
    m, s, *_ = _jit_of(way)(lambda z: WAYS[way](z, Request()))(z)
    last = [(-INF, NAN), (3, 0), (INF, 0), (NAN, NAN)]
    expected = [(m, s) for _, m, s in _SPECIAL] + last
    np.testing.assert_array_equal(np.concatenate([m, s], axis=-1), np.float32(expected))


@pytest.mark.parametrize("place", [0, 50, 99])
def test_nan_is_the_highest(place):
    """In the reduction itself, though a compiler's minimum ignores NaN and the sum loses it."""
    z = np.zeros((1, 100), np.float32)
    z[0, place] = NAN
    assert np.isnan(
        jax.jit(lambda z: sum_by_reduction(z, Request(), FLOAT32, 100, apart=False).maximum)(z)
    )


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("apart", [False, True])
def test_nan_among_a_few_classes(place, apart, monkeypatch):
    """Though a compiler's maximum ignores NaN."""
    monkeypatch.setattr(jax.lax, "max", jnp.fmax)
    z = np.zeros((5, 1), np.float32)
    z[place] = NAN
    assert np.isnan(merge_slices(list(jnp.asarray(z)), [None], False, apart).sumexp_rest)


@_each_way(8, [4, 100])
def test_weighted_gap_without_limit(way, classes):
    """What has no weight costs nothing, and what is infinitely far costs as much."""
    z, w = np.zeros((2, 6, classes), np.float32)
    z[:, 1] = z[1:, 2] = -INF
    z[2:4, 3] = INF
    z[4, 3] = z[5, 3] = NAN
    w[:, 0] = w[1, 1] = w[3, 3] = w[5, 3] = 1
    (w[2, 0], w[2, 3]), (w[3, 0], z[3, 2]) = (0, 1), (0, -INF)
    stats = _statistics(way, z, w)
    np.testing.assert_array_equal(stats.weighted_gap[:4, 0], [0, INF, 0, 0])
    assert np.all(np.isnan(stats.maximum[4:]))


@EVERY_WAY
@pytest.mark.parametrize("classes", [8, 100, 1024, 4096])
def test_no_rows(way, classes):
    z = jax.ShapeDtypeStruct((0, classes), np.float32)
    stats = jax.eval_shape(lambda z, w: WAYS[way](z, Request(weights=w, exp_gap=True)), z, z)
    assert {x.shape for x in jax.tree.leaves(stats)} == {(0, 1)}


@EVERY_WAY
def test_exp_gap_without_limit(way):
    z = np.full((3, 8), -INF, np.float32)
    z[:, :4] = [[0, -INF, 0, -INF], [INF, 0, -INF, 1e30], [0, 1e30, 1e38, -1e38]]
    np.testing.assert_array_equal(_statistics(way, z).exp_gap[:, 0], 0)


@EVERY_WAY
def test_logit_of_the_label(way):
    rows = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    rows[1, [0, 5, 7]], rows[2, [0, 5]] = (-INF, -INF, INF), (NAN, 9)
    stats = _statistics(way, np.repeat(rows, 8, axis=0), labels=np.tile(np.arange(8), 3))
    np.testing.assert_array_equal(stats.label_logit[:, 0], rows.reshape(-1))


@pytest.mark.parametrize("way", quick(["cpu", "tpu", "gpu"], "tpu"))
def test_leading_dimensions(way):
    """More of them, fewer, and mapped ones."""
    z, w = np.random.default_rng(0).uniform(size=(2, 2, 3, 48)).astype(np.float32)

    def mapped(z, w):
        return WAYS[way](z, Request(weights=w, exp_gap=True))

    sums = fast_jit(mapped)
    whole = sums(z, w)
    for place in np.ndindex(2, 3):
        _assert_close(sums(z[place], w[place]), jax.tree.map(itemgetter(place), whole))
    _assert_close(fast_jit(jax.vmap(mapped, in_axes=1, out_axes=1))(z, w), whole)


def _of_statistics(z, w):
    """What is made of them: a normalizer, a logit, a soft cross-entropy and what entropies need."""
    labels = np.int32([1, 0, 3])
    stats = row_statistics(z, Request(labels, w, exp_gap=True), FLOAT32)
    m, s, label_logit, gap, top, rest, exp_gap = stats
    return m + jnp.log1p(s), label_logit, gap + (top + rest) * jnp.log1p(s), exp_gap / (1 + s)


def _in_a_loop(z, w):
    return jax.lax.scan(lambda _, z: (None, _of_statistics(z, w)), None, z[None])[1]


@pytest.mark.parametrize(
    ("derivative", "function"), [(jax.jacfwd, _of_statistics), (jax.jacrev, _in_a_loop)]
)
def test_derivative(derivative, function):
    """Also in loops, where JAX 0.10 loses the rules of a `jax.custom_jvp`."""
    z = np.float32([[0.5, -1.0, 2.0, 0.0], [1.0, 1.0, 0.0, -3.0], [1.0, 0.0, 1.0, 0.5]])
    w = np.float32([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.0, 0.0], [0.3, 0.4, 0.4, 0.1]])

    def plainly(z, w):
        log_p = jax.nn.log_softmax(z)
        normalizer = jax.nn.logsumexp(z, axis=-1, keepdims=True)
        label_logit = jnp.take_along_axis(z, jnp.asarray([[1], [0], [3]]), axis=-1)
        down = z - jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
        soft, exp_gap = (-jnp.sum(x, -1, keepdims=True) for x in (w * log_p, jnp.exp(log_p) * down))
        return normalizer, label_logit, soft, exp_gap

    both = fast_jit(lambda *x: (derivative(function, (0, 1))(*x), jax.jacrev(plainly, (0, 1))(*x)))
    for x, y in zip(*map(jax.tree.leaves, both(z, w)), strict=True):
        np.testing.assert_allclose(x.reshape(y.shape), y, atol=1e-6)


def test_derivative_of_merged_shards():
    """For the weights of a shard that has none: they cost the gap to the maximum."""
    z, w = np.float32([[[[0.5, 2.0]], [[-1.0, 1.0]]], [[[0.25, 0.75]], [[0.0, 0.0]]]])

    def gap(w):
        shards = row_statistics(z, Request(weights=w), FLOAT32)
        over_shards = [
            functools.partial(jax.tree.map, functools.partial(f, axis=0, keepdims=True))
            for f in (jnp.max, jnp.sum)
        ]
        return merge_parts(shards, *over_shards).weighted_gap[0, 0, 0]

    np.testing.assert_allclose(fast_jit(jax.grad(gap))(w), 2.0 - z, rtol=1e-6)


def test_mapped():
    """Over any dimension of each argument, and over none."""
    z, w = np.random.default_rng(0).uniform(size=(2, 3, 4, 5)).astype(np.float32)

    def mapped(z, w):
        return row_statistics(z, Request(weights=w, exp_gap=True), FLOAT32)

    one = fast_jit(mapped)
    alone = [one(x, w[:, 0]) for x in np.swapaxes(z, 0, 1)]
    expected = jax.tree.map(lambda *x: np.stack(x), *alone)
    _assert_close(fast_jit(jax.vmap(mapped, in_axes=(1, None)))(z, w[:, 0]), expected)


# Weights and masks by their parts give the statistics that their arrays give.

CLASSES = 300
WAYS_WITH_PARTS = {
    "by_logsumexp": sum_by_logsumexp,
    "cpu": on_cpu,
    "gpu": on_gpu,
    "tpu": on_tpu,
    "slices_of_77": lambda z, *args: sum_by_reduction(z, *args, min(77, z.shape[-1]), False),
    "operation": row_statistics,
}


def _parts():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(2, 5, CLASSES)).astype(np.float32)
    scale, offset = np.full((1, 1), 0.9, np.float32), np.float32(rng.uniform(size=(5, 1)))
    factor = np.float32(rng.uniform(size=(1, CLASSES)))
    counted = np.array([True, True, False, True, True])
    # What does not count may be anything.
    mask = Mask(rng.uniform(size=z.shape) < 0.7, counted)
    z, y = (np.where(mask.classes & counted[:, None], x, np.nan) for x in (z, np.abs(y)))
    labels = np.array([0, 100, 0, 200, 299])
    arrays = labels, SmoothedWeights(y, scale, offset, factor), mask
    z, (labels, weights, mask) = jax.tree.map(jnp.asarray, (z, arrays))
    return z, Request(labels, weights, mask=mask)


def _known(stats):
    return [x for x in stats if x is not None]


@pytest.mark.parametrize("way", WAYS_WITH_PARTS.values(), ids=WAYS_WITH_PARTS)
def test_statistics_by_parts(way):
    z, parts = _parts()
    whole = row_statistics(*as_arrays(z, parts, FLOAT32), FLOAT32)
    found = fast_jit(lambda z: way(z, parts, FLOAT32))(z)
    for x, expected in zip(_known(found), _known(whole), strict=True):
        x = x if x.shape == expected.shape else x[..., None]
        np.testing.assert_allclose(x, expected, rtol=1e-6)


_SHARED = [(way, n) for n in (CLASSES, 20) for way in WAYS_WITH_PARTS]


@pytest.mark.parametrize(
    ("way", "classes"),
    quick_rows(_SHARED, *(_SHARED.index((way, CLASSES)) for way in ("cpu", "tpu", "operation"))),
)
def test_weights_that_rows_share(way, classes):
    """They give what the same weights for each row give, also where the rows are mapped."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4, 6, classes)).astype(np.float32)
    labels = rng.integers(0, classes, (4, 6))
    row, factor = rng.uniform(size=(2, 1, classes)).astype(np.float32)

    def mapped(z, labels, row):
        request = Request(labels, SmoothedWeights(row, factor=factor), exp_gap=True)
        stats = WAYS_WITH_PARTS[way](z, request, FLOAT32)
        return [x if x.ndim == z.ndim else x[..., None] for x in stats]

    def found(z, labels, row):
        in_rows = jax.vmap(jax.vmap(mapped, (0, 0, None)), (0, 0, None))
        return jax.vmap(mapped, (0, 0, None))(z, labels, row), in_rows(
            z[:, :, None], labels[:, :, None], row
        )

    whole = row_statistics(
        z, Request(labels, jnp.broadcast_to(row * factor, z.shape), exp_gap=True), FLOAT32
    )
    for stats in fast_jit(found)(z, labels, row):
        for x, expected in zip(stats, whole, strict=True):
            np.testing.assert_allclose(x.reshape(expected.shape), expected, rtol=1e-6)


def _tangents(of_parts, of_arrays, *values):
    dots = jax.tree.map(jnp.cos, values)
    return fast_jit(lambda *x: [jax.jvp(f, *x)[1] for f in (of_parts, of_arrays)])(values, dots)


@pytest.mark.parametrize("is_shared", [False, True])
def test_tangents(is_shared):
    """Of weights of each row, and of weights that rows share: those of their arrays."""
    z, parts = jax.tree.map(jnp.nan_to_num, _parts())
    weights = SmoothedWeights(parts.weights.factor) if is_shared else parts.weights

    def of_parts(z, weights):
        return _known(row_statistics(z, replace(parts, weights=weights), FLOAT32))

    def of_arrays(z, weights):
        if is_shared:
            return of_parts(z, jnp.broadcast_to(weights.labels, z.shape))
        arrays = as_arrays(z, replace(parts, weights=weights), FLOAT32)
        return _known(row_statistics(*arrays, FLOAT32))

    found, expected = _tangents(of_parts, of_arrays, z, weights)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6, strict=True)
    assert np.any(found[1] != 0)


def test_tangents_of_weights():
    """Those of the plain way, which is differentiated by JAX."""
    z, parts = jax.tree.map(jnp.nan_to_num, _parts())

    def of_parts(weights):
        return row_statistics(z, replace(parts, weights=weights), FLOAT32).weighted_gap

    def of_arrays(weights):
        arrays = as_arrays(z, replace(parts, weights=weights), FLOAT32)
        return sum_by_logsumexp(*arrays, FLOAT32).weighted_gap

    found, expected = _tangents(of_parts, of_arrays, parts.weights)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
