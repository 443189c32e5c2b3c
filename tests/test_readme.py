"""The README's Python runs, and prints what it says."""

import doctest
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.peer

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def test_there_are_blocks():
    """One to run and one to compare, at least."""
    assert len(BLOCKS) >= 2
    assert any(">>>" in block for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block(block):
    """Each stands alone, as a reader would copy it."""
    if ">>>" not in block:
        exec(compile(block, str(README), "exec"), {})
        return
    example = doctest.DocTestParser().get_doctest(block, {}, "README", str(README), 0)
    printed = []
    doctest.DocTestRunner().run(example, out=printed.append)
    assert not printed, "".join(printed)


def test_functions_are_mentioned():
    """A public function that the README does not name would not be found."""
    import jxent

    public = {name for name in dir(jxent) if not name.startswith("_") and name.islower()}
    functions = {name for name in public if callable(getattr(jxent, name))}
    assert functions - set(re.findall(r"\w+", README.read_text())) == set()
