"""Checks of single arguments, made once, before any mathematics."""

import math
import operator
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from ._autodiff import Public
from ._dtypes import computing_dtype
from ._sharding import explicit_sharding

ArrayLike: TypeAlias = jax.typing.ArrayLike | Sequence["ArrayLike"]
Axis: TypeAlias = int | tuple[int, ...] | None


class Range(NamedTuple):
    """The numbers that an option may be."""

    contains: Callable[[Any], bool]
    wanted: str
    off: str
    """The end of the message: what switches the option off."""


_UNIT = "lie in [0, 1]"
_NOT_NEGATIVE = "be a finite number of at least 0"
RANGES = {
    "label_smoothing": Range(lambda x: 0 <= x <= 1, _UNIT, ""),
    # Outside, one of the two classes would be rewarded for its mistakes.
    "weight": Range(lambda x: 0 <= x <= 1, _UNIT, ""),
    "alpha": Range(lambda x: 0 <= x <= 1, _UNIT, "; None switches it off"),
    "gamma": Range(lambda x: 0 <= x < math.inf, _NOT_NEGATIVE, "; 0 switches it off"),
    "z_loss": Range(lambda x: 0 <= x < math.inf, _NOT_NEGATIVE, "; 0 switches it off"),
    # PolyLoss is also used with a negative epsilon.
    "epsilon": Range(math.isfinite, "be a finite number", "; 0 switches it off"),
    # Infinity is allowed: such a cap changes nothing.
    "softcap": Range(lambda x: x > 0, "be positive", "; None switches it off"),
    "scale": Range(math.isfinite, "be a finite number", "; None switches it off"),
}
"""The range of each option that is a single number, the same in every function."""


def with_hints(**hints: str) -> Callable[[Public], Public]:
    """Says what the decorated function takes in place of keywords that others have."""

    def decorate(function: Public) -> Public:
        @wraps(function)
        def hinting(*args: Any, **options: Any) -> Any:
            if wrong := min(hints.keys() & options.keys(), default=None):
                message = f"{function.__name__} has no argument {wrong!r}, but takes {hints[wrong]}"
                raise TypeError(message)
            return function(*args, **options)

        return cast(Public, hinting)

    return decorate


