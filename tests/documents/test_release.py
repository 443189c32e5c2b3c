"""A release says the same everywhere: its version, its date, and where the project is.

The files are read inside of the tests: copies of the checkout, in which others run, may lack them.
"""

import datetime
import json
import os
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

import jxent

ROOT = Path(__file__).parents[2]
PINNED = r"uses: +(?P<action>[\w-]+/[\w/-]+)@(?P<hash>[0-9a-f]{40}) # (?P<version>v\d+\.\d+\.\d+)"


def text(path):
    return (ROOT / path).read_text("utf-8")


def files(directory=ROOT):
    """All files but those of git, and those that it ignores; also in a copy without git."""
    ignored = [".git", *(line.strip("/") for line in text(".gitignore").split())]
    for path in sorted(directory.iterdir()):
        names = path.name, path.relative_to(ROOT).as_posix()
        if path.is_symlink() or any(fnmatch(n, pattern) for n in names for pattern in ignored):
            continue
        if path.is_dir():
            yield from files(path)
        else:
            yield path


def found(pattern):
    """What the pattern matches, as pairs of a file's name and the match, in all files."""
    for path in files():
        for match in re.finditer(pattern, path.read_text("utf-8", errors="ignore")):
            yield path.relative_to(ROOT).as_posix(), match


def releases():
    """Version and date of each release, the newest first, as the changelog's headings have them."""
    headings = re.findall(r"^## (.*)$", text("CHANGELOG.md"), re.M)
    headings = headings[headings[0] == "Unreleased" :]
    matches = [re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)", h) for h in headings]
    assert all(matches), headings
    return [(m[1], datetime.date.fromisoformat(m[2])) for m in matches]


def test_version_and_date():
    """Package, changelog, citation and documentation have one version, and one date."""
    version, date = releases()[0]
    assert jxent.__version__ == version
    citation = yaml.safe_load(text("CITATION.cff"))
    assert (citation["version"], citation["date-released"]) == (version, date)
    assert "\nrelease = jxent.__version__\n" in text("docs/conf.py")
    named = found(r"\bjxent(?: v?|==|-)(\d+\.\d+\.\d+)\b")
    wrong = [(name, m[0]) for name, m in named if m[1] != version and name != "CHANGELOG.md"]
    assert wrong == []


def test_newer_releases_come_first():
    numbers = [tuple(map(int, version.split("."))) for version, _ in releases()]
    assert numbers == sorted(set(numbers), reverse=True)
    dates = [date for _, date in releases()]
    assert dates == sorted(dates, reverse=True)


def test_address_of_the_repository():
    """It is named in pyproject.toml: the package asks its metadata, and other files agree."""
    address = tomllib.loads(text("pyproject.toml"))["project"]["urls"]["Homepage"]
    host, owner, name = address.rsplit("/", 2)
    assert host == "https://github.com"
    assert yaml.safe_load(text("CITATION.cff"))["repository-code"] == address
    # On GitHub itself, its servers of files, and Colab's `/github/owner/name`.
    ours = found(rf"github[\w.]*[:/]([\w.-]+/(?:jxent|{re.escape(name)}))(?:\.git)?(?![\w-])")
    places = [(file, match[1]) for file, match in ours]
    assert {"README.md", "README.zh-CN.md", "docs/index.md"} <= {file for file, _ in places}
    assert [place for place in places if place[1] != f"{owner}/{name}"] == []
    assert [file for file, _ in places if file.startswith("jxent/")] == []


