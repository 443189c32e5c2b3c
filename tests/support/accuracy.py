"""One comparison with the truth, for every loss: value and gradients in one compiled call."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

import jxent
from support import tolerances
from support.cases import with_gradients


def double_if(dtype):
    """float64 exists only inside this context."""
    return jax.enable_x64(dtype == "float64")


ROWS = 512
"""So many examples are given, repeated, so that every sweep of a function has one program."""


def check(row, dtype, args, options=None, cotangent=None, **fixed):
    """Compares a function's value and gradients with those of its formula, its row in the table.

    Every floating-point argument is differentiated. The gradient is that of the sum of the results,
    each times its cotangent, for losses of whatever shape. `fixed` are keywords that the formula
    does without.
    """
    number = len(args[0])
    assert number <= ROWS
    with double_if(dtype), tolerances.many_digits(dtype):
        exact = row.truth(args, options, cotangent)
        given = [repeated(x) for x in args]
        cotangent = None if cotangent is None else repeated(cotangent)
        results = _program(row.name, tuple(fixed.items()))(options or {}, cotangent, *given)
        got = [x[:number] for x in results]
        compare(got, exact[: len(got)], tolerances.UNITS[row.family], dtype, args)


def repeated(x):
    return jnp.asarray(np.resize(x, (ROWS, *x.shape[1:])))


@functools.cache
def _program(name, fixed):
    function = functools.partial(getattr(jxent, name), **dict(fixed))
    return jax.jit(functools.partial(value_and_gradients, function))


def value_and_gradients(function, options, cotangent, *args):
    """The result, and the gradient for each floating-point argument.

    The options are arguments as well, so that other values need no other program.
    """
    weights = None if cotangent is None else lambda out: cotangent
    out, gradients = with_gradients(functools.partial(function, **options), weights)(*args)
    return out, *(x for x in gradients if x is not None)


def compare(got, exact, units, dtype, args):
    """Each result, the value first, with its exact quantity."""
    value, *gradients = got
    chex.assert_type(value, tolerances.computing(dtype))
    floats = [x for x in args if jnp.issubdtype(x.dtype, jnp.floating)]
    chex.assert_type(gradients, [x.dtype for x in floats])
    failed = []
    for i, (result, right) in enumerate(zip(got, exact, strict=True)):
        worst, message = tolerances.worst_error(np.asarray(result), right, units, dtype)
        if not worst <= 1:
            failed.append(f"{f'gradient {i - 1}' if i else 'value'}: {message}")
    assert not failed, "\n".join(failed)
