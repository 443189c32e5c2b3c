"""Compiles a linear head's loss for TPUs and an H100, on a machine that has neither.

``python benchmarks/linear_compiled.py`` compiles value and gradients for each device and prints a
Markdown table of optax (on logits that are computed first), jxent, and tokamax where it is
installed: the estimated time and the temporaries. A program's time is the cycles that a TPU's
compiler estimates, or the seconds of XLA's model of an H100, in which matrix products run at the
peak for 16 bits, relative to those of the three matrix products that value and gradients need.
Nothing runs. It needs what ``pip install ".[aot]"`` installs.
"""

import argparse
import importlib.metadata
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import compilers  # must come before JAX

# isort: split
import jax
import jax.numpy as jnp
import linear
import numpy as np


class Shape(NamedTuple):
    """The sizes of a head."""

    examples: int
    features: int
    classes: int


SHAPES = [Shape(8192, 4096, 128256), Shape(32768, 2560, 128256), Shape(16384, 1024, 50304)]


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", nargs="+", default=["v5p", "v5e", "v6e", "h100"])
    for field in Shape._fields:
        default = [getattr(shape, field) for shape in SHAPES]
        text = "one for each head, or one for all of them"
        parser.add_argument(f"--{field}", type=int, nargs="+", default=default, help=text)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    try:
        sizes = np.broadcast_arrays(options.examples, options.features, options.classes)
    except ValueError:
        parser.error("examples, features and classes are of different numbers of heads")
    reasons = {d: reason for d in options.devices if (reason := compilers.unavailable(d))}
    if reasons:
        sys.exit("\n".join(f"{d}: {reason}" for d, reason in reasons.items()))
    installed = {d.name: d.version for d in importlib.metadata.distributions()}
    names = ("jax", "libtpu", "optax", "tokamax")
    versions = [f"{n} {installed[n]}" for n in names if n in installed]
    print(f"{options.dtype}; {', '.join(versions)}\n")
    print("| device | examples x features x classes | | time / products | temporaries, GB |")
    print("|---|---|---|--:|--:|")
    heads = [(d, Shape(*map(int, s))) for d in options.devices for s in zip(*sizes, strict=True)]
    with ThreadPoolExecutor(2) as threads:
        for rows in threads.map(lambda head: rows_of(*head, options.dtype), heads):
            print("\n".join(f"| {' | '.join(row)} |" for row in rows), flush=True)


def rows_of(device, shape, dtype):
    """Returns the rows of the table for one head."""
    least = products(device, shape, dtype)
    rows = []
    for name, loss in linear.losses().items():
        if name == "tokamax":  # It would choose for the CPU, the only device that JAX finds here.
            continue
        time, temporaries = figures(device, loss, shape, dtype)
        cells = [f"{time / least:.2f}", f"{temporaries / 1e9:.2f}"]
        rows.append([device, " x ".join(map(str, shape)), name, *cells])
    return rows


def figures(device, loss, shape, dtype="bfloat16"):
    """Returns the estimated time of value and gradients, and the bytes of the temporaries."""
    inputs = jax.ShapeDtypeStruct((shape.examples, shape.features), dtype)
    kernel = jax.ShapeDtypeStruct((shape.features, shape.classes), dtype)
    labels = jax.ShapeDtypeStruct((shape.examples,), "int32")
    function = jax.value_and_grad(loss, (0, 1))
    found = compilers.compile_for(device, function, inputs, kernel, labels)
    return _time(found), found.temporaries


def _time(found):
    """Returns cycles on a TPU, and seconds on an H100."""
    return found.estimated_cycles or found.estimated_seconds


def products(device, shape, dtype="bfloat16"):
    """Returns the estimated time of the logits' product and of those of the two gradients.

    Each is a program of its own, with a result in `dtype`.
    """
    sizes = (shape.examples, shape.features), (shape.features, shape.classes)
    inputs, kernel = (jax.ShapeDtypeStruct(s, dtype) for s in sizes)
    logits = jax.ShapeDtypeStruct((shape.examples, shape.classes), dtype)
    programs = [
        (jnp.dot, inputs, kernel),
        (lambda z, w: jnp.dot(z, w.T), logits, kernel),
        (lambda x, z: jnp.dot(x.T, z), inputs, logits),
    ]
    return sum(_time(compilers.compile_for(device, *p)) for p in programs)


if __name__ == "__main__":
    main()
