"""The table of errors over every number, with few of the float32 ones: the bounds hold in it."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from jxent._selftest.table import TABLE
from support.tiers import quick
from support.tolerances import SECOND_DERIVATIVE, UNITS

PROGRAM = Path(__file__).parents[2] / "benchmarks/exhaustive.py"
LOSSES = ["binary_entropy", "entropy", "gamma 0.5", "gamma 1", "gamma 2"]


@pytest.mark.parametrize("losses", quick(LOSSES))
def test_errors_are_within_the_bounds(losses, monkeypatch, capsys):
    """A unit in the last place is at most one eps of the result."""
    arguments = ["--every", "65537", "--losses", losses]
    monkeypatch.setattr(sys, "argv", [str(PROGRAM), *arguments])
    runpy.run_path(str(PROGRAM))["main"]()
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| (\w+).*? \| (\w*float\w+) \| (.*) \|$", printed, re.MULTILINE)
    assert len(rows) >= 3
    for name, dtype, cells in rows:
        units = UNITS[TABLE[name].family]
        # Derivatives in 16 bits are within one unit there, and the far smaller one of float32.
        bounds = (units, units, SECOND_DERIVATIVE) if dtype == "float32" else (units, 1.01, 1.01)
        for cell, bound in zip(cells.split(" | "), bounds, strict=True):
            assert float(cell.split()[0]) <= bound, (name, dtype, cells)
    assert float(re.search(r"off by at most (\S+) of", printed)[1]) < 1e-12
