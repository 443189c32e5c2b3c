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
from support.heads import IGNORED, fused_head, is_float, plain_head, value_and_gradients
from support.tiers import quick_rows

EXAMPLES, FEATURES, CLASSES = 6, 3, 5
_DRAWS = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
)


def of_chunked(a, reduction):
    class_weights = jnp.where(a["class_mask"], a["class_weights"], 1)

    def loss(z, labels):
        return jxent.softmax_cross_entropy_with_integer_labels(
            z, labels, where=jnp.broadcast_to(a["class_mask"], z.shape), z_loss=a["z_loss"],
            label_smoothing=a["label_smoothing"], class_weights=class_weights,
        )  # fmt: skip

    logits = jxent.LinearLogits(
        a["inputs"], a["kernel"], a["bias"], class_mask=a["class_mask"],
        scale=a["logit_scale"], softcap=a["logit_softcap"],
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
        "logit_scale": draw(st.sampled_from([1.0, 0.5])),
        "logit_softcap": draw(st.sampled_from([np.inf, 2.0])),
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
    head = functools.partial(fused_head, chunk_size=2) if name == "linear" else of_chunked
    fused = functools.partial(head, reduction=reduction)
    plain = functools.partial(plain_head, reduction=reduction, shared=name == "linear")

    def all_of(a):
        floats = [name for name in a if is_float(a[name]) and name != "label_smoothing"]
        without = [name for name in floats if name != "weights"]
        results = [value_and_gradients(fused, a, names) for names in (floats, without, [])]
        return results, value_and_gradients(plain, a, floats)

    return fast_jit(all_of)


ROWS = [("linear", "sum"), ("chunked", "mean"), ("linear", "mean")]
ROWS += [("chunked", "sum"), ("linear", "none")]


@pytest.mark.parametrize(("name", "reduction"), quick_rows(ROWS, 0))
@_DRAWS
@given(a=heads())
def test_against_a_plain_head(name, reduction, a):
    with jax.enable_x64(True):
        results, right = program(name, reduction)(a)
    for result in results:
        for what, got in result.items():
            np.testing.assert_allclose(got, right[what], rtol=1e-10, atol=1e-12, err_msg=what)
