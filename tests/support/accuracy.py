"""One comparison with the truth, for every loss: value and gradients in one compiled call."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jxent
from support import tolerances
from support.cases import of_some


def double_if(dtype):
    """float64 exists only inside this context."""
    return jax.enable_x64(dtype == "float64")


def check(row, dtype, args, options=None, cotangent=None, **fixed):
    """Compares a function's value and gradients with those of its formula, its row in the table.

    Every floating-point argument is differentiated. The gradient is that of the sum of the results,
    each times its cotangent, for losses of whatever shape. `fixed` are keywords that the formula
    does without.
    """
    with double_if(dtype), tolerances.many_digits(dtype):
        function = functools.partial(getattr(jxent, row.name), **fixed)
        got = value_and_gradients(function, args, cotangent, options or {})
        exact = row.truth(args, options, cotangent)[: len(got)]
        compare(got, exact, tolerances.UNITS[row.family], dtype, args)


def value_and_gradients(function, args, cotangent=None, options=None):
    """The result, and the gradient for each floating-point argument, by one program.

    The options are arguments of the program, so that other values need no other program.
    """
    args = [jnp.asarray(x) for x in args]
    floats = [i for i, x in enumerate(args) if jnp.issubdtype(x.dtype, jnp.floating)]

    def both(options, *args):
        of_floats, given = of_some(functools.partial(function, **options), floats, args)
        out, pullback = jax.vjp(of_floats, *given)
        return out, *pullback(jnp.ones_like(out) if cotangent is None else jnp.asarray(cotangent))

    return jax.jit(both)(options or {}, *args)


def compare(got, exact, units, dtype, args):
    """Each result, the value first, with its exact quantity."""
    value, *gradients = got
    assert value.dtype == tolerances.computing(dtype)
    floats = [x for x in args if jnp.issubdtype(x.dtype, jnp.floating)]
    assert [x.dtype for x in gradients] == [x.dtype for x in floats]
    failed = []
    for i, (result, right) in enumerate(zip(got, exact, strict=True)):
        worst, message = tolerances.worst_error(np.asarray(result), right, units, dtype)
        if not worst <= 1:
            failed.append(f"{f'gradient {i - 1}' if i else 'value'}: {message}")
    assert not failed, "\n".join(failed)
