"""Second derivatives against the exact function, in both compositions and relative to their terms.

Each entry may be off by 64 eps of the sum of the sizes of its terms, where 1 - p is one term, and
not the difference of two. What is rounded where a logit is subtracted from the maximum grows with
the logarithm of a probability, as it does in the gradient.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent._selftest.exact import ONE, ZERO, decimals
from jxent._selftest.sizes import Quantity, exp, ln, nats, times, total
from support import tolerances
from support.accuracy import double_if
from support.cases import BARE, fast_jit, with_gradients
from support.tiers import quick
from support.tolerances import SECOND_DERIVATIVE, computing

CLASSES = 4
_WEIGHTS = np.array([0.5, -2.0, 1.0, 3.0])
"""What the entries of an array of results are multiplied with before they are added."""


def rows(dtype):
    rng = np.random.default_rng(0)
    margins = (-100, -30, -20, -8, -1, 0, 1, 8, 20, 30, 100)
    z = rng.normal(size=(2 * len(margins), CLASSES))
    z[:, 1] += np.repeat(margins, 2)
    extra = [
        np.zeros(CLASSES),
        1e4 + 3 * rng.normal(size=CLASSES),
        [5, 5, -40, 0],
        [20, -np.inf, 0, -3],
        [-np.inf, 1, -np.inf, 2],
    ]
    return np.concatenate([z, extra]).astype(dtype)


def near_rows(dtype):
    """Pairs of rows whose log-probabilities differ by at most about one."""
    z = rows(dtype)[:-2]
    changes = np.resize([1e-6, 1e-4, 1e-2, 0.5], len(z))[:, None]
    return z, (z + changes * np.random.default_rng(1).normal(size=z.shape)).astype(dtype)


def soft_labels(dtype):
    z = rows(dtype)
    y = np.random.default_rng(2).dirichlet(np.ones(CLASSES), size=len(z))
    y[::3] = np.eye(CLASSES)[1]
    return z, np.where(np.isinf(z), 0, y).astype(dtype)


def binary_logits(dtype):
    z = np.array([-70, -20, -3, -0.5, 0, 1e-4, 1, 8, 20, 30, 70], dtype)
    return z, np.resize(np.array([0, 0.25, 1], dtype), z.shape)


def binary_pairs(dtype):
    z_q, _ = binary_logits(dtype)
    return z_q, (z_q + np.resize([1e-4, 0.5, -2], z_q.shape)).astype(dtype)


def probabilities(dtype):
    p = [0.1, 1e-20, 1e-6, 1e-30, 0.5, 0.9, 1 - 1e-6]
    # The square of a p that small is 0, and what is divided by it is not looked at.
    labels = [0, 0.25, 1, 0, 1, 0.25, 1]
    return np.array(p, dtype), np.array(labels, dtype)


class Distribution(NamedTuple):
    """Of the rows of logits, in many digits."""

    p: np.ndarray
    n: np.ndarray
    """``-log p``, 0 for a class that does not exist"""
    covariance: np.ndarray
    """``p_j (δ_jk - p_k)``, the derivative of softmax"""

    @classmethod
    def of(cls, z):
        e = exp(z)
        p = e / total(e)
        n = np.where(p == 0, ZERO, -ln(np.where(p == 0, ONE, p)))
        others = decimals(np.eye(p.shape[-1])) - p[..., None, :]
        return cls(p, n, p[..., None] * others)


def _columns(x):
    return x[..., None, :]


def _lines(x):
    return x[..., :, None]


def _weighted(covariance, x):
    """``sum_i x_i cov_ik`` and the sum of the sizes, without the terms of class j, as [j, k]."""
    terms = decimals(x)[:, None] * covariance
    others = 1 - decimals(np.eye(CLASSES))
    return [
        np.sum(others[:, :, None] * part[..., None, :, :], axis=-2) for part in (terms, abs(terms))
    ]


def softmax(z):
    """Of ``sum_j c_j p_j``: the derivative of ``p_j (c_j (1 - p_j) - sum_{i≠j} p_i c_i)``."""
    p, _, covariance = Distribution.of(z)
    c = decimals(_WEIGHTS)
    mean = total(p * c)
    exact = covariance * _lines(c - mean) - _lines(p) * _columns(p * (c - mean))
    others = total(p * abs(c)) - p * abs(c)
    _, sizes = _weighted(covariance, _WEIGHTS)
    terms = abs(covariance) * _lines(abs(c) * (1 - p) + others)
    terms = terms + _lines(p) * (_lines(abs(c)) * abs(covariance) + sizes)
    return [[(exact, terms)]]


def log_softmax(z):
    covariance = Distribution.of(z).covariance
    c = decimals(_WEIGHTS)
    return [[(-np.sum(c) * covariance, np.sum(abs(c)) * abs(covariance))]]


def single(x):
    return x, abs(x)


def logsumexp(z):
    return [[single(Distribution.of(z).covariance)]]


def soft_cross_entropy(z, y):
    p, _, covariance = Distribution.of(z)
    cross = _lines(p) - decimals(np.eye(CLASSES))
    cross = np.where(_columns(p) == 0, ZERO, cross)
    mass = total(y)[..., None]
    return [
        [single(mass * covariance), single(cross)],
        [single(np.swapaxes(cross, -1, -2)), single(0 * cross)],
    ]


def entropy(z):
    p, n, covariance = Distribution.of(z)
    h = total(p * n)
    identity = np.where(p == 0, ZERO, ONE)[..., None] * decimals(np.eye(CLASSES))
    slope = _columns(p * (n - h))
    exact = covariance * _lines(n - h) + _lines(p) * (_columns(p) - identity - slope)
    terms = abs(covariance) * _lines(n + h)
    terms = terms + _lines(p) * (abs(_columns(p) - identity) + _columns(p * (n + h)))
    return [[(exact, terms)]]


def _both(z):
    e = exp(-abs(z))
    large, small = 1 / (1 + e), e / (1 + e)
    return np.where(z > 0, large, small), np.where(z > 0, small, large)


def sigmoid_cross_entropy(z, y):
    p, q = _both(z)
    cross = 0 * p - 1
    return [[single(p * q), single(cross)], [single(cross), single(0 * p)]]


def sigmoid_entropy(z):
    p, q = _both(z)
    return [[(-p * q * (1 + z * (q - p)), p * q * (1 + abs(z)))]]


def sigmoid_kl_divergence(z_q, z_p):
    (p, not_p), (q, not_q) = _both(z_p), _both(z_q)
    d = z_p - z_q
    cross = single(-p * not_p)
    pp = p * not_p * (1 + d * (not_p - p)), p * not_p * (1 + abs(d))
    return [[single(q * not_q), cross], [cross, pp]]


def binary_entropy(p):
    return [[single(-1 / p - 1 / (1 - p))]]


def binary_cross_entropy(p, y):
    cross = single(-1 / p - 1 / (1 - p))
    to_p = y / p**2 + (1 - y) / (1 - p) ** 2
    return [[single(to_p), cross], [cross, single(0 * p)]]


GAMMAS = (0, 1e-10, 0.1, 0.5, 1, 1.5, 2)


def _with_gammas(x, dtype):
    return np.repeat(x, len(GAMMAS), axis=0), np.tile(np.array(GAMMAS, dtype), len(x))


def focal_logits(dtype):
    """A power below gamma would overflow from 44 on; the label is 1."""
    z = [-70, -20, -3, -0.5, 0, 1e-4, 1, 8, 20, 30, 44.25, 48, 61, 70]
    return _with_gammas(np.array(z, dtype), dtype)


def focal_rows(dtype):
    far = [[0, margin, 1, -2] for margin in (44.25, 48, 61, 80)]
    return _with_gammas(np.concatenate([rows(dtype)[:-2:2], far]).astype(dtype), dtype)


def sigmoid_focal(z, gamma):
    """Of ``q^γ l`` with ``q = 1 - p``, where l' = -q and (q^γ)' = -γ p q^γ."""
    p, q = _both(z)
    loss, power, log = -ln(p), q**gamma, -ln(q)
    to_z = power * p * ((gamma**2 * p - gamma * q) * loss + (2 * gamma + 1) * q)
    terms = power * p * ((gamma**2 * p + gamma * q) * loss + (2 * gamma + 1) * q)
    slope, rest = power * log * (q + gamma * p * loss), power * p * loss
    cross = slope - rest, slope + rest
    return [[(to_z, terms), cross], [cross, single(power * log**2 * loss)]]


def softmax_focal(z, gamma):
    """Of a function of the loss l, whose slope is ``m^γ (1 + γ l p/m)`` with ``m = 1 - p``."""
    p, n, covariance = Distribution.of(z)
    own, loss, missed = p[:, 1], n[:, 1], np.sum(p[:, [0, 2, 3]], axis=-1)
    ratio, power, log = loss * own / missed, missed**gamma, -ln(missed)
    slope = power * (1 + gamma * ratio)
    steep, more = (own / missed) * gamma * slope, power * gamma * own / missed
    to_loss = steep + more * (1 - loss / missed), steep + more * (1 + loss / missed)
    to_z = np.where(decimals(np.eye(CLASSES))[1] == 1, -missed[:, None], p)
    square = _lines(to_z) * _columns(to_z)
    whole = [x[:, None, None] for x in (*to_loss, slope)]
    zz = whole[0] * square + whole[2] * covariance
    zz_terms = whole[1] * abs(square) + whole[2] * abs(covariance)
    change = -slope * log + power * ratio, slope * log + power * ratio
    cross = change[0][:, None] * to_z, change[1][:, None] * abs(to_z)
    return [[(zz, zz_terms), cross], [cross, single(power * log**2 * loss)]]


def two_distributions(dtype):
    """Nearly equal to far apart, and not normalised."""
    rng = np.random.default_rng(3)
    p = rng.dirichlet(np.ones(CLASSES), 12)
    changes = np.resize([1e-6, 1e-3, 0.3, 3, 10, 20], 12)[:, None]
    q = p * np.exp(changes * rng.normal(size=p.shape))
    return p.astype(dtype), q.astype(dtype)


def logs_and_distributions(dtype):
    p, q = two_distributions(dtype)
    return np.log(q.astype(np.float64)).astype(dtype), p


def two_logs(dtype):
    return tuple(np.log(x.astype(np.float64)).astype(dtype) for x in two_distributions(dtype))


def _of_each_class(first, cross, second):
    """The blocks of a sum over the classes, each of which has an exact value and its terms."""

    def block(pair):
        return tuple(_lines(x) * decimals(np.eye(CLASSES)) for x in pair)

    return [[block(first), block(cross)], [block(cross), block(second)]]


def relative_entropy(p, q):
    return _of_each_class(single(1 / p), single(-1 / q), single(p / q**2))


def jensen_shannon(p, q):
    both = 2 * (p + q)
    return _of_each_class(single(q / p / both), single(-1 / both), single(p / q / both))


def cross_entropy(p, q):
    return _of_each_class(single(0 * p), single(-1 / q), single(p / q**2))


def kl_divergence(log_q, p):
    return _of_each_class(single(0 * p), single(0 * p - 1), single(1 / p))


def kl_divergence_of_logs(log_q, log_p):
    p, t = exp(log_p), log_p - log_q
    return _of_each_class(single(0 * p), single(-p), (p * (t + 2), p * (abs(t) + 2)))


def generalized_kl_divergence(log_q, p):
    return _of_each_class(single(exp(log_q)), single(0 * p - 1), single(1 / p))


def _one(make):
    return lambda dtype: make(dtype)[:1]


def _but(last, make):
    """Without the last rows, where the result is infinite."""
    return lambda dtype: tuple(x[:-last] for x in make(dtype))


def _integer_loss(z):
    return jxent.softmax_cross_entropy_with_integer_labels(z, 2)


def _focal_loss(z, gamma):
    return jxent.softmax_focal_loss_with_integer_labels(z, 1, gamma)


def _binary_focal_loss(z, gamma):
    return jxent.sigmoid_focal_loss(z, 1.0, gamma=gamma)


_TABLE = {
    "softmax": (jxent.softmax, _one(soft_labels), softmax),
    "log_softmax": (jxent.log_softmax, _but(2, _one(soft_labels)), log_softmax),
    "logsumexp": (jxent.logsumexp, _one(soft_labels), logsumexp),
    "integer labels": (_integer_loss, _but(1, _one(soft_labels)), logsumexp),
    "soft labels": (jxent.softmax_cross_entropy, _but(2, soft_labels), soft_cross_entropy),
    "entropy": (jxent.softmax_entropy, _one(soft_labels), entropy),
    "sigmoid": (jxent.sigmoid_binary_cross_entropy, binary_logits, sigmoid_cross_entropy),
    "sigmoid entropy": (jxent.sigmoid_entropy, _one(binary_logits), sigmoid_entropy),
    "sigmoid divergence": (jxent.sigmoid_kl_divergence, binary_pairs, sigmoid_kl_divergence),
    "binary entropy": (jxent.binary_entropy, _one(probabilities), binary_entropy),
    "binary": (jxent.binary_cross_entropy, probabilities, binary_cross_entropy),
    "focal": (_focal_loss, focal_rows, softmax_focal),
    "binary focal": (_binary_focal_loss, focal_logits, sigmoid_focal),
    "relative entropy": (jxent.relative_entropy, two_distributions, relative_entropy),
    "Jensen-Shannon": (jxent.jensen_shannon_divergence, two_distributions, jensen_shannon),
    "cross-entropy": (jxent.cross_entropy, two_distributions, cross_entropy),
    "divergence": (jxent.kl_divergence, logs_and_distributions, kl_divergence),
    "divergence of logs": (jxent.kl_divergence_with_log_targets, two_logs, kl_divergence_of_logs),
    "generalized divergence": (
        jxent.generalized_kl_divergence, logs_and_distributions, generalized_kl_divergence
    ),
}  # fmt: skip
"""A function, its arguments by dtype, and its exact second derivatives, block by block."""


@pytest.fixture(params=quick(["float32", "float64"]))
def dtype(request):
    with double_if(request.param), tolerances.many_digits(request.param):
        yield request.param


def hessians(function, *args):
    """Forward over reverse and reverse over reverse, each ``[rows, ..., ...]`` block by block."""

    def summed(*args):
        out = function(*args)
        return out @ _WEIGHTS.astype(out.dtype) if out.ndim else out

    argnums = tuple(range(len(args)))
    gradient = jax.grad(summed, argnums)
    both = {
        "forward over reverse": jax.jacfwd(gradient, argnums),
        "reverse over reverse": jax.jacrev(gradient, argnums),
    }
    program = jax.vmap(lambda *args: {name: f(*args) for name, f in both.items()})
    return fast_jit(program)(*map(jnp.asarray, args))


# The others are made of the same rules.
_QUICK = "integer labels", "entropy", "sigmoid", "binary", "focal", "binary focal", "Jensen-Shannon"


@pytest.mark.parametrize("name", quick(_TABLE, *_QUICK))
def test_hessian(name, dtype):
    function, arguments, exact = _TABLE[name]
    args = arguments(dtype)
    exact = exact(*map(decimals, args))
    for composition, blocks in hessians(function, *args).items():
        for i, line in enumerate(blocks):
            for k, got in enumerate(line):
                value, terms = exact[i][k]
                quantity = Quantity(value, terms, times(nats(terms), terms))
                worst, message = tolerances.worst_error(got, quantity, SECOND_DERIVATIVE, dtype)
                assert worst <= 1, f"{composition}, block {i, k}: {message}"


@pytest.mark.parametrize("name", ["integer labels", "soft labels", "entropy", "sigmoid"])
def test_gradient_of_a_value_that_came_with_a_gradient(name, dtype):
    """It is the gradient, to the last bits: the value of `jax.vjp` meets the rule again."""
    function, arguments, _ = _TABLE[name]
    x, *others = map(jnp.asarray, arguments(dtype))

    def value(x):
        return jax.vjp(lambda x: function(x, *others), x)[0]

    def again_and_once(x):
        return [with_gradients(f)(x)[1][0] for f in (value, lambda x: function(x, *others))]

    again, once = fast_jit(again_and_once)(x)
    np.testing.assert_allclose(again, once, rtol=4 * tolerances.eps(dtype))


def test_gradient_of_a_value_that_came_with_a_gradient_twice(dtype):
    """The value of the value meets the rule as well: its own operations have no limit to give."""
    z, y = (jnp.asarray(x, dtype) for x in ([np.inf, -np.inf, 20, 1], [0, 1, 1, 0.25]))

    def loss(z):
        return jnp.sum(jxent.sigmoid_binary_cross_entropy(z, y))

    def value(function):
        return lambda z: jax.vjp(function, z)[0]

    again, once = fast_jit(lambda z: (jax.grad(value(value(loss)))(z), jax.grad(loss)(z)))(z)
    np.testing.assert_allclose(again, once, rtol=4 * tolerances.eps(dtype))


@pytest.mark.full
def test_kl_divergence(dtype):
    """Absolute, and relative to the log-ratio where the rows are far apart."""
    z, near = near_rows(dtype)
    z_q, z_p = np.concatenate([z, z]), np.concatenate([near, z[::-1]])
    blocks = hessians(jxent.softmax_kl_divergence, z_q, z_p)
    of_p, of_q = Distribution.of(decimals(z_p)), Distribution.of(decimals(z_q))
    p, t = of_p.p, of_q.n - of_p.n
    above = t - total(p * t)
    slope = p * above
    size = np.maximum(ONE, np.max(abs(slope), axis=-1))[:, None, None]
    to_p = of_p.covariance * (_lines(above) + 1) - _lines(p) * _columns(slope)
    exact = [[of_q.covariance, -of_p.covariance], [-of_p.covariance, to_p]]
    eps = tolerances.eps(computing(dtype))
    for composition in blocks.values():
        for line, exact_line in zip(composition, exact, strict=True):
            for got, right in zip(line, exact_line, strict=True):
                worst = float(np.max(abs(decimals(got) - right) / size)) / eps
                assert worst <= 32


_PAIRS = {
    ("logits", "target_logits"),
    ("distributions", "predictions"),
    ("log_predictions", "log_distributions"),
}


@pytest.mark.parametrize("case", [c for c in BARE if c.kinds in _PAIRS], ids=str)
def test_both_arguments_equal(case):
    """Where a divergence is 0 its curvature is not."""
    with jax.enable_x64(True):
        x = jnp.asarray(case.args(np.float64)[0])
        dots = [
            jnp.cos(jnp.arange(x.size, dtype=x.dtype) + shift).reshape(x.shape)
            for shift in (0.0, 1.0)
        ]

        @fast_jit
        def along(a, b):
            gradient = jax.grad(lambda a, b: jnp.sum(jnp.cos(case.call(a, b) + 1)), (0, 1))
            return gradient(a, b), jax.jvp(gradient, (a, b), tuple(dots))[1]

        step = 1e-5
        _, second = along(x, x)
        ahead, back = (along(x + h * dots[0], x + h * dots[1])[0] for h in (step, -step))
        expected = jax.tree.map(lambda a, b: (a - b) / (2 * step), ahead, back)
        chex.assert_trees_all_close(second, expected, rtol=1e-6, atol=1e-7)
        assert max(float(jnp.max(jnp.abs(x))) for x in second) > 1e-2
