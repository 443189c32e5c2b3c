"""What CONTRIBUTING says of a new loss is enough: on a copy that follows it, all else has it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "gini_impurity"
CACHES = shutil.ignore_patterns(".*", "__pycache__", "_build", "generated", "build", "*.egg-info")


def steps():
    """The files that CONTRIBUTING names, and what belongs into each."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    return dict(re.findall(r"^`([\w/.]+)`[^`\n]*:\n\n```\w+\n(.*?)^```$", text, re.M | re.S))


def follow(copy):
    """A new file, and a line or a few at the place for them in three others."""
    for name, added in steps().items():
        path = copy / name
        text = path.read_text("utf-8") if path.exists() else ""
        places = {
            "jxent/__init__.py": [
                m.end() for m in re.finditer(r"^from \._[^(\n]*(\([^)]*\))?\n", text, re.M)
            ],
            "docs/which_loss.md": [m.end() for m in re.finditer(r"^\| `\w+`.* \|\n", text, re.M)],
        }
        at = places.get(name, [len(text)])[-1]
        path.write_text(text[:at] + added + text[at:], "utf-8")


def run(copy, *command):
    environment = os.environ | {"PYTHONPATH": str(copy)}
    done = subprocess.run(
        [sys.executable, *command], cwd=copy, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_four_places():
    assert list(steps()) == [
        "jxent/_impurity.py",
        "jxent/__init__.py",
        "jxent/_selftest/table.py",
        "docs/which_loss.md",
    ]


UNMAPPED = {"_contents.py", "_reduction.py", *("choices.py", "devices.py", "errors.py")} | {
    *("heads.py", "inputs.py", "iris.py", "report.py", "rows.py")
}
"""Files that no row of logits passes."""


def test_the_map_names_every_file_that_a_row_passes():
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    section = text.partition("## The way of a row")[2].partition("\n## ")[0]
    files = {path.name for path in (ROOT / "jxent").rglob("*.py")} - {"__main__.py"}
    assert set(re.findall(r"\w+\.py", section)) == files - UNMAPPED


@pytest.mark.full
def test_a_new_loss(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=CACHES)
    follow(copy)
    assert NAME in run(copy, "-c", "import jxent; print(jxent.__doc__)")
    run(copy, "docs/reference.py")
    run(copy, "docs/translations.py", "--update")
    assert NAME in (copy / "docs/generated/reference.md").read_text("utf-8")
    program = f"from jxent._selftest import report; print({NAME!r} in str(report.FAMILIES))"
    assert run(copy, "-c", program).strip() == "True"
    chosen = f"{NAME} or test_public or test_typed or in_the_table or up_to_date"
    out = run(copy, "-m", "pytest", "--full", "-p", "no:cacheprovider", "-k", chosen, "-rA")
    of_the_loss = {line.split("::")[0] for line in out.splitlines() if NAME in line}
    # Its own doctest, and the tests of every kind that a case goes through.
    kinds = ["accuracy", "arguments", "derivatives", "dtypes", "no_nans", "policies"]
    files = [f"tests/every_loss/test_{kind}.py" for kind in [*kinds, "transformations"]]
    assert {f"PASSED {file}" for file in ["jxent/_impurity.py", *files]} <= of_the_loss
