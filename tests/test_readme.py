"""The README's Python runs, and prints what it says, in both languages."""

import doctest
import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.peer

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]


def blocks(readme, language):
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, readme.read_text("utf-8"), re.DOTALL | re.MULTILINE)


BLOCKS = blocks(READMES[0], "python")


def test_there_are_blocks():
    """One to run and one to compare, at least."""
    assert len(BLOCKS) >= 2
    assert any(">>>" in block for block in BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block(block):
    """Each stands alone, as a reader would copy it."""
    if ">>>" not in block:
        exec(compile(block, "README.md", "exec"), {})
        return
    example = doctest.DocTestParser().get_doctest(block, {}, "README", "README.md", 0)
    printed = []
    doctest.DocTestRunner().run(example, out=printed.append)
    assert not printed, "".join(printed)


def test_chinese_has_the_same_blocks():
    """What runs above runs there too: code, commands and the table of expressions are equal."""
    for language in ("python", "sh"):
        assert blocks(READMES[1], language) == blocks(READMES[0], language)
    tables = [re.findall(r"^\| `F\..*$", p.read_text("utf-8"), re.MULTILINE) for p in READMES]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_links_lead_somewhere(readme):
    """To files of the repository."""
    links = re.findall(r"\]\((?!https?:)(.*?)\)", readme.read_text("utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.name)
def test_functions_are_mentioned(readme):
    """A public function that the README does not name would not be found."""
    import jxent

    public = {name for name in dir(jxent) if not name.startswith("_") and name.islower()}
    functions = {name for name in public if callable(getattr(jxent, name))}
    assert functions - set(re.findall(r"\w+", readme.read_text("utf-8"), re.ASCII)) == set()
