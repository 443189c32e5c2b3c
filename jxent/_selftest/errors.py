"""Compares losses with exact arithmetic: errors in units of the dtype, and their bounds."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .exact import context
from .inputs import Array, inputs
from .sizes import Quantity
from .table import TABLE

DTYPES = ("float32", "bfloat16", "float16", "float64")
# XLA:CPU has no subnormal numbers, so errors of numbers smaller than this are absolute.
TINY = 1e-33
# If p is as near to 1 as TINY, about half of these digits are left in 1 - p.
DIGITS = 60

Functions = Mapping[str, Callable[..., Any]]
Loss = tuple[str, str]
"""The name of a function, and the kind of its inputs."""


class Family(NamedTuple):
    """Losses with the same bounds: a number of eps, and a number of eps per nat of |ln size|."""

    title: str
    value: tuple[float, float]
    gradient: tuple[float, float]
    losses: tuple[Loss, ...]


@dataclass
class Error:
    """The worst error, the largest ratio of error to bound, its row, and how many exceed 1."""

    worst: float = 0.0
    of_bound: float = 0.0
    row: int = 0
    entries: int = 0
    beyond: int = 0

    def meet(self, error: float, bound: float, row: int) -> None:
        """Takes one more error into account; NaN is the worst."""
        part = error / bound
        if not (error <= self.worst or math.isnan(self.worst)):
            self.worst = error
        if not (part <= self.of_bound or math.isnan(self.of_bound)):
            self.of_bound, self.row = part, row
        self.entries += 1
        self.beyond += not part <= 1


class Line(NamedTuple):
    """The errors of value and gradient of one loss in one dtype, for each implementation."""

    family: Family
    loss: Loss
    dtype: str
    errors: Mapping[str, tuple[Error, Error]]
    arguments: tuple[Array, ...]


def measure(
    families: tuple[Family, ...],
    implementations: Mapping[str, Functions],
    dtypes: tuple[str, ...] = DTYPES,
    device: jax.Device | None = None,
    on_program: Callable[[], object] = lambda: None,
) -> Iterator[Line]:
    """Yields the errors of every loss in every dtype, one by one.

    Args:
      families: the losses and their bounds.
      implementations: functions by the losses' names; each implementation is one program per dtype.
      dtypes: the dtypes of the arguments.
      device: the device to run on; None is JAX's default.
      on_program: called whenever a program has run.
    """
    losses = [(family, loss) for family in families for loss in family.losses]
    rounded = {
        dtype: {kind: _rounded(x, dtype) for kind, x in inputs().items()} for dtype in dtypes
    }
    # Compiling takes most of the time and does not hold Python's lock: two threads are faster.
    with ThreadPoolExecutor(2) as pool:
        pending = {
            (dtype, who): pool.submit(
                _evaluate, functions, [loss for _, loss in losses], rounded[dtype], dtype, device
            )
            for dtype in dtypes
            for who, functions in implementations.items()
        }
        for program in pending.values():
            program.add_done_callback(lambda _: on_program())
        for dtype in dtypes:
            results = {who: pending[dtype, who].result() for who in implementations}
            for family, loss in losses:
                name, kind = loss
                with localcontext(context(DIGITS)):
                    truth = _truth(name, rounded[dtype][kind])
                    errors = {
                        who: _compare(result[loss], truth, family, dtype)
                        for who, result in results.items()
                        if loss in result
                    }
                yield Line(family, loss, dtype, errors, rounded[dtype][kind])


def _rounded(arguments: tuple[Array, ...], dtype: str) -> tuple[Array, ...]:
    """The arguments in this dtype, without the rows that overflow in it."""
    with np.errstate(over="ignore"):
        cast = [x.astype(jnp.dtype(dtype)) if x.dtype == np.float64 else x for x in arguments]
    kept = np.ones(len(cast[0]), bool)
    for x, y in zip(arguments, cast, strict=True):
        same = np.isfinite(x) == np.isfinite(y.astype(np.float64))
        kept &= same.reshape(len(x), -1).all(axis=-1)
    return tuple(x[kept] for x in cast)


def _evaluate(
    functions: Functions,
    losses: list[Loss],
    arguments: Mapping[str, tuple[Array, ...]],
    dtype: str,
    device: jax.Device | None,
) -> dict[Loss, Any]:
    """Returns values and gradients of the losses in `functions`, compiled as one program."""
    found = [(name, kind) for name, kind in losses if name in functions]

    def run(arguments: dict[str, Any]) -> list[Any]:
        return [
            _value_and_gradients(name, functions[name], arguments[kind]) for name, kind in found
        ]

    # Both settings hold for one thread, so each thread sets them.
    with jax.enable_x64(dtype == "float64"), jax.default_device(device):
        used = {kind: arguments[kind] for _, kind in found}
        compiled = jax.jit(run).lower(used).compile(compiler_options(device))
        results = compiled(used)
        return dict(zip(found, jax.tree.map(_as_float64, results), strict=True))


def compiler_options(device: jax.Device | None = None) -> dict[str, str | bool]:
    """Returns options that save a third of the compile time on CPUs: LLVM does not optimise."""
    platform = device.platform if device else jax.default_backend()
    return {"xla_backend_optimization_level": "0"} if platform == "cpu" else {}


def _value_and_gradients(name: str, function: Any, arguments: tuple[jax.Array, ...]) -> Any:
    """Returns each example's value, and its gradients for all floating-point arguments."""
    places = [i for i, x in enumerate(arguments) if jnp.issubdtype(x.dtype, jnp.floating)]

    def losses(*given: jax.Array) -> Any:
        if TABLE[name].per_class:  # only the value of the label's class is compared
            z, labels = given
            return jnp.take_along_axis(function(z), labels[:, None], axis=-1)[:, 0]
        return function(*given)

    of_floats, floats = of_some(losses, places, arguments)
    values, pullback = jax.vjp(of_floats, *floats)
    return values, pullback(jnp.ones_like(values))


