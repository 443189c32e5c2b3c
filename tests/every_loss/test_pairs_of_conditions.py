"""Rare conditions beside each other: each row draws its own, and a plain reference decides.

Masks of both shapes, ignored and impossible labels, NaN and infinite logits, class weights of 0,
and options at their ends. The reference goes row by row, in the order of precedence of the
policies, with the textbook formula in float64.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import fast_jit, with_gradients
from support.tiers import quick, quick_rows

EXAMPLES, IGNORED = 160, -1


def softmax_reference(z, y, here, epsilon, weights, zeta):
    """Loss and gradient of one row that counts; None for a gradient that is not finite.

    `y` are numbers for each class, or None for a label that names no class; `here` says which
    classes exist.
    """
    nothing = np.zeros_like(z)
    if not here.any():
        return 0.0, nothing
    if y is None or np.isnan(z[here]).any() or np.isnan(y[here]).any():
        return np.nan, np.full_like(z, np.nan)
    smoothed = np.where(here, (1 - epsilon) * y + epsilon / here.sum(), 0) * weights
    return _of_weights(z, here, smoothed, zeta)


def _of_weights(z, here, w, zeta):
    top = z[here].max()
    exists = here & (z > -np.inf)
    if (top == np.inf and (z[here] == np.inf).sum() > 1) or not exists.any():
        return np.nan, np.full_like(z, np.nan)
    if (w[here & ~exists] > 0).any():
        return np.inf, None
    with np.errstate(all="ignore"):
        shifted = np.where(exists, np.where(z == top, 0, z - top), -np.inf)
    p = np.exp(shifted) / np.exp(shifted).sum()
    normalizer = top + np.log(np.exp(shifted).sum())
    cost = np.log(np.exp(shifted).sum()) - np.where(w != 0, shifted, 0)
    loss = np.sum(w * np.where(w != 0, cost, 0)) + (zeta * normalizer**2 if zeta else 0)
    if not np.isfinite(loss):
        return loss, None
    return loss, p * w.sum() - w + (2 * zeta * normalizer * p if zeta else 0)


def draw(rng, classes):
    """Logits, of which a part is rare, and masks."""
    z = 3 * rng.normal(size=(EXAMPLES, classes))
    z[::7] *= 30
    for value, rate in ((-np.inf, 0.08), (np.inf, 0.03), (np.nan, 0.03)):
        z[rng.random(z.shape) < rate * 5 / classes] = value
    present = rng.random(z.shape) < 0.8
    present[:: EXAMPLES // 9] = False
    return z, present, rng.random(EXAMPLES) < 0.85


OPTIONS = list(itertools.product([0.0, 0.125, 1.0], [0.0, 0.5], [False, True]))
"""Smoothing, z-loss, and whether some class weights are 0."""
MASKS = ("none", "classes", "examples")


def assert_same(results, references, counted):
    """Values and gradients; exactly 0 for what does not count."""
    losses, gradients = (np.asarray(x, np.float64) for x in results)
    for i, (loss, gradient, reference) in enumerate(
        zip(losses, gradients, references, strict=True)
    ):
        value, slope = reference if counted[i] else (0.0, np.zeros_like(gradient))
        np.testing.assert_allclose(loss, value, rtol=2e-5, atol=1e-6, err_msg=str(i))
        if slope is None:
            continue
        if np.isnan(value):
            assert np.isnan(gradient).any(), i
        elif value == 0 and not slope.any():
            np.testing.assert_array_equal(gradient, 0, err_msg=str(i))
        else:
            np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=2e-5, err_msg=str(i))


def every_choice(rng, loss, z, labels, mask, present, counted, reference):
    """Results and references of each choice of options, of which `reference` makes one row's."""
    where = {"none": None, "classes": present, "examples": counted}[mask]
    here = present if mask == "classes" else np.ones_like(present)
    counted = here.any(axis=-1) & (counted if mask == "examples" else True)

    @fast_jit
    def run(z, labels, epsilon, weights, zeta):
        options = {"label_smoothing": epsilon, "class_weights": weights, "z_loss": zeta}
        losses, (gradient,) = with_gradients(lambda z: loss(z, labels, where=where, **options))(z)
        return losses, gradient

    classes = z.shape[-1]
    for epsilon, zeta, weightless in OPTIONS:
        weights = rng.uniform(0.5, 2, classes) * (rng.random(classes) < 0.6 if weightless else 1)
        references = [reference(i, here[i], epsilon, weights, zeta) for i in range(EXAMPLES)]
        options = np.float32(epsilon), weights.astype("f"), np.float32(zeta)
        yield run(z.astype("f"), labels, *options), references, counted


_INTEGER = [
    (classes, dtype, mask)
    for classes, dtype in ((5, np.int32), (5, np.uint8), (300, np.int8), (1, np.int32))
    for mask in MASKS
]


@pytest.mark.parametrize(("classes", "dtype", "mask"), quick_rows(_INTEGER, 1, 5, 6, 9))
def test_integer_labels(classes, dtype, mask):
    rng = np.random.default_rng(classes)
    z, present, counted = draw(rng, classes)
    ignored = dtype(255) if dtype == np.uint8 else IGNORED
    most = min(classes, np.iinfo(dtype).max)
    labels = rng.integers(0, most, EXAMPLES).astype(dtype)
    labels[rng.random(EXAMPLES) < 0.1] = ignored
    labels[rng.random(EXAMPLES) < 0.05] = min(classes + 1, np.iinfo(dtype).max)
    hot = [np.eye(classes)[y] if 0 <= y < classes else None for y in labels.astype(int)]
    loss = functools.partial(
        jxent.softmax_cross_entropy_with_integer_labels, ignore_index=int(ignored)
    )

    def reference(i, *rest):
        return _of_label(z[i], hot[i], *rest)

    for *results, of_loss in every_choice(rng, loss, z, labels, mask, present, counted, reference):
        assert_same(*results, of_loss & (labels != ignored))


