"""Losses of linear heads over meshes: as on one device, and what the mesh has to carry."""

import functools
import itertools
import re

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
from support.meshes import BOTH, CLASSES_ONLY, EXAMPLES_ONLY, THREE, collectives, mesh_of
from support.tiers import quick, quick_rows

linear_loss = jxent.linear_softmax_cross_entropy
integer_loss = jxent.softmax_cross_entropy_with_integer_labels

# The loss of a linear head, with its options.

SIZES = 24, 48
"""The examples and the classes, which every mesh divides."""


@functools.cache
def program(head, **options):
    function = functools.partial(head, **options)
    return fast_jit(functools.partial(heads.value_and_gradients, function))


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
    spread = {"mesh": mesh_of(*shape), "class_axis_name": class_axis_name, "chunk_size": 2}
    fused = program(heads.fused_head, reduction=reduction, **spread)
    with jax.enable_x64(True):
        for chosen in [*([option] for option in heads.OPTIONS), heads.OPTIONS]:
            arrays = heads.with_options(chosen, *SIZES)
            plain = program(heads.plain_head, reduction=reduction)(arrays)
            heads.assert_close(fused(arrays), plain, 1e-12)


@pytest.mark.full
def test_modes_of_differentiation():
    """Reverse mode over reverse mode, and `vmap` of forward mode."""
    mesh = mesh_of(*BOTH)
    with jax.enable_x64(True):
        a = jax.tree.map(jnp.asarray, heads.arrays_of_head(*SIZES))
        x, w, y = (a[k] for k in heads.BASE)
        v = (jnp.cos(x), jnp.sin(w))

        def modes(function):
            def f(x, w, y=y):
                given = a | {"inputs": x, "kernel": w, "labels": y}
                out = function(given, reduction="none")
                return jnp.sum(jnp.cos(jnp.arange(out.size)) * out)

            def along(x, w):
                return sum(map(jnp.vdot, jax.grad(f, (0, 1))(x, w), v))

            def forward(x, w, y):
                return jax.jvp(lambda x, w: f(x, w, y), (x, w), v)

            twice = [jnp.stack([z, z[::-1]]) for z in (x, w, y)]
            return jax.grad(along, (0, 1))(x, w), jax.vmap(forward)(*twice)

        spread = {"mesh": mesh, "class_axis_name": "model", "chunk_size": 3}
        mapped = functools.partial(heads.fused_head, **spread)
        results = fast_jit(lambda: modes(mapped))()
        expected = fast_jit(lambda: modes(heads.plain_head))()
        chex.assert_trees_all_close(results, expected, rtol=1e-11, atol=1e-13, strict=True)


def small(examples=(8,), features=4, classes=16, dtype=np.float32):
    rng = np.random.default_rng(3)
    return (
        rng.normal(size=(*examples, features)).astype(dtype),
        rng.normal(size=(features, classes)).astype(dtype),
        rng.integers(0, classes, examples).astype(np.int32),
    )


def placed(mesh, arrays, specs):
    return [
        jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in zip(arrays, specs, strict=True)
    ]


