"""``python -m jxent``: the library at work on this device, and the numerics report."""

import argparse
import json
import platform
import sys
import time
from importlib import metadata
from typing import Any

import jax

import jxent

from ._selftest import errors, iris, report

DESCRIPTION = """\
Trains a softmax classifier on Fisher's iris, then measures the losses: the worst error of value
and gradient over inputs that are hard for them, in each dtype, against exact arithmetic, beside
the textbook formula's and, where it is installed, optax's. Ends with status 1 if an error of
jxent's exceeds its bound. Takes less than a minute on two CPU cores."""
KNOWN = {"cpu"}
"""The kinds of devices that the documentation has measured figures for."""
ISSUES = "https://github.com/jxent/jxent/issues"
"""Where to send a report of another kind."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m jxent",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document instead of tables"
    )
    as_json = parser.parse_args(arguments).json
    start = time.perf_counter()

    about = _about()
    if not as_json:
        print(_about_in_words(about), flush=True)
    history, accuracy = iris.train()
    if not as_json:
        print(_iris_in_words(history, accuracy), flush=True)
    lines = _measure()
    missed = report.missed(lines)
    seconds = round(time.perf_counter() - start, 1)
    if as_json:
        document = {
            **about,
            "iris": {"loss": [[n, loss] for n, loss in history], "accuracy": accuracy},
            "numerics": report.as_json(lines),
            "missed": missed,
            "seconds": seconds,
        }
        print(json.dumps(document, indent=1, allow_nan=False))
    else:
        print(report.as_text(lines))
        verdict = "\n".join(missed) or "Every value and gradient of jxent is within its bound."
        print(f"\n{verdict}\n{seconds:.0f} s")
        if about["first_of_its_kind"]:
            print(
                "\nThis is the first report of its kind: the documentation has no figures for"
                f" {about['device']['kind']}.\nPlease send it to {ISSUES}"
            )
    return 1 if missed else 0


def _about() -> dict[str, Any]:
    device = jax.devices()[0]
    try:
        optax = metadata.version("optax")
    except metadata.PackageNotFoundError:
        optax = None
    return {
        "device": {"platform": device.platform, "kind": device.device_kind},
        "first_of_its_kind": device.device_kind not in KNOWN,
        "versions": {
            "jxent": jxent.__version__,
            "jax": jax.__version__,
            "jaxlib": metadata.version("jaxlib"),
            "python": platform.python_version(),
            "optax": optax,
        },
    }


def _about_in_words(about: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    device = about["device"]
    return f"device: {device['platform']} ({device['kind']})\nversions: {versions}\n"


def _iris_in_words(history: list[tuple[int, float]], accuracy: float) -> str:
    return "\n".join(
        [
            "Fisher's iris: softmax regression, 150 flowers, 3 species, gradient descent under jit",
            "  step " + "".join(f"{n:8d}" for n, _ in history),
            "  loss " + "".join(f"{loss:8.4f}" for _, loss in history) + "   from log 3 = 1.0986",
            f"  accuracy {accuracy:.1%}\n",
        ]
    )


def _measure() -> list[errors.Line]:
    """The report's lines, counted on a terminal while they are made."""
    total = len(errors.DTYPES) * sum(len(family.losses) for family in report.FAMILIES)
    lines = []
    terminal = sys.stderr.isatty()
    if terminal:
        print("numerics: compiling ...", end="", file=sys.stderr, flush=True)
    for line in errors.measure(report.FAMILIES, report.implementations()):
        lines.append(line)
        if terminal:
            counter = f"numerics: {len(lines)} of {total}, {line.dtype}"
            print(f"\r{counter:40}", end="", file=sys.stderr, flush=True)
    if terminal:
        print(f"\r{'':40}\r", end="", file=sys.stderr, flush=True)
    return lines


if __name__ == "__main__":
    sys.exit(main())
