"""Up to 200 000 classes, against extended precision: in so long a sum plain order loses bits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent._statistics.platforms import PLATFORMS
from support.accuracy import double_if
from support.tiers import quick_rows
from support.tolerances import UNITS, computing, eps

# In 16 bits the numbers are summed in float32.
SIZES = [("float32", 200_000), ("float64", 200_000), ("bfloat16", 5_000)]
INTEGER = jxent.softmax_cross_entropy_with_integer_labels


def rows(dtype, classes):
    rng = np.random.default_rng(11)
    z = np.stack([scale * rng.normal(size=classes) for scale in (0, 1, 30)])
    ahead = rng.normal(size=classes)
    ahead[1] = 25
    z = np.concatenate([z, ahead[None], 1e4 + z[1:2]])
    return z.astype(jnp.dtype(dtype))


def exact_sums(z):
    """Of one row: p, the surprisals, and log-sum-exp; sums rounded once, in two parts each."""
    z = z.astype(np.longdouble)
    k = np.argmax(z)
    e = np.exp(z - z[k])
    others = exact_sum(np.delete(e, k))
    return e / (1 + others), np.log1p(others) + (z[k] - z), z[k] + np.log1p(others), others


def exact_sum(x):
    """The sum of extended-precision numbers."""
    high = x.astype(np.float64)
    low = (x - high).astype(np.float64)
    return np.longdouble(math.fsum(high)) + np.longdouble(math.fsum(low))


def assert_near(got, exact, bound, dtype):
    got = np.asarray(got)
    error = np.abs(got.astype(np.longdouble) - exact)
    if got.dtype.itemsize == 2:
        with np.errstate(over="ignore"):
            bound = bound + np.abs(np.spacing(exact.astype(got.dtype)).astype(np.longdouble))
    worst = np.argmax(error / (bound + 1e-33))
    assert np.all(error <= bound + 1e-33), (worst, got.flat[worst], np.asarray(exact).flat[worst])


@pytest.fixture
def _one_pass_everywhere(monkeypatch):
    """The way of other platforms, on this one."""
    monkeypatch.setitem(PLATFORMS, "cpu", PLATFORMS["tpu"])
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.full
@pytest.mark.usefixtures("_one_pass_everywhere")
@pytest.mark.parametrize(("dtype", "classes"), SIZES)
def test_softmax_in_one_pass(dtype, classes):
    test_softmax(dtype, classes)


@pytest.mark.parametrize(("dtype", "classes"), quick_rows(SIZES, 0))
def test_softmax(dtype, classes):
    z = rows(dtype, classes)
    labels = np.ones(len(z), np.int32)

    @jax.jit
    def results(z):
        loss, pullback = jax.vjp(lambda z: INTEGER(z, labels), z)
        return (
            loss,
            pullback(jnp.ones_like(loss))[0],
            jxent.logsumexp(z),
            jxent.softmax_entropy(z),
            jxent.softmax_cross_entropy(z, jnp.full(classes, 1 / classes, loss.dtype)),
        )

    with double_if(dtype):
        loss, gradient, normalizer, entropy, soft = results(jnp.asarray(z))
        unit = eps(dtype)
        uniform = np.longdouble(np.asarray(1 / classes, computing(dtype)))
        for i, row in enumerate(z):
            p, n, lse, _ = exact_sums(row)
            reach = np.abs(np.log(n[1]))
            assert_near(loss[i], n[1], (UNITS["softmax"] + reach) * unit * n[1], dtype)
            h = exact_sum(p * n)
            assert_near(entropy[i], h, (UNITS["softmax"] + np.abs(np.log(h))) * unit * h, dtype)
            s = uniform * exact_sum(n)
            assert_near(soft[i], s, (UNITS["softmax"] + np.abs(np.log(s))) * unit * s, dtype)
            size = np.abs(np.max(row.astype(np.longdouble))) + np.log(classes)
            assert_near(normalizer[i], lse, UNITS["logsumexp"] * unit * size, dtype)
            g, allowed = p.copy(), (UNITS["softmax"] + 2 * n) * unit * p
            g[1] = -exact_sum(np.delete(p, 1))
            allowed[1] = (UNITS["softmax"] + reach) * unit * -g[1]
            assert_near(gradient[i], g, allowed, dtype)


@pytest.mark.full
@pytest.mark.parametrize(("dtype", "classes"), SIZES)
def test_divergence(dtype, classes):
    rng = np.random.default_rng(12)
    z_q = rows(dtype, classes)
    change = np.resize([0.3, 1, 3], len(z_q))[:, None]
    z_p = (z_q.astype(np.float64) + change * rng.normal(size=z_q.shape)).astype(z_q.dtype)
    with double_if(dtype):
        divergence = jax.jit(jxent.softmax_kl_divergence)(jnp.asarray(z_q), jnp.asarray(z_p))
        for i in range(len(z_q)):
            (p, n_p, _, _), (_, n_q, _, _) = exact_sums(z_p[i]), exact_sums(z_q[i])
            exact = exact_sum(p * (n_q - n_p))
            assert_near(divergence[i], exact, UNITS["divergence"] * eps(dtype) * exact, dtype)
