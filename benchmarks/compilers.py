"""Compiles the losses for TPUs and for an H100, on a machine that has neither.

``python benchmarks/compilers.py`` prints a Markdown table of passes (bytes moved, divided by the
bytes of the logits), temporaries, and estimated time and cycles. Nothing runs: the figures are the
compilers' own, and the same every time. It needs what ``pip install ".[aot]"`` installs. With tqdm
installed, progress is shown.

Other programs import `compile_for`, which compiles a function for one of `devices`. They import it
before JAX and in a process of its own, because it makes JAX find no device but the CPU.
"""

import argparse
import datetime
import functools
import importlib.metadata
import itertools
import math
import os
import re
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

# JAX looks for no accelerator, neither on this machine nor over the network. Several processes may
# compile at once.
os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_ACCELERATOR_TYPE="v5e-4",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    TF_CPP_MIN_LOG_LEVEL="3",
)

import jax
from jax.experimental import topologies

try:
    from tqdm import tqdm
except ImportError:

    def tqdm(rows):
        """Prints one line in place of a progress bar."""
        print(f"compiling {len(rows)} rows, some seconds each", file=sys.stderr)
        return rows


_H100 = """
    gpu_device_info {
      cuda_compute_capability { major: 9 }
      core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
      threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
      block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
      registers_per_block_limit: 65536  registers_per_core_limit: 65536
      shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
      shared_memory_per_core: 233472  l2_cache_size: 52428800
      memory_bandwidth: 3352320000000  device_memory_size: 84942979072
    }
    platform_name: "CUDA"
"""
devices: dict[str, dict[str, str]] = {
    "v5e": {"platform": "tpu", "topology_name": "v5e:2x2"},
    "v5p": {"platform": "tpu", "topology_name": "v5p:2x2x1"},
    "v6e": {"platform": "tpu", "topology_name": "v6e:2x2"},
    "h100": {"platform": "cuda", "topology": "1x1x1", "target_config": _H100},
}
"""JAX's descriptions of the devices, as arguments of `get_topology_desc`."""


class Figures(NamedTuple):
    """The figures that a compiler gives for a program.

    The bytes count the body of a loop once, however often it runs: multiply, or compile without
    loops. Seconds on the H100, and cycles, count it as often as it runs.
    """

    bytes_moved: int
    temporaries: int
    """The bytes it needs beside its arguments and results."""
    estimated_seconds: float | None
    """On a TPU the time for the bytes alone. On the H100 the sum over all kernels of XLA's model of
    bytes and arithmetic, but that a matrix product takes what its arithmetic takes at the peak of
    the tensor cores, which the model does not know, or what its bytes take."""
    estimated_cycles: int | None
    """On a TPU the sum over all kernels, for bytes and arithmetic; None on the H100."""
    text: str
    """The optimised HLO."""


def unavailable(device: str) -> str | None:
    """Returns why nothing can be compiled for `device`, or None."""
    if jax.config.jax_platforms != "cpu":
        return "JAX_PLATFORMS must be cpu: import compilers before jax"
    on_tpu = devices[device]["platform"] == "tpu"
    needed = ["libtpu"] if on_tpu else ["jax-cuda13-plugin", "nvidia-cuda-nvcc", "nvidia-nvvm"]
    missing = [name for name in needed if name not in _installed()]
    if missing:
        return f'not installed: {", ".join(missing)}; pip install ".[aot]" does'
    unlike = [n for n in needed if n.startswith("jax") and _installed()[n] != jax.__version__]
    return f"not of the version of JAX: {', '.join(unlike)}" if unlike else None


@functools.cache
def _installed() -> dict[str, str]:
    return {d.name: d.version for d in importlib.metadata.distributions()}


_registering = threading.Lock()


