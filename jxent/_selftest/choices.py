"""Turns the words of `python -m jxent`'s command line into a device and losses."""

import argparse
import difflib

import jax
from jax.extend.backend import backends

from . import report
from .errors import Family


def device(name: str) -> jax.Device:
    """Returns this machine's device of that name: ``platform`` or ``platform:number``."""
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
    """The names of the report's losses, each once."""
    return list(dict.fromkeys(name for family in report.FAMILIES for name, _ in family.losses))


def loss(name: str) -> str:
    """Returns the name if the report has a loss of that name, and raises otherwise."""
    known = names()
    if name in known:
        return name
    near = difflib.get_close_matches(name, known)
    wanted = f"like {' or '.join(near)}" if near else f"one of {', '.join(known)}"
    raise argparse.ArgumentTypeError(f"must be a loss of the report, {wanted}, got {name!r}")


def families(chosen: list[str] | None) -> tuple[Family, ...]:
    """Returns the report's families with only the chosen losses; None chooses all."""
    if chosen is None:
        return report.FAMILIES
    found = (
        family._replace(losses=tuple(loss for loss in family.losses if loss[0] in chosen))
        for family in report.FAMILIES
    )
    return tuple(family for family in found if family.losses)
