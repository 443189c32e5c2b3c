"""Losses of probabilities and log-probabilities against the exact function of their inputs."""

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


def pair(dtype):
    return sweeps.rounded(dtype, *sweeps.probability_pairs())


def log_pair(dtype):
    """Log-predictions, and targets."""
    p, q = sweeps.probability_pairs()
    with np.errstate(divide="ignore"):
        return sweeps.rounded(dtype, np.maximum(np.log(q), -200), p)


def test_entropy(dtype):
    (p,) = sweeps.rounded(dtype, sweeps.probabilities())
    check(jxent.entropy, truth.entropy, "probability", dtype, p)


@pytest.mark.parametrize("name", ["cross_entropy", "relative_entropy", "jensen_shannon_divergence"])
def test_two_distributions(dtype, name):
    p, q = pair(dtype)
    finite = np.all((q > 0) | (p == 0), axis=-1)
    check(getattr(jxent, name), getattr(truth, name), "probability", dtype, p[finite], q[finite])


@pytest.mark.parametrize("name", ["kl_divergence", "generalized_kl_divergence"])
def test_log_predictions(dtype, name):
    check(getattr(jxent, name), getattr(truth, name), "probability", dtype, *log_pair(dtype))


def test_log_targets(dtype):
    p, q = sweeps.probability_pairs()
    with np.errstate(divide="ignore"):
        args = sweeps.rounded(dtype, np.maximum(np.log(q), -200), np.log(p))
    definition = truth.kl_divergence_with_log_targets
    check(jxent.kl_divergence_with_log_targets, definition, "probability", dtype, *args)


def test_integer_labels(dtype):
    (q,) = sweeps.rounded(dtype, sweeps.probabilities())
    y = np.argmax(q, axis=-1)
    check(
        lambda q: jxent.cross_entropy_with_integer_labels(q, y),
        lambda q: truth.cross_entropy_with_integer_labels(q, y),
        "probability",
        dtype,
        q,
    )


def binary_probabilities():
    p = sweeps.probabilities().reshape(-1)
    return p[(p > 0) & (p < 1)]


def test_binary_entropy(dtype):
    (p,) = sweeps.rounded(dtype, binary_probabilities()[:, None])
    p = p[(p > 0) & (p < 1)]
    check(jxent.binary_entropy, truth.binary_entropy, "probability", dtype, p)


def test_binary_cross_entropy(dtype):
    weight, epsilon = (np.asarray(x, computing(dtype)) for x in (2.7, 0.1))
    exact_weight, exact_epsilon = truth.number(weight), truth.number(epsilon)
    p = binary_probabilities()
    y = np.resize([0.0, 1.0, 0.5, 1e-3, 0.3], p.shape)
    p, y = (x[:, 0] for x in sweeps.rounded(dtype, p[:, None], y[:, None]))
    p, y = p[(p > 0) & (p < 1)], y[(p > 0) & (p < 1)]
    check(jxent.binary_cross_entropy, truth.binary_cross_entropy, "probability", dtype, p, y)
    check(
        lambda p, y: jxent.binary_cross_entropy(p, y, pos_weight=weight, label_smoothing=epsilon),
        lambda p, y: truth.binary_cross_entropy(p, y, exact_weight, exact_epsilon),
        "probability",
        dtype,
        p,
        y,
    )


def test_weighted_mean(dtype):
    rng = np.random.default_rng(8)
    losses, weights = rng.exponential(size=(2, 30, 7)) * 10.0 ** rng.integers(-6, 4, (2, 30, 7))
    check(
        lambda x, w: jxent.weighted_mean(x, w, axis=-1),
        truth.weighted_mean,
        "probability",
        dtype,
        *sweeps.rounded(dtype, losses, weights),
    )
