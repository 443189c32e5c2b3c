"""The loss of a linear head against the dense loss of its whole logits."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import fast_jit
from support.heads import (
    BASE,
    CLASSES,
    EXAMPLES,
    FEATURES,
    NEUTRAL,
    OPTIONS,
    PAIRS,
    arrays_of_head,
    assert_close,
    dense_head,
    fused_head,
    value_and_gradients,
)
from support.tiers import quick_rows


@functools.cache
def _compiled_pair(names, reduction):
    """The fused head and the dense one as one program, with the cotangents of `reduction`."""
    cotangent = np.random.default_rng(1).normal(size=EXAMPLES) if reduction == "none" else 3.5

    def both(arrays):
        return [
            value_and_gradients(f, arrays, cotangent, reduction=reduction)
            for f in (functools.partial(fused_head, chunk_size=8), dense_head)
        ]

    return fast_jit(both)


def _check(arrays, reduction):
    with jax.enable_x64(True):
        fused, dense = _compiled_pair(tuple(arrays), reduction)(arrays)
        assert_close(fused, dense, 1e-12)


# Each of any two options is given without the other one, except that a class mask, class weights
# and label smoothing come with the z-loss.
SOME = [
    ("bias", "weights", "logit_softcap"),
    ("weights", "class_mask", "label_smoothing", "z_loss"),
    ("bias", "class_mask", "class_weights", "z_loss"),
    ("class_weights", "label_smoothing", "logit_softcap", "z_loss"),
]


@pytest.mark.parametrize(
    ("options", "reduction"),
    quick_rows([(None, "mean"), *zip(SOME, ("sum", "none", "sum", "sum"), strict=True)], 0),
)
def test_options_alone(options, reduction):
    """None, or some without the others, which are no arrays of the program then."""
    _check({k: v for k, v in arrays_of_head().items() if k in (*BASE, *(options or ()))}, reduction)


def test_means_with_options_in_pairs_and_together():
    arrays = arrays_of_head()
    for chosen in [*PAIRS, OPTIONS]:
        off = {k: v for k, v in NEUTRAL.items() if k not in chosen}
        _check(arrays | off, "mean")


@pytest.mark.parametrize(
    ("classes", "chunk_size"),
    quick_rows([(33, EXAMPLES), (33, 16), (33, None), (33, 1), (1, 22)], 0),
)
def test_scales_offsets_and_chunks(classes, chunk_size):
    """The dense loss, whatever the logits' scale and offset, and however the rows are cut."""
    rng = np.random.default_rng(2)
    fused, dense = (
        fast_jit(functools.partial(value_and_gradients, f, **options))
        for f, options in ((fused_head, {"chunk_size": chunk_size}), (dense_head, {}))
    )
    with jax.enable_x64(True):
        arrays = {
            "inputs": rng.normal(size=(EXAMPLES, FEATURES)),
            "kernel": rng.normal(size=(FEATURES, classes)),
            "labels": rng.integers(0, classes, EXAMPLES),
        }
        for scale, offset in itertools.product([1e-2, 1.0, 30.0], [0.0, 1e4]):
            changed = arrays | {
                "kernel": scale * arrays["kernel"],
                "bias": np.full(classes, offset),
            }
            assert_close(fused(changed), dense(changed), 1e-12 + 1e-15 * offset)


@pytest.mark.full
def test_float32_against_float64():
    classes, examples = 50_257, 64
    rng = np.random.default_rng(3)
    arrays = {
        "inputs": rng.normal(size=(examples, 32)).astype(np.float32),
        "kernel": rng.normal(size=(32, classes)).astype(np.float32),
        "labels": rng.integers(0, classes, examples),
    }
    fused = fast_jit(functools.partial(value_and_gradients, fused_head, chunk_size=16))(arrays)
    with jax.enable_x64(True):
        double = {k: v.astype(np.float64) if k != "labels" else v for k, v in arrays.items()}
        dense = fast_jit(functools.partial(value_and_gradients, dense_head))(double)
    for name, bound in (("value", 1e-6), ("inputs", 2e-6), ("kernel", 2e-6)):
        x, y = np.asarray(dense[name]), np.asarray(fused[name], np.float64)
        chex.assert_type(fused[name], np.float32)
        assert np.linalg.norm(x - y) <= bound * np.linalg.norm(x), name


@pytest.mark.parametrize(
    ("dtype", "reduction"), quick_rows([(jnp.bfloat16, "mean"), (jnp.float16, "none")], 0)
)
def test_low_precision(dtype, reduction):
    """Each entry of a gradient within 2^-8 of the sum of its absolute terms."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(EXAMPLES, FEATURES)).astype(dtype)
    w = rng.normal(size=(FEATURES, CLASSES)).astype(dtype)
    arrays = {"inputs": x, "kernel": w, "labels": rng.integers(0, CLASSES, EXAMPLES)}
    cotangent = np.ones(EXAMPLES, np.float32) if reduction == "none" else None
    fused = fast_jit(
        functools.partial(
            value_and_gradients, fused_head, cotangent=cotangent, chunk_size=8, reduction=reduction
        )
    )(arrays)
    chex.assert_type(fused["value"], np.float32)
    x, w = (np.asarray(a, np.float64) for a in (x, w))
    e = np.exp(x @ w)
    p = e / e.sum(-1, keepdims=True)
    p[np.arange(EXAMPLES), arrays["labels"]] -= 1
    p /= 1 if reduction == "none" else EXAMPLES
    for name, gradient, terms in (
        ("inputs", p @ w.T, abs(p) @ abs(w.T)),
        ("kernel", x.T @ p, abs(x.T) @ abs(p)),
    ):
        chex.assert_type(fused[name], dtype)
        assert np.all(np.abs(np.asarray(fused[name], np.float64) - gradient) <= 2**-8 * terms)


def test_the_loss_scale_reaches_a_gradient_before_it_is_rounded():
    """Float16 gradients of 1e-9 survive a scale of 2^16."""
    x, w = np.ones((1, 2), np.float16), np.float16([[21, 0], [0, 0]])

    def loss(w):
        return 2.0**16 * jxent.linear_softmax_cross_entropy(x, w, [0])

    gradient = np.asarray(fast_jit(jax.grad(loss))(w), np.float64)
    np.testing.assert_allclose(gradient[:, 1], 2.0**16 * np.exp(-21), rtol=1e-2)
