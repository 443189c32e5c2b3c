"""Every dense function of logits that XLA shards: over examples, over classes, and over both."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from support.cases import CASES, fast_jit
from support.meshes import BOTH, collectives, mesh_of
from support.tiers import quick, quick_rows

EXAMPLES, CLASSES = 8, 1536
DENSE = [case for case in CASES if "kernel" not in case.kinds]


@functools.cache
def arguments(case):
    """Float64, so that nothing but the way of computing can differ."""
    rng = np.random.default_rng(0)
    z = 3 * rng.normal(size=(EXAMPLES, CLASSES))
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    kinds = {"labels": rng.integers(0, CLASSES, EXAMPLES)}
    kinds |= {"target_indices": np.argsort(-z, axis=-1)[::-1, :4]}
    kinds |= {"target_log_probs": np.log(rng.dirichlet(np.ones(5), EXAMPLES)[:, :4])}
    kinds |= {"distributions": p[::-1], "predictions": p}
    kinds |= {"log_distributions": np.log(p[::-1]), "log_predictions": np.log(p)}
    kinds |= dict.fromkeys(("losses", "weights"), abs(z))
    values = [kinds.get(kind, np.roll(z, i)) for i, kind in enumerate(case.kinds)]
    options = [rng.uniform(0.5, 1, CLASSES) if np.ndim(x) else x for x in case.options.values()]
    return [jnp.asarray(x) for x in values + options]


def value_and_gradients(case):
    def total(*args):
        out = case.call(*args)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)), out

    # Without LLVM's polish XLA of JAX 0.10 rounds in one loop otherwise than in another, so that
    # this sees whether a row's sums agree on which class is the maximum.
    return fast_jit(jax.grad(total, case.differentiable, has_aux=True))


@functools.cache
def expected(case):
    return jax.tree.map(np.asarray, value_and_gradients(case)(*arguments(case)))


def spec_of(x, spec):
    specs = {(EXAMPLES, CLASSES): spec, (CLASSES,): P(spec[1])}
    return specs.get(x.shape, P(spec[0]) if x.shape[:1] == (EXAMPLES,) else P())


_BOTH = P("data", "model")
# Each way to make a loss of a row's statistics. The others are made in the same ways.
_EVERY_WAY = {
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "softmax_kl_divergence",
    "log_softmax",
}
_WAYS = [
    (_BOTH, AxisType.Auto),
    (_BOTH, AxisType.Explicit),
    (P(None, "model"), AxisType.Auto),
    (P("data", None), AxisType.Explicit),
]
# These in every way, and the others in turn in one of those over both axes.
_ROWS = [
    (case, *_WAYS[way])
    for i, case in enumerate(DENSE)
    for way in (range(4) if case.name in _EVERY_WAY else [i % 2])
]
_QUICK = {"softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels", "log_softmax"}
_QUICK_ROWS = [case.name in _QUICK and (*way,) == _WAYS[0] for case, *way in _ROWS]


@pytest.mark.parametrize(
    ("case", "spec", "axis_type"), quick_rows(_ROWS, *np.flatnonzero(_QUICK_ROWS)), ids=str
)
def test_same_and_nothing_gathered(case, spec, axis_type):
    mesh = mesh_of(*BOTH, axis_type)
    with jax.enable_x64(True):
        args = arguments(case)
        shardings = [NamedSharding(mesh, spec_of(x, spec)) for x in args]
        with jax.set_mesh(mesh):
            program = value_and_gradients(case).lower(*map(jax.device_put, args, shardings))
            program = program.compile()
        results = program(*map(jax.device_put, args, shardings))
        for got, exact in zip(
            jax.tree.leaves(results), jax.tree.leaves(expected(case)), strict=True
        ):
            scale = np.max(np.abs(exact))
            np.testing.assert_allclose(got, exact, rtol=1e-9, atol=1e-12 * scale)
    moved = [(kind, size) for kind, size in collectives(program.as_text()) if kind != "all-reduce"]
    assert all(size <= EXAMPLES * CLASSES / 16 for _, size in moved), moved


def test_spread_classes_stay_where_they_are():
    """Over automatic axes the rows are not cut: then not even a little is moved."""
    mesh = mesh_of(*BOTH, AxisType.Auto)
    z = np.random.default_rng(0).normal(size=(EXAMPLES, CLASSES)).astype(np.float32)
    with jax.set_mesh(mesh):
        placed = jax.device_put(z, NamedSharding(mesh, _BOTH))
        program = fast_jit(jxent.softmax_entropy).lower(placed).compile()
    assert {kind for kind, _ in collectives(program.as_text())} == {"all-reduce"}


@pytest.mark.parametrize("axis", quick([0, -1], -1))
def test_one_row_of_soft_labels_for_all_examples(axis):
    """Its gradient is a sum over examples, for which no logits are gathered in explicit mode."""
    mesh = mesh_of(*BOTH, AxisType.Explicit)
    with jax.enable_x64(True):
        z, row = np.random.default_rng(1).uniform(size=(2, EXAMPLES, CLASSES))[:, :, ::2]
        row, spec = row[0], P("data", "model")
        if axis == 0:
            z, spec = z.T, P("model", "data")

        def total(z, row):
            return jnp.sum(jxent.softmax_cross_entropy(z, row, axis=axis, label_smoothing=0.1))

        gradient = fast_jit(jax.grad(total, (0, 1)))
        with jax.set_mesh(mesh):
            placed = jax.device_put(z, spec), jax.device_put(row, P("model"))
            program = gradient.lower(*placed).compile()
        moved = collectives(program.as_text())
        assert all(size <= z.size / 16 for kind, size in moved if kind != "all-reduce"), moved
        results, exact = program(*placed), gradient(z, row)
        chex.assert_trees_all_close(results, exact, rtol=1e-9, atol=1e-12, strict=True)
