"""Which parameters the quick tier runs, and which only --full."""

import pytest


def quick(values, *chosen, number=1):
    """The values as parameters: those chosen, or else the first ones, are quick."""
    values = list(values)
    chosen = chosen or values[:number]
    assert all(value in values for value in chosen)
    return [pytest.param(v, marks=() if v in chosen else pytest.mark.full) for v in values]


def quick_named(values, names):
    """The same for what has a name."""
    return quick(values, *(value for value in values if value.name in names))


def quick_rows(rows, *chosen):
    """The same for rows of several parameters; those chosen go by their place."""
    assert chosen
    return [
        pytest.param(*row, marks=() if i in chosen else pytest.mark.full)
        for i, row in enumerate(rows)
    ]