def test_readme_on_pypi():
    """Its links and its picture lead to files of this version in the repository."""
    settings = tomllib.loads(text("pyproject.toml"))
    hook = settings["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    assert hook["fragments"] == [{"path": "README.md"}]
    shown = text("README.md")
    for rule in hook["substitutions"]:
        replacement = rule["replacement"].replace("$HFPR_VERSION", jxent.__version__)
        shown = re.sub(rule["pattern"], replacement, shown)
    address = settings["project"]["urls"]["Homepage"]
    place = rf"{address}/(?:raw|blob)/v{jxent.__version__}/"
    assert re.sub(rf"(?<=\]\(){place}", "", shown) == text("README.md")
    links = re.findall(r"\]\((.*?)\)", shown)
    assert [link for link in links if not link.startswith("https://")] == []
    files = [path for link in links for path in re.findall(rf"^{place}(.*)", link)]
    assert "LICENSE" in files
    assert [file for file in files if not (ROOT / file).exists()] == []
    assert re.findall(r"!\[[^]]*\]\([^)]*/(raw|blob)/", shown) == ["raw"]


def test_notebooks_open_in_colab():
    """Each links to itself, and says how to install what it needs there."""
    address = tomllib.loads(text("pyproject.toml"))["project"]["urls"]["Homepage"]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        link = f"({address}/blob/main/notebooks/{path.name})"
        link = link.replace("https://github.com/", "https://colab.research.google.com/github/")
        first = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
        assert link in first
        assert f"`%pip install git+{address} " in first


def test_actions_are_pinned():
    """By a hash, because a tag can be moved; one action has one version in all workflows."""
    workflows = sorted((ROOT / ".github/workflows").iterdir())
    lines = [s for path in workflows for s in path.read_text("utf-8").split("\n") if "uses:" in s]
    pins = [re.fullmatch(rf" +(?:- )?{PINNED}", line) for line in lines]
    assert [line for line, pin in zip(lines, pins, strict=True) if not pin] == []
    assert len({pin["action"] for pin in pins}) == len({pin[0].strip("- ") for pin in pins}) == 5


def test_checks_run_with_the_pythons_that_they_need():
    (job,) = yaml.safe_load(text(".github/workflows/ci.yml"))["jobs"].values()
    (pythons,) = [s["with"]["python-version"] for s in job["steps"] if "python" in str(s)]
    assert pythons.split() == re.findall(r"^environment \w+ ([\d.]+)", text(".ci/run"), re.M)
    assert job["steps"][-1]["run"] == ".ci/run"
    assert os.access(ROOT / ".ci/run", os.X_OK)


@pytest.mark.parametrize("tag", ["v{}", "{}", "v{}.0", "v{}rc1", "v", "v0.0.0"])
def test_only_a_tag_of_this_version_is_published(tag):
    """The workflow's own commands say so, before the archives are made."""
    jobs = yaml.safe_load(text(".github/workflows/publish.yml"))["jobs"]
    steps = [step for step in jobs["build"]["steps"] if "run" in step]
    assert steps[0]["env"] == {"TAG": "${{ github.ref_name }}"}
    environment = os.environ | {"TAG": tag.format(jxent.__version__)}
    command = ["bash", "-e", "-c", steps[0]["run"]]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False)
    assert (done.returncode == 0) == (tag == "v{}")
    commands = "\n".join(step["run"] for step in steps[1:])
    order = ["python -m build", "twine check --strict", 'cd "$RUNNER_TEMP"', "python -m jxent"]
    assert sorted(order, key=commands.index) == order


def test_only_the_last_job_may_publish():
    """It needs the other one, holds the permission alone, and runs no commands."""
    workflow = yaml.safe_load(text(".github/workflows/publish.yml"))
    assert workflow["permissions"] == {"contents": "read"}
    build, publish = workflow["jobs"].values()
    assert "permissions" not in build
    assert publish["permissions"] == {"id-token": "write"}
    assert (publish["needs"], publish["environment"]) == ("build", "pypi")
    assert [step for step in publish["steps"] if "run" in step] == []


def test_issue_forms():
    """They are forms, and the one for wrong results asks for the numerics report."""
    folder = ROOT / ".github/ISSUE_TEMPLATE"
    forms = {path.name: yaml.safe_load(path.read_text("utf-8")) for path in folder.iterdir()}
    assert forms.pop("config.yml").keys() == {"blank_issues_enabled", "contact_links"}
    for form in forms.values():
        assert form.keys() == {"name", "description", "labels", "body"}
        assert all(field["id"] and field["attributes"]["label"] for field in form["body"])
    report, *fields = forms["wrong_result.yml"]["body"]
    assert "`python -m jxent`" in report["attributes"]["description"]
    assert report["validations"] == {"required": True}
    assert [field["id"] for field in fields] == ["program", "came", "expected", "versions"]
