"""How much an example counts in a mean, where the loss itself says so."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jxent
from support import heads
from support.cases import fast_jit
from support.meshes import BOTH, mesh_of, placed
from support.tiers import quick, quick_rows

integer_loss = jxent.softmax_cross_entropy_with_integer_labels
IGNORED = heads.IGNORED
SIZES = (16, 12, 6)


def weighing(chunked, **options):
    """What the head computes by its own options, written with `chunked`."""

    def loss_of(a):
        mask, weights = a["class_mask"], a["class_weights"]

        def loss(logits, labels):
            losses = integer_loss(
                logits,
                labels,
                where=jnp.broadcast_to(mask, logits.shape),
                label_smoothing=a["label_smoothing"],
                class_weights=weights,
                z_loss=a["z_loss"],
                ignore_index=IGNORED,
                class_axis_name=options.get("class_axis_name"),
            )
            axis = {"class_axis_name": options.get("class_axis_name")}
            return losses, jxent.label_weights(weights, labels, IGNORED, **axis)

        names = "inputs", "kernel", "bias"
        logits = jxent.LinearLogits(
            *(a[n] for n in names), softcap=a["logit_softcap"], class_mask=mask
        )
        function = chunked(loss, reduction="mean", has_counts=True, **options)
        return function(logits, a["labels"], weights=a["weights"])

    return loss_of


NUMBERS = ("inputs", "kernel", "bias", "weights", "label_smoothing", "z_loss", "logit_softcap")


def value_and_gradients(loss, a):
    """Of all numbers but the class weights, which the counts are made of."""
    numbers = {name: a[name] for name in NUMBERS}
    return jax.value_and_grad(lambda n: loss(a | n))(numbers)


def of_chunks(chunk_size, **options):
    chunked = functools.partial(jxent.chunked, chunk_size=chunk_size, precision="highest")
    return weighing(chunked, **options)


@pytest.mark.parametrize("chunk_size", quick([5, 4, 1, 16, None]))
def test_the_same_arguments_give_the_mean_of_the_head(chunk_size):
    with jax.enable_x64(True):
        a = heads.with_options(heads.OPTIONS, *SIZES)
        results = fast_jit(
            lambda a: [value_and_gradients(f, a) for f in (of_chunks(chunk_size), heads.fused_head)]
        )(a)
        chex.assert_trees_all_close(*results, rtol=1e-12, atol=1e-14, strict=True)


@pytest.mark.parametrize("way", quick(["explicit", "automatic", "mesh", "vmap"]))
def test_on_a_mesh_and_mapped(way):
    with jax.enable_x64(True):
        a = heads.with_options(heads.OPTIONS, *SIZES)
        expected = fast_jit(lambda a: value_and_gradients(heads.fused_head, a))(a)
        if way == "vmap":
            turned = jax.tree.map(lambda x: jnp.stack([x, x[::-1]] if x.ndim else [x, x]), a)
            turned |= {n: jnp.stack([a[n]] * 2) for n in a if n not in ("inputs", "labels")}
            turned["weights"] = jnp.stack([a["weights"], a["weights"][::-1]])
            results = fast_jit(lambda a: jax.vmap(of_chunks(5))(a))(turned)
            np.testing.assert_allclose(results, [expected[0]] * 2, rtol=1e-12)
            return
        types = AxisType.Explicit if way == "explicit" else AxisType.Auto
        mesh = mesh_of(*BOTH, types)
        specs = {"kernel": P(None, "model"), "class_weights": P("model"), "class_mask": P("model")}
        specs |= {n: P("data") for n in ("inputs", "labels", "weights")} | {"bias": P("model")}
        given = placed(mesh, specs, a)
        options = {"mesh": mesh} if way == "mesh" else {}
        with jax.set_mesh(mesh):
            results = fast_jit(lambda a: value_and_gradients(of_chunks(2, **options), a))(given)
        chex.assert_trees_all_close(results, expected, rtol=1e-12, atol=1e-14, strict=True)


X, W = np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3), np.eye(3, 4, dtype=np.float32)
LOGITS, Y = jxent.LinearLogits(X, W), np.array([0, IGNORED, 2, 3, IGNORED])
DENSE = np.asarray(integer_loss(X @ W, Y, ignore_index=IGNORED))


def mean_of(counts, **call):
    def loss(logits, labels, counts):
        return integer_loss(logits, labels, ignore_index=IGNORED), counts

    mean = jxent.chunked(loss, reduction="mean", has_counts=True, chunk_size=2)
    return mean(LOGITS, Y, counts, **call)


@pytest.mark.parametrize(
    ("counts", "call"),
    quick_rows(
        [
            (Y != IGNORED, {}),
            (np.array([1, 0, 3, 1, 0], np.int8), {}),
            (np.array([0.5, 0, 3, 1, 0], jnp.bfloat16), {}),
            (np.array([0.5, 0, 3, 1, 1], np.float16), {"where": np.array([1, 1, 1, 0, 1], bool)}),
            (np.array([0.5, 0, 3, 1, 1], np.float32), {"weights": np.float32([1, 2, 0, 1, 1])}),
            (np.zeros(5), {}),
        ],
        0, 3, 4, 5,
    ),
)  # fmt: skip
def test_kinds_of_counts(counts, call):
    weights = call.get("weights", 1) * call.get("where", np.ones(5, bool))
    total = np.sum(weights * counts.astype(np.float32))
    expected = np.sum(weights * DENSE) / total if total else 0
    mean = mean_of(counts, **call)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, expected, rtol=1e-6)


def test_negative_counts():
    """Where they count: a mean divides by their sum."""
    counts = np.float32([1, 1, 1, -1, 1])
    assert np.isnan(mean_of(counts))
    assert np.isfinite(mean_of(counts, where=counts > 0))


def test_beside_aux():
    def loss(logits, labels):
        losses = integer_loss(logits, labels, ignore_index=IGNORED)
        return (losses, labels != IGNORED), {"is_right": jnp.argmax(logits, -1) == labels}

    def mean(logits):
        options = {"has_counts": True, "has_aux": True, "chunk_size": 2}
        return jxent.chunked(loss, reduction="mean", **options)(logits, Y)

    (value, aux), gradients = jax.value_and_grad(mean, has_aux=True)(LOGITS)
    expected, exact = jax.value_and_grad(
        lambda x: jxent.linear_softmax_cross_entropy(x, W, Y, ignore_index=IGNORED)
    )(X)
    chex.assert_trees_all_close((value, gradients.inputs), (expected, exact), rtol=1e-6)
    np.testing.assert_array_equal(aux["is_right"], np.argmax(X @ W, -1) == Y)


def test_who_differentiates_counts():
    """It is an error where counts are made of what is differentiated, and of numbers."""

    def mean(make, *numbers):
        def loss(logits, labels):
            losses = integer_loss(logits, labels, ignore_index=IGNORED, class_weights=numbers[0])
            return numbers[-1] * losses, make(logits, labels, *numbers)

        return jxent.chunked(loss, reduction="mean", has_counts=True, chunk_size=2)(LOGITS, Y)

    def of_labels(logits, labels, weights, *rest):
        return jxent.label_weights(weights, labels, IGNORED)

    weights, two = np.float32([1, 2, 3, 4]), np.float32(2)
    message = r"^aux and counts, what loss returns beside its losses, must not be differentiated"
    with pytest.raises(TypeError, match=message):
        jax.jit(jax.grad(functools.partial(mean, of_labels))).lower(weights, two)

    def of_kernel(kernel):
        def loss(logits):
            return jxent.softmax_entropy(logits), jxent.softmax(logits)[:, 0]

        mean = jxent.chunked(loss, reduction="mean", has_counts=True)
        return mean(jxent.LinearLogits(X, kernel))

    with pytest.raises(TypeError, match=message):
        jax.jit(jax.grad(of_kernel)).lower(W)
    of_two = jax.grad(functools.partial(mean, of_labels, weights))(two)
    np.testing.assert_allclose(of_two, mean(of_labels, weights, two) / 2, rtol=1e-6)
    of_hard = jax.grad(
        lambda w: mean(lambda z, y, w, _: jxent.softmax_entropy(z * w[0]) > 1, w, two)
    )
    assert np.all(np.isfinite(of_hard(weights)))


@pytest.mark.parametrize(
    ("loss", "arguments"),
    [
        (lambda z, y: integer_loss(z, y, ignore_index=IGNORED), "ignore_index"),
        (jax.jit(lambda z, y: 2 * integer_loss(z, y, ignore_index=IGNORED)), "ignore_index"),
        (lambda z, y: integer_loss(z, jnp.maximum(y, 0), where=y >= 0), "where"),
        (lambda z, y: jax.vmap(jxent.softmax_entropy)(z) * integer_loss(
            z, y, ignore_index=IGNORED, class_weights=np.ones(4)), "class_weights, ignore_index"),
        (lambda z, y: jax.checkpoint(lambda z: jxent.softmax_entropy(z, where=y > 0))(z), "where"),
    ],
)  # fmt: skip
def test_a_loss_that_does_not_say_it(loss, arguments):
    """A mean over all examples would be smaller, without a word."""
    message = (
        f"loss must say how much its examples count in a mean, as it uses {arguments}: return"
        " (losses, counts) with has_counts=True, or give where or weights to what chunked returns,"
        " or reduction='sum' and divide by a number"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"^{re.escape(message)}(\n|$)"):
            jxent.chunked(loss, reduction="mean")(LOGITS, Y)
    said = jxent.chunked(loss, reduction="mean")(LOGITS, Y, where=Y != IGNORED)
    total = jxent.chunked(loss, reduction="sum")(LOGITS, np.where(Y == IGNORED, 0, Y))
    every = jxent.chunked(loss)(LOGITS, Y)
    assert np.isfinite(said)
    assert np.isfinite(total)
    np.testing.assert_allclose(said, np.mean(every[Y != IGNORED]), rtol=1e-6)


def test_a_loss_in_which_every_example_counts():
    """Masks of classes leave no example out, and aux is not in the mean."""

    def loss(logits, labels):
        legal = jnp.broadcast_to(jnp.arange(4) != 1, logits.shape)
        nll = integer_loss(logits, labels, ignore_index=IGNORED)
        return jxent.softmax_entropy(logits, where=legal), nll

    mean, aux = jxent.chunked(loss, reduction="mean", has_aux=True, chunk_size=2)(LOGITS, Y)
    legal = np.broadcast_to(np.arange(4) != 1, (5, 4))
    np.testing.assert_allclose(mean, np.mean(jxent.softmax_entropy(X @ W, where=legal)), rtol=1e-6)
    np.testing.assert_allclose(aux, DENSE, rtol=1e-6)
