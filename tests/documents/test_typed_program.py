"""A program that calls every public function passes mypy's strict checks, and runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.cases import BARE, CASES, EXAMPLES

pytestmark = pytest.mark.peer


def _call(case, convert):
    """With each positional argument as `convert` writes it, and every option as a keyword."""
    args = [convert(EXAMPLES[kind]) for kind in case.kinds]
    options = [f"{name}={value!r}" for name, value in (case.options | case.fixed).items()]
    return f"jxent.{case.name}({', '.join(args + options)})"


def program():
    """Each function of lists, of NumPy arrays, and of JAX arrays with its options."""
    calls = [_call(case, repr) for case in BARE]
    calls += [_call(case, lambda value: f"np.array({value})") for case in BARE]
    calls += [_call(case, lambda value: f"jnp.array({value})") for case in CASES]
    lines = "".join(f"    {call},\n" for call in calls)
    imports = "import jax\nimport jax.numpy as jnp\nimport numpy as np\n\nimport jxent\n\n"
    return f"{imports}losses: list[jax.Array] = [\n{lines}]\n"


@pytest.mark.full
def test_it_runs():
    space = {}
    exec(program(), space)
    assert len(space["losses"]) == 2 * len(BARE) + len(CASES)


WRONG = """\
import jxent
jxent.softmax_entropy({})
jxent.softmax_entropy([0.0], ignore_index=0)
loss: str = jxent.sigmoid_entropy(0.0)
policy = jxent.chunked(jxent.softmax_entropy, reduction="meen")
policy = jxent.chunked(jxent.softmax_entropy)
policy([0.0], wheer=[True])
jxent.linear_softmax_cross_entropy([0.0], [[0.0]], 0, reduction="average")
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """One that is well typed, and one with a mistake in nearly every line."""
    path = tmp_path_factory.mktemp("programs")
    right, wrong = path / "right.py", path / "wrong.py"
    right.write_text(program())
    wrong.write_text(WRONG)
    return right, wrong


def test_it_is_well_typed(programs, tmp_path):
    """And a program that is not is told so: the annotations say something."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    right, wrong = programs
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"]
    command += [f"--cache-dir={tmp_path}", str(right), str(wrong)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.stderr == ""
    errors = re.findall(r"(\w+)\.py:(\d+): error: .*\[(.*)\]$", run.stdout, re.MULTILINE)
    assert errors == [
        ("wrong", "2", "arg-type"),
        ("wrong", "3", "call-arg"),
        ("wrong", "4", "assignment"),
        ("wrong", "5", "arg-type"),
        ("wrong", "7", "call-arg"),
        ("wrong", "8", "arg-type"),
    ], run.stdout


def test_pyright(programs):
    """It finds the same mistakes. This is the package of pyright that downloads nothing."""
    pytest.importorskip("basedpyright", reason="basedpyright is not installed")
    folder = programs[0].parent
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "standard"}')
    command = ["basedpyright", "--outputjson", "--pythonpath", sys.executable]
    command += ["--project", str(folder)]
    run = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    found = json.loads(run.stdout)["generalDiagnostics"]
    errors = [(Path(x["file"]).stem, x["range"]["start"]["line"] + 1, x["rule"]) for x in found]
    assert sorted(errors) == [
        ("wrong", 2, "reportArgumentType"),
        ("wrong", 3, "reportCallIssue"),
        ("wrong", 4, "reportAssignmentType"),
        ("wrong", 5, "reportArgumentType"),
        ("wrong", 7, "reportCallIssue"),
        ("wrong", 8, "reportArgumentType"),
    ], run.stdout
