"""At work: training steps of Flax (linen and NNX) with optax, under jit."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jxent
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


def _integer(logits, labels):
    losses = jxent.softmax_cross_entropy_with_integer_labels(
        logits, labels, label_smoothing=0.01, z_loss=1e-4, ignore_index=IGNORED
    )
    return jxent.weighted_mean(losses, labels != IGNORED)


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
    assert np.all(np.isfinite(losses))
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
    assert value.dtype == jnp.float32
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
