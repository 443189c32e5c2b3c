"""The derivative of each loss for each of its options, example by example, against the truth.

The exact derivative is a difference quotient of the exact loss, at many digits.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import sweeps
import tolerances
import truth
from accuracy import double_if
from tiers import quick

import jxent

_STEP = mpmath.mpf(10) ** -25
_WEIGHTS = np.linspace(0.25, 3, sweeps.CLASSES)


class Row(NamedTuple):
    """A loss of arrays and options, its exact value, and the sizes of its derivatives' terms.

    The sizes are for one option each, ``sizes(*args, **options) -> {option: (terms, extra)}``.
    """

    function: Callable
    arguments: Callable
    options: dict
    exact: Callable
    sizes: Callable
    family: str


def _logits(dtype):
    return sweeps.rounded(dtype, sweeps.logits()[np.all(np.isfinite(sweeps.logits()), axis=-1)])


def _soft(dtype):
    finite = np.all(np.isfinite(sweeps.logits()), axis=-1)
    return sweeps.rounded(dtype, sweeps.logits()[finite], sweeps.soft_labels()[finite])


def _binary(dtype):
    z = np.repeat(sweeps.binary_logits(), 3)
    z = z[np.abs(z) < 80]
    return z.astype(dtype), np.resize([0, 1, 0.25], z.shape).astype(dtype)


def _label(z):
    return np.ones(z.shape[:-1], np.int32)


def _surprisals(z):
    e = truth.exp(z)
    return -truth.log(e / truth.total(e))


def _normalizer_sizes(z):
    lse = truth.log(np.sum(truth.exp(z), axis=-1))
    reach = 4 * (abs(np.max(z, axis=-1)) + mpmath.log(z.shape[-1]))
    return lse**2, 2 * abs(lse) * reach


def _soft_sizes(z, y, label_smoothing, z_loss):
    n = _surprisals(z)
    own, uniform = np.sum(y * n, axis=-1), np.sum(n, axis=-1) / z.shape[-1]
    nats = truth.nats(own) * own
    return {"label_smoothing": (own + uniform, nats), "z_loss": _normalizer_sizes(z)}


def _integer_sizes(z, label_smoothing, z_loss):
    return _soft_sizes(z, truth.one_hot(_label(z), z.shape[-1]), label_smoothing, z_loss)


def _poly_sizes(z, y, epsilon):
    e = truth.exp(z)
    p = e / truth.total(e)
    terms = y * (1 - p)
    missed = np.sum(terms, axis=-1)
    return {"epsilon": (missed, np.sum(truth.times(truth.nats(1 - p), terms), axis=-1))}


def _focal_sizes(z, gamma):
    n = _surprisals(z)[..., 1]
    missed = 1 - truth.exp(-n)
    log_missed = abs(truth.log(missed))
    size = missed**gamma * n * log_missed
    reach = (1 + gamma) * truth.nats(missed) + truth.nats(n) + truth.nats(log_missed)
    return {"gamma": (size, size * reach)}


def _binary_focal_sizes(z, y, alpha, gamma):
    p, q = 1 / (1 + truth.exp(-z)), 1 / (1 + truth.exp(z))
    missed, cost = y * q + (1 - y) * p, -y * truth.log(p) - (1 - y) * truth.log(q)
    power = missed**gamma * cost
    share = alpha * y + (1 - alpha) * (1 - y)
    log_missed = abs(truth.log(missed))
    to_gamma = share * power * log_missed
    reach = (1 + gamma) * truth.nats(missed)
    of_gamma = (reach + truth.nats(log_missed)) * to_gamma
    return {"alpha": (power, reach * power), "gamma": (to_gamma, of_gamma)}


def _binary_sizes(z, y, label_smoothing, pos_weight):
    n, c = truth.log(1 + truth.exp(-z)), truth.log(1 + truth.exp(z))
    positive = (1 - label_smoothing) * y + label_smoothing / 2
    half = mpmath.mpf(1) / 2
    size = pos_weight * abs(half - y) * n + abs(y - half) * c
    return {"label_smoothing": (size, 0 * size), "pos_weight": (positive * n, 0 * n)}


_TABLE = {
    "integer labels": Row(
        lambda z, **options: jxent.softmax_cross_entropy_with_integer_labels(z, 1, **options),
        _logits,
        {"label_smoothing": 0.1, "z_loss": 1e-4},
        lambda z, label_smoothing, z_loss: truth.integer_cross_entropy(
            z, _label(z), label_smoothing, 1, z_loss
        ),
        _integer_sizes,
        "softmax",
    ),
    "soft labels": Row(
        jxent.softmax_cross_entropy,
        _soft,
        {"label_smoothing": 0.1, "z_loss": 1e-4},
        lambda z, y, label_smoothing, z_loss: truth.soft_cross_entropy(
            z, y, label_smoothing, 1, z_loss
        ),
        _soft_sizes,
        "softmax",
    ),
    "poly": Row(
        jxent.poly_loss_cross_entropy,
        _soft,
        {"epsilon": 2.0},
        truth.poly_loss,
        _poly_sizes,
        "softmax",
    ),
    "focal": Row(
        lambda z, **options: jxent.softmax_focal_loss_with_integer_labels(z, 1, **options),
        lambda dtype: [x[np.ptp(x.astype(np.float64), axis=-1) < 80] for x in _logits(dtype)],
        {"gamma": 2.0},
        lambda z, gamma: truth.softmax_focal_loss(z, _label(z), gamma),
        _focal_sizes,
        "softmax",
    ),
    "sigmoid": Row(
        jxent.sigmoid_binary_cross_entropy,
        _binary,
        {"label_smoothing": 0.1, "pos_weight": 3.0},
        lambda z, y, label_smoothing, pos_weight: truth.sigmoid_cross_entropy(
            z, y, pos_weight, label_smoothing
        ),
        _binary_sizes,
        "sigmoid",
    ),
    "sigmoid focal": Row(
        jxent.sigmoid_focal_loss,
        _binary,
        {"alpha": 0.25, "gamma": 2.0},
        truth.sigmoid_focal_loss,
        _binary_focal_sizes,
        "sigmoid",
    ),
}


@pytest.mark.parametrize("dtype", quick(["float32", "float64", "bfloat16"]))
@pytest.mark.parametrize("name", _TABLE)
def test_derivative_for_an_option(name, dtype):
    row = _TABLE[name]
    computing = tolerances.computing(dtype)
    with double_if(dtype), mpmath.workdps(120):
        args = row.arguments(dtype)
        options = {o: np.asarray(v, computing) for o, v in row.options.items()}
        exact_args = [truth.number(x) for x in args]
        exact_options = {o: truth.number(v)[()] for o, v in options.items()}

        def derivatives(*args):
            return jax.grad(lambda options: row.function(*args, **options))(options)

        results = jax.jit(jax.vmap(derivatives))(*map(jnp.asarray, args))
        sizes = row.sizes(*exact_args, **exact_options)
        for option, got in results.items():
            ahead, behind = (
                row.exact(*exact_args, **(exact_options | {option: exact_options[option] + step}))
                for step in (_STEP, -_STEP)
            )
            exact = (ahead.value.exact - behind.value.exact) / (2 * _STEP)
            quantity = truth.Quantity(exact, *sizes[option])
            worst, message = tolerances.worst_error(
                got, quantity, tolerances.UNITS[row.family], dtype
            )
            assert worst <= 1, f"{option}: {message}"


@pytest.mark.parametrize("dtype", quick(["float32", "float64"]))
def test_derivative_for_class_weights(dtype):
    """``y_j (-log p_j)``, whose errors are those of the surprisals."""
    with double_if(dtype), mpmath.workdps(tolerances.DIGITS[dtype]):
        z, y = _soft(dtype)
        weights = jnp.asarray(_WEIGHTS.astype(dtype))

        def derivative(z, y):
            return jax.grad(lambda w: jxent.softmax_cross_entropy(z, y, class_weights=w))(weights)

        got = jax.jit(jax.vmap(derivative))(jnp.asarray(z), jnp.asarray(y))
        exact = truth.times(truth.number(y), _surprisals(truth.number(z)))
        quantity = truth.relative_in_nats(exact)
        worst, message = tolerances.worst_error(got, quantity, 16, dtype)
        assert worst <= 1, message
