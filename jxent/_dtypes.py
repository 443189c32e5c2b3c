"""The dtype that the losses of given arrays are computed in."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def computing_dtype(*arrays: jax.Array | None) -> np.dtype[Any]:
    """float64 if any of the arrays has it, else float32."""
    double = any(x is not None and x.dtype == np.float64 for x in arrays)
    return np.dtype(np.float64 if double else np.float32)


def upcast(*arrays: jax.Array | None) -> tuple[Any, ...]:
    """The arrays in their common computing dtype; None stays None."""
    dtype = computing_dtype(*arrays)
    return tuple(None if x is None else widened(x, dtype) for x in arrays)


def widened(x: jax.Array, dtype: np.dtype[Any]) -> jax.Array:
    """The array in a dtype that is not narrower, rounded to the bits of its own dtype.

    XLA may compute an array of 16 bits in 32, and not round it. Then some readers of the logits
    would see rounded numbers and others not: the label's logit could differ from the maximum, which
    is the same number.
    """
    is_narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4
    if not is_narrow:
        return x.astype(dtype)
    finfo: Any = jnp.finfo
    bits = {"exponent_bits": 8, "mantissa_bits": finfo(x.dtype).nmant}
    return jax.lax.reduce_precision(x.astype(np.float32), **bits).astype(dtype)


def widened_bits(x: jax.Array) -> jax.Array:
    """`widened` for bfloat16, without a derivative; arrays of other dtypes come back as they are.

    A GPU moves the bits of a number in one instruction. It rounds a number in seven.
    """
    if x.dtype != jnp.bfloat16:
        return x
    bits = jax.lax.bitcast_convert_type(x, np.uint16).astype(np.uint32)
    return jax.lax.bitcast_convert_type(bits << 16, np.float32)
