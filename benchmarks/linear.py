"""Compares the linear head's loss and gradients with those of whole logits: time, memory, error.

``python benchmarks/linear.py`` runs the libraries in turn, in one process, on JAX's device. It
prints a Markdown table of optax (on logits that are computed first), jxent, and tokamax where it is
installed. ``--objectives`` compares other losses by `jxent.chunked` with those losses of whole
logits, and ignored examples with counted ones. ``--vocabularies`` only compiles, for more and more
classes, and prints the memory that the programs need beside their arguments and results. With tqdm
installed, progress is shown.
"""

import argparse
import functools
import importlib.util
import platform
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jxent

try:
    from tqdm import tqdm
except ImportError:

    def tqdm(iterable, **_):
        """Returns the iterable without a progress bar."""
        return iterable


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=4096)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--classes", type=int, nargs="+", default=[32000, 32001])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--chunk-size", type=int)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--objectives", action="store_true", help="other losses")
    parser.add_argument("--vocabularies", action="store_true", help="compile only")
    options = parser.parse_args()
    device = jax.devices()[0].device_kind
    versions = f"JAX {jax.__version__}, Python {platform.python_version()}"
    print(f"{options.examples} x {options.features}, {options.dtype}; {device}, {versions}\n")
    if options.vocabularies:
        print_memory(options)
    elif options.objectives:
        print_objectives(options)
    else:
        print_comparison(options)


def losses(chunk_size=None):
    """Returns the mean loss of each library, as a function of inputs, kernel and labels."""
    functions = {
        "optax": lambda x, w, y: jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(jnp.dot(x, w), y)
        ),
        "jxent": functools.partial(jxent.linear_softmax_cross_entropy, chunk_size=chunk_size),
    }
    if importlib.util.find_spec("tokamax"):
        from absl import flags
        from tokamax import linear_softmax_cross_entropy_loss

        flags.FLAGS(sys.argv[:1])  # tokamax would read this program's options as its own.
        for name in None, "chunked_xla":  # None lets tokamax choose.
            functions["tokamax" + (f", {name}" if name else "")] = lambda x, w, y, name=name: (
                linear_softmax_cross_entropy_loss(x, y, w, reduction="mean", implementation=name)
            )
    return functions


def compiled(function, examples, features, classes, dtype):
    """Returns the program for value and gradients, and the bytes of its temporaries."""
    shapes = [((examples, features), dtype), ((features, classes), dtype), ((examples,), "int32")]
    arguments = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    program = jax.jit(jax.value_and_grad(function, (0, 1))).lower(*arguments).compile()
    return program, program.memory_analysis().temp_size_in_bytes


def print_comparison(options):
    """Prints a row for each library and number of classes."""
    print("| classes | | time | temporary memory | error of the loss | of the gradients |")
    print("|---|---|---|---|---|---|")
    for classes in options.classes:
        arrays = _arrays(options, classes)
        exact = _exact(*arrays)
        programs = {
            name: compiled(f, options.examples, options.features, classes, options.dtype)
            for name, f in losses(options.chunk_size).items()
        }
        results, seconds = _run({n: p for n, (p, _) in programs.items()}, arrays, options.runs)
        for name, (_, temporaries) in programs.items():
            errors = [f"{_error(a, b):.0e}" for a, b in zip(results[name], exact, strict=True)]
            print(
                f"| {classes} | {name} | {seconds[name] / seconds['optax']:.2f}"
                f" | {temporaries / 2**20:.0f} MiB, 1/{programs['optax'][1] / temporaries:.1f}"
                f" | {errors[0]} | {errors[1]}, {errors[2]} |"
            )


