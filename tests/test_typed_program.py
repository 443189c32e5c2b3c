"""A program that uses every public function passes mypy's strict checks, and runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typed_program
from cases import BARE

pytestmark = pytest.mark.peer

SOURCE = Path(typed_program.__file__)


def test_it_uses_every_function():
    assert {case.name for case in BARE} == set(re.findall(r"jxent\.(\w+)\(", SOURCE.read_text()))


def test_it_runs():
    assert len(typed_program.losses()) == len(BARE) - 2  # log_softmax and softmax are arguments


def test_it_is_well_typed(tmp_path):
    """And a program that is not is told so: the annotations say something."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import jxent\n"
        "jxent.softmax_entropy({})\n"
        "jxent.softmax_entropy([0.0], ignore_index=0)\n"
        "loss: str = jxent.sigmoid_entropy(0.0)\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"]
    command += [f"--cache-dir={tmp_path}", str(SOURCE), str(wrong)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.stderr == ""
    errors = re.findall(r"(\w+)\.py:(\d+): error: .*\[(.*)\]$", run.stdout, re.MULTILINE)
    assert errors == [
        ("wrong", "2", "arg-type"),
        ("wrong", "3", "call-arg"),
        ("wrong", "4", "assignment"),
    ], run.stdout
