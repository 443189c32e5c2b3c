"""Losses inside `jax.shard_map`, each shard with a slice of the classes: as on one device."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jxent
from support.cases import BARE, cosines, fast_jit, with_gradients
from support.meshes import BOTH, CLASSES_ONLY, EXAMPLES_ONLY, THREE, assert_same, mesh_of
from support.tiers import quick, quick_rows

EXAMPLES, CLASSES = 8, 48
IGNORED = -100
MESHES = [*((mesh, "model") for mesh in (EXAMPLES_ONLY, CLASSES_ONLY, BOTH)),
          (THREE, ("expert", "model"))]  # fmt: skip
FUNCTIONS = {
    "integer_loss": functools.partial(
        jxent.softmax_cross_entropy_with_integer_labels, ignore_index=IGNORED
    ),
    "soft_loss": jxent.softmax_cross_entropy,
    "entropy": jxent.softmax_entropy,
    "divergence": jxent.softmax_kl_divergence,
    "mixture": jxent.softmax_jensen_shannon_divergence,
    "poly": jxent.poly_loss_cross_entropy,
    "focal": functools.partial(jxent.softmax_focal_loss_with_integer_labels, ignore_index=IGNORED),
    "top_k": jxent.softmax_kl_divergence_with_top_k_targets,
    "ratio": functools.partial(jxent.softmax_log_ratio_with_integer_labels, ignore_index=IGNORED),
    "normalizer": jxent.logsumexp,
    "logarithms": jxent.log_softmax,
    "probabilities": jxent.softmax,
}
PER_CLASS = {"logarithms", "probabilities"}
LOSSES = [name for name in FUNCTIONS if name not in PER_CLASS]
OF_EXAMPLES = {"target_indices", "target_log_probs"}


def test_every_softmax_loss_is_here():
    """Each function of logits along an axis of classes takes them in shards."""
    here = {getattr(f, "func", f).__name__ for f in FUNCTIONS.values()}
    assert here == {c.name for c in BARE if c.kinds[0] == "logits" and c.accepts("axis")}


def arrays(name):
    """The arguments of each, with ignored labels and an example without classes."""
    rng = np.random.default_rng(0)
    z, target = 2 * rng.normal(size=(2, EXAMPLES, CLASSES))
    y = np.exp(target) / np.exp(target).sum(-1, keepdims=True)
    mask = rng.random((EXAMPLES, CLASSES)) < 0.8
    labels = np.array([3, IGNORED, 0, 47, 24, 23, 11, 40])
    mask[range(EXAMPLES), labels % CLASSES] = True
    mask[2] = False
    options = {
        "class_weights": rng.uniform(0.5, 2, CLASSES),
        "label_smoothing": np.float64(0.125),
        "z_loss": np.float64(0.01),
    }
    of_function = {
        "integer_loss": {"labels": labels} | options,
        "soft_loss": {"labels": y} | options,
        "entropy": {},
        "divergence": {"target_logits": target},
        "mixture": {"target_logits": target, "weight": np.float64(0.25)},
        "poly": {"labels": y, "epsilon": np.float64(1.5)},
        "focal": {
            "labels": labels,
            "gamma": np.float64(1.5),
            "class_weights": options["class_weights"],
        },
        "top_k": {
            "target_indices": np.argsort(target, axis=-1)[:, 10:40:7],
            "target_log_probs": np.log(rng.dirichlet(np.ones(6), EXAMPLES)[:, :5]),
        },
        "ratio": {"target_logits": target, "labels": labels},
        "normalizer": {},
        "logarithms": {},
        "probabilities": {},
    }
    return {"logits": z, "where": mask} | of_function[name]


def specs_of(arguments, mesh, classes):
    """Examples over the other axes."""
    names = classes if isinstance(classes, tuple) else (classes,)
    data = tuple(axis for axis in mesh.axis_names if axis not in names)
    by_rank = {2: P(data, classes), 1: P(data), 0: P()}
    specs = {name: by_rank[x.ndim] for name, x in arguments.items()}
    own = {"class_weights": P(classes)} | dict.fromkeys(OF_EXAMPLES, P(data))
    return {name: own.get(name, spec) for name, spec in specs.items()}, P(data)


def sharded(function, mesh, classes, arguments):
    """The function of whole arrays, computed by shards."""
    specs, out = specs_of(arguments, mesh, classes)
    if function in [FUNCTIONS[name] for name in PER_CLASS]:
        out = specs["logits"]
    local = by_name(functools.partial(function, class_axis_name=classes))
    return jax.shard_map(local, mesh=mesh, in_specs=(specs,), out_specs=out, check_vma=True)


def floats(arguments):
    return {k: x for k, x in arguments.items() if jnp.issubdtype(x.dtype, jnp.floating)}


def by_name(function):
    return lambda a: function(**a)


@functools.cache
def on_one_device(name):
    with jax.enable_x64(True):
        return fast_jit(with_gradients(by_name(FUNCTIONS[name]), cosines))(arrays(name))


# Every function over three axes, and over other meshes one after the other.
_OVER = [(name, *MESHES[3]) for name in FUNCTIONS]
_OVER += [(name, *MESHES[i % 3]) for i, name in enumerate(FUNCTIONS)]


@pytest.mark.parametrize(("name", "shape", "classes"), quick_rows(_OVER, 0, 3, 4, 5, 7, 8, 10))
def test_values_and_gradients(name, shape, classes):
    mesh = mesh_of(*shape)
    with jax.enable_x64(True):
        mapped = sharded(FUNCTIONS[name], mesh, classes, arrays(name))
        results = fast_jit(with_gradients(mapped, cosines))(arrays(name))
        assert_same(results, on_one_device(name), 1e-11, 1e-11)


@pytest.mark.full
@pytest.mark.parametrize("name", ["entropy", "integer_loss"])
def test_modes_of_differentiation(name):
    """Forward, second derivatives both ways, and vmap of gradients."""
    mesh = mesh_of(*BOTH)
    with jax.enable_x64(True):
        arguments = arrays(name)

        def modes(call, a):
            def total(floats):
                out = call(a | floats)
                return jnp.sum(out * cosines(out))

            x = floats(a)
            dots = jax.tree.map(lambda x: jnp.sin(5 * x), x)
            gradient = jax.grad(total)

            def along(x):
                return sum(jnp.vdot(g, dots[k]) for k, g in gradient(x).items())

            return (
                jax.jvp(total, (x,), (dots,))[1],
                jax.jvp(gradient, (x,), (dots,))[1],
                jax.grad(along)(x),
                jax.vmap(gradient)(jax.tree.map(lambda x: jnp.stack([x, 0.9 * x]), x)),
            )

        mapped = sharded(FUNCTIONS[name], mesh, "model", arguments)
        results, expected = (
            fast_jit(functools.partial(modes, call))(jax.tree.map(jnp.asarray, arguments))
            for call in (mapped, by_name(FUNCTIONS[name]))
        )
        assert_same(results, expected, 1e-10, 1e-10)


@pytest.mark.parametrize("name", quick(LOSSES, "integer_loss"))
def test_differentiated_inside(name):
    """A shard's gradient is that of its slice, and replicated arguments have the whole one."""
    mesh = mesh_of(*BOTH)
    with jax.enable_x64(True):
        arguments = arrays(name)
        specs, _ = specs_of(arguments, mesh, "model")
        dots = jax.tree.map(lambda x: np.cos(7 * x), floats(arguments))

        def local(counts, dots, a):
            def total(x):
                return jnp.vdot(counts, FUNCTIONS[name](**(a | x), class_axis_name="model"))

            # Over the data axis each shard has a loss of its own, so the sum is taken outside.
            _, dot = jax.jvp(total, (floats(a),), (dots,))
            return jax.grad(total)(floats(a)), jax.lax.psum(dot, "data")

        of_floats = {k: specs[k] for k in dots}
        program = jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(P("data"), of_floats, specs),
            out_specs=(of_floats, P()),
        )
        gradients, dot = fast_jit(program)(np.cos(np.arange(EXAMPLES)), dots, arguments)
    _, (expected,) = on_one_device(name)
    expected = {k: expected[k] for k in gradients}
    assert_same(gradients, expected, 1e-11, 1e-11)
    exact = sum(np.vdot(expected[k], x) for k, x in dots.items())
    np.testing.assert_allclose(dot, exact, rtol=1e-9)


