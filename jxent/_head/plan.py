"""The plan of a head's program: the names of its arrays, and the loss of a chunk.

A user's loss becomes a program of arrays alone. An array that it closes over may be traced and
differentiated. A gradient rule must have such an array as an argument: otherwise its gradient would
be missing, or its tracer would leak.
"""

import dataclasses
import operator
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from inspect import unwrap
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, TypeVar
from weakref import WeakKeyDictionary, proxy

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr

from .._arguments import any_array
from .._autodiff import as_program
from .._dtypes import computing_dtype
from .._numerics import nan_where
from .._rows import COUNTS
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
HEAD = ("inputs", "kernel", "bias", "scale", "softcap", "class_mask")
"""The kinds of the arrays of linear logits."""
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

"of examples", "of classes" and "shared" are arguments of the loss, and "captured" is what the loss
closes over, of any shape. "counted" says which examples count; "cotangents" are those of the
outputs.
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
"""``(outs, aux)``, arrays ``[examples, ...]``: those that are differentiated, and the others."""


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

    def mean_weights(self, arrays: Arrays, aux: Any) -> jax.Array | None:
        """How much each example counts in a mean, beside the weights; None for 1."""

    def reads(self, name: Name) -> tuple[bool, ...]:
        """Whether the array of that name is read by each of those that are not differentiated."""


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


# ---------------------------------------- Programs of users' losses that are remembered
# A function may be another one at its next call: it may close over a new tracer, or over an object
# that has been changed in place. So a program is used again only where that can be excluded.


_programs: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()
_UNCHANGING = (bool, int, float, complex, str, bytes, type(None), np.generic, np.dtype, jax.Array)
_JITTED = type(jax.jit(lambda: None))
_LIBRARIES = ("jax", "jaxlib", "numpy", "jxent", "math", "functools", "operator", "builtins")


def remembered(
    make: Callable[[Any], Callable[..., Out]], loss: Callable[..., Any], key: Any
) -> Callable[..., Out]:
    """``make(loss)``, as one program if the loss is that of an earlier call, in all that it is."""
    parts = _parts(loss)
    if parts is None:
        return make(loss)
    known = _programs.setdefault(loss, {})
    if key not in known or known[key][0] != parts:
        # The program goes when the user's function goes, so it must not keep it.
        known[key] = parts, as_program(make(proxy(loss)))
    program: Callable[..., Out] = known[key][1]
    return program


def _parts(loss: Callable[..., Any]) -> dict[int, Any] | None:
    """What the result depends on beside the arguments, by identity; None if it may change."""
    parts, pending = {}, [loss]
    for x in pending:
        if id(x) in parts:
            continue
        parts[id(x)] = None if x is loss else x
        if isinstance(x, tuple):
            pending += x
        elif isinstance(x, partial):
            pending += [x.func, *x.args, *x.keywords.values()]
        elif isinstance(x, FunctionType):
            pending += _used_by(x)
        elif isinstance(x, _JITTED):
            pending.append(unwrap(x))
        elif isinstance(x, ModuleType | type):
            if _is_of_users(getattr(x, "__module__", x.__name__)):
                return None
        elif isinstance(x, jax.core.Tracer) or not isinstance(x, _UNCHANGING):
            return None
    return parts


def _used_by(function: FunctionType) -> Iterator[Any]:
    yield from (cell.cell_contents for cell in function.__closure__ or () if cell != CellType())
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    yield from vars(function).values()
    known = function.__globals__
    if _is_of_users(known.get("__name__", "")):
        yield from (known[name] for name in _names_in(function.__code__) if name in known)


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        yield from _names_in(inner) if isinstance(inner, CodeType) else ()


def _is_of_users(module: str) -> bool:
    return module.partition(".")[0] not in _LIBRARIES


