"""Losses of logits that are computed in the same program.

A compiler may compute them again for each look at them, with other rounding. If the maximum and the
logit of the label come from different looks, a confident prediction costs their difference.

Of logits that are given each loss is exact, as other tests see. Here it must be the same.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.tiers import quick
from support.tolerances import UNITS, eps

# Elsewhere they may be computed again. Then a loss may be off by a rounding of the logits, and be
# below 0.
ARE_COMPUTED_ONCE = jax.default_backend() == "cpu" and jax.__version_info__ >= (0, 12)
EXAMPLES = 64
LOGITS = {
    "affine": lambda x, scale, shift: x * scale + shift,
    "centred": lambda x, scale, _: (x - jnp.mean(x, axis=-1, keepdims=True)) * scale,
}
LOSSES = {
    "integer": jxent.softmax_cross_entropy_with_integer_labels,
    "focal": jxent.softmax_focal_loss_with_integer_labels,
    "one-hot": lambda z, y: jxent.softmax_cross_entropy(z, jax.nn.one_hot(y, z.shape[-1])),
    "poly": lambda z, y: jxent.poly_loss_cross_entropy(z, jax.nn.one_hot(y, z.shape[-1])),
    "log_softmax": lambda z, y: jnp.take_along_axis(jxent.log_softmax(z), y[:, None], -1)[:, 0],
    "entropy": lambda z, y: jxent.softmax_entropy(z),
    "divergence": lambda z, y: jxent.softmax_kl_divergence(z[::-1], z),
}


@pytest.mark.parametrize("classes", quick([2, 3, 10, 29, 37, 100, 1000], 3))
@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_confident_prediction(loss, logits, classes):
    rng = np.random.default_rng(classes)
    labels = rng.integers(classes, size=EXAMPLES)
    x = rng.normal(size=(EXAMPLES, classes)) + 18 * np.eye(classes)[labels]
    scale = rng.uniform(0.9, 1.3, size=(EXAMPLES, 1))
    shift = 1e-3 * rng.normal(size=(1, classes))
    x, scale, shift = map(np.float32, (x, scale, shift))

    def logits_of(x):
        return LOGITS[logits](x, scale, shift)

    def of_given(z):
        losses, pull_back = jax.vjp(lambda z: LOSSES[loss](z, labels), z)
        return losses, *pull_back(jnp.ones_like(losses))

    @jax.jit
    def of_computed(x):
        losses, pull_back = jax.vjp(lambda x: LOSSES[loss](logits_of(x), labels), x)
        return losses, *pull_back(jnp.ones_like(losses))

    z, pull_back = jax.vjp(jax.jit(logits_of), x)
    losses, to_logits = jax.jit(of_given)(z)
    (gradient,) = pull_back(to_logits)
    # The logits may differ by a rounding between the two programs, and small losses by that part.
    rounding = np.spacing(np.float32(np.abs(z).max()))
    tolerance = UNITS["softmax"] * eps("float32") + rounding
    absolute = 0 if ARE_COMPUTED_ONCE else 8 * rounding
    found, found_gradient = of_computed(x)
    np.testing.assert_allclose(found, losses, rtol=tolerance, atol=absolute)
    largest = np.abs(gradient).max(axis=-1, keepdims=True)
    assert np.all(np.abs(found_gradient - gradient) <= tolerance * largest + absolute)
