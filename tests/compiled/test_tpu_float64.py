"""What the compiler for TPUs, which emulates float64, lacks for it."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from jxent._numerics import _power_of_two, power_of_two
from support.cases import BARE


def test_no_precision_is_reduced():
    """XLA has no `reduce_precision` for a TPU's float64. Nothing is compiled here."""
    with jax.enable_x64(True):
        for case in BARE:
            args = [_double(x) for x in case.args()]
            total = lambda *args, case=case: case.call(*args).sum()  # noqa: E731
            traced = jax.jit(jax.value_and_grad(total, case.differentiable)).trace(*args)
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


def _double(x):
    is_number = jnp.issubdtype(x.dtype, jnp.floating)
    return jax.ShapeDtypeStruct(x.shape, "float64" if is_number else x.dtype)
