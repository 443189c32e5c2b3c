"""Identities between losses, as near as the losses are to the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support import sweeps
from support.accuracy import double_if
from support.cases import fast_jit
from support.tiers import quick
from support.tolerances import DTYPES, UNITS, computing, eps

INTEGER = jxent.softmax_cross_entropy_with_integer_labels


@pytest.fixture(params=quick(DTYPES))
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
        whole, entropy, divergence = map(np.asarray, sides(a, b))
        # softmax rounds the target probabilities: each within (16 + 2|log p|) eps of the truth.
        assert_same(entropy + divergence, whole, dtype, UNITS["divergence"] + 2 * 64)


def test_probabilities_cross_entropy_is_entropy_plus_divergence(dtype):
    p, q = sweeps.rounded(dtype, *sweeps.probability_pairs())
    finite = np.all((q > 0) | (p == 0), axis=-1)

    @fast_jit
    def sides(p, q):
        return jxent.cross_entropy(p, q), jxent.entropy(p), jxent.relative_entropy(p, q)

    with double_if(dtype):
        whole, entropy, divergence = map(np.asarray, sides(p[finite], q[finite]))
        terms = np.abs(whole) + np.abs(entropy) + np.sum(p[finite] + q[finite], -1, dtype=float)
        assert_same(entropy + divergence, whole, dtype, UNITS["probability"], terms)


def test_two_classes_are_one_binary_question(dtype):
    """The difference of the logits is exact: one of them is zero."""
    (z,) = sweeps.rounded(dtype, sweeps.binary_logits()[:, None])
    two = np.concatenate([np.zeros_like(z), z], axis=-1)

    @fast_jit
    def both(two, one):
        losses, pullback = jax.vjp(lambda z: INTEGER(z, 1), two)
        binary, binary_pullback = jax.vjp(lambda z: jxent.sigmoid_binary_cross_entropy(z, 1.0), one)
        gradients = *pullback(jnp.ones_like(losses)), *binary_pullback(jnp.ones_like(binary))
        entropies = jxent.softmax_entropy(two), jxent.sigmoid_entropy(one)
        return (losses, binary), gradients, entropies

    with double_if(dtype):
        losses, gradients, entropies = jax.tree.map(np.asarray, both(two, z[:, 0]))
        assert_same(*losses, dtype, UNITS["softmax"])
        gradient, expected = gradients
        assert_same(gradient[:, 1], expected, dtype, UNITS["softmax"])
        assert_same(gradient[:, 0], -expected, dtype, UNITS["softmax"])
        assert_same(*entropies, dtype, UNITS["softmax"])


def test_one_hot_labels_are_integer_labels(dtype):
    (z,) = sweeps.rounded(dtype, sweeps.logits())
    y = np.broadcast_to(np.eye(sweeps.CLASSES)[1].astype(z.dtype), z.shape)

    @fast_jit
    def of_both(z):
        def losses_and_gradient(function, labels):
            losses, pullback = jax.vjp(lambda z: function(z, labels), z)
            return losses, pullback(jnp.ones_like(losses))[0]

        integers = np.ones(len(z), np.int32)
        return losses_and_gradient(INTEGER, integers), losses_and_gradient(
            jxent.softmax_cross_entropy, y
        )

    with double_if(dtype):
        (losses, gradient), (soft, soft_gradient) = jax.tree.map(np.asarray, of_both(z))
        np.testing.assert_array_equal(np.isinf(losses), np.isinf(soft))
        assert_same(soft, losses, dtype, UNITS["softmax"])
        assert_same(soft_gradient, gradient, dtype, UNITS["softmax"])
