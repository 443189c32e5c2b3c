"""At work: training steps of Flax (linen and NNX) with optax, under jit, and a language model.

The text of the language model is Python's own help, which comes with every installation.
"""

import functools
import pydoc_data.topics

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jxent
from support.heads import fused_head, plain_head
from support.tiers import quick

pytestmark = pytest.mark.peer

CLASSES, FEATURES, STEPS = 3, 4, 60
IGNORED = -100


def _data():
    """Three clusters on which a linear model does well, and a few examples without a label."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % CLASSES
    centres = 2 * rng.normal(size=(CLASSES, FEATURES))
    inputs = centres[labels] + rng.normal(size=(96, FEATURES))
    labels = np.where(np.arange(96) < 6, IGNORED, labels)
    return jnp.asarray(inputs, jnp.float32), jnp.asarray(labels)


OPTIONS = {"label_smoothing": 0.01, "z_loss": 1e-4, "ignore_index": IGNORED}
_of_examples = functools.partial(jxent.softmax_cross_entropy_with_integer_labels, **OPTIONS)


def _integer(logits, labels):
    return jxent.weighted_mean(_of_examples(logits, labels), labels != IGNORED)


def _soft(logits, labels):
    return jnp.mean(jxent.softmax_cross_entropy(logits, jax.nn.one_hot(labels, CLASSES)))


def _focal(logits, labels):
    kept = labels != IGNORED
    losses = jxent.softmax_focal_loss_with_integer_labels(logits, labels * kept, where=kept)
    return jxent.weighted_mean(losses, kept)


def _multi_label(logits, labels):
    return jnp.mean(jxent.sigmoid_binary_cross_entropy(logits, jax.nn.one_hot(labels, CLASSES)))


def _distillation(logits, labels):
    teacher = 3 * jax.nn.one_hot(labels, CLASSES)
    return jnp.mean(jxent.softmax_kl_divergence(logits, teacher))


LOSSES = [_integer, _soft, _focal, _multi_label, _distillation]


def _check(losses, predicted, labels):
    """The loss falls, to less than half, and what was learnt is right."""
    losses, predicted = np.asarray(losses), np.asarray(predicted)
    chex.assert_tree_all_finite(losses)
    assert losses[-1] < losses[0] / 2
    kept = np.asarray(labels) != IGNORED
    assert np.mean(predicted.argmax(-1)[kept] == np.asarray(labels)[kept]) > 0.9


@pytest.mark.parametrize("loss", quick(LOSSES, _integer, _multi_label))
def test_linen(loss):
    """Parameters in float32, logits in bfloat16; the step is traced once."""
    chex.clear_trace_counter()
    inputs, labels = _data()
    model = nn.Dense(CLASSES, dtype=jnp.bfloat16)
    optimizer = optax.adam(0.1)
    params = model.init(jax.random.key(0), inputs)
    state = optimizer.init(params)

    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def step(params, state):
        value, grads = jax.value_and_grad(lambda p: loss(model.apply(p, inputs), labels))(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, value

    losses = []
    for _ in range(STEPS):
        params, state, value = step(params, state)
        losses.append(value)
    chex.assert_type(value, jnp.float32)
    _check(losses, model.apply(params, inputs), labels)


def test_nnx():
    """The module and its optimizer are state, passed through nnx.jit."""
    inputs, labels = _data()
    model = nnx.Linear(FEATURES, CLASSES, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(lambda model: _integer(model(inputs), labels))(model)
        optimizer.update(model, grads)
        return value

    losses = [step(model, optimizer) for _ in range(STEPS)]
    _check(losses, model(inputs), labels)


class Tied(nnx.Module):
    """Features of tokens, whose embedding is the head's kernel, too."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(41, 16, rngs=rngs)
        self.hidden = nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, tokens):
        return nnx.gelu(self.hidden(self.embed(tokens)))


def _linear(features, kernel, labels):
    return jxent.linear_softmax_cross_entropy(features, kernel, labels, **OPTIONS, chunk_size=16)


