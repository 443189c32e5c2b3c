"""The numerics report: its losses, their bounds, what they are compared with, and its text."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

import jxent

from .errors import DTYPES, Error, Family, Functions, Line
from .heads import of_logits
from .inputs import names_of
from .rows import Row
from .table import TABLE

BOUNDS = {
    "softmax": ("softmax", (16, 1), (16, 2)),
    "logsumexp": ("normaliser", (4, 0), (16, 2)),
    "divergence": ("divergences of softmax and sigmoid", (64, 0), (64, 2)),
    "sigmoid": ("sigmoid", (8, 0), (8, 0)),
    "power of sigmoid": ("sigmoid, to a power", (16, 1), (16, 2)),
    "probability": ("probabilities", (8, 0), (8, 0)),
    "log-probability": ("log-probabilities", (8, 0), (8, 1)),
}
"""Each family's title in the report, and the bounds of its values and of its gradients."""


def families(rows: Iterable[Row]) -> tuple[Family, ...]:
    """The losses of these rows by families, each with its inputs."""
    rows = list(rows)
    return tuple(
        Family(
            *described,
            tuple(
                (row.name, inputs)
                for row in rows
                if row.family == family
                for inputs in names_of(row)
            ),
        )
        for family, described in BOUNDS.items()
    )


FAMILIES = families(row for row in TABLE.values() if row.reported)