def name_of(loss: Callable[..., Any]) -> str:
    """The name of the user's function."""
    function = loss.func if isinstance(loss, partial) else loss
    name: str = getattr(function, "__name__", type(function).__name__)
    return name


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

    def of_result(self, number: int) -> tuple[Any, list[bool]]:
        """The part of it that makes this result, and which arguments that reads."""
        is_wanted = [i == number for i in range(len(self.jaxpr.outvars))]
        part: tuple[Any, list[bool]] = dce_jaxpr(self.jaxpr, is_wanted)
        return part

    def check_that_all_count(self) -> None:
        """Refuses losses that leave examples out, or weigh classes: a mean would not know it."""
        if said := sorted({n for n in _names(self.of_result(0)[0]) if n.startswith(COUNTS)}):
            arguments = ", ".join(name.removeprefix(COUNTS) for name in said)
            raise ValueError(
                f"loss must say how much its examples count in a mean, as it uses {arguments}:"
                " return (losses, counts) with has_counts=True, or give where or weights to what"
                " chunked returns, or reduction='sum' and divide by a number"
            )


def _names(jaxpr: Any) -> Iterator[str]:
    """What `jax.ad_checkpoint.checkpoint_name` has named in a program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "name":
            yield eqn.params["name"]
        for inner in jaxprs_in_params(eqn.params):
            yield from _names(inner)


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


class Form(NamedTuple):
    """What a user's loss must return."""

    reduced: bool
    """Whether it returns one array, whose sum is wanted."""
    has_counts: bool
    has_aux: bool
    all_count: bool
    """Whether a mean is wanted in which every example counts, unless the loss says otherwise."""

    def split(self, found: Any) -> tuple[Any, Any, Any]:
        """The losses, the counts, which may be missing, and aux."""
        losses, aux = self._pair(found, "losses, aux", self.has_aux)
        if not self.has_counts:
            return losses, (), aux
        return *self._pair(losses, "losses, counts", True), aux

    def _pair(self, found: Any, wanted: str, is_one: bool) -> Any:
        if not is_one:
            return found, ()
        if isinstance(found, tuple) and len(found) == 2:
            return found
        option, got = f"has_{wanted.split()[1]}", _described(found)
        raise TypeError(f"loss must return a pair ({wanted}) where {option} is True, got {got}")


def _described(found: Any) -> str:
    return "an array" if isinstance(found, jax.Array) else type(found).__name__


class Result(NamedTuple):
    """The form of the result of a user's function."""

    tree: Any
    is_out: tuple[bool, ...]
    """Which of its leaves are differentiated."""
    form: Form

    def split(self, leaves: list[jax.Array]) -> Outputs:
        """The leaves that are differentiated, and the others."""
        outs = tuple(x for x, is_out in zip(leaves, self.is_out, strict=True) if is_out)
        aux = tuple(x for x, is_out in zip(leaves, self.is_out, strict=True) if not is_out)
        return outs, aux

    def unflatten(self, outs: tuple[Any, ...], aux: tuple[Any, ...]) -> Any:
        """Rebuilds the user's result from its leaves. Losses that have been reduced are None."""
        of_outs, of_aux = iter(outs), iter(aux)
        leaves = [next(of_outs if is_out else of_aux, None) for is_out in self.is_out]
        losses, _, more = jax.tree.unflatten(self.tree, leaves)
        return more if self.form.reduced else (losses, more) if self.form.has_aux else losses


