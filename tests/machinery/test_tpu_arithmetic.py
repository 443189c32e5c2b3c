"""The bounds hold in the arithmetic of TPUs, whose operations err by thousands of units.

``pytest --full --tpu v5e-largest`` and the like run any other test in such an arithmetic.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_loss import test_accuracy as accuracy
from one_loss import test_soft_cap as soft_cap

from jxent import _numerics
from jxent._selftest import devices
from jxent._selftest.table import TABLE
from support import tpu

# One worker has all of them, since everything is compiled anew for each arithmetic.
pytestmark = pytest.mark.xdist_group("tpu")

LOSSES = [
    "softmax_cross_entropy_with_integer_labels",
    "softmax_kl_divergence",
    "softmax_focal_loss_with_integer_labels",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "jensen_shannon_divergence",
    "cross_entropy",
]


def sweep(loss):
    """Compares the value and the gradients of a loss with exact arithmetic, on its hard inputs."""
    row = TABLE[loss]
    wanted = "options-0" if row.options else "plain"
    (regime,) = [(arguments, i) for what, arguments, i in accuracy.regimes(row) if what == wanted]
    accuracy.test_accuracy(row, *regime, "float32")


@pytest.fixture(scope="module")
def _v5e():
    with tpu.arithmetic("v5e-drawn"):
        yield


@pytest.mark.usefixtures("_v5e")
@pytest.mark.parametrize("loss", LOSSES)
def test_bounds_hold(loss):
    sweep(loss)


@pytest.mark.usefixtures("_v5e")
def test_soft_cap():
    soft_cap.test_derivatives_of_two_orders("float32")


@pytest.mark.parametrize(("device", "least"), [("v5e", len(LOSSES)), ("v5p", len(LOSSES) - 1)])
def test_bounds_do_not_hold_without_corrections(device, least):
    """Otherwise the arithmetic would prove nothing."""
    failed = []
    with tpu.arithmetic(f"{device}-uncorrected"):
        for loss in LOSSES:
            try:
                sweep(loss)
            except AssertionError:
                failed.append(loss)
    assert len(failed) >= least, failed


@pytest.mark.parametrize("name", tpu.ARITHMETICS)
def test_elementary_functions_err_as_assumed(name):
    """What the bounds are derived from holds for each device, and not without corrections."""
    with tpu.arithmetic(name):
        found = {function: devices.measure(function) for function in devices.ELEMENTARY}
    beyond = {function for function, row in found.items() if row["jxent"] > row["assumed"]}
    if "uncorrected" not in name:
        assert not beyond
    elif "v6e" not in name:
        assert beyond == {"log", "log1p", "tanh", "quotient"}


INSTRUCTIONS = {
    "exp": (jnp.exp, np.exp),
    "exp highest": (_numerics.exp, np.exp),
    "expm1 highest": (_numerics.expm1, np.expm1),
    "log": (jnp.log, np.log),
    "log1p": (jnp.log1p, np.log1p),
    "tanh": (jnp.tanh, np.tanh),
    "logistic": (jax.nn.sigmoid, lambda x: 1 / (1 + np.exp(-x))),
    "reciprocal": (lambda x: 1 / x, lambda x: 1 / x),
}


@pytest.mark.parametrize("kind", ["drawn", "largest"])
def test_instructions_err_as_published(kind):
    x = np.random.default_rng(0).uniform(0.1, 8, 20_000).astype(np.float32)
    with tpu.arithmetic(f"v5e-{kind}"):
        for name, (function, exact) in INSTRUCTIONS.items():
            truth = exact(x.astype(np.float64))
            found = np.asarray(jax.jit(function)(x))
            units = (found - truth) / np.spacing(np.abs(truth).astype(np.float32))
            published = devices.ERRORS[name].v5e
            assert 0.6 * published <= np.max(np.abs(units)) <= published, name
            shares = np.mean(units > 0), np.mean(units < 0)
            assert shares[0] > 0.8 if kind == "largest" else min(shares) > 0.4, name