def floating(name: str, x: ArrayLike) -> jax.Array:
    """`x` as an array of a floating-point dtype."""
    array = any_array(name, x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must have a floating-point dtype, got {array.dtype}")
    return array


def elementwise(
    name: str,
    x: ArrayLike,
    like_name: str,
    like: jax.Array,
    trailing: bool = False,
    repeats: bool = False,
) -> jax.Array:
    """`x` as real numbers in the shape of `like`; one number may stand for all.

    If it is `trailing` it may have only the last axes of `like`. If it `repeats` its dimensions of
    size 1 may stand for others.
    """
    array = real(name, x, like)
    wanted = "last dimensions" if trailing else "shape"
    fitting = ((), like.shape[like.ndim - array.ndim :] if trailing else like.shape)
    if array.shape not in fitting and not (repeats and fits(array.shape, like.shape)):
        raise ValueError(
            f"{name} must have the {wanted} of {like_name} {like.shape} or be a scalar,"
            f" got shape {array.shape}{remedy(name, array.shape, like.shape)}"
        )
    return broadcast(array, like, like.shape, explicit_sharding(like))


def fits(shape: tuple[Any, ...], wanted: tuple[Any, ...]) -> bool:
    """Whether both are the same but for dimensions of size 1, which may be repeated."""
    return len(shape) == len(wanted) and all(
        n == m or n == 1 for n, m in zip(shape, wanted, strict=True)
    )


def remedy(name: str, shape: tuple[Any, ...], wanted: tuple[Any, ...]) -> str:
    """The end of an error: how to make the wanted shape of this one, if that is plain."""
    more = len(wanted) - len(shape)
    for before, after in ((0, more), (more, 0)) if shape and more >= 0 else ():
        part = wanted[before : len(wanted) - after]
        if shape == part or (fits(shape, part) and any(n != 1 for n in shape)):
            index = ", ".join(["None"] * before + [":"] * len(shape) + ["None"] * after)
            return f": write jnp.broadcast_to({name}{f'[{index}]' if more else ''}, {wanted})"
    if more < 0 and [n for n in shape if n != 1] == [n for n in wanted if n != 1]:
        return f": write {name}.reshape({wanted})"
    return ""


def boolean(name: str, x: ArrayLike) -> jax.Array:
    """`x` as an array of truth values."""
    array = any_array(name, x)
    if array.dtype != jnp.bool_:
        raise TypeError(f"{name} must be boolean, got dtype {array.dtype}")
    return array


def scalar(name: str, x: ArrayLike, like: jax.Array) -> jax.Array:
    """The option `x` as one real number of the dtype of `like`.

    A concrete number must lie in its range. The range of a traced number cannot be checked.
    """
    array = real(name, x, like)
    if array.shape != ():
        raise ValueError(f"{name} must be a scalar, got shape {array.shape}")
    number = concrete(x)
    if number is not None:
        # Rounding may move a number out of its range: 1e-300 is 0 in float32.
        with np.errstate(over="ignore", under="ignore"):
            rounded = number.astype(like.dtype)
        contains, wanted, off = RANGES[name.removeprefix("logit_")]
        if not (contains(number) and contains(rounded)):
            raise ValueError(f"{name} must {wanted}, got {x}{off}")
    return array.astype(like.dtype)


def concrete(x: ArrayLike) -> np.ndarray[Any, Any] | None:
    """The numbers of `x`; None if it is traced, or if other processes have some of its numbers."""
    for leaf in jax.tree.leaves(x):
        if isinstance(leaf, jax.core.Tracer):
            return None
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            return None
    return np.asarray(x)


def check_not_negative(name: str, x: ArrayLike | None, remedy: str) -> None:
    """Refuses concrete negative weights of a mean: it divides by their sum, which may vanish."""
    numbers = None if x is None else concrete(x)
    if numbers is not None and np.any(numbers < 0):
        least = np.min(numbers, where=numbers < 0, initial=0)
        raise ValueError(
            f"{name} must not be negative, got {least}: a mean divides by their sum, which may"
            f" vanish. {remedy}"
        )


def is_off(x: ArrayLike) -> bool:
    """Whether the option `x` is a Python 0, so that its term is never traced."""
    return isinstance(x, int | float) and x == 0


def broadcast(
    x: jax.Array,
    like: jax.Array,
    shape: tuple[int, ...],
    sharding: jax.sharding.NamedSharding | None,
) -> jax.Array:
    """`x` in this shape, in its computing dtype if it is repeated.

    The gradient of an array that is repeated is a sum, which 16 bits would round at each step.
    With the sharding of the result, JAX sums over the shards; without it, it would gather them.
    """
    if x.shape == shape:
        return x
    x = x.astype(computing_dtype(x, like))
    return jnp.broadcast_to(x, shape, out_sharding=sharding)


def any_array(name: str, x: ArrayLike) -> jax.Array:
    """`x` as an array of any dtype that JAX has."""
    try:
        # JAX 0.10 may fail in `jnp.asarray` of an array with explicit axes that `jax.vmap` maps.
        array = x if isinstance(x, jax.Array) else jnp.asarray(x)
    except OverflowError as error:
        raise ValueError(f"{name} must fit into {jnp.asarray(0).dtype}: {error}") from error
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array, got {_described(x)}") from error
    numbers = None
    if jnp.issubdtype(array.dtype, jnp.integer) and not isinstance(x, jax.Array):
        numbers = concrete(x)
    if numbers is not None and numbers.dtype != array.dtype:
        # JAX has cut 64 bits to 32 without a warning.
        bounds = np.iinfo(array.dtype)
        beyond = numbers[(numbers < bounds.min) | (numbers > bounds.max)]
        if beyond.size:
            raise ValueError(f"{name} must fit into {array.dtype}, got {beyond[0]}")
    return array


def _described(x: ArrayLike) -> str:
    kind = type(x).__name__
    if isinstance(x, np.ma.MaskedArray):
        return f"{kind} of dtype {x.dtype}: give its data, and its mask as an argument"
    return f"{kind} of dtype {x.dtype}" if hasattr(x, "dtype") else kind


def integer(x: Any) -> int:
    """`x` as an integer; a TypeError for anything else, also for a truth value."""
    if isinstance(x, bool):
        raise TypeError("a truth value is no integer")
    return operator.index(x)


def real(name: str, x: ArrayLike, like: jax.Array) -> jax.Array:
    """`x` as floating-point numbers; other numbers get the computing dtype of `like`."""
    array = any_array(name, x)
    if jnp.issubdtype(array.dtype, jnp.complexfloating) or not (
        jnp.issubdtype(array.dtype, jnp.number) or array.dtype == jnp.bool_
    ):
        raise TypeError(f"{name} must be real numbers, got dtype {array.dtype}")
    if jnp.issubdtype(array.dtype, jnp.floating) and not array.weak_type:
        return array
    return array.astype(computing_dtype(like))


def axes_of(name: str, ndim: int, axis: Axis) -> tuple[int, ...]:
    """`axis` as different numbers in [0, ndim)."""
    if axis is None:
        return tuple(range(ndim))
    try:
        given = [integer(a) for a in (axis if isinstance(axis, tuple) else (axis,))]
    except TypeError:
        raise TypeError(f"axis must be an integer or a tuple of them, got {axis!r}") from None
    if any(not -ndim <= a < ndim for a in given):
        raise ValueError(f"axis must name axes of {name}, which has rank {ndim}, got {axis}")
    axes = tuple(a % ndim for a in given)
    if len(set(axes)) < len(axes):
        raise ValueError(f"axis must not name an axis twice, got {axis}")
    return axes
