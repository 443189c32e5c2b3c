"""The soft cap ``c tanh(z / c)`` of logits and its derivatives, for both, against the truth."""

import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import jxent
from jxent._numerics import soft_cap
from support.accuracy import double_if
from support.cases import fast_jit
from support.tiers import quick
from support.tolerances import DIGITS, FLUSHED, eps

UNITS = 8
CAPS = (1.0, 3.0, 50.0, 1e25)


def points():
    u = np.concatenate([np.logspace(-6, 4, 61), np.linspace(0.4, 60, 50), [0.0]])
    return np.concatenate([u, -u])


def exact_derivatives(z, cap):
    """Every derivative of the first two orders, by the orders for z and for the cap."""
    u = z / cap
    t, slope = mpmath.tanh(u), mpmath.sech(u) ** 2
    bend = 2 * t * slope / cap
    return {
        (0, 0): cap * t,
        (1, 0): slope,
        (0, 1): t - u * slope,
        (2, 0): -bend,
        (1, 1): u * bend,
        (0, 2): -u * u * bend,
    }


def all_derivatives(z, cap):
    """By their orders the ``[ways]`` to the derivatives of one number, each step in any mode."""

    def of(orders, *modes):
        function = soft_cap
        for argument, mode in zip([0] * orders[0] + [1] * orders[1], modes, strict=False):
            function = mode(function, argument)
        return function(z, cap)

    ways = list(itertools.product([jax.grad, jax.jacfwd], repeat=2))
    return {orders: [of(orders, *way) for way in ways] for orders in exact_derivatives(1, 1)}


@pytest.mark.parametrize("dtype", quick(["float32", "float64"]))
def test_derivatives_of_two_orders(dtype):
    """Relative to the exact value; what grows with |ln sech²| = 2u is allowed on top."""
    with double_if(dtype), mpmath.workdps(DIGITS[dtype]):
        z = np.concatenate([points() * cap for cap in CAPS]).astype(dtype)
        caps = np.repeat(np.asarray(CAPS, dtype), len(points()))
        got = jax.jit(jax.vmap(all_derivatives))(jnp.asarray(z), jnp.asarray(caps))
        got = {orders: np.asarray(ways) for orders, ways in got.items()}
        for i, (x, cap) in enumerate(zip(z, caps, strict=True)):
            x, cap = mpmath.mpf(float(x)), mpmath.mpf(float(cap))
            for orders, exact in exact_derivatives(x, cap).items():
                nats = 0 if orders in [(0, 0), (0, 1)] else abs(x / cap)
                bound = (UNITS + nats) * eps(dtype) * abs(exact) + FLUSHED[dtype] / min(1, cap)
                for value in got[orders][:, i]:
                    assert abs(mpmath.mpf(float(value)) - exact) <= bound, (orders, x, cap, value)


@pytest.mark.full
def test_third_derivative():
    """Of a function of one number that is both: relative to the sizes of its terms."""
    dtype = "float64"

    def along(x):
        return soft_cap(1.5 * x, 2 + 0.5 * x)

    def exact(x):
        return (2 + x / 2) * mpmath.tanh(1.5 * x / (2 + x / 2))

    x = np.asarray([1e-3, 0.1, 0.5, 1.0, 2.0, 3.0, 6.0], dtype)
    with double_if(dtype):
        rev, fwd = jax.grad, jax.jacfwd
        # Any two of the three steps have any two modes.
        modes = (rev, rev, rev), (rev, fwd, fwd), (fwd, rev, fwd), (fwd, fwd, rev)
        ways = [third(second(first(along))) for first, second, third in modes]
        got = jax.jit(jax.vmap(lambda x: jnp.stack([f(x) for f in ways])))(jnp.asarray(x))
        with mpmath.workdps(80):
            for row, number in zip(np.asarray(got, np.float64), x, strict=True):
                right = float(mpmath.diff(exact, mpmath.mpf(float(number)), 3))
                np.testing.assert_allclose(row, right, rtol=0, atol=32 * eps(dtype))


INF, NAN = np.inf, np.nan
LIMITS = [
    # z, cap, value, derivative for z, derivative for the cap
    (0.0, 2.0, 0.0, 1.0, 0.0), (5.0, INF, 5.0, 1.0, 0.0), (0.0, INF, 0.0, 1.0, 0.0),
    (INF, 2.0, 2.0, 0.0, 1.0), (-INF, 2.0, -2.0, 0.0, -1.0),
    (INF, INF, INF, 1.0, 0.0), (-INF, INF, -INF, 1.0, 0.0),
    (1e4, 2.0, 2.0, 0.0, 1.0), (-3e38, 1e-3, -1e-3, 0.0, -1.0), (1e-10, 1e35, 1e-10, 1.0, 0.0),
    (NAN, 2.0, NAN, NAN, NAN),
]  # fmt: skip


def test_limits():
    """No NaN in derivatives of three orders, nor in a branch not taken of two."""
    z, caps, *expected = np.float32(LIMITS).T

    def of_two_orders(z, cap):
        first = jax.grad(soft_cap, (0, 1))(z, cap)
        return soft_cap(z, cap), *first, *jax.tree.leaves(jax.hessian(soft_cap, (0, 1))(z, cap))

    def derivatives(z, cap):
        third = jax.jacfwd(jax.jacrev(jax.grad(soft_cap, (0, 1)), (0, 1)), (0, 1))(z, cap)
        value, to_z, to_cap, *second = of_two_orders(z, cap)
        return value, to_z, to_cap, jnp.stack([*second, *jax.tree.leaves(third)])

    *got, higher = fast_jit(jax.vmap(derivatives))(z, caps)
    for actual, right in zip(got, expected, strict=True):
        np.testing.assert_allclose(actual, right, rtol=1e-6)
    assert np.all(np.isfinite(higher[~np.isnan(z)]))
    with jax.debug_nans(True), jax.disable_jit():
        jax.vmap(of_two_orders)(z[:-1], caps[:-1])


@pytest.mark.full
def test_the_head_has_them():
    """With one feature and the classes z and 0, whose loss is ``softplus(-c tanh(z / c))``."""
    cap, us = 3.0, [1e-4, 0.02, 1.0, 6.0, 12.0]

    def loss(share, cap, z):
        x, kernel = jnp.full((2, 1), share), jnp.stack([z, 0 * z])[None, :]
        options = {"logit_softcap": cap, "chunk_size": 1}
        return jxent.linear_softmax_cross_entropy(x, kernel, [0, 0], **options)

    @fast_jit
    @jax.vmap
    def derivatives(z):
        by_share, by_cap = jax.grad(loss, (0, 1))(1.0, cap, z)
        return by_share, by_cap, jax.jacfwd(jax.grad(loss, 1), 1)(1.0, cap, z)

    logits = np.asarray(us, np.float32) * np.float32(cap)
    for u, z, *got in zip(us, logits, *derivatives(logits), strict=True):
        with mpmath.workdps(60):
            number = mpmath.mpf(float(z))

            def exact(share, cap, z=number):
                return mpmath.log1p(mpmath.exp(-cap * mpmath.tanh(share * z / cap)))

            orders = ((1, 0), (0, 1), (0, 2))
            right = [float(mpmath.diff(exact, (mpmath.mpf(1), mpmath.mpf(cap)), n)) for n in orders]
        np.testing.assert_allclose(got, right, rtol=(24 + 2 * u) * eps("float32"))
