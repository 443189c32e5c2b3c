"""Compiles a linear head's loss for TPUs and an H100, on a machine that has neither.

``python benchmarks/linear_compiled.py`` compiles value and gradients for each device and prints a
Markdown table of the temporaries of optax (on logits that are computed first), jxent, and tokamax
where it is installed. It needs what ``pip install ".[aot]"`` installs.
"""

import argparse
import importlib.metadata
import sys

import compilers  # must come before JAX

# isort: split
import jax
import linear


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", nargs="+", default=["v5p", "v6e", "h100"])
    parser.add_argument("--examples", type=int, default=8192)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--classes", type=int, nargs="+", default=[128256])
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    reasons = {d: reason for d in options.devices if (reason := compilers.unavailable(d))}
    if reasons:
        sys.exit("\n".join(f"{d}: {reason}" for d, reason in reasons.items()))
    installed = {d.name: d.version for d in importlib.metadata.distributions()}
    versions = [f"{n} {installed[n]}" for n in ("jax", "optax", "tokamax") if n in installed]
    print(f"{options.examples} x {options.features}, {options.dtype}; {', '.join(versions)}\n")
    print("| device | classes | | temporaries, GB |")
    print("|---|--:|---|--:|")
    for device in options.devices:
        for classes in options.classes:
            for name, loss in linear.losses().items():
                size = temporaries(device, loss, options, classes)
                print(f"| {device} | {classes} | {name} | {size} |", flush=True)


def temporaries(device, loss, options, classes):
    """Returns the gigabytes that the program needs beside arguments and gradients."""
    sizes = (options.examples, options.features), (options.features, classes)
    inputs, kernel = (jax.ShapeDtypeStruct(shape, options.dtype) for shape in sizes)
    labels = jax.ShapeDtypeStruct((options.examples,), "int32")
    function = jax.value_and_grad(loss, (0, 1))
    found = compilers.compile_for(device, function, inputs, kernel, labels)
    return f"{found.temporaries / 1e9:.2f}"


if __name__ == "__main__":
    main()
