"""The loss of a linear head over meshes: as on one device, and what the mesh has to carry."""

import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jxent
from support.cases import fast_jit
from support.heads import (
    BASE,
    CLASSES,
    EXAMPLES,
    IGNORED,
    NEUTRAL,
    OPTIONS,
    arrays_of_head,
    assert_close,
    dense_head,
    fused_head,
    value_and_gradients,
)
from support.meshes import BOTH, CLASSES_ONLY, EXAMPLES_ONLY, THREE, collectives, mesh_of
from support.tiers import quick, quick_rows

MORE_EXAMPLES, MORE_CLASSES = 24, 48


def padded(arrays):
    """As the error of an array that does not divide tells: examples ignored, classes masked."""
    a = dict(arrays)
    a["inputs"] = np.pad(a["inputs"], ((0, MORE_EXAMPLES - EXAMPLES), (0, 0)))
    a["kernel"] = np.pad(a["kernel"], ((0, 0), (0, MORE_CLASSES - CLASSES)), constant_values=7)
    a["labels"] = np.pad(a["labels"], (0, MORE_EXAMPLES - EXAMPLES), constant_values=IGNORED)
    a["weights"] = np.pad(a["weights"], (0, MORE_EXAMPLES - EXAMPLES), constant_values=1)
    for name in ("bias", "class_weights"):
        a[name] = np.pad(a[name], (0, MORE_CLASSES - CLASSES), constant_values=3)
    a["class_mask"] = np.pad(a["class_mask"], (0, MORE_CLASSES - CLASSES))
    return a


def unpadded(results):
    results = jax.tree.map(np.asarray, results)
    ends = {"inputs": EXAMPLES, "weights": EXAMPLES, "bias": CLASSES, "class_weights": CLASSES}
    cut = {name: x[: ends[name]] if name in ends else x for name, x in results.items()}
    value = cut["value"][:EXAMPLES] if cut["value"].ndim else cut["value"]
    return cut | {"kernel": cut["kernel"][:, :CLASSES], "value": value}


@functools.cache
def on_a_mesh(mesh, class_axis_name, reduction):
    cotangent = np.pad(cotangents(), (0, MORE_EXAMPLES - EXAMPLES)) if reduction == "none" else 3.5
    head = functools.partial(
        fused_head, mesh=mesh, class_axis_name=class_axis_name, reduction=reduction, chunk_size=2
    )
    return fast_jit(functools.partial(value_and_gradients, head, cotangent=cotangent))


@functools.cache
def on_one_device(reduction):
    cotangent = cotangents() if reduction == "none" else 3.5
    return fast_jit(
        functools.partial(value_and_gradients, dense_head, cotangent=cotangent, reduction=reduction)
    )


def cotangents():
    return np.random.default_rng(1).normal(size=EXAMPLES)


@pytest.mark.parametrize(
    ("shape", "class_axis_name", "reduction"),
    quick_rows(
        [
            (THREE, ("expert", "model"), "mean"),
            (EXAMPLES_ONLY, "model", "mean"),
            (CLASSES_ONLY, "model", "none"),
        ],
        0,
    ),
)
def test_every_option(shape, class_axis_name, reduction):
    """Each alone, and all together, with labels that are ignored."""
    mesh = mesh_of(*shape)
    with jax.enable_x64(True):
        for chosen in [*([option] for option in OPTIONS), OPTIONS]:
            arrays = arrays_of_head() | {k: v for k, v in NEUTRAL.items() if k not in chosen}
            results = unpadded(on_a_mesh(mesh, class_axis_name, reduction)(padded(arrays)))
            assert_close(results, on_one_device(reduction)(arrays), 1e-12)


@pytest.mark.full
def test_modes_of_differentiation():
    """Reverse mode over reverse mode, and `vmap` of forward mode."""
    mesh = mesh_of(*BOTH)
    with jax.enable_x64(True):
        a = jax.tree.map(jnp.asarray, padded(arrays_of_head()))
        x, w, y = (a[k] for k in BASE)
        v = (jnp.cos(x), jnp.sin(w))

        def modes(function):
            def f(x, w, y=y):
                options = {k: a[k] for k in OPTIONS}
                out = function(x, w, y, **options, reduction="none")
                return jnp.sum(jnp.cos(jnp.arange(out.size)) * out)

            def along(x, w):
                return sum(map(jnp.vdot, jax.grad(f, (0, 1))(x, w), v))

            def forward(x, w, y):
                return jax.jvp(lambda x, w: f(x, w, y), (x, w), v)

            twice = [jnp.stack([z, z[::-1]]) for z in (x, w, y)]
            return jax.grad(along, (0, 1))(x, w), jax.vmap(forward)(*twice)

        mapped = functools.partial(fused_head, mesh=mesh, class_axis_name="model", chunk_size=3)
        results = fast_jit(lambda: modes(mapped))()
        expected = fast_jit(lambda: modes(dense_head))()
        chex.assert_trees_all_close(results, expected, rtol=1e-11, atol=1e-13, strict=True)