@functools.cache
def _sharding(device: str) -> jax.sharding.Sharding:
    with _registering:  # Two threads that found no compiler would both register it, which fails.
        jax.devices()  # this call registers the plugins
        (first, *_) = topologies.get_topology_desc(**devices[device]).devices
    # A function that is traced knows its platform only from a mesh.
    mesh = jax.sharding.Mesh([first], ("one",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def compile_for(
    device: str, function: Callable[..., Any], *arguments: jax.ShapeDtypeStruct
) -> Figures:
    """Compiles `function` for one such device, and arguments of these shapes and dtypes."""
    reason = unavailable(device)
    if reason:
        raise RuntimeError(f"nothing can be compiled for {device}: {reason}")
    there = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=_sharding(device)) for x in arguments]
    lowered = jax.jit(function).lower(*there)
    on_tpu = devices[device]["platform"] == "tpu"
    compiled = lowered.compile(None if on_tpu else {"xla_gpu_collect_cost_model_stats": True})
    text = compiled.as_text()
    cycles = None
    if on_tpu:
        cost = compiled.cost_analysis()
        cycles = int(as_often_as_it_runs(text, _cycles))
        moved, seconds = int(cost["bytes accessed"]), cost.get("optimal_seconds", -1)
    else:
        moved, seconds = _bytes_moved(text), as_often_as_it_runs(text, _seconds_on_gpu)
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    # The time is negative if the program has a kernel that the models cannot judge.
    return Figures(moved, temporaries, seconds if seconds > 0 else None, cycles, text)


class _Instruction(NamedTuple):
    type: str
    operation: str
    operands: list[str]
    called: list[str]
    """The computations that it calls; of a loop the condition and the body."""
    rest: str
    """What stands after the parenthesis that opens its operands."""


_Computation: TypeAlias = dict[str, _Instruction]
_Count: TypeAlias = Callable[[_Instruction, list[_Computation]], float]
"""A figure of an instruction, beside the computations that it calls."""