def test_replicated_and_sharded_arguments():
    """Logits the same for all examples' shards, labels not; soft labels of one row for all."""
    mesh = mesh_of(*BOTH)
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        z, row = rng.normal(size=(2, CLASSES)), rng.uniform(size=CLASSES)
        labels = rng.integers(0, CLASSES, EXAMPLES)

        def losses(z, row, labels, **where):
            integer = jxent.softmax_cross_entropy_with_integer_labels(z, labels, **where)
            soft = jxent.softmax_cross_entropy(z, row, label_smoothing=0.1, **where)
            return integer * soft

        mapped = jax.shard_map(
            functools.partial(losses, class_axis_name="model"),
            mesh=mesh,
            in_specs=(P(None, "model"), P("model"), P("data")),
            out_specs=P("data"),
        )
        results, expected = (
            fast_jit(with_gradients(call, cosines))(z, row, labels)
            for call in (mapped, lambda z, *others: losses(jnp.tile(z, (4, 1)), *others))
        )
        assert_same(results, expected, 1e-11, 1e-11)


def regimes():
    """Rows that break other ways of computing: logits, and a label for each."""
    rng = np.random.default_rng(2)
    size = CLASSES // 8
    plain = rng.normal(size=CLASSES)
    rows = [plain, plain + 1e4, 30 * plain, 1e-3 * plain, 0 * plain]
    labels = [5, 17, int(np.argmax(plain)), 40, 47]
    for ahead in (20.0, 5.0, -20.0, -80.0):  # with the runner-up on another shard
        row = np.full(CLASSES, -100.0)
        row[[3, 44]] = 0, ahead
        rows.append(row)
        labels.append(44)
    tied = plain.copy()
    tied[[1, 2, 30, 45]] = plain.max() + 12  # the maximum twice in one shard, and in two others
    empty = plain.copy()
    empty[2 * size : 3 * size] = -np.inf
    nearly = np.full(CLASSES, -np.inf)
    nearly[[7, 41]] = 1, 0
    rows += [tied, empty, empty, nearly]
    labels += [45, 0, 2 * size + 1, 41]
    for value, places in ((np.nan, [9]), (np.inf, [9]), (np.inf, [9, 40])):
        row = plain.copy()
        row[places] = value
        rows += [row]
        labels += [9]
    impossible = plain.copy()
    impossible[[9, 40]] = np.nan, -np.inf  # NaN all the same
    rows += [impossible, np.full(CLASSES, -np.inf), plain, plain, plain]
    labels += [40, 0, -1, CLASSES, IGNORED]
    return np.array(rows), np.array(labels)


