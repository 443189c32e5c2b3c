"""The notebooks run, from the first cell to the assertions in the last, in kernels of their own."""

import ast
import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(
    (ROOT / "notebooks").glob("*.ipynb"), key=lambda path: (int(path.name.split("_")[0]), path.name)
)
CHINESE = [path for path in NOTEBOOKS if path.name.endswith(".zh.ipynb")]
PACKAGES = (
    "absl",
    "chex",
    "flax",
    "ipykernel",
    "matplotlib",
    "nbclient",
    "optax",
    "sklearn",
    "tqdm",
)

EVERY = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def cells(path, kind="code"):
    return [c for c in json.loads(path.read_text())["cells"] if kind in (None, c["cell_type"])]


def code(path):
    """The code of all cells, parsed: without comments."""
    return [ast.parse("".join(cell["source"])) for cell in cells(path)]


def test_there_are_notebooks():
    """Numbered from 1, and the first two in Chinese as well."""
    english = [path.name.split("_")[0] for path in NOTEBOOKS if path not in CHINESE]
    assert english == [str(i + 1) for i in range(10)]
    assert [path.name[0] for path in CHINESE] == list("12")


# The Chinese ones have the same code, which is tested below.
@pytest.mark.notebooks
@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path not in CHINESE], ids=lambda path: path.name
)
def test_it_runs(path, tmp_path, monkeypatch):
    """In an empty folder, so that nothing in the checkout helps or changes; without a warning."""
    for package in PACKAGES:
        pytest.importorskip(package, reason=f"the extra `notebooks` is not installed: {package}")
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
        notebook, kernel_name="python3", timeout=300, resources=resources
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [o.text for o in outputs if "Warning: " in o.get("text", "")] == []


@EVERY
def test_it_ends_in_assertions(path):
    """So that a wrong number is an error."""
    assert any(isinstance(statement, ast.Assert) for statement in code(path)[-1].body)


@EVERY
def test_outputs_are_kept(path):
    """Every cell was run, in order, without an error; a reader sees the pictures at once."""
    counts = [cell["execution_count"] for cell in cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", CHINESE, ids=lambda path: path.name)
def test_chinese_equals_english(path):
    """The same code but for comments, and the same cells."""
    english = path.with_name(path.name.replace(".zh.", "."))
    assert [ast.dump(tree) for tree in code(path)] == [ast.dump(tree) for tree in code(english)]
    assert [c["cell_type"] for c in cells(path, None)] == [
        c["cell_type"] for c in cells(english, None)
    ]
