"""Losses that return more than a number for each example, and heads that are no matrix."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jxent
from support.cases import fast_jit
from support.meshes import BOTH, mesh_of, placed
from support.tiers import quick, quick_rows

SPECS = {"inputs": P("data"), "labels": P("data"), "where": P("data")}
WIDE = functools.partial(jnp.linspace, -1, 1)


def arrays(examples=(4, 6), features=6, classes=32, hidden=5):
    rng = np.random.default_rng(0)
    shapes = {
        "inputs": (*examples, features),
        "kernel": (features, classes),
        "first": (features, hidden),
        "second": (hidden, classes),
    }
    found = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    labels = rng.integers(0, classes, examples).astype(np.int32)
    others = {"labels": labels, "where": rng.random(examples) < 0.6}
    return found, others


def top_classes(logits, labels):
    """A teacher's likeliest classes, with statistics of any shape; some of it is no number."""
    log_p = jxent.log_softmax(logits)
    values, index = jax.lax.top_k(log_p, 3)
    parts = log_p[:, :12].reshape(-1, 3, 2, 2)
    is_among = jnp.any(index == labels[:, None], axis=-1)
    return {"top": (values, index), "parts": parts, "is_among": is_among, "nll": -log_p[:, 0]}


def whole(loss, x, *args, where=None):
    """On all examples at once, as `chunked` does without a reduction."""
    shape = x.shape[:-1]
    flat = [a.reshape(-1, *a.shape[len(shape) :]) for a in (x, *args)]
    counted = jnp.ones(shape, bool) if where is None else where

    def back(out):
        out = out.reshape(*shape, *out.shape[1:])
        mask = counted.reshape(*shape, *[1] * (out.ndim - len(shape)))
        return jnp.where(mask, out, jnp.zeros((), out.dtype))

    return jax.tree.map(back, loss(*flat))


