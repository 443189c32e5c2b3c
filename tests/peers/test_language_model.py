"""A byte-level language model, trained with the head that never makes its logits, and with them.

The text is Python's own help, which comes with every installation.
"""

import functools
import pydoc_data.topics

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jxent

pytestmark = [pytest.mark.peer, pytest.mark.full]

BYTES, CONTEXT, FEATURES, BATCH, STEPS = 256, 16, 64, 384, 300
OPTIMIZER = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))


class LanguageModel(nn.Module):
    """The features from which the next byte is predicted, and the embedding that predicts it."""

    @nn.compact
    def __call__(self, context):
        embedding = nn.Embed(BYTES, FEATURES)
        x = embedding(context).reshape(*context.shape[:-1], -1)
        x = nn.gelu(nn.Dense(2 * FEATURES)(x))
        return nn.LayerNorm()(nn.Dense(FEATURES)(x)), embedding.embedding


def fused(features, kernel, labels):
    """Five chunks, the last of them smaller."""
    return jxent.linear_softmax_cross_entropy(
        features, kernel, labels, chunk_size=80, precision="highest"
    )


def dense(features, kernel, labels):
    logits = jnp.dot(features, kernel, precision="highest")
    return jnp.mean(jxent.softmax_cross_entropy_with_integer_labels(logits, labels))


@functools.cache
def text():
    topics = pydoc_data.topics.topics
    return np.frombuffer("".join(topics[k] for k in sorted(topics)).encode(), np.uint8)


def batches():
    """Contexts and the bytes that follow them."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        start = rng.integers(0, len(text()) - CONTEXT, BATCH)
        window = text()[start[:, None] + np.arange(CONTEXT + 1)].astype(np.int32)
        yield window[:, :-1], window[:, -1]


@functools.cache
def value_and_gradients(head):
    def loss(params, context, labels):
        features, embedding = LanguageModel().apply(params, context)
        return head(features, embedding.T, labels)

    return jax.value_and_grad(loss)


@functools.cache
def trained(head):
    """The losses of all steps, and the parameters before every twentieth."""

    @jax.jit
    def step(params, state, context, labels):
        value, gradients = value_and_gradients(head)(params, context, labels)
        updates, state = OPTIMIZER.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    params = LanguageModel().init(jax.random.key(0), jnp.zeros((1, CONTEXT), int))
    state, losses, seen = OPTIMIZER.init(params), [], []
    for i, batch in enumerate(batches()):
        if i % 20 == 0:
            seen.append((params, batch))
        params, state, value = step(params, state, *batch)
        losses.append(value)
    return np.asarray(losses), seen


def test_it_learns():
    """What context is good for: far less than the entropy of single bytes."""
    frequencies = np.bincount(text(), minlength=BYTES) / len(text())
    losses, _ = trained(fused)
    assert losses[0] == pytest.approx(np.log(BYTES), rel=0.5)
    assert np.mean(losses[-20:]) < 0.75 * jxent.entropy(frequencies)


def test_same_loss_and_gradients_on_the_way():
    both = jax.jit(lambda *args: [value_and_gradients(head)(*args) for head in (fused, dense)])
    for params, batch in trained(dense)[1]:
        (value, gradients), (expected, exact) = both(params, *batch)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        for x, y in zip(jax.tree.leaves(gradients), jax.tree.leaves(exact), strict=True):
            assert np.linalg.norm(x - y) <= 2e-6 * np.linalg.norm(y)


def test_same_training():
    """Rounding differs, and training amplifies what differs: a little more than one loss's."""
    np.testing.assert_allclose(trained(fused)[0], trained(dense)[0], rtol=1e-5)
