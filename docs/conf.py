"""Sphinx: the API reference from the docstrings, and the notebooks as they were committed."""

import inspect
from pathlib import Path

import jxent

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


def functions():
    """The public names."""
    return {
        n for n in dir(jxent) if not n.startswith("_") and inspect.isfunction(getattr(jxent, n))
    }


def check_reference(app):
    """A public name that the reference does not list has no page, which is an error."""
    words = Path(app.srcdir, "reference.md").read_text().split()
    if missing := functions() - set(words):
        raise ValueError(f"reference.md does not list {sorted(missing)}")


def setup(app):
    """Called by Sphinx."""
    app.connect("builder-inited", check_reference)
