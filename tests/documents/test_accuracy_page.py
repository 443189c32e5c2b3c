"""The pages about accuracy: what JAX publishes, what the simulation errs by, and their sums."""

import re
from pathlib import Path

import jax
import pytest

import jxent
from jxent._selftest import devices, errors, report
from jxent._selftest.table import TABLE
from support import tpu

DOCS = Path(__file__).parents[2] / "docs"
ACCURACY = (DOCS / "accuracy.md").read_text("utf-8")
EXACTNESS = (DOCS / "exactness.md").read_text("utf-8")


def tables(section):
    """The rows of each table, as ``{name: cells}``."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", section, re.M):
        lines = [line.removeprefix("|").removesuffix("|").split("|") for line in block.splitlines()]
        rows = [[cell.strip(" `") for cell in line] for line in lines[2:]]
        found.append({name.replace("`", ""): cells for name, *cells in rows})
    return found


def sections(page, level):
    """The sections of a page by their titles."""
    _, *parts = re.split(rf"^{level} ", page, flags=re.M)
    return {part.partition("\n")[0]: part.partition("\n## ")[0] for part in parts}


def numbers(row):
    return [float(cell) if cell else 0.0 for cell in row]


def test_published_errors_are_those_of_the_simulation():
    published, _ = tables(sections(ACCURACY, "##")["The operations"])
    assert {name: numbers(row) for name, row in published.items()} == {
        name: list(row) for name, row in devices.ERRORS.items()
    }


def test_bounds_are_derived_from_what_the_report_measures():
    _, corrected = tables(sections(ACCURACY, "##")["The operations"])
    assert corrected.keys() == devices.ELEMENTARY.keys()
    for name, row in corrected.items():
        *found, assumed = numbers(row)
        assert assumed == devices.ELEMENTARY[name].assumed
        assert max(found) <= assumed


def test_every_loss_has_a_row():
    rows = {row.name for row in TABLE.values() if row.family}
    found = {title: part for title, part in sections(ACCURACY, "###").items() if "," in title}
    assert len(found) == 2 * len(errors.DTYPES)
    for part in found.values():
        (table,) = tables(part)
        assert {name.partition(",")[0] for name in table} == rows
    assert {row.name for row in TABLE.values()} - rows == {"safe_softmax_cross_entropy"}
    assert "`safe_softmax_cross_entropy` is `softmax_cross_entropy`" in ACCURACY


def test_errors_are_within_the_constants_where_these_are_the_whole_bound():
    for title, part in sections(ACCURACY, "###").items():
        if title not in ("float32, values", "float64, values"):
            continue
        (table,) = tables(part)
        for name, row in table.items():
            _, (constant, per_nat), _ = report.BOUNDS[TABLE[name.partition(",")[0]].family]
            ours = numbers(row[:4] if title.startswith("float32") else row[:1])
            assert per_nat or max(ours) <= constant, name


def test_the_budget_adds_up_to_what_is_guaranteed():
    (budget,) = tables(sections(EXACTNESS, "##")["What the errors add up to"])
    *each, _, _ = numbers(budget.pop("eps each"))
    names = ("exp", "expm1", "log", "log1p", "quotient")
    assumed = [devices.ELEMENTARY[name].assumed for name in names]
    assert each == [*assumed, devices.ELEMENTARY["sum"].assumed, 0.5]
    for name, row in budget.items():
        *counts, together, guaranteed = numbers(row)
        assert together == sum(n * error for n, error in zip(counts, each, strict=True)), name
        assert together <= guaranteed, name
        family = name.partition(",")[0]
        _, of_value, of_gradient = report.BOUNDS[family]
        assert guaranteed == (of_gradient if "gradient" in name else of_value)[0], name
    of_values = {name.partition(",")[0] for name in budget if ", value" in name}
    assert of_values == report.BOUNDS.keys() - {"logsumexp"}


@pytest.mark.xdist_group("tpu")
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the figures are of a CPU")
def test_the_figures_are_measured():
    """Those of one loss, again."""
    (table,) = tables(sections(ACCURACY, "###")["float32, values"])
    name = "sigmoid_binary_cross_entropy"
    family = errors.Family(*report.BOUNDS["sigmoid"], ((name, "binary logits, soft labels"),))

    def measured():
        (line,) = errors.measure((family,), {"jxent": vars(jxent)}, ("float32",))
        return line.errors["jxent"][0].worst

    on_cpu, on_v5e = numbers(table[name][:2])
    assert measured() == pytest.approx(on_cpu, abs=0.5)
    worst = 0.0
    for kind in ("drawn", "largest"):
        with tpu.arithmetic(f"v5e-{kind}"):
            worst = max(worst, measured())
    assert worst == pytest.approx(on_v5e, abs=0.5)