@pytest.mark.parametrize("dtype", quick(["float32", "bfloat16"]))
@pytest.mark.parametrize("name", quick(LOSSES, "integer_loss", "divergence"))
def test_accuracy_where_others_fail(name, dtype):
    """In single precision, as on one device to a few units in the last place."""
    mesh = mesh_of(*CLASSES_ONLY)
    z, labels = regimes()
    z = z.astype(jnp.dtype(dtype))
    factors = 1 + 1e-4 * np.cos(np.arange(z.size)).reshape(z.shape)
    near = z.astype(np.float32) * factors.astype(np.float32)
    arguments = {"logits": z} | {
        "integer_loss": {"labels": labels},
        "soft_loss": {"labels": np.eye(CLASSES)[labels % CLASSES].astype(z.dtype)},
        "entropy": {},
        "divergence": {"target_logits": near.astype(z.dtype)},
        "mixture": {"target_logits": near.astype(z.dtype)},
        "poly": {"labels": np.eye(CLASSES)[labels % CLASSES].astype(z.dtype)},
        "focal": {"labels": labels},
        "top_k": {
            "target_indices": np.stack([labels, (labels + 7) % CLASSES], axis=-1),
            "target_log_probs": np.log(np.tile([0.5, 0.25], (len(z), 1))).astype(z.dtype),
        },
        "ratio": {"target_logits": near.astype(z.dtype), "labels": labels},
        "normalizer": {},
        "logarithms": {},
        "probabilities": {},
    }[name]

    others = {k: x for k, x in arguments.items() if k != "logits"}
    (losses, (to_z,)), (exact, (exact_to_z,)) = (
        fast_jit(with_gradients(lambda z, f=f: f(others | {"logits": z})))(z)
        for f in (sharded(FUNCTIONS[name], mesh, "model", arguments), by_name(FUNCTIONS[name]))
    )
    # Each is within its units of the truth, so they are within twice of each other.
    eps = float(np.finfo(np.float32).eps)
    units = 128 if name == "divergence" else 2 * (16 + np.abs(np.log(np.maximum(exact, 1e-33))))
    units = np.where(np.isfinite(exact), units, 0)
    np.testing.assert_array_equal(np.isfinite(losses), np.isfinite(exact))
    for loss, value, unit in zip(losses, exact, units, strict=True):
        np.testing.assert_allclose(loss, value, rtol=unit * eps, atol=1e-33)
    to_z, exact_to_z = (np.asarray(x, np.float64) for x in (to_z, exact_to_z))
    np.testing.assert_array_equal(np.isnan(to_z).any(-1), np.isnan(exact_to_z).any(-1))
    # A gradient that is a difference may be as much off as its terms are; the others may not.
    scale = np.nanmax(np.abs(exact_to_z), axis=-1, initial=0, keepdims=True)
    terms = scale if name in ("entropy", "divergence") else np.abs(exact_to_z)
    units = 4 * np.max(units)
    bound = 2 * float(jnp.finfo(dtype).eps) * np.abs(exact_to_z) + units * eps * terms + 1e-33
    assert not np.any(np.abs(to_z - exact_to_z) > bound)


