"""The ways to a row's maximum and sums, beside each other, against exact sums."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import fast_jit
from tiers import quick
from tolerances import eps

from jxent._statistics import Request
from jxent._statistics.dispatch import on_cpu, on_gpu, on_tpu
from jxent._statistics.merging import merged, without_limit_nan
from jxent._statistics.one_pass import by_reduction
from jxent._statistics.primitive import row_statistics
from jxent._statistics.row_sums import by_logsumexp, by_plain_sums, by_sums

INF, NAN = np.inf, np.nan
FLOAT32 = np.dtype(np.float32)
WAYS = {
    "by_logsumexp": by_logsumexp,
    "cpu": on_cpu,
    "short": by_plain_sums,
    "gpu": on_gpu,
    "tpu": on_tpu,
    # Slices that do not divide the classes.
    "reduction_of_3": lambda z, *args, **kwargs: by_reduction(
        z, *args, **kwargs, width=-(-z.shape[-1] // 3)
    ),
    "sums_of_7": lambda z, *args, **kwargs: by_sums(z, *args, **kwargs, width=-(-z.shape[-1] // 7)),
}
WAYS = {
    name: lambda z, request, way=way: without_limit_nan(way(z, request, dtype=FLOAT32))
    for name, way in WAYS.items()
}
SERIAL = [WAYS["tpu"], WAYS["reduction_of_3"]]
EVERY_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


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


@EVERY_WAY
@pytest.mark.parametrize("classes", quick([4, 8, 12, 100, 1024, 1028, 50_000], 4, 100, 1028))
def test_sums(way, classes):
    z = _rows(classes)
    if way in SERIAL and classes > 10_000:
        z = z[:-1]  # A sorted row rounds at every step, of which accelerators take fewer.
    w = _weights(z)
    stats = jax.jit(lambda z, w: way(z, Request(weights=w, exp_gap=True)))(z, w)
    np.testing.assert_array_equal(stats.maximum[:, 0], z.max(-1))
    np.testing.assert_array_equal(stats.max_weight[:, 0], w.max(-1))
    exact = np.array([_exact(*row) for row in zip(z, w, strict=True)]).T
    # A sum below 1 may be a logarithm's exponential, which has so many more units of error.
    logarithm = np.abs(np.log(np.maximum(exact[0], 1e-38)))
    allowed = [12 + logarithm, 12, 12, 12]
    got = (stats.sumexp_rest, stats.weighted_gap, stats.weight_rest, stats.exp_gap)
    names = ("sumexp_rest", "weighted_gap", "weight_rest", "exp_gap")
    for name, x, right, units in zip(names, got, exact, allowed, strict=True):
        assert x.shape == (len(z), 1)
        error = np.abs(np.asarray(x)[:, 0] - right)
        worst = error / (eps("float32") * np.maximum(right, 1e-30))
        assert np.all(error <= units * eps("float32") * right + 1e-33), (name, worst)


_SPECIAL = [
    # the first, the middle and the last logit, among ordinary ones; then m and s
    ((INF, 0, 0), INF, 0),
    ((0, INF, -INF), INF, 0),
    ((INF, 0, INF), INF, NAN),
    ((INF, INF, 0), INF, NAN),
    ((NAN, 0, 0), NAN, NAN),
    ((0, 0, NAN), NAN, NAN),
    ((INF, 0, NAN), NAN, NAN),
    ((NAN, INF, 0), NAN, NAN),
    ((-INF, NAN, 0), NAN, NAN),
]


@EVERY_WAY
@pytest.mark.parametrize("classes", quick([4, 8, 100, 1024, 4096], 8, 100))
def test_without_limit(way, classes):
    z = np.tile(np.linspace(-1, 1, classes, dtype=np.float32), (len(_SPECIAL) + 4, 1))
    for row, (numbers, _, _) in zip(z, _SPECIAL, strict=False):
        row[[0, classes // 2, -1]] = numbers
    *_, nothing, one, infinite, unknown = z
    nothing[:] = one[:] = infinite[:] = unknown[:] = -INF
    one[classes // 3], infinite[-1], unknown[1] = 3, INF, NAN
    m, s, *_ = jax.jit(lambda z: way(z, Request()))(z)
    last = [(-INF, NAN), (3, 0), (INF, 0), (NAN, NAN)]
    expected = [(m, s) for _, m, s in _SPECIAL] + last
    np.testing.assert_array_equal(np.concatenate([m, s], axis=-1), np.float32(expected))


@pytest.mark.parametrize("place", [0, 50, 99])
def test_nan_is_the_highest(place):
    """In the reduction itself, though a compiler's minimum ignores NaN and the sum loses it."""
    z = np.zeros((1, 100), np.float32)
    z[0, place] = NAN
    assert np.isnan(jax.jit(lambda z: by_reduction(z, Request(), FLOAT32, 100).maximum)(z))


