"""Meshes of eight devices, and what a program partitioned over them communicates."""

import math
import re

import chex
import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from support.products import as_often_as_it_runs

EXAMPLES_ONLY = ("data", "model"), (8, 1)
CLASSES_ONLY = ("data", "model"), (1, 8)
BOTH = ("data", "model"), (4, 2)
THREE = ("data", "model", "expert"), (2, 2, 2)

_COLLECTIVES = "all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter"


def mesh_of(names, sizes, axis_type=AxisType.Auto):
    """A mesh over the first eight devices."""
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices")
    devices = np.array(jax.devices()[:8]).reshape(sizes)
    return Mesh(devices, names, axis_types=(axis_type,) * len(names))


def placed(mesh, specs, arrays):
    """The arrays by name, on the mesh; what has no spec is whole on every device."""
    return {n: jax.device_put(x, NamedSharding(mesh, specs.get(n, P()))) for n, x in arrays.items()}


def collectives(text):
    """The kind and the number of elements of every collective operation in compiled HLO."""
    found = re.findall(rf"= (.*?) ({_COLLECTIVES})(?:-start)?\(", text)
    return [
        (kind, math.prod(int(n) for n in shape.split(",") if n))
        for shapes, kind in found
        for shape in re.findall(r"\w\[([\d,]*)\]", shapes)
    ]


def carried(text):
    """How many elements the results of all collective operations have, in loops each time."""
    return as_often_as_it_runs(
        text, lambda lines: sum(size for _, size in collectives("\n".join(lines)))
    )


def assert_same(results, exact, rtol, atol):
    """Trees of numbers; `atol` is relative to the largest finite one of each array."""
    chex.assert_trees_all_equal_structs(results, exact)
    for got, x in zip(jax.tree.leaves(results), jax.tree.leaves(exact), strict=True):
        scale = np.max(np.abs(x), where=np.isfinite(x), initial=0)
        chex.assert_trees_all_close(got, x, rtol=rtol, atol=atol * scale, strict=True)
