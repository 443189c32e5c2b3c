"""The plan of a head's program: the names of its arrays, and the loss of a chunk.

A user's loss becomes a program of arrays alone. An array that it closes over may be traced and
differentiated. A gradient rule must have such an array as an argument: otherwise its gradient would
be missing, or its tracer would leak.
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, TypeVar

import jax
import jax.numpy as jnp

from .._arguments import any_array
from .._sharding import MeshAxes

Out = TypeVar("Out")


# ---------------------------------------- Arrays


class Name(NamedTuple):
    """The name of an array: its kind, and which of that kind it is."""

    kind: str
    which: int | str = 0

    def __str__(self) -> str:
        if isinstance(self.which, str):
            return self.which
        return f"{self.kind} {self.which}" if self.which else self.kind


Arrays: TypeAlias = dict[Name, jax.Array]
COUNTED, WEIGHTS = Name("counted", "where"), Name("weights")
DIMENSIONS = {
    "inputs": "ef",
    "kernel": "fc",
    "bias": "c",
    "scale": "",
    "softcap": "",
    "class_mask": "c",
    "of examples": "e",
    "of classes": "c",
    "shared": "",
    "captured": "",
    "counted": "e",
    "weights": "e",
    "cotangents": "e",
}
"""The dimensions of each kind: e for the examples, f for the features, c for the classes.

The first six kinds are the arrays of linear logits. "of examples", "of classes" and "shared" are
arguments of the loss, and "captured" is what the loss closes over, of any shape. "counted" says
which examples count; "cotangents" are those of the outputs.
"""


def is_of_classes(name: Name) -> bool:
    """Whether shards of the classes have an array of their own, or a gradient of their own.

    The logits of a shard are made of inputs, scale and cap, so that each shard has a part of their
    gradients. The other arrays of examples, and the other scalars, meet the loss of whole rows.
    """
    return "c" in DIMENSIONS[name.kind] or name.kind in ("inputs", "scale", "softcap")


def is_of_examples(name: Name) -> bool:
    """Whether the array is cut along with the examples."""
    return "e" in DIMENSIONS[name.kind]


def number_of_examples(arrays: Arrays) -> Any:
    """The number of examples in a group, or of all where they are one dimension."""
    return arrays[Name("inputs")].shape[-2]


# ---------------------------------------- The plan


Outputs: TypeAlias = tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]
"""``(outs, aux)``, arrays ``[examples]``: those that are differentiated, and the others."""


class HeadLoss(Protocol):
    """The loss of a chunk of examples, as the rest of the head sees it."""

    @property
    def is_constant(self) -> bool:
        """Whether equal losses are the same function, so that programs can be remembered."""

    def traced(self, run: Callable[[Any], None]) -> tuple["HeadLoss", Arrays]:
        """The loss as a function of arrays alone, and the arrays that it closes over.

        `run` abstractly evaluates the head with the function that it is given as the loss, for the
        number of examples in a chunk.
        """

    @property
    def has_one_out(self) -> bool:
        """Whether a single array ``[examples]`` is differentiated, once the loss is traced."""

    def __call__(self, logits: list[jax.Array], arrays: Arrays) -> Outputs:
        """The losses of logits ``[examples, classes]``, one array for each head."""

    def unflatten(self, outs: tuple[Any, ...], aux: tuple[Any, ...]) -> Any:
        """The user's result, from what is differentiated and what is not."""

    def mean_weights(self, arrays: Arrays) -> jax.Array | None:
        """The weight of each label in a mean, which its sum is divided by; None for 1."""


class Plan(NamedTuple):
    """The static part of a head's program."""

    loss: HeadLoss
    precision: jax.lax.PrecisionLike = None
    chunk_size: int | None = None
    mesh_axes: MeshAxes = ()
    """The mesh axes that the classes are spread over."""
    names: tuple[Name, ...] = ()
    reduction: str = "none"
    """Whether the losses are wanted, or their sum or mean."""
    groups: int = 0
    """The number of dimensions before the examples: groups of them, on devices side by side."""
    may_skip: bool = True
    """Whether shards may differ in what they skip, and in the cotangents of their sums."""

    @property
    def heads(self) -> range:
        """The numbers of the linear logits."""
        return range(sum(name.kind == "inputs" for name in self.names))


def made(make: Callable[..., Out], plan: Plan, *args: Any) -> Out:
    """``make(plan, *args)``, remembered where the loss is constant: eager calls compile once."""
    return _remembered(make, plan, *args) if plan.loss.is_constant else make(plan, *args)


@lru_cache
def _remembered(make: Callable[..., Any], *args: Any) -> Any:
    return make(*args)


# ---------------------------------------- Losses that users give


