"""Every function under JAX's transformations, one after the other."""

import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from support.cases import (
    BARE,
    CASES,
    EXAMPLES,
    bare,
    compiled,
    cotangent_of,
    expected,
    fast_jit,
    no_leaks,
    of_some,
    value_and_gradients,
)
from support.tiers import quick


def _assert_close(actual, right, rtol=4e-6, atol=1e-7):
    chex.assert_trees_all_close(list(actual), list(right), rtol=rtol, atol=atol, strict=True)


# Without a program of its own each operation is compiled by itself, and without its caches JAX
# traces each function at length; these three have every mechanism.
_MECHANISMS = ("softmax_cross_entropy_with_integer_labels", "sigmoid_binary_cross_entropy",
               "linear_softmax_cross_entropy")  # fmt: skip
_OF_EVERY_MECHANISM = list(map(bare, _MECHANISMS))
_WITH_OPTIONS = [case for case in CASES if case.name in _MECHANISMS]
_EACH_MECHANISM = pytest.mark.parametrize("case", quick(BARE, *_OF_EVERY_MECHANISM), ids=str)


@pytest.mark.parametrize("case", _OF_EVERY_MECHANISM, ids=str)
def test_eager(case):
    """Op by op, with no NaN on the way; of the other functions `test_policy` does so."""
    function = value_and_gradients(case.call, case.differentiable)
    with jax.debug_nans(True):
        _assert_close(function(jnp.asarray(cotangent_of(case)), *case.args()), expected(case))


def _two_of_each(case):
    """The example arguments, others, and both stacked."""
    args = [np.asarray(x) for x in case.args()]
    others = [x[::-1] if x.ndim else x / 2 for x in args]
    return args, others, [np.stack(pair) for pair in zip(args, others, strict=True)]


@pytest.mark.parametrize("case", quick(CASES, *_WITH_OPTIONS), ids=str)
def test_vmap(case):
    """Of the value, over each argument alone, and over all options."""
    args, others, stacked = _two_of_each(case)
    positional = len(case.kinds)
    options = tuple(range(positional, len(args)))
    choices = [(i,) for i in range(positional)] + ([options] if options else [])

    def mapped_over(chosen, args, stacked):
        axes = tuple(0 if i in chosen else None for i in range(len(args)))
        pairs = zip(stacked, args, strict=True)
        inputs = [many if i in chosen else one for i, (many, one) in enumerate(pairs)]
        return jax.vmap(case.call, axes)(*inputs)

    mapped = fast_jit(lambda *given: [mapped_over(chosen, *given) for chosen in choices])
    results = mapped(args, stacked)
    for chosen, result in zip(choices, results, strict=True):
        pairs = zip(args, others, strict=True)
        second = [other if i in chosen else one for i, (one, other) in enumerate(pairs)]
        right = expected(case)[0], compiled(case)(cotangent_of(case), *second)[0]
        _assert_close([result], [np.stack(right)])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_step_of_a_loop_under_vmap(case):
    """Rematerialised, as in training with accumulation, and mapped over all arguments.

    The gradient takes the place of what it is the gradient of, which is donated.
    """
    args, others, stacked = _two_of_each(case)

    def accumulated(cotangent, *args):
        def repeated(*args):
            def step(carry, scale):
                loss = jax.checkpoint(case.call)(*args)
                return carry + scale * loss, None

            return jax.lax.scan(step, jnp.zeros_like(cotangent), jnp.asarray([0.25, 0.75]))[0]

        return value_and_gradients(repeated, case.differentiable)(cotangent, *args)

    mapped = jax.vmap(accumulated, (None, *[0] * len(args)))
    first = case.differentiable[0]
    donated = jnp.asarray(stacked[first])
    stacked[first] = donated
    results = fast_jit(mapped, donate_argnums=1 + first)(cotangent_of(case), *stacked)
    assert donated.is_deleted()
    second = compiled(case)(cotangent_of(case), *others)
    _assert_close(results, [np.stack(pair) for pair in zip(expected(case), second, strict=True)])


def _replicated():
    """The last one of several arguments, and for some functions each in turn in the full tier.

    The heads, which have tests of their own over meshes, are in the full tier.
    """
    for case in CASES:
        last = len(case.kinds) - 1
        marks = pytest.mark.full if "kernel" in case.kinds else ()
        yield pytest.param(case, last or None, id=str(case), marks=marks)
        if last and case.name in ("softmax_kl_divergence", "cross_entropy", "kl_divergence"):
            yield pytest.param(case, 0, id=f"{case}-0", marks=pytest.mark.full)


@pytest.mark.parametrize(("case", "replicated"), list(_replicated()))
def test_shard_map(case, replicated):
    """Over examples; one argument and all options are replicated.

    In float64, since the gradients for what is replicated are sums of terms of both signs.
    """
    with jax.enable_x64(True):
        _compare_shards(case, replicated)


