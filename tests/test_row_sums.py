"""The ways to a row's maximum and sums, beside each other, against exact sums."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import eps

from jxent import _row_sums
from jxent._row_sums import by_blocks, by_logsumexp, in_one_pass

INF, NAN = np.inf, np.nan


def _blocks_of_four(z, labels):
    return *by_blocks(z, z.dtype, 4), None


WAYS = {
    "by_logsumexp": by_logsumexp,
    "in_one_pass": in_one_pass,
    "by_blocks": _blocks_of_four,
    "cpu": functools.partial(_row_sums._on_cpu, stored=np.dtype(np.float32)),
}
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


def _others(row):
    """The exact sum of all but one maximum, relative to it."""
    e = np.exp(row.astype(np.longdouble) - row.max())
    return math.fsum(np.delete(e, np.argmax(row)))


@EVERY_WAY
@pytest.mark.parametrize("classes", [4, 8, 12, 100, 1024, 1028, 50_000])
def test_sums(way, classes):
    z = _rows(classes)
    m, s, _ = jax.jit(way)(z, None)
    assert m.shape == s.shape == (len(z), 1)
    np.testing.assert_array_equal(m[:, 0], z.max(-1))
    exact = np.array([_others(row) for row in z])
    # A sum below 1 may be a logarithm's exponential, which has so many more units of error.
    allowed = (12 + np.abs(np.log(np.maximum(exact, 1e-38)))) * eps("float32") * exact
    assert np.all(np.abs(np.asarray(s)[:, 0] - exact) <= allowed + 1e-33)


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
@pytest.mark.parametrize("classes", [4, 8, 100, 1024, 4096])
def test_without_limit(way, classes):
    z = np.tile(np.linspace(-1, 1, classes, dtype=np.float32), (len(_SPECIAL) + 4, 1))
    for row, (numbers, _, _) in zip(z, _SPECIAL, strict=False):
        row[[0, classes // 2, -1]] = numbers
    *_, nothing, one, infinite, unknown = z
    nothing[:] = one[:] = infinite[:] = unknown[:] = -INF
    one[classes // 3], infinite[-1], unknown[1] = 3, INF, NAN
    m, s, _ = jax.jit(way)(z, None)
    last = [(-INF, NAN), (3, 0), (INF, 0), (NAN, NAN)]
    expected = [(m, s) for _, m, s in _SPECIAL] + last
    np.testing.assert_array_equal(np.concatenate([m, s], axis=-1), np.float32(expected))


@pytest.mark.parametrize("way", [by_logsumexp, in_one_pass, WAYS["cpu"]])
def test_logit_of_the_label(way):
    z = np.float32([[1, -2, 3], [-INF, 0, INF], [NAN, 1, 2]])
    for label in range(3):
        labels = np.full(3, label)
        *_, picked = jax.jit(way)(z, labels)
        np.testing.assert_array_equal(picked[:, 0], z[:, label])


@EVERY_WAY
def test_leading_dimensions(way):
    """More of them, fewer, and mapped ones."""
    z = np.random.default_rng(0).normal(size=(2, 3, 48)).astype(np.float32)
    m, s, _ = way(z, None)
    for i in range(2):
        for k in range(3):
            alone = way(z[i, k], None)
            np.testing.assert_allclose(alone[1], s[i, k], rtol=1e-6)
    mapped = jax.vmap(lambda row: way(row, None)[:2], in_axes=1, out_axes=1)(z)
    np.testing.assert_allclose(mapped[0], m)
    np.testing.assert_allclose(mapped[1], s, rtol=1e-6)


@pytest.mark.parametrize("way", [by_logsumexp, in_one_pass], ids=["by_logsumexp", "in_one_pass"])
def test_derivative_without_the_rule(way):
    """Loops inside of rules lose the rule of the statistics: then the sums are differentiated."""
    z = jnp.asarray([[0.5, -1.0, 2.0, 0.0], [1.0, 1.0, 0.0, -3.0]])

    def normalizer(z):
        m, s, _ = way(z, None)
        return jnp.sum(m + jnp.log1p(s))

    p = jax.nn.softmax(z)
    np.testing.assert_allclose(jax.grad(normalizer)(z), p, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(normalizer, (z,), (z,))[1], jnp.sum(p * z), rtol=1e-6)
