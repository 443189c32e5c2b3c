"""Hessians against the exact function: forward over reverse, of both arguments."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import truth
from accuracy import double_if
from tolerances import DIGITS, SECOND_DERIVATIVE, eps

import jxent

CLASSES = 4
KL, ENTROPY = jxent.softmax_kl_divergence, jxent.softmax_entropy


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


def rows(dtype):
    rng = np.random.default_rng(0)
    margins = (-100, -30, -8, -1, 0, 1, 8, 30, 100)
    z = rng.normal(size=(2 * len(margins), CLASSES))
    z[:, 1] += np.repeat(margins, 2)
    extra = [np.zeros(CLASSES), 1e4 + 3 * rng.normal(size=CLASSES), [5, 5, -40, 0]]
    return np.concatenate([z, extra]).astype(dtype)


def near_rows(dtype):
    """Pairs of rows whose log-probabilities differ by at most about one."""
    z = rows(dtype)
    changes = np.resize([1e-6, 1e-4, 1e-2, 0.5], len(z))[:, None]
    return z, (z + changes * np.random.default_rng(1).normal(size=z.shape)).astype(dtype)


def hessian(function, argnums, *args):
    """``[rows, ..., ...]``, and every block where `argnums` are several."""
    return jax.jit(jax.vmap(jax.hessian(function, argnums)))(*(jnp.asarray(x) for x in args))


def assert_exact(got, exact, dtype):
    error = abs(truth.number(got) - exact) / eps(dtype)
    worst = np.unravel_index(np.argmax(error), error.shape)
    assert error[worst] <= SECOND_DERIVATIVE, (
        f"off by {mpmath.nstr(error[worst], 4)} eps at {tuple(map(int, worst))}:"
        f" {np.asarray(got)[worst]} for {mpmath.nstr(exact[worst], 12)}"
    )


def distribution(z):
    e = truth.exp(truth.number(z))
    p = e / truth.total(e)
    return p, -truth.log(p)


def covariance(p):
    """``p_j (δ_jk - p_k)``, the derivative of softmax."""
    return p[..., None] * (truth.number(np.eye(p.shape[-1])) - p[..., None, :])


@pytest.fixture(autouse=True)
def _precision(dtype):
    with double_if(dtype), mpmath.workdps(DIGITS[dtype]):
        yield


def test_integer_labels(dtype):
    z = rows(dtype)

    def loss(z):
        return jxent.softmax_cross_entropy_with_integer_labels(z, 1)

    assert_exact(hessian(loss, 0, z), covariance(distribution(z)[0]), dtype)


def test_soft_labels(dtype):
    z = rows(dtype)
    y = np.random.default_rng(2).dirichlet(np.ones(CLASSES), size=len(z)).astype(dtype)
    (zz, zy), (yz, yy) = hessian(jxent.softmax_cross_entropy, (0, 1), z, y)
    p = distribution(z)[0]
    mass = truth.total(truth.number(y))[..., None]
    cross = p[..., None] - truth.number(np.eye(CLASSES))
    assert_exact(zz, mass * covariance(p), dtype)
    assert_exact(zy, cross, dtype)
    assert_exact(yz, np.swapaxes(cross, -1, -2), dtype)
    assert_exact(yy, 0 * cross, dtype)


def test_logsumexp(dtype):
    z = rows(dtype)
    assert_exact(hessian(jxent.logsumexp, 0, z), covariance(distribution(z)[0]), dtype)


def test_entropy(dtype):
    z = rows(dtype)
    p, n = distribution(z)
    above = n - truth.total(p * n)
    slope = p * above
    exact = covariance(p) * (above[..., None] - 1) - p[..., None] * slope[..., None, :]
    assert_exact(hessian(ENTROPY, 0, z), exact, dtype)


def test_kl_divergence(dtype):
    """Of rows far apart too, where the second derivatives are as large as the log-ratio."""
    z, near = near_rows(dtype)
    z_q, z_p = np.concatenate([z, z]), np.concatenate([near, z[::-1]])
    (qq, qp), (pq, pp) = hessian(KL, (0, 1), z_q, z_p)
    (p, n_p), (q, n_q) = distribution(z_p), distribution(z_q)
    above = (n_q - n_p) - truth.total(p * (n_q - n_p))
    slope = p * above
    size = np.maximum(mpmath.mpf(1), np.max(abs(slope), axis=-1))[:, None, None]
    exact = covariance(p) * (above[..., None] + 1) - p[..., None] * slope[..., None, :]
    assert_exact(truth.number(qq) / size, covariance(q) / size, dtype)
    assert_exact(truth.number(qp) / size, -covariance(p) / size, dtype)
    assert_exact(truth.number(pq) / size, -covariance(p) / size, dtype)
    assert_exact(truth.number(pp) / size, exact / size, dtype)


def binary_logits(dtype):
    return np.array([-100, -20, -3, -0.5, 0, 1e-4, 1, 8, 30, 100], dtype)


def test_sigmoid_cross_entropy(dtype):
    z = binary_logits(dtype)
    y = np.resize(np.array([0, 0.25, 1], dtype), z.shape)
    (zz, zy), (_, yy) = hessian(jxent.sigmoid_binary_cross_entropy, (0, 1), z, y)
    e = truth.exp(truth.number(z))
    assert_exact(zz, e / (1 + e) ** 2, dtype)
    assert_exact(zy, 0 * e - 1, dtype)
    assert_exact(yy, 0 * e, dtype)


def test_sigmoid_entropy(dtype):
    z = binary_logits(dtype)
    e, x = truth.exp(truth.number(z)), truth.number(z)
    slope = e / (1 + e) ** 2
    assert_exact(hessian(jxent.sigmoid_entropy, 0, z), -slope * (1 + x * (1 - e) / (1 + e)), dtype)


def test_sigmoid_kl_divergence(dtype):
    z_q = binary_logits(dtype)
    z_p = (z_q + np.resize([1e-4, 0.5, -2], z_q.shape)).astype(dtype)
    (qq, qp), (_, pp) = hessian(jxent.sigmoid_kl_divergence, (0, 1), z_q, z_p)
    a, b = truth.number(z_p), truth.number(z_q)
    p, q = 1 / (1 + truth.exp(-a)), 1 / (1 + truth.exp(-b))
    assert_exact(qq, q * (1 - q), dtype)
    assert_exact(qp, -p * (1 - p), dtype)
    assert_exact(pp, p * (1 - p) * (1 + (a - b) * (1 - 2 * p)), dtype)
