"""Nothing but NaN makes NaN: what looks for one on the way finds none, unless there is one.

``jax_debug_nans`` with ``jax_disable_jit`` looks at the result of each operation, the usual hunt
for a NaN; `jax.experimental.checkify` does so in compiled programs. Losses of probabilities have
the right derivatives as well, to any order, where a branch that is not taken has none.
"""

import functools

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jxent
from support.cases import ALL, BARE, CASES, INTEGERS, fast_jit, of_some, with_gradients
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
_QUICK = {"softmax_cross_entropy_with_integer_labels", "sigmoid_binary_cross_entropy",
          "weighted_mean"}  # fmt: skip


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


# One of each way to make a loss; those of probabilities are below.
_LIMITED = {
    "logsumexp", "log_softmax", "softmax_entropy", "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels", "poly_loss_cross_entropy",
    "softmax_focal_loss_with_integer_labels", "softmax_kl_divergence",
    "softmax_jensen_shannon_divergence", "softmax_kl_divergence_with_top_k_targets",
    "sigmoid_binary_cross_entropy", "sigmoid_kl_divergence", "sigmoid_focal_loss",
    "cross_entropy_with_integer_labels", "kl_divergence",
}  # fmt: skip


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


# Losses of probabilities: zeros, classes left out, quotients and sums that overflow.

TINY, LARGE = 1.2e-38, 3.4e38
SMOOTH = [([0.2, 0.3, 0.5], [0.3, 0.3, 0.4]), ([0.7, 0.2, 0.1], [0.7, 0.1, 0.2])]
# With numbers that have no logarithm, where all derivatives are finite.
FINITE = [
    *SMOOTH,
    ([0.0, 1.0, 0.0], [0.0, 1.0, 0.0]),
    ([0.0, 0.0, 0.0], [0.0, 0.5, 0.5]),
    ([0.0, 0.5, 0.5], [1.0, 0.125, 0.25]),
    *SMOOTH,
]
# As many that are not smooth, or overflow, or have an infinite loss: one program serves both.
EXTREME = [
    ([1e-8, 1e-20, 1.0], [1.0, 1e-3, LARGE]),
    ([TINY, LARGE, 1.0], [LARGE, TINY, 1.0]),
    ([LARGE, LARGE, LARGE], [LARGE / 3, LARGE, LARGE]),
    ([TINY, TINY, TINY], [2 * TINY, TINY, 3 * TINY]),
    ([0.0, 0.0, TINY], [0.0, 0.0, 1.0]),
    ([0.5, 0.5, 0.0], [0.0, 1.0, 0.0]),
    ([1.0, LARGE, TINY], [0.0, 0.0, 0.0]),
]
# All classes of the first half of the rows, and some in the second half.
MASK = np.array([[True, True, False], [False, False, False], [True] * 3, [False, True, True]])
MASK = np.concatenate([np.ones((7, 3), bool), np.resize(MASK, (7, 3))])
# Of binary losses each number is an example: a probability and a label.
BINARY = [0, 1, 0.3, 0.5, 0.9], [0, 1, 0.2, 1, 0]
BINARY_EXTREME = [TINY, 1 - 1e-7, 0, 1, 0.5], [0, 1, 0.2, 1, 0]
# With smoothing the loss of a probability at an end is infinite.
BINARY_SMOOTH = [0.3, 0.5, 0.9], [0.2, 1, 0]
OPTIONS = {"class_weights": [1, 0.5, 2], "pos_weight": 2, "label_smoothing": 0.125}
EXTREME_OPTIONS = {"class_weights": [1, 0, 2], "pos_weight": 3, "label_smoothing": 0}

KINDS = {"distributions", "predictions", "log_predictions", "log_distributions", "labels"}
EVERY = [case for case in ALL if set(case.kinds) <= KINDS]
# Each family, and what divides two probabilities.
_FAMILIES = {"relative_entropy", "generalized_kl_divergence", "cross_entropy_with_integer_labels",
             "entropy", "binary_cross_entropy"}  # fmt: skip
_SOME = [case for case in EVERY if case.name in _FAMILIES and case in CASES]


