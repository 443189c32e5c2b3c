"""Divergences of softmax distributions against the exact function of the logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sweeps
import truth
from accuracy import check, double_if
from tiers import quick
from tolerances import DTYPES

import jxent

NAMES = ("softmax_kl_divergence", "softmax_jensen_shannon_divergence")


@pytest.fixture(params=quick(DTYPES))
def dtype(request):
    return request.param


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, sweeps.CLASSES])
def test_softmax_divergence(dtype, name, classes):
    args = sweeps.rounded(dtype, *sweeps.logit_pairs(classes))
    check(getattr(jxent, name), getattr(truth, name), "divergence", dtype, *args)


def test_sigmoid_divergence(dtype):
    a, b = (x[:, None] for x in sweeps.binary_pairs())
    a, b = (x[:, 0] for x in sweeps.rounded(dtype, a, b))
    check(jxent.sigmoid_kl_divergence, truth.sigmoid_kl_divergence, "divergence", dtype, a, b)


@pytest.mark.parametrize("name", NAMES)
def test_softmax_divergence_is_never_negative(dtype, name):
    """20 000 random pairs, most of them nearly equal."""
    rng = np.random.default_rng(9)
    shape = (20_000, sweeps.CLASSES)
    scale, change = (10.0 ** rng.uniform(low, 2, (shape[0], 1)) for low in (-3, -9))
    a = scale * rng.normal(size=shape)
    a, b = sweeps.rounded(dtype, a, a + change * rng.normal(size=shape))
    with double_if(dtype):
        divergence = jax.jit(getattr(jxent, name))(jnp.asarray(a), jnp.asarray(b))
        assert np.all(np.asarray(divergence) >= 0)


@pytest.mark.parametrize("name", ["jensen_shannon_divergence", "generalized_kl_divergence"])
def test_divergence_of_probabilities_is_never_negative(dtype, name):
    rng = np.random.default_rng(10)
    p = rng.dirichlet(np.full(sweeps.CLASSES, 0.3), size=20_000)
    change = 10.0 ** rng.uniform(-9, 0, (len(p), 1))
    q = np.maximum(p * np.exp(change * rng.normal(size=p.shape)), 1e-30)
    first = np.log(q) if name == "generalized_kl_divergence" else q
    first, p = sweeps.rounded(dtype, first, p)
    with double_if(dtype):
        divergence = jax.jit(getattr(jxent, name))(jnp.asarray(first), jnp.asarray(p))
        assert np.all(np.asarray(divergence) >= 0)
