"""Against optax: its own tests run on jxent's functions, and its values where they are right."""

import inspect
import re
import unittest
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax.losses
import pytest
from absl.testing import parameterized
from optax.losses import _classification
from optax.losses import _classification_test as optax_tests

import jxent

pytestmark = pytest.mark.peer

SHARED = sorted(name for name in dir(jxent) if hasattr(_classification, name) and name[0] != "_")

# How many tests each class has in optax 0.2.8: a later release may add some.
OPTAX_TESTS = {
    "SoftmaxCrossEntropyTest": 9,
    "SafeSoftmaxCrossEntropyTest": 4,
    "SoftmaxCrossEntropyWithIntegerLabelsTest": 15,
    "SigmoidCrossEntropyTest": 10,
    "PolyLossTest": 25,
    "GeneralizedKLDivergenceTest": 7,
    "KLDivergenceTest": 7,
    "KLDivergenceWithLogTargetsTest": 7,
    "SigmoidFocalLossTest": 9,
}


def _methods(name):
    # The alias that optax deprecates calls its own function, not the one of the module.
    found = unittest.TestLoader().getTestCaseNames(getattr(optax_tests, name))
    return [method for method in found if method != "test_deprecated_alias"]


# The same with other numbers, or what takes long: gradients and Hessians op by op, which others
# compare with the exact ones, and tuples of axes, of which some are compared with optax below.
_ONLY_FULL = re.compile(
    r"[1-9]$|\.test_axes|^\w*SoftmaxCrossEntropy(WithIntegerLabels)?Test\.test_gradient$"
    r"|^SigmoidFocalLossTest\.test_extreme_logits_finite_gradients$"
)


def test_number_of_optax_tests():
    """Nothing that is expected to run has gone from optax."""
    fewer = {n for n, number in OPTAX_TESTS.items() if len(_methods(n)) < number}
    assert not fewer


@pytest.mark.parametrize("name", SHARED)
def test_signature_begins_as_in_optax(name):
    """The arguments of optax come first, with their names, order and defaults."""
    ours, theirs = (
        list(inspect.signature(getattr(library, name)).parameters.values())
        for library in (jxent, optax.losses)
    )
    shared = ours[: len(theirs)]
    assert [(p.name, p.default) for p in shared] == [(p.name, p.default) for p in theirs]
    either, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    assert {p.kind for p in shared} == {either}
    assert {p.kind for p in theirs} <= {either, keyword}
    for extra in ours[len(theirs) :]:
        assert extra.kind is keyword
        assert extra.default is not inspect.Parameter.empty


@pytest.mark.parametrize(
    ("name", "method"),
    [
        pytest.param(
            name, method, marks=pytest.mark.full if _ONLY_FULL.search(f"{name}.{method}") else ()
        )
        for name in OPTAX_TESTS
        for method in _methods(name)
    ],
)
def test_optax_test(name, method, monkeypatch):
    """A test of optax's, in which jxent's functions stand for optax's."""
    calls = Counter()

    def counted(function):
        def call(*args, **kwargs):
            calls[function.__module__] += 1
            return function(*args, **kwargs)

        return call

    for function in SHARED:
        monkeypatch.setattr(_classification, function, counted(getattr(jxent, function)))
    # Its masks are drawn without a seed, and one without any class is an error here.
    np.random.seed(0)
    result = unittest.TestResult()
    getattr(optax_tests, name)(method).run(result)
    assert not result.errors + result.failures, (result.errors + result.failures)[0][1]
    assert (result.testsRun, result.skipped) == (1, [])
    assert calls
    assert all(module.startswith("jxent.") for module in calls)


_rng = np.random.default_rng(0)
Z, W = _rng.normal(size=(2, 6, 4)).astype(np.float32)
P = _rng.dirichlet(np.ones(4), size=6).astype(np.float32)
Y = _rng.integers(4, size=6)
LOG_Q, LOG_P = np.array(jax.nn.log_softmax(Z)), np.array(jax.nn.log_softmax(W))
EXAMPLES = np.array([True, False, True, True, False, True])
CLASSES = np.eye(4, dtype=bool)[Y] | (_rng.random((6, 4)) < 0.5)
CLASSES[0], CLASSES[1] = True, False

