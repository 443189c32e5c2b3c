"""A user's loss as a program of arrays alone.

What the loss closes over may be traced and differentiated. A gradient rule must have such an array
as an argument: otherwise its gradient would be missing, or its tracer would leak.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._arguments import any_array
from .chunks import Arrays, Name


class Program(NamedTuple):
    """A loss that has been traced for a number of examples."""

    jaxpr: Any
    captured: tuple[int, ...]
    """Which of all captured arrays it takes first."""

    def __call__(self, captured: list[Any], leaves: list[jax.Array]) -> list[jax.Array]:
        chosen = [captured[i] for i in self.captured]
        # Arrays that are differentiated come in their computing dtype.
        constants, args = (
            [_as(variable.aval.dtype, x) for variable, x in zip(variables, given, strict=True)]
            for variables, given in (
                (self.jaxpr.constvars, chosen),
                (self.jaxpr.invars, leaves),
            )
        )
        outs: list[jax.Array] = jax.core.eval_jaxpr(self.jaxpr, constants, *args)
        return outs


def _as(dtype: Any, x: Any) -> jax.Array:
    array = jnp.asarray(x)
    return array if array.dtype == dtype else array.astype(dtype)


@dataclasses.dataclass(eq=False)
class Loss:
    """A function that the user gives, which becomes the loss of a plan by being traced.

    It is traced anew in each call: what it closes over may be another tracer each time, which a
    cache would not see.
    """

    function: Callable[..., Any]
    arguments: Any
    """The structure of its positional arguments."""
    leaves: tuple[Name, ...]
    """The names of the leaves of its arguments; "inputs" for linear logits."""
    reduced: bool
    """Whether it returns one array, whose sum is wanted."""
    has_aux: bool
    programs: dict[Any, Program] = dataclasses.field(default_factory=dict)
    """By number of examples."""
    captured: list[Any] = dataclasses.field(default_factory=list)
    """The arrays that it closes over."""
    is_out: tuple[bool, ...] = ()
    """Which leaves of its result are differentiated."""
    result: Any = None
    """The structure of its result."""

    def __call__(self, logits: list[jax.Array], arrays: Arrays) -> Any:
        """``(outs, aux)``, as in `Plan`."""
        captured = [arrays[Name("captured", i)] for i in range(len(self.captured))]
        leaves = self._leaves(logits, arrays)
        return self._split(self.programs[leaves[0].shape[0]](captured, leaves))

    def trace(self, logits: list[jax.Array], arrays: Arrays) -> Any:
        """The same, after it has been found out what the function closes over."""
        leaves = self._leaves(logits, arrays)
        size = leaves[0].shape[0]

        def function(*leaves: jax.Array) -> Any:
            return self._checked(self.function(*jax.tree.unflatten(self.arguments, leaves)), size)

        closed = jax.make_jaxpr(function)(*leaves)
        program = Program(closed.jaxpr, tuple(map(self._place, closed.consts)))
        self.programs[size] = program
        return self._split(program(self.captured, leaves))

    def assembled(self, outs: tuple[Any, ...], aux: tuple[Any, ...]) -> Any:
        """What there is for each example, from what is differentiated and what is not.

        Losses that have been reduced are missing.
        """
        of_outs, of_aux = iter(outs), iter(aux)
        leaves = [next(of_outs if is_out else of_aux, None) for is_out in self.is_out]
        losses, more = jax.tree.unflatten(self.result, leaves)
        return more if self.reduced else (losses, more) if self.has_aux else losses

    def shares(self, arrays: Arrays) -> None:
        """Nothing but the weights divides a mean."""

    def _leaves(self, logits: list[jax.Array], arrays: Arrays) -> list[jax.Array]:
        return [
            logits[name.which] if name.kind == "inputs" else arrays[name]  # type: ignore[index]
            for name in self.leaves
        ]

    def _place(self, x: Any) -> int:
        for i, known in enumerate(self.captured):
            if known is x:
                return i
        self.captured.append(x)
        return len(self.captured) - 1

    def _split(self, leaves: list[jax.Array]) -> Any:
        outs = tuple(x for x, is_out in zip(leaves, self.is_out, strict=True) if is_out)
        aux = tuple(x for x, is_out in zip(leaves, self.is_out, strict=True) if not is_out)
        return outs, aux

    def _checked(self, result: Any, size: Any) -> list[jax.Array]:
        """The leaves of what the function returns."""
        if not self.has_aux:
            result = (result, ())
        elif not (isinstance(result, tuple) and len(result) == 2):
            got = "an array" if isinstance(result, jax.Array) else type(result).__name__
            raise TypeError(
                f"loss must return a pair (losses, aux) where has_aux is True, got {got}"
            )
        found, self.result = jax.tree_util.tree_flatten_with_path(result)
        leaves = [_one_per_example(jax.tree_util.keystr(path), x, size) for path, x in found]
        number = len(jax.tree.leaves(result[0]))
        if number == 0:
            raise TypeError("loss must return at least one array, got nothing")
        floating = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]
        self.is_out = tuple(x and i < number for i, x in enumerate(floating))
        if self.reduced and not (number == 1 and floating[0]):
            got = ", ".join(f"{x.dtype}" for x in leaves[:number])
            raise TypeError(f"loss must return one floating-point array to be reduced, got {got}")
        return leaves


def _one_per_example(path: str, x: Any, size: Any) -> jax.Array:
    array = any_array(f"what loss returns{path and ' at '}{path}", x)
    if array.shape != (size,):
        raise ValueError(
            f"loss must return one number for each of the {size} examples of a chunk, shape"
            f" ({size},), got shape {array.shape}{path and ' at '}{path}"
        )
    return array