def _computations(text: str) -> tuple[dict[str, _Computation], str]:
    """Returns the instructions of all computations by name, and the name of the entry."""
    names = set(re.findall(r"^(?:ENTRY )?%?([\w.-]+) .*\{$", text, re.M))
    computations: dict[str, _Computation] = {}
    entry = ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.-]+) .*\{$", line):
            computations[header[2]] = current = {}
            entry = header[2] if header[1] else entry
        elif found := re.match(r"\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", line):
            name, types, operation, rest = found.groups()
            operands, _, attributes = rest.partition(")")
            called = [c for c in re.findall(r"%([\w.-]+)", attributes) if c in names]
            operands = re.findall(r"%([\w.-]+)", operands)
            current[name] = _Instruction(types, operation, operands, called, rest)
    return computations, entry


def as_often_as_it_runs(text: str, count: _Count) -> float:
    """Returns the sum of the figure over all instructions of a program, loops counted each time.

    A loop like those of `jax.lax.scan`, which count from 0 to a constant, counts its body so many
    times, and any other loop once. Of the branches of a conditional the dearest counts.
    """
    computations, entry = _computations(text)

    def trips(loop: _Instruction) -> int:
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(found[1])
        condition = computations[loop.called[0]].values()
        constants = [i for i in condition if i.operation == "constant"]
        limits = [i.rest.split(")")[0] for i in constants if i.type.startswith("s32[]")]
        return int(limits[0]) if len(limits) == 1 else 1

    def total(computation: str) -> float:
        found = 0.0
        for i in computations[computation].values():
            called = [total(c) for c in i.called]
            times = trips(i) if i.operation == "while" else 1
            found += count(i, [computations[c] for c in i.called])
            found += max(called) if i.operation == "conditional" else times * sum(called)
        return found

    return total(entry)


_H100_PRODUCTS = 989e12
"""Operations per second of a matrix product in 16 bits (NVIDIA, H100 SXM, without sparsity)."""


def _seconds_on_gpu(instruction: _Instruction, called: list[_Computation]) -> float:
    # Each kernel has the times of several models. The first counts.
    model = re.search(r'"reification_cost":\[\{([^}]*)', instruction.rest)
    if model is None:
        return 0.0
    times = dict(re.findall(r'"(\w+)_us":([^,}]+)', model[1]))
    products = [_operations(dot, c) for c in called for dot in c.values() if dot.operation == "dot"]
    if not products:
        return 1e-6 * float(times["exec_time"])
    return max(1e-6 * float(times["memory_access_time"]), sum(products) / _H100_PRODUCTS)


def _operations(dot: _Instruction, computation: _Computation) -> int:
    """Returns how many additions and multiplications the product of two matrices takes."""
    (_, left), (_, result) = (_sizes(t)[0] for t in (computation[dot.operands[0]].type, dot.type))
    (axis,) = re.findall(r"lhs_contracting_dims=\{(\d+)\}", dot.rest)
    return 2 * math.prod(result) * left[int(axis)]


def _cycles(instruction: _Instruction, called: list[_Computation]) -> int:
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
    cycles = int(found[1]) if found else 0
    # The model gives an absurdly large number for a kernel that it cannot judge.
    return cycles if cycles < 2**40 else 0


_COLLECTIVES = {"all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"}


def carried(text: str) -> int:
    """Returns the bytes that the collective operations of a TPU's program return."""

    def count(instruction: _Instruction, called: list[_Computation]) -> int:
        is_collective = instruction.operation.removesuffix("-start") in _COLLECTIVES
        return _size(instruction.type) if is_collective else 0

    return int(as_often_as_it_runs(text, count))


_MOVES_NOTHING = {"bitcast", "constant", "get-tuple-element", "parameter", "tuple"}
_CALLS = {"call", "conditional", "while"}
_SLICES = {"dynamic-slice", "gather", "slice"}
_WIDTHS = {"token": 0, "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2} | {
    kind + bits: int(bits) // 8 for kind in "sufc" for bits in ("32", "64")
}


def _bytes_moved(text: str) -> int:
    """Returns the bytes of operands and results of all kernels that the entry computation starts.

    An operand counts in full, unless a kernel only gathers or slices from it.
    """
    computations, entry = _computations(text)

    def partly_read(computation: str) -> dict[int, int]:
        parts = {}
        for name, parameter in computations[computation].items():
            users = [i for i in computations[computation].values() if name in i.operands]
            if parameter.operation == "parameter" and {i.operation for i in users} <= _SLICES:
                parts[int(parameter.rest.split(")")[0])] = sum(_size(i.type) for i in users)
        return parts

    def moved(computation: str) -> int:
        instructions = computations[computation]
        total = 0
        for i in instructions.values():
            if i.operation in _CALLS:
                total += sum(map(moved, i.called))
            elif i.operation not in _MOVES_NOTHING and not i.operation.endswith("-done"):
                parts = partly_read(i.called[0]) if i.operation == "fusion" else {}
                sizes = (_size(instructions[name].type) for name in i.operands)
                total += sum(parts.get(n, size) for n, size in enumerate(sizes)) + _size(i.type)
        return total

    return moved(entry)


def _sizes(types: str) -> list[tuple[str, list[int]]]:
    """Returns kind and shape of each array in a type."""
    found = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", types)
    return [(kind, [int(size) for size in sizes.split(",") if size]) for kind, sizes in found]


def _size(types: str) -> int:
    return sum(_WIDTHS[kind] * math.prod(shape) for kind, shape in _sizes(types))


_SPARSE, _SOFT = "softmax_cross_entropy_with_integer_labels", "softmax_cross_entropy"
_CALLERS = (("optax", ""), ("jxent", ""), ("jxent", "with options"))
_OPTIONS = {
    "": {},
    "with options": {"label_smoothing": 0.1, "z_loss": 1e-4},
    "with ignore_index": {"ignore_index": -100},
    "with where": {},
}
# Each entry has a library, a function, its second argument and options, some of them arrays.
_LOSSES = [
    *[(library, _SPARSE, "labels", on) for library, on in _CALLERS],
    ("jxent", _SPARSE, "labels", "with ignore_index"),
    *[(library, _SOFT, "rows", on) for library, on in _CALLERS],
    ("jxent", "softmax_entropy", "", ""),
    ("jxent", "softmax_entropy", "", "with where"),
    ("jxent", "softmax_kl_divergence", "rows", ""),
    ("jxent", "softmax_kl_divergence", "rows", "with where"),
    ("jxent", "softmax_kl_divergence_with_top_k_targets", "top 32", ""),
    *[(library, "sigmoid_binary_cross_entropy", "rows", "") for library in ("optax", "jxent")],
    *[("jxent", name, "rows", "") for name in ("sigmoid_focal_loss", "sigmoid_kl_divergence")],
    *[("jxent", name, "rows", "") for name in ("relative_entropy", "jensen_shannon_divergence")],
    *[("jxent", name, "", "") for name in ("sigmoid_entropy", "entropy")],
]


def _cells(device: str, dtype: str, loss: tuple[Any, ...], shape: list[int]) -> list[str]:
    library, name, second, options = loss
    function = getattr(importlib.import_module(library), name)
    losses = functools.partial(function, **_OPTIONS[options])
    z, labels = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape[:1], "int32")
    few = [jax.ShapeDtypeStruct((shape[0], 32), kind) for kind in ("int32", "float32")]
    arguments = [z, *{"labels": [labels], "rows": [z], "top 32": few, "": []}[second]]
    arrays = {
        "with options": ("class_weights", jax.ShapeDtypeStruct(shape[1:], "float32")),
        "with where": ("where", jax.ShapeDtypeStruct(shape[:1], "bool")),
    }
    if options in arrays:
        keyword, array = arrays[options]
        arguments.append(array)
        given = losses
        losses = lambda *args: given(*args[:-1], **{keyword: args[-1]})  # noqa: E731
    cells = [device, dtype, ", ".join(filter(None, [f"{library}.{name}", options]))]
    for program in losses, jax.value_and_grad(lambda *args: losses(*args).sum()):
        figures = compile_for(device, program, *arguments)
        size, seconds = z.size * z.dtype.itemsize, figures.estimated_seconds
        cells.append(f"{figures.bytes_moved / size:.2f}")
        cells.append(f"{100 * figures.temporaries / size:.1f}")
        cells.append("" if seconds is None else f"{1e3 * seconds:.3f}")
        cells.append(
            "" if figures.estimated_cycles is None else f"{figures.estimated_cycles / 1e6:.2f}"
        )
    return cells


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", nargs="+", choices=devices, default=list(devices))
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--losses", default="", help="those that have this in their name")
    parser.add_argument("--examples", type=int, default=4096)
    parser.add_argument("--classes", type=int, default=32768)
    chosen = parser.parse_args()
    reasons = {d: reason for d in chosen.devices if (reason := unavailable(d))}
    if reasons:
        sys.exit("\n".join(f"{d}: {reason}" for d, reason in reasons.items()))
    names = ("jax", "libtpu", "nvidia-cuda-nvcc", "optax")
    versions = ", ".join(f"{n} {_installed()[n]}" for n in names if n in _installed())
    print(f"{datetime.date.today()}: {versions}; {chosen.examples} x {chosen.classes}.")
    print("Passes, temporaries in % of the logits, estimated ms and million cycles;")
    print("the gradient is for the logits.\n")
    print("| device | dtype | loss | forward | | | | value and gradient | | | |")
    print("|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    losses = [loss for loss in _LOSSES if chosen.losses in f"{loss[1]}, {loss[3]}"]
    for row in tqdm(list(itertools.product(chosen.devices, chosen.dtypes, losses))):
        cells = _cells(*row, [chosen.examples, chosen.classes])
        print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