# Arguments of moderate size, where optax is right.
SOFT, OF_LOGS = {"logits": Z, "labels": P}, {"log_predictions": LOG_Q, "targets": P}
PLAIN = {
    "softmax_cross_entropy": SOFT,
    "softmax_cross_entropy_with_integer_labels": {"logits": Z, "labels": Y},
    "safe_softmax_cross_entropy": SOFT,
    "poly_loss_cross_entropy": SOFT | {"epsilon": np.float32(1.5)},
    "sigmoid_binary_cross_entropy": SOFT,
    "sigmoid_focal_loss": SOFT | {"alpha": np.float32(0.3), "gamma": np.float32(1.5)},
    "kl_divergence": OF_LOGS,
    "kl_divergence_with_log_targets": {"log_predictions": LOG_Q, "log_targets": LOG_P},
    "generalized_kl_divergence": OF_LOGS,
}
INTEGER = "softmax_cross_entropy_with_integer_labels"
KL = [name for name in PLAIN if "kl" in name]
OF_CLASSES = ["softmax_cross_entropy", "poly_loss_cross_entropy", *KL]
OPTIONS = {
    "no options": PLAIN,
    "an axis": {name: PLAIN[name] | {"axis": 0} for name in OF_CLASSES}
    | {INTEGER: {"logits": Z, "labels": np.array([5, 0, 3, 2]), "axis": 0}},
    "axes": {name: PLAIN[name] | {"axis": (0, 1)} for name in KL}
    | {INTEGER: {"logits": Z.reshape(2, 3, 2, 2), "labels": Y.reshape(2, 3), "axis": (-1, 2)}},
    "a mask of classes": {
        name: PLAIN[name] | {"where": CLASSES} for name in (*OF_CLASSES, INTEGER)
    },
    "a mask of examples": {
        name: PLAIN[name] | {"where": EXAMPLES} for name in (OF_CLASSES[0], INTEGER)
    },
}
"""By what is given beside the arguments."""


def _losses_and_gradients(function, arrays, fixed):
    # Where something is left out, optax's gradient for the labels is NaN.
    unasked = ("labels", "targets", "log_targets") if "where" in arrays else ()
    floats = {
        name: x
        for name, x in arrays.items()
        if jnp.issubdtype(x.dtype, jnp.floating) and name not in unasked
    }
    out, pullback = jax.vjp(lambda floats: function(**(arrays | floats), **fixed), floats)
    return out, pullback(1 + jnp.arange(out.size, dtype=out.dtype).reshape(out.shape))


def _compare(rows, variant):
    """All functions in one program, to the accuracy that optax has itself."""
    fixed = {name: {k: x for k, x in row.items() if k == "axis"} for name, row in rows.items()}
    arrays = {name: {k: x for k, x in row.items() if k != "axis"} for name, row in rows.items()}

    def of_both(arrays):
        return [
            {
                name: _losses_and_gradients(getattr(library, name), arrays[name], fixed[name])
                for name in rows
            }
            for library in (jxent, optax.losses)
        ]

    chex.assert_trees_all_close(*variant(of_both)(arrays), rtol=1e-5, atol=2e-6, strict=True)


class AgainstOptax(chex.TestCase):
    """Values and gradients for everything that is floating-point, options included."""

    def test_every_function_is_there(self):
        """With its arguments."""
        assert PLAIN.keys() == set(SHARED)

    @chex.variants(without_jit=True, with_device=True, without_device=True)
    def test_one_function_op_by_op(self):
        """One of them, as each operation is compiled by itself."""
        _compare({INTEGER: PLAIN[INTEGER]}, self.variant)

    @chex.variants(with_jit=True)
    @parameterized.named_parameters(*OPTIONS.items())
    def test_options(self, rows):
        """Every function, and the options of those that have them."""
        _compare(rows, self.variant)

    @chex.variants(without_jit=True, with_device=True, without_device=True, with_pmap=True)
    @parameterized.named_parameters(*OPTIONS.items())
    @pytest.mark.full
    def test_options_in_every_variant(self, rows):
        """The same in the other ways of chex to call a function."""
        _compare(rows, self.variant)
