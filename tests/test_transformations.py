"""Every function under JAX's transformations, one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
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
from jax.sharding import PartitionSpec as P
from tiers import quick

PLAIN = pytest.mark.parametrize("case", BARE, ids=str)
WITH_OPTIONS = pytest.mark.parametrize("case", CASES, ids=str)


def _assert_close(actual, right, rtol=4e-6, atol=1e-7):
    for x, y in zip(actual, right, strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def _cotangent(case):
    return jnp.asarray(cotangent_of(case))


@PLAIN
def test_eager(case):
    """Op by op, with no NaN on the way to a result that is none."""
    function = value_and_gradients(case.call, case.differentiable)
    with jax.debug_nans(True):
        _assert_close(function(_cotangent(case), *case.args()), expected(case))


@WITH_OPTIONS
def test_vmap(case):
    """Over each argument alone, and over all at once."""
    args, cotangent = case.args(), _cotangent(case)
    others = [x[::-1] if x.ndim else x / 2 for x in args]
    stacked = [jnp.stack([x, y]) for x, y in zip(args, others, strict=True)]

    def mapped_over(chosen):
        axes = tuple(0 if i in chosen else None for i in range(len(args)))
        pairs = zip(stacked, args, strict=True)
        inputs = [many if i in chosen else one for i, (many, one) in enumerate(pairs)]
        # Values over one argument and gradients over all make every rule meet both kinds.
        if len(chosen) < len(args):
            return jax.vmap(lambda *args: (case.call(*args),), axes)(*inputs)
        function = value_and_gradients(case.call, case.differentiable)
        return jax.vmap(function, (None, *axes))(cotangent, *inputs)

    choices = [(i,) for i in range(len(args))] + [tuple(range(len(args)))]
    results = fast_jit(lambda: [mapped_over(chosen) for chosen in choices])()
    for chosen, result in zip(choices, results, strict=True):
        pairs = zip(args, others, strict=True)
        second = [other if i in chosen else one for i, (one, other) in enumerate(pairs)]
        second = compiled(case)(cotangent, *second)
        right = [np.stack(pair) for pair in zip(expected(case), second, strict=True)]
        _assert_close(result, right[: len(result)])


@WITH_OPTIONS
def test_checkpoint_in_scan(case):
    """A loss in a rematerialised step of a loop, as in a training step with accumulation."""

    @fast_jit
    def accumulated(cotangent, *args):
        def repeated(*args):
            def step(carry, scale):
                loss = jax.checkpoint(case.call)(*args)
                return carry + scale * loss, None

            return jax.lax.scan(step, jnp.zeros_like(cotangent), jnp.asarray([0.25, 0.75]))[0]

        return value_and_gradients(repeated, case.differentiable)(cotangent, *args)

    _assert_close(accumulated(_cotangent(case), *case.args()), expected(case))


@WITH_OPTIONS
def test_shard_map(case):
    """Over examples: of two arguments each in turn is replicated, of one none; options are.

    In float64, since the gradients for what is replicated are sums of terms of both signs.
    """
    with jax.enable_x64(True):
        _compare_shards(case, case.args(np.float64), jnp.asarray(cotangent_of(case), np.float64))


def _compare_shards(case, args, cotangent):
    number = min(2, len(jax.devices()))
    mesh = jax.make_mesh((number,), ("examples",), axis_types=(jax.sharding.AxisType.Auto,))
    positional = range(len(case.kinds))
    shards = [[x, x[::-1]][:number] if x.ndim else [x] * number for x in args]
    choices = [(i,) for i in positional] if len(positional) > 1 else [()]
    cotangents = jnp.concatenate([jnp.atleast_1d(k * cotangent) for k in (1, 2)[:number]])

    def inputs(replicated):
        kept = [i in positional and i not in replicated for i in range(len(args))]
        pairs = zip(shards, args, kept, strict=True)
        return [jnp.concatenate(many) if keep else one for many, one, keep in pairs], kept

    def mapped(replicated):
        values, kept = inputs(replicated)
        call = jax.shard_map(
            lambda *args: jnp.atleast_1d(case.call(*args)),
            mesh=mesh,
            in_specs=tuple(P("examples") if keep else P() for keep in kept),
            out_specs=P("examples"),
            check_vma=True,
        )
        out, *gradients = value_and_gradients(call, case.differentiable)(cotangents, *values)
        of_floats, floats = of_some(call, case.differentiable, values)
        tangent = jax.jvp(of_floats, floats, [jnp.ones_like(x) for x in floats])[1]
        return out, gradients, jnp.sum(cotangents * tangent)

    def right(replicated):
        values, kept = inputs(replicated)
        results = []
        for k in range(number):
            pairs = zip(shards, values, kept, strict=True)
            own = [many[k] if keep else one for many, one, keep in pairs]
            results.append(compiled(case)((1 + k) * cotangent, *own))
        outs, *gradients = zip(*results, strict=True)
        kept = [kept[i] for i in case.differentiable]
        gradients = [
            np.concatenate(parts) if keep else sum(map(np.asarray, parts))
            for parts, keep in zip(gradients, kept, strict=True)
        ]
        out = np.concatenate([np.atleast_1d(x) for x in outs])
        return out, gradients, sum(map(np.sum, gradients))

    for result, exact in zip(
        fast_jit(lambda: [mapped(r) for r in choices])(), map(right, choices), strict=True
    ):
        _assert_close(jax.tree.leaves(result), jax.tree.leaves(exact), 1e-12, 1e-13)


@PLAIN
def test_export(case):
    """For every platform at once, and differentiated afterwards."""
    args = case.args()
    here = jax.default_backend()
    platforms = sorted({"cpu", "cuda", "tpu", "cuda" if here == "gpu" else here})
    exported = jax.export.export(jax.jit(case.call), platforms=platforms)(*args)
    function = fast_jit(value_and_gradients(exported.call, case.differentiable))
    _assert_close(function(_cotangent(case), *args), expected(case))


@PLAIN
def test_donation(case):
    """The gradient may take the place of what it is the gradient of."""
    args = case.args()
    first = case.differentiable[0]
    function = value_and_gradients(case.call, (first,))
    gradient = fast_jit(function, donate_argnums=1 + first)
    results = gradient(_cotangent(case), *args)
    assert args[first].is_deleted()
    _assert_close(results, expected(case)[:2])


# The integers' rows of probabilities have a mask beside them.
_LIKELIHOODS = ("cross_entropy_with_integer_labels", "negative_log_likelihood")


@pytest.mark.parametrize(
    "case", [c for c in BARE if c.has_classes and c.name not in _LIKELIHOODS], ids=str
)
def test_linearisation_stores_its_arguments(case):
    """And little for each example, but nothing else that is as large as the first argument."""
    shape = (32, 48)
    args = [
        jax.ShapeDtypeStruct(shape[:1] if kind == "labels" else shape, x.dtype)
        for kind, x in zip(case.kinds, case.args(), strict=True)
    ]

    def stored(*args):
        function, floats = case.of_floats(list(args))
        return jax.linearize(function, *floats)[1], jax.vjp(function, *floats)[1]

    given = sum(x.size for x in args)
    for residuals in jax.eval_shape(stored, *args):
        size = sum(x.size for x in jax.tree.leaves(residuals))
        assert size < given + 0.5 * np.prod(shape)


# Without its caches JAX traces each function at length; these three have every mechanism.
_TRACED = [
    bare("softmax_cross_entropy_with_integer_labels"),
    bare("sigmoid_binary_cross_entropy"),
    bare("linear_softmax_cross_entropy"),
]


@pytest.mark.parametrize("case", quick(BARE, *_TRACED), ids=str)
def test_no_leaked_tracers(case):
    floats, args = case.of_floats(case.args())
    with no_leaks():
        jax.make_jaxpr(jax.grad(lambda *xs: jnp.sum(floats(*xs))))(*args)
        jax.make_jaxpr(lambda *xs: jax.jvp(floats, xs, xs))(*args)


def test_every_kind_of_argument_has_an_example():
    assert {kind for case in BARE for kind in case.kinds} == set(EXAMPLES)