def _compare_shards(case, replicated):
    number = min(2, len(jax.devices()))
    mesh = jax.make_mesh((number,), ("examples",), axis_types=(jax.sharding.AxisType.Auto,))
    args = [np.asarray(x) for x in case.args(np.float64)]
    kept = [i < len(case.kinds) and i != replicated for i in range(len(args))]
    pairs = list(zip(args, kept, strict=True))
    shards = [[x[::-1] if keep and k else x for x, keep in pairs] for k in range(number)]
    columns = list(zip(*shards, strict=True))
    values = [
        np.concatenate(many) if keep else many[0] for many, keep in zip(columns, kept, strict=True)
    ]
    cotangents = [(1 + k) * np.float64(cotangent_of(case)) for k in range(number)]

    @fast_jit
    def mapped(cotangent, *values):
        call = jax.shard_map(
            lambda *args: jnp.atleast_1d(case.call(*args)),
            mesh=mesh,
            in_specs=tuple(P("examples") if keep else P() for keep in kept),
            out_specs=P("examples"),
            check_vma=True,
        )
        out, *gradients = value_and_gradients(call, case.differentiable)(cotangent, *values)
        if case not in _WITH_OPTIONS:
            return out, *gradients
        of_floats, floats = of_some(call, case.differentiable, values)
        tangent = jax.jvp(of_floats, floats, [jnp.ones_like(x) for x in floats])[1]
        return out, *gradients, jnp.sum(cotangent * tangent)

    results = [compiled(case)(c, *own) for c, own in zip(cotangents, shards, strict=True)]
    outs, *gradients = zip(*results, strict=True)
    gradients = [
        np.concatenate(parts) if kept[i] else sum(map(np.asarray, parts))
        for i, parts in zip(case.differentiable, gradients, strict=True)
    ]
    exact = [_joined(outs), *gradients]
    if case in _WITH_OPTIONS:  # Forward mode as well, which is the same mechanism for all.
        exact.append(np.sum([np.sum(g) for g in gradients]))
    _assert_close(mapped(_joined(cotangents), *values), exact, 1e-12, 1e-13)


def _joined(arrays):
    return np.concatenate([np.atleast_1d(x) for x in arrays])


@_EACH_MECHANISM
def test_export(case):
    """For every platform at once, and differentiated afterwards."""
    args = case.args()
    here = jax.default_backend()
    platforms = sorted({"cpu", "cuda", "tpu", "cuda" if here == "gpu" else here})
    exported = jax.export.export(jax.jit(case.call), platforms=platforms)(*args)
    function = fast_jit(value_and_gradients(exported.call, case.differentiable))
    _assert_close(function(cotangent_of(case), *args), expected(case))


# The integers' rows of probabilities have a mask beside them.
_LIKELIHOODS = ("cross_entropy_with_integer_labels", "negative_log_likelihood")


@pytest.mark.parametrize(
    "case", [c for c in BARE if c.has_classes and c.name not in _LIKELIHOODS], ids=str
)
def test_linearisation_stores_its_arguments(case):
    """And little for each example, but nothing else that is as large as the first argument."""
    shape, others = (32, 48), {"labels": (32,), "target_indices": (32, 2)}
    others["target_log_probs"] = others["target_indices"]
    args = [
        jax.ShapeDtypeStruct(others.get(kind, shape), x.dtype)
        for kind, x in zip(case.kinds, case.args(), strict=True)
    ]

    def stored(*args):
        function, floats = case.of_floats(list(args))
        lines = [x[:, None] for x in args]
        mapped, floats_of_lines = of_some(jax.vmap(case.call), case.differentiable, lines)
        return (
            jax.linearize(function, *floats)[1],
            jax.vjp(function, *floats)[1],
            jax.linearize(mapped, *floats_of_lines)[1],
        )

    given = sum(x.size for x in args)
    for residuals in jax.eval_shape(stored, *args):
        size = sum(x.size for x in jax.tree.leaves(residuals))
        assert size < given + 0.5 * np.prod(shape)


@_EACH_MECHANISM
def test_no_leaked_tracers(case):
    floats, args = case.of_floats(case.args())
    with no_leaks():
        jax.make_jaxpr(jax.grad(lambda *xs: jnp.sum(floats(*xs))))(*args)
        jax.make_jaxpr(lambda *xs: jax.jvp(floats, xs, xs))(*args)


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="there is one process")
@pytest.mark.parametrize("case", BARE[:1], ids=str)
def test_the_tests_of_a_function_have_one_worker(case, request):
    """Otherwise each worker would trace and compile what the other one has."""
    assert request.node.nodeid.endswith(f"@{case.name}")


def test_every_kind_of_argument_has_an_example():
    assert {kind for case in BARE for kind in case.kinds} == set(EXAMPLES)