def test_a_shard_of_which_no_class_counts():
    """The padding of a table may fill shards; its values do not matter."""
    mesh = mesh_of(*CLASSES_ONLY)
    rng = np.random.default_rng(3)
    z = rng.normal(size=(4, CLASSES)).astype(np.float32)
    real = 20
    mask = np.broadcast_to(np.arange(CLASSES) < real, z.shape)
    poisoned = np.where(mask, z, np.float32(np.nan))
    labels = np.array([0, 7, 19, 13])

    def loss(z, labels, mask, **where):
        return jxent.softmax_cross_entropy_with_integer_labels(
            z, labels, where=mask, label_smoothing=0.1, z_loss=0.1, **where
        )

    rest = {"labels": labels, "mask": mask}
    mapped = sharded(loss, mesh, "model", {"z": z} | rest)
    got, to_z = fast_jit(jax.value_and_grad(lambda z: jnp.sum(mapped({"z": z} | rest))))(poisoned)
    of_all = fast_jit(jax.value_and_grad(lambda z: jnp.sum(loss(z, labels, None))))
    exact, exact_to_z = of_all(z[:, :real])
    chex.assert_trees_all_close(got, exact, rtol=1e-6, strict=True)
    to_z = np.asarray(to_z)
    chex.assert_trees_all_close(to_z[:, :real], exact_to_z, rtol=1e-5, atol=1e-7, strict=True)
    assert np.all(to_z[:, real:] == 0)


def in_shards(local, *specs, **options):
    mesh = mesh_of(*BOTH)
    z = np.zeros((EXAMPLES, CLASSES), np.float32)
    labels = np.zeros(2 * EXAMPLES if specs else EXAMPLES, int)
    in_specs = specs or (P("data", "model"), P("data"))
    return jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=P("data"), **options)(
        z, labels
    )


def loss_over(name):
    return functools.partial(jxent.softmax_cross_entropy_with_integer_labels, class_axis_name=name)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: in_shards(loss_over("model"), check_vma=False),
         "class_axis_name needs jax.shard_map with check_vma=True"),
        (lambda: in_shards(loss_over("models")),
         "class_axis_name must name mesh axes of an enclosing jax.shard_map, got 'models': for"
         " global arrays the losses need none, and the head takes mesh="),
        (lambda: loss_over("model")(np.zeros((2, 3)), np.zeros(2, int)),
         "class_axis_name must name mesh axes of an enclosing jax.shard_map, got 'model': for"
         " global arrays the losses need none, and the head takes mesh="),
        (lambda: in_shards(loss_over("model"), P("data", "model"), P(("data", "model"))),
         "labels must be the same for every shard of the classes, but varies over the mesh"
         " axes model"),
        (lambda: in_shards(loss_over(3)),
         "class_axis_name must be the name of a mesh axis or a tuple of different ones, got 3"),
    ],
)  # fmt: skip
def test_mistakes(call, message):
    # JAX may add a remark of its own.
    with pytest.raises(ValueError, match=re.escape(message) + r"($|\n)"):
        call()
