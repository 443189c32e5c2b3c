"""What the programs of chunked losses consist of: products, skipped chunks, no whole logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import fast_jit
from support.products import products
from support.tiers import quick, quick_rows

EXAMPLES, FEATURES, CLASSES, CHUNK = 1024, 16, 2048, 128


def value_and_gradients(loss, wanted, **options):
    """The program for the gradients of these of two heads' arrays, with a loss of both."""

    def total(floats, arrays):
        a = arrays | floats
        return jnp.sum(
            jxent.chunked(loss, chunk_size=CHUNK, **options)(
                jxent.LinearLogits(a["inputs"], a["kernel"]),
                jxent.LinearLogits(a["other_inputs"], a["other_kernel"]),
            )
        )

    shapes = {"inputs": (EXAMPLES, FEATURES), "kernel": (FEATURES, CLASSES)}
    arrays = {
        prefix + name: jax.ShapeDtypeStruct(shape, np.float32)
        for prefix in ("", "other_")
        for name, shape in shapes.items()
    }
    floats = {name: arrays[name] for name in wanted}
    function = jax.value_and_grad(total) if wanted else total
    # On a GPU the products are calls of a library, which do not say what they compute.
    with jax.default_device(jax.devices("cpu")[0]):
        return fast_jit(function).lower(floats, arrays).compile().as_text()


def one_head(student, _):
    return jxent.softmax_entropy(student)


@pytest.mark.parametrize(
    ("loss", "wanted", "reduction", "number"),
    quick_rows(
        [
            (one_head, "inputs kernel", "mean", 3),
            (one_head, "kernel", "mean", 2),
            (one_head, "inputs kernel", "none", 4),
            (jxent.softmax_kl_divergence, "", "mean", 2),
            (jxent.softmax_kl_divergence, "inputs kernel", "mean", 4),
            (jxent.softmax_kl_divergence, "inputs kernel other_inputs other_kernel", "mean", 6),
            (jxent.softmax_kl_divergence, "inputs kernel", "none", 6),
        ],
        1,
        6,
    ),
)
def test_products(loss, wanted, reduction, number):
    """Of all chunks together. A head that the loss does not look at costs nothing."""
    text = value_and_gradients(loss, wanted.split(), reduction=reduction)
    assert products(text, EXAMPLES, FEATURES, CLASSES) == pytest.approx(number, abs=1e-3)
    sizes = [
        np.prod([int(n) for n in shape.split(",")])
        for shape in re.findall(r"f32\[(\d+(?:,\d+)*)\]", text)
    ]
    assert CHUNK * CLASSES <= max(sizes) < EXAMPLES * CLASSES / 2


def counting(loss, computed):
    """The loss, which leaves a trace of each chunk of which it is computed."""

    def function(*args, **options):
        jax.debug.callback(lambda: computed.append(None))
        return loss(*args, **options)

    return function


@pytest.mark.parametrize("reduction", quick(["mean", "none"]))
def test_chunks_of_what_does_not_count_are_skipped(reduction, monkeypatch):
    """Nine examples of a hundred, wherever they are, make three chunks of four."""
    counted = np.arange(100) % 11 == 5
    x = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    kernel, labels = np.eye(3, 5, dtype=np.float32), np.where(counted, 1, -100)
    computed = []
    loss = counting(jxent.softmax_cross_entropy_with_integer_labels, computed)
    monkeypatch.setattr(jxent._head, "softmax_cross_entropy_with_integer_labels", loss)
    chunked = jxent.chunked(loss, reduction=reduction, chunk_size=4)
    options = {"reduction": reduction, "chunk_size": 4}
    ways = {
        "where": lambda x: chunked(jxent.LinearLogits(x, kernel), labels, where=counted),
        "ignore_index": lambda x: jxent.linear_softmax_cross_entropy(
            x, kernel, labels, ignore_index=-100, **options
        ),
    }
    if reduction == "mean":
        weights = np.where(counted, 2, 0).astype(np.float32)
        ways["weights"] = lambda x: chunked(jxent.LinearLogits(x, kernel), labels, weights=weights)
        ways["weights of the head"] = lambda x: jxent.linear_softmax_cross_entropy(
            x, kernel, np.ones(100, int), weights=weights, **options
        )
    for name, function in ways.items():
        computed.clear()
        gradient = fast_jit(jax.grad(lambda x, f=function: jnp.sum(f(x))))(x)
        jax.effects_barrier()
        # The gradient of losses that are not reduced computes them again, and what leaves a trace
        # is not dropped where nobody needs it.
        passes, rest = divmod(len(computed), 3)
        assert rest == 0, name
        assert passes == 1 if reduction == "mean" else 2 <= passes <= 5, name
        np.testing.assert_array_equal(np.any(np.asarray(gradient) != 0, axis=-1), counted)
