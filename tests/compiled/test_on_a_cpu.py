"""What a CPU shows: its memory, and programs for a TPU, whose float64 is an emulation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxent import softmax_cross_entropy_with_integer_labels
from jxent._numerics import _power_of_two, power_of_two
from support.cases import BARE, fast_jit
from support.tiers import quick


# An unrolled reduction, slices, and blocks whose number divides the classes or does not.
@pytest.mark.aot
@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="XLA of JAX 0.12 is promised")
@pytest.mark.parametrize("classes", quick([10, 151, 1024, 32003, 32768], 10, 151, 1024, 32003))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exponentials_are_not_written(classes, dtype):
    def loss(z, labels):
        return softmax_cross_entropy_with_integer_labels(z, labels).mean()

    def masked(z, labels):
        return softmax_cross_entropy_with_integer_labels(z, labels, ignore_index=-100)

    z = jax.ShapeDtypeStruct((2**22 // classes, classes), dtype)
    labels = jax.ShapeDtypeStruct(z.shape[:1], "int32")
    # Some numbers for each row, and half a byte for each logit.
    allowed = 64 * z.shape[0] + z.size // 2
    for function in loss, jax.value_and_grad(loss), masked:
        found = fast_jit(function).lower(z, labels).compile().memory_analysis()
        assert found.temp_size_in_bytes <= allowed


def test_no_precision_is_reduced():
    """XLA has no `reduce_precision` for the float64 of a TPU, which emulates it."""

    def double(x):
        is_number = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(x.shape, "float64" if is_number else x.dtype)

    with jax.enable_x64(True):
        for case in BARE:
            total = lambda *args, case=case: case.call(*args).sum()  # noqa: E731
            gradients = jax.jit(jax.value_and_grad(total, case.differentiable))
            traced = gradients.trace(*map(double, case.args()))
            text = traced.lower(lowering_platforms=("tpu",)).as_text()
            assert "f64" in text
            assert not re.search(r"reduce_precision .*xf64|reduce_precision .*<f64", text), case


def test_a_power_of_two_is_exact():
    """Also by way of float32, within its range, and beside the powers themselves."""
    exact = 2.0 ** np.arange(-120, 121)
    with jax.enable_x64(True):
        for x in (np.nextafter(exact, 0), exact, np.nextafter(exact, np.inf), 1.4 * exact):
            expected = 2.0 ** np.ceil(np.log2(x.astype(np.longdouble)))
            assert np.array_equal(power_of_two(jnp.asarray(x)), expected)
            assert np.array_equal(_power_of_two(jnp.asarray(x), np.float32), expected)