def _sigmoid(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    p = jax.nn.sigmoid(z)
    return p, 1 - p


def _pick(x: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, labels[..., None], axis=-1)[..., 0]


TEXTBOOK = SimpleNamespace(
    sum=lambda x: jnp.sum(x, axis=-1),
    exp=jnp.exp,
    log=jnp.log,
    softmax=jax.nn.softmax,
    sigmoid=_sigmoid,
    one_hot=jax.nn.one_hot,
    pick=_pick,
)
"""JAX's arithmetic, with which the table's formulas are computed as textbooks print them."""


def _of_whole_logits(row: Row, dense: Row) -> Callable[..., jax.Array]:
    """Returns the textbook's loss of a head: it computes all logits, then their loss."""
    product = partial(jnp.matmul, precision="highest")

    def function(*arguments: jax.Array) -> jax.Array:
        assert dense.formula
        losses = dense.formula(TEXTBOOK, *of_logits(row.kinds, arguments, product))
        return jnp.mean(losses, axis=-1) if row.mean else losses

    return function


def _each_head(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns a function that applies `function` to one head after the other."""
    return lambda *arguments: jax.lax.map(lambda head: function(*head), arguments)


def _chunked(x: jax.Array, w: jax.Array, other_x: jax.Array, other_w: jax.Array) -> jax.Array:
    function = jxent.chunked(jxent.softmax_kl_divergence, chunk_size=2, precision="highest")
    result: jax.Array = function(jxent.LinearLogits(x, w), jxent.LinearLogits(other_x, other_w))
    return result


HEADS: Functions = {
    "linear_softmax_cross_entropy": _each_head(
        partial(jxent.linear_softmax_cross_entropy, chunk_size=2, precision="highest")
    ),
    "chunked": _each_head(_chunked),
}
"""The library's functions over heads, called in chunks and for one head after the other."""


def implementations() -> dict[str, Functions]:
    """Returns the functions of the library, the textbook and, where it is installed, optax."""
    plain: dict[str, Callable[..., Any]] = {}
    for row in TABLE.values():
        if row.formula:
            plain[row.name] = partial(row.formula, TEXTBOOK)
        elif row.of_logits:
            plain[row.name] = _of_whole_logits(row, row.of_logits)
    found: dict[str, Functions] = {"jxent": {**vars(jxent), **HEADS}, "plain": plain}
    try:
        return {**found, "optax": vars(import_module("optax.losses"))}
    except ImportError:
        return found


def missed(lines: Iterable[Line]) -> list[str]:
    """Describes each error of the library beyond its bound, with inputs that reproduce it."""
    found = []
    for line in lines:
        for kind, error in zip(("value", "gradient"), line.errors["jxent"], strict=True):
            if error.beyond:
                inputs = ", ".join(str(x[error.row].tolist()) for x in line.arguments)
                found.append(
                    f"{line.loss[0]}, {line.dtype}: {kind} beyond its bound"
                    f" ({error.of_bound:.3g} times) at {inputs}"
                )
    return found


def verdict(lines: list[Line], complete: bool) -> str:
    """Says whether the device keeps the promise; `complete` means that no loss is left out."""
    errors = [error for line in lines for error in line.errors["jxent"]]
    beyond, entries = sum(e.beyond for e in errors), sum(e.entries for e in errors)
    names = " and ".join(dict.fromkeys(line.loss[0] for line in lines))
    of, who = ("jxent", "This") if complete else (names, "For the losses chosen, this")
    if beyond:
        return (
            f"{who} device does not keep the promise: {beyond} of {entries} values and gradient"
            f" entries of {of} are beyond their bounds."
        )
    return f"{who} device keeps the promise: every value and gradient of {of} is within its bound."


def as_text(lines: list[Line]) -> str:
    """Returns a legend, tables of values and of gradients, and how many are beyond bounds."""
    tables = [_table(lines, kind) for kind in (0, 1)]
    return "\n".join([LEGEND, *tables, *_beyond(lines)])


def as_json(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Returns one object per loss and dtype, with NaN and infinity as strings."""
    return [
        {
            "loss": line.loss[0],
            "inputs": line.loss[1],
            "dtype": line.dtype,
            **{
                kind: {who: _numbers(errors[i]) for who, errors in line.errors.items()}
                for i, kind in enumerate(("value", "gradient"))
            },
        }
        for line in lines
    ]


def _numbers(error: Error) -> dict[str, Any]:
    return {
        "error": finite(error.worst),
        "of_bound": finite(error.of_bound),
        "entries": error.entries,
        "beyond": error.beyond,
    }


def finite(x: float) -> float | str:
    """Returns a number for JSON, which has neither NaN nor infinity."""
    return float(x) if math.isfinite(x) else str(float(x))


LEGEND = """\
Worst error over hard cases, against exact arithmetic on the inputs as rounded to each dtype.
Unit: eps of float32, also for bfloat16 and float16, whose values jxent returns in float32; eps of
float64 for float64. Gradients of bfloat16 and float16: units in the last place of that dtype.
plain: the textbook formula, with jax.nn.softmax. -: optax has no such function, or is not there.
Relative to the value; where terms of both signs add up, to the sum of their absolute values.
|ln|: of the size of the value or gradient entry. Bound for 16-bit gradients: 1."""


def _table(lines: list[Line], kind: int) -> str:
    dtypes = [dtype for dtype in DTYPES if any(line.dtype == dtype for line in lines)]
    people = ("jxent", "plain", "optax")
    text = [
        "",
        f"{('VALUE', 'GRADIENT')[kind]:{WIDTH}}" + "".join(f"  {dtype:^17}" for dtype in dtypes),
        " " * WIDTH + "".join("  " + " ".join(f"{who:>5}" for who in people) for _ in dtypes),
    ]
    errors = {(line.loss, line.dtype): line.errors for line in lines}
    for family in dict.fromkeys(line.family for line in lines):
        text.append(
            f"{family.title}: within {_in_words(family.gradient if kind else family.value)}"
        )
        for loss in family.losses:
            row = f"  {_title(*loss):{WIDTH - 2}}"
            for dtype in dtypes:
                found = errors[loss, dtype]
                row += "  " + " ".join(
                    f"{_short(found[who][kind].worst) if who in found else '-':>5}"
                    for who in people
                )
            text.append(row)
    return "\n".join(text)


WIDTH = 43


def _title(name: str, inputs: str) -> str:
    if inputs.startswith("many"):
        return "  the same, 8192 classes"
    return "chunked(softmax_kl_divergence), two heads" if name == "chunked" else name


def _in_words(bound: tuple[float, float]) -> str:
    constant, per_nat = bound
    factor = "" if per_nat == 1 else f"{per_nat:g} "
    return f"{constant:g} + {factor}|ln|" if per_nat else f"{constant:g}"


def _short(x: float) -> str:
    """Writes a number in at most five characters."""
    if not math.isfinite(x):
        return str(float(x))
    return (
        f"{x:.1f}" if x < 9.95 else f"{x:.0f}" if x < 1e4 else f"{x:.0e}" if x < 1e99 else "1e+99"
    )


def _beyond(lines: list[Line]) -> list[str]:
    """Counts the values and gradient entries beyond the bounds, for each implementation."""
    text = ["", "Values and gradient entries beyond these bounds, NaN included:"]
    for who in dict.fromkeys(who for line in lines for who in line.errors):
        errors = [error for line in lines if who in line.errors for error in line.errors[who]]
        beyond, entries = sum(e.beyond for e in errors), sum(e.entries for e in errors)
        text.append(f"  {who}  {beyond:6d} of {entries:6d}  ({beyond / entries:.1%})")
    return text
