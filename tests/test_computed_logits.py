"""Losses of logits that are computed in the same program.

A compiler may compute them again for each look at them, with other rounding. If the maximum and the
logit of the label come from different looks, a confident prediction costs their difference.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import quick
from tolerances import UNITS, eps

from jxent import softmax_cross_entropy_with_integer_labels

# Elsewhere they may be computed again. Then the loss may be off by a rounding of the logits.
ARE_COMPUTED_ONCE = jax.default_backend() == "cpu" and jax.__version_info__ >= (0, 12)
EXAMPLES = 64
LOGITS = {
    "affine": lambda x, scale, shift: x * scale + shift,
    "centred": lambda x, scale, _: (x - jnp.mean(x, axis=-1, keepdims=True)) * scale,
}


@pytest.mark.parametrize("classes", quick([2, 3, 10, 29, 37, 100, 1000], 3, 29, 100))
@pytest.mark.parametrize("logits", LOGITS)
def test_a_confident_prediction(logits, classes):
    rng = np.random.default_rng(classes)
    labels = rng.integers(classes, size=EXAMPLES)
    x = rng.normal(size=(EXAMPLES, classes)) + 18 * np.eye(classes)[labels]
    scale = rng.uniform(0.9, 1.3, size=(EXAMPLES, 1))
    shift = 1e-3 * rng.normal(size=(1, classes))
    x, scale, shift = map(np.float32, (x, scale, shift))

    @jax.jit
    def losses(x, scale, shift):
        z = LOGITS[logits](x, scale, shift)
        return softmax_cross_entropy_with_integer_labels(z, labels)

    z = np.float64(jax.jit(LOGITS[logits])(x, scale, shift))
    of_label = np.take_along_axis(z, labels[:, None], axis=-1)
    others = np.where(np.arange(classes) == labels[:, None], 0, np.exp(z - of_label))
    # The logits may differ by a rounding between the two programs.
    rounding = np.spacing(np.float32(np.abs(z).max()))
    np.testing.assert_allclose(
        losses(x, scale, shift),
        np.log1p(others.sum(axis=-1)),
        rtol=UNITS["softmax"] * eps("float32") + rounding,
        atol=0 if ARE_COMPUTED_ONCE else rounding,
    )