def total(outs):
    """A number made of all outputs that are numbers, with another weight for each."""
    floats = [x for x in jax.tree.leaves(outs) if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum(jnp.sum(x * jnp.cos(WIDE(x.size).reshape(x.shape) * 3)) for x in floats), outs


def of_chunks(numbers, others, masked, **options):
    function = jxent.chunked(top_classes, precision="highest", **options)
    logits = jxent.LinearLogits(numbers["inputs"], numbers["kernel"])
    return total(function(logits, others["labels"], where=others["where"] if masked else None))


def of_whole(numbers, others, masked):
    z = jnp.dot(numbers["inputs"], numbers["kernel"], precision="highest")
    where = others["where"] if masked else None
    return total(whole(top_classes, z, others["labels"], where=where))


def assert_same(function, reference, numbers, others):
    def results(f, numbers, others):
        return jax.value_and_grad(f, has_aux=True)(numbers, others)

    given = fast_jit(functools.partial(results, function))(numbers, others)
    plain = jax.tree.map(np.asarray, (numbers, others))
    exact = fast_jit(functools.partial(results, reference))(*plain)
    chex.assert_trees_all_close(given, exact, rtol=1e-10, atol=1e-11, strict=True)


@pytest.mark.parametrize(
    ("chunk_size", "masked"), quick_rows([(5, True), (5, False), (1, True), (None, False)], 0, 1)
)
def test_outputs_of_any_shape(chunk_size, masked):
    with jax.enable_x64(True):
        numbers, others = arrays()
        of = functools.partial(of_chunks, masked=masked, chunk_size=chunk_size)
        assert_same(of, functools.partial(of_whole, masked=masked), numbers, others)


@pytest.mark.parametrize("way", quick(["explicit", "automatic", "mesh"]))
@pytest.mark.parametrize("masked", [True, False])
def test_outputs_on_a_mesh(way, masked):
    mesh = mesh_of(*BOTH, AxisType.Explicit if way == "explicit" else AxisType.Auto)
    with jax.enable_x64(True):
        given = [placed(mesh, SPECS, a) for a in arrays()]
        options = {"mesh": mesh, "example_spec": P("data")} if way == "mesh" else {}
        of = functools.partial(of_chunks, masked=masked, chunk_size=2, **options)
        with jax.set_mesh(mesh):
            assert_same(of, functools.partial(of_whole, masked=masked), *given)


def test_mapped_frozen_and_forward():
    with jax.enable_x64(True):
        numbers, others = arrays()
        z = numbers["inputs"] @ numbers["kernel"]

        def of_inputs(x, labels):
            function = jxent.chunked(top_classes, chunk_size=4, precision="highest")
            return function(jxent.LinearLogits(x, numbers["kernel"]), labels)

        exact = whole(top_classes, z, others["labels"])
        mapped = fast_jit(jax.vmap(of_inputs))(numbers["inputs"], others["labels"])
        chex.assert_trees_all_close(mapped, exact, rtol=1e-10, strict=True)
        dots = jnp.cos(WIDE(z[..., :6].size).reshape(numbers["inputs"].shape))
        labels = others["labels"]

        def of_values(f):
            return fast_jit(lambda x: jax.jvp(lambda x: f(x)["parts"], (x,), (dots,)))

        given = of_values(lambda x: of_inputs(x, labels))(numbers["inputs"])
        plain = of_values(lambda x: whole(top_classes, x @ numbers["kernel"], labels))
        chex.assert_trees_all_close(given, plain(numbers["inputs"]), rtol=1e-10, atol=1e-12)


def test_a_frozen_kernel_beside_one_output_of_several_numbers():
    with jax.enable_x64(True):
        numbers, others = arrays()

        def loss(logits, labels):
            return jxent.log_softmax(logits)[:, :7]

        def of_chunks(x):
            logits = jxent.LinearLogits(x, numbers["kernel"])
            return total(jxent.chunked(loss, chunk_size=5)(logits, others["labels"]))[0]

        def of_whole(x):
            return total(whole(loss, x @ numbers["kernel"], others["labels"]))[0]

        gradients = [fast_jit(jax.grad(f))(numbers["inputs"]) for f in (of_chunks, of_whole)]
        chex.assert_trees_all_close(*gradients, rtol=1e-10, atol=1e-12, strict=True)


def test_aux_of_any_shape():
    with jax.enable_x64(True):
        numbers, others = arrays()

        def loss(logits, labels):
            return jxent.softmax_entropy(logits), top_classes(logits, labels)

        mean = jxent.chunked(loss, reduction="mean", has_aux=True, chunk_size=5)
        logits = jxent.LinearLogits(numbers["inputs"], numbers["kernel"])
        value, aux = mean(logits, others["labels"], where=others["where"])
        z = numbers["inputs"] @ numbers["kernel"]
        entropy = jxent.weighted_mean(jxent.softmax_entropy(z), others["where"])
        np.testing.assert_allclose(value, entropy, rtol=1e-12)
        exact = whole(top_classes, z, others["labels"], where=others["where"])
        chex.assert_trees_all_close(aux, exact, rtol=1e-10, atol=1e-12, strict=True)


# A head that is no matrix.


def of_network(chunked, numbers, others, reduction="none", masked=False, **options):
    def loss(hidden, labels):
        logits = jnp.tanh(hidden @ numbers["first"]) @ numbers["second"]
        return jxent.softmax_cross_entropy_with_integer_labels(logits, labels)

    function = chunked(loss, reduction=reduction, **options)
    where = others["where"] if masked else None
    return total(function(numbers["inputs"], others["labels"], where=where))


def plain(loss, reduction):
    def function(x, labels, where=None):
        losses = whole(loss, x, labels, where=where)
        counts = losses.size if where is None else jnp.sum(where, dtype=losses.dtype)
        return {"none": losses, "sum": jnp.sum(losses), "mean": jnp.sum(losses) / counts}[reduction]

    return function


@pytest.mark.parametrize(
    ("reduction", "masked", "way"),
    quick_rows(
        [("none", True, ""), ("mean", False, ""), ("mean", True, "explicit"),
         ("sum", False, "automatic"), ("none", False, "explicit"), ("mean", True, "mesh")],
        0, 1, 2,
    ),
)  # fmt: skip
def test_a_head_that_is_no_matrix(reduction, masked, way):
    """The gradients of what is closed over, and of the hidden states."""
    with jax.enable_x64(True):
        numbers, others = arrays()
        del numbers["kernel"]
        options = {"reduction": reduction, "masked": masked}
        reference = functools.partial(of_network, plain, **options)
        if not way:
            given = functools.partial(of_network, jxent.chunked, chunk_size=5, **options)
            assert_same(given, reference, numbers, others)
            return
        mesh = mesh_of(*BOTH, AxisType.Explicit if way == "explicit" else AxisType.Auto)
        more = {"mesh": mesh, "example_spec": P("data")} if way == "mesh" else {}
        given = functools.partial(of_network, jxent.chunked, chunk_size=2, **options, **more)
        with jax.set_mesh(mesh):
            assert_same(given, reference, *(placed(mesh, SPECS, a) for a in (numbers, others)))


def test_its_dtype_and_memory():
    """The loss gets what it would get without chunks, and whole logits never exist."""
    seen = []

    def loss(hidden, labels):
        seen.append((hidden.shape, hidden.dtype))
        logits = hidden @ jnp.ones((8, 4096), jnp.bfloat16)
        return jxent.softmax_cross_entropy_with_integer_labels(logits, labels)

    mean = jxent.chunked(loss, reduction="mean", chunk_size=64)
    hidden, labels = jnp.ones((1024, 8), jnp.bfloat16), jnp.zeros(1024, int)
    step = jax.jit(jax.value_and_grad(mean)).lower(hidden, labels).compile()
    assert seen[0] == ((64, 8), jnp.bfloat16)
    assert step.memory_analysis().temp_size_in_bytes < 1024 * 4096
