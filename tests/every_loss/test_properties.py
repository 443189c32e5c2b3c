"""What holds for all arguments: symmetries, and what is never negative."""

import chex
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from support.cases import BARE, INTEGERS, compiled, cotangent_of

_SHAPE = (2, 3)
_FEW = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    # Compilation counts as slow generation, and jitted functions are shared on purpose.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)

_NO_LOSSES = ("logsumexp", "softmax", "log_softmax")
_LOSSES = [case for case in BARE if case.has_classes and case.name not in _NO_LOSSES]
_OF_LOGITS = [c for c in _LOSSES if c.kinds[0] == "logits"]
_NEVER_NEGATIVE = [
    c for c in BARE if c.name not in ("logsumexp", "log_softmax", "kl_divergence",
    "kl_divergence_with_log_targets", "relative_entropy", "weighted_mean", "cross_entropy",
    "negative_log_likelihood", "cross_entropy_with_integer_labels", "entropy",
    "softmax_log_ratio_with_integer_labels")
]  # fmt: skip

_LOGITS = st.one_of(
    st.floats(-100, 100, width=32),
    st.floats(-2, 2, width=32),
    st.sampled_from([0.0, -1e4, 1e4, 1e-30, 1e8, -1e8, -np.inf]),
)
_POSITIVE = st.one_of(st.floats(2**-10, 1, width=32), st.sampled_from([2**-100, 2**-24, 1.0]))


def _array(elements, shape=_SHAPE):
    return arrays.arrays(np.float32, shape, elements=elements)


_FINITE = _array(_LOGITS.filter(np.isfinite))
_PROBABILITIES = _array(_POSITIVE)
_KINDS = dict.fromkeys(("logits", "target_logits", "losses"), _FINITE)
_KINDS |= dict.fromkeys(("distributions", "predictions", "weights"), _PROBABILITIES)
_KINDS |= dict.fromkeys(("log_predictions", "log_distributions"), _PROBABILITIES.map(np.log))
_KINDS |= {
    "labels": arrays.arrays(np.int32, 2, elements=st.integers(0, 2)),
    "target_indices": st.permutations(range(3)).map(lambda x: np.int32([x[:2], x[1:]])),
    "target_log_probs": _array(_POSITIVE, (2, 2)).map(lambda p: np.log(p / 2)),
    "inputs": _array(st.floats(-100, 100, width=32), (2, 2)),
    "kernel": _array(st.floats(-100, 100, width=32), (2, 3)),
}


def every(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def _arguments(case):
    return st.tuples(*(_KINDS[kind] for kind in case.kinds))


def _run(case, args):
    """The result, and the gradients of its sum."""
    ones = np.ones_like(cotangent_of(case))
    result, *gradients = map(np.asarray, compiled(case)(ones, *args))
    return result, gradients


def _assert_same(actual, expected, scale=1.0):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.full
@every(_LOSSES)
@_FEW
@given(data=st.data())
def test_permuted_classes(case, data):
    """The loss does not depend on the order of the classes, and its gradient moves along."""
    args = data.draw(_arguments(case))
    order = np.array(data.draw(st.permutations(range(3))))
    place = np.argsort(order)

    def permuted(kind, x):
        return x if kind == "target_log_probs" else x[:, order]

    moved = [
        place[x].astype(np.int32) if kind in INTEGERS else permuted(kind, x)
        for kind, x in zip(case.kinds, args, strict=True)
    ]
    loss, gradients = _run(case, args)
    moved_loss, moved_gradients = _run(case, moved)
    _assert_same(moved_loss, loss)
    kinds = [kind for kind in case.kinds if kind not in INTEGERS]
    for kind, g, h in zip(kinds, gradients, moved_gradients, strict=True):
        scale = 1 + np.max(np.abs(g), initial=0, where=np.isfinite(g))
        _assert_same(h, permuted(kind, g), scale)


@pytest.mark.full
@every(_OF_LOGITS)
@_FEW
@given(data=st.data())
def test_shifted_logits(case, data):
    """An offset of all logits of an example changes nothing, as long as it is exact."""
    args = list(data.draw(_arguments(case)))
    quarters = arrays.arrays(np.int32, _SHAPE, elements=st.integers(-400, 400))
    for i, kind in enumerate(case.kinds):
        if kind.endswith("logits"):
            args[i] = data.draw(quarters).astype(np.float32) / 4
    offset = np.float32(data.draw(st.sampled_from([1.0, -64.0, 4096.0, 2.0**20])))
    shifted = [
        x + offset if k.endswith("logits") else x for k, x in zip(case.kinds, args, strict=True)
    ]
    chex.assert_trees_all_equal(_run(case, shifted), _run(case, args), strict=True)


@every(_NEVER_NEGATIVE)
@_FEW
@given(data=st.data())
def test_never_negative_and_never_nan(case, data):
    result, gradients = _run(case, data.draw(_arguments(case)))
    assert np.all(result >= 0)
    assert not any(np.any(np.isnan(g)) for g in gradients)