@pytest.mark.parametrize(
    ("axis_type", "reduction"),
    quick_rows(itertools.product([AxisType.Auto, AxisType.Explicit], ["sum", "none"]), 2),
)
def test_more_dimensions_of_examples(axis_type, reduction):
    """Batch and sequence, each over an axis of its own; eager, with every kind of sharding type."""
    x, w, y = small(examples=(2, 4))
    mesh = mesh_of(*THREE, axis_type)
    spec = P("data", "expert")
    # A kernel as where parameters are spread, too.
    specs = P("data", "expert", None), P("data", "model"), spec
    with jax.set_mesh(mesh):
        loss = linear_loss(
            *placed(mesh, (x, w, y), specs), reduction=reduction,
            mesh=mesh, class_axis_name="model", example_spec=spec,
        )  # fmt: skip
    expected = fast_jit(functools.partial(linear_loss, reduction=reduction))(x, w, y)
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
        return linear_loss(x, kernel, y, bias, reduction="none", **where)

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
    y = np.array([0, 7, 8, 15, 16, -1, heads.IGNORED, 9])

    def total(x, w):
        losses = linear_loss(
            x, w, y, mesh=mesh_of(*BOTH), class_axis_name="model",
            ignore_index=heads.IGNORED, class_mask=np.arange(16) != 9, reduction="none",
        )  # fmt: skip
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
        return linear_loss(x, w, y, weights=weights, reduction="sum", **where)

    mapped = functools.partial(total, mesh=mesh_of(*BOTH), class_axis_name="model")
    none = np.zeros(8, np.float32)
    to_weights, expected = (fast_jit(jax.grad(f))(none) for f in (mapped, total))
    chex.assert_trees_all_close(to_weights, expected, rtol=2e-6, strict=True)
    assert np.all(np.asarray(to_weights)[[0, 1, 2, 3, 6, 7]] > 0.1)


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
         "class_axis_name must name mesh axes of an enclosing jax.shard_map, got 'model': for"
         " global arrays the losses need none, and the head takes mesh="),
        (8, 16, {"mesh": None, "class_axis_name": None, "example_spec": P("data")},
         f"example_spec must come with a mesh, got {P('data')} alone"),
    ],
)  # fmt: skip
def test_mistakes(examples, classes, options, message):
    options = MESH | options
    options["mesh"] = options["mesh"] and mesh_of(*options["mesh"])
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        linear_loss(*small((examples,), classes=classes), **options)


# Any loss, over one head or two.


def arrays():
    return heads.two_heads(24, 16) | {"where": np.arange(24) % 5 < 2}


@pytest.mark.parametrize(
    ("shape", "class_axis_name", "reduction", "is_captured"),
    quick_rows([(BOTH, "model", "mean", True), (THREE, ("expert", "model"), "none", False)], 0),
)
def test_global_arrays(shape, class_axis_name, reduction, is_captured):
    """An objective of two heads, and of what it closes over, with what it is made of beside it."""
    spread = {"mesh": mesh_of(*shape), "class_axis_name": class_axis_name}
    # A masked class has the logit -inf, whose quotient has no derivative for the temperature.
    mask = None if is_captured else np.arange(16) < 13

    def objective(a, mesh=None, class_axis_name=None):
        def loss(logits, labels, advantages, teacher):
            z = logits / a["temperature"] if is_captured else logits
            nll = integer_loss(z, labels, class_axis_name=class_axis_name)
            divergence = jxent.softmax_kl_divergence(z, teacher, class_axis_name=class_axis_name)
            return advantages * nll + divergence, (nll, labels % 2 == 0)

        student = jxent.LinearLogits(
            a["inputs"], a["kernel"], a["bias"], scale=a["scale"], class_mask=mask
        )
        teacher = jxent.LinearLogits(a["other_inputs"], a["other_kernel"], class_mask=mask)
        chunked = jxent.chunked(
            loss, reduction=reduction, has_aux=True, chunk_size=2, precision="highest",
            mesh=mesh, class_axis_name=class_axis_name,
        )  # fmt: skip
        labels = jnp.minimum(a["labels"], 12)
        losses, aux = chunked(student, labels, a["advantages"], teacher, where=a["where"])
        return losses, jax.lax.stop_gradient(aux)

    with jax.enable_x64(True):
        results, expected = program(objective, **spread)(arrays()), program(objective)(arrays())
    assert (np.abs(expected["temperature"]) > 1e-3) == is_captured
    chex.assert_trees_all_close(results, expected, rtol=1e-11, atol=1e-12, strict=True)


