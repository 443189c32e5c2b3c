"""Rare conditions that meet: options, masks and bad values drawn at random, against a plain head.

All options are traced and have values that change nothing, so that one program serves all draws.
"""

import functools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings

import jxent
from support.cases import fast_jit
from support.tiers import quick_rows

EXAMPLES, FEATURES, CLASSES = 6, 3, 5
IGNORED = -100
FLOATS = ("inputs", "kernel", "bias", "weights", "class_weights", "z_loss", "scale", "softcap")
_DRAWS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)


def plain(a, reduction, shared):
    """The definition, with harmless numbers wherever nothing counts.

    `shared` says whether a mean is divided by the class weights of the labels, too.
    """
    mask, exists = a["class_mask"], (a["labels"] >= 0) & (a["labels"] < CLASSES)
    labels = jnp.where(exists, a["labels"], 0).astype(int)
    is_possible = exists & (mask[labels] | (a["label_smoothing"] == 1))
    # Without weight nothing counts that has no loss, and without one of both no gradient is NaN.
    counts = (a["labels"] != IGNORED) & (is_possible | (a["weights"] != 0))
    is_usable = jnp.all(jnp.isfinite(a["inputs"]), axis=-1)
    counts &= is_usable
    x = jnp.where(counts[:, None], a["inputs"], 0)
    kernel, bias = jnp.where(mask[None, :], a["kernel"], 0), jnp.where(mask, a["bias"], 0)
    z = a["scale"] * (jnp.dot(x, kernel, precision="highest") + bias[None, :])
    is_capped = a["softcap"] < jnp.inf
    cap = jnp.where(is_capped, a["softcap"], 1)
    z = jnp.where(is_capped, cap * jnp.tanh(z / cap), z)
    normalizer = jax.nn.logsumexp(z, axis=-1, where=mask[None, :], keepdims=True)
    costs = jnp.where(mask[None, :], normalizer - z, 0)
    class_weights = jnp.where(mask, a["class_weights"], 0)
    share = jnp.where(mask, 1.0, 0.0)
    share /= jnp.sum(share)
    of_label = jnp.where(jnp.arange(CLASSES)[None, :] == labels[:, None], 1.0, 0.0)
    smoothing = a["label_smoothing"]
    targets = class_weights[None, :] * ((1 - smoothing) * of_label + smoothing * share[None, :])
    losses = jnp.sum(targets * costs, axis=-1) + a["z_loss"] * normalizer[:, 0] ** 2
    weights = jnp.where((a["labels"] != IGNORED) & is_usable, a["weights"], 0)
    losses = jnp.where(counts, losses, 0)
    if reduction == "none":
        return weights * losses
    of_classes = jnp.where(jnp.isfinite(a["class_weights"]), a["class_weights"], 1)
    of_labels = jnp.where(exists, of_classes[labels], 0)
    number = jnp.sum(weights * of_labels if shared else weights)
    total = jnp.sum(weights * losses)
    return (
        total
        if reduction == "sum"
        else jnp.where(number == 0, 0, total / jnp.where(number == 0, 1, number))
    )


def of_linear(a, reduction):
    return jxent.linear_softmax_cross_entropy(
        a["inputs"], a["kernel"], a["labels"], a["bias"], weights=a["weights"],
        class_mask=a["class_mask"], class_weights=a["class_weights"], z_loss=a["z_loss"],
        label_smoothing=a["label_smoothing"], logit_scale=a["scale"], logit_softcap=a["softcap"],
        ignore_index=IGNORED, reduction=reduction, chunk_size=2, precision="highest",
    )  # fmt: skip


def of_chunked(a, reduction):
    class_weights = jnp.where(a["class_mask"], a["class_weights"], 1)

    def loss(z, labels):
        return jxent.softmax_cross_entropy_with_integer_labels(
            z, labels, where=jnp.broadcast_to(a["class_mask"], z.shape), z_loss=a["z_loss"],
            label_smoothing=a["label_smoothing"], class_weights=class_weights,
        )  # fmt: skip

    logits = jxent.LinearLogits(
        a["inputs"], a["kernel"], a["bias"], scale=a["scale"], softcap=a["softcap"],
        class_mask=a["class_mask"],
    )  # fmt: skip
    return jxent.chunked(loss, reduction=reduction, chunk_size=4, precision="highest")(
        logits, a["labels"], where=a["labels"] != IGNORED, weights=a["weights"]
    )


