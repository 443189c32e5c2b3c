"""What the compiled loss of a linear head consists of: no whole logits, few products."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import fast_jit
from support.tiers import quick, quick_rows


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
