"""The mean of losses."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import fast_jit

_LOSSES = [[0.5, 2.0, 0.25], [1.5, 0.125, 3.0]]
_WEIGHTS = [[1.0, 0.5, 2.0], [0.25, 0.0, 0.75]]


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 1), (1,), ()])
def test_against_numpy(axis):
    """With weights, and without, where it is the mean."""
    given = () if axis == () else axis
    expected = np.sum(np.multiply(_LOSSES, _WEIGHTS), given) / np.sum(_WEIGHTS, given).clip(1e-9)

    @fast_jit
    def means(x, w):
        return jxent.weighted_mean(x, w, axis), jxent.weighted_mean(x, axis=axis)

    results = means(np.float32(_LOSSES), np.float32(_WEIGHTS))
    exact = np.float32(expected), np.float32(np.mean(_LOSSES, given))
    chex.assert_trees_all_close(results, exact, rtol=1e-6, strict=True)


def test_weights_without_scale():
    x, w = jnp.array(_LOSSES), jnp.array(_WEIGHTS)
    mean = jax.jit(jxent.weighted_mean)
    means = mean(x, 64 * w), mean(x, 1e-30 * w), mean(x, w)
    chex.assert_trees_all_close(*means, rtol=1e-6, strict=True)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_weightless_loss_contributes_nothing(loss):
    losses, weights = jnp.array(_LOSSES), jnp.array(_WEIGHTS)
    compiled = jax.jit(jax.value_and_grad(jxent.weighted_mean, (0, 1)))
    value, (gradient, of_weights) = compiled(losses.at[1, 1].set(loss), weights)
    right, (right_gradient, _) = compiled(losses, weights)
    chex.assert_trees_all_close((value, gradient), (right, right_gradient), rtol=1e-6, strict=True)
    assert gradient[1, 1] == 0
    chex.assert_tree_all_finite(np.delete(np.ravel(of_weights), 4))


def test_the_gradient_of_a_weight_of_zero():
    """``(loss - mean) / sum``, as of any other weight."""
    losses, weights = jnp.array(_LOSSES), jnp.array(_WEIGHTS)
    gradient = jax.grad(lambda w: jxent.weighted_mean(losses, w))(weights)
    mean = np.sum(np.multiply(_LOSSES, _WEIGHTS)) / np.sum(_WEIGHTS)
    np.testing.assert_allclose(gradient, (losses - mean) / np.sum(_WEIGHTS), rtol=1e-6)


def test_a_loss_with_weight_does_contribute():
    assert jnp.isnan(jxent.weighted_mean([1.0, math.nan], [1.0, 1e-30]))
    assert jxent.weighted_mean([1.0, math.inf], [1.0, 1.0]) == math.inf


def test_a_negative_weight_that_is_traced():
    """It cannot raise: the mean of its row is NaN, and so is what is differentiated."""
    weights = np.array([[1.0, -0.5, 2.0], [0.25, 0.0, 0.75]], np.float32)

    def means(x, w):
        mean = jxent.weighted_mean(x, w, axis=1)
        return jnp.sum(mean), mean

    gradients, mean = jax.jit(jax.grad(means, (0, 1), has_aux=True))(jnp.array(_LOSSES), weights)
    np.testing.assert_array_equal(np.isnan(mean), [True, False])
    for gradient in gradients:
        np.testing.assert_array_equal(np.isnan(gradient), [[True] * 3, [False] * 3])


@pytest.mark.parametrize("weights", [[True, False, True], [1, 0, 1], [1.0, 0.0, 1.0]])
def test_kinds_of_weights(weights):
    mean = jxent.weighted_mean([1.0, 5.0, 3.0], weights)
    chex.assert_trees_all_equal(mean, jnp.float32(2), strict=True)


@pytest.mark.parametrize("weights", [None, 0.0, []])
def test_no_losses_at_all(weights):
    assert jxent.weighted_mean(jnp.zeros(0), weights) == 0


def test_one_empty_row_beside_a_full_one():
    mean = jxent.weighted_mean([[1.0, 3.0], [2.0, 2.0]], [[1.0, 1.0], [0.0, 0.0]], axis=1)
    np.testing.assert_array_equal(mean, [2.0, 0.0])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_accumulates_in_float32(dtype):
    """The sum of so many would stop growing, or overflow, in half precision."""
    mean = jax.jit(jxent.weighted_mean)(jnp.full(100_000, 1.5, dtype))
    chex.assert_trees_all_close(mean, jnp.float32(1.5), rtol=1e-6, strict=True)


def test_class_weights_and_ignored_labels_as_in_pytorch():
    """The denominator is the sum of the labels' weights: PyTorch's mean."""
    logits = jnp.array([[2.0, 0.0, 1.0], [0.5, 1.5, -1.0], [0.0, 0.0, 0.0]])
    labels, weights = jnp.array([0, 1, -100]), jnp.array([1.0, 3.0, 5.0])
    losses = jxent.softmax_cross_entropy_with_integer_labels(
        logits, labels, class_weights=weights, ignore_index=-100
    )
    of_examples = jnp.where(labels >= 0, weights[labels], 0.0)
    plain = -jax.nn.log_softmax(logits)[jnp.arange(2), labels[:2]]
    expected = (plain[0] + 3 * plain[1]) / 4
    # The losses have their weights already, so the mean is a sum over the sum of the weights.
    mean = jxent.weighted_mean(losses / jnp.where(of_examples > 0, of_examples, 1.0), of_examples)
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
