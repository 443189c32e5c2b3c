"""What a linear head's loss needs on TPUs and an H100, by their compilers, on neither.

``python benchmarks/linear_compiled.py`` compiles value and gradients for each device and prints a
Markdown table of their temporaries: optax's on logits that are made first, jxent's, and tokamax's
where it is installed. It takes what ``pip install ".[aot]"`` installs.
"""

import argparse
import importlib.metadata
import sys

import compilers  # before JAX

# isort: split
import jax
import linear


def main():
    """The command line."""
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
    """What the program needs beside arguments and gradients."""
    sizes = (options.examples, options.features), (options.features, classes)
    inputs, kernel = (jax.ShapeDtypeStruct(shape, options.dtype) for shape in sizes)
    labels = jax.ShapeDtypeStruct((options.examples,), "int32")
    function = jax.value_and_grad(loss, (0, 1))
    found = compilers.compile_for(device, function, inputs, kernel, labels)
    return f"{found.temporaries / 1e9:.2f}"


if __name__ == "__main__":
    main()
