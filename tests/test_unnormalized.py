"""Probabilities of any size against the exact function: huge, tiny, far from a sum of one."""

import functools

import numpy as np
import pytest
import sweeps
import truth
from accuracy import check
from tolerances import DTYPES

import jxent


@pytest.fixture(params=DTYPES)
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
