"""Sphinx: the API reference from the docstrings, and the notebooks as they were committed."""

from pathlib import Path

import jxent
from jxent._contents import groups

project = "jxent"
author = "The jxent authors"
release = jxent.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",
]
nitpicky = True
exclude_patterns = ["_build"]
templates_path = ["_templates"]

# The outputs in the repository are shown: the tests execute the notebooks.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2

autodoc_typehints = "none"
autosummary_generate = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
default_role = "code"

html_theme = "furo"
html_title = f"jxent {release}"
html_show_copyright = False


def write_reference():
    """A page that lists every public function, under the first lines of their modules."""
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
    directory = Path(__file__).parent / "generated"
    directory.mkdir(exist_ok=True)
    (directory / "reference.md").write_text("\n\n".join(page) + "\n")


write_reference()
