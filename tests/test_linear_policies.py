"""What counts for the loss of a linear head, shapes at the edge, and errors, word for word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from heads import BASE, CLASSES, EXAMPLES, FEATURES, IGNORED, arrays_of_head, floats, fused_head
from tiers import quick

import jxent


def _head(**changes):
    a = {k: jnp.asarray(v) for k, v in arrays_of_head().items()} | changes
    return jxent.linear_softmax_cross_entropy(
        *(a[k] for k in BASE),
        weights=a["weights"],
        ignore_index=IGNORED,
        reduction=a.get("reduction", "mean"),
        chunk_size=8,
    )


@pytest.mark.parametrize("poison", quick([np.nan, np.inf]))
@pytest.mark.parametrize("reduction", quick(["mean", "sum", "none"], "mean", "none"))
def test_what_does_not_count_contributes_nothing(poison, reduction):
    a = {k: jnp.asarray(v, np.float32) for k, v in floats(arrays_of_head()).items()}
    weights = a["weights"].at[5].set(0)

    def gradients(inputs):
        return jax.grad(
            lambda x, w: jnp.sum(_head(inputs=x, kernel=w, weights=weights, reduction=reduction)),
            (0, 1),
        )(inputs, a["kernel"])

    to_inputs, to_kernel = gradients(a["inputs"].at[jnp.array([2, 5, 7])].set(poison))
    clean_inputs, clean_kernel = gradients(a["inputs"])
    # A weight of 0 may have a loss: then other examples are in the same chunk.
    np.testing.assert_allclose(to_kernel, clean_kernel, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(to_inputs, clean_inputs, rtol=1e-5, atol=1e-6)
    assert np.all(np.asarray(to_inputs)[[2, 5, 7]] == 0)


def test_nothing_counts():
    labels = jnp.full(EXAMPLES, IGNORED)
    assert _head(labels=labels) == 0
    gradient = jax.grad(lambda w: _head(labels=labels, kernel=w))(jnp.ones((FEATURES, CLASSES)))
    assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("reduction", quick(["mean", "sum", "none"], "mean", "none"))
@pytest.mark.parametrize("shape", quick([(0,), (2, 0), (2, 3), ()], (2, 0), (2, 3)))
def test_leading_dimensions(shape, reduction):
    x, w = jnp.ones((*shape, FEATURES)), jnp.ones((FEATURES, CLASSES))
    loss = jxent.linear_softmax_cross_entropy(
        x, w, jnp.zeros(shape, int), reduction=reduction, chunk_size=4
    )
    assert loss.shape == (shape if reduction == "none" else ())
    count = {"mean": min(1, np.prod(shape)), "sum": np.prod(shape), "none": 1}[reduction]
    np.testing.assert_allclose(loss, count * np.log(CLASSES), rtol=1e-6)


def test_out_of_range_and_masked_labels():
    x, w = jnp.ones((3, FEATURES)), jnp.ones((FEATURES, CLASSES))
    losses = jxent.linear_softmax_cross_entropy(
        x, w, [0, 1, CLASSES], class_mask=np.arange(CLASSES) > 0, reduction="none", chunk_size=2
    )
    np.testing.assert_allclose(losses, [np.inf, np.log(CLASSES - 1), np.nan], rtol=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_an_impossible_label_without_weight(reduction):
    """It costs nothing, and its weight has no infinite gradient."""
    x, w = jnp.ones((2, FEATURES)), jnp.ones((FEATURES, CLASSES))

    def total(weights):
        losses = jxent.linear_softmax_cross_entropy(
            x, w, [0, 1], weights=weights, class_mask=np.arange(CLASSES) > 0, reduction=reduction
        )
        return jnp.sum(losses)

    value, gradient = jax.value_and_grad(total)(jnp.array([0.0, 2.0]))
    np.testing.assert_allclose(value, 2 * np.log(CLASSES - 1), rtol=1e-6)
    np.testing.assert_allclose(gradient, [0.0, np.log(CLASSES - 1)], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"kernel": np.ones((5, CLASSES), np.float32)},
            ValueError,
            "inputs and kernel must have the shapes [..., features] and [features, classes],"
            f" got ({EXAMPLES}, {FEATURES}) and (5, {CLASSES})",
        ),
        (
            {"reduction": "average"},
            ValueError,
            "reduction must be 'mean', 'sum' or 'none', got 'average'",
        ),
        (
            {"labels": np.zeros(3, np.int32)},
            ValueError,
            f"labels must have the shape of the examples of inputs @ kernel ({EXAMPLES},)"
            " or be a scalar, got shape (3,)",
        ),
        (
            {"weights": np.ones((EXAMPLES, 1), np.float32)},
            ValueError,
            f"weights must have the shape of the examples ({EXAMPLES},) or be a scalar,"
            f" got shape ({EXAMPLES}, 1)",
        ),
        (
            {"inputs": np.ones((EXAMPLES, FEATURES), np.int32)},
            TypeError,
            "inputs must have a floating-point dtype, got int32",
        ),
    ],
)
def test_mistakes(changes, error, message):
    with pytest.raises(error) as caught:
        _head(**changes)
    assert str(caught.value) == message


@pytest.mark.parametrize("padding", quick([np.nan, np.inf, 7.0]))
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_padded_table_is_as_good_as_the_table(padding, reduction):
    inputs, kernel, labels = (jnp.asarray(arrays_of_head()[k]) for k in BASE)

    def value_and_gradients(kernel, **options):
        def total(inputs, kernel):
            losses = fused_head(inputs, kernel, labels, reduction=reduction, **options)
            return jnp.sum(losses)

        value, (to_inputs, to_kernel) = jax.value_and_grad(total, (0, 1))(inputs, kernel)
        return value, to_inputs, to_kernel[:, :CLASSES], to_kernel[:, CLASSES:]

    table = jnp.pad(kernel, ((0, 0), (0, 7)), constant_values=padding)
    mask = np.arange(CLASSES + 7) < CLASSES
    *results, of_padding = value_and_gradients(table, class_mask=mask, chunk_size=8)
    *expected, _ = value_and_gradients(kernel, chunk_size=8)
    for x, y in zip(results, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(of_padding, 0.0)