def _chunked(features, kernel, labels):
    loss = jxent.chunked(_of_examples, reduction="mean", chunk_size=16)
    return loss(jxent.LinearLogits(features, kernel), labels, where=labels != IGNORED)


def _whole(features, kernel, labels):
    return _integer(features @ kernel, labels)


@pytest.mark.parametrize("head", [_linear, _chunked])
def test_nnx_tied_embedding(head):
    """It is looked up and it is the head: the gradient is that of whole logits, and it trains."""
    tokens = jnp.arange(41)
    labels = jnp.where(tokens < 5, IGNORED, 3 * tokens % 41)

    @functools.partial(nnx.jit, static_argnums=1)
    def value_and_grad(model, head):
        def loss(model):
            return head(model(tokens), model.embed.embedding[...].T, labels)

        return nnx.value_and_grad(loss)(model)

    @nnx.jit
    def step(model, optimizer):
        value, grads = value_and_grad(model, head)
        optimizer.update(model, grads)
        return value

    model = Tied()
    optimizer = nnx.Optimizer(model, optax.adam(0.02), wrt=nnx.Param)
    found, expected = (value_and_grad(model, h) for h in (head, _whole))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-7)
    losses = [step(model, optimizer) for _ in range(STEPS)]
    _check(losses, model.embed.attend(model(tokens)), labels)


# A byte-level language model, trained with the head that never makes its logits.

BYTES, CONTEXT, WIDTH, BATCH, BATCHES = 256, 16, 64, 384, 300
OPTIMIZER = optax.adam(optax.cosine_decay_schedule(3e-3, BATCHES))


class LanguageModel(nn.Module):
    """The features from which the next byte is predicted, and the embedding that predicts it."""

    @nn.compact
    def __call__(self, context):
        embedding = nn.Embed(BYTES, WIDTH)
        x = embedding(context).reshape(*context.shape[:-1], -1)
        x = nn.gelu(nn.Dense(2 * WIDTH)(x))
        return nn.LayerNorm()(nn.Dense(WIDTH)(x)), embedding.embedding


@functools.cache
def help_text():
    topics = pydoc_data.topics.topics
    return np.frombuffer("".join(topics[k] for k in sorted(topics)).encode(), np.uint8)


def batches():
    """Contexts and the bytes that follow them."""
    rng = np.random.default_rng(0)
    for _ in range(BATCHES):
        start = rng.integers(0, len(help_text()) - CONTEXT, BATCH)
        window = help_text()[start[:, None] + np.arange(CONTEXT + 1)].astype(np.int32)
        yield window[:, :-1], window[:, -1]


def trained(head):
    """The losses of all steps."""

    def loss(params, context, labels):
        features, embedding = LanguageModel().apply(params, context)
        return head({"inputs": features, "kernel": embedding.T, "labels": labels})

    @jax.jit
    def step(params, state, context, labels):
        value, gradients = jax.value_and_grad(loss)(params, context, labels)
        updates, state = OPTIMIZER.update(gradients, state)
        return optax.apply_updates(params, updates), state, value

    params = LanguageModel().init(jax.random.key(0), jnp.zeros((1, CONTEXT), int))
    state, losses = OPTIMIZER.init(params), []
    for batch in batches():
        params, state, value = step(params, state, *batch)
        losses.append(value)
    return np.asarray(losses)


@pytest.mark.full
def test_language_model():
    """What context is good for is learnt: far less than the entropy of single bytes.

    Rounding differs, and training amplifies what differs: a little more than one loss's.
    """
    frequencies = np.bincount(help_text(), minlength=BYTES) / len(help_text())
    # Five chunks, the last of them smaller.
    losses = trained(functools.partial(fused_head, chunk_size=80))
    assert losses[0] == pytest.approx(np.log(BYTES), rel=0.5)
    assert np.mean(losses[-20:]) < 0.75 * jxent.entropy(frequencies)
    np.testing.assert_allclose(losses, trained(plain_head), rtol=1e-5)
