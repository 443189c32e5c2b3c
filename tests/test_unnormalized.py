"""Probabilities of any size against the exact function: huge, tiny, far from a sum of one."""

import functools

import jax
import numpy as np
import pytest
import sweeps
import truth
from accuracy import check
from tiers import quick
from tolerances import DTYPES

import jxent


@pytest.fixture(params=quick(DTYPES))
def dtype(request):
    return request.param


@functools.cache
def pairs(dtype):
    return sweeps.unnormalized_pairs(dtype)


def log_pairs(dtype):
    """Log-predictions, and targets. In 16 bits the logarithms of the targets would overflow."""
    p, q = pairs(dtype)
    with np.errstate(divide="ignore"):
        return np.log(q.astype(np.float64)).astype(q.dtype), p


@pytest.mark.parametrize("name", ["relative_entropy", "jensen_shannon_divergence", "cross_entropy"])
def test_two_measures(dtype, name):
    check(getattr(jxent, name), getattr(truth, name), "probability", dtype, *pairs(dtype))


@pytest.mark.parametrize("name", ["relative_entropy", "jensen_shannon_divergence", "cross_entropy"])
def test_what_is_left_does_not_sum_to_one(dtype, name):
    p, q = sweeps.rounded(dtype, *sweeps.probability_pairs())
    finite = np.all((q > 0) | (p == 0), axis=-1)
    p, q = p[finite], q[finite]
    mask = np.random.default_rng(0).random(p.shape) < 0.5
    exact = getattr(truth, name)

    def definition(p, q):
        some = np.where(mask, 1, 0)
        value, gradients = exact(p * some, q * some)
        return truth.Truth(value, tuple(g._replace(exact=g.exact * some) for g in gradients))

    check(
        lambda p, q: getattr(jxent, name)(p, q, where=mask), definition, "probability", dtype, p, q
    )


def test_values():
    """By hand: numbers of very different size, of which nothing may be rounded away."""
    least = 2.0**-126
    for p, q, value in [
        ([1e-8], [1.0], -1e-8 * 8 * np.log(10)),
        ([1e-20], [1e-3], -1e-20 * 17 * np.log(10)),
        (
            [2, 3, 4],
            [least] * 3,
            2 * np.log(2) + 3 * np.log(3) + 4 * np.log(4) + 9 * 126 * np.log(2),
        ),
        ([1.0], [3.4e38], -np.log(3.4e38)),
        ([least, 0, 0], [least, 3.4e38, 1], 0),
        ([3e38, 3e38, 1e-30], [3e38, 3e38, 1], -1e-30 * 30 * np.log(10)),
    ]:
        p, q = np.float32(p), np.float32(q)
        np.testing.assert_allclose(jxent.relative_entropy(p, q), value, rtol=1e-6)
    to_p, to_q = jax.grad(jxent.relative_entropy, (0, 1))(*np.float32([[200, 300], [1e-37, 0.5]]))
    np.testing.assert_allclose(
        to_p, [1 + np.log(200) + 37 * np.log(10), 1 + np.log(600)], rtol=1e-6
    )
    np.testing.assert_array_equal(to_q, np.float32([-np.inf, -600]))
    with jax.enable_x64(True):
        divergence = jxent.relative_entropy(np.array([1e-200]), np.array([1e200]))
    np.testing.assert_allclose(divergence, -1e-200 * 400 * np.log(10), rtol=1e-14)


def test_entropy(dtype):
    check(jxent.entropy, truth.entropy, "probability", dtype, pairs(dtype)[0])


@pytest.mark.parametrize("name", ["kl_divergence", "generalized_kl_divergence"])
def test_log_predictions(dtype, name):
    check(getattr(jxent, name), getattr(truth, name), "probability", dtype, *log_pairs(dtype))


def test_log_targets(dtype):
    log_q, p = log_pairs(dtype)
    with np.errstate(divide="ignore"):
        log_p = np.log(p.astype(np.float64)).astype(p.dtype)
    definition = truth.kl_divergence_with_log_targets
    check(jxent.kl_divergence_with_log_targets, definition, "probability", dtype, log_q, log_p)


def test_integer_labels(dtype):
    _, q = pairs(dtype)
    q = q[q[:, 1] > 0]
    y = np.ones(len(q), np.int32)
    check(
        lambda q: jxent.cross_entropy_with_integer_labels(q, y),
        lambda q: truth.cross_entropy_with_integer_labels(q, y),
        "probability",
        dtype,
        q,
    )