@st.composite
def heads(draw):
    """Two or more of what is rare, with numbers that are not."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    some = functools.partial(st.sets, st.integers(0, EXAMPLES - 1), max_size=2)
    mask = np.ones(CLASSES, bool)
    mask[list(draw(st.sets(st.integers(1, CLASSES - 1), max_size=2)))] = False
    of_existing = np.flatnonzero(mask)
    a = {
        "inputs": rng.normal(size=(EXAMPLES, FEATURES)),
        "kernel": rng.normal(size=(FEATURES, CLASSES)),
        "bias": rng.normal(size=CLASSES),
        "labels": rng.choice(of_existing, EXAMPLES),
        "weights": rng.uniform(0.5, 2, EXAMPLES),
        "class_weights": rng.uniform(0.5, 2, CLASSES),
        "class_mask": mask,
        "label_smoothing": draw(st.sampled_from([0.0, 0.25, 1.0])),
        "z_loss": draw(st.sampled_from([0.0, 0.1])),
        "scale": draw(st.sampled_from([1.0, 0.5])),
        "softcap": draw(st.sampled_from([np.inf, 2.0])),
    }
    padding = draw(st.sampled_from([0.0, np.nan, np.inf]))
    for name in draw(st.sets(st.sampled_from(["kernel", "bias", "class_weights"]))):
        a[name][..., ~mask] = padding
    a["class_weights"][draw(st.sampled_from(of_existing))] *= draw(st.sampled_from([0.0, 1.0]))
    ignored, weightless, nowhere, impossible = draw(st.tuples(some(), some(), some(), some()))
    weightless = list(weightless - ignored)
    a["labels"][list(nowhere & set(weightless))] = draw(st.sampled_from([-1, CLASSES, 127]))
    if not mask.all():
        without = impossible if a["label_smoothing"] == 1 else impossible & set(weightless)
        a["labels"][list(without - nowhere)] = np.flatnonzero(~mask)[0]
    a["labels"][list(ignored)] = IGNORED
    a["weights"][weightless] = 0
    bad = draw(st.sampled_from([0.0, np.nan, np.inf]))
    a["inputs"][list(draw(some()) & {*ignored, *weightless})] = bad
    return {k: np.asarray(x) for k, x in a.items()}


@functools.cache
def program(name, reduction):
    """The head with all gradients, without those of the weights, and without any; and the truth."""
    head, shared = {"linear": (of_linear, True), "chunked": (of_chunked, False)}[name]

    def value_and_gradients(f, a, names):
        def total(floats):
            out = f(a | floats)
            return jnp.sum(jnp.cos(jnp.arange(float(out.size))) * out.ravel()), out

        gradients, out = jax.grad(total, has_aux=True)({k: a[k] for k in names})
        return {"value": out, **gradients}

    def all_of(a):
        fused = functools.partial(head, reduction=reduction)
        right = functools.partial(plain, reduction=reduction, shared=shared)
        without = [k for k in FLOATS if k != "weights"]
        results = [value_and_gradients(fused, a, names) for names in (FLOATS, without)]
        return [*results, {"value": fused(a)}], value_and_gradients(right, a, FLOATS)

    return fast_jit(all_of)


@pytest.mark.parametrize(
    ("name", "reduction"),
    quick_rows(
        [
            ("linear", "sum"),
            ("chunked", "mean"),
            ("linear", "mean"),
            ("chunked", "sum"),
            ("linear", "none"),
        ],
        0,
    ),
)
@_DRAWS
@given(a=heads())
def test_against_a_plain_head(name, reduction, a):
    with jax.enable_x64(True):
        results, right = program(name, reduction)(a)
    for result in results:
        for what, got in result.items():
            np.testing.assert_allclose(got, right[what], rtol=1e-10, atol=1e-12, err_msg=what)
