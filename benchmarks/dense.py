"""Compares the dense losses with optax's and PyTorch's on JAX's device: time and temporaries.

``python benchmarks/dense.py`` runs the libraries in turn, in one process. It prints a Markdown
table of jxent's median times relative to its peers', and of the memory that XLA needs beside
arguments and results. PyTorch is compared on a CPU, where it is installed. With tqdm installed,
progress is shown.

``python benchmarks/dense.py --sweep`` compares one loss over many numbers of classes: the mean of
the losses, and forward also the losses as they come. It also compares the times to trace and lower
it, and to compile it, with its gradient in float32.
"""

import argparse
import functools
import importlib.util
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jxent

try:
    from tqdm import tqdm
except ImportError:

    def tqdm(rows, **_):
        """Returns the rows without a progress bar."""
        return rows


SHAPES = [(2048, 32768), (8192, 1024), (65536, 10)]
SOFTMAX, SIGMOID = "softmax_cross_entropy_with_integer_labels", "sigmoid_binary_cross_entropy"
ROWS = [
    *((SOFTMAX, shape, dtype) for shape in SHAPES for dtype in ("float32", "bfloat16")),
    *((SIGMOID, (10**7,), dtype) for dtype in ("float32", "bfloat16")),
]
SWEEP = [2, 3, 10, 16, 37, 64, 100, 256, 1000, 4096, 10007, 32768, 50257, 128256]
KIND = "value and gradient"
KINDS = {"forward": jax.jit, KIND: lambda f: jax.jit(jax.value_and_grad(f))}
MEAN, AS_THEY_COME = "mean", "as they come"
SWEPT = [
    *(
        (form, "forward", dtype)
        for dtype in ("float32", "bfloat16")
        for form in (MEAN, AS_THEY_COME)
    ),
    *((MEAN, KIND, dtype) for dtype in ("float32", "bfloat16")),
]
TIMED_WHEN_MADE = (MEAN, KIND, "float32")


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--compilations", type=int, default=5, help="of a program of the sweep")
    parser.add_argument("--part", type=int, default=1, help="of the examples, one in so many")
    parser.add_argument("--log2", type=int, default=24, help="of the logits of the sweep")
    parser.add_argument("--sweep", action="store_true", help="over numbers of classes")
    parser.add_argument("--classes", type=int, nargs="+", default=SWEEP, help="of the sweep")
    options = parser.parse_args()
    with_torch = jax.default_backend() == "cpu" and importlib.util.find_spec("torch")
    versions = [f"JAX {jax.__version__}", f"optax {optax.__version__}"]
    if with_torch:
        import torch

        versions.append(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    device = jax.devices()[0].device_kind
    print(f"Python {platform.python_version()}, {', '.join(versions)}; {device}.")
    if options.sweep:
        sweep(options)
        return
    print("Times relative to the peer; temporaries relative to the logits, and optax's.\n")
    print("| loss | shape | dtype | | time / optax | time / PyTorch | temporaries | optax's |")
    print("|---|---|---|---|--:|--:|--:|--:|")
    for name, shape, dtype in tqdm(ROWS, leave=False):
        shape = (shape[0] // options.part, *shape[1:])
        for cells in compared(name, shape, dtype, with_torch, options.runs):
            show(cells)


def sweep(options):
    """Prints a table of the loss of integer labels, over numbers of classes."""
    print("Times relative to optax's, and temporaries relative to the logits.\n")
    names = [f"{dtype}, {form if kind == 'forward' else kind}" for form, kind, dtype in SWEPT]
    print(f"| classes | {' | | '.join(names)} | | tracing and lowering | compiling |")
    print(f"|--:|{'--:|--:|' * len(SWEPT)}--:|--:|")
    for classes in tqdm(options.classes, leave=False):
        # Batch sizes are often multiples of 64, and only then XLA:CPU vectorises short rows.
        examples = max(1, 2**options.log2 // options.part // classes // 64) * 64
        rng = np.random.default_rng(0)
        y = jnp.asarray(rng.integers(0, classes, examples))
        cells, made = [str(classes)], {}
        for row in SWEPT:
            form, kind, dtype = row
            z = jax.random.normal(jax.random.key(0), (examples, classes), dtype)
            times = options.compilations if row == TIMED_WHEN_MADE else 1
            loss = mean_loss if form == MEAN else losses
            programs, made[row] = made_in_turn(KINDS[kind], loss, z, y, times)
            seconds = medians(programs, z, y, options.runs)
            temporaries = programs["jxent"].memory_analysis().temp_size_in_bytes / z.nbytes
            cells += [f"{seconds['jxent'] / seconds['optax']:.2f}", f"{temporaries:.2f}"]
        both = [made[TIMED_WHEN_MADE][name] for name in ("jxent", "optax")]
        cells += [f"{a / b:.1f}" for a, b in zip(*both, strict=True)]
        show(f"| {' | '.join(cells)} |")


def made_in_turn(make, loss, z, y, times):
    """Compiles the loss of each library so many times, in turn.

    Returns the programs, and the median seconds of tracing and lowering, and of compiling.
    """
    programs, taken = {}, {"jxent": [], "optax": []}
    for _ in range(times):
        for library in (jxent, optax):
            jax.clear_caches()
            function = make(functools.partial(loss, library, SOFTMAX))
            start = time.perf_counter()
            lowered = function.lower(z, y)
            traced = time.perf_counter()
            programs[library.__name__] = lowered.compile()
            taken[library.__name__].append((traced - start, time.perf_counter() - traced))
    return programs, {name: np.median(seconds, axis=0) for name, seconds in taken.items()}


def show(row):
    """Prints a row of a table, above the progress bar if there is one."""
    tqdm.write(row) if hasattr(tqdm, "write") else print(row, flush=True)


def losses(library, name, z, y):
    """Returns the library's losses of that name, as they come."""
    return getattr(library, name)(z, y)


def mean_loss(library, name, z, y):
    """Returns their mean."""
    return jnp.mean(losses(library, name, z, y))


def compared(name, shape, dtype, with_torch, runs):
    """Yields the rows of the table for one loss."""
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.standard_normal(shape, np.float32), dtype)
    if name == SOFTMAX:
        y = jnp.asarray(rng.integers(0, shape[-1], shape[0]))
    else:
        y = jnp.asarray(rng.integers(0, 2, shape), dtype)

    for kind, make in KINDS.items():
        programs = {
            library.__name__: make(functools.partial(mean_loss, library, name))
            .lower(z, y)
            .compile()
            for library in (jxent, optax)
        }
        temporaries = [
            f"{program.memory_analysis().temp_size_in_bytes / z.nbytes:.2f}"
            for program in programs.values()
        ]
        if with_torch:
            programs["torch"] = torch_program(name, kind, z, y)
        seconds = medians(programs, z, y, runs)
        ratios = [
            f"{seconds['jxent'] / seconds[peer]:.2f}" if peer in seconds else ""
            for peer in ("optax", "torch")
        ]
        cells = [name, " x ".join(map(str, shape)), dtype, kind, *ratios, *temporaries]
        yield f"| {' | '.join(cells)} |"


def torch_program(name, kind, z, y):
    """Returns PyTorch's program, which ignores its arguments because it has its own arrays."""
    import torch

    z = torch.tensor(np.asarray(z, np.float32)).to(getattr(torch, z.dtype.name))
    y = torch.tensor(np.asarray(y, np.int64 if name == SOFTMAX else np.float32))
    loss = torch.nn.functional.cross_entropy
    if name == SIGMOID:
        loss, y = torch.nn.functional.binary_cross_entropy_with_logits, y.to(z.dtype)

    def forward(*_):
        with torch.no_grad():
            return loss(z, y)

    def value_and_gradient(*_):
        leaf = z.detach().requires_grad_()
        value = loss(leaf, y)
        value.backward()
        return value.detach(), leaf.grad

    return forward if kind == "forward" else value_and_gradient


def medians(programs, z, y, runs):
    """Runs the programs in turn, and returns the median time of each.

    An accelerator gets several calls at once, so that it computes while the next is launched.
    """
    taken = {name: [] for name in programs}
    calls = 1 if jax.default_backend() == "cpu" else 10
    for run in range(runs + 1):
        for name, program in programs.items():
            start = time.perf_counter()
            for _ in range(calls):
                result = program(z, y)
            if name != "torch":
                jax.block_until_ready(result)
            if run:
                taken[name].append(time.perf_counter() - start)
    return {name: float(np.median(seconds)) for name, seconds in taken.items()}


if __name__ == "__main__":
    main()
