"""What there is, made from the docstrings: for ``help(jxent)`` and the reference pages."""

import inspect
import sys
from collections.abc import Callable, Mapping
from typing import Any


def groups(names: Mapping[str, Any]) -> dict[str, list[Callable[..., Any]]]:
    """What is public, under the first lines of the modules that it comes from."""
    found: dict[str, list[Callable[..., Any]]] = {}
    for name, function in names.items():
        if (inspect.isfunction(function) or inspect.isclass(function)) and not name.startswith("_"):
            module = sys.modules[function.__module__]
            found.setdefault(_first_line(module).rstrip("."), []).append(function)
    return found


def contents(names: Mapping[str, Any]) -> str:
    """A table of them: each with the first line of its docstring, but not the shapes there."""
    lines = []
    for title, functions in groups(names).items():
        lines += ["", title]
        lines += [f"  {f.__name__:43}{_first_line(f).split(': ``')[0]}" for f in functions]
    return "\n".join(lines)


def _first_line(documented: Any) -> str:
    # Python drops the docstrings where it is asked to optimise.
    return (documented.__doc__ or "").partition("\n")[0]
