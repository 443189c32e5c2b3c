"""Runs ``python -m jxent``: trains a classifier on this device and prints the numerics report."""

import argparse
import json
import platform
import sys
import time
from importlib import metadata
from typing import Any

import jax

import jxent

from ._selftest import choices, devices, errors, iris, report

DESCRIPTION = """\
Measures the elementary functions of this device, and trains a softmax classifier on Fisher's iris.
Then it measures the losses: the worst error of value and gradient over inputs that are hard for
them, in each dtype, against exact arithmetic, beside the textbook formula's and, where it is
installed, optax's. The last line says whether this device keeps the promise; if an error of jxent's
exceeds its bound, the status is 1. Takes about a minute on two CPU cores."""
KNOWN = {"cpu", "NVIDIA H200"}
"""The kinds of devices that the documentation has measured figures for."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    options = _parser().parse_args(arguments)
    device = options.device or jax.local_devices()[0]
    start = time.perf_counter()

    about = _about(device)
    if not options.json:
        print(_about_in_words(about), flush=True)
    elementary = {name: devices.measure(name, device) for name in devices.ELEMENTARY}
    if not options.json:
        print(f"{devices.as_text(elementary)}\n", flush=True)
    with jax.default_device(device):
        history, accuracy = iris.train()
    if not options.json:
        print(_iris_in_words(history, accuracy), flush=True)
    lines = _measure(choices.families(options.losses), device)
    missed = report.missed(lines)
    verdict = report.verdict(lines, complete=options.losses is None)
    seconds = round(time.perf_counter() - start, 1)
    if options.json:
        document = {
            **about,
            "elementary": {
                name: {kind: x if x is None else report.finite(x) for kind, x in row.items()}
                for name, row in elementary.items()
            },
            "iris": {"loss": [[n, loss] for n, loss in history], "accuracy": accuracy},
            "numerics": report.as_json(lines),
            "missed": missed,
            "verdict": verdict,
            "seconds": seconds,
        }
        print(json.dumps(document, indent=1, allow_nan=False))
    else:
        print("\n".join([report.as_text(lines), "", *missed, f"{seconds:.0f} s"]))
        if about["first_of_its_kind"]:
            print(
                "\nThis is the first report of its kind: the documentation has no figures for"
                f" {device.device_kind}.\nPlease send it to {_issues()}"
            )
        print(f"\n{verdict}")
    return 1 if missed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m jxent",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--device",
        type=choices.device,
        help="a platform of JAX's such as cpu, gpu or tpu, or one of its devices such as cuda:1;"
        " by default JAX's own choice",
    )
    parser.add_argument(
        "--losses",
        type=choices.loss,
        nargs="+",
        metavar="LOSS",
        help=f"the losses to measure, of {', '.join(choices.names())}; by default all",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document instead of tables"
    )
    return parser


def _about(device: jax.Device) -> dict[str, Any]:
    try:
        optax = metadata.version("optax")
    except metadata.PackageNotFoundError:
        optax = None
    return {
        "device": {"platform": device.platform, "kind": device.device_kind, "id": device.id},
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
    return f"device: {device['platform']}:{device['id']} ({device['kind']})\nversions: {versions}\n"


def _issues() -> str:
    """Returns the address for reports, which pyproject.toml has and an installation keeps."""
    try:
        urls: list[str] = metadata.metadata("jxent").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:  # The package runs where it lies.
        urls = []
    return dict(url.split(", ") for url in urls).get("Issues", "the issues of jxent")


def _iris_in_words(history: list[tuple[int, float]], accuracy: float) -> str:
    return "\n".join(
        [
            "Fisher's iris: softmax regression, 150 flowers, 3 species, gradient descent under jit",
            "  step " + "".join(f"{n:8d}" for n, _ in history),
            "  loss " + "".join(f"{loss:8.4f}" for _, loss in history) + "   from log 3 = 1.0986",
            f"  accuracy {accuracy:.1%}\n",
        ]
    )


def _measure(families: tuple[errors.Family, ...], device: jax.Device) -> list[errors.Line]:
    """Returns the report's lines; shows its progress if stderr is a terminal."""
    implementations = report.implementations()
    programs = len(errors.DTYPES) * len(implementations)
    losses = len(errors.DTYPES) * sum(len(family.losses) for family in families)
    done: list[None] = []
    lines: list[errors.Line] = []

    def show(text: str) -> None:
        if sys.stderr.isatty():
            print(f"{text:72}\r", end="", file=sys.stderr, flush=True)

    def count() -> None:
        show(
            f"numerics: {len(done)} of {programs} programs compiled,"
            f" {len(lines)} of {losses} errors found"
        )

    def program() -> None:
        done.append(None)
        count()

    count()
    for line in errors.measure(families, implementations, errors.DTYPES, device, program):
        lines.append(line)
        count()
    show("")
    return lines


if __name__ == "__main__":
    sys.exit(main())
