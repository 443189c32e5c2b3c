"""Losses of logits that are computed in the same program.

A compiler may compute them again for each look at them, with other rounding. If the maximum and the
logit of the label come from different looks, a confident prediction costs their difference.

Of logits that are given each loss is exact, as other tests see. Here it must be the same.
"""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import with_gradients
from support.tiers import quick_rows
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


@functools.cache
def arrays(classes):
    """What the logits are made of, and labels far ahead."""
    rng = np.random.default_rng(classes)
    labels = rng.integers(classes, size=EXAMPLES)
    x = rng.normal(size=(EXAMPLES, classes)) + 18 * np.eye(classes)[labels]
    scale = rng.uniform(0.9, 1.3, size=(EXAMPLES, 1))
    shift = 1e-3 * rng.normal(size=(1, classes))
    return labels, *map(np.float32, (x, scale, shift))


@functools.cache
def of_given_logits(logits, classes):
    """The logits, and of each loss the values and the gradient for what the logits are made of."""
    labels, x, *others = arrays(classes)

    @jax.jit
    def of_every_loss(x, z):
        _, pullback = jax.vjp(lambda x: LOGITS[logits](x, *others), x)
        results = {k: with_gradients(lambda z, f=f: f(z, labels))(z) for k, f in LOSSES.items()}
        return {name: (losses, *pullback(to_z)) for name, (losses, (to_z,)) in results.items()}

    z = jax.jit(LOGITS[logits])(x, *others)
    return z, of_every_loss(x, z)


# Each loss with one kind of logits, and two with the other one as well; --full: all with both, and
# these two of any number of classes.
_QUICK = [(loss, "affine", 3) for loss in LOSSES]
_QUICK += [("integer", "centred", 3), ("entropy", "centred", 3)]
_ROWS = list(itertools.product(LOSSES, LOGITS, [3, 100]))
_ROWS += itertools.product(["integer", "entropy"], LOGITS, [2, 10, 29, 37, 1000])


@pytest.mark.parametrize(
    ("loss", "logits", "classes"), quick_rows(_ROWS, *map(_ROWS.index, _QUICK))
)
def test_a_confident_prediction(loss, logits, classes):
    labels, x, *others = arrays(classes)
    z, results = of_given_logits(logits, classes)
    losses, gradient = results[loss]
    computed = with_gradients(lambda x: LOSSES[loss](LOGITS[logits](x, *others), labels))
    found, (found_gradient,) = jax.jit(computed)(x)
    # The logits may differ by a rounding between the two programs, and small losses by that part.
    rounding = np.spacing(np.float32(np.abs(z).max()))
    tolerance = UNITS["softmax"] * eps("float32") + rounding
    absolute = 0 if ARE_COMPUTED_ONCE else 8 * rounding
    chex.assert_trees_all_close(found, losses, rtol=tolerance, atol=absolute, strict=True)
    largest = np.abs(gradient).max(axis=-1, keepdims=True)
    assert np.all(np.abs(found_gradient - gradient) <= tolerance * largest + absolute)
