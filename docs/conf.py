"""Configures Sphinx: API reference from the docstrings, and notebooks with stored outputs."""

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref

import jxent
from jxent._contents import groups

sys.path.insert(0, str(Path(__file__).parent))
from reference import write_reference

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
exclude_patterns = ["_build", "jupyter_execute"]
templates_path = ["_templates"]

# The pages show the outputs in the repository, because the tests execute the notebooks.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 2
# MathJax would otherwise put a space into names such as log1p.
mathjax3_config = {
    "tex": {"macros": {"operatorname": [r"\mathop{\mathrm{#1}}\nolimits", 1]}},
}

python_maximum_signature_line_length = 68
autosummary_generate = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
default_role = "code"

html_theme = "furo"
# The default style underlines the names of modules as if they were links.
pygments_dark_style = "github-dark"
html_title = f"jxent {release}"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

OF_JAX = {
    "jax.Array": "_autosummary/jax.Array.html",
    "jax.lax.PrecisionLike": "jax.lax.html",
    "jax.sharding.PartitionSpec": "jax.sharding.html",
}
"""The types in signatures that JAX's own documentation explains."""


def as_written(app, what, name, obj, options, signature, returned):
    """Returns a function's signature with its types as the source names them."""
    if what != "function":
        return None
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(obj))).body
    return f"({ast.unparse(function.args)})", ast.unparse(function.returns)


def link_to_jax(app, env, node, content):
    """Links a type of JAX to JAX's documentation."""
    if page := OF_JAX.get(node["reftarget"]):
        address = f"https://docs.jax.dev/en/latest/{page}"
        return nodes.reference("", "", content, refuri=address, internal=False)
    return None


def link_to_functions(app, doctree):
    """Links the name of a public function to its page, wherever it stands in a text."""
    here = app.env.docname
    names = {f.__name__ for functions in groups(vars(jxent)).values() for f in functions}
    for literal in list(doctree.findall(nodes.literal)):
        name = literal.astext().removeprefix("jxent.")
        is_link = isinstance(literal.parent, (nodes.reference, pending_xref, nodes.title))
        if name in names and not is_link and here != f"generated/jxent.{name}":
            role = "class" if inspect.isclass(getattr(jxent, name)) else "func"
            link = pending_xref(
                "", refdomain="py", reftype=role, reftarget=f"jxent.{name}", refdoc=here
            )
            literal.replace_self(link)
            link += literal


def break_in_tables(app, doctree):
    """Lets code in a table break after an underscore, a bracket, an equals sign or a dot."""
    for table in doctree.findall(nodes.table):
        for literal in list(table.findall(nodes.literal)):
            words = re.split(r"(?<=[_(=.])(?=\w)", literal.astext())
            literal.clear()
            for word in words:
                literal += [nodes.raw("", "<wbr>", format="html"), nodes.Text(word)]


def link_to_notebooks(app, doctree):
    """Turns a link to a notebook's file into a link to its page.

    `docs/notebooks` is a symbolic link. MyST follows it, and would look outside `docs`.
    """
    outside = f"{Path(app.srcdir).resolve().parent}/notebooks/"
    for link in doctree.findall(pending_xref):
        if link["reftarget"].startswith(outside):
            link["reftarget"] = f"notebooks/{link['reftarget'].removeprefix(outside)}"


def in_chinese(app, page, template, context, doctree):
    """Marks the pages in Chinese as such, so that a browser takes the glyphs of that language."""
    if page.endswith(".zh"):
        context["language"] = "zh-CN"


def setup(app):
    """Connects the functions above to Sphinx's events; Sphinx calls it."""
    app.connect("doctree-read", link_to_functions)
    app.connect("doctree-read", break_in_tables)
    app.connect("doctree-read", link_to_notebooks)
    app.connect("html-page-context", in_chinese)
    app.connect("autodoc-process-signature", as_written)
    app.connect("missing-reference", link_to_jax)


write_reference()
