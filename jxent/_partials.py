"""Losses of probabilities: gradient rules made of partial derivatives."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ._autodiff import with_gradient
from ._statistics import upcast


def loss_with_partials(
    *partials: Callable[..., jax.Array], axis: tuple[int, ...] = ()
) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
    """Makes the decorated function a loss of arrays of any floating-point dtype.

    The function is elementwise, or a sum over `axis`; it and its partial derivatives, which are
    elementwise, get the arrays in their computing dtype. A partial derivative times the cotangent
    is the gradient for its argument.
    """

    def decorate(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        def fwd(*args: jax.Array) -> tuple[jax.Array, Any]:
            return function(*upcast(*args)), args

        def bwd(args: Any, cotangent: jax.Array) -> tuple[jax.Array, ...]:
            cotangent, given = jnp.expand_dims(cotangent, axis), upcast(*args)
            return tuple(
                (cotangent * to_argument(*given)).astype(x.dtype)
                for to_argument, x in zip(partials, args, strict=True)
            )

        return with_gradient(fwd, bwd)

    return decorate
