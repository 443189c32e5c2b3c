"""Heads of sharded arrays, without an argument for the mesh: XLA partitions what they compute."""

import contextlib
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from support import heads
from support.cases import fast_jit
from support.meshes import BOTH, CLASSES_ONLY, EXAMPLES_ONLY, THREE, carried, mesh_of, placed
from support.products import products
from support.tiers import quick_rows

linear_loss = jxent.linear_softmax_cross_entropy
integer_loss = jxent.softmax_cross_entropy_with_integer_labels


def arrays():
    """Of two heads, with a loss that closes over a temperature and class weights."""
    rng = np.random.default_rng(0)
    numbers = {
        "inputs": (4, 6, 8), "kernel": (8, 32), "bias": (32,), "temperature": (),
        "class_weights": (32,), "other_inputs": (4, 6, 4), "other_kernel": (4, 32),
    }  # fmt: skip
    found = {name: 1 + rng.random(shape) for name, shape in numbers.items()}
    found = {name: x if x.ndim < 2 else rng.normal(size=x.shape) for name, x in found.items()}
    others = {"labels": rng.integers(0, 32, (4, 6)), "where": rng.random((4, 6)) < 0.6}
    return found, others


def objective(chunked, numbers, others):
    """The value, and what is made beside it, where `chunked` is `jxent.chunked` or its like."""
    a = numbers

    def loss(logits, labels, teacher):
        logits = logits / a["temperature"]
        losses = integer_loss(logits, labels, class_weights=a["class_weights"])
        return losses + jxent.softmax_kl_divergence(logits, teacher), jxent.softmax_entropy(logits)

    student = jxent.LinearLogits(a["inputs"], a["kernel"], a["bias"])
    teacher = jxent.LinearLogits(a["other_inputs"], a["other_kernel"])
    function = chunked(loss, has_aux=True)
    losses, aux = function(student, others["labels"], teacher, where=others["where"])
    return jnp.sum(jnp.cos(losses)), aux


LAYOUTS = {
    "examples and classes": {
        "inputs": P("data"), "labels": P("data"), "where": P("data"), "kernel": P(None, "model"),
        "bias": P("model"), "class_weights": P("model"), "other_inputs": P("data"),
        "other_kernel": P(None, "model"),
    },
    "batch and sequence": {
        "inputs": P("data", "expert"), "labels": P("data"), "where": P("data", "expert"),
        "kernel": P(None, "model"), "other_inputs": P("data", "expert"),
    },
    "parameters over the axes of the examples": {
        "inputs": P(("data", "expert")), "labels": P(("data", "expert")),
        "where": P(("data", "expert")), "kernel": P("data", "model"), "bias": P("data"),
        "other_inputs": P(("data", "expert")), "other_kernel": P(None, "expert"),
    },
    "features": {"inputs": P(None, None, "model"), "kernel": P("model")},
    "a teacher's classes": {"other_kernel": P(None, ("data", "model"))},
}  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "axis_type", "reduction", "in_mesh"),
    quick_rows(
        [
            ("examples and classes", AxisType.Explicit, "mean", False),
            ("batch and sequence", AxisType.Explicit, "none", True),
            ("examples and classes", AxisType.Auto, "none", False),
            ("parameters over the axes of the examples", AxisType.Auto, "mean", True),
            ("parameters over the axes of the examples", AxisType.Explicit, "sum", False),
            ("features", AxisType.Explicit, "mean", True),
            ("features", AxisType.Auto, "none", True),
            ("a teacher's classes", AxisType.Explicit, "none", False),
            ("batch and sequence", AxisType.Auto, "sum", False),
        ],
        *range(4),
    ),
)
def test_any_layout(layout, axis_type, reduction, in_mesh):
    """Values, gradients and their types, with arrays that the loss closes over."""
    mesh, specs = mesh_of(*THREE, axis_type), LAYOUTS[layout]
    with jax.enable_x64(True):
        numbers, others = arrays()
        plain = functools.partial(heads.plain_chunked, reduction=reduction)
        options = {"reduction": reduction, "chunk_size": 2, "precision": "highest"}
        chunked = functools.partial(jxent.chunked, **options)
        plain, chunked = (functools.partial(objective, make) for make in (plain, chunked))
        expected = fast_jit(jax.value_and_grad(plain, has_aux=True))(numbers, others)
        with jax.set_mesh(mesh) if in_mesh else contextlib.nullcontext():
            spread = placed(mesh, specs, numbers)
            gradient = fast_jit(jax.value_and_grad(chunked, has_aux=True))
            found = gradient(spread, placed(mesh, specs, others))
    chex.assert_trees_all_close(found, expected, rtol=1e-11, atol=1e-12, strict=True)
    if axis_type == AxisType.Explicit:
        types, own = (jax.tree.map(jax.typeof, x) for x in (found[1], spread))
        assert types == own


@pytest.mark.parametrize("in_mesh", [True, False])
def test_eagerly(in_mesh):
    mesh = mesh_of(*BOTH, AxisType.Explicit)
    arguments = np.ones((8, 2), "f"), np.ones((2, 4), "f"), np.zeros(8, int)
    specs = P("data"), P(None, "model"), P("data")
    with jax.set_mesh(mesh) if in_mesh else contextlib.nullcontext():
        given = jax.device_put(arguments, tuple(NamedSharding(mesh, spec) for spec in specs))
        losses = linear_loss(*given, chunk_size=1, reduction="none")
        assert jax.typeof(losses).sharding.spec == P("data")
    np.testing.assert_allclose(losses, np.log(4), rtol=1e-6)


