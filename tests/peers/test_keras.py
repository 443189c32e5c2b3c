"""Against Keras: each row of the table for those who come from it, and what differs."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent

pytestmark = pytest.mark.peer

PAGE = (Path(__file__).parents[2] / "docs/keras.md").read_text("utf-8")
TABLE = re.findall(r"^\| `(losses\..*?)` \| `(.*?)` \|$", PAGE, re.MULTILINE)

_rng = np.random.default_rng(0)
N, CLASSES = 6, 4
ARRAYS = {
    "z": _rng.normal(size=(N, CLASSES)).astype(np.float32),
    "p": _rng.dirichlet(np.ones(CLASSES), size=N).astype(np.float32),
    "t": _rng.dirichlet(np.ones(CLASSES), size=N).astype(np.float32),
    "w": _rng.uniform(0.5, 2, size=N).astype(np.float32),
    "y": np.array([3, 0, 1, 2, 2, 3]),
}


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """Keras on JAX, which writes its settings to a folder that goes away."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("KERAS_BACKEND", "jax")
        environment.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        return pytest.importorskip("keras", reason="Keras is not installed").losses


def test_table_was_found():
    """All of the rows, and six losses among them."""
    assert len(TABLE) == len(re.findall(r"^\| `losses\.", PAGE, re.MULTILINE)) >= 15
    assert len({theirs.split("(")[0] for theirs, _ in TABLE}) == 6


@pytest.mark.parametrize(("theirs", "ours"), TABLE, ids=[row[0] for row in TABLE])
def test_table(losses, theirs, ours):
    """The expressions as they stand, within the accuracy of Keras."""
    arrays = {name: jnp.asarray(x) for name, x in ARRAYS.items()}
    if "ignore" in theirs:
        arrays["y"] = arrays["y"].at[1].set(-100)
    if "CategoricalFocal" in theirs:
        arrays["t"] = jax.nn.one_hot(arrays["y"], CLASSES)
    names = {"jnp": jnp, "jxent": jxent, "losses": losses}
    expected, actual = (eval(code, names, arrays) for code in (theirs, ours))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_what_differs(losses):
    """Keras clips probabilities, and takes any label."""
    of_probabilities = losses.SparseCategoricalCrossentropy()
    of_logits = losses.SparseCategoricalCrossentropy(from_logits=True)
    label, p = jnp.array([0]), jnp.array([[0.0, 1.0]])
    assert 16 < of_probabilities(label, p) < 16.2
    assert not np.any(jax.grad(lambda p: of_probabilities(label, p))(p))
    assert jxent.cross_entropy_with_integer_labels(p, label) == np.inf
    assert np.isfinite(of_logits(jnp.array([5]), jnp.zeros((1, 2))))
    assert np.isnan(jxent.softmax_cross_entropy_with_integer_labels(jnp.zeros((1, 2)), [5]))[0]
