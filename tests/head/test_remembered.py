"""Eager calls of `chunked` compile once, unless the loss may have changed."""

import functools
import gc
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent

X, W = np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3), np.eye(3, 4, dtype=np.float32)
LOGITS = jxent.LinearLogits(X, W)
temperature = 2.0


def result_of(loss, **options):
    """The loss, as a new function that `chunked` makes, as notebooks do."""
    return jxent.chunked(loss, chunk_size=2, **options)(LOGITS)


def expected(temperature):
    return jxent.softmax_entropy(X @ W / temperature)


@pytest.fixture
def compilations(caplog):
    """How many programs a function compiles."""

    def count(function):
        caplog.clear()
        with jax.log_compiles():
            function()
        return sum(record.message.startswith("Compiling") for record in caplog.records)

    return count


def constant(logits):
    return jxent.softmax_entropy(logits / 2)


class Cooled:
    """An object that may change."""

    def __init__(self):
        self.temperature = 2.0

    def __call__(self, logits):
        return jxent.softmax_entropy(logits / self.temperature)


ARRAY = jnp.float32(2)
REMEMBERED = {
    "a function": constant,
    "a public function": jxent.softmax_entropy,
    "what closes over a number": (lambda t: lambda z: jxent.softmax_entropy(z / t))(2.0),
    "what closes over an array": lambda z: jxent.softmax_entropy(z / ARRAY),
    "what calls a function": lambda z: constant(z),
    "a partial function": functools.partial(lambda t, z: jxent.softmax_entropy(z / t), 2.0),
    "a jitted function": jax.jit(constant),
    "a default": lambda z, t=2.0: jxent.softmax_entropy(z / t),
    "one that calls itself": lambda z, n=1: calls_itself(z, n),
}


def calls_itself(z, n):
    return calls_itself(z, n - 1) if n else constant(z)


@pytest.mark.parametrize("kind", REMEMBERED)
def test_a_second_call_compiles_nothing(kind, compilations):
    loss = REMEMBERED[kind]
    first = result_of(loss)
    assert compilations(lambda: result_of(loss)) == 0
    np.testing.assert_array_equal(result_of(loss), first)
    other = jxent.LinearLogits(X[:3], W)
    np.testing.assert_allclose(jxent.chunked(loss)(other), first[:3], rtol=1e-6)


def test_a_loss_of_code_that_has_no_module():
    """As of `exec` with a dictionary of its own."""
    names = {"jxent": jxent}
    exec("def loss(logits): return jxent.softmax_entropy(logits / 2)", names)
    assert "__name__" not in names
    np.testing.assert_array_equal(result_of(names["loss"]), result_of(constant))


def test_gradients_and_options(compilations):
    def value_and_gradients(**options):
        mean = jxent.chunked(constant, reduction="mean", **options)
        return jax.value_and_grad(mean)(LOGITS)

    value, gradients = value_and_gradients(chunk_size=2)
    assert compilations(lambda: value_and_gradients(chunk_size=2)) == 0
    assert compilations(lambda: value_and_gradients(chunk_size=1)) > 0
    exact = jax.value_and_grad(lambda x: jnp.mean(constant(x @ W)))(X)
    np.testing.assert_allclose(value, exact[0], rtol=1e-6)
    np.testing.assert_allclose(gradients.inputs, exact[1], rtol=1e-5, atol=1e-7)
    with jax.enable_x64(True):
        assert jax.tree.map(lambda x: x.dtype, result_of(constant)) == np.float32
        wide = jxent.LinearLogits(X.astype(np.float64), W)
        assert jxent.chunked(constant)(wide).dtype == np.float64


def test_changes_of_what_it_closes_over():
    """Another number, array or function counts at the next call."""
    global temperature
    array, inner = jnp.float32(2), constant
    module = types.ModuleType("settings")
    module.temperature = 2.0

    def local(logits):
        return jxent.softmax_entropy(logits / array)

    def of_global(logits):
        return jxent.softmax_entropy(logits / temperature)

    def nested(logits):
        return (lambda z: jxent.softmax_entropy(z / temperature))(logits)

    def of_function(logits):
        return inner(logits)

    def of_module(logits):
        return jxent.softmax_entropy(logits / module.temperature)

    def of_attribute(logits):
        return jxent.softmax_entropy(logits / of_attribute.temperature)

    of_attribute.temperature = 2.0
    losses = local, of_global, nested, of_function, of_module, of_attribute
    for loss in losses:
        np.testing.assert_allclose(result_of(loss), expected(2), rtol=1e-6)
    array, inner = jnp.float32(4), lambda z: jxent.softmax_entropy(z / 4)
    temperature = module.temperature = of_attribute.temperature = 4.0
    try:
        for loss in losses:
            np.testing.assert_allclose(result_of(loss), expected(4), rtol=1e-6)
    finally:
        temperature = 2.0


def test_changes_in_place():
    cooled, array, settings = Cooled(), np.array(2, np.float32), {"temperature": 2.0}
    losses = (
        cooled,
        cooled.__call__,
        lambda z: cooled(z),
        lambda z: jxent.softmax_entropy(z / array),
        lambda z: jxent.softmax_entropy(z / settings["temperature"]),
        functools.partial(lambda a, z: jxent.softmax_entropy(z / a), array),
        lambda z, get=settings.get: jxent.softmax_entropy(z / get("temperature")),
    )
    for loss in losses:
        np.testing.assert_allclose(result_of(loss), expected(2), rtol=1e-6)
    cooled.temperature, array[()], settings["temperature"] = 4.0, 4, 4.0
    for loss in losses:
        np.testing.assert_allclose(result_of(loss), expected(4), rtol=1e-6)


def test_tracers_that_it_closes_over():
    """Also where the function closes over an array at one time, and over a tracer at another."""
    temperature = jnp.float32(2)

    def loss(logits):
        return jxent.softmax_entropy(logits / temperature)

    def total(t):
        nonlocal temperature
        temperature = t
        return jnp.sum(result_of(loss))

    before = total(temperature)
    slope = jax.grad(total)(jnp.float32(2))
    exact = jax.grad(lambda t: jnp.sum(jxent.softmax_entropy(X @ W / t)))(jnp.float32(2))
    np.testing.assert_allclose(slope, exact, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(total)(4.0), jnp.sum(expected(4)), rtol=1e-6)
    np.testing.assert_array_equal(total(jnp.float32(2)), before)


def test_nothing_is_kept():
    """Of a function that is gone, and of what it closed over."""

    def use():
        array = jnp.arange(1.0, 5.0)

        def loss(logits):
            return jxent.softmax_entropy(logits * array[None])

        result_of(loss)
        return weakref.ref(loss), weakref.ref(array)

    found = use()
    gc.collect()
    assert [ref() for ref in found] == [None, None]