@pytest.mark.full
def test_inside_shard_map():
    """Class weights of the shard's own, which the loss closes over, are differentiated."""
    mesh = mesh_of(*BOTH)

    def loss_of(a, class_axis_name=None):
        def loss(logits, labels):
            options = {"class_weights": jnp.exp(a["bias"]), "class_axis_name": class_axis_name}
            return integer_loss(logits / a["temperature"], labels, **options)

        options = {"chunk_size": 2, "precision": "highest", "class_axis_name": class_axis_name}
        logits = jxent.LinearLogits(a["inputs"], a["kernel"])
        losses = jxent.chunked(loss, **options)(logits, a["labels"], where=a["where"])
        return jnp.sum(losses)

    specs = dict.fromkeys(("inputs", "labels", "where"), P("data"))
    specs |= {"kernel": P(None, "model"), "bias": P("model"), "temperature": P()}

    def mapped(a):
        def local(a):
            return jax.lax.psum(loss_of(a, "model"), "data")

        return jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=P())(a)

    with jax.enable_x64(True):
        a = {name: arrays()[name] for name in specs}
        results, expected = program(mapped)(a), program(loss_of)(a)
    chex.assert_trees_all_close(results, expected, rtol=1e-11, atol=1e-12, strict=True)


def test_a_loss_must_know_of_the_mesh():
    message = (
        "what loss returns must be the same for every shard of the classes,"
        " but varies over the mesh axes model"
    )
    spread = {"mesh": mesh_of(*BOTH), "class_axis_name": "model"}
    function = jxent.chunked(jxent.softmax_entropy, **spread)
    with pytest.raises(ValueError, match=f"^{message}"):
        function(jxent.LinearLogits(np.ones((8, 2), "f"), np.ones((2, 4), "f")))


class Settings:
    """What a loss reads whenever it is traced."""

    factor = 1.0


@pytest.mark.parametrize("shape", [None, EXAMPLES_ONLY])
def test_what_a_loss_closes_over_may_change_between_calls(shape):
    """A number, an array and an object, in values and gradients: each call is of what they are."""
    number, array, settings = 2.0, jnp.float32(3.0), Settings()
    x, w = np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2), np.eye(2, 4, dtype=np.float32)

    def loss(logits):
        return number * array * settings.factor * jxent.logsumexp(logits)

    function = jxent.chunked(loss, reduction="sum", mesh=shape and mesh_of(*shape))

    def value_and_gradient():
        return jax.value_and_grad(lambda x: function(jxent.LinearLogits(x, w)))(x)

    before = value_and_gradient()
    number, array, settings.factor = 10.0, jnp.float32(-3.0), 0.125
    exact = jax.tree.map(lambda once: 5 * -1 * 0.125 * once, before)
    chex.assert_trees_all_close(value_and_gradient(), exact, rtol=1e-6, strict=True)


def test_what_has_no_weight_or_does_not_count_beside_a_closure():
    """NaN of one shard reaches no gradient of what is closed over, and which all shards share."""
    x, w = np.linspace(-1, 1, 32, dtype=np.float32).reshape(16, 2), np.eye(2, 4, dtype=np.float32)
    labels, weights = np.arange(16) % 4, np.ones(16, np.float32)
    # Nothing counts on the last two of four shards; elsewhere two examples have no weight.
    counted = np.arange(16) < 8
    x[~counted], labels[1], weights[[1, 5]] = np.nan, -100, 0

    def total(temperature, x, w, weights, mesh=None):
        def loss(logits, labels):
            return integer_loss(logits / temperature, labels)

        function = jxent.chunked(loss, reduction="mean", chunk_size=2, mesh=mesh)
        return function(jxent.LinearLogits(x, w), labels, where=counted, weights=weights)

    given = np.float32(1.5), x, w, weights
    of_mesh = functools.partial(total, mesh=mesh_of(*BOTH))
    results, expected = (fast_jit(jax.grad(f, (0, 1, 2, 3)))(*given) for f in (of_mesh, total))
    chex.assert_tree_all_finite(expected)
    chex.assert_trees_all_close(results, expected, rtol=1e-5, atol=1e-7, strict=True)


