"""A user's loss as a program of arrays alone.

What the loss closes over may be traced and differentiated. A gradient rule must have such an array
as an argument: otherwise its gradient would be missing, or its tracer would leak.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from .._arguments import any_array
from .chunks import Arrays, Name


class Program(NamedTuple):
    """A loss that has been traced for a number of examples."""

    jaxpr: Any
    captured: tuple[int, ...]
    """Which of all captured arrays it takes first."""

    @classmethod
    def of(cls, function: Callable[..., Any], leaves: list[jax.Array], captured: list[Any]) -> Self:
        """The program of a function, with what it closes over among `captured`."""
        closed = jax.make_jaxpr(function)(*leaves)
        places = tuple(_place(captured, x) for x in closed.consts)
        constants, number = closed.consts, len(closed.consts)

        def without_closure(*args: jax.Array) -> list[Any]:
            return jax.core.eval_jaxpr(closed.jaxpr, args[:number], *args[number:])

        # The first program holds the arrays, which may be tracers; this one must not.
        return cls(jax.make_jaxpr(without_closure)(*constants, *leaves).jaxpr, places)

    def __call__(self, captured: Any, leaves: list[jax.Array]) -> list[jax.Array]:
        args = [*(captured[i] for i in self.captured), *leaves]
        # Arrays that are differentiated come in their computing dtype.
        args = [_as(v.aval.dtype, x) for v, x in zip(self.jaxpr.invars, args, strict=True)]
        outs: list[jax.Array] = jax.core.eval_jaxpr(self.jaxpr, (), *args)
        return outs


def _place(captured: list[Any], x: Any) -> int:
    """Where the array is among those that are known, of which it may become one."""
    for i, known in enumerate(captured):
        if known is x:
            return i
    captured.append(x)
    return len(captured) - 1


def _as(dtype: Any, x: Any) -> jax.Array:
    array = jnp.asarray(x)
    return array if array.dtype == dtype else array.astype(dtype)


@dataclasses.dataclass(frozen=True, eq=False)
class Traced:
    """A user's function as the loss of a plan. It holds no array that the function closes over."""

    programs: dict[Any, Program]
    """By number of examples."""
    leaves: tuple[Name, ...]
    """The names of the function's arguments; "inputs" for linear logits."""
    result: "Result"

    def __call__(self, logits: list[jax.Array], arrays: Arrays) -> Any:
        """``(outs, aux)``, as in `Plan`."""
        leaves = _leaves(self.leaves, logits, arrays)
        captured = {name.which: x for name, x in arrays.items() if name.kind == "captured"}
        return self.result.split(self.programs[leaves[0].shape[0]](captured, leaves))

    def assembled(self, outs: tuple[Any, ...], aux: tuple[Any, ...]) -> Any:
        """What there is for each example, from what is differentiated and what is not.

        Losses that have been reduced are missing.
        """
        return self.result.assembled(outs, aux)

    def shares(self, arrays: Arrays) -> None:
        """Nothing but the weights divides a mean."""


class Result(NamedTuple):
    """What a function returns."""

    tree: Any
    is_out: tuple[bool, ...]
    """Which of its leaves are differentiated."""
    reduced: bool
    has_aux: bool

    def split(self, leaves: list[jax.Array]) -> tuple[tuple[jax.Array, ...], ...]:
        """What is differentiated, and what is not."""
        outs = tuple(x for x, is_out in zip(leaves, self.is_out, strict=True) if is_out)
        aux = tuple(x for x, is_out in zip(leaves, self.is_out, strict=True) if not is_out)
        return outs, aux

    def assembled(self, outs: tuple[Any, ...], aux: tuple[Any, ...]) -> Any:
        """The other way round."""
        of_outs, of_aux = iter(outs), iter(aux)
        leaves = [next(of_outs if is_out else of_aux, None) for is_out in self.is_out]
        losses, more = jax.tree.unflatten(self.tree, leaves)
        return more if self.reduced else (losses, more) if self.has_aux else losses


@dataclasses.dataclass(frozen=True)
class Loss:
    """A function that the user gives.

    It is traced anew in each call: what it closes over may be another tracer each time, which a
    cache would not see.
    """

    function: Callable[..., Any]
    arguments: Any
    """The structure of its positional arguments."""
    leaves: tuple[Name, ...]
    """The names of their leaves; "inputs" for linear logits."""
    reduced: bool
    """Whether it returns one array, whose sum is wanted."""
    has_aux: bool

    def traced(self, run: Callable[[Any], None]) -> tuple[Traced, Arrays]:
        """The loss of a plan, and the arrays that it closes over.

        Args:
          run: abstractly evaluates something with a loss, for every number of examples.
        """
        programs: dict[Any, Program] = {}
        captured: list[Any] = []
        result: list[Result] = []

        def trace(logits: list[jax.Array], arrays: Arrays) -> Any:
            leaves = _leaves(self.leaves, logits, arrays)
            size = leaves[0].shape[0]

            def function(*leaves: jax.Array) -> list[jax.Array]:
                found = self.function(*jax.tree.unflatten(self.arguments, leaves))
                outs, form = self._checked(found, size)
                result[:] = [form]
                return outs

            programs[size] = Program.of(function, leaves, captured)
            return result[0].split(programs[size](captured, leaves))

        run(trace)
        arrays = {Name("captured", i): jnp.asarray(x) for i, x in enumerate(captured)}
        return Traced(programs, self.leaves, result[0]), arrays

    def _checked(self, result: Any, size: Any) -> tuple[list[jax.Array], Result]:
        """The leaves of what the function returns, and their form."""
        if not self.has_aux:
            result = (result, ())
        elif not (isinstance(result, tuple) and len(result) == 2):
            got = "an array" if isinstance(result, jax.Array) else type(result).__name__
            raise TypeError(
                f"loss must return a pair (losses, aux) where has_aux is True, got {got}"
            )
        found, tree = jax.tree_util.tree_flatten_with_path(result)
        leaves = [_one_per_example(jax.tree_util.keystr(path), x, size) for path, x in found]
        number = len(jax.tree.leaves(result[0]))
        if number == 0:
            raise TypeError("loss must return at least one array, got nothing")
        floating = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]
        is_out = tuple(x and i < number for i, x in enumerate(floating))
        if self.reduced and not (number == 1 and floating[0]):
            got = ", ".join(f"{x.dtype}" for x in leaves[:number])
            raise TypeError(f"loss must return one floating-point array to be reduced, got {got}")
        return leaves, Result(tree, is_out, self.reduced, self.has_aux)


def _leaves(names: tuple[Name, ...], logits: list[jax.Array], arrays: Arrays) -> list[jax.Array]:
    return [logits[int(name.which)] if name.kind == "inputs" else arrays[name] for name in names]


def _one_per_example(path: str, x: Any, size: Any) -> jax.Array:
    array = any_array(f"what loss returns{path and ' at '}{path}", x)
    if array.shape != (size,):
        raise ValueError(
            f"loss must return one number for each of the {size} examples of a chunk, shape"
            f" ({size},), got shape {array.shape}{path and ' at '}{path}"
        )
    return array
