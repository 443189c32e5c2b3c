"""Every way of differentiating, for every function and every argument, against differences."""

import functools
import math

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from jxent._autodiff import with_gradient
from jxent._selftest.table import TABLE
from support.cases import ALL, BARE, CASES, bare, compiled, fast_jit, of_some
from support.tiers import quick

_STEP = 1e-5

# The compositions are one mechanism's: a rule with one argument, two, three, or with integers.
_COMPOSED = [
    *map(bare, ("softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels")),
    *map(bare, ("sigmoid_binary_cross_entropy", "relative_entropy", "entropy")),
]


class _Along:
    """A case in float64 as a function of one vector, and the vector's direction `dot`."""

    def __init__(self, case):
        args = case.args(np.float64)
        function, floats = case.of_floats(args)
        self.point, unravel = jax.flatten_util.ravel_pytree(floats)
        self.dot = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.5, self.point.size))
        self.outputs = lambda x: jnp.ravel(function(*unravel(x)))
        shape = jax.eval_shape(case.call, *args).shape
        self.weights = jnp.linspace(0.5, 1.0, math.prod(shape))

        def value_and_gradient(x):
            call = functools.partial(compiled(case), self.weights.reshape(shape))
            out, *gradients = of_some(call, case.differentiable, args)[0](*unravel(x))
            return jnp.ravel(out), jax.flatten_util.ravel_pytree(gradients)[0]

        self.value_and_gradient = value_and_gradient

    def total(self, x):
        return jnp.vdot(self.weights, self.outputs(x))

    def differences(self):
        """What the outputs and the gradient change by along the direction."""
        after = self.value_and_gradient(self.point + _STEP * self.dot)
        before = self.value_and_gradient(self.point - _STEP * self.dot)
        return jax.tree.map(lambda x, y: np.asarray((x - y) / (2 * _STEP)), after, before)


@functools.cache
def _along(case):
    return _Along(case)


@functools.cache
def _differences(case):
    with jax.enable_x64(True):
        return _along(case).differences()


_ROUTES = {
    "linearize": lambda f, x, dot: jax.linearize(f, x)[1](dot),
    "jacfwd": lambda f, x, dot: jax.jacfwd(f)(x) @ dot,
    "jacrev": lambda f, x, dot: jax.jacrev(f)(x) @ dot,
}


# What has a formula in the table of losses has exact gradients in `test_accuracy.py`.
_WITHOUT_FORMULA = [case for case in CASES if not TABLE[case.name].formula]


@pytest.mark.parametrize("case", quick(CASES, *_WITHOUT_FORMULA), ids=str)
def test_gradient(case):
    with jax.enable_x64(True):
        along = _along(case)
        gradient = along.value_and_gradient(along.point)[1]
        product = np.vdot(gradient, along.dot)
    expected = _differences(case)[0] @ np.asarray(along.weights)
    np.testing.assert_allclose(product, expected, rtol=1e-7, atol=1e-8)


# Their parts, `jax.jvp` and the pullback, are in the tests of the quick tier.
@pytest.mark.full
@pytest.mark.parametrize("route", _ROUTES)
@pytest.mark.parametrize("case", _COMPOSED, ids=str)
def test_first_derivative(case, route):
    with jax.enable_x64(True):
        along = _along(case)
        derivative = fast_jit(functools.partial(_ROUTES[route], along.outputs))
        found = np.asarray(derivative(along.point, along.dot))
    np.testing.assert_allclose(found, _differences(case)[0], rtol=1e-7, atol=1e-8)


def _together(case):
    """What `jax.vjp` returns, the value multiplied into the pullback, as a function of a vector.

    It is in a loop, in which JAX 0.10 forgets the rules of second derivatives, and takes those of
    the operations.
    """
    along = _along(case)

    def outputs(x):
        def step(_, scale):
            return None, along.outputs(scale * x)

        return jax.lax.scan(step, None, jnp.ones(1))[1][0]

    def together(x):
        out, pullback = jax.vjp(outputs, x)
        return jnp.concatenate([out, *pullback(along.weights + out)])

    return together


@functools.cache
def _tangent_and_differences(case):
    with jax.enable_x64(True):
        together, x, dot = _together(case), _along(case).point, _along(case).dot
        push = fast_jit(lambda x: jax.jvp(together, (x,), (dot,)))
        ahead, behind = push(x + _STEP * dot)[0], push(x - _STEP * dot)[0]
        return np.asarray(push(x)[1]), np.asarray((ahead - behind) / (2 * _STEP))


# One of each family of rules; their arguments' number and kinds differ.
_RULES = {
    "logsumexp", "softmax", "softmax_entropy", "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels", "softmax_focal_loss_with_integer_labels",
    "softmax_kl_divergence", "softmax_jensen_shannon_divergence",
    "softmax_kl_divergence_with_top_k_targets", "sigmoid_binary_cross_entropy",
    "sigmoid_kl_divergence", "sigmoid_focal_loss", "relative_entropy", "generalized_kl_divergence",
    "cross_entropy_with_integer_labels", "binary_cross_entropy", "linear_softmax_cross_entropy",
}  # fmt: skip


@pytest.mark.parametrize("case", quick(ALL, *(c for c in BARE if c.name in _RULES)), ids=str)
def test_value_and_pullback_together(case):
    """Differentiated again, with all second derivatives in it."""
    tangent, expected = _tangent_and_differences(case)
    np.testing.assert_allclose(tangent, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("case", _COMPOSED, ids=str)
def test_value_and_pullback_together_backwards(case):
    expected = _tangent_and_differences(case)[1]
    with jax.enable_x64(True):
        together, along = _together(case), _along(case)
        weights = jnp.linspace(0.5, 1.0, expected.size)
        gradient = fast_jit(jax.grad(lambda x: jnp.vdot(weights, together(x))))(along.point)
        product = np.vdot(gradient, along.dot)
    np.testing.assert_allclose(product, np.asarray(weights) @ expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", quick(_COMPOSED, *_COMPOSED[1:4]), ids=str)
def test_second_derivative(case):
    change = _differences(case)[1]
    with jax.enable_x64(True):
        along = _along(case)

        @fast_jit
        def by_every_route(x, dot):
            def forward(x):
                return jax.jvp(along.total, (x,), (dot,))[1]

            def reverse(x):
                return jnp.vdot(jax.grad(along.total)(x), dot)

            return {
                "forward over forward": jax.jvp(forward, (x,), (dot,))[1],
                "reverse over forward": jax.grad(forward)(x),
                "reverse over reverse": jax.grad(reverse)(x),
            }

        for route, found in by_every_route(along.point, along.dot).items():
            expected = change if found.ndim else change @ np.asarray(along.dot)
            np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-7, err_msg=route)


def test_a_gradient_rule_is_traced_once():
    """A loss's rule is most of what there is to trace in a training step."""
    traced = []

    def rule(cotangent, x):
        traced.append(x)
        return (3 * x**2 * cotangent,)

    cube = with_gradient(rule)(lambda x: x**3)
    assert jax.jit(jax.grad(cube))(2.0) == 12
    assert len(traced) == 1
