"""Measures every loss against exact arithmetic, for the tables of ``docs/accuracy.md``.

``python benchmarks/accuracy.py`` prints them as Markdown: the largest errors of values and of
gradients over the hard inputs of ``python -m jxent``, beside the textbook's formula, optax and
PyTorch. It runs on the CPU. For the TPUs it runs the programs that JAX makes for TPUs, with
operations that err as much as JAX publishes for each of them (``tests/support/tpu.py``).
"""

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from decimal import localcontext
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import jax
import numpy as np

import jxent
from jxent._selftest import devices, errors, report
from jxent._selftest.table import TABLE
from support import tpu

try:
    import torch
    from torch.distributions import Bernoulli, Categorical
    from torch.nn import functional
except ImportError:
    sys.exit("PyTorch, whose errors are a column of the tables, is not installed")

FAMILIES = report.families(TABLE.values())
DEVICES = ("v5e", "v5p", "v6e")


def _soft(loss: Callable[..., Any], *, of_logits: bool) -> Callable[..., Any]:
    """PyTorch's divergences get logarithms, and return each term."""

    def function(predictions: Any, targets: Any) -> Any:
        if of_logits:
            predictions, targets = (torch.log_softmax(x, -1) for x in (predictions, targets))
        return loss(predictions, targets, reduction="none").sum(-1)

    return function


_log_target = functools.partial(functional.kl_div, log_target=True)
TORCH = {
    "logsumexp": lambda z: torch.logsumexp(z, -1),
    "log_softmax": lambda z: torch.log_softmax(z, -1),
    "softmax": lambda z: torch.softmax(z, -1),
    "softmax_entropy": lambda z: Categorical(logits=z, validate_args=False).entropy(),
    "softmax_cross_entropy": lambda z, y: functional.cross_entropy(z, y, reduction="none"),
    "softmax_cross_entropy_with_integer_labels": lambda z, y: functional.cross_entropy(
        z, y.long(), reduction="none"
    ),
    "softmax_kl_divergence": _soft(_log_target, of_logits=True),
    "sigmoid_entropy": lambda z: Bernoulli(logits=z, validate_args=False).entropy(),
    "sigmoid_binary_cross_entropy": lambda z, y: functional.binary_cross_entropy_with_logits(
        z, y, reduction="none"
    ),
    "kl_divergence": _soft(functional.kl_div, of_logits=False),
    "kl_divergence_with_log_targets": _soft(_log_target, of_logits=False),
    "negative_log_likelihood": lambda z, y: functional.nll_loss(z, y.long(), reduction="none"),
    "binary_cross_entropy": lambda p, y: functional.binary_cross_entropy(p, y, reduction="none"),
}
"""PyTorch's functions by our names."""


def _torchs_errors(line: errors.Line) -> tuple[errors.Error, errors.Error]:
    row = TABLE[line.loss[0]]
    # PyTorch makes no tensors of NumPy's bfloat16, and takes classes as integers of 64 bits alone.
    given = [
        torch.tensor(np.asarray(x, "f")).to(torch.bfloat16)
        if line.dtype == "bfloat16" and x.dtype.itemsize == 2
        else torch.tensor(x)
        for x in line.arguments
    ]
    given = [x.requires_grad_(x.is_floating_point()) for x in given]
    if row.per_class:
        z, labels = given
        out = TORCH[row.name](z).gather(-1, labels.long()[:, None])[:, 0]
    else:
        out = TORCH[row.name](*given)
    floats = [x for x in given if x.is_floating_point()]
    gradients = torch.autograd.grad(out.sum(), floats)
    results = out.detach().double().numpy(), [x.double().numpy() for x in gradients]
    with localcontext(errors.context(errors.DIGITS)):
        truth = errors._truth(row.name, line.arguments)
        return errors._compare(results, truth, line.family, line.dtype)


Found = dict[tuple[str, str], tuple[errors.Error, errors.Error]]
"""By the name of the loss and that of the column."""


