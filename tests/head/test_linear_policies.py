"""What counts for the loss of a linear head, shapes at the edge, and errors, word for word."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from support.cases import fast_jit
from support.heads import (
    BASE,
    CLASSES,
    EXAMPLES,
    FEATURES,
    IGNORED,
    arrays_of_head,
)
from support.meshes import BOTH, mesh_of
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
        chex.assert_shape(losses, shape if reduction == "none" else ())
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
    chex.assert_tree_all_finite(results)
    chex.assert_trees_all_close(results, expected, rtol=1e-6, strict=True)
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


# Empty sizes, and arguments that are mistaken.

REDUCTIONS = ("mean", "sum", "none")


# The examples, the features and the classes.
EMPTY = [((5,), 0, 7), ((0,), 3, 7), ((2, 0), 3, 7), ((0,), 0, 7), ((5,), 0, 1), ((0,), 3, 1)]


def test_empty_sizes():
    """No feature makes every logit its bias, no example no loss; the gradients have the shapes."""
    # Each reduction with and without options.
    cases = [(*sizes, i % 2 == 0, REDUCTIONS[i % 3]) for i, sizes in enumerate(EMPTY)]

    def bias_of(classes):
        return np.linspace(-1, 2, classes, dtype=np.float32)

    def value_and_gradients(case, floats):
        examples, _, _, is_bare, reduction = case

        def loss(x, w, bias):
            options = {} if is_bare else {"bias": bias, "weights": np.full(examples, 2, "f")}
            losses = jxent.linear_softmax_cross_entropy(
                x, w, np.zeros(examples, int), **options, reduction=reduction, chunk_size=2
            )
            return jnp.sum(losses), losses

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*floats)

    floats = [
        (np.ones((*examples, features), "f"), np.ones((features, classes), "f"), bias_of(classes))
        for examples, features, classes, *_ in cases
    ]
    results = fast_jit(lambda floats: list(map(value_and_gradients, cases, floats)))(floats)
    for case, ((_, losses), (to_x, to_w, to_bias)) in zip(cases, results, strict=True):
        examples, features, classes, is_bare, reduction = case
        logits = np.zeros(classes) if is_bare else bias_of(classes).astype(np.float64)
        each = np.log(np.sum(np.exp(logits - logits[0])))
        number, weight = np.prod(examples), 1 if is_bare else 2
        total = {"mean": each * (number > 0), "sum": weight * number * each, "none": weight * each}
        chex.assert_shape(losses, examples if reduction == "none" else ())
        right = np.full(losses.shape, total[reduction])
        np.testing.assert_allclose(losses, right, rtol=1e-6, err_msg=str(case))
        chex.assert_shape([to_x, to_w], [(*examples, features), (features, classes)])
        assert not np.any(to_w), case
        p = np.exp(logits) / np.sum(np.exp(logits)) - (np.arange(classes) == 0)
        share = number > 0 if reduction == "mean" else weight * number
        right = 0 if is_bare else share * p
        np.testing.assert_allclose(to_bias, right, atol=0 if is_bare else 1e-6, err_msg=str(case))


def test_one_class_is_certain():
    """Its loss is the z-loss alone, whatever the logit."""
    x, w = np.float32([[1.0], [30.0]]), np.float32([[2.0]])

    def loss(w):
        return jnp.sum(
            jxent.linear_softmax_cross_entropy(
                x, w, [0, 0], z_loss=0.25, label_smoothing=0.5, reduction="none", chunk_size=1
            )
        )

    value, gradient = fast_jit(jax.value_and_grad(loss))(w)
    np.testing.assert_allclose(value, 0.25 * (4 + 3600))
    np.testing.assert_allclose(gradient, [[0.5 * (1 * 2 + 30 * 60)]], rtol=1e-6)


def arguments(**changes):
    arrays = {name: jnp.asarray(arrays_of_head()[name]) for name in BASE}
    return {"ignore_index": IGNORED} | arrays | changes


def test_chunk_size_of_any_integer_type():
    """They make the same program."""

    def lowered(size):
        options = arguments(chunk_size=size)
        return jax.jit(lambda: jxent.linear_softmax_cross_entropy(**options)).lower().as_text()

    sizes = (8, np.uint8(8), jnp.array(8))
    assert len(set(map(lowered, sizes))) == 1
    assert lowered(8) != lowered(9)


def test_explicitly_sharded_examples_need_a_mesh():
    mesh = mesh_of(*BOTH, AxisType.Explicit)
    args = {
        "inputs": np.ones((8, 2), "f"),
        "kernel": np.ones((2, 3), "f"),
        "labels": np.zeros(8, int),
        "weights": np.ones(8, "f"),
    }
    specs = [
        ("inputs", P("data", None)),
        ("inputs", P(None, "model")),
        ("labels", P("data")),
        ("weights", P("data")),
    ]
    loss = jxent.linear_softmax_cross_entropy
    with jax.set_mesh(mesh):
        sharded = [
            args | {name: jax.device_put(args[name], NamedSharding(mesh, spec))}
            for name, spec in specs
        ]
        for (name, spec), some in zip(specs, sharded, strict=True):
            message = (
                f"{name} must not be sharded explicitly without mesh=, the mesh to compute on,"
                f" got {spec}"
            )
            for chunk_size in (None, 2):
                with pytest.raises(ValueError, match=re.escape(message)):
                    loss(**some, chunk_size=chunk_size)
        _, by_feature, labels, weights = sharded
        by_example = sharded[0] | {"labels": labels["labels"], "weights": weights["weights"]}
        losses = fast_jit(lambda *given: [loss(**some, mesh=mesh, chunk_size=2) for some in given])(
            by_example, by_feature
        )
    np.testing.assert_allclose(losses, np.log(3), rtol=1e-6)
