"""The public surface: names, docstrings, signatures, and what the import brings along."""

import functools
import inspect
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jxent
from support.cases import BARE
from support.tiers import quick

# What makes losses, what they take in place of logits, and the weights of labels are no losses.
WITHOUT_CASE = {"chunked", "LinearLogits", "label_weights"}
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
    assert ">>> import jxent" in text or "jax.numpy as jnp, jxent" in text
    assert "References:" in text or name in SOURCES
    returned = text[text.index("Returns:") :].splitlines()[1]
    assert ":" not in re.sub("`[^`]*`", "", returned), "Sphinx takes what is before it for a type"
    arguments = text[text.index("Args:") : text.index("Returns:")]
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert f"\n  {parameter.name}: " in arguments, parameter.name
        assert parameter.annotation is not inspect.Parameter.empty, parameter.name


@pytest.mark.parametrize("case", BARE, ids=str)
def test_its_name_is_in_what_is_compiled(case, caplog):
    """In the names of operations, which profiles show, and in the logs of eager calls."""
    args = case.args()
    step = jax.jit(jax.grad(lambda x: jnp.sum(case.call(x, *args[1:]))))
    assert f"jvp({case.name})" in step.lower(args[0]).as_text(debug_info=True)
    if case.name in ("softmax_entropy", "softmax_cross_entropy", "linear_softmax_cross_entropy"):
        jax.clear_caches()
        with jax.log_compiles():
            case.call(*args)
        assert f"Compiling jit({case.name})" in caplog.text
        assert "jit(function)" not in caplog.text


def test_the_name_of_a_loss_that_is_chunked(caplog):
    def my_objective(logits):
        return jxent.softmax_entropy(logits)

    function = jxent.chunked(functools.partial(my_objective))
    assert function.__name__ == "my_objective"
    with jax.log_compiles():
        function(jxent.LinearLogits(jnp.ones((2, 3)), jnp.ones((3, 4))))
    assert "Compiling jit(my_objective)" in caplog.text
    assert jxent.chunked(jxent.softmax_entropy).__name__ == "softmax_entropy"


def test_signatures_are_short():
    """`help` and editors show the names of types, not what they stand for."""
    signature = str(inspect.signature(jxent.softmax_cross_entropy_with_integer_labels))
    assert "logits: 'ArrayLike'" in signature
    assert len(signature) < 400
    assert "reduction: 'Reduction'" in str(inspect.signature(jxent.chunked))


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
