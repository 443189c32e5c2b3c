"""The linear head at the edges: no features, classes or examples, and arguments that are wrong."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jxent

head = jxent.linear_softmax_cross_entropy


def value_and_gradients(features, classes, examples, **options):
    inputs, kernel = jnp.ones((examples, features)), jnp.ones((features, classes))
    labels = jnp.zeros(examples, jnp.int32)

    def loss(inputs, kernel):
        return jnp.sum(head(inputs, kernel, labels, **options))

    return jax.value_and_grad(loss, (0, 1))(inputs, kernel)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_no_features(reduction, chunk_size):
    """Every logit is 0, and every loss log K."""
    value, gradients = value_and_gradients(0, 5, 3, reduction=reduction, chunk_size=chunk_size)
    np.testing.assert_allclose(value, np.log(5) * (1 if reduction == "mean" else 3), rtol=1e-6)
    assert [x.shape for x in gradients] == [(3, 0), (0, 5)]


def test_no_features_but_a_bias():
    bias = jnp.array([1.0, 2.0, 3.0])
    inputs, kernel, labels = jnp.ones((2, 0)), jnp.ones((0, 3)), jnp.array([0, 2])

    def loss(bias):
        return head(inputs, kernel, labels, bias)

    value, gradient = jax.value_and_grad(loss)(bias)
    expected = jnp.mean(jnp.stack([-jax.nn.log_softmax(bias)[i] for i in (0, 2)]))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    one_hot = np.array([0.5, 0.0, 0.5])
    np.testing.assert_allclose(gradient, jax.nn.softmax(bias) - one_hot, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("features", [0, 4])
def test_no_examples_or_one_class(reduction, features):
    for classes, examples in ((3, 0), (1, 0), (1, 4)):
        value, gradients = value_and_gradients(features, classes, examples, reduction=reduction)
        assert value == 0
        assert all(np.all(x == 0) for x in gradients)


@pytest.mark.parametrize("features", [0, 4])
def test_no_classes(features):
    message = f"kernel must have at least one class, got shape ({features}, 0)"
    with pytest.raises(ValueError, match=re.escape(message)):
        value_and_gradients(features, 0, 3)


@pytest.mark.parametrize("size", [2.0, True, "8", np.float32(4), [4]])
def test_chunk_size_is_no_integer(size):
    message = f"chunk_size must be an integer or None, got {size!r}"
    with pytest.raises(TypeError, match=re.escape(message)):
        value_and_gradients(2, 3, 4, chunk_size=size)


@pytest.mark.parametrize("size", [0, -1])
def test_chunk_size_is_not_positive(size):
    with pytest.raises(ValueError, match=f"chunk_size must be at least 1, got {size}"):
        value_and_gradients(2, 3, 4, chunk_size=size)


def test_chunk_size_of_numpy():
    value, _ = value_and_gradients(2, 3, 4, chunk_size=np.int64(2))
    np.testing.assert_allclose(value, np.log(3), rtol=1e-6)


@pytest.mark.skipif(len(jax.devices()) < 2, reason="needs two devices")
@pytest.mark.parametrize(
    ("name", "inputs_spec", "kernel_spec"),
    [("inputs", P("x", None), P()), ("kernel", P(), P(None, "x")), ("inputs", P(None, "x"), P())],
)
def test_explicitly_sharded_without_a_mesh(name, inputs_spec, kernel_spec):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        inputs = jax.device_put(jnp.ones((4, 2)), inputs_spec)
        kernel = jax.device_put(jnp.ones((2, 6)), kernel_spec)
        with pytest.raises(ValueError, match=f"^{name} is sharded as .* with mesh=$"):
            head(inputs, kernel, jnp.zeros(4, jnp.int32))
