"""A program that calls every public function passes mypy's strict checks, and runs."""

import re
import subprocess
import sys

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


@pytest.mark.full
def test_it_is_well_typed(tmp_path):
    """And a program that is not is told so: the annotations say something."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(program())
    wrong.write_text(
        "import jxent\n"
        "jxent.softmax_entropy({})\n"
        "jxent.softmax_entropy([0.0], ignore_index=0)\n"
        "loss: str = jxent.sigmoid_entropy(0.0)\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"]
    command += [f"--cache-dir={tmp_path}", str(right), str(wrong)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.stderr == ""
    errors = re.findall(r"(\w+)\.py:(\d+): error: .*\[(.*)\]$", run.stdout, re.MULTILINE)
    assert errors == [
        ("wrong", "2", "arg-type"),
        ("wrong", "3", "call-arg"),
        ("wrong", "4", "assignment"),
    ], run.stdout
