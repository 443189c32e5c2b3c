"""The derivative of each loss for each of its options, example by example, against the truth."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import pytest

import jxent
from jxent._selftest.exact import Decimal, decimals
from jxent._selftest.sizes import Quantity, exp, ln, nats, of_itself, times, total
from jxent._selftest.table import TABLE
from support import sweeps, tolerances
from support.accuracy import double_if
from support.cases import fast_jit
from support.tiers import quick

_WEIGHTS = np.linspace(0.25, 3, sweeps.CLASSES)


class Row(NamedTuple):
    """The arguments of a loss, its options, and the sizes of its derivatives' terms.

    The sizes are for one option each, ``sizes(*args, **options) -> {option: (terms, extra)}``.
    """

    arguments: Callable
    options: dict
    sizes: Callable


def _logits(dtype):
    return sweeps.rounded(dtype, sweeps.logits()[np.all(np.isfinite(sweeps.logits()), axis=-1)])


def _labelled(dtype):
    (z,) = _logits(dtype)
    return z, np.ones(len(z), np.int32)


def _near(dtype):
    z, y = _labelled(dtype)
    near = np.ptp(z.astype(np.float64), axis=-1) < 80
    return z[near], y[near]


def _soft(dtype):
    finite = np.all(np.isfinite(sweeps.logits()), axis=-1)
    return sweeps.rounded(dtype, sweeps.logits()[finite], sweeps.soft_labels()[finite])


def _binary(dtype):
    z = np.repeat(sweeps.binary_logits(), 3)
    z = z[np.abs(z) < 80]
    return z.astype(dtype), np.resize([0, 1, 0.25], z.shape).astype(dtype)


def _surprisals(z):
    e = exp(z)
    return -ln(e / total(e))


def _normalizer_sizes(z):
    lse = ln(np.sum(exp(z), axis=-1))
    reach = 4 * (abs(np.max(z, axis=-1)) + Decimal(z.shape[-1]).ln())
    return lse**2, 2 * abs(lse) * reach


def _soft_sizes(z, y, label_smoothing, z_loss):
    n = _surprisals(z)
    own, uniform = np.sum(y * n, axis=-1), np.sum(n, axis=-1) / z.shape[-1]
    extra = nats(own) * own
    return {"label_smoothing": (own + uniform, extra), "z_loss": _normalizer_sizes(z)}


def _integer_sizes(z, labels, label_smoothing, z_loss):
    return _soft_sizes(z, decimals(np.eye(z.shape[-1])[labels]), label_smoothing, z_loss)


def _poly_sizes(z, y, epsilon):
    e = exp(z)
    p = e / total(e)
    terms = y * (1 - p)
    missed = np.sum(terms, axis=-1)
    return {"epsilon": (missed, np.sum(times(nats(1 - p), terms), axis=-1))}


def _focal_sizes(z, labels, gamma):
    n = _surprisals(z)[..., 1]
    missed = 1 - exp(-n)
    log_missed = abs(ln(missed))
    size = missed**gamma * n * log_missed
    reach = (1 + gamma) * nats(missed) + nats(n) + nats(log_missed)
    return {"gamma": (size, size * reach)}


def _binary_focal_sizes(z, y, alpha, gamma):
    p, q = 1 / (1 + exp(-z)), 1 / (1 + exp(z))
    missed, cost = y * q + (1 - y) * p, -y * ln(p) - (1 - y) * ln(q)
    power = missed**gamma * cost
    share = alpha * y + (1 - alpha) * (1 - y)
    log_missed = abs(ln(missed))
    to_gamma = share * power * log_missed
    reach = (1 + gamma) * nats(missed)
    of_gamma = (reach + nats(log_missed)) * to_gamma
    return {"alpha": (power, reach * power), "gamma": (to_gamma, of_gamma)}


def _binary_sizes(z, y, label_smoothing, pos_weight):
    n, c = ln(1 + exp(-z)), ln(1 + exp(z))
    positive = (1 - label_smoothing) * y + label_smoothing / 2
    half = Decimal(1) / 2
    size = pos_weight * abs(half - y) * n + abs(y - half) * c
    return {"label_smoothing": (size, 0 * size), "pos_weight": (positive * n, 0 * n)}


_TABLE = {
    "softmax_cross_entropy_with_integer_labels": Row(
        _labelled, {"label_smoothing": 0.1, "z_loss": 1e-4}, _integer_sizes
    ),
    "softmax_cross_entropy": Row(_soft, {"label_smoothing": 0.1, "z_loss": 1e-4}, _soft_sizes),
    "poly_loss_cross_entropy": Row(_soft, {"epsilon": 2.0}, _poly_sizes),
    "softmax_focal_loss_with_integer_labels": Row(_near, {"gamma": 2.0}, _focal_sizes),
    "sigmoid_binary_cross_entropy": Row(
        _binary, {"label_smoothing": 0.1, "pos_weight": 3.0}, _binary_sizes
    ),
    "sigmoid_focal_loss": Row(_binary, {"alpha": 0.25, "gamma": 2.0}, _binary_focal_sizes),
}


@pytest.mark.parametrize("dtype", quick(["float32", "float64", "bfloat16"]))
@pytest.mark.parametrize("name", _TABLE)
def test_derivative_for_an_option(name, dtype):
    row, function = _TABLE[name], getattr(jxent, name)
    with double_if(dtype), tolerances.many_digits(dtype):
        args = row.arguments(dtype)
        options = {o: np.asarray(v, tolerances.computing(dtype)) for o, v in row.options.items()}

        def derivatives(*args):
            return jax.grad(lambda options: function(*args, **options))(options)

        results = fast_jit(jax.vmap(derivatives))(*args)
        exact_options = {o: decimals(v)[()] for o, v in options.items()}
        sizes = row.sizes(*map(decimals, args), **exact_options)
        for option, exact in _exact_derivatives(TABLE[name], args, options).items():
            worst, message = tolerances.worst_error(
                results[option],
                Quantity(exact, *sizes[option]),
                tolerances.UNITS[TABLE[name].family],
                dtype,
            )
            assert worst <= 1, f"{option}: {message}"


def _exact_derivatives(row, args, options):
    """For each option, of each example."""
    examples = [row.truth([x[i : i + 1] for x in args], options) for i in range(len(args[0]))]
    return {
        name: np.array([truth[i - len(options)].exact[()] for truth in examples])
        for i, name in enumerate(options)
    }


@pytest.mark.parametrize("dtype", quick(["float32", "float64"]))
def test_derivative_for_class_weights(dtype):
    """``y_j (-log p_j)``, whose errors are those of the surprisals."""
    with double_if(dtype), tolerances.many_digits(dtype):
        z, y = _soft(dtype)
        weights = _WEIGHTS.astype(dtype)

        def derivative(z, y):
            return jax.grad(lambda w: jxent.softmax_cross_entropy(z, y, class_weights=w))(weights)

        got = fast_jit(jax.vmap(derivative))(z, y)
        exact = times(decimals(y), _surprisals(decimals(z)))
        quantity = Quantity(exact, *of_itself(exact, nats(exact)))
        worst, message = tolerances.worst_error(got, quantity, 16, dtype)
        assert worst <= 1, message
