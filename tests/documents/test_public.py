"""The public surface: names, docstrings, signatures, and what the import brings along."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import optax
import pytest

import jxent
from support.cases import BARE

_SHARED = [case for case in BARE if hasattr(optax.losses, case.name)]

# What makes losses and what they take in place of logits are no losses.
WITHOUT_CASE = {"chunked", "LinearLogits"}
NAMES = {case.name for case in BARE} | WITHOUT_CASE

PAGE = (Path(__file__).parents[2] / "docs/exactness.md").read_text("utf-8")
SOURCES = set(re.findall(r"`(\w+)`", PAGE.partition("## Sources")[2]))
"""The functions whose formula is in the literature that the page lists."""

EVERY = pytest.mark.parametrize("case", BARE, ids=str)


def _parameters(function):
    return list(inspect.signature(function).parameters.values())


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
    for parameter in _parameters(function):
        assert f"\n  {parameter.name}: " in arguments, parameter.name


@pytest.mark.parametrize("name", sorted(NAMES))
def test_annotations(name):
    signature = inspect.signature(getattr(jxent, name))
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty


@pytest.mark.parametrize("case", _SHARED, ids=str)
def test_signature_begins_as_in_optax(case):
    """The arguments of optax come first, with their names, order and defaults."""
    theirs = _parameters(getattr(optax.losses, case.name))
    ours = _parameters(case.function)
    assert [p.name for p in ours[: len(theirs)]] == [p.name for p in theirs]
    assert [p.default for p in ours[: len(theirs)]] == [p.default for p in theirs]
    for mine, other in zip(ours, theirs, strict=False):
        assert mine.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        assert other.kind in (mine.kind, inspect.Parameter.KEYWORD_ONLY)
    for extra in ours[len(theirs) :]:
        assert extra.kind is inspect.Parameter.KEYWORD_ONLY
        assert extra.default is not inspect.Parameter.empty


def test_optax_has_what_is_said_to_be_shared():
    assert {case.name for case in _SHARED} == {
        "softmax_cross_entropy",
        "softmax_cross_entropy_with_integer_labels",
        "safe_softmax_cross_entropy",
        "poly_loss_cross_entropy",
        "sigmoid_binary_cross_entropy",
        "sigmoid_focal_loss",
        "kl_divergence",
        "kl_divergence_with_log_targets",
        "generalized_kl_divergence",
    }


@pytest.mark.full
def test_without_docstrings_it_is_imported_all_the_same():
    run = subprocess.run([sys.executable, "-OO", "-c", "import jxent"], check=False)
    assert run.returncode == 0


def test_import_brings_only_jax():
    peers = ["chex", "distrax", "flax", "mpmath", "optax", "scipy.stats", "tensorflow", "torch"]
    code = f"import sys, jxent; print([m for m in {peers} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_import_computes_nothing():
    """No device is touched, so that a program may still configure JAX afterwards."""
    code = (
        "import jxent; from jax._src import xla_bridge;"
        " print(xla_bridge.backends_are_initialized())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
