"""Writes the page of the reference, from the modules of the package and their docstrings."""

from pathlib import Path

import jxent
from jxent._contents import groups

TYPES = r"""
.. py:type:: ArrayLike

   What JAX takes for an array: a `jax.Array`, a NumPy array, a number, or a list of such.

.. py:type:: Axis

   One axis, a tuple of axes, or None for all of them.

.. py:type:: AxisName

   The name of one axis of a mesh, or a tuple of such names.

.. py:type:: AnyMesh

   A `jax.sharding.Mesh` or a `jax.sharding.AbstractMesh`.

.. py:type:: Reduction

   One of the strings ``"mean"``, ``"sum"`` and ``"none"``.

.. py:type:: ChunkedLoss

   A function ``(*args, where=None, weights=None)``.
"""


def write_reference():
    """Writes the page, which lists every public function under the first line of its module."""
    page = [
        "# Reference",
        "Every loss is a pure function of arrays. Logits, probabilities and log-probabilities have"
        " the shape `[..., classes]`, labels and losses `[...]`, in nats; nothing is averaged"
        " unless the name says so, except by the linear head.",
    ]
    for title, functions in groups(vars(jxent)).items():
        names = "\n".join(f"   {function.__name__}" for function in functions)
        options = ".. currentmodule:: jxent\n\n.. autosummary::\n   :toctree: .\n   :nosignatures:"
        page += [f"## {title}", f"```{{eval-rst}}\n{options}\n\n{names}\n```"]
    types = f"```{{eval-rst}}\n.. currentmodule:: jxent\n{TYPES}```"
    page += ["## Types in the signatures", types]
    directory = Path(__file__).parent / "generated"
    directory.mkdir(exist_ok=True)
    (directory / "reference.md").write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    write_reference()
