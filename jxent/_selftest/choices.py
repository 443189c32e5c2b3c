"""What `python -m jxent` lets its user choose, from the words of the command line."""

import argparse
import difflib

import jax
from jax.extend.backend import backends

from . import report
from .errors import Family


def device(name: str) -> jax.Device:
    """A device of this machine, by its platform and, after a colon, its number there."""
    platform, colon, number = name.partition(":")
    found = _devices(platform) if platform else []
    if not colon:
        number = "0"
    if number.isdecimal() and int(number) < len(found):
        return found[int(number)]
    there = [f"{p}:{i}" for p in sorted(backends()) for i in range(len(_devices(p)))]
    raise argparse.ArgumentTypeError(
        f"must be a device of this machine ({', '.join(there)}) or a platform, for its first"
        f" device, got {name!r}"
    )


def _devices(platform: str) -> list[jax.Device]:
    try:
        return list(jax.local_devices(backend=platform))
    except RuntimeError:  # there is no such platform
        return []


def names() -> list[str]:
    """The losses of the report, each once."""
    return list(dict.fromkeys(name for family in report.FAMILIES for name, _ in family.losses))


def loss(name: str) -> str:
    """The name, if the report has a loss that is called so."""
    known = names()
    if name in known:
        return name
    near = difflib.get_close_matches(name, known)
    wanted = f"like {' or '.join(near)}" if near else f"one of {', '.join(known)}"
    raise argparse.ArgumentTypeError(f"must be a loss of the report, {wanted}, got {name!r}")


def families(chosen: list[str] | None) -> tuple[Family, ...]:
    """The report's families, with the chosen losses alone; None for all."""
    if chosen is None:
        return report.FAMILIES
    found = (
        family._replace(losses=tuple(loss for loss in family.losses if loss[0] in chosen))
        for family in report.FAMILIES
    )
    return tuple(family for family in found if family.losses)
