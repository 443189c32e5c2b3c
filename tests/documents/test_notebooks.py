"""The notebooks run, from the first cell to the assertions in the last, in kernels of their own."""

import ast
import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(
    (ROOT / "notebooks").glob("*.ipynb"), key=lambda path: (int(path.name.split("_")[0]), path.name)
)
CHINESE = [path for path in NOTEBOOKS if path.name.endswith(".zh.ipynb")]
PACKAGES = (
    *("absl", "chex", "flax", "ipykernel", "matplotlib", "nbclient", "optax", "sklearn", "tqdm"),
)

# A notebook with a translation is run as that: `test_chinese_equals_english` compares their code.
RUN = [path for path in NOTEBOOKS if path.with_name(f"{path.stem}.zh.ipynb") not in CHINESE]


def cells(path, kind="code"):
    return [c for c in json.loads(path.read_text())["cells"] if kind in (None, c["cell_type"])]


def translates(cell):
    """Whether it is the cell of a Chinese notebook that translates the texts in the pictures."""
    return "CHINESE = {" in "".join(cell["source"])


def code(path):
    """The code of all cells, parsed: without comments."""
    return [ast.parse("".join(cell["source"])) for cell in cells(path)]


def test_there_are_notebooks():
    """Numbered from 1, and the first two in Chinese as well."""
    english = [path.name.split("_")[0] for path in NOTEBOOKS if path not in CHINESE]
    assert english == [str(i + 1) for i in range(10)]
    assert [path.name[0] for path in CHINESE] == list("12")


# These are the same in Chinese, as is what has no word of three letters, such as `H(p)`.
NAMES = {"PyTorch", "jxent", "log 2", "logit", "optax", "pos_weight=14"}
# Added to the cell that translates, and to the last one: no text without a translation is drawn.
WATCH = """
def watch(text, words, original=Text.set_text):
    drawn.add(str(words or ""))
    original(text, words)

drawn, Text.set_text = set(), watch"""
ALL_KNOWN = f"""
import re
assert all(re.search("[\\u3000-\\uffff]", words) for words in CHINESE.values())
unknown = drawn - {{*CHINESE, *CHINESE.values()}} - {NAMES}
unknown = {{text for text in unknown if re.search("[A-Za-z]{{3}}", re.sub("[$].*?[$]", "", text))}}
assert not unknown, unknown
assert set(CHINESE) <= drawn"""


@pytest.mark.notebooks
@pytest.mark.parametrize("path", RUN, ids=lambda path: path.name)
def test_it_runs(path, tmp_path, monkeypatch):
    """In an empty folder, so that nothing in the checkout helps or changes; without a warning."""
    for package in PACKAGES:
        pytest.importorskip(package, reason=f"the extra `notebooks` is not installed: {package}")
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    notebook = nbformat.read(path, as_version=4)
    for cell in filter(translates, notebook.cells):
        cell.source += WATCH
        notebook.cells[-1].source += ALL_KNOWN
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(
        notebook, kernel_name="python3", timeout=300, resources=resources
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [o.text for o in outputs if "Warning: " in o.get("text", "")] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_is_complete(path):
    """It ends in assertions; and every cell was run, in order, without an error, with pictures."""
    assert any(isinstance(statement, ast.Assert) for statement in code(path)[-1].body)
    counts = [cell["execution_count"] for cell in cells(path)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data"}
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", CHINESE, ids=lambda path: path.name)
def test_chinese_equals_english(path):
    """The same cells; the same code but for comments, one cell, and the name of a saved picture."""
    english = path.with_name(path.name.replace(".zh.", "."))
    found = cells(path, None)
    assert sum(map(translates, found)) == 1
    found = [cell for cell in found if not translates(cell)]
    assert [c["cell_type"] for c in found] == [c["cell_type"] for c in cells(english, None)]
    sources = ["".join(c["source"]) for c in found if c["cell_type"] == "code"]
    trees = [ast.parse(source.replace(".zh.svg", ".svg")) for source in sources]
    assert [ast.dump(tree) for tree in trees] == [ast.dump(tree) for tree in code(english)]
