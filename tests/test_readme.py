"""The Python of the README and of the docs' pages runs, and prints what it says."""

import doctest
import inspect
import re
from pathlib import Path

import pytest

import jxent

pytestmark = pytest.mark.peer

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(readme, language):
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, readme.read_text("utf-8"), re.DOTALL | re.MULTILINE)


BLOCKS = [(page, block) for page in (READMES[0], *PAGES) for block in blocks(page, "python")]


def test_there_are_blocks():
    """One to run and one to compare, at least."""
    assert sum(page == READMES[0] for page, _ in BLOCKS) >= 2
    assert any(">>>" in block for _, block in BLOCKS)


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[page.name for page, _ in BLOCKS])
def test_block(page, block):
    """Each stands alone, as a reader would copy it."""
    if ">>>" not in block:
        exec(compile(block, page.name, "exec"), {})
        return
    example = doctest.DocTestParser().get_doctest(block, {}, page.stem, page.name, 0)
    printed = []
    doctest.DocTestRunner().run(example, out=printed.append)
    assert not printed, "".join(printed)


def test_chinese_has_the_same_blocks():
    """What runs above runs there too: code, commands and the table of expressions are equal."""
    for language in ("python", "sh"):
        assert blocks(READMES[1], language) == blocks(READMES[0], language)
    tables = [re.findall(r"^\| `F\..*$", p.read_text("utf-8"), re.MULTILINE) for p in READMES]
    assert tables[0] == tables[1]


@pytest.mark.parametrize("page", [*READMES, *PAGES], ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    """To files of the repository."""
    links = re.findall(r"\]\((?!https?:)(.*?)\)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_figure_has_its_command():
    """Each section of the page with tables says which program prints them, and all are there."""
    _, *sections = re.split(r"^## ", (ROOT / "docs/performance.md").read_text("utf-8"), flags=re.M)
    tables = [section for section in sections if "|--:|" in section]
    programs = [set(re.findall(r"^`python (benchmarks/\w+\.py)", s, re.M)) for s in tables]
    assert all(programs)
    runs = re.findall(r'\["(\w+\.py)"', (ROOT / "benchmarks/__main__.py").read_text("utf-8"))
    assert set().union(*programs) == {f"benchmarks/{file}" for file in runs}


def losses_of(readme):
    """The functions of the table "Which loss", in its order."""
    return re.findall(
        r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", readme.read_text("utf-8"), re.M))
    )


def test_every_function_is_in_the_table():
    """A public function that the README does not name would not be found."""
    public = {name for name in dir(jxent) if inspect.isfunction(getattr(jxent, name))}
    found = losses_of(READMES[0])
    assert {name for name in public if name[0] != "_"} <= set(found)
    # The Chinese table is a translation: it may lack what is new, and has the same order.
    chinese = losses_of(READMES[1])
    assert chinese == [name for name in found if name in chinese]