def of_some(call: Callable[..., Any], places: Iterable[int], args: Sequence[Any]) -> Any:
    """Returns `call` as a function of the arguments at these places, and those arguments."""
    places = tuple(places)

    def function(*some: Any) -> Any:
        full = list(args)
        for i, x in zip(places, some, strict=True):
            full[i] = x
        return call(*full)

    return function, [args[i] for i in places]


def _as_float64(x: jax.Array) -> Array:
    return np.asarray(np.asarray(x).astype(np.float64))


def _truth(name: str, arguments: tuple[Array, ...]) -> list[Quantity]:
    """The exact values, and the exact gradient for each floating-point argument."""
    row = TABLE[name]
    if not row.per_class:
        return row.truth(arguments)
    z, labels = arguments
    value, gradient = row.truth((z,), cotangent=np.eye(z.shape[-1])[labels])
    at_label = [np.take_along_axis(x, labels[:, None], axis=-1)[:, 0] for x in value]
    return [Quantity(*at_label), gradient]


def _compare(result: Any, truth: list[Quantity], family: Family, dtype: str) -> tuple[Error, Error]:
    of_value, of_gradient = Error(), Error()
    eps = float(np.finfo("float64" if dtype == "float64" else "float32").eps)
    narrow, largest = _finfo(dtype).bits < 32, float(_finfo(dtype).max)
    values, gradients = result
    value, *exact_gradients = truth
    examples = values.size // len(values)
    finite = [all(v.is_finite() for v in np.ravel(row)) for row in value.exact]
    for i, (x, true, size, _) in enumerate(_entries(values, value)):
        unit = eps * max(size, TINY)
        of_value.meet(_distance(x, true, size) / unit, _bound(family.value, size), i // examples)
    for gradient, exact_gradient in zip(gradients, exact_gradients, strict=True):
        entries = gradient.size // len(gradient)
        for i, (x, true, size, steep) in enumerate(_entries(gradient, exact_gradient)):
            row = i // entries
            if steep or not size <= largest or not finite[row]:
                continue
            unit = _last_place(size, dtype) if narrow else eps * max(size, TINY)
            bound = 1.0 if narrow else _bound(family.gradient, size)
            of_gradient.meet(_distance(x, true, size) / unit, bound, row)
    return of_value, of_gradient


def _entries(got: Array, truth: Quantity) -> Iterator[tuple[float, Decimal, float, bool]]:
    """Yields each entry's result, exact number, size that its error is relative to, and `steep`."""
    for x, true, size, steep in zip(
        np.ravel(got),
        np.ravel(truth.exact),
        np.ravel(truth.terms),
        np.ravel(truth.steep),
        strict=True,
    ):
        yield float(x), true, float(size), bool(steep)


def _distance(x: float, true: Decimal, size: float) -> float:
    """Returns the absolute error, or 0 where both numbers are tiny."""
    if not true.is_finite():
        return 0.0 if x == float(true) else math.inf
    distance = abs(float(Decimal(x) - true))
    return 0.0 if size < TINY and distance <= TINY else distance


def _bound(bound: tuple[float, float], size: float) -> float:
    constant, per_nat = bound
    return constant + per_nat * abs(math.log(size)) if TINY <= size < math.inf else constant


def _finfo(dtype: str) -> Any:
    return jnp.finfo(dtype)  # type: ignore[no-untyped-call]


def _last_place(size: float, dtype: str) -> float:
    """The unit in the last place of a number of this size."""
    info = _finfo(dtype)
    _, exponent = math.frexp(max(size, float(info.tiny)))
    return math.ldexp(float(info.eps), exponent - 1)
