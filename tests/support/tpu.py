"""A TPU's arithmetic on a CPU.

The package is compiled as for a TPU, and the operations of JAX err by as much as JAX publishes for
that TPU. Whether an error is positive, and how large it is, follows from the bits of the result.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

# JAX offers no other way to see or to take back the rule that makes an operation's instructions.
from jax._src.interpreters import mlir

from jxent import _numerics
from jxent._selftest.devices import ERRORS
from jxent._statistics.platforms import PLATFORMS

OPERATIONS = {
    "div": "reciprocal",
    **{name: name for name in ("exp", "expm1", "log", "log1p", "tanh", "logistic")},
    **{name: name for name in ("sqrt", "rsqrt")},
    # The instruction for a power is an exponential of a logarithm, both to the base 2.
    "pow": "log2",
}
"""The operations of JAX, and the rows of the table of errors."""

KINDS = ("drawn", "largest", "uncorrected")
"""Errors that are drawn; the largest ones, all positive; and drawn ones that nothing corrects."""

ARITHMETICS = [f"{device}-{kind}" for device in ("v5e", "v5p", "v6e") for kind in KINDS]


@contextlib.contextmanager
def arithmetic(name):
    """Compiles for the CPU as for this TPU."""
    device, kind = name.split("-")
    of_cpu, before = mlir._platform_specific_lowerings["cpu"], PLATFORMS["cpu"]
    saved = dict(of_cpu)
    for operation, row in OPERATIONS.items():
        primitive = getattr(jax.lax, f"{operation}_p")
        entry = mlir._lowerings[primitive]
        plain = getattr(entry, "rule", entry)  # JAX 0.10 keeps the rule alone.
        of_single = functools.partial(_in_single, primitive, row, device, kind == "largest")
        rule = functools.partial(_lower, plain, mlir.lower_fun(of_single, multiple_results=False))
        mlir.register_lowering(primitive, rule, "cpu")
    for operation, (function, form) in _numerics.FORMS.items():
        chosen = function if kind == "uncorrected" else form
        mlir.register_lowering(operation, mlir.lower_fun(chosen, multiple_results=False), "cpu")
    PLATFORMS["cpu"] = PLATFORMS["tpu"]
    jax.clear_caches()
    try:
        yield
    finally:
        of_cpu.clear()
        of_cpu.update(saved)
        PLATFORMS["cpu"] = before
        jax.clear_caches()


def _lower(plain, of_single, context, *args, **parameters):
    (aval,) = context.avals_out
    return (of_single if aval.dtype == np.float32 else plain)(context, *args, **parameters)


def _in_single(primitive, row, device, is_largest, *args, **parameters):
    """The operation in float64, rounded, and then moved.

    A CPU's own float32 functions have other errors, which would be added to those of the device.
    """
    if parameters.get("accuracy") == jax.lax.AccuracyMode.HIGHEST:
        row = f"{row} highest" if f"{row} highest" in ERRORS else row
    with jax.enable_x64(True):
        exact = primitive.bind(*(x.astype(np.float64) for x in args), **parameters)
        rounded = exact.astype(np.float32)
    # The rounding is half a unit of the error.
    return _erroneous(rounded, int(getattr(ERRORS[row], device) - 0.5), is_largest)


def _erroneous(x, units, is_largest):
    """`x`, off by so many units in the last place, or by at most so many."""
    bits = jax.lax.bitcast_convert_type(x, np.int32)
    # A multiplicative hash: the upper bits of the product depend on all bits of the number.
    drawn = (bits * np.int32(-1640531527)).astype(np.float32) * np.float32(2**-31)
    error = jnp.full(x.shape, units) if is_largest else jnp.round(units * drawn).astype(np.int32)
    # A power of two stays, and so does the exponent: beyond it the units are others.
    mantissa = bits & 0x7FFFFF
    erroneous = jnp.where(mantissa == 0, 0, jnp.clip(mantissa + error, 0, 0x7FFFFF))
    moved = jax.lax.bitcast_convert_type((bits & ~0x7FFFFF) | erroneous, np.float32)
    return jnp.where(jnp.isfinite(x) & (jnp.abs(x) >= np.finfo(np.float32).tiny), moved, x)