def small(examples=(8,), features=4, classes=16, dtype=np.float32):
    rng = np.random.default_rng(3)
    return (
        rng.normal(size=(*examples, features)).astype(dtype),
        rng.normal(size=(features, classes)).astype(dtype),
        rng.integers(0, classes, examples).astype(np.int32),
    )


@pytest.mark.parametrize(
    ("axis_type", "reduction"),
    quick_rows(itertools.product([AxisType.Auto, AxisType.Explicit], ["sum", "none"]), 2),
)
def test_more_dimensions_of_examples(axis_type, reduction):
    """Batch and sequence, each over an axis of its own; eager, with every kind of sharding type."""
    x, w, y = small(examples=(2, 4))
    mesh = mesh_of(*THREE, axis_type)
    spec = P("data", "expert")
    sharding = functools.partial(jax.sharding.NamedSharding, mesh)
    with jax.set_mesh(mesh):
        placed = (
            jax.device_put(x, sharding(P("data", "expert", None))),
            jax.device_put(w, sharding(P("data", "model"))),  # as where parameters are spread too
            jax.device_put(y, sharding(P("data", "expert"))),
        )
        loss = jxent.linear_softmax_cross_entropy(
            *placed, reduction=reduction, mesh=mesh, class_axis_name="model", example_spec=spec
        )
    whole = functools.partial(jxent.linear_softmax_cross_entropy, reduction=reduction)
    expected = fast_jit(whole)(x, w, y)
    chex.assert_trees_all_close(loss, expected, rtol=2e-6, strict=True)


@pytest.mark.parametrize("offset", quick([0.0, 1e4], 1e4))
def test_a_certain_class_on_another_shard_than_the_next(offset):
    """The loss is that of the margin, 20, and no shard's own maximum disturbs it."""
    mesh = mesh_of(*CLASSES_ONLY)
    logits = np.full((4, 16), -np.inf)
    logits[:, [3, 14]] = [[0, 20], [20, 0], [0, -20], [0, 0]]
    logits[3, :] = 0
    kernel = np.float32(np.where(np.isinf(logits), -1e30, logits))
    x, y = np.eye(4, dtype=np.float32), np.array([14, 3, 14, 5])
    bias = np.full(16, offset, np.float32)

    def loss(bias, **where):
        return jxent.linear_softmax_cross_entropy(x, kernel, y, bias, reduction="none", **where)

    mapped = functools.partial(loss, mesh=mesh, class_axis_name="model")
    margin = np.log1p(np.exp(-20.0))
    exact = [margin, margin, 20 + margin, np.log(16)]
    losses, to_bias = fast_jit(lambda bias: (mapped(bias), jax.jacrev(mapped)(bias)))(bias)
    expected = fast_jit(jax.jacrev(loss))(bias)
    np.testing.assert_allclose(losses, exact, rtol=4e-6 if offset == 0 else 1e-6)
    chex.assert_trees_all_close(to_bias, expected, rtol=2e-6, strict=True)
    np.testing.assert_allclose(to_bias[0, 14], -np.exp(-20), rtol=1e-5)


def test_labels_are_judged_among_all_classes():
    """Those of another shard are in range, the number of all classes is not."""
    x, w, _ = small()
    mesh = mesh_of(*BOTH)
    y = np.array([0, 7, 8, 15, 16, -1, IGNORED, 9])
    mask = np.arange(16) != 9

    def total(x, w):
        losses = jxent.linear_softmax_cross_entropy(
            x,
            w,
            y,
            mesh=mesh,
            class_axis_name="model",
            ignore_index=IGNORED,
            class_mask=mask,
            reduction="none",
        )
        return jnp.sum(losses), losses

    gradient = fast_jit(jax.grad(total, (0, 1), has_aux=True))
    (to_x, _), losses = jax.tree.map(np.asarray, gradient(x, w))
    expected = [False, False, False, False, True, True, False, False]
    np.testing.assert_array_equal(np.isnan(losses), expected)
    assert np.isposinf(losses[7])
    assert losses[6] == 0
    np.testing.assert_array_equal(np.isnan(to_x).all(-1)[:7], expected[:7])
    assert np.all(to_x[6] == 0)