@EVERY_WAY
@pytest.mark.parametrize("classes", quick([4, 8, 100], 8))
def test_weighted_gap_without_limit(way, classes):
    """What has no weight costs nothing, and what is infinitely far costs as much."""
    z, w = np.zeros((2, 6, classes), np.float32)
    z[:, 1] = z[1:, 2] = -INF
    z[2:4, 3] = INF
    z[4, 3] = z[5, 3] = NAN
    w[:, 0] = w[1, 1] = w[3, 3] = w[5, 3] = 1
    (w[2, 0], w[2, 3]), (w[3, 0], z[3, 2]) = (0, 1), (0, -INF)
    stats = jax.jit(lambda z, w: way(z, Request(weights=w)))(z, w)
    np.testing.assert_array_equal(stats.weighted_gap[:4, 0], [0, INF, 0, 0])
    assert np.all(np.isnan(stats.maximum[4:]))


@EVERY_WAY
@pytest.mark.parametrize("classes", [8, 100, 1024, 4096])
def test_no_rows(way, classes):
    z = jax.ShapeDtypeStruct((0, classes), np.float32)
    stats = jax.eval_shape(lambda z, w: way(z, Request(weights=w, exp_gap=True)), z, z)
    assert {x.shape for x in jax.tree.leaves(stats)} == {(0, 1)}


@EVERY_WAY
def test_exp_gap_without_limit(way):
    z = np.float32([[0, -INF, 0, -INF], [INF, 0, -INF, 1e30], [0, 1e30, 1e38, -1e38]])
    stats = jax.jit(lambda z: way(z, Request(exp_gap=True)))(z)
    np.testing.assert_array_equal(stats.exp_gap[:, 0], 0)


@EVERY_WAY
def test_logit_of_the_label(way):
    rows = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)
    rows[1, [0, 7, 9]], rows[2, [0, 5]] = (-INF, -INF, INF), (NAN, 9)
    z, labels = np.repeat(rows, 10, axis=0), np.tile(np.arange(10), 3)
    stats = jax.jit(lambda z, labels: way(z, Request(labels=labels)))(z, labels)
    np.testing.assert_array_equal(stats.label_logit[:, 0], rows.reshape(-1))


@pytest.mark.parametrize("way", quick(WAYS.values(), WAYS["cpu"], WAYS["tpu"]), ids=WAYS)
def test_leading_dimensions(way):
    """More of them, fewer, and mapped ones."""
    z, w = np.random.default_rng(0).uniform(size=(2, 2, 3, 48)).astype(np.float32)

    def mapped(z, w):
        return way(z, Request(weights=w, exp_gap=True))

    sums = fast_jit(mapped)
    whole = sums(z, w)
    for i in range(2):
        for k in range(3):
            _assert_close(sums(z[i, k], w[i, k]), jax.tree.map(lambda x: x[i, k], whole))  # noqa: B023
    _assert_close(fast_jit(jax.vmap(mapped, in_axes=1, out_axes=1))(z, w), whole)


def _assert_close(stats, expected):
    for x, y in zip(jax.tree.leaves(stats), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)


def _of_statistics(z, w):
    """What is made of them: a normalizer, a logit, a soft cross-entropy and what entropies need."""
    labels = jnp.asarray([1, 0, 3])
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
    z = jnp.asarray([[0.5, -1.0, 2.0, 0.0], [1.0, 1.0, 0.0, -3.0], [1.0, 0.0, 1.0, 0.5]])
    w = jnp.asarray([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.0, 0.0], [0.3, 0.4, 0.4, 0.1]])

    def plainly(z, w):
        log_p = jax.nn.log_softmax(z)
        normalizer = jax.nn.logsumexp(z, axis=-1, keepdims=True)
        label_logit = jnp.take_along_axis(z, jnp.asarray([[1], [0], [3]]), axis=-1)
        down = z - jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
        soft, exp_gap = (-jnp.sum(x, -1, keepdims=True) for x in (w * log_p, jnp.exp(log_p) * down))
        return normalizer, label_logit, soft, exp_gap

    found = fast_jit(derivative(function, (0, 1)))(z, w)
    for x, y in zip(*map(jax.tree.leaves, (found, jax.jacrev(plainly, (0, 1))(z, w))), strict=True):
        np.testing.assert_allclose(x.reshape(y.shape), y, atol=1e-6)


def test_derivative_of_merged_shards():
    """For the weights of a shard that has none: they cost the gap to the maximum."""
    z, w = jnp.asarray([[[0.5, 2.0]], [[-1.0, 1.0]]]), jnp.asarray([[[0.25, 0.75]], [[0.0, 0.0]]])

    def gap(w):
        shards = row_statistics(z, Request(weights=w), FLOAT32)
        over_shards = [
            partial(jax.tree.map, partial(f, axis=0, keepdims=True)) for f in (jnp.max, jnp.sum)
        ]
        return merged([shards], *over_shards).weighted_gap[0, 0, 0]

    np.testing.assert_allclose(jax.grad(gap)(w), 2.0 - z, rtol=1e-6)


def test_mapped():
    """Over any dimension of each argument, and over none."""
    z, w = np.random.default_rng(0).uniform(size=(2, 3, 4, 5)).astype(np.float32)

    def mapped(z, w):
        return row_statistics(z, Request(weights=w, exp_gap=True), FLOAT32)

    alone = [mapped(x, w[:, 0]) for x in jnp.swapaxes(z, 0, 1)]
    expected = jax.tree.map(lambda *x: jnp.stack(x), *alone)
    _assert_close(jax.vmap(mapped, in_axes=(1, None))(z, w[:, 0]), expected)
