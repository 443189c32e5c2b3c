"""Losses of probabilities, to any order: no NaN but from a NaN, and the right derivatives.

The numbers here are those for which a branch that is not taken has no value or no derivative:
zeros, classes left out, quotients and sums that overflow.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from jax.experimental import checkify

import jxent
from support.cases import fast_jit
from support.tiers import quick, quick_named

TINY, LARGE = 1.2e-38, 3.4e38
SMOOTH = [([0.2, 0.3, 0.5], [0.3, 0.3, 0.4]), ([0.7, 0.2, 0.1], [0.7, 0.1, 0.2])]
# With numbers that have no logarithm, where all derivatives are finite.
WITH_ZEROS = [
    *SMOOTH,
    ([0.0, 1.0, 0.0], [0.0, 1.0, 0.0]),
    ([0.0, 0.0, 0.0], [0.0, 0.5, 0.5]),
    ([0.0, 0.5, 0.5], [1.0, 0.125, 0.25]),
    *SMOOTH,
]
# As many that are not smooth, or overflow: one program serves both.
EXTREME = [
    ([1e-8, 1e-20, 1.0], [1.0, 1e-3, LARGE]),
    ([TINY, LARGE, 1.0], [LARGE, TINY, 1.0]),
    ([LARGE, LARGE, LARGE], [LARGE / 3, LARGE, LARGE]),
    ([TINY, TINY, TINY], [2 * TINY, TINY, 3 * TINY]),
    ([0.0, 0.0, TINY], [0.0, 0.0, 1.0]),
]
INFINITE = [([0.5, 0.5, 0.0], [0.0, 1.0, 0.0]), ([1.0, LARGE, TINY], [0.0, 0.0, 0.0])]
MASK = np.array([[True, True, False], [False, False, False], [True] * 3, [False, True, True]])


def rows(pairs):
    """``[2, rows, classes]``."""
    return np.transpose(np.array(pairs, np.float32), (1, 0, 2))


def logs(x):
    with np.errstate(divide="ignore"):
        return np.log(x)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A loss of floating-point arguments, and what to give it."""

    name: str
    call: Callable[..., jax.Array]
    finite: tuple[Any, ...]
    """Where all derivatives are finite."""
    extreme: tuple[Any, ...] = ()

    def __str__(self):
        return self.name


def twice(x):
    return np.concatenate([x, x])


def where(x):
    """All classes of the first half of the rows, and some in the second half."""
    half = len(x) // 2
    return np.concatenate([np.ones((half, 3), bool), np.resize(MASK, (half, 3))])


def of_pairs(name, convert=lambda p, q: (p, q)):
    def call(p, q):
        return getattr(jxent, name)(p, q, where=where(p))

    finite, extreme = (tuple(map(twice, rows(x))) for x in (WITH_ZEROS, EXTREME + INFINITE))
    return Inputs(name, call, convert(*finite), convert(*extreme))


def of_labels(name, convert):
    def call(q, weights):
        labels = np.resize(np.int32([0, 2, -100, 1, 0, 1, 2]), len(q))
        options = {"class_weights": weights, "ignore_index": -100, "where": where(q)}
        return getattr(jxent, name)(q, labels, **options)

    finite, extreme = (convert(twice(rows(x)[1])) for x in (WITH_ZEROS, EXTREME + INFINITE))
    return Inputs(name, call, (finite, np.float32([1, 0.5, 2])), (extreme, np.float32([1, 0, 2])))


def with_options(p, y, weight, epsilon):
    return jxent.binary_cross_entropy(p, y, pos_weight=weight, label_smoothing=epsilon)


def elements(x):
    """In the shape of the rows, so that all losses are made of the same compiled operations."""
    return np.resize(np.float32(x), (14, 3))


P, Y = elements([0, 1, 0.3, 0.5, 0.9]), elements([0, 1, 0.2, 1, 0])
SMOOTH_P, SMOOTH_Y = elements([0.3, 0.5, 0.9]), elements([0.2, 1, 0])
EXTREME_P = elements([TINY, 1 - 1e-7, 0, 1, 0.5])
OPTIONS, EXTREME_OPTIONS = np.float32([2, 0.125]), np.float32([3, 0])

