"""Exported once with sizes left open, for every platform: the numbers of the direct call."""

import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jxent
from support import cases
from support.cases import fast_jit, with_gradients
from support.heads import BASE, OPTIONS, arrays_of_head
from support.meshes import BOTH, mesh_of
from support.tiers import quick

PLATFORMS = ("cpu", "cuda", "tpu")
SIZES = [(5, 200), (1, 1)]
DENSE = [case for case in cases.CASES if case.name != "linear_softmax_cross_entropy"]
MODULES = sorted({case.function.__module__ for case in DENSE})


def exported(function, arrays, shapes):
    """The function of a dictionary of arrays, whose shapes are left open as `shapes` say."""
    specs = export.symbolic_args_specs(arrays, {name: shapes[name] for name in arrays})
    return export.export(jax.jit(function), platforms=PLATFORMS)(specs)


def assert_same(actual, expected):
    chex.assert_trees_all_close(actual, expected, rtol=1e-11, atol=1e-13, strict=True)


DENSE_SHAPES = dict.fromkeys(cases.EXAMPLES, "n, k") | {
    "labels": "n", "target_indices": "n, 2", "target_log_probs": "n, 2", "cube": "n, 2, k",
    "other_cube": "n, 2, k", "where": "n, k", "counted": "n", "class_weights": "k",
    "pos_weight": "k", "weights_of_pairs": "2, k",
}  # fmt: skip


def dense_arrays(n, k):
    rng = np.random.default_rng(n)
    arrays = {name: rng.normal(size=(n, k)) for name in ("logits", "target_logits", "losses")}
    arrays |= {name: rng.dirichlet(np.ones(k), n) for name in ("distributions", "predictions")}
    for name in ("log_predictions", "log_distributions"):
        arrays[name] = np.log(rng.dirichlet(np.ones(k), n))
    arrays |= {name: rng.normal(size=(n, 2, k)) for name in ("cube", "other_cube")}
    arrays["weights"] = rng.uniform(0.5, 2, (n, k))
    arrays["weights_of_pairs"] = rng.uniform(0.5, 2, (2, k))
    arrays |= {name: rng.uniform(0.5, 2, k) for name in ("class_weights", "pos_weight")}
    arrays["labels"] = rng.integers(0, k, n).astype(np.int32)
    order = rng.permuted(np.tile(np.arange(k, dtype=np.int32), (n, 1)), axis=1)
    arrays["target_indices"] = np.resize(order[:, :2], (n, 2))
    arrays["target_log_probs"] = np.log(rng.dirichlet(np.ones(3), n)[:, :2])
    arrays["where"] = rng.random((n, k)) < 0.8
    arrays["counted"] = np.arange(n) != 1
    return jax.tree.map(jnp.asarray, arrays)


def with_masks(case):
    """The case, and the same masked, of columns where it has classes."""

    def call(arrays, layout=lambda x: x, **fixed):
        options = {name: arrays.get(name, x) for name, x in case.options.items()}
        args = (layout(arrays[kind]) for kind in case.kinds)
        return case.function(*args, **options, **case.fixed, **fixed)

    def masked(arrays):
        if not case.accepts("axis"):
            return call(arrays, where=arrays["where"])
        columns = functools.partial(call, layout=lambda x: x.T if x.ndim == 2 else x)
        return columns(arrays, axis=0, where=arrays["where"].T)

    return {str(case): call} | ({f"{case} with a mask": masked} if case.has_classes else {})