@dataclasses.dataclass(frozen=True, eq=False)
class UserLoss:
    """A user's function as a `HeadLoss`.

    It is traced anew in each program: what it closes over may be another tracer each time. Once
    traced, it holds no array that the function closes over.
    """

    arguments: Any
    """The structure of the function's positional arguments."""
    leaves: tuple[Name, ...]
    """The names of their leaves; "inputs" for linear logits."""
    form: Form
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
                outs, result = _checked_result(self.form, found, size)
                traced.results[:] = [result]
                return outs

            program = HoistedJaxpr.of(function, leaves, captured)
            traced.programs[:] = [program]
            if self.form.all_count:
                program.check_that_all_count()
            return traced.results[0].split(program(captured, leaves))

        run(trace)
        return traced, {Name("captured", i): jnp.asarray(x) for i, x in enumerate(captured)}

    @property
    def has_one_out(self) -> bool:
        """As in `HeadLoss`."""
        outs = zip(self.programs[0].jaxpr.outvars, self.results[0].is_out, strict=True)
        return [x.aval.ndim for x, is_out in outs if is_out] == [1]

    def __call__(self, logits: list[jax.Array], arrays: Arrays) -> Outputs:
        """As in `HeadLoss`."""
        leaves = _leaves(self.leaves, logits, arrays)
        captured = {name.which: x for name, x in arrays.items() if name.kind == "captured"}
        return self.results[0].split(self.programs[0](captured, leaves))

    def unflatten(self, outs: tuple[Any, ...], aux: tuple[Any, ...]) -> Any:
        """As in `HeadLoss`."""
        return self.results[0].unflatten(outs, aux)

    def mean_weights(self, arrays: Arrays, aux: Any) -> jax.Array | None:
        """The counts, which come first; NaN for a negative one, as a mean divides by their sum."""
        if not self.form.has_counts:
            return None
        counts = jnp.asarray(aux[0], computing_dtype(*aux[:1]))
        return nan_where(counts < 0, counts)

    def reads(self, name: Name) -> tuple[bool, ...]:
        """As in `HeadLoss`. Whoever reads logits reads all that they are made of."""
        ((program,), (result,)) = self.programs, self.results
        leaves = [Name("captured", i) for i in program.captured] + list(self.leaves)
        is_made_of_it = [
            leaf == name or (leaf == Name("inputs", name.which) and name.kind in HEAD)
            for leaf in leaves
        ]
        others = [i for i, is_out in enumerate(result.is_out) if not is_out]
        return tuple(
            any(map(operator.and_, program.of_result(i)[1], is_made_of_it)) for i in others
        )


def _leaves(names: tuple[Name, ...], logits: list[jax.Array], arrays: Arrays) -> list[jax.Array]:
    return [logits[int(name.which)] if name.kind == "inputs" else arrays[name] for name in names]


def _checked_result(form: Form, found: Any, size: Any) -> tuple[list[jax.Array], Result]:
    """The leaves of what the function returns, and their form."""
    losses, counts, aux = form.split(found)
    number = len(jax.tree.leaves(losses))
    if number == 0:
        raise TypeError("loss must return at least one array, got nothing")
    if form.reduced and number > 1:
        remedy = ": has_aux=True takes (losses, aux)" if isinstance(losses, tuple) else ""
        raise TypeError(
            f"loss must return one array to be reduced, got {_described(losses)} of"
            f" {number}{remedy}"
        )
    parts = (("", losses), ("counts", counts), ("aux", aux))
    leaves = [
        _of_examples(f"{what}{jax.tree_util.keystr(path)}", x, size, form.reduced and what != "aux")
        for what, part in parts
        for path, x in jax.tree_util.tree_leaves_with_path(part)
    ]
    is_floating = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]
    is_out = tuple(x and i < number for i, x in enumerate(is_floating))
    if form.reduced and not is_floating[0]:
        raise TypeError(
            f"loss must return floating-point numbers to be reduced, got {leaves[0].dtype}"
        )
    return leaves, Result(jax.tree.structure((losses, counts, aux)), is_out, form)


def _of_examples(path: str, x: Any, size: Any, is_single: bool) -> jax.Array:
    array = any_array(f"what loss returns{path and ' at '}{path}", x)
    if array.shape[:1] != (size,) or (is_single and array.ndim > 1):
        wanted = f"one number for each of the {size} examples of a chunk, shape ({size},)"
        if not is_single:
            wanted = f"arrays of the {size} examples of a chunk, shape ({size}, ...)"
        raise ValueError(
            f"loss must return {wanted}, got shape {array.shape}{path and ' at '}{path}"
        )
    return array
