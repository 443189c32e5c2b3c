"""What the programs of heads consist of: few products, skipped chunks, no whole logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent._head import chunks
from jxent._head.plan import Name, Plan
from support.cases import fast_jit
from support.products import products
from support.tiers import quick, quick_rows

EXAMPLES, FEATURES, CLASSES = 4080, 16, 4099
linear_loss, divergence = jxent.linear_softmax_cross_entropy, jxent.softmax_kl_divergence


def lowered(loss, wanted, **options):
    """The program for the gradients of these of two heads' arrays."""

    def total(floats, arrays):
        a = arrays | floats
        if loss is linear_loss:
            return jnp.sum(loss(a["inputs"], a["kernel"], a["labels"], **options))
        student = jxent.LinearLogits(a["inputs"], a["kernel"])
        teacher = jxent.LinearLogits(a["other_inputs"], a["other_kernel"])
        return jnp.sum(jxent.chunked(loss, chunk_size=510, **options)(student, teacher))

    shapes = {"inputs": (EXAMPLES, FEATURES), "kernel": (FEATURES, CLASSES)}
    shapes |= {f"other_{name}": shape for name, shape in shapes.items()}
    arrays = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    arrays["labels"] = jax.ShapeDtypeStruct((EXAMPLES,), np.int32)
    function = jax.value_and_grad(total) if wanted else total
    return fast_jit(function).lower({name: arrays[name] for name in wanted}, arrays)


def one_head(student, _):
    return jxent.softmax_entropy(student)


@pytest.mark.parametrize(
    ("loss", "wanted", "reduction", "number"),
    quick_rows(
        [
            (linear_loss, "inputs", "mean", 2),
            (linear_loss, "inputs kernel", "mean", 3),
            (linear_loss, "inputs kernel", "none", 4),
            (linear_loss, "inputs", "none", 2),
            (one_head, "kernel", "mean", 2),
            (divergence, "inputs kernel", "none", 6),
            (linear_loss, "", "mean", 1),
            (linear_loss, "", "none", 1),
            (one_head, "inputs kernel", "mean", 3),
            (one_head, "inputs kernel", "none", 4),
            (divergence, "", "mean", 2),
            (divergence, "inputs kernel", "mean", 4),
            (divergence, "inputs kernel other_inputs other_kernel", "mean", 6),
        ],
        *range(6),
    ),
)
def test_products(loss, wanted, reduction, number):
    """As many as promised, of all chunks together, and never the whole logits.

    A gradient that nobody asked for costs none, nor does a head that the loss does not look at.
    Each has the precision that is asked for, which is not the tests' own.
    """
    # On a GPU the products are calls of a library, which do not say what they compute.
    with jax.default_device(jax.devices("cpu")[0]):
        program = lowered(loss, wanted.split(), reduction=reduction, precision="high")
        texts = program.as_text(), program.compile().as_text()
    asked = [line for line in texts[0].splitlines() if "dot_general" in line]
    assert asked
    assert all("precision = [HIGH, HIGH]" in line for line in asked)
    assert products(texts[1], EXAMPLES, FEATURES, CLASSES) == pytest.approx(number, abs=1e-3)
    for text in texts:
        shapes = re.findall(r"(?:tensor<|f32\[)(\d+(?:[x,]\d+)*)", text)
        sizes = [np.prod([int(n) for n in re.split("[x,]", shape)]) for shape in shapes]
        assert 16 * CLASSES <= max(sizes) < EXAMPLES * CLASSES / 2


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
        "ignore_index": lambda x: linear_loss(x, kernel, labels, ignore_index=-100, **options),
    }
    if reduction == "mean":
        weights = np.where(counted, 2, 0).astype(np.float32)
        ways["weights"] = lambda x: chunked(jxent.LinearLogits(x, kernel), labels, weights=weights)
        ways["weights of the head"] = lambda x: linear_loss(
            x, kernel, np.ones(100, int), weights=weights, **options
        )
    for name, function in ways.items():
        computed.clear()
        gradient = fast_jit(jax.grad(lambda x, f=function: jnp.sum(f(x))))(x)
        jax.effects_barrier()
        # What leaves a trace is not dropped where nobody needs it.
        passes, rest = divmod(len(computed), 3)
        assert rest == 0, name
        assert passes == 1 if reduction == "mean" else 1 <= passes <= 2, name
        np.testing.assert_array_equal(np.any(np.asarray(gradient) != 0, axis=-1), counted)


