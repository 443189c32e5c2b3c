"""The public surface: names, docstrings, signatures, and what the import brings along."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jxent
from support.cases import BARE
from support.tiers import quick

# What makes losses and what they take in place of logits are no losses.
WITHOUT_CASE = {"chunked", "LinearLogits"}
NAMES = {case.name for case in BARE} | WITHOUT_CASE

PAGE = (Path(__file__).parents[2] / "docs/exactness.md").read_text("utf-8")
SOURCES = set(re.findall(r"`(\w+)`", PAGE.partition("## Sources")[2]))
"""The functions whose formula is in the literature that the page lists."""


def test_every_public_name_is_a_case():
    public = {name for name in dir(jxent) if not name.startswith("_")}
    assert {name for name in public if not inspect.ismodule(getattr(jxent, name))} == NAMES


def test_help_is_a_table():
    """`help(jxent)` begins with every function, on lines that a terminal does not break."""
    text = inspect.getdoc(jxent)
    found = dict(re.findall(r"^  (\w+) +(\S.*)$", text, re.MULTILINE))
    assert found.keys() == NAMES
    assert found["entropy"] == "Entropy of a distribution"
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", sorted(NAMES))
def test_docstring(name):
    function = getattr(jxent, name)
    text = inspect.getdoc(function)
    sections = [".. math::", "Args:", "Returns:", "Note:", "Example:"]
    positions = [text.find(f"\n{section}") for section in sections]
    assert -1 not in positions, dict(zip(sections, positions, strict=True))
    assert positions == sorted(positions)
    first, blank = text.splitlines()[:2]
    shapes = r": ``\[.*\] -> \[.*\]``\.$"
    assert re.search(shapes, first), "an editor shows this line first: what goes in, what comes out"
    assert not blank
    assert ">>> import jxent" in text or "import jax.numpy as jnp, jxent" in text
    assert "References:" in text or name in SOURCES
    arguments = text[text.index("Args:") : text.index("Returns:")]
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert f"\n  {parameter.name}: " in arguments, parameter.name
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name


@pytest.mark.parametrize("flags", quick([[], ["-OO"]]))
def test_import(flags):
    """It brings only JAX, and computes nothing, so that a program may still configure JAX after it.

    It needs no docstrings.
    """
    peers = ["chex", "distrax", "flax", "mpmath", "optax", "scipy.stats", "tensorflow", "torch"]
    code = (
        "import sys, jxent; from jax._src import xla_bridge;"
        f" print([m for m in {peers} if m in sys.modules], xla_bridge.backends_are_initialized())"
    )
    command = [sys.executable, *flags, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "[] False"
