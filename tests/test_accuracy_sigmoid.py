"""Binary losses of logits against the exact function of their inputs."""

import numpy as np
import pytest
import sweeps
import truth
from accuracy import check
from tiers import quick
from tolerances import DTYPES, computing

import jxent


@pytest.fixture(params=quick(DTYPES))
def dtype(request):
    return request.param


def logits_and_labels(dtype):
    z = sweeps.binary_logits()
    y = [0.0, 1.0, 0.5, 1e-3, 1 - 2**-9, 0.3]
    z, y = np.repeat(z, len(y)), np.tile(y, len(z))
    return [x[:, 0] for x in sweeps.rounded(dtype, z[:, None], y[:, None])]


def test_entropy(dtype):
    (z,) = sweeps.rounded(dtype, sweeps.binary_logits()[:, None])
    check(jxent.sigmoid_entropy, truth.sigmoid_entropy, "sigmoid", dtype, z)


def test_cross_entropy(dtype):
    args = logits_and_labels(dtype)
    check(jxent.sigmoid_binary_cross_entropy, truth.sigmoid_cross_entropy, "sigmoid", dtype, *args)


@pytest.mark.parametrize("smoothing", [0.1, 1e-6])
def test_cross_entropy_options(dtype, smoothing):
    weight, epsilon = (np.asarray(x, computing(dtype)) for x in (2.7, smoothing))
    exact_weight, exact_epsilon = truth.number(weight), truth.number(epsilon)
    check(
        lambda z, y: jxent.sigmoid_binary_cross_entropy(
            z, y, pos_weight=weight, label_smoothing=epsilon
        ),
        lambda z, y: truth.sigmoid_cross_entropy(z, y, exact_weight, exact_epsilon),
        "sigmoid",
        dtype,
        *logits_and_labels(dtype),
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss(dtype, gamma):
    alpha = 0.25
    z, y = logits_and_labels(dtype)
    # Farther out the probability missed flushes to zero, and with it a root of it that should not.
    kept = np.abs(z.astype(np.float64)) < 80 if gamma < 1 else np.isfinite(z.astype(np.float64))
    check(
        lambda z, y: jxent.sigmoid_focal_loss(z, y, alpha, gamma),
        lambda z, y: truth.sigmoid_focal_loss(z, y, alpha, gamma),
        "sigmoid",
        dtype,
        z[kept],
        y[kept],
    )
