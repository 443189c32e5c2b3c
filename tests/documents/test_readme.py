"""The Python of the README and of the docs' pages runs, and prints what it says."""

import doctest
import inspect
import re
import runpy
from pathlib import Path

import pytest

import jxent
from support.tiers import quick_rows

pytestmark = pytest.mark.peer

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = sorted((ROOT / "docs").glob("*.md"))
CHINESE = [page for page in PAGES if page.name.endswith(".zh.md")]
ENGLISH = [page for page in PAGES if page not in CHINESE]
# The figures, and the page for those who want to learn the method.
ENGLISH_ALONE = {"accuracy.md", "exactness.md", "performance.md"}


def blocks(readme, language):
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, readme.read_text("utf-8"), re.DOTALL | re.MULTILINE)


BLOCKS = [(page, b) for page in (READMES[0], *ENGLISH) for b in blocks(page, "python")]
OF_README = [i for i, (page, _) in enumerate(BLOCKS) if page == READMES[0]]
# Pages of lists and figures have no code of their own.
WITHOUT_CODE = {"accuracy.md", "guarantees.md", "performance.md", "which_loss.md"}


def test_there_are_blocks():
    """Two in the README, and one on every page."""
    assert len(OF_README) >= 2
    with_code = {page.name for page, _ in BLOCKS if page != READMES[0]}
    assert {page.name for page in ENGLISH} == with_code | WITHOUT_CODE


@pytest.mark.parametrize(
    ("page", "block"), quick_rows(BLOCKS, *OF_README), ids=[page.name for page, _ in BLOCKS]
)
def test_block(page, block):
    """Each stands alone, as a reader would copy it."""
    if ">>>" not in block:
        exec(compile(block, page.name, "exec"), {})
        return
    example = doctest.DocTestParser().get_doctest(block, {}, page.stem, page.name, 0)
    # Each block compares something: one that prints nothing would pass whatever it computes.
    assert any(step.want for step in example.examples)
    printed = []
    doctest.DocTestRunner().run(example, out=printed.append)
    assert not printed, "".join(printed)


def test_chinese_has_the_same_pages():
    """All of the others are there in Chinese."""
    english = {page.name for page in ENGLISH} - ENGLISH_ALONE
    assert {page.name.replace(".zh.md", ".md") for page in CHINESE} == english


@pytest.mark.parametrize("page", [READMES[1], *CHINESE], ids=lambda path: path.name)
def test_chinese_page_is_complete(page):
    """It has the code, the rows of expressions and as many sections as the page that it is of."""

    def shape(page):
        text = page.read_text("utf-8")
        code = [blocks(page, language) for language in ("python", "sh")]
        rows = re.findall(r"^\| `(?:F|losses)\..*$", text, re.MULTILINE)
        return code, rows, len(re.findall(r"^## ", text, re.MULTILINE))

    english = page.with_name(re.sub(r"\.zh(-CN)?", "", page.name))
    assert shape(page) == shape(english)
    assert f"]({page.name})" in english.read_text("utf-8")
    assert f"]({english.name})" in page.read_text("utf-8")


def test_chinese_is_up_to_date():
    """Each English section is as it was when it was translated."""
    stale = runpy.run_path(str(ROOT / "docs/translations.py"))["stale"]()
    todo = "Translate these sections, then run `python docs/translations.py --update`:"
    assert not stale, "\n".join([todo, *stale])


def test_install_line():
    """The landing page has a command of the README's, which is run from a checkout."""
    (line,) = blocks(ROOT / "docs/index.md", "sh")
    assert line in blocks(READMES[0], "sh")[0]


@pytest.mark.parametrize("page", [*READMES, *PAGES], ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    """To files of the repository. What is generated is there once the documentation is built."""
    links = re.findall(r"\]\((?!https?:|generated/)(.*?)\)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_figure_has_its_command():
    """Each section of the page with tables says which program prints them, and all are there."""
    _, *sections = re.split(r"^## ", (ROOT / "docs/performance.md").read_text("utf-8"), flags=re.M)
    sections = [section for section in sections if "|--:|" in section]
    sections.append((ROOT / "docs/accuracy.md").read_text("utf-8"))
    programs = [set(re.findall(r"^`python (benchmarks/\w+\.py)", s, re.M)) for s in sections]
    assert all(programs)
    runs = re.findall(r'\["(\w+\.py)"', (ROOT / "benchmarks/__main__.py").read_text("utf-8"))
    assert set().union(*programs) == {f"benchmarks/{file}" for file in runs}


def losses_of(readme):
    """The functions of the table "Which loss", in its order."""
    return re.findall(
        r"`(\w+)`", "\n".join(re.findall(r"^\| (`.*?) \|", readme.read_text("utf-8"), re.M))
    )


def test_every_function_is_in_the_table():
    """A public function that "Which loss" does not name would not be found."""
    public = {name for name in dir(jxent) if inspect.isfunction(getattr(jxent, name))}
    found = losses_of(ROOT / "docs/which_loss.md")
    assert {name for name in public if name[0] != "_"} <= set(found)
    # The Chinese table is a translation: it may lack what is new, and has the same order.
    chinese = losses_of(ROOT / "docs/which_loss.zh.md")
    assert chinese == [name for name in found if name in chinese]
    assert set(losses_of(READMES[0])) <= set(found)
    assert losses_of(READMES[1]) == losses_of(READMES[0])
