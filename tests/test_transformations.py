"""Every function under JAX's transformations, one after the other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BARE, CASES, EXAMPLES
from jax.sharding import PartitionSpec as P

PLAIN = pytest.mark.parametrize("case", BARE, ids=str)
WITH_OPTIONS = pytest.mark.parametrize("case", CASES, ids=str)


def _weighted_sum(x):
    return jnp.sum(x * jnp.linspace(0.5, 1.0, x.size, dtype=x.dtype).reshape(x.shape))


def _value_and_gradient(case, call=None):
    """The outputs, and the gradient of a weighted sum of them, as a function of the arguments."""
    call = call or case.call

    def function(*args):
        def total(*args):
            out = call(*args)
            return _weighted_sum(out), out

        gradients, out = jax.grad(total, case.differentiable, has_aux=True)(*args)
        return out, *gradients

    return function


@functools.cache
def _plain(case):
    return tuple(map(np.asarray, jax.jit(_value_and_gradient(case))(*case.args())))


def _assert_close(actual, expected, rtol=4e-6):
    assert len(actual) == len(expected)
    for x, y in zip(actual, expected, strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7)


@PLAIN
def test_jit(case):
    _assert_close((jax.jit(case.call)(*case.args()),), (case.call(*case.args()),))


@WITH_OPTIONS
def test_vmap(case):
    """Over each argument alone, and over all at once."""
    args = case.args()
    others = [x[::-1] if x.ndim else x / 2 for x in args]
    stacked = [jnp.stack([x, y]) for x, y in zip(args, others, strict=True)]
    single = jax.jit(_value_and_gradient(case))

    def mapped_over(chosen):
        axes = tuple(0 if i in chosen else None for i in range(len(args)))
        pairs = zip(stacked, args, strict=True)
        inputs = [many if i in chosen else one for i, (many, one) in enumerate(pairs)]
        # Values over one argument and gradients over all make every rule meet both kinds.
        function = _value_and_gradient(case) if len(chosen) == len(args) else of_values
        return jax.vmap(function, axes)(*inputs)

    def of_values(*args):
        return (case.call(*args),)

    choices = [(i,) for i in range(len(args))] + [tuple(range(len(args)))]
    results = jax.jit(lambda: [mapped_over(chosen) for chosen in choices])()
    for chosen, result in zip(choices, results, strict=True):
        pairs = zip(args, others, strict=True)
        second = [other if i in chosen else one for i, (one, other) in enumerate(pairs)]
        expected = [np.stack(pair) for pair in zip(single(*args), single(*second), strict=True)]
        _assert_close(result, expected[: len(result)])


@WITH_OPTIONS
def test_checkpoint_in_scan(case):
    """A loss in a rematerialised step of a loop, as in a training step with accumulation."""
    args = case.args()

    @jax.jit
    def accumulated(*args):
        def total(*args):
            def step(carry, scale):
                loss = jax.checkpoint(case.call)(*args)
                return carry + scale * _weighted_sum(loss), loss

            scales = jnp.asarray([0.25, 0.75])
            carry, losses = jax.lax.scan(step, jnp.zeros(()), scales)
            return carry, losses[1]

        gradients, out = jax.grad(total, case.differentiable, has_aux=True)(*args)
        return out, *gradients

    _assert_close(accumulated(*args), _plain(case))


def _mesh():
    number = min(2, len(jax.devices()))
    return jax.make_mesh((number,), ("examples",), axis_types=(jax.sharding.AxisType.Auto,))


@WITH_OPTIONS
def test_shard_map(case):
    """Over examples: of two arguments each in turn is replicated, of one none; options are."""
    mesh = _mesh()
    args, positional = case.args(), range(len(case.kinds))
    copies = mesh.devices.size
    sharded = [jnp.concatenate([x, x[::-1]][:copies]) if x.ndim else x for x in args]
    choices = [(i,) for i in positional] if len(positional) > 1 else [()]

    def local(*args):
        return jnp.atleast_1d(case.call(*args))

    def inputs(replicated):
        kept = [i in positional and i not in replicated for i in range(len(args))]
        specs = tuple(P("examples") if keep else P() for keep in kept)
        return [s if keep else x for s, x, keep in zip(sharded, args, kept, strict=True)], specs

    def mapped(replicated):
        values, specs = inputs(replicated)
        call = jax.shard_map(
            local, mesh=mesh, in_specs=specs, out_specs=P("examples"), check_vma=True
        )
        dots = [jnp.ones_like(values[i]) for i in case.differentiable]

        def of_floats(*floats):
            return call(*_with(values, case.differentiable, floats))

        floats = [values[i] for i in case.differentiable]
        dot = jax.jvp(of_floats, floats, dots)[1]
        return *_value_and_gradient(case, call)(*values), dot

    def reference(replicated):
        values, specs = inputs(replicated)
        axes = [None if spec == P() else 0 for spec in specs]

        def call(*args):
            shards = [
                x if axis is None else x.reshape(copies, -1, *x.shape[1:])
                for x, axis in zip(args, axes, strict=True)
            ]
            out = jax.vmap(local, axes)(*shards)
            return out.reshape(-1, *out.shape[2:])

        def of_floats(*floats):
            return call(*_with(values, case.differentiable, floats))

        floats = [values[i] for i in case.differentiable]
        dot = jax.jvp(of_floats, floats, [jnp.ones_like(x) for x in floats])[1]
        return *_value_and_gradient(case, call)(*values), dot

    results = jax.jit(lambda: [mapped(r) for r in choices])()
    references = jax.jit(lambda: [reference(r) for r in choices])()
    for result, expected in zip(results, references, strict=True):
        _assert_close(result, expected)


def _with(args, positions, values):
    full = list(args)
    for i, x in zip(positions, values, strict=True):
        full[i] = x
    return full


@PLAIN
def test_export(case):
    """For every platform at once, and differentiated afterwards."""
    args = case.args()
    here = jax.default_backend()
    platforms = sorted({"cpu", "cuda", "tpu", "cuda" if here == "gpu" else here})
    exported = jax.export.export(jax.jit(case.call), platforms=platforms)(*args)
    _assert_close(jax.jit(_value_and_gradient(case, exported.call))(*args), _plain(case))


@PLAIN
def test_donation(case):
    """The gradient may take the place of what it is the gradient of."""
    args = case.args()
    first = case.differentiable[0]
    gradient = jax.jit(lambda *args: _value_and_gradient(case)(*args)[:2], donate_argnums=first)
    results = gradient(*args)
    assert args[first].is_deleted()
    _assert_close(results, _plain(case)[:2])


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


@PLAIN
def test_no_leaked_tracers(case):
    floats, args = case.of_floats(case.args())
    with jax.check_tracer_leaks():
        jax.make_jaxpr(jax.grad(lambda *xs: _weighted_sum(floats(*xs))))(*args)
        jax.make_jaxpr(lambda *xs: jax.jvp(floats, xs, xs))(*args)


@PLAIN
def test_debug_nans(case):
    """No NaN on the way, eager, to a result that is none."""
    with jax.debug_nans(True):
        _assert_close(_value_and_gradient(case)(*case.args()), _plain(case))


@pytest.mark.parametrize(
    "case", [c for c in BARE if c.has_classes and c.kinds[0] == "logits"], ids=str
)
def test_class_axis_sharded(case):
    """Under automatic sharding the classes may be spread over devices."""
    mesh = _mesh()
    args = case.args()

    def spread(x):
        return jnp.concatenate([x, x], axis=-1) if x.ndim == 2 else x

    args = [spread(x) for x in args]
    sharding = jax.sharding.NamedSharding(mesh, P(None, "examples"))
    placed = [jax.device_put(x, sharding) if x.ndim == 2 else x for x in args]
    function = jax.jit(_value_and_gradient(case))
    _assert_close(function(*placed), function(*args))


def test_every_kind_of_argument_has_an_example():
    assert {kind for case in BARE for kind in case.kinds} == set(EXAMPLES)