def _of_label(z, hot, here, epsilon, weights, zeta):
    """A label that is impossible costs +inf, even where softmax has no limit."""
    if hot is not None and here.any() and not np.isnan(z[here]).any():
        own = (1 - epsilon) * weights @ hot
        if own > 0 and not (here & (z > -np.inf))[hot.astype(bool)].all():
            return np.inf, None
    return softmax_reference(z, hot, here, epsilon, weights, zeta)


@pytest.mark.parametrize("mask", quick(MASKS, "classes"))
def test_soft_labels(mask):
    rng = np.random.default_rng(9)
    z, present, counted = draw(rng, 5)
    y = rng.dirichlet(np.ones(5), EXAMPLES) * (rng.random((EXAMPLES, 5)) < 0.6)
    y[::4] = np.eye(5)[rng.integers(0, 5, len(y[::4]))]
    loss, labels = jxent.softmax_cross_entropy, y.astype("f")

    def reference(i, *rest):
        return softmax_reference(z[i], y[i], *rest)

    for results in every_choice(rng, loss, z, labels, mask, present, counted, reference):
        assert_same(*results)


@pytest.mark.parametrize("gamma", quick([None, 0.0, 2.0], None, 2.0))
def test_binary_labels(gamma):
    """Of logits; labels that are no probabilities, NaN and infinite logits, weights of 0."""
    rng = np.random.default_rng(3)
    z = rng.choice([-np.inf, -100, -1.5, 0, 2, 100, np.inf, np.nan], EXAMPLES)
    y = rng.choice([0, 1, 0.25, -1, 255, np.nan], EXAMPLES, p=[0.3, 0.3, 0.2, 0.1, 0.05, 0.05])
    counted = rng.random(EXAMPLES) < 0.7

    @fast_jit
    def run(z, y, weight, epsilon):
        if gamma is None:
            options = {"pos_weight": weight, "label_smoothing": epsilon}
            loss = functools.partial(jxent.sigmoid_binary_cross_entropy, **options)
        else:
            loss = functools.partial(jxent.sigmoid_focal_loss, alpha=weight / 2, gamma=gamma)
        losses, (gradient,) = with_gradients(lambda z: loss(z, y, where=counted))(z)
        return losses, gradient

    for weight, epsilon in itertools.product([0.0, 1.0, 2.0], [0.0, 0.25, 1.0]):
        losses, gradients = run(
            z.astype("f"), y.astype("f"), np.float32(weight), np.float32(epsilon)
        )
        for i in range(EXAMPLES):
            value, slope = _binary(z[i], y[i], weight, epsilon, gamma) if counted[i] else (0, 0)
            np.testing.assert_allclose(losses[i], value, rtol=1e-5, atol=1e-30, err_msg=str(i))
            np.testing.assert_allclose(gradients[i], slope, rtol=1e-5, atol=1e-30, err_msg=str(i))


def _binary(z, y, weight, epsilon, gamma):
    """The limit for an infinite logit: what has no weight costs nothing."""
    if np.isnan(z) or not 0 <= y <= 1:
        return np.nan, np.nan
    if gamma is None:
        a, b = weight * ((1 - epsilon) * y + epsilon / 2), (1 - epsilon) * (1 - y) + epsilon / 2
    else:
        a, b = y, 1 - y
    up, down = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
    loss = (a * np.logaddexp(0, -z) if a else 0) + (b * np.logaddexp(0, z) if b else 0)
    slope = b * up - a * down
    if gamma is not None:
        missed = a * down + b * up
        factor = missed**gamma
        change = gamma * (b - a) * up * down / missed if missed else 0
        slope = factor * (slope + (change * loss if change else 0))
        loss = factor * loss if factor else 0
        share = weight / 2 * y + (1 - weight / 2) * (1 - y)
        loss, slope = (share * x if share else 0 for x in (loss, slope))
    return loss, slope


def test_a_label_that_smoothing_replaces_has_no_weight():
    """Its own loss may be infinite, as its class is left out or has the probability 0."""
    z, where = jnp.array([0.5, 1.0, 2.0]), jnp.array([True, True, False])

    def integer_loss(z, weights):
        return jxent.softmax_cross_entropy_with_integer_labels(
            z, 2, where=where, label_smoothing=1.0, class_weights=weights
        )

    def binary_loss(p, label):
        return jxent.binary_cross_entropy(p, label, label_smoothing=1.0)

    value, (to_z, to_weights) = fast_jit(jax.value_and_grad(integer_loss, (0, 1)))(z, jnp.ones(3))
    p = np.exp([-0.5, 0]) / np.exp([-0.5, 0]).sum()
    np.testing.assert_allclose(value, -np.mean(np.log(p)), rtol=1e-6)
    np.testing.assert_allclose(to_z, [*(p - 0.5), 0], rtol=1e-6)
    np.testing.assert_allclose(to_weights, [*(-np.log(p) / 2), 0], rtol=1e-6)
    for probability, label in itertools.product([0.0, 1.0], [0.0, 0.5, 1.0]):
        assert fast_jit(binary_loss)(probability, label) == np.inf
        assert fast_jit(jax.grad(binary_loss, 1))(probability, label) == 0
