"""What the programs of heads consist of: few products, skipped chunks, no whole logits."""

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


# The loss of a linear head: no whole logits, few products.


def _compiled(reduction, argnums, examples=4096, features=16, classes=4099, **options):
    def loss(x, w, y):
        losses = jxent.linear_softmax_cross_entropy(x, w, y, reduction=reduction, **options)
        return jnp.sum(losses)

    shapes = ((examples, features), (features, classes), (examples,))
    args = [jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, "ffi", strict=True)]
    function = jax.value_and_grad(loss, argnums) if argnums else loss
    return fast_jit(function).lower(*args), examples * classes


@pytest.mark.parametrize("reduction", quick(["mean", "none"]))
def test_the_logits_never_exist_whole(reduction):
    lowered, whole = _compiled(reduction, (0, 1))
    for text in (lowered.as_text(), lowered.compile().as_text()):
        shapes = re.findall(r"(?:tensor<|f32\[)(\d+(?:[x,]\d+)*)", text)
        sizes = [np.prod([int(n) for n in re.split("[x,]", shape)]) for shape in shapes]
        assert 16 * 4099 <= max(sizes) < whole / 2


@pytest.mark.parametrize(
    ("reduction", "argnums", "products"),
    quick_rows(
        [
            ("mean", (0,), 2),
            ("mean", (0, 1), 3),
            ("none", (0, 1), 4),
            ("mean", (), 1),
            ("none", (), 1),
        ],
        0,
        1,
        2,
    ),
)
def test_products_and_their_precision(reduction, argnums, products):
    """As many products as promised, none for a gradient that nobody asked for.

    Each has the precision that is asked for, which is not the tests' own.
    """
    lowered, _ = _compiled(reduction, argnums, classes=8192, chunk_size=512, precision="high")
    asked = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    assert asked
    assert all("precision = [HIGH, HIGH]" in line for line in asked)
    text = lowered.compile().as_text()
    assert len(re.findall(r"= f32\S* (?:dot|custom-call\S*matmul)\(", text)) == products


@pytest.mark.parametrize("options", [{}, {"ignore_index": -1}], ids=["all", "those that count"])
def test_second_derivatives_keep_no_logits(options):
    """Of the last chunk neither, which is smaller than the others."""
    labels, classes = np.zeros(7, np.int32), 512

    def loss(x, w):
        return jxent.linear_softmax_cross_entropy(x, w, labels, chunk_size=4, **options)

    args = jax.ShapeDtypeStruct((7, 2), "float32"), jax.ShapeDtypeStruct((2, classes), "float32")
    kept = jax.eval_shape(lambda *args: jax.vjp(jax.grad(loss, (0, 1)), *args)[1], *args)
    # Kernels and their gradients, which have two rows of classes.
    assert max(x.size for x in jax.tree.leaves(kept)) == 2 * classes
