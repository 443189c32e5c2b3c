"""Numbers at the ends: small against what they are made of, and as large as a number can be.

Options at the ends of their range, and the exact derivative for each of them.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent._selftest.exact import Decimal, decimals
from jxent._selftest.sizes import Quantity, exp, ln, nats, of_itself, times, total
from jxent._selftest.table import TABLE
from support import sweeps, tolerances
from support.accuracy import double_if
from support.cases import fast_jit, with_gradients
from support.tiers import quick


@pytest.fixture(params=quick(["float32", "float64"]))
def dtype(request):
    with double_if(request.param), tolerances.many_digits(request.param):
        yield request.param


CHANGES = (1e-6, -1e-6, 1e-4, 3e-2)


def near_pairs(dtype):
    """Two classes each, so that the difference of the logits alone decides."""
    rows = [[0.0, 0.0], [1.0, -0.5], [0.0, 8.0], [300.0, 301.0]]
    pairs = [(row, [row[0], row[1] + change]) for row in rows for change in CHANGES]
    return tuple(np.array(x, dtype) for x in zip(*pairs, strict=True))


def near_distributions(dtype):
    p = np.array([[0.5, 0.5], [0.875, 0.125], [2.0, 3.0]] * len(CHANGES), dtype)
    changes = np.repeat(CHANGES, 3)[:, None] * np.array([1, -1])
    return p, (p * (1 + changes)).astype(dtype)


def near_measures(dtype):
    """Of numbers near 1, whose logarithms are exact where they are small."""
    logs = np.array([[change, -2 * change] for change in CHANGES], dtype)
    return logs, np.ones_like(logs)


AGREEING = {
    "softmax_kl_divergence": (near_pairs, {}),
    "softmax_jensen_shannon_divergence": (near_pairs, {}),
    "softmax_jensen_shannon_divergence with a weight": (near_pairs, {"weight": 0.25}),
    "sigmoid_kl_divergence": (near_pairs, {}),
    "jensen_shannon_divergence": (near_distributions, {}),
    "generalized_kl_divergence": (near_measures, {}),
}


@pytest.mark.parametrize("name", AGREEING)
def test_gradient_near_agreement(name, dtype):
    """Each entry is exact in itself, as the value is: it vanishes where both agree."""
    arguments, options = AGREEING[name]
    name = name.split()[0]
    args = arguments(dtype)
    exact = TABLE[name].truth(args, {k: np.asarray(x, dtype) for k, x in options.items()})
    function = functools.partial(getattr(jxent, name), **options)
    _, gradients = fast_jit(with_gradients(function))(*args)
    for got, right in zip(gradients, exact[1:], strict=False):
        right, flushed = right.exact.astype(np.float64), tolerances.FLUSHED[dtype]
        np.testing.assert_allclose(got, right, rtol=64 * tolerances.eps(dtype), atol=flushed)


def test_the_gradient_of_weights_at_their_ends(dtype):
    """It is the divergence of what has no weight from the other one, which is the mixture."""
    margin = 90 if dtype == "float32" else 800
    z = np.array([[margin, 0], [0, 0], [3, 0], [0, margin]], dtype)
    z_q, z_p = np.repeat(z, 4, axis=0), np.tile(z, (4, 1))

    def slopes(weight):
        def total(weight):
            divergence = jxent.softmax_jensen_shannon_divergence
            return jax.vmap(lambda *z: divergence(*z, weight=weight))(z_q, z_p)

        return jax.jvp(total, (weight,), (jnp.ones_like(weight),))[1]

    def divergences():
        divergence = jxent.softmax_kl_divergence
        return divergence(z_q, z_p), -divergence(z_p, z_q)

    both = fast_jit(lambda: [slopes(jnp.asarray(w, dtype)) for w in (0, 1)])()
    exact, rtol = list(fast_jit(divergences)()), 64 * tolerances.eps(dtype)
    chex.assert_trees_all_close(both, exact, rtol=rtol, atol=1e-30, strict=True)

    @fast_jit
    def mixed(weight):
        """Derivatives of the gradients of the logits, for a large tangent of the weight."""

        def gradients(weight):
            divergence = functools.partial(jxent.softmax_jensen_shannon_divergence, weight=weight)
            return jax.vmap(jax.grad(divergence, (0, 1)))(z_q, z_p)

        return jax.jvp(gradients, (weight,), (jnp.full_like(weight, 2.0**16),))[1]

    for weight in (0, 1):
        chex.assert_tree_all_finite(mixed(jnp.asarray(weight, dtype)))


def test_the_third_derivative_of_focal_losses():
    """Of q^γ l with l = -log p, where q is nearly l, it is nearly that of q^(1 + γ)."""
    z, gamma = np.float32([48, 60, 25]), np.float32([0.5, 0, 0.25])

    def third(loss):
        return jax.vmap(jax.jacfwd(jax.jacfwd(jax.grad(loss))))

    def softmax(z, gamma):
        logits = jnp.stack([z, jnp.zeros_like(z)])
        return jxent.softmax_focal_loss_with_integer_labels(logits, 0, gamma)

    def sigmoid(z, gamma):
        return jxent.sigmoid_focal_loss(z, 1.0, gamma=gamma)

    exact = -((1 + gamma) ** 3.0) * np.exp(-np.float64(z) * (1 + gamma))
    for got in fast_jit(lambda *args: [third(f)(*args) for f in (softmax, sigmoid)])(z, gamma):
        np.testing.assert_allclose(got, exact, rtol=1e-5)


@pytest.mark.parametrize("mode", quick([jax.jacfwd, jax.jacrev]))
def test_second_derivatives_of_focal_losses_where_a_probability_nearly_underflows(mode):
    """Up to there those of float64 are known."""
    z = np.linspace(-87.2, -80, 100, dtype=np.float32)
    z, y = np.concatenate([z, -z, z]), np.repeat(np.float32([0, 1, 0.25]), 100)

    def hessian(z, y, gamma):
        return mode(jax.grad(jxent.sigmoid_focal_loss, 1), (0, 1, 3))(z, y, None, gamma)

    for gamma in np.float32([0, 0.3, 1, 2]):
        hessians = fast_jit(jax.vmap(hessian, (0, 0, None)))
        with jax.enable_x64(True):
            exact = hessians(*map(np.float64, (z, y, gamma)))
        for found, right in zip(hessians(z, y, gamma), exact, strict=True):
            # Exponentials of logits of this size have errors of some 90 eps.
            np.testing.assert_allclose(found, right, rtol=3e-5, atol=1e-30)


@pytest.mark.parametrize("weight", [None, 0.0, 0.25, 1.0])
def test_rows_that_mask_different_classes_by_the_lowest_number(weight, dtype):
    """Their divergence may be as large; what has no probability has no gradient."""
    mask = np.finfo(dtype).min
    q, p = np.array([0, 1, mask], dtype), np.array([mask, 0, 1], dtype)

    def loss(q, p):
        if weight is None:
            return jxent.softmax_kl_divergence(q, p)
        return jxent.softmax_jensen_shannon_divergence(q, p, weight=weight)

    value, (to_q, to_p) = fast_jit(with_gradients(loss))(q, p)
    assert np.all(np.isfinite([value, *to_q, *to_p]))
    assert to_p[0] == 0
    if weight is not None:
        assert to_q[2] == 0
        assert value <= np.log(2)


def largest(dtype):
    most = np.finfo(dtype).max
    sizes = np.array([most, most / 2, 0.6 * most, 1e30], dtype)
    return np.concatenate([sizes, -sizes])


@pytest.mark.parametrize("gamma", [None, 0.0, 0.5, 2.0])
def test_binary_losses_of_the_largest_logits(gamma, dtype):
    """There a sigmoid is 0 or 1, and the loss a logit or 0, times a power of what is missed."""
    z, y = map(np.array, zip(*itertools.product(largest(dtype), [0, 1, 0.25]), strict=True))
    y = y.astype(dtype)

    def loss(z, y):
        if gamma is None:
            return jxent.sigmoid_binary_cross_entropy(z, y)
        return jxent.sigmoid_focal_loss(z, y, gamma=gamma)

    value, (gradient,) = fast_jit(with_gradients(lambda z: loss(z, y)))(z)
    p = (z > 0).astype(dtype)
    factor = (y * (1 - p) + (1 - y) * p) ** (gamma or 0)
    # A logit beside a sigmoid of 0 or 1 changes nothing but the loss itself.
    np.testing.assert_allclose(value, factor * np.abs(p - y) * np.abs(z), rtol=1e-6)
    np.testing.assert_allclose(gradient, factor * (p - y), rtol=1e-6)


def test_divergence_and_entropy_of_the_largest_logits(dtype):
    pairs = itertools.product(largest(dtype), repeat=2)
    z_q, z_p = map(np.array, zip(*pairs, strict=True))

    value, (to_q, to_p) = fast_jit(with_gradients(jxent.sigmoid_kl_divergence))(z_q, z_p)
    entropy, (to_z,) = fast_jit(with_gradients(jxent.sigmoid_entropy))(z_q)
    q, p = (z_q > 0).astype(dtype), (z_p > 0).astype(dtype)
    np.testing.assert_allclose(value, np.where(q == p, 0, np.abs(z_q)), rtol=1e-6)
    np.testing.assert_array_equal(to_q, q - p)
    for nothing in (to_p, entropy, to_z):
        np.testing.assert_array_equal(nothing, 0 * z_q)


def test_softmax_losses_of_the_largest_logits(dtype):
    """Margins that do not overflow: the least likely label costs the margin."""
    most = np.finfo(dtype).max
    z = np.array([[most, 0], [0, most], [most / 2, -most / 2], [-most, 0], [0.6 * most, 0]])
    z = z.astype(dtype)
    y = np.argmin(z, axis=-1)
    to_least = np.where(np.arange(2) == y[:, None], -1, 1)
    for loss in (
        jxent.softmax_cross_entropy_with_integer_labels,
        jxent.softmax_focal_loss_with_integer_labels,
    ):
        run = fast_jit(with_gradients(loss))
        value, (gradient, _) = run(z, y)
        np.testing.assert_allclose(value, np.ptp(z, axis=-1), rtol=1e-6)
        np.testing.assert_array_equal(gradient, to_least)
        for nothing in jax.tree.leaves(run(z, 1 - y)):
            np.testing.assert_array_equal(nothing, 0)


# Options at both ends of their range.

ROWS = [row for row in TABLE.values() if row.formula and row.options]


def ends(dtype):
    """For each option: what leaves it alone, its ends, their neighbours, and ordinary numbers."""
    info, one = np.finfo(dtype), np.ones((), dtype)
    # A part of the least number must be a normal one: XLA counts others as 0.
    least, below, above = 64 * info.tiny, np.nextafter(one, one - 1), np.nextafter(one, one + 1)
    unit = [0, least, info.eps, 0.25, below, 1]
    return {
        "label_smoothing": unit,
        "weight": [0.5, *unit, 1e-30, np.nextafter(one / 2, one)],
        "alpha": unit,
        "gamma": [0, least, 1e-10, 0.1, 0.5, below, 1, above, 2, 20, 1e4],
        "epsilon": [0, least, -0.5, 2, 1e4],
        "z_loss": [0, least, 1e-4, 10],
        "class_weights": [[1, 1, 1], [0, 0, 0], [least, 1, 1], [0, 1, 2]],
        "pos_weight": [[1] * 3, [0] * 3, [least, 1, 2], [1e4] * 3],
    }


def draws(row, dtype):
    """Each option at each of its ends, the others left alone; then every two at their extremes."""
    of = {name: ends(dtype)[name] for name in row.options}
    alone = {name: values[0] for name, values in of.items()}
    singles = [alone | {name: x} for name, values in of.items() for x in values]
    pairs = itertools.combinations(of, 2)
    return singles + [
        alone | {a: x, b: y} for a, b in pairs for x in of[a][1::2] for y in of[b][1::2]
    ]


def arguments(row, dtype):
    """Pairs of rows; margins at which exponentials, or their squares, underflow."""
    far = 90 if dtype == "float32" else 800
    z = [[0, 0, 0], [far, 0, 0], [0, far, 0], [0, 0, -far], [far, far, 0], [20, 0, 0], [61, 0, 0]]
    z += [[2 * far, 0, -2 * far], [1e-6, 0, 0], [1e4, 1e4, 0], [1e3, 0, -1e3]]
    z += [[0, -np.inf, 0], [-np.inf, far, 0], [0, -np.inf, -np.inf]]
    soft = [[1, 0, 0], [0, 1, 0], [1 / 3] * 3, [0.25, 0.75, 0], [0, 0, 0]]
    # Its complement has an exponential that underflows, but not beyond the digits of the truth.
    least = 90 if dtype == "float32" else 710
    binary = [[0, 1e-6, 20], [-20, 44.25, 48], [-48, least, -least], [1e4, -1e4, 3]]
    labels = [[0, 1, 0.25], [1, 0, 0.5], [np.nextafter(np.ones((), dtype), 0), 1, 1]]
    likely = [[1, 0.5, 1e-25], [0, 1, 0.5], [1e-6, 0.9, 1]]
    kinds = {
        "logits": binary if row.binary else z,
        "target_logits": z,
        "distributions": labels if row.binary else soft,
        "predictions": likely if row.binary else soft,
        "log_predictions": [[0, -far, -1e4], [-1, -0.5, -3]],
        "labels": np.arange(3, dtype=np.int32),
    }
    found = zip(*itertools.product(*(kinds[kind] for kind in row.kinds)), strict=True)
    return [
        np.asarray(x, np.int32 if kind == "labels" else dtype)
        for kind, x in zip(row.kinds, found, strict=True)
    ]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_values_and_gradients(row, dtype):
    args, failed = arguments(row, dtype), []
    loss = getattr(jxent, row.name)
    run = fast_jit(with_gradients(lambda options, *args: loss(*args, **options)))
    for options in draws(row, dtype):
        options = {name: np.asarray(x, dtype) for name, x in options.items()}
        value, (to_options, *gradients) = run(options, *args)
        results = [value, *(x for x in gradients if x is not None)]
        exact = row.truth(tuple(args), options)
        # What an infinite loss does to its own gradient is a matter of policy.
        finite = np.frompyfunc(lambda x: x.is_finite(), 1, 1)(exact[0].exact).astype(bool)
        assert np.isposinf(np.asarray(value)[~finite]).all(), options
        for got, right in zip(results, exact, strict=False):
            right = Quantity(*(np.broadcast_to(x, right.exact.shape)[finite] for x in right))
            worst, message = tolerances.worst_error(
                np.asarray(got)[finite], right, tolerances.UNITS[row.family], dtype
            )
            if not worst <= 1:
                failed.append(f"{options}: {message}")
        if finite.all() and any(np.isnan(x).any() for x in to_options.values()):
            failed.append(f"{options}: NaN for the options, {to_options}")
    assert not failed, "\n".join(failed)


# The derivative of each loss for each of its options, example by example.

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


def test_derivative_for_class_weights(dtype):
    """``y_j (-log p_j)``, whose errors are those of the surprisals."""
    z, y = _soft(dtype)
    weights = _WEIGHTS.astype(dtype)

    def derivative(z, y):
        return jax.grad(lambda w: jxent.softmax_cross_entropy(z, y, class_weights=w))(weights)

    got = fast_jit(jax.vmap(derivative))(z, y)
    exact = times(decimals(y), _surprisals(decimals(z)))
    quantity = Quantity(exact, *of_itself(exact, nats(exact)))
    worst, message = tolerances.worst_error(got, quantity, 16, dtype)
    assert worst <= 1, message


@pytest.mark.parametrize("gamma", [0.5, 3.0, 1e4])
def test_second_derivatives_of_focal_losses_of_the_largest_logits(gamma):
    """They are 0, though gamma times the loss overflows."""
    z = np.array([-3e38, -2e38, -1e36, -1e4, 1e4, 1e36, 3e38], np.float32)

    def of_two(z):
        return jnp.stack([z, jnp.zeros_like(z)])

    losses = [
        lambda z: jxent.sigmoid_focal_loss(z, jnp.ones_like(z), gamma=gamma),
        lambda z: jxent.sigmoid_focal_loss(z, jnp.zeros_like(z), gamma=gamma),
        lambda z: jxent.softmax_focal_loss_with_integer_labels(of_two(z), 0, gamma=gamma),
    ]
    second = [jax.vmap(jax.grad(jax.grad(loss))) for loss in losses]
    for found in fast_jit(lambda z: [f(z) for f in second])(z):
        np.testing.assert_array_equal(found, np.zeros_like(z))
