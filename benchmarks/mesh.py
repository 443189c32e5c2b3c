"""Compiles a linear head's loss for TPU meshes: what each chip computes, carries and keeps.

``python benchmarks/mesh.py`` compiles value and gradients for TPUs on a machine that has none, as
`compilers` does. It prints a Markdown table of jxent with the argument `mesh` and without, on
explicit and on automatic axes, and of whole logits in float32 that XLA partitions by itself. Two
more rows are a policy objective, by `jxent.chunked` and of whole logits. Nothing runs. It needs
what ``pip install ".[aot]"`` installs.
"""

import argparse
import datetime
import functools
import re
from typing import Any, NamedTuple

import compilers  # before JAX, which it configures
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jxent


class Setting(NamedTuple):
    """A mesh of chips, data x model, and the sizes of the arrays on it, which are bfloat16."""

    topology: str
    data: int
    model: int
    examples: int
    classes: int
    features: int = 4096


SETTINGS = [
    Setting("v5e:8x8", 8, 8, 2**16, 128256),
    Setting("v5p:4x4x4", 8, 8, 2**20, 128256),
    Setting("v5e:16x16", 32, 8, 2**22, 2**18),
]
CHUNK = 512
"""Examples per chunk. It divides the examples of a chip, so the number of chunks is known."""
EXPLICIT, AUTOMATIC = "jxent without mesh, explicit axes", "jxent without mesh, automatic axes"


class Figures(NamedTuple):
    """The figures of one chip."""

    products: float
    """The arithmetic, in units of one matrix product of the chip's inputs and kernel."""
    carried: int
    """Bytes of the results of its collective operations."""
    temporaries: int
    """Bytes beside arguments and results."""


def losses() -> dict[str, Any]:
    """Returns the mean losses as functions of the mesh, inputs, kernel and labels."""

    def fused(mesh, x, w, y):
        return jxent.linear_softmax_cross_entropy(
            x, w, y, mesh=mesh, class_axis_name="model", chunk_size=CHUNK
        )

    def partitioned(mesh, x, w, y):
        return jxent.linear_softmax_cross_entropy(x, w, y, chunk_size=CHUNK)

    def whole(mesh, x, w, y):
        logits = jnp.dot(x, w, preferred_element_type=jnp.float32)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    def objective(logits, labels, advantages, class_axis_name=None):
        spread = {"class_axis_name": class_axis_name}
        nll = jxent.softmax_cross_entropy_with_integer_labels(logits, labels, **spread)
        return advantages * nll - 0.01 * jxent.softmax_entropy(logits, **spread)

    def advantages_of(y):
        return jnp.sin(y.astype(jnp.float32))

    def policy(mesh, x, w, y):
        chunked = jxent.chunked(
            functools.partial(objective, class_axis_name="model"),
            reduction="mean",
            mesh=mesh,
            class_axis_name="model",
            chunk_size=CHUNK,
        )
        return chunked(jxent.LinearLogits(x, w), y, advantages_of(y))

    def whole_policy(mesh, x, w, y):
        logits = jnp.dot(x, w, preferred_element_type=jnp.float32)
        return jnp.mean(objective(logits, y, advantages_of(y)))

    return {
        "jxent": fused,
        EXPLICIT: partitioned,
        AUTOMATIC: partitioned,
        "whole logits": whole,
        "jxent, policy": policy,
        "whole logits, policy": whole_policy,
    }


def figures(setting: Setting, name: str) -> Figures:
    """Compiles one of the losses with its gradients, and returns the compiler's figures."""
    chips = topologies.get_topology_desc(platform="tpu", topology_name=setting.topology).devices
    axis_types = (AxisType.Explicit if name == EXPLICIT else AxisType.Auto,) * 2
    sizes = setting.data, setting.model
    mesh = Mesh(np.array(chips).reshape(sizes), ("data", "model"), axis_types=axis_types)
    data, model = PartitionSpec("data"), PartitionSpec(None, "model")
    inputs = ((setting.examples, setting.features), jnp.bfloat16, data)
    kernel = ((setting.features, setting.classes), jnp.bfloat16, model)
    labels = ((setting.examples,), jnp.int32, data)
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in (inputs, kernel, labels)
    ]
    program = jax.value_and_grad(functools.partial(losses()[name], mesh), (0, 1))
    shardings = None, (arguments[0].sharding, arguments[1].sharding)
    compiled = jax.jit(program, out_shardings=shardings).lower(*arguments).compile()
    # A loop's body counts once and has nearly all the work, so this product is an upper bound.
    # Automatic axes do not say which of them share the classes: there is a group for each chip.
    groups = mesh.size if name == AUTOMATIC else setting.data
    chunks = setting.examples // groups // CHUNK if name.startswith("jxent") else 1
    product = 2 * setting.examples * setting.features * setting.classes // mesh.size
    return Figures(
        products=chunks * compiled.cost_analysis()["flops"] / product,
        carried=compilers.carried(compiled.as_text()),
        temporaries=compiled.memory_analysis().temp_size_in_bytes,
    )


def cells(setting: Setting, name: str) -> list[str]:
    """Returns the cells of a row of the table."""
    chip, shape = setting.topology.split(":")
    head = [
        f"{chip} {shape}, {setting.data} data x {setting.model} model",
        f"{setting.examples} x {setting.features} x {setting.classes}",
        name,
    ]
    try:
        found = figures(setting, name)
    except jax.errors.JaxRuntimeError as error:
        needed = re.search(
            r"temporaries \(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)", str(error)
        )
        if not needed:
            raise
        return [*head, "", "", f"{needed[1]} GiB: more than the {needed[2]} of the chip"]
    return [
        *head,
        f"{found.products:.2f}",
        f"{found.carried / 1e6:.2f} MB",
        f"{found.temporaries / 2**30:.2f} GiB",
    ]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    reason = compilers.unavailable("v5e")
    if reason:
        raise SystemExit(reason)
    print(f"{datetime.date.today()}: JAX {jax.__version__}, bfloat16, each figure of one chip.\n")
    print("| mesh | examples x features x classes | | products | carried | temporaries |")
    print("|---|---|---|--:|--:|--:|")
    for setting in SETTINGS:
        for name in losses():
            print("|", " | ".join(cells(setting, name)), "|", flush=True)


if __name__ == "__main__":
    main()