def test_the_gradient_of_a_weight_of_zero():
    """It is the loss, whichever shard has the label; a label that names no class has none."""
    x, w, _ = small()
    y = np.array([0, 7, 8, 15, 16, -1, 3, 9])

    def total(weights, **where):
        return jxent.linear_softmax_cross_entropy(
            x, w, y, weights=weights, reduction="sum", **where
        )

    mapped = functools.partial(total, mesh=mesh_of(*BOTH), class_axis_name="model")
    none = np.zeros(8, np.float32)
    to_weights, expected = (fast_jit(jax.grad(f))(none) for f in (mapped, total))
    chex.assert_trees_all_close(to_weights, expected, rtol=2e-6, strict=True)
    assert np.all(np.asarray(to_weights)[[0, 1, 2, 3, 6, 7]] > 0.1)


@pytest.mark.parametrize("reduction", quick(["mean", "none"]))
def test_each_gradient_is_reduced_once_after_the_chunks(reduction):
    examples, features, classes, chunk = 512, 16, 1024, 8
    mesh = mesh_of(*BOTH)

    def loss(x, w, y):
        losses = jxent.linear_softmax_cross_entropy(
            x, w, y, mesh=mesh, class_axis_name="model", chunk_size=chunk, reduction=reduction
        )
        return jnp.sum(losses)

    sharding = functools.partial(jax.sharding.NamedSharding, mesh)
    shardings = sharding(P("data")), sharding(P(None, "model")), sharding(P("data"))
    shapes = ((examples, features), "f"), ((features, classes), "f"), ((examples,), "i")
    arguments = [
        jax.ShapeDtypeStruct(*shape, sharding=there)
        for shape, there in zip(shapes, shardings, strict=True)
    ]
    program = fast_jit(jax.grad(loss, (0, 1)), out_shardings=shardings[:2])
    text = program.lower(*arguments).compile().as_text()
    moved = collectives(text)
    assert {kind for kind, _ in moved} == {"all-reduce"}
    sizes = [size for _, size in moved]
    of_gradients = {features * classes // 2, examples // 4 * features}
    assert sorted(size for size in sizes if size > examples) == sorted(of_gradients)
    # The rest: a few numbers for each example, in the loop over chunks or after it.
    bodies = re.findall(r"body=%?([\w.-]+)", text)
    in_loops = [body for body in re.split(r"\n(?=\S)", text) if body.split(" ")[0][1:] in bodies]
    assert in_loops
    assert {size for body in in_loops for _, size in collectives(body)} == {chunk}


MESH = {"mesh": BOTH, "class_axis_name": "model"}


@pytest.mark.parametrize(
    ("examples", "classes", "options", "message"),
    [
        (8, 15, {},
         "the classes of kernel, 15, must be a multiple of 2, the size of the mesh axes"
         " ('model',): pad kernel (bias, class_weights) by 1, to 16, and mask the padding with"
         " class_mask=jnp.arange(16) < 15"),
        (6, 16, {},
         "dimension 0 of the examples, 6, must be a multiple of 4, the size of the mesh axes"
         " ('data',): pad inputs and labels by 2, with labels that are ignore_index"),
        (8, 16, {"class_axis_name": ("model", "tensor")},
         "class_axis_name must name axes of the mesh ('data', 'model'), got tensor"),
        (8, 16, {"class_axis_name": ("model", "model")},
         "class_axis_name must be the name of a mesh axis or a tuple of different ones,"
         " got ('model', 'model')"),
        (8, 16, {"example_spec": P("data", "model")},
         "example_spec must have at most one entry per dimension of the examples (8,),"
         f" got {P('data', 'model')}"),
        (8, 16, {"example_spec": P("model")},
         "example_spec must not name the mesh axes of the classes, got ['model'] in both"),
        (8, 16, {"mesh": None},
         "class_axis_name must name mesh axes of an enclosing jax.shard_map, got 'model'"),
        (8, 16, {"mesh": None, "class_axis_name": None, "example_spec": P("data")},
         f"example_spec must come with a mesh, got {P('data')} alone"),
    ],
)  # fmt: skip
def test_mistakes(examples, classes, options, message):
    options = MESH | options
    options["mesh"] = options["mesh"] and mesh_of(*options["mesh"])
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        jxent.linear_softmax_cross_entropy(*small((examples,), classes=classes), **options)