def measured(dtypes: tuple[str, ...], who: Iterable[str]) -> Iterator[errors.Line]:
    """The errors of these implementations."""
    found = report.implementations()
    own = {"weighted_mean": functools.partial(jxent.weighted_mean, axis=-1)}
    found["jxent"] = {**found["jxent"], **own}
    chosen = {name: found[name] for name in who}
    return errors.measure(FAMILIES, chosen, dtypes, jax.devices("cpu")[0])


def of_dtype(dtype: str) -> Found:
    """Of everybody, on the CPU."""
    found: Found = {}
    for line in measured((dtype,), ("jxent", "plain", "optax")):
        of_line = dict(line.errors)
        if line.loss[0] in TORCH:
            of_line["PyTorch"] = _torchs_errors(line)
        for who, of_who in of_line.items():
            found[_title(*line.loss), "jxent, CPU" if who == "jxent" else who] = of_who
    return found


def of_tpus() -> Found:
    """Of jxent in float32; of the errors that are drawn and the largest of one sign the worse."""
    found: Found = {}
    for device, kind in itertools.product(DEVICES, ("drawn", "largest")):
        with tpu.arithmetic(f"{device}-{kind}"):
            for line in measured(("float32",), ("jxent",)):
                place = _title(*line.loss), f"jxent, {device}"
                before, now = found.get(place, (errors.Error(),) * 2), line.errors["jxent"]
                pairs = zip(before, now, strict=True)
                value, gradient = (a if a.of_bound > b.of_bound else b for a, b in pairs)
                found[place] = value, gradient
    return found


def _title(name: str, inputs: str) -> str:
    return f"`{name}`, 8192 classes" if inputs.startswith("many") else f"`{name}`"


def as_table(found: Found, kind: int) -> list[str]:
    """One row for each function; jxent's errors with the largest share of their bound."""
    columns = list(dict.fromkeys(column for _, column in found))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'--:|' * len(columns)}"]
    for name in dict.fromkeys(name for name, _ in found):
        of_columns = [found.get((name, column)) for column in columns]
        cells = ["" if of is None else report._short(of[kind].worst) for of in of_columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def of_elementary() -> list[str]:
    """One row for each elementary function: the errors of jxent's forms, in eps."""
    columns = {}
    for name in ("CPU", *DEVICES):
        kinds = [f"{name}-{kind}" for kind in ("drawn", "largest")] if name != "CPU" else [None]
        for kind in kinds:
            with tpu.arithmetic(kind) if kind else contextlib.nullcontext():
                for function in devices.ELEMENTARY:
                    error = devices.measure(function)["jxent"]
                    columns[function, name] = max(error, columns.get((function, name), 0.0))
    lines = ["| | CPU | v5e | v5p | v6e | derived from |", "|---|--:|--:|--:|--:|--:|"]
    for function, row in devices.ELEMENTARY.items():
        cells = [f"{columns[function, name]:.1f}" for name in ("CPU", *DEVICES)]
        lines.append(f"| `{function}` | {' | '.join(cells)} | {row.assumed:g} |")
    return lines


def main() -> None:
    """Prints the tables."""
    print("### Elementary functions\n", *of_elementary(), "", sep="\n", flush=True)
    single = of_dtype("float32")
    ours = {place: of for place, of in single.items() if place[1] == "jxent, CPU"}
    others = {place: of for place, of in single.items() if place not in ours}
    tables = {"float32": {**ours, **of_tpus(), **others}}
    tables |= {dtype: of_dtype(dtype) for dtype in ("bfloat16", "float16", "float64")}
    for dtype, found in tables.items():
        for kind, what in enumerate(("values", "gradients")):
            print(f"### {dtype}, {what}\n", *as_table(found, kind), "", sep="\n")
        beyond = sum(e.beyond for (_, who), of in found.items() if "jxent" in who for e in of)
        entries = sum(e.entries for (_, who), of in found.items() if "jxent" in who for e in of)
        print(f"Of jxent {beyond} of {entries} numbers are beyond their bounds.\n", flush=True)


if __name__ == "__main__":
    main()
