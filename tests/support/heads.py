"""A linear head with every option, and its loss by the dense function on whole logits."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np

import jxent

EXAMPLES, FEATURES, CLASSES = 23, 6, 41
IGNORED = -100


@functools.cache
def arrays_of_head():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, EXAMPLES)
    mask = rng.random(CLASSES) < 0.8
    mask[labels] = True
    labels[[2, 7]] = IGNORED
    return {
        "inputs": rng.normal(size=(EXAMPLES, FEATURES)),
        "kernel": rng.normal(size=(FEATURES, CLASSES)),
        "labels": labels,
        "bias": rng.normal(size=CLASSES),
        "weights": rng.uniform(0.5, 2, EXAMPLES),
        "class_mask": mask,
        "class_weights": rng.uniform(0.5, 2, CLASSES),
        "label_smoothing": np.float64(0.125),
        "z_loss": np.float64(0.01),
        "logit_softcap": np.float64(3.0),
    }


BASE = ("inputs", "kernel", "labels")
OPTIONS = list(arrays_of_head())[3:]
PAIRS = list(itertools.combinations(OPTIONS, 2))
NEUTRAL = {
    "bias": np.zeros(CLASSES),
    "weights": np.ones(EXAMPLES),
    "class_mask": np.ones(CLASSES, bool),
    "class_weights": np.ones(CLASSES),
    "label_smoothing": np.float64(0),
    "z_loss": np.float64(0),
    "logit_softcap": np.float64(1e6),
}
"""The options at values that change (next to) nothing: one program then serves all pairs."""


def dense_head(inputs, kernel, labels, bias=None, *, reduction="mean", **options):
    """The same by the dense function."""
    weights = options.pop("weights", None)
    mask = options.pop("class_mask", None)
    cap = options.pop("logit_softcap", None)
    logits = jnp.dot(inputs, kernel, precision="highest")
    logits = logits if bias is None else logits + bias[None, :]
    logits = logits if cap is None else cap * jnp.tanh(logits / cap)
    losses = jxent.softmax_cross_entropy_with_integer_labels(
        logits,
        labels,
        where=None if mask is None else jnp.broadcast_to(mask, logits.shape),
        ignore_index=IGNORED,
        **options,
    )
    weights = jnp.ones_like(losses) if weights is None else weights
    if reduction == "none":
        return weights * losses
    share = jnp.where(labels == IGNORED, 0, weights)
    if "class_weights" in options:
        share = share * options["class_weights"][jnp.maximum(labels, 0)]
    total = jnp.sum(weights * losses)
    return total if reduction == "sum" else total / jnp.sum(share)


def fused_head(*args, **options):
    return jxent.linear_softmax_cross_entropy(
        *args, **options, ignore_index=IGNORED, precision="highest"
    )


def floats(arrays):
    return {k: v for k, v in arrays.items() if jnp.issubdtype(v.dtype, jnp.floating)}


def value_and_gradients(function, arrays, cotangent=None, **fixed):
    """Value and gradients of `function`, with the arrays by name."""

    def total(floats):
        a = {**arrays, **floats}
        out = function(a.pop("inputs"), a.pop("kernel"), a.pop("labels"), **a, **fixed)
        return (out if cotangent is None else jnp.sum(cotangent * out)), out

    gradients, out = jax.grad(total, has_aux=True)(floats(arrays))
    return {"value": out, **gradients}


def assert_close(actual, expected, tolerance):
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for name, x in expected.items():
        x, y = np.asarray(x, np.float64), np.asarray(actual[name], np.float64)
        assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(x) + 1e-18, name