def arguments(case, *, is_extreme=False):
    """Of fourteen rows; in the same shape for all, so that all share compiled operations."""
    pairs, options = (EXTREME, EXTREME_OPTIONS) if is_extreme else (FINITE, OPTIONS)
    p, q = np.tile(np.transpose(np.array(pairs, np.float32), (1, 0, 2)), (1, 2, 1))
    if not case.has_classes:
        of_options = BINARY_SMOOTH, BINARY
        numbers = (of_options if case.options else (BINARY, BINARY_EXTREME))[is_extreme]
        q, p = (np.resize(np.float32(x), (14, 3)) for x in numbers)
        p = q if case.kinds == ("distributions",) else p
        if case.kinds[0] == "log_predictions":
            q = np.where((p == 0) | (q == 0), p, q)  # The divergence of one that is 0 is infinite.
    with np.errstate(divide="ignore"):
        kinds = {"log_predictions": np.log(q), "log_distributions": np.log(p)}
    kinds |= {"distributions": p, "predictions": q}
    kinds |= {"labels": np.resize(np.int32([0, 2, -100, 1, 0, 1, 2]), 14)}
    return [kinds[kind] for kind in case.kinds] + [np.float32(options[k]) for k in case.options]


def of_floats(case, args):
    """The function of the floating-point arguments, with masks, and these."""
    fixed = {"where": MASK} if case.has_classes else {}
    fixed |= {"ignore_index": -100} if "labels" in case.kinds else {}
    return of_some(functools.partial(case.call, **fixed), case.differentiable, args)


def value_and_gradients(case):
    def both(*args):
        call, floats = of_floats(case, args)
        return with_gradients(call)(*floats)

    return both


def has_nan(tree):
    return any(np.any(np.isnan(x)) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("case", quick(EVERY, *_SOME), ids=str)
def test_debug_nans(case):
    """Operation by operation, as in a hunt for a NaN."""
    for is_extreme in (False, True):
        args = map(jnp.asarray, arguments(case, is_extreme=is_extreme))
        with jax.debug_nans(True), jax.disable_jit():
            assert not has_nan(value_and_gradients(case)(*args))


@pytest.mark.full
@pytest.mark.parametrize("case", _SOME, ids=str)
def test_checkify(case):
    both = jax.jit(checkify.checkify(value_and_gradients(case), checkify.nan_checks))
    for is_extreme in (False, True):
        error, result = both(*arguments(case, is_extreme=is_extreme))
        error.throw()
        assert not has_nan(result)


@pytest.mark.parametrize("case", quick(EVERY, *_SOME), ids=str)
def test_value_and_pullback_differentiated(case):
    """In both modes: against differences where all is smooth, without a NaN elsewhere."""
    call, finite = of_floats(case, arguments(case))
    smooth = [np.where(np.isin(x, [0, 1, -np.inf]), 0.375, x) for x in finite]
    step, count = 1e-6, len(finite)

    def number(*args):
        """Made of a loss and of its pullback, at the loss itself."""
        out, pullback = jax.vjp(call, *args)
        return sum(jnp.sum(jnp.sin(x)) for x in (out, *pullback(1 + out)))

    @fast_jit
    def number_and_derivatives(args, dots):
        out, backward = jax.value_and_grad(number, range(count))(*args)
        along = sum(jnp.sum(g * dot) for g, dot in zip(backward, dots, strict=True))
        return out, along, jax.jvp(number, args, dots)[1]

    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        dots = tuple(np.asarray(rng.normal(size=x.shape)) for x in smooth)

        def at(args, distance=0.0):
            moved = (x + distance * dot for x, dot in zip(args, dots, strict=True))
            return number_and_derivatives(tuple(map(np.float64, moved)), dots)

        difference = (at(smooth, step)[0] - at(smooth, -step)[0]) / (2 * step)
        np.testing.assert_allclose(at(smooth)[1:], [difference] * 2, rtol=1e-6, atol=1e-6)
        assert not has_nan(at(finite)[1:])


_OF_PAIRS = [case for case in EVERY if len(case.differentiable) == 2]


@pytest.mark.parametrize("case", quick_named(_OF_PAIRS, {"generalized_kl_divergence"}), ids=str)
def test_hessian_with_zeros(case):
    """It is symmetric, although the gradient is cut where a number without logarithm is."""
    with jax.enable_x64(True):
        call, floats = of_floats(case, arguments(case))
        point, unravel = jax.flatten_util.ravel_pytree(tuple(map(jnp.float64, floats)))
        hessian = jax.jit(jax.hessian(lambda x: jnp.sum(call(*unravel(x)))))(point)
        chex.assert_trees_all_close(hessian, hessian.T, rtol=1e-12, atol=1e-12, strict=True)
