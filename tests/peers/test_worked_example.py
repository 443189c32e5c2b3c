"""The lesson that the library comes from, number by number."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent

PROBABILITIES = np.array([[0.1, 0.3, 0.6], [0.3, 0.2, 0.5]], np.float32)
LABELS = np.array([2, 0])
ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]
LOSSES = [0.5108, 1.2040]
MEAN = 0.8574


def _agree(actual, expected, digits=4):
    """To the digits that the lesson prints."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=0.51 * 10.0**-digits)


@pytest.mark.parametrize(
    "losses",
    [
        lambda p: jxent.cross_entropy_with_integer_labels(p, LABELS),
        lambda p: jxent.cross_entropy(ONE_HOT, p),
        lambda p: jxent.relative_entropy(ONE_HOT, p),
        lambda p: jxent.negative_log_likelihood(jnp.log(p), LABELS),
        lambda p: jxent.kl_divergence(jnp.log(p), ONE_HOT),
        lambda p: jxent.softmax_cross_entropy_with_integer_labels(jnp.log(p), LABELS),
        lambda p: jxent.softmax_cross_entropy(jnp.log(p), ONE_HOT),
    ],
)
def test_cross_entropy(losses):
    """Every way to say it gives 0.5108 and 1.2040, mean 0.8574."""
    per_example = jax.jit(losses)(PROBABILITIES)
    _agree(per_example, LOSSES)
    _agree(jxent.weighted_mean(per_example), MEAN)


def test_class_weights():
    r"""-sum_c w_c y_c log p_c."""
    weights = np.array([2.0, 1.0, 0.5], np.float32)
    expected = [0.5 * -math.log(0.6), 2.0 * -math.log(0.3)]
    logits = np.log(PROBABILITIES)
    for losses in (
        jxent.softmax_cross_entropy_with_integer_labels(logits, LABELS, class_weights=weights),
        jxent.softmax_cross_entropy(logits, ONE_HOT, class_weights=weights),
        jxent.cross_entropy_with_integer_labels(PROBABILITIES, LABELS, class_weights=weights),
    ):
        np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_label_smoothing():
    """Smoothing 0.1 over three classes: 0.9 + 0.0333 for the label, 0.0333 for the others."""
    smoothed = np.where(ONE_HOT == 1, 0.9 + 0.1 / 3, 0.1 / 3)
    expected = -np.sum(smoothed * np.log(PROBABILITIES.astype(float)), axis=-1)
    _agree(expected, [0.5937, 1.2005])
    logits = np.log(PROBABILITIES)
    for losses in (
        jxent.softmax_cross_entropy_with_integer_labels(logits, LABELS, label_smoothing=0.1),
        jxent.softmax_cross_entropy(logits, ONE_HOT, label_smoothing=0.1),
        jxent.softmax_cross_entropy(logits, smoothed.astype(np.float32)),
    ):
        np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_multi_label():
    """A row [1, 0, 1] is three binary questions: no softmax, no competition."""
    logits = np.array([[2.0, -1.0, 0.5]], np.float32)
    rows = np.array([[1, 0, 1]])
    p = 1 / (1 + np.exp(-logits.astype(float)))
    expected = -np.log(np.where(rows == 1, p, 1 - p))
    _agree(expected, [[0.1269, 0.3133, 0.4741]])
    losses = jxent.sigmoid_binary_cross_entropy(logits, rows)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    np.testing.assert_allclose(
        jxent.binary_cross_entropy(p.astype(np.float32), rows), expected, rtol=1e-6
    )
