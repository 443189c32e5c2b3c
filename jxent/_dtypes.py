"""The dtype that the losses of given arrays are computed in."""

from typing import Any

import jax
import numpy as np


def computing_dtype(*arrays: jax.Array | None) -> np.dtype[Any]:
    """float64 if any of the arrays has it, else float32."""
    double = any(x is not None and x.dtype == np.float64 for x in arrays)
    return np.dtype(np.float64 if double else np.float32)


def upcast(*arrays: jax.Array | None) -> tuple[Any, ...]:
    """The arrays in their common computing dtype; None stays None."""
    dtype = computing_dtype(*arrays)
    return tuple(None if x is None else x.astype(dtype) for x in arrays)