def test_explicit_axes():
    """Eager, with inputs and kernel that are spread already."""
    mesh = mesh_of(*BOTH, AxisType.Explicit)
    x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2)
    w = np.linspace(-1, 2, 8, dtype=np.float32).reshape(2, 4)
    entropy = functools.partial(jxent.softmax_entropy, class_axis_name="model")
    function = jxent.chunked(entropy, mesh=mesh, class_axis_name="model", chunk_size=2)
    with jax.set_mesh(mesh):
        specs = P("data", None), P(None, "model"), P("data")
        x_there, w_there, where = placed(mesh, (x, w, x[:, 0] < 0.5), specs)
        entropies = function(jxent.LinearLogits(x_there, w_there), where=where)
    expected = np.where(x[:, 0] < 0.5, fast_jit(jxent.softmax_entropy)(x @ w), 0)
    np.testing.assert_allclose(entropies, expected, rtol=2e-6)


@pytest.mark.parametrize("what", quick(["policy", "mean", "none"], "policy", "mean"))
def test_each_gradient_is_reduced_once_after_the_chunks(what):
    """No logits are carried: in the loop over chunks, a few numbers for each example."""
    examples, features, classes, chunk = 512, 16, 1024, 8
    mesh, axis = mesh_of(*BOTH), {"class_axis_name": "model"}
    spread = {"mesh": mesh, "chunk_size": chunk, **axis}

    def objective(logits, labels, advantages):
        nll = integer_loss(logits, labels, **axis)
        return advantages * nll - 0.01 * jxent.softmax_entropy(logits, **axis)

    def loss(x, w, y, a):
        if what == "policy":
            policy = jxent.chunked(objective, reduction="mean", **spread)
            return policy(jxent.LinearLogits(x, w), y, a)
        return jnp.sum(linear_loss(x, w, y, reduction=what, **spread))

    shapes = (examples, features), (features, classes), (examples,), (examples,)
    specs = P("data"), P(None, "model"), P("data"), P("data")
    shardings = [NamedSharding(mesh, spec) for spec in specs]
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=there)
        for shape, dtype, there in zip(shapes, "ffif", shardings, strict=True)
    ]
    program = fast_jit(jax.grad(loss, (0, 1)), out_shardings=tuple(shardings[:2]))
    moved = collectives(text := program.lower(*arguments).compile().as_text())
    assert {kind for kind, _ in moved} == {"all-reduce"}
    of_gradients = [examples // 4 * features, features * classes // 2]
    assert sorted(size for _, size in moved if size > examples) == of_gradients
    bodies = re.findall(r"body=%?([\w.-]+)", text)
    in_loops = [body for body in re.split(r"\n(?=\S)", text) if body.split(" ")[0][1:] in bodies]
    assert {size for body in in_loops for _, size in collectives(body)} == {chunk}


@pytest.mark.parametrize("names", [{"data"}, {"data", "model"}])
def test_a_shard_map_over_some_axes(names):
    """With examples that are ignored, so that chunks are skipped."""
    mesh = mesh_of(*BOTH)
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(8, 4)), rng.normal(size=(4, 16))
    labels = np.array([3, -100, -100, -100, 0, 15, -100, 7])

    def loss(x, w, labels):
        return linear_loss(x, w, labels, ignore_index=-100, reduction="sum", chunk_size=1)

    def local(*arrays):
        return jax.lax.psum(loss(*arrays), "data")

    specs = {"in_specs": (P("data"), P(), P("data")), "out_specs": P()}
    mapped = jax.shard_map(local, mesh=mesh, axis_names=names, **specs)
    with jax.enable_x64(True), jax.set_mesh(mesh):
        results = jax.jit(jax.value_and_grad(mapped, (0, 1)))(x, w, labels)
    with jax.enable_x64(True):
        exact = jax.value_and_grad(loss, (0, 1))(x, w, labels)
    chex.assert_trees_all_close(results, exact, rtol=1e-12, atol=1e-14, strict=True)
