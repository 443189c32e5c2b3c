"""Losses of probabilities, to any order: no NaN but from a NaN, and the right derivatives.

The numbers here are those for which a branch that is not taken has no value or no derivative:
zeros, classes left out, quotients and sums that overflow.
"""

import functools

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from support.cases import ALL, CASES, fast_jit, of_some
from support.tiers import quick, quick_named

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
_QUICK = {
    "relative_entropy",
    "generalized_kl_divergence",
    "cross_entropy_with_integer_labels",
    "entropy",
    "binary_cross_entropy",
}
_SOME = [case for case in EVERY if case.name in _QUICK and case in CASES]


def arguments(case, *, is_extreme=False):
    """Of fourteen rows; in the same shape for all, so that all share compiled operations."""
    pairs, options = (EXTREME, EXTREME_OPTIONS) if is_extreme else (FINITE, OPTIONS)
    p, q = np.tile(np.transpose(np.array(pairs, np.float32), (1, 0, 2)), (1, 2, 1))
    if not case.has_classes:
        of_options = BINARY_SMOOTH, BINARY
        numbers = (of_options if case.options else (BINARY, BINARY_EXTREME))[is_extreme]
        q, p = (np.resize(np.float32(x), (14, 3)) for x in numbers)
        p = q if case.kinds == ("distributions",) else p
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
        out, pullback = jax.vjp(call, *floats)
        return out, pullback(jnp.ones_like(out))

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
