"""Where a result is small against what it is made of, or as large as a number can be."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent._selftest.table import TABLE
from support import tolerances
from support.accuracy import double_if
from support.cases import fast_jit
from support.tiers import quick

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
@pytest.mark.parametrize("dtype", quick(["float32", "float64"]))
def test_gradient_near_agreement(name, dtype):
    """Each entry is exact in itself, as the value is: it vanishes where both agree."""
    arguments, options = AGREEING[name]
    name = name.split()[0]
    with double_if(dtype), tolerances.many_digits(dtype):
        args = arguments(dtype)
        exact = TABLE[name].truth(args, {k: np.asarray(x, dtype) for k, x in options.items()})
        function = functools.partial(getattr(jxent, name), **options)
        total = fast_jit(jax.grad(lambda *args: jnp.sum(function(*args)), (0, 1)))
        for got, right in zip(total(*args), exact[1:], strict=False):
            right, flushed = right.exact.astype(np.float64), tolerances.FLUSHED[dtype]
            np.testing.assert_allclose(got, right, rtol=64 * tolerances.eps(dtype), atol=flushed)


@pytest.mark.parametrize("dtype", quick(["float32", "float64"]))
def test_the_gradient_of_weights_at_their_ends(dtype):
    """It is the divergence of what has no weight from the other one, which is the mixture."""
    margin = 90 if dtype == "float32" else 800
    with double_if(dtype):
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
        for got, exact in zip(both, fast_jit(divergences)(), strict=True):
            np.testing.assert_allclose(got, exact, rtol=64 * tolerances.eps(dtype), atol=1e-30)


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


def largest(dtype):
    most = np.finfo(dtype).max
    sizes = np.array([most, most / 2, 0.6 * most, 1e30], dtype)
    return np.concatenate([sizes, -sizes])


@pytest.mark.parametrize("gamma", [None, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", quick(["float32", "float64"]))
def test_binary_losses_of_the_largest_logits(gamma, dtype):
    """There a sigmoid is 0 or 1, and the loss a logit or 0, times a power of what is missed."""
    with double_if(dtype):
        z, y = map(np.array, zip(*itertools.product(largest(dtype), [0, 1, 0.25]), strict=True))
        y = y.astype(dtype)

        def loss(z, y):
            if gamma is None:
                return jxent.sigmoid_binary_cross_entropy(z, y)
            return jxent.sigmoid_focal_loss(z, y, gamma=gamma)

        value, gradient = fast_jit(
            lambda z, y: (loss(z, y), jax.grad(lambda z: jnp.sum(loss(z, y)))(z))
        )(z, y)
        p = (z > 0).astype(dtype)
        factor = (y * (1 - p) + (1 - y) * p) ** (gamma or 0)
        # A logit beside a sigmoid of 0 or 1 changes nothing but the loss itself.
        np.testing.assert_allclose(value, factor * np.abs(p - y) * np.abs(z), rtol=1e-6)
        np.testing.assert_allclose(gradient, factor * (p - y), rtol=1e-6)


@pytest.mark.parametrize("dtype", quick(["float32", "float64"]))
def test_divergence_and_entropy_of_the_largest_logits(dtype):
    with double_if(dtype):
        pairs = itertools.product(largest(dtype), repeat=2)
        z_q, z_p = map(np.array, zip(*pairs, strict=True))

        def both(z_q, z_p):
            divergence = jxent.sigmoid_kl_divergence
            return (
                divergence(z_q, z_p),
                *jax.grad(lambda *z: jnp.sum(divergence(*z)), (0, 1))(z_q, z_p),
                jxent.sigmoid_entropy(z_q),
                jax.grad(lambda z: jnp.sum(jxent.sigmoid_entropy(z)))(z_q),
            )

        value, to_q, to_p, *of_entropy = fast_jit(both)(z_q, z_p)
        q, p = (z_q > 0).astype(dtype), (z_p > 0).astype(dtype)
        np.testing.assert_allclose(value, np.where(q == p, 0, np.abs(z_q)), rtol=1e-6)
        np.testing.assert_array_equal(to_q, q - p)
        for nothing in (to_p, *of_entropy):
            np.testing.assert_array_equal(nothing, 0 * z_q)


@pytest.mark.parametrize("dtype", quick(["float32", "float64"]))
def test_softmax_losses_of_the_largest_logits(dtype):
    """Margins that do not overflow: the least likely label costs the margin."""
    with double_if(dtype):
        most = np.finfo(dtype).max
        z = np.array([[most, 0], [0, most], [most / 2, -most / 2], [-most, 0], [0.6 * most, 0]])
        z = z.astype(dtype)
        y = np.argmin(z, axis=-1)
        losses = (
            jxent.softmax_cross_entropy_with_integer_labels,
            jxent.softmax_focal_loss_with_integer_labels,
        )

        def all_of(z, labels):
            return [
                (loss(z, labels), jax.grad(lambda z: jnp.sum(loss(z, labels)))(z))  # noqa: B023
                for loss in losses
            ]

        run = fast_jit(all_of)
        to_least = np.where(np.arange(2) == y[:, None], -1, 1)
        for value, gradient in run(z, y):
            np.testing.assert_allclose(value, np.ptp(z, axis=-1), rtol=1e-6)
            np.testing.assert_array_equal(gradient, to_least)
        for value, gradient in run(z, 1 - y):
            np.testing.assert_array_equal(value, 0)
            np.testing.assert_array_equal(gradient, 0)
