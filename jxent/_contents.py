"""The table of contents, made from the docstrings: for ``help(jxent)`` and the reference pages."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any


def groups(names: Mapping[str, Any]) -> dict[str, list[Callable[..., Any]]]:
    """Groups the public functions under the first lines of their modules."""
    found: dict[str, list[Callable[..., Any]]] = {}
    for name, function in names.items():
        if (inspect.isfunction(function) or inspect.isclass(function)) and not name.startswith("_"):
            module = sys.modules[function.__module__]
            found.setdefault(_first_line(module).rstrip("."), []).append(function)
    return found


def contents(names: Mapping[str, Any]) -> str:
    """Lists each function with the first line of its docstring, without the shapes there."""
    lines = []
    for title, functions in groups(names).items():
        lines += ["", title]
        lines += [f"  {f.__name__:43}{_first_line(f).split(': ``')[0]}" for f in functions]
    return "\n".join(lines)


def _first_line(documented: Any) -> str:
    # With ``python -OO`` there are no docstrings.
    return (documented.__doc__ or "").partition("\n")[0]
