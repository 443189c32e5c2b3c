"""The mean of losses."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from support.cases import fast_jit
from support.meshes import BOTH, mesh_of

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


# Kinds of losses and weights, and devices.


def test_truth_values_and_integers():
    """Accuracy, as `chunked` returns it beside losses."""
    is_right = jnp.array([True, False, True, True])
    for losses in (is_right, is_right.astype(jnp.uint8), [1, 0, 1, 1]):
        mean = jxent.weighted_mean(losses, [True, True, True, False])
        chex.assert_trees_all_close(mean, jnp.float32(2 / 3), rtol=1e-6, strict=True)


@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (1, 1)])
def test_weights_that_are_repeated(shape):
    losses, weights = np.float32(_LOSSES), np.float32(_WEIGHTS)[: shape[0], : shape[1]]

    def value_and_gradients(w):
        return jax.value_and_grad(jxent.weighted_mean, (0, 1))(losses, w)

    value, (of_losses, of_weights) = value_and_gradients(weights)
    whole, (exact, of_whole) = value_and_gradients(np.broadcast_to(weights, losses.shape))
    chex.assert_trees_all_close((value, of_losses), (whole, exact), rtol=1e-6, strict=True)
    repeated = tuple(i for i, n in enumerate(shape) if n == 1)
    summed = np.sum(of_whole, axis=repeated, keepdims=True)
    np.testing.assert_allclose(of_weights, np.broadcast_to(summed, shape), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("is_tracked", [True, False])
@pytest.mark.parametrize("axis_name", ["data", ("data",), ("data", "model")])
def test_over_devices(axis_name, is_tracked):
    """The mean of all, where the mean of the devices' means is another number."""
    mesh = mesh_of(*BOTH)
    losses = np.linspace(-1, 2, 16, dtype=np.float32)
    weights = np.arange(16, dtype=np.float32) % 5

    def mean(losses, weights):
        return jxent.weighted_mean(losses, weights, axis_name=axis_name)

    names = ("data", "model") if len(axis_name) == 2 else "data"
    spec = P(names)
    mapped = jax.shard_map(
        mean, mesh=mesh, in_specs=(spec, spec), out_specs=P(), check_vma=is_tracked
    )
    np.testing.assert_allclose(
        jax.jit(mapped)(losses, weights), jxent.weighted_mean(losses, weights), rtol=1e-6
    )
    if is_tracked:
        gradients = jax.jit(jax.grad(mapped, (0, 1)))(losses, weights)
        exact = jax.grad(jxent.weighted_mean, (0, 1))(losses, weights)
        chex.assert_trees_all_close(gradients, exact, rtol=1e-5, atol=1e-7)
        mixed = jax.shard_map(mean, mesh=mesh, in_specs=(spec, P()), out_specs=P())
        few = np.ones(2 if len(names) == 2 else 4, np.float32)
        np.testing.assert_allclose(jax.jit(mixed)(losses, few), np.mean(losses), rtol=1e-6)


def test_over_a_mapped_axis_and_over_none():
    losses = np.float32(_LOSSES)
    mean = functools.partial(jxent.weighted_mean, axis_name="rows")
    means = jax.vmap(mean, axis_name="rows")(losses, np.float32(_WEIGHTS))
    np.testing.assert_allclose(means, [jxent.weighted_mean(losses, _WEIGHTS)] * 2, rtol=1e-6)
    with pytest.raises(ValueError, match=r"^axis_name must name mesh axes of an enclosing"):
        mean(losses)


# The weights of labels.

_OF_CLASSES = np.float32([0.5, 1.0, 2.0, -4.0])


@pytest.mark.parametrize("dtype", [np.int32, np.int8, np.uint8, np.int16])
def test_label_weights(dtype):
    ignored = 255 if dtype == np.uint8 else -100
    labels = np.array([[2, 0, ignored], [3, 4, 1]]).astype(dtype)
    weights = jax.jit(jxent.label_weights, static_argnums=2)(_OF_CLASSES, labels, ignored)
    expected = np.float32([[2, 0.5, 0], [-4, np.nan, 1]])
    chex.assert_trees_all_equal(weights, expected, strict=True)
    assert np.isnan(jxent.label_weights(_OF_CLASSES, labels)[0, 2])
    assert jxent.label_weights([1, 2], 1) == 2


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32, np.float64])
def test_dtypes_of_label_weights(dtype):
    with jax.enable_x64(True):
        weights = jxent.label_weights(_OF_CLASSES.astype(dtype), np.array([2, 1]))
        wanted = np.float64 if dtype == np.float64 else np.float32
        chex.assert_trees_all_equal(weights, np.array([2, 1], wanted), strict=True)
        slope = jax.grad(lambda w: jnp.sum(jxent.label_weights(w, np.array([2, 2]))))
        gradient = slope(jnp.asarray(_OF_CLASSES, dtype))
        chex.assert_trees_all_equal(gradient, np.array([0, 0, 2, 0], dtype), strict=True)


def test_transformations_of_label_weights():
    labels = np.array([[2, 0, -1], [3, 1, -1]])
    function = functools.partial(jxent.label_weights, ignore_index=-1)
    whole = function(_OF_CLASSES, labels)
    chex.assert_trees_all_equal(jax.vmap(function, (None, 0))(_OF_CLASSES, labels), whole)
    _, rows = jax.lax.scan(lambda c, y: (c, function(_OF_CLASSES, y)), 0, labels)
    chex.assert_trees_all_equal(rows, whole)
    jax.test_util.check_grads(lambda w: function(w, labels), (_OF_CLASSES,), order=2, rtol=1e-3)


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("specs", [(P(), P("data")), (P("model"), P("data")), (P("data"), P())])
def test_label_weights_on_a_mesh(specs, axis_type):
    """As in a step of training on the mesh that `jax.make_mesh` makes."""
    mesh = mesh_of(*BOTH, axis_type)
    labels = np.array([3, 0, -1, 2, 1, 4, 3, 3])
    exact = jxent.label_weights(_OF_CLASSES, labels, -1)
    with jax.set_mesh(mesh):
        arrays = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in zip((_OF_CLASSES, labels), specs, strict=True)
        ]

        def total(w, y):
            weights = jxent.label_weights(w, y, -1)
            return jnp.sum(jnp.where(jnp.isnan(weights), 0, weights)), weights

        gradient, weights = jax.jit(jax.grad(total, has_aux=True))(*arrays)
        np.testing.assert_array_equal(weights, exact)
        np.testing.assert_array_equal(gradient, [1, 1, 1, 3])
        if axis_type == AxisType.Explicit:
            assert gradient.sharding.is_equivalent_to(arrays[0].sharding, 1)


def test_label_weights_of_shards_of_the_classes():
    mesh = mesh_of(*BOTH)
    labels = np.array([3, 0, -1, 2, 1, 4, 3, 3])
    function = functools.partial(jxent.label_weights, ignore_index=-1, class_axis_name="model")
    specs = {"in_specs": (P("model"), P("data")), "out_specs": P("data")}
    weights = jax.jit(jax.shard_map(function, mesh=mesh, **specs))(_OF_CLASSES, labels)
    np.testing.assert_array_equal(weights, jxent.label_weights(_OF_CLASSES, labels, -1))
