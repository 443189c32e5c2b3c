"""One comparison with the truth, for every loss: value and gradients in one compiled call."""

import jax
import jax.numpy as jnp
import mpmath
import tolerances
import truth


def double_if(dtype):
    """float64 exists only inside this context."""
    return jax.enable_x64(dtype == "float64")


def check(function, definition, family, dtype, *args, cotangent=None):
    """Compares the result of `function` and its gradients with those of `definition`.

    Every argument is differentiated. The gradient is that of the sum of the results, for losses of
    whatever shape.
    """
    computing, units = tolerances.computing(dtype), tolerances.UNITS[family]
    with double_if(dtype), mpmath.workdps(tolerances.DIGITS[computing]):
        value, gradients = _evaluate(function, cotangent, *args)
        exact = definition(*(truth.number(x) for x in args))
        assert value.dtype == computing
        quantities = {"value": (value, exact.value)}
        for i, (got, x, right) in enumerate(zip(gradients, args, exact.gradients, strict=True)):
            assert got.dtype == x.dtype
            quantities[f"gradient {i}"] = (got, right)
        errors = {
            what: tolerances.worst_error(got, right, units, dtype)
            for what, (got, right) in quantities.items()
        }
    failed = [f"{what}: {message}" for what, (worst, message) in errors.items() if not worst <= 1]
    assert not failed, "\n".join(failed)


def _evaluate(function, cotangent, *args):
    def both(*args):
        out, pullback = jax.vjp(function, *args)
        return out, pullback(jnp.ones_like(out) if cotangent is None else jnp.asarray(cotangent))

    return jax.jit(both)(*(jnp.asarray(x) for x in args))
