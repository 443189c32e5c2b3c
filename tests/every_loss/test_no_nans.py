"""Nothing but NaN makes NaN: what looks for one on the way finds none, unless there is one.

``jax_debug_nans`` with ``jax_disable_jit`` looks at the result of each operation, the usual hunt
for a NaN; `jax.experimental.checkify` does so in compiled programs.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jxent
from support.cases import ALL, BARE, CASES, INTEGERS, fast_jit
from support.tiers import quick, quick_named, quick_rows

_INF = np.inf


def _value_and_gradient(case, **fixed):
    def function(*args):
        def total(*args):
            out = case.call(*args, **fixed)
            return jnp.sum(jnp.where(jnp.isfinite(out), out, 0.0)), out

        gradients, out = jax.grad(total, case.differentiable, has_aux=True)(*args)
        return out, *gradients

    return function


def _masks(case):
    """Each alone, and the last all together."""
    masks = [{}]
    if case.has_classes:
        masks.append({"where": np.array([False, True, True])})
    if case.accepts("ignore_index"):
        masks.append({"ignore_index": 1})
    if case.accepts("where"):
        both = {"ignore_index": 1} if case.accepts("ignore_index") else {}
        masks.append({"where": np.array([[True, True, False]] * 3)} | both)
    return masks


# In the quick tier `test_limits_raise_nothing` has the other functions.
_QUICK = {
    "softmax_cross_entropy_with_integer_labels",
    "sigmoid_binary_cross_entropy",
    "weighted_mean",
}


@pytest.mark.parametrize("case", quick(ALL, *(c for c in CASES if c.name in _QUICK)), ids=str)
def test_finite_inputs_raise_nothing(case):
    """Op by op, as in a hunt for a NaN: values and gradients, with and without masks.

    With the options far apart and with all masks at once; without them each mask alone.
    """
    args, masks = [np.asarray(x) for x in case.args()], _masks(case)
    far = case in CASES
    # Three examples, but for a head: the operations are those of the arguments at their limits.
    examples = [0, 1] if "kernel" in case.kinds else [0, 1, 0]
    for i, kind in enumerate(case.kinds):
        args[i] = (30 if far and "logits" in kind else 1) * args[i][examples]
    for fixed in masks[-1:] if far else masks:
        _raises_nothing_op_by_op(case, args, fixed)


def _raises_nothing_op_by_op(case, args, fixed):
    with jax.debug_nans(True), jax.disable_jit():
        _value_and_gradient(case, **fixed)(*map(jnp.asarray, args))


_LIMITS = {
    "logits": [[1.5, -0.5, -_INF], [-_INF, 0.75, 3.0], [_INF, -1.0, -_INF]],
    "target_logits": [[0.5, 0.75, -_INF], [-_INF, -0.25, 2.0], [_INF, 2.0, -_INF]],
    "labels": [0, 1, 0],
    "target_indices": [[0, 2], [1, 0], [0, 1]],
    "target_log_probs": [[-0.75, -_INF], [-1.25, -_INF], [0.0, -_INF]],
    "distributions": [[0.75, 0.25, 0.0], [0.0, 0.125, 0.875], [1.0, 0.0, 0.0]],
    "predictions": [[0.5, 0.5, 0.0], [0.0, 0.625, 0.375], [1.0, 0.0, 0.0]],
    "log_predictions": [[-0.75, -1.25, -_INF], [-_INF, -0.5, -1.375], [0.0, -2.0, -_INF]],
    "log_distributions": [[-0.5, -1.625, -_INF], [-_INF, -0.875, -1.375], [0.0, -_INF, -_INF]],
}
"""Arguments of which some are at their limit, and most losses are finite all the same."""
_PRESENT = np.array([[True, True, False], [False, True, True], [True, True, True]])
# Smoothing gives every class that is present a share of the label: without one nothing is finite.
_WITH_LIMITS = [
    case
    for case in ALL
    if set(case.kinds) <= set(_LIMITS)
    and (case.accepts("axis") or "label_smoothing" not in case.options)
]


def _at_limits(case, masked):
    """The arguments, and the mask."""
    kept = slice(2 if "label_smoothing" in case.options else 3)
    args = [
        np.asarray(_LIMITS[kind], np.int32 if kind in INTEGERS else np.float32)[kept]
        for kind in case.kinds
    ]
    options = [np.asarray(x) for x in case.args()[len(case.kinds) :]]
    return args + options, {"where": _PRESENT[kept]} if masked else {}


# One of each way to make a loss; those of probabilities are in `test_no_nans_probability.py`.
_LIMITED = {
    "logsumexp",
    "log_softmax",
    "softmax_entropy",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "poly_loss_cross_entropy",
    "softmax_focal_loss_with_integer_labels",
    "softmax_kl_divergence",
    "softmax_jensen_shannon_divergence",
    "softmax_kl_divergence_with_top_k_targets",
    "sigmoid_binary_cross_entropy",
    "sigmoid_kl_divergence",
    "sigmoid_focal_loss",
    "cross_entropy_with_integer_labels",
    "kl_divergence",
}


@pytest.mark.parametrize(
    "case", quick_named([c for c in BARE if c in _WITH_LIMITS], _LIMITED), ids=str
)
def test_limits_raise_nothing(case):
    """Op by op: what is infinite where the result is not."""
    _raises_nothing_op_by_op(case, *_at_limits(case, case.accepts("where")))


# One of each family, since a compiled program has the same operations as one op by op.
_SMALL = ("softmax_cross_entropy", "sigmoid_entropy", "kl_divergence")
_LIMIT_ROWS = [
    (case, masked)
    for case in _WITH_LIMITS
    for masked in (False, True)
    if case.name in _SMALL and (masked or "label_smoothing" not in case.options)
]
_QUICK_ROWS = [case in BARE and masked for case, masked in _LIMIT_ROWS]


@pytest.mark.parametrize(
    ("case", "masked"), quick_rows(_LIMIT_ROWS, *np.flatnonzero(_QUICK_ROWS)), ids=str
)
def test_limits_raise_nothing_when_compiled(case, masked):
    args, fixed = _at_limits(case, masked)
    function = checkify.checkify(_value_and_gradient(case, **fixed), checkify.nan_checks)
    error, results = fast_jit(function)(*args)
    error.throw()
    assert not any(np.any(np.isnan(x)) for x in results)


_OF_LABELS = [case.name for case in BARE if case.kinds == ("logits", "labels")]


@pytest.mark.parametrize("name", ["logsumexp", *_OF_LABELS])
def test_a_limit_beside_what_has_none_is_no_nan(name):
    """Rows without a softmax whose result is infinite: of nothing but -inf, and of two +inf."""
    z = jnp.asarray([[-_INF, -_INF, -_INF], [_INF, _INF, -_INF], [1.0, -_INF, 0.5]])
    call = getattr(jxent, name)
    args = (z,) if name == "logsumexp" else (z, jnp.asarray([0, 2, 1]))
    exact = [-_INF, _INF, np.logaddexp(1.0, 0.5)] if name == "logsumexp" else [_INF] * 3
    error, losses = fast_jit(checkify.checkify(call, checkify.nan_checks))(*args)
    error.throw()
    np.testing.assert_allclose(losses, exact, rtol=1e-6)
    with jax.debug_nans(True), jax.disable_jit():
        call(*args)
    where = z > -_INF
    gradient = jax.grad(lambda z: jnp.sum(jxent.logsumexp(z, where=where)[::2]))(z)
    np.testing.assert_array_equal(gradient[0], 0)
