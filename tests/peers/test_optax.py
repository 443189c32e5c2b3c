"""Against optax: its own tests run on jxent's functions, and its values where they are right."""

import inspect
import re
import unittest
from collections import Counter
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from optax.losses import _classification
from optax.losses import _classification_test as optax_tests

import jxent
from support.cases import fast_jit

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


def test_names():
    """The functions that both libraries have."""
    assert SHARED == [
        "generalized_kl_divergence",
        "kl_divergence",
        "kl_divergence_with_log_targets",
        "poly_loss_cross_entropy",
        "safe_softmax_cross_entropy",
        "sigmoid_binary_cross_entropy",
        "sigmoid_focal_loss",
        "softmax_cross_entropy",
        "softmax_cross_entropy_with_integer_labels",
    ]


@pytest.mark.parametrize("name", SHARED)
def test_signature(name):
    """The same arguments in the same order, with the same defaults; more are keyword-only."""
    ours = inspect.signature(getattr(jxent, name)).parameters.values()
    theirs = inspect.signature(getattr(_classification, name)).parameters.values()
    extra = [p for p in ours if p.kind is p.KEYWORD_ONLY]
    assert [(p.name, p.default) for p in ours if p not in extra] == [
        (p.name, p.default) for p in theirs
    ]


def _methods(name):
    # The alias that optax deprecates calls its own function, not the one of the module.
    found = unittest.TestLoader().getTestCaseNames(getattr(optax_tests, name))
    return [method for method in found if method != "test_deprecated_alias"]


# Another size or axis, or what takes long: gradients and Hessians op by op, which other tests
# compare with the exact ones, and tuples of axes, of which one is compared with optax below.
_ONLY_FULL = re.compile(
    r"\.test_(mask|axis|equals_to_cross_entropy_when_eps0)[1-9]$|\.test_axes"
    r"|^SoftmaxCrossEntropy(WithIntegerLabels)?Test\.test_gradient$"
    r"|^SigmoidFocalLossTest\.test_extreme_logits_finite_gradients$"
)


@pytest.mark.parametrize("name", OPTAX_TESTS)
def test_number_of_optax_tests(name):
    """Nothing that is expected to run has gone from optax."""
    assert len(_methods(name)) >= OPTAX_TESTS[name]


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
PLAIN = {
    "softmax_cross_entropy": ((Z, P), {}),
    "softmax_cross_entropy_with_integer_labels": ((Z, Y), {}),
    "safe_softmax_cross_entropy": ((Z, P), {}),
    "poly_loss_cross_entropy": ((Z, P), {"epsilon": 1.5}),
    "sigmoid_binary_cross_entropy": ((Z, P), {}),
    "sigmoid_focal_loss": ((Z, P), {"alpha": 0.3, "gamma": 1.5}),
    "kl_divergence": ((LOG_Q, P), {}),
    "kl_divergence_with_log_targets": ((LOG_Q, LOG_P), {}),
    "generalized_kl_divergence": ((LOG_Q, P), {}),
}
SOFT = ("softmax_cross_entropy", "poly_loss_cross_entropy")
KL = ("kl_divergence", "kl_divergence_with_log_targets", "generalized_kl_divergence")
INTEGER = "softmax_cross_entropy_with_integer_labels"
WITH_OPTIONS = {
    "axis": [(name, PLAIN[name][0], {"axis": 0}) for name in (*SOFT, *KL)],
    "integer_axis": [(INTEGER, (Z, np.array([5, 0, 3, 2])), {"axis": 0})],
    "axes": [(name, PLAIN[name][0], {"axis": (0, 1)}) for name in KL],
    "integer_axes": [(INTEGER, (Z.reshape(2, 3, 2, 2), Y.reshape(2, 3)), {"axis": (-1, 2)})],
    "classes": [(name, PLAIN[name][0], {"where": CLASSES}) for name in (*SOFT, INTEGER, *KL)],
    "examples": [(name, PLAIN[name][0], {"where": EXAMPLES}) for name in (SOFT[0], INTEGER)],
}


def _compare(name, args, options, compiled=fast_jit):
    """Values and gradients, to the accuracy that optax has itself."""

    def losses_and_gradients(function, args, traced):
        floats = [i for i, x in enumerate(args) if np.issubdtype(x.dtype, np.floating)]
        # Where something is left out, optax's gradient for the labels there is NaN.
        floats = floats[:1] if "where" in options else floats
        fixed = {key: value for key, value in options.items() if key not in traced}

        def losses(floating, traced):
            given = list(args)
            for i, x in zip(floats, floating, strict=True):
                given[i] = x
            return function(*given, **traced, **fixed)

        out, pullback = jax.vjp(losses, [args[i] for i in floats], traced)
        return out, pullback(1 + jnp.arange(out.size, dtype=out.dtype).reshape(out.shape))

    ours = compiled(partial(losses_and_gradients, getattr(jxent, name)))
    theirs = fast_jit(partial(losses_and_gradients, getattr(_classification, name)))
    traced = {key: np.float32(x) for key, x in options.items() if isinstance(x, float)}
    chex.assert_trees_all_close(
        ours(args, traced), theirs(args, traced), rtol=1e-5, atol=2e-6, strict=True
    )


@pytest.mark.parametrize("name", PLAIN)
def test_against_optax(name):
    """Every function."""
    _compare(name, *PLAIN[name])


@pytest.mark.parametrize(
    ("name", "args", "options"),
    [
        # The last function of each option is in the quick tier.
        pytest.param(*row, id=f"{kind}-{row[0]}", marks=() if row is rows[-1] else pytest.mark.full)
        for kind, rows in WITH_OPTIONS.items()
        for row in rows
    ],
)
def test_options_against_optax(name, args, options):
    """The options of the functions that have them."""
    _compare(name, args, options)


@pytest.mark.full
class AgainstOptaxInEveryVariant(chex.TestCase):
    """The same with chex's ways to call a function."""

    @chex.variants(without_jit=True, with_pmap=True)
    @parameterized.parameters(*PLAIN)
    def test_against_optax(self, name):
        """Every function."""
        _compare(name, *PLAIN[name], compiled=self.variant)
