"""Identities between losses, as near as the losses are to the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sweeps
from accuracy import double_if
from cases import fast_jit
from tolerances import DTYPES, UNITS, computing, eps

import jxent

INTEGER = jxent.softmax_cross_entropy_with_integer_labels


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


def assert_same(got, expected, dtype, units, terms=None):
    """Within `units` and the |log| of the value, each side."""
    assert got.dtype == expected.dtype
    got, expected = (np.asarray(x, np.float64) for x in (got, expected))
    terms = np.abs(expected) if terms is None else np.asarray(terms, np.float64)
    room = 1e-33 if computing(dtype) == "float32" else 1e-100
    bound = 2 * (units + np.abs(np.log(terms + 1e-300))) * terms * eps(dtype) + room
    if jnp.dtype(got.dtype).itemsize == 2:
        bound = bound + float(jnp.finfo(got.dtype).eps) * terms
    np.testing.assert_array_less(np.abs(got - expected), np.nextafter(bound, np.inf))


def test_cross_entropy_is_entropy_plus_divergence(dtype):
    a, b = sweeps.rounded(dtype, *sweeps.logit_pairs())
    finite = np.all(np.isfinite(np.stack([a, b]).astype(np.float64)), axis=(0, 2))
    a, b = a[finite], b[finite]

    @fast_jit
    def sides(z_q, z_p):
        p = jxent.softmax(z_p)
        whole = jxent.softmax_cross_entropy(z_q, p)
        return whole, jxent.softmax_entropy(z_p), jxent.softmax_kl_divergence(z_q, z_p)

    with double_if(dtype):
        whole, entropy, divergence = sides(jnp.asarray(a), jnp.asarray(b))
        # softmax rounds the target probabilities: each within (16 + 2|log p|) eps of the truth.
        assert_same(entropy + divergence, whole, dtype, UNITS["divergence"] + 2 * 64)


def test_probabilities_cross_entropy_is_entropy_plus_divergence(dtype):
    p, q = sweeps.rounded(dtype, *sweeps.probability_pairs())
    finite = np.all((q > 0) | (p == 0), axis=-1)

    @fast_jit
    def sides(p, q):
        return jxent.cross_entropy(p, q), jxent.entropy(p), jxent.relative_entropy(p, q)

    with double_if(dtype):
        whole, entropy, divergence = sides(jnp.asarray(p[finite]), jnp.asarray(q[finite]))
        terms = (
            jnp.abs(whole) + jnp.abs(entropy) + np.sum(p[finite] + q[finite], axis=-1, dtype=float)
        )
        assert_same(entropy + divergence, whole, dtype, UNITS["probability"], terms)


def test_two_classes_are_one_binary_question(dtype):
    """The difference of the logits is exact: one of them is zero."""
    (z,) = sweeps.rounded(dtype, sweeps.binary_logits()[:, None])
    two = np.concatenate([np.zeros_like(z), z], axis=-1)

    def by_softmax(z):
        return INTEGER(z, 1)

    def by_sigmoid(z):
        return jxent.sigmoid_binary_cross_entropy(z, 1.0)

    with double_if(dtype):
        losses, pullback = fast_jit(lambda z: jax.vjp(by_softmax, z))(jnp.asarray(two))
        binary, binary_pullback = fast_jit(lambda z: jax.vjp(by_sigmoid, z))(jnp.asarray(z[:, 0]))
        assert_same(losses, binary, dtype, UNITS["softmax"])
        ones = jnp.ones_like(losses)
        gradient, expected = pullback(ones)[0], binary_pullback(ones)[0]
        assert_same(gradient[:, 1], expected, dtype, UNITS["softmax"])
        assert_same(gradient[:, 0], -expected, dtype, UNITS["softmax"])
        probabilities = fast_jit(jxent.softmax_entropy)(jnp.asarray(two))
        entropy = fast_jit(jxent.sigmoid_entropy)(jnp.asarray(z[:, 0]))
        assert_same(probabilities, entropy, dtype, UNITS["softmax"])


def test_one_hot_labels_are_integer_labels(dtype):
    (z,) = sweeps.rounded(dtype, sweeps.logits())
    y = np.broadcast_to(np.eye(sweeps.CLASSES)[1].astype(z.dtype), z.shape)

    def both(function, labels):
        @fast_jit
        def losses_and_gradient(z):
            losses, pullback = jax.vjp(lambda z: function(z, labels), z)
            return losses, pullback(jnp.ones_like(losses))[0]

        return losses_and_gradient(jnp.asarray(z))

    with double_if(dtype):
        losses, gradient = both(INTEGER, np.ones(len(z), np.int32))
        soft, soft_gradient = both(jxent.softmax_cross_entropy, y)
        np.testing.assert_array_equal(np.isinf(losses), np.isinf(soft))
        assert_same(soft, losses, dtype, UNITS["softmax"])
        assert_same(soft_gradient, gradient, dtype, UNITS["softmax"])