class HoistedJaxpr(NamedTuple):
    """A function that has been traced for a number of examples, as one of all its arrays."""

    jaxpr: Any
    captured: tuple[int, ...]
    """The places of the arrays that it closes over, among all captured arrays."""

    @classmethod
    def of(cls, function: Callable[..., Any], leaves: list[jax.Array], captured: list[Any]) -> Self:
        """The program of a function. Arrays that it closes over are added to `captured`."""
        closed = jax.make_jaxpr(function)(*leaves)
        constants, number = closed.consts, len(closed.consts)

        def without_closure(*args: jax.Array) -> list[Any]:
            return jax.core.eval_jaxpr(closed.jaxpr, args[:number], *args[number:])

        # The first program holds the arrays, which may be tracers; this one must not.
        hoisted = jax.make_jaxpr(without_closure)(*constants, *leaves).jaxpr
        return cls(hoisted, tuple(_place(captured, x) for x in constants))

    def __call__(self, captured: Any, leaves: list[jax.Array]) -> list[jax.Array]:
        args = [*(captured[i] for i in self.captured), *leaves]
        # Arrays that are differentiated come in their computing dtype.
        args = [_as(v.aval.dtype, x) for v, x in zip(self.jaxpr.invars, args, strict=True)]
        outs: list[jax.Array] = jax.core.eval_jaxpr(self.jaxpr, (), *args)
        return outs


def _place(captured: list[Any], x: Any) -> int:
    """The place of the array among those captured, to which it is added if it is new."""
    for i, known in enumerate(captured):
        if known is x:
            return i
    captured.append(x)
    return len(captured) - 1


def _as(dtype: Any, x: Any) -> jax.Array:
    array = jnp.asarray(x)
    return array if array.dtype == dtype else array.astype(dtype)


class Result(NamedTuple):
    """The form of the result of a user's function."""

    tree: Any
    is_out: tuple[bool, ...]
    """Which of its leaves are differentiated."""
    reduced: bool
    has_aux: bool

    def split(self, leaves: list[jax.Array]) -> Outputs:
        """The leaves that are differentiated, and the others."""
        outs = tuple(x for x, is_out in zip(leaves, self.is_out, strict=True) if is_out)
        aux = tuple(x for x, is_out in zip(leaves, self.is_out, strict=True) if not is_out)
        return outs, aux

    def unflatten(self, outs: tuple[Any, ...], aux: tuple[Any, ...]) -> Any:
        """Rebuilds the user's result from its leaves. Losses that have been reduced are None."""
        of_outs, of_aux = iter(outs), iter(aux)
        leaves = [next(of_outs if is_out else of_aux, None) for is_out in self.is_out]
        losses, more = jax.tree.unflatten(self.tree, leaves)
        return more if self.reduced else (losses, more) if self.has_aux else losses


@dataclasses.dataclass(frozen=True, eq=False)
class UserLoss:
    """A user's function as a `HeadLoss`.

    It is traced anew in each call: what it closes over may be another tracer each time, which a
    cache would not see. Once traced, it holds no array that the function closes over.
    """

    arguments: Any
    """The structure of the function's positional arguments."""
    leaves: tuple[Name, ...]
    """The names of their leaves; "inputs" for linear logits."""
    reduced: bool
    """Whether it returns one array, whose sum is wanted."""
    has_aux: bool
    function: Callable[..., Any] | None
    """None once it is traced."""
    programs: list[HoistedJaxpr] = dataclasses.field(default_factory=list)
    """The one program, of a chunk."""
    results: list[Result] = dataclasses.field(default_factory=list)
    """The one form of its result."""
    is_constant = False

    def traced(self, run: Callable[[Any], None]) -> tuple["UserLoss", Arrays]:
        """As in `HeadLoss`."""
        captured: list[Any] = []
        traced = dataclasses.replace(self, function=None, programs=[], results=[])

        def trace(logits: list[jax.Array], arrays: Arrays) -> Outputs:
            leaves = _leaves(self.leaves, logits, arrays)
            size = leaves[0].shape[0]

            def function(*leaves: jax.Array) -> list[jax.Array]:
                assert self.function is not None
                found = self.function(*jax.tree.unflatten(self.arguments, leaves))
                outs, form = self._checked_result(found, size)
                traced.results[:] = [form]
                return outs

            program = HoistedJaxpr.of(function, leaves, captured)
            traced.programs[:] = [program]
            return traced.results[0].split(program(captured, leaves))

        run(trace)
        return traced, {Name("captured", i): jnp.asarray(x) for i, x in enumerate(captured)}

    @property
    def has_one_out(self) -> bool:
        """As in `HeadLoss`."""
        return sum(self.results[0].is_out) == 1

    def __call__(self, logits: list[jax.Array], arrays: Arrays) -> Outputs:
        """As in `HeadLoss`."""
        leaves = _leaves(self.leaves, logits, arrays)
        captured = {name.which: x for name, x in arrays.items() if name.kind == "captured"}
        return self.results[0].split(self.programs[0](captured, leaves))

    def unflatten(self, outs: tuple[Any, ...], aux: tuple[Any, ...]) -> Any:
        """As in `HeadLoss`."""
        return self.results[0].unflatten(outs, aux)

    def mean_weights(self, arrays: Arrays) -> None:
        """Nothing but the weights divides a mean."""

    def _checked_result(self, result: Any, size: Any) -> tuple[list[jax.Array], Result]:
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