@pytest.mark.parametrize("options", [{}, {"ignore_index": -1}], ids=["all", "those that count"])
def test_second_derivatives_keep_no_logits(options):
    """Of the last chunk neither, which is smaller than the others."""
    labels, classes = np.zeros(7, np.int32), 512

    def loss(x, w):
        return linear_loss(x, w, labels, chunk_size=4, **options)

    args = jax.ShapeDtypeStruct((7, 2), "float32"), jax.ShapeDtypeStruct((2, classes), "float32")
    kept = jax.eval_shape(lambda *args: jax.vjp(jax.grad(loss, (0, 1)), *args)[1], *args)
    # Kernels and their gradients, which have two rows of classes.
    assert max(x.size for x in jax.tree.leaves(kept)) == 2 * classes


DEFAULT_CHUNKS = [
    # Whether on a CPU; examples, features, classes and dtype; then the size of a chunk.
    (False, (32768, 2560, 128256, "bfloat16"), 2048),
    (False, (8192, 4096, 128256, "bfloat16"), 1664),  # Four would take more memory than allowed.
    (False, (4096, 4096, 128256, "bfloat16"), 1408),  # Three, not four that are full.
    (False, (1536, 4096, 128256, "bfloat16"), 1536),
    (False, (200, 64, 50304, "float32"), 200),
    (False, (4096, 64, 100, "float32"), 4096),  # The logits are small in any case.
    (True, (4096, 512, 32000, "float32"), 192),
    (True, (3000, 8192, 32000, "float32"), 1000),  # There a tile has 8 examples, elsewhere 64.
]


@pytest.mark.parametrize(("on_cpu", "sizes", "expected"), DEFAULT_CHUNKS)
def test_default_chunks(on_cpu, sizes, expected, monkeypatch):
    """Nearly equal ones, as few as the memory allows."""
    monkeypatch.setattr(chunks, "is_on_cpu", lambda x: on_cpu)
    assert default_chunk(*sizes) == expected


def default_chunk(examples, features, classes, dtype):
    """The number of examples in a chunk of a head of this size."""
    shapes = {"inputs": (examples, features), "kernel": (features, classes)}
    arrays = {Name(kind): jax.ShapeDtypeStruct(shape, dtype) for kind, shape in shapes.items()}
    found = []

    def trace(*values):
        plan = Plan(None, names=tuple(arrays))
        found.append(chunks.with_chunk_size(plan, dict(zip(arrays, values, strict=True))))

    jax.eval_shape(trace, *arrays.values())
    return found[0].chunk_size


def test_the_gradient_of_logits_is_written_once_on_a_tpu():
    """Where two products read it, and are large beside it."""

    def loss(x, w):
        return linear_loss(x, w, jnp.zeros(256, int), chunk_size=128)

    def written(features, wanted, platform):
        shapes = (256, features), (features, 256)
        arguments = [jax.ShapeDtypeStruct(shape, "bfloat16") for shape in shapes]
        traced = fast_jit(jax.grad(loss, wanted)).trace(*arguments)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        return text.count("optimization_barrier")

    assert written(1536, (0, 1), "tpu") == written(1535, (0, 1), "tpu") + 1
    assert written(1536, 1, "tpu") == written(1535, 1, "tpu")
    assert written(1536, (0, 1), "cuda") == written(1535, (0, 1), "cuda")
