"""Softmax losses against the exact function of their inputs."""

import numpy as np
import pytest
import sweeps
import truth
from accuracy import check
from tiers import quick, quick_rows
from tolerances import DTYPES, computing

import jxent

SMOOTHING, Z_LOSS, GAMMA, EPSILON = 0.1, 1e-4, 2.0, 2.0
integer_loss = jxent.softmax_cross_entropy_with_integer_labels


@pytest.fixture(params=quick(DTYPES))
def dtype(request):
    return request.param


def label_of(z):
    """Class 1, which the margins belong to."""
    return np.ones(z.shape[:-1], np.int32)


def option(dtype, value):
    """The option as the computing dtype holds it, and its exact value."""
    value = np.asarray(value, computing(dtype))
    return value, truth.number(value)


def weights(dtype):
    return option(dtype, np.linspace(0.25, 3, sweeps.CLASSES))


def pair(dtype):
    return sweeps.rounded(dtype, sweeps.logits(), sweeps.soft_labels())


@pytest.mark.parametrize("classes", [2, sweeps.CLASSES])
def test_integer_labels(dtype, classes):
    (z,) = sweeps.rounded(dtype, sweeps.logits(classes))
    y = label_of(z)
    check(
        lambda z: integer_loss(z, y),
        lambda z: truth.integer_cross_entropy(z, y),
        "softmax",
        dtype,
        z,
    )


def test_integer_labels_options(dtype):
    z = sweeps.logits()
    (z,) = sweeps.rounded(dtype, z[np.all(np.isfinite(z), axis=-1)])
    y = label_of(z)
    epsilon, exact_epsilon = option(dtype, SMOOTHING)
    zeta, exact_zeta = option(dtype, Z_LOSS)
    w, exact_w = weights(dtype)
    check(
        lambda z: integer_loss(z, y, label_smoothing=epsilon, class_weights=w, z_loss=zeta),
        lambda z: truth.integer_cross_entropy(z, y, exact_epsilon, exact_w, exact_zeta),
        "softmax",
        dtype,
        z,
    )


def test_soft_labels(dtype):
    check(jxent.softmax_cross_entropy, truth.soft_cross_entropy, "softmax", dtype, *pair(dtype))


def test_soft_labels_options(dtype):
    z, y = pair(dtype)
    finite = np.all(np.isfinite(z.astype(np.float64)), axis=-1)
    epsilon, exact_epsilon = option(dtype, SMOOTHING)
    zeta, exact_zeta = option(dtype, Z_LOSS)
    w, exact_w = weights(dtype)
    check(
        lambda z, y: jxent.softmax_cross_entropy(
            z, y, label_smoothing=epsilon, class_weights=w, z_loss=zeta
        ),
        lambda z, y: truth.soft_cross_entropy(z, y, exact_epsilon, exact_w, exact_zeta),
        "softmax",
        dtype,
        z[finite],
        y[finite],
    )


@pytest.mark.parametrize(
    ("dtype", "epsilon"),
    quick_rows([*((dtype, 2.0) for dtype in DTYPES), ("float32", -0.5), ("float64", -0.5)], 0),
)
def test_poly_loss(dtype, epsilon):
    z, y = pair(dtype)
    check(
        lambda z, y: jxent.poly_loss_cross_entropy(z, y, epsilon),
        lambda z, y: truth.without_last(truth.poly_loss(z, y, epsilon)),
        "softmax",
        dtype,
        z,
        y,
    )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss(dtype, gamma):
    (z,) = sweeps.rounded(dtype, sweeps.logits())
    y = label_of(z)
    check(
        lambda z: jxent.softmax_focal_loss_with_integer_labels(z, y, gamma),
        lambda z: truth.without_last(truth.softmax_focal_loss(z, y, gamma)),
        "softmax",
        dtype,
        z,
    )


def test_entropy(dtype):
    (z,) = sweeps.rounded(dtype, sweeps.logits())
    check(jxent.softmax_entropy, truth.softmax_entropy, "softmax", dtype, z)


def test_logsumexp(dtype):
    (z,) = sweeps.rounded(dtype, sweeps.logits())
    check(jxent.logsumexp, truth.logsumexp, "logsumexp", dtype, z)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_distribution(dtype, name):
    """With the gradient of a weighted sum of the entries."""
    (z,) = sweeps.rounded(dtype, sweeps.logits())
    c = np.random.default_rng(7).normal(size=z.shape).astype(computing(dtype))
    exact_c = truth.number(c)
    check(
        getattr(jxent, name),
        lambda z: getattr(truth, name)(z, exact_c),
        "softmax",
        dtype,
        z,
        cotangent=c,
    )