def test_shardings_that_do_not_suit_each_other():
    mesh = mesh_of(*BOTH, AxisType.Explicit)
    with jax.set_mesh(mesh):
        x, y = jax.device_put((np.ones((8, 2), "f"), np.zeros(8, int)), (P("data"), P("model")))
        with pytest.raises(ValueError, match="labels must be sharded in a way that suits inputs"):
            linear_loss(x, np.ones((2, 3), "f"), y)


def program(mesh, specs, reduction, ignored, way):
    """Value and gradients as compiled, in chunks of so many examples for each device."""
    explicit = AxisType.Explicit in mesh.axis_types
    spread = {"mesh": mesh, "class_axis_name": "model"} if way == "mesh" else {}
    # Automatic axes do not say how many of them share an example.
    groups = mesh.size if way == "none" and not explicit else mesh.shape["data"]
    options = {"reduction": reduction, "chunk_size": EXAMPLES // groups // CHUNKS, **spread}
    options |= {"ignore_index": heads.IGNORED} if ignored else {}

    def loss(x, w, y):
        return jnp.sum(linear_loss(x, w, y, **options))

    shapes = (EXAMPLES, FEATURES), (FEATURES, CLASSES), (EXAMPLES,)
    shardings = [NamedSharding(mesh, spec) for spec in specs]
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=there)
        for shape, dtype, there in zip(shapes, "ffi", shardings, strict=True)
    ]
    out_shardings = None, tuple(shardings[:2])
    gradients = fast_jit(jax.value_and_grad(loss, (0, 1)), out_shardings=out_shardings)
    return gradients.lower(*arguments).compile().as_text()


EXAMPLES, FEATURES, CLASSES, CHUNKS = 512, 32, 1024, 4


@pytest.mark.parametrize(
    ("shape", "specs", "reduction", "ignored"),
    quick_rows(
        [
            (BOTH, (P("data"), P(None, "model"), P("data")), "mean", False),
            (EXAMPLES_ONLY, (P("data"), P("data"), P("data")), "none", True),
            (EXAMPLES_ONLY, (P("data"), P(), P("data")), "mean", False),
            (EXAMPLES_ONLY, (P("data"), P(None, "data"), P("data")), "sum", True),
            (CLASSES_ONLY, (P(), P(None, "model"), P()), "sum", False),
            (BOTH, (P("data"), P(None, "model"), P("data")), "none", True),
        ],
        0, 1,
    ),
)  # fmt: skip
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_no_more_than_with_a_mesh(shape, specs, reduction, ignored, axis_type):
    """Each device computes its part of the products, and they exchange no more numbers."""
    mesh = mesh_of(*shape, axis_type)
    texts = [program(mesh, specs, reduction, ignored, way) for way in ("none", "mesh")]
    number = 4 if reduction == "none" else 3
    of_device = [products(text, EXAMPLES // 8, FEATURES, CLASSES) for text in texts]
    assert of_device == pytest.approx([number, number], rel=0.01)
    # The gradient of inputs, which is summed over the shards of the classes in each chunk, has as
    # many numbers in all. The order of examples that are ignored costs some numbers for each chunk.
    exchanged = [carried(text) for text in texts]
    assert 0 < exchanged[0] <= exchanged[1] + 2 * CHUNKS


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("spec", [P(), P(None, "model")])
def test_arguments_without_a_mesh(chunked, spec):
    """Class weights and a temperature that lie on no mesh, beside examples that do."""
    mesh = mesh_of(*BOTH, AxisType.Explicit)
    numbers, others = arrays()
    numbers = {n: numbers[n] for n in ("inputs", "kernel", "class_weights", "temperature")}
    key = jax.random.key(0)

    def loss(numbers, labels):
        a = numbers
        if not chunked:
            return linear_loss(
                a["inputs"], a["kernel"], labels, class_weights=a["class_weights"], chunk_size=1
            )

        def noisy(logits, labels):
            logits = logits / a["temperature"] + jax.random.uniform(key, logits.shape[-1:])[None]
            return integer_loss(logits, labels, class_weights=a["class_weights"])

        function = jxent.chunked(noisy, reduction="sum", chunk_size=1)
        return function(jxent.LinearLogits(a["inputs"], a["kernel"]), labels)

    with jax.enable_x64(True):
        gradients = jax.value_and_grad(loss)
        exact = fast_jit(gradients)(numbers, others["labels"])
        places = {"inputs": P("data"), "kernel": spec}
        on_mesh = numbers | placed(mesh, places, {name: numbers[name] for name in places})
        labels = jax.device_put(others["labels"], NamedSharding(mesh, P("data")))
        results = fast_jit(gradients)(on_mesh, labels)
        with jax.set_mesh(mesh):
            inside = fast_jit(gradients)(on_mesh, labels)
        chex.assert_trees_all_close(results, exact, rtol=1e-11, atol=1e-12)
        chex.assert_trees_all_close(inside, exact, rtol=1e-11, atol=1e-12)
