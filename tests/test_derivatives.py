"""Every way of differentiating, for every function and every argument, against differences."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, bare, fast_jit

_STEP = 1e-5

_FIRST = ["grad", "linearize", "jacfwd", "jacrev"]
_SECOND = ["forward over forward", "reverse over forward", "reverse over reverse"]
# The compositions are one mechanism's: a rule with one argument, two, three, or with integers.
_COMPOSED = [
    bare("softmax_cross_entropy"),
    bare("softmax_cross_entropy_with_integer_labels"),
    bare("sigmoid_binary_cross_entropy"),
    bare("relative_entropy"),
    bare("entropy"),
]


class _Along:
    """A case in float64 as a function of one vector, and the vector's direction `dot`."""

    def __init__(self, case):
        function, floats = case.of_floats(case.args(np.float64))
        self.point, unravel = jax.flatten_util.ravel_pytree(floats)
        self.dot = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.5, self.point.size))
        self.outputs = lambda x: jnp.ravel(function(*unravel(x)))
        size = jax.eval_shape(self.outputs, self.point).size
        self.weights = jnp.linspace(0.5, 1.0, size)
        self.value_and_gradient = fast_jit(lambda x: (self.outputs(x), jax.grad(self.total)(x)))

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


@functools.cache
def _first(case):
    with jax.enable_x64(True):
        along = _along(case)

        @fast_jit
        def by_every_route(x, dot):
            f = along.outputs
            return {
                "linearize": jax.linearize(f, x)[1](dot),
                "jacfwd": jax.jacfwd(f)(x) @ dot,
                "jacrev": jax.jacrev(f)(x) @ dot,
            }

        gradient = along.value_and_gradient(along.point)[1]
        results = by_every_route(along.point, along.dot)
        return jax.tree.map(np.asarray, results | {"grad": jnp.vdot(gradient, along.dot)})


@pytest.mark.parametrize("route", _FIRST)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_first_derivative(case, route):
    expected = _differences(case)[0]
    if route == "grad":
        expected = expected @ np.linspace(0.5, 1.0, expected.size)
    np.testing.assert_allclose(_first(case)[route], expected, rtol=1e-7, atol=1e-8)


# The derivatives of a pullback, below, are the same in another form.
@pytest.mark.full
@pytest.mark.parametrize("case", CASES, ids=str)
def test_hessian(case):
    with jax.enable_x64(True):
        along = _along(case)
        hessian = np.asarray(fast_jit(jax.hessian(along.total))(along.point))
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-10, atol=1e-12)
    expected = _differences(case)[1]
    product = hessian @ np.asarray(along.dot)
    np.testing.assert_allclose(product, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_pullback_together(case):
    """What `jax.vjp` returns is differentiated again, the one multiplied into the other.

    In a loop, in which JAX 0.10 forgets the rules of second derivatives, and takes those of the
    operations.
    """
    with jax.enable_x64(True):
        along = _along(case)

        def outputs(x):
            def step(_, scale):
                return None, along.outputs(scale * x)

            return jax.lax.scan(step, None, jnp.ones(1))[1][0]

        def together(x):
            out, pullback = jax.vjp(outputs, x)
            return jnp.concatenate([out, *pullback(along.weights + out)])

        @fast_jit
        def by_every_route(x, dot):
            out, tangent = jax.jvp(together, (x,), (dot,))
            weights = jnp.linspace(0.5, 1.0, out.size)
            gradient = jax.grad(lambda x: jnp.vdot(weights, together(x)))(x)
            ahead, behind = together(x + _STEP * dot), together(x - _STEP * dot)
            return (ahead - behind) / (2 * _STEP), tangent, jnp.vdot(gradient, dot), weights

        results = map(np.asarray, by_every_route(along.point, along.dot))
        expected, tangent, along_gradient, weights = results
    np.testing.assert_allclose(tangent, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(along_gradient, weights @ expected, rtol=1e-6, atol=1e-6)


@functools.cache
def _second(case):
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

        return jax.tree.map(np.asarray, by_every_route(along.point, along.dot))


@pytest.mark.parametrize("route", _SECOND)
@pytest.mark.parametrize("case", _COMPOSED, ids=str)
def test_second_derivative(case, route):
    expected = _differences(case)[1]
    if route == "forward over forward":
        expected = expected @ np.asarray(_along(case).dot)
    np.testing.assert_allclose(_second(case)[route], expected, rtol=1e-7, atol=1e-7)