ALL = [
    of_pairs("relative_entropy"),
    of_pairs("jensen_shannon_divergence"),
    of_pairs("cross_entropy"),
    of_pairs("kl_divergence", lambda p, q: (logs(q), p)),
    of_pairs("generalized_kl_divergence", lambda p, q: (logs(q), p)),
    of_pairs("kl_divergence_with_log_targets", lambda p, q: (logs(q), logs(p))),
    of_labels("cross_entropy_with_integer_labels", lambda q: q),
    of_labels("negative_log_likelihood", logs),
    Inputs(
        "entropy",
        jxent.entropy,
        (twice(rows(WITH_ZEROS)[0]),),
        (twice(rows(EXTREME + INFINITE)[0]),),
    ),
    Inputs("binary_entropy", jxent.binary_entropy, (P,), (EXTREME_P,)),
    Inputs("binary_cross_entropy", jxent.binary_cross_entropy, (P, Y), (EXTREME_P, Y)),
    Inputs(
        "binary options", with_options, (SMOOTH_P, SMOOTH_Y, *OPTIONS), (P, Y, *EXTREME_OPTIONS)
    ),
]
every = pytest.mark.parametrize("inputs", ALL, ids=str)
_QUICK = (
    "relative_entropy",
    "generalized_kl_divergence",
    "cross_entropy_with_integer_labels",
    "entropy",
    "binary options",
)
"""Each family, and what divides two probabilities."""


def value_and_gradients(call):
    def both(*args):
        out, pullback = jax.vjp(call, *args)
        return out, pullback(jnp.ones_like(out))

    return both


def has_nan(tree):
    return any(np.any(np.isnan(x)) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("inputs", quick_named(ALL, _QUICK), ids=str)
def test_debug_nans(inputs):
    """Operation by operation, as in a hunt for a NaN."""
    both = value_and_gradients(inputs.call)
    for args in inputs.finite, inputs.extreme:
        with jax.debug_nans(True), jax.disable_jit():
            assert not has_nan(both(*map(jnp.asarray, args)))


@pytest.mark.full
@pytest.mark.parametrize("inputs", [x for x in ALL if x.name in _QUICK], ids=str)
def test_checkify(inputs):
    both = jax.jit(checkify.checkify(value_and_gradients(inputs.call), checkify.nan_checks))
    for args in inputs.finite, inputs.extreme:
        error, result = both(*args)
        error.throw()
        assert not has_nan(result)


def again(call):
    """A number made of a loss and of its pullback, at the loss itself."""

    def number(*args):
        out, pullback = jax.vjp(call, *args)
        return sum(jnp.sum(jnp.sin(x)) for x in (out, *pullback(1 + out)))

    return number


@pytest.mark.parametrize("inputs", quick_named(ALL, _QUICK), ids=str)
def test_value_and_pullback_differentiated(inputs):
    """In both modes: against differences where all is smooth, without a NaN elsewhere."""
    step = 1e-6
    smooth = [np.where(np.isin(x, [0, 1, -np.inf]), 0.375, x) for x in inputs.finite]
    number, count = again(inputs.call), len(smooth)

    @fast_jit
    def number_and_derivatives(args, dots):
        out, backward = jax.value_and_grad(number, range(count))(*args)
        along = sum(jnp.sum(g * dot) for g, dot in zip(backward, dots, strict=True))
        return out, along, jax.jvp(number, args, dots)[1]

    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        dots = tuple(rng.normal(size=x.shape) for x in smooth)

        def at(args, distance=0.0):
            moved = (x + distance * dot for x, dot in zip(args, dots, strict=True))
            return number_and_derivatives(tuple(map(np.float64, moved)), dots)

        difference = (at(smooth, step)[0] - at(smooth, -step)[0]) / (2 * step)
        np.testing.assert_allclose(at(smooth)[1:], [difference] * 2, rtol=1e-6, atol=1e-6)
        assert not has_nan(at(inputs.finite)[1:])


_PAIRS = {x.name: x for x in ALL if len(x.finite) == 2}


@pytest.mark.parametrize(
    "inputs", quick(_PAIRS.values(), _PAIRS["generalized_kl_divergence"]), ids=str
)
def test_hessian_with_zeros(inputs):
    """It is symmetric, although the gradient is cut where a number without logarithm is."""
    with jax.enable_x64(True):
        point, unravel = jax.flatten_util.ravel_pytree(tuple(map(jnp.float64, inputs.finite)))
        total = jax.jit(jax.hessian(lambda x: jnp.sum(inputs.call(*unravel(x)))))
        hessian = np.asarray(total(point))
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-12, atol=1e-12)


@pytest.mark.full
def test_every_composition():
    """Of a mean, which the other tests of derivatives do not have."""
    with jax.enable_x64(True):
        args = tuple(map(jnp.float64, rows(SMOOTH)))
        jax.test_util.check_grads(jxent.weighted_mean, args, order=2, eps=1e-4, rtol=1e-4)
