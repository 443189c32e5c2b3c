"""Heads inside other transformations: their products, and their memory."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import fast_jit
from support.heads import IGNORED, fused_head, plain_chunked, plain_head
from support.products import products
from support.tiers import quick_rows

linear_loss = jxent.linear_softmax_cross_entropy
SEQUENCES, TOKENS, FEATURES, CLASSES = 16, 64, 24, 2048


def arrays(dtype=np.float64):
    """Of several sequences, in which some tokens are ignored, beside one kernel."""
    rng = np.random.default_rng(0)
    shape = SEQUENCES, TOKENS
    labels = np.where(rng.random(shape) < 0.2, IGNORED, rng.integers(0, CLASSES, shape))
    found = {
        "inputs": rng.normal(size=(*shape, FEATURES)),
        "kernel": rng.normal(size=(FEATURES, CLASSES)) / 4,
        "weights": rng.uniform(0.5, 2, shape),
    }
    return {name: x.astype(dtype) for name, x in found.items()} | {"labels": labels}


def head(is_plain, reduction, x, w, y, weights):
    a = {"inputs": x, "kernel": w, "labels": y, "weights": weights}
    return plain_head(a, reduction) if is_plain else fused_head(a, reduction=reduction)


def policy(is_plain, reduction, x, w, y, weights):
    """Without the mean's weights, and with an argument for each class."""

    def loss(z, y, targets):
        nll = jxent.softmax_cross_entropy_with_integer_labels(z, y, ignore_index=IGNORED)
        return nll - jxent.softmax_cross_entropy(z, targets) / 2

    chunked = plain_chunked(loss, reduction)
    if not is_plain:
        options = {"reduction": reduction, "precision": "highest", "chunk_size": 24}
        chunked = jxent.chunked(loss, **options)
    targets = jnp.broadcast_to(jax.nn.softmax(w[0]), (*y.shape, CLASSES))
    return chunked(jxent.LinearLogits(x, w), y, targets, where=weights > 1)


MAPPED = {
    "inputs": (0, None, 0, 0),
    "in the middle": (1, None, 1, 1),
    "one label of all": (0, None, None, 0),
    "kernels, too": (0, 0, 0, 0),
}


@pytest.mark.parametrize(
    ("function", "reduction", "mapped"),
    quick_rows(
        [
            (head, "mean", "inputs"),
            (policy, "none", "one label of all"),
            (head, "sum", "in the middle"),
            (policy, "mean", "inputs"),
            (head, "none", "kernels, too"),
        ],
        0, 1,
    ),
)  # fmt: skip
def test_mapped_examples(function, reduction, mapped):
    """Values and both derivatives of first order, and one of second, as of whole logits."""
    with jax.enable_x64(True):
        a = arrays()
        x, y, weights = (a[name][:3] for name in ("inputs", "labels", "weights"))
        w = a["kernel"]
        given = {
            "inputs": (x, w, y, weights),
            "in the middle": (x.swapaxes(0, 1), w, y.T, weights.T),
            "one label of all": (x, w, y[0], weights),
            "kernels, too": (x, np.stack([w, w / 2, -w]), y, weights),
        }[mapped]

        def results(loss):
            def total(x, w, weights):
                losses = jax.vmap(loss, MAPPED[mapped])(x, w, given[2], weights)
                return jnp.sum(jnp.cos(losses))

            floats = given[0], given[1], given[3]
            first = jax.value_and_grad(total, (0, 1, 2))
            return jax.jvp(first, floats, jax.tree.map(jnp.cos, floats))

        plain, chunked = (
            functools.partial(function, is_plain, reduction) for is_plain in (True, False)
        )
        expected, found = fast_jit(lambda: (results(plain), results(chunked)))()
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-11, strict=True)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_is_mapped(reduction):
    """As many losses, and a gradient of 0."""
    x, y = np.zeros((0, 5, 4), "f"), np.zeros((0, 5), int)

    def losses(w):
        return jax.vmap(lambda x, y: linear_loss(x, w, y, reduction=reduction))(x, y)

    def entropies(w):
        chunked = jxent.chunked(jxent.softmax_entropy, reduction=reduction)
        return jax.vmap(lambda x: chunked(jxent.LinearLogits(x, w)))(x)

    for function in losses, entropies:
        found, pullback = jax.vjp(function, np.ones((4, 7), "f"))
        chex.assert_shape(found, (0,) if reduction == "mean" else (0, 5))
        chex.assert_trees_all_equal(pullback(found), (jnp.zeros((4, 7)),), strict=True)


def temporaries(function, *arguments):
    program = fast_jit(function).lower(*arguments).compile()
    return program, program.memory_analysis().temp_size_in_bytes


LOGITS = 4 * SEQUENCES * TOKENS * CLASSES
KERNEL = 4 * FEATURES * CLASSES


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_memory_of_mapped_examples(reduction):
    """No whole logits, and one gradient of the kernel, not one for each sequence."""
    a = arrays(np.float32)

    def total(w, x):
        loss = functools.partial(linear_loss, reduction=reduction)
        return jnp.sum(jax.vmap(loss, (0, None, 0))(x, w, np.abs(a["labels"])))

    _, size = temporaries(jax.grad(total), a["kernel"], a["inputs"])
    assert size < LOGITS / 4 + 2 * KERNEL


def test_memory_of_microbatches():
    """Gradients inside the loop, or a checkpoint around its body, keep one for all steps."""
    a = arrays(np.float32)
    labels = np.abs(a["labels"])

    def loss(w, x, y):
        return linear_loss(x, w, y, reduction="sum")

    def inside(w):
        def step(total, given):
            return total + jax.grad(loss)(w, *given), None

        return jax.lax.scan(step, jnp.zeros_like(w), (a["inputs"], labels))[0]

    def outside(w, body):
        return jnp.sum(jax.lax.map(lambda given: body(w, *given), (a["inputs"], labels)))

    programs = [
        inside,
        jax.grad(functools.partial(outside, body=jax.checkpoint(loss))),
        jax.grad(functools.partial(outside, body=loss)),
    ]
    sizes = [temporaries(program, a["kernel"])[1] for program in programs]
    # Otherwise there is nothing that the page has to warn of.
    assert sizes[2] > SEQUENCES * KERNEL
    assert max(sizes[:2]) < LOGITS / SEQUENCES + 8 * KERNEL


@pytest.mark.parametrize("chunk_size", [None, TOKENS])
def test_a_policy_of_checkpoint_may_save_the_gradients(chunk_size):
    """By their name. Otherwise the logits are computed again, if JAX does not see through it."""
    a = arrays(np.float32)
    saved = jax.checkpoint_policies.save_only_these_names("jxent_head_gradients")

    def number(policy):
        @functools.partial(jax.checkpoint, policy=policy)
        def loss(x, w):
            return linear_loss(x, w, np.abs(a["labels"]), chunk_size=chunk_size)

        # A layer after the loss, as without one there is nothing to come back from.
        gradient = jax.value_and_grad(lambda x, w: jnp.sin(loss(jnp.sin(x), w)), (0, 1))
        text = temporaries(gradient, a["inputs"], a["kernel"])[0].as_text()
        return products(text, SEQUENCES * TOKENS, FEATURES, CLASSES)

    assert number(saved) == pytest.approx(3, rel=0.02)
    # JAX 0.10 sees through a checkpoint around a single chunk.
    assert chunk_size is None or number(None) == pytest.approx(4, rel=0.02)