OTHER_AXES = {
    "integer labels over two axes": lambda a: jxent.softmax_cross_entropy_with_integer_labels(
        a["cube"], a["labels"], axis=(1, 2), where=a["counted"],
        class_weights=a["weights_of_pairs"], label_smoothing=0.25, ignore_index=0,
    ),
    "entropy over all axes": lambda a: jxent.softmax_entropy(a["cube"], axis=None),
    "log_softmax over two axes": lambda a: jxent.log_softmax(a["cube"], axis=(0, 2)),
    "divergence over two axes": lambda a: jxent.softmax_kl_divergence(
        a["cube"], a["other_cube"], axis=(2, 0)
    ),
    "one distribution for all": lambda a: jxent.softmax_cross_entropy(
        a["logits"], a["class_weights"], where=a["counted"], z_loss=0.5
    ),
    "mean of each column": lambda a: jxent.weighted_mean(a["losses"], a["weights"], axis=0),
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("module", [*MODULES, "other axes"])
def test_dense_losses(module):
    """Of a symbolic number of examples and of classes; some of one example of one class, too."""
    sizes = SIZES if module in ("jxent._softmax", "other axes") else SIZES[:1]
    functions = dict(OTHER_AXES) if module == "other axes" else {}
    for case in DENSE:
        if case.function.__module__ == module:
            functions |= with_masks(case)

    def every(arrays):
        return {name: with_gradients(function)(arrays) for name, function in functions.items()}

    with jax.enable_x64(True):
        program = exported(every, dense_arrays(*sizes[0]), DENSE_SHAPES)
        for arrays in itertools.starmap(dense_arrays, sizes):
            assert_same(fast_jit(program.call)(arrays), fast_jit(every)(arrays))


HEAD_SHAPES = {"inputs": "{}, {}", "kernel": "{1}, {2}"}
HEAD_SHAPES |= dict.fromkeys(("labels", "weights"), "{0}")
HEAD_SHAPES |= dict.fromkeys(("bias", "class_weights", "class_mask"), "{2}")
HEAD_SHAPES |= dict.fromkeys(("label_smoothing", "z_loss", "logit_softcap"), "")


def head_shapes(examples, features=3, classes=7):
    return {k: shape.format(examples, features, classes) for k, shape in HEAD_SHAPES.items()}


def head_arrays(examples, features=3, classes=7):
    """Without the first class, which is no label."""
    arrays = dict(arrays_of_head(examples, classes, features))
    arrays["labels"] = np.where(arrays["labels"] == 0, 1, arrays["labels"])
    arrays["class_mask"] = np.arange(classes) > 0
    return jax.tree.map(jnp.asarray, arrays)


def head(arrays, **fixed):
    args, options = [arrays[k] for k in BASE], {k: arrays[k] for k in OPTIONS if k in arrays}
    return jxent.linear_softmax_cross_entropy(*args, **options, ignore_index=-100, **fixed)


def every_reduction(arrays, **fixed):
    """Each way to a gradient with its value, and what is left of the third."""
    mean, losses = (
        with_gradients(functools.partial(head, reduction=reduction, **fixed))(arrays)
        for reduction in ("mean", "none")
    )
    return mean, losses, head(arrays, reduction="sum", **fixed)


@pytest.mark.full
@pytest.mark.parametrize(
    ("symbols", "chunk_size", "sizes"),
    [
        (("b, s",), 4, [((1, 3),), ((3, 5),)]),
        (("b", "f", "c"), None, [((300,), 3, 30)]),
    ],
)
def test_linear_head(symbols, chunk_size, sizes):
    """Fewer examples than a chunk has, and more."""
    function = functools.partial(every_reduction, chunk_size=chunk_size)
    with jax.enable_x64(True):
        program = exported(function, head_arrays(*sizes[0]), head_shapes(*symbols))
        for size in sizes:
            arrays = head_arrays(*size)
            assert_same(fast_jit(program.call)(arrays), fast_jit(function)(arrays))


@pytest.mark.full
def test_derivatives_of_an_exported_head():
    """By the pullback that is exported with it, and of the second order."""

    def loss(kernel, inputs, labels):
        return jxent.linear_softmax_cross_entropy(inputs, kernel, labels, chunk_size=4)

    def second(kernel, inputs, labels):
        gradient = jax.grad(functools.partial(loss, inputs=inputs, labels=labels))
        return jax.jvp(gradient, (kernel,), (jnp.cos(kernel),))

    arrays, shapes = head_arrays((9,)), head_shapes("b")
    names = ("kernel", "inputs", "labels")
    args = [arrays[k].astype(np.float32) for k in names[:2]] + [jnp.arange(9) % 7]
    specs = export.symbolic_args_specs(args, [shapes[k] for k in names])
    first, twice = (export.export(jax.jit(f), platforms=PLATFORMS)(*specs) for f in (loss, second))
    gradient, tangent = jax.jit(second)(*args)
    results = jax.grad(first.call)(*args), *twice.call(*args)
    exact = gradient, gradient, tangent
    chex.assert_trees_all_close(results, exact, rtol=1e-5, atol=1e-6, strict=True)


@pytest.mark.parametrize("reduction", quick(["mean", "none"]))
def test_the_logits_never_exist_whole(reduction):
    """Compiled for as many examples as one likes, the exported head still has them in chunks."""
    classes, examples = 4099, 4096

    def loss(x, w, y):
        return jnp.sum(jxent.linear_softmax_cross_entropy(x, w, y, reduction=reduction))

    specs = export.symbolic_args_specs(
        [np.ones((1, 4), "f"), np.ones((4, classes), "f"), np.zeros(1, "i")], ["b, 4", None, "b"]
    )
    program = export.export(jax.jit(jax.grad(loss, (0, 1))), platforms=PLATFORMS)(*specs)
    args = np.ones((examples, 4), "f"), np.ones((4, classes), "f"), np.zeros(examples, "i")
    compiled = fast_jit(program.call).lower(*args).compile()
    sizes = [
        np.prod([int(n) for n in s.split(",")])
        for s in re.findall(r"f32\[(\d+(?:,\d+)*)\]", compiled.as_text())
    ]
    assert 64 * classes <= max(sizes) < examples * classes / 2
    # Every example has its part in the gradient, those of the last chunk included.
    _, to_kernel = compiled(*args)
    total = 1 if reduction == "mean" else examples
    exact = total * (1 / classes - np.eye(classes)[0])
    np.testing.assert_allclose(to_kernel, np.tile(exact, (4, 1)), rtol=1e-5)


def test_a_mesh_needs_numbers():
    mesh = mesh_of(*BOTH)
    specs = export.symbolic_args_specs(
        [np.ones((8, 2), "f"), np.ones((2, 4), "f"), np.zeros(8, "i")], ["8*b, 2", None, "8*b"]
    )
    message = (
        "mesh must come with sizes that are numbers: what JAX exports of jax.shard_map crashes when"
        " it is called with others; got inputs (8*b, 2) and kernel (2, 4)"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        export.export(jax.jit(functools.partial(jxent.linear_softmax_cross_entropy, mesh=mesh)))(
            *specs
        )
