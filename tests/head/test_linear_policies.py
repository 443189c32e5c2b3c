"""What counts for the loss of a linear head, shapes at the edge, and errors, word for word."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import fast_jit
from support.heads import (
    BASE,
    CLASSES,
    EXAMPLES,
    FEATURES,
    IGNORED,
    arrays_of_head,
    floats,
    fused_head,
)
from support.tiers import quick


def _head(**changes):
    a = arrays_of_head() | changes
    return jxent.linear_softmax_cross_entropy(
        *(a[k] for k in BASE),
        weights=a["weights"],
        ignore_index=IGNORED,
        reduction=a.get("reduction", "mean"),
        chunk_size=8,
    )


@pytest.mark.parametrize("reduction", quick(["none", "mean"]))
def test_what_does_not_count_contributes_nothing(reduction):
    a = {k: np.asarray(v, np.float32) for k, v in floats(arrays_of_head()).items()}
    a["inputs"], labels = a["inputs"][:16], arrays_of_head()["labels"][:16]
    weights = np.where(np.arange(16) == 5, 0, a["weights"][:16])

    @fast_jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradients(x, w):
        changes = {"inputs": x, "kernel": w, "labels": labels, "weights": weights}
        return jnp.sum(_head(**changes, reduction=reduction))

    clean_inputs, clean_kernel = gradients(a["inputs"], a["kernel"])
    for poison in (np.nan, np.inf):
        poisoned = a["inputs"].copy()
        poisoned[[2, 5, 7]] = poison
        to_inputs, to_kernel = gradients(poisoned, a["kernel"])
        # A weight of 0 may have a loss: then other examples are in the same chunk.
        np.testing.assert_allclose(to_kernel, clean_kernel, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(to_inputs, clean_inputs, rtol=1e-5, atol=1e-6)
        assert np.all(np.asarray(to_inputs)[[2, 5, 7]] == 0)


def test_nothing_counts():
    def loss(w):
        return _head(labels=np.full(EXAMPLES, IGNORED), kernel=w)

    value, gradient = fast_jit(jax.value_and_grad(loss))(np.ones((FEATURES, CLASSES), np.float32))
    assert value == 0
    assert np.all(np.asarray(gradient) == 0)


@pytest.mark.parametrize("reduction", quick(["none", "sum"]))
def test_leading_dimensions(reduction):
    w, shapes = np.ones((FEATURES, CLASSES), np.float32), [(2, 3), ()]

    def loss(x):
        return jxent.linear_softmax_cross_entropy(
            x, w, np.zeros(x.shape[:-1], int), reduction=reduction, chunk_size=4
        )

    inputs = [np.ones((*shape, FEATURES), np.float32) for shape in shapes]
    for shape, losses in zip(shapes, fast_jit(lambda xs: list(map(loss, xs)))(inputs), strict=True):
        assert losses.shape == (shape if reduction == "none" else ())
        count = np.prod(shape) if reduction == "sum" else 1
        np.testing.assert_allclose(losses, count * np.log(CLASSES), rtol=1e-6)


def test_out_of_range_and_masked_labels():
    x, w = np.ones((3, FEATURES), np.float32), np.ones((FEATURES, CLASSES), np.float32)
    loss = functools.partial(
        jxent.linear_softmax_cross_entropy,
        class_mask=np.arange(CLASSES) > 0,
        reduction="none",
        chunk_size=2,
    )
    losses = fast_jit(loss)(x, w, np.array([0, 1, CLASSES]))
    np.testing.assert_allclose(losses, [np.inf, np.log(CLASSES - 1), np.nan], rtol=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_an_impossible_label_without_weight(reduction):
    """It costs nothing, and its weight has no infinite gradient."""
    x, w = np.ones((2, FEATURES), np.float32), np.ones((FEATURES, CLASSES), np.float32)

    def total(weights):
        losses = jxent.linear_softmax_cross_entropy(
            x, w, [0, 1], weights=weights, class_mask=np.arange(CLASSES) > 0, reduction=reduction
        )
        return jnp.sum(losses)

    value, gradient = fast_jit(jax.value_and_grad(total))(np.float32([0, 2]))
    np.testing.assert_allclose(value, 2 * np.log(CLASSES - 1), rtol=1e-6)
    np.testing.assert_allclose(gradient, [0.0, np.log(CLASSES - 1)], rtol=1e-6)


def test_labels_of_8_bits_beside_300_classes():
    """They are numbers of classes as any others, and 44 is not 300."""
    rng, labels = np.random.default_rng(0), np.array([0, 44, 250, 255])
    x, w = (rng.normal(size=size).astype(np.float32) for size in ((4, 3), (3, 300)))
    log_p = np.log(np.float32([[0.5, 0.25]] * 4))

    @fast_jit
    def losses(labels):
        indices = jnp.stack([labels, jnp.full_like(labels, 7)], axis=-1)
        divergence = jxent.chunked(jxent.softmax_kl_divergence_with_top_k_targets, chunk_size=2)
        return divergence(jxent.LinearLogits(x, w), indices, log_p), [
            jxent.linear_softmax_cross_entropy(
                x, w, labels, ignore_index=ignored, class_weights=np.linspace(1, 2, 300),
                reduction="none", chunk_size=2,
            )
            for ignored in (255, 300)
        ]  # fmt: skip

    results, expected = (losses(labels.astype(dtype)) for dtype in (np.uint8, np.int32))
    for got, exact in zip(jax.tree.leaves(results), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, exact, rtol=1e-6)
        assert np.all(np.isfinite(got))
    assert results[1][0][3] == 0
    assert results[1][1][3] > 0


def test_a_negative_weight_that_is_traced():
    """It cannot raise: a mean is NaN with its gradients, unless the weight does not count."""
    x, w = np.ones((4, FEATURES), np.float32), np.ones((FEATURES, CLASSES), np.float32)
    labels, mask = np.array([0, IGNORED, 1, 2]), np.arange(CLASSES) != 5

    def of_head(x, w, weights, class_weights):
        return jxent.linear_softmax_cross_entropy(
            x, w, labels, weights=weights, class_weights=class_weights, class_mask=mask,
            ignore_index=IGNORED, chunk_size=2,
        )  # fmt: skip

    def of_policy(x, w, weights, _):
        policy = jxent.chunked(jxent.softmax_entropy, reduction="mean", chunk_size=2)
        return policy(jxent.LinearLogits(x, w), weights=weights, where=labels != IGNORED)

    @fast_jit
    def program(*args):
        results = [jax.value_and_grad(f, (0, 1))(*args) for f in (of_head, of_policy)]
        return [(value, to_x, to_w[:, mask]) for value, (to_x, to_w) in results]

    ones, of_classes = np.ones(4, np.float32), np.ones(CLASSES, np.float32)
    for example, number, expected in [
        (0, None, [True, True]),
        (1, None, [False, False]),
        (None, 3, [True, False]),
        (None, 5, [False, False]),
    ]:
        weights, class_weights = ones.copy(), of_classes.copy()
        weights[[] if example is None else example] = -1
        class_weights[[] if number is None else number] = -1
        for results, is_nan in zip(program(x, w, weights, class_weights), expected, strict=True):
            for got in results:
                assert np.all(np.isnan(got)) if is_nan else np.all(np.isfinite(got))


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


@pytest.mark.parametrize("reduction", quick(["mean", "none"]))
def test_a_padded_table_is_as_good_as_the_table(reduction):
    inputs, kernel, labels = (arrays_of_head()[k] for k in BASE)
    inputs, labels = inputs[:16], labels[:16]
    mask = np.arange(CLASSES + 7) < CLASSES

    def value_and_gradients(inputs, kernel, **options):
        def total(inputs, kernel):
            return jnp.sum(
                fused_head(inputs, kernel, labels, reduction=reduction, chunk_size=8, **options)
            )

        value, (to_inputs, to_kernel) = jax.value_and_grad(total, (0, 1))(inputs, kernel)
        return value, to_inputs, to_kernel[:, :CLASSES], to_kernel[:, CLASSES:]

    @fast_jit
    def both(inputs, table):
        kernel = table[:, :CLASSES]
        padded = value_and_gradients(inputs, table, class_mask=mask)
        return padded, value_and_gradients(inputs, kernel)

    for padding in (np.nan, np.inf, 7.0):
        table = np.pad(kernel, ((0, 0), (0, 7)), constant_values=padding)
        (*results, of_padding), (*expected, _) = both(inputs, table)
        for x, y in zip(results, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(of_padding, 0.0)