def objectives(x, y, chunk_size=None):
    """Returns pairs of functions of inputs and kernel: a reference, and one compared with it."""
    rng = np.random.default_rng(1)
    advantages = jnp.asarray(rng.standard_normal(len(x), np.float32))
    teacher = jnp.asarray(rng.standard_normal(x.shape, np.float32), x.dtype)
    ignored = jnp.where(jnp.arange(len(x)) % 4 == 0, y, -100)
    head = functools.partial(jxent.linear_softmax_cross_entropy, chunk_size=chunk_size)

    def terms(logits, labels):
        nll = jxent.softmax_cross_entropy_with_integer_labels(logits, labels)
        return nll, jxent.softmax_entropy(logits)

    def objective(logits, labels, advantages):
        nll, entropy = terms(logits, labels)
        return advantages * nll - 0.01 * entropy

    def logits_of(x, w):
        return jnp.dot(x, w, preferred_element_type=jnp.float32)

    def whole_policy(x, w):
        return jnp.mean(objective(logits_of(x, w), y, advantages))

    def policy(x, w):
        chunked = jxent.chunked(objective, reduction="mean", chunk_size=chunk_size)
        return chunked(jxent.LinearLogits(x, w), y, advantages)

    def policy_outside(x, w):
        chunked = jxent.chunked(terms, chunk_size=chunk_size)
        nll, entropy = chunked(jxent.LinearLogits(x, w), y)
        return jnp.mean(advantages * nll - 0.01 * entropy)

    # The teacher has the student's first kernel, so that no third kernel is in memory.
    def whole_distillation(x, w, frozen):
        return jnp.mean(
            jxent.softmax_kl_divergence(logits_of(x, w) / 2, logits_of(teacher, frozen) / 2)
        )

    def distillation(x, w, frozen):
        chunked = jxent.chunked(
            jxent.softmax_kl_divergence, reduction="mean", chunk_size=chunk_size
        )
        return chunked(
            jxent.LinearLogits(x, w, scale=0.5), jxent.LinearLogits(teacher, frozen, scale=0.5)
        )

    return {
        "policy": (whole_policy, policy),
        "policy, its terms outside": (whole_policy, policy_outside),
        "distillation": (whole_distillation, distillation),
        "three of four ignored, beside none": (
            lambda x, w: head(x, w, y),
            lambda x, w: head(x, w, ignored, ignore_index=-100),
        ),
        "a mask that ignores none, beside no mask": (
            lambda x, w: head(x, w, y),
            lambda x, w: head(x, w, y, ignore_index=-100),
        ),
    }


def print_objectives(options):
    """Prints a row for each pair: the time and the temporaries, relative to the reference."""
    print("| classes | | time | temporary memory |")
    print("|---|---|---|---|")
    for classes in options.classes:
        x, w, y = _arrays(options, classes)
        for name, pair in objectives(x, y, options.chunk_size).items():
            args = (x, w, w) if name == "distillation" else (x, w)
            programs = {
                i: jax.jit(jax.value_and_grad(f, (0, 1))).lower(*args).compile()
                for i, f in enumerate(pair)
            }
            _, seconds = _run(programs, args, options.runs)
            whole, ours = (p.memory_analysis().temp_size_in_bytes for p in programs.values())
            print(
                f"| {classes} | {name} | {seconds[1] / seconds[0]:.2f}"
                f" | {ours / 2**20:.0f} MiB, 1/{whole / ours:.1f} |",
                flush=True,
            )


def print_memory(options):
    """Prints a row for each number of classes."""
    print("| classes | whole logits (optax) | jxent | |")
    print("|---|---|---|---|")
    functions = losses(options.chunk_size)
    for classes in tqdm([2**k for k in range(13, 19)], desc="compiling", leave=False):
        dense, fused = (
            compiled(functions[n], options.examples, options.features, classes, options.dtype)[1]
            for n in ("optax", "jxent")
        )
        print(
            f"| {classes} | {dense / 2**20:.0f} MiB | {fused / 2**20:.0f} MiB"
            f" | 1/{dense / fused:.1f} |"
        )


def _arrays(options, classes):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((options.examples, options.features), np.float32)
    w = rng.standard_normal((options.features, classes), np.float32) / options.features**0.5
    y = rng.integers(0, classes, options.examples)
    return jnp.asarray(x, options.dtype), jnp.asarray(w, options.dtype), jnp.asarray(y)


def _run(programs, arrays, runs):
    """Runs the programs in turn, and returns each one's results and median time."""
    results, taken = {}, {name: [] for name in programs}
    for run in tqdm(range(runs + 1), desc="running", leave=False):
        for name, program in programs.items():
            start = time.perf_counter()
            value, gradients = jax.block_until_ready(program(*arrays))
            if run:
                taken[name].append(time.perf_counter() - start)
            results[name] = (value, *gradients)
    return results, {name: float(np.median(seconds)) for name, seconds in taken.items()}


def _exact(x, w, y):
    """Computes loss and gradients in float64, a few examples at a time."""
    x, w, y = np.asarray(x, np.float64), np.asarray(w, np.float64), np.asarray(y)
    loss, to_w, to_x = 0.0, np.zeros_like(w), np.zeros_like(x)
    for start in tqdm(range(0, len(x), 256), desc="exact", leave=False):
        rows = slice(start, start + 256)
        z = x[rows] @ w
        z -= z.max(-1, keepdims=True)
        at_label = np.arange(len(z)), y[rows]
        loss -= z[at_label].sum()
        p = np.exp(z)
        total = p.sum(-1, keepdims=True)
        loss += np.log(total).sum()
        p /= total
        p[at_label] -= 1
        to_x[rows] = p @ w.T
        to_w += x[rows].T @ p
    return loss / len(x), to_x / len(x), to_w / len(x)


def _error(got, exact):
    """Returns the relative error in the Frobenius norm."""
    return np.linalg.norm(np.asarray(got, np.float64) - exact) / np.linalg.norm(exact)


if __name__ == "__main__":
    main()
