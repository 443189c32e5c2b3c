"""Losses of linear logits over meshes: as on one device, and what the mesh has to carry."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_chunked import total

import jxent
from support.cases import fast_jit
from support.meshes import BOTH, EXAMPLES_ONLY, THREE, collectives, mesh_of
from support.tiers import quick_rows

EXAMPLES, FEATURES, CLASSES = 24, 5, 16


def numbers():
    rng = np.random.default_rng(0)
    return {
        "inputs": rng.normal(size=(EXAMPLES, FEATURES)),
        "kernel": rng.normal(size=(FEATURES, CLASSES)),
        "other_inputs": rng.normal(size=(EXAMPLES, FEATURES + 1)),
        "other_kernel": rng.normal(size=(FEATURES + 1, CLASSES)),
        "bias": rng.normal(size=CLASSES),
        "scale": np.float64(0.75),
        "advantages": rng.normal(size=EXAMPLES),
        "temperature": np.float64(1.5),
        "labels": rng.integers(0, CLASSES, EXAMPLES),
        "class_mask": np.arange(CLASSES) < 13,
        "where": np.arange(EXAMPLES) % 5 < 2,
    }


def everything(a, reduction, mesh=None, class_axis_name=None, captured=None):
    """An objective of two heads, with what it is made of beside it."""

    def loss(logits, labels, advantages, teacher):
        spread = {"class_axis_name": class_axis_name}
        z = logits if captured is None else logits / captured
        nll = jxent.softmax_cross_entropy_with_integer_labels(z, labels, **spread)
        divergence = jxent.softmax_kl_divergence(z, teacher, **spread)
        return advantages * nll + divergence, (nll, labels % 2 == 0)

    # A masked class has the logit -inf, whose quotient has no derivative for the temperature.
    mask = a["class_mask"] if captured is None else None
    return jxent.chunked(
        loss,
        reduction=reduction,
        has_aux=True,
        chunk_size=2,
        precision="highest",
        mesh=mesh,
        class_axis_name=class_axis_name,
    )(
        jxent.LinearLogits(a["inputs"], a["kernel"], a["bias"], scale=a["scale"], class_mask=mask),
        jnp.minimum(a["labels"], 12),
        a["advantages"],
        jxent.LinearLogits(a["other_inputs"], a["other_kernel"], class_mask=mask),
        where=a["where"],
    )


def value_and_gradients(function, a):
    floats = {k: x for k, x in a.items() if jnp.issubdtype(x.dtype, jnp.floating)}

    def of_floats(floats):
        out = function(a | floats)
        return total(out[0] if isinstance(out, tuple) else out), out

    return jax.grad(of_floats, has_aux=True)(floats)


@pytest.mark.parametrize(
    ("shape", "class_axis_name", "reduction", "is_captured"),
    quick_rows(
        [
            (BOTH, "model", "mean", True),
            (THREE, ("expert", "model"), "none", False),
        ],
        0,
    ),
)
def test_global_arrays(shape, class_axis_name, reduction, is_captured):
    """What the loss closes over is differentiated there, too."""
    mesh = mesh_of(*shape)

    def one_way(a, **spread):
        return value_and_gradients(
            lambda a: everything(
                a, reduction, captured=a["temperature"] if is_captured else None, **spread
            ),
            a,
        )

    with jax.enable_x64(True):
        a = numbers()
        spread = {"mesh": mesh, "class_axis_name": class_axis_name}
        results = fast_jit(functools.partial(one_way, **spread))(a)
        expected = fast_jit(one_way)(a)
    assert (np.abs(expected[0]["temperature"]) > 1e-3) == is_captured
    chex.assert_trees_all_close(results, expected, rtol=1e-11, atol=1e-12, strict=True)


@pytest.mark.full
def test_inside_shard_map():
    """Class weights of the shard's own, which the loss closes over, are differentiated."""
    mesh = mesh_of(*BOTH)

    def loss_of(a, class_axis_name=None):
        def loss(logits, labels):
            return jxent.softmax_cross_entropy_with_integer_labels(
                logits / a["temperature"],
                labels,
                class_weights=jnp.exp(a["bias"]),
                class_axis_name=class_axis_name,
            )

        losses = jxent.chunked(
            loss, chunk_size=2, precision="highest", class_axis_name=class_axis_name
        )(jxent.LinearLogits(a["inputs"], a["kernel"]), a["labels"], where=a["where"])
        return jnp.sum(losses)

    specs = dict.fromkeys(("inputs", "labels", "where"), P("data"))
    specs |= {"kernel": P(None, "model"), "bias": P("model"), "temperature": P()}

    def mapped(a):
        def local(a):
            return jax.lax.psum(loss_of(a, "model"), "data")

        return jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=P())(a)

    with jax.enable_x64(True):
        a = {name: numbers()[name] for name in specs}
        results = fast_jit(functools.partial(value_and_gradients, mapped))(a)
        expected = fast_jit(functools.partial(value_and_gradients, loss_of))(a)
    chex.assert_trees_all_close(results, expected, rtol=1e-11, atol=1e-12, strict=True)


def test_a_loss_must_know_of_the_mesh():
    message = (
        "what loss returns must be the same for every shard of the classes,"
        " but varies over the mesh axes model"
    )
    function = jxent.chunked(
        jxent.softmax_entropy, mesh=mesh_of(*BOTH), class_axis_name="model", chunk_size=2
    )
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
            return jxent.softmax_cross_entropy_with_integer_labels(logits / temperature, labels)

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
    sharding = functools.partial(NamedSharding, mesh)
    x = np.linspace(-1, 1, 16, dtype=np.float32).reshape(8, 2)
    w = np.linspace(-1, 2, 8, dtype=np.float32).reshape(2, 4)
    entropy = functools.partial(jxent.softmax_entropy, class_axis_name="model")
    function = jxent.chunked(entropy, mesh=mesh, class_axis_name="model", chunk_size=2)
    with jax.set_mesh(mesh):
        spread = jxent.LinearLogits(
            jax.device_put(x, sharding(P("data", None))),
            jax.device_put(w, sharding(P(None, "model"))),
        )
        entropies = function(spread, where=jax.device_put(x[:, 0] < 0.5, sharding(P("data"))))
    expected = np.where(x[:, 0] < 0.5, fast_jit(jxent.softmax_entropy)(x @ w), 0)
    np.testing.assert_allclose(entropies, expected, rtol=2e-6)


def test_the_policy_example_carries_no_logits():
    """Gradients once each after the chunks, and in the loop a few numbers for each example."""
    examples, features, classes, chunk = 512, 16, 1024, 8
    mesh = mesh_of(*BOTH)

    def objective(logits, labels, advantages):
        spread = {"class_axis_name": "model"}
        nll = jxent.softmax_cross_entropy_with_integer_labels(logits, labels, **spread)
        return advantages * nll - 0.01 * jxent.softmax_entropy(logits, **spread)

    policy = jxent.chunked(
        objective, reduction="mean", mesh=mesh, class_axis_name="model", chunk_size=chunk
    )

    def loss(x, w, y, a):
        return policy(jxent.LinearLogits(x, w), y, a)

    sharding = functools.partial(NamedSharding, mesh)
    shardings = [sharding(P(*axes)) for axes in (("data",), (None, "model"), ("data",), ("data",))]
    shapes = (examples, features), (features, classes), (examples,), (examples,)
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
