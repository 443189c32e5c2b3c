"""The lesson that the library comes from, number by number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent import softmax_cross_entropy as soft
from jxent import softmax_cross_entropy_with_integer_labels as integer

P = np.array([[0.1, 0.3, 0.6], [0.3, 0.2, 0.5]], np.float32)
LABELS = np.array([2, 0])
ONE_HOT = np.eye(3, dtype=np.float32)[LABELS]
WEIGHTS = np.array([2.0, 1.0, 0.5], np.float32)
# Smoothing 0.1 over three classes: 0.9 + 0.0333 for the label, 0.0333 for the others.
SMOOTHED = np.where(ONE_HOT == 1, 0.9 + 0.1 / 3, 0.1 / 3)
# A row [1, 0, 1] is three binary questions: no softmax, no competition.
QUESTIONS, ANSWERS = np.array([[2.0, -1.0, 0.5]], np.float32), np.array([[1, 0, 1]])
YES = 1 / (1 + np.exp(-QUESTIONS.astype(float)))

# What the lesson prints, to four digits; how it is computed; and every way to say it.
LESSON = [
    (
        [0.5108, 1.2040],
        -np.log([0.6, 0.3]),
        lambda p: jxent.cross_entropy_with_integer_labels(p, LABELS),
        lambda p: jxent.cross_entropy(ONE_HOT, p),
        lambda p: jxent.relative_entropy(ONE_HOT, p),
        lambda p: jxent.negative_log_likelihood(jnp.log(p), LABELS),
        lambda p: jxent.kl_divergence(jnp.log(p), ONE_HOT),
        lambda p: integer(jnp.log(p), LABELS),
        lambda p: soft(jnp.log(p), ONE_HOT),
    ),
    (  # -sum_c w_c y_c log p_c
        [0.2554, 2.4079],
        [0.5, 2.0] * -np.log([0.6, 0.3]),
        lambda p: integer(jnp.log(p), LABELS, class_weights=WEIGHTS),
        lambda p: soft(jnp.log(p), ONE_HOT, class_weights=WEIGHTS),
        lambda p: jxent.cross_entropy_with_integer_labels(p, LABELS, class_weights=WEIGHTS),
    ),
    (
        [0.5937, 1.2005],
        -np.sum(SMOOTHED * np.log(P.astype(float)), axis=-1),
        lambda p: integer(jnp.log(p), LABELS, label_smoothing=0.1),
        lambda p: soft(jnp.log(p), ONE_HOT, label_smoothing=0.1),
        lambda p: soft(jnp.log(p), SMOOTHED.astype(np.float32)),
    ),
    (
        [[0.1269, 0.3133, 0.4741]],
        -np.log(np.where(ANSWERS == 1, YES, 1 - YES)),
        lambda p: jxent.sigmoid_binary_cross_entropy(QUESTIONS, ANSWERS),
        lambda p: jxent.binary_cross_entropy(YES.astype(np.float32), ANSWERS),
    ),
]


@pytest.mark.parametrize(("printed", "expected", "ways"), [(a, b, c) for a, b, *c in LESSON])
def test_lesson(printed, expected, ways):
    np.testing.assert_allclose(expected, printed, rtol=0, atol=0.51e-4)
    for losses in jax.jit(lambda p: [way(p) for way in ways])(P):
        np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_mean():
    np.testing.assert_allclose(jxent.weighted_mean(integer(np.log(P), LABELS)), 0.8574, atol=5e-5)
