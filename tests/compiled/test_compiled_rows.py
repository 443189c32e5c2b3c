"""What the compilers for TPUs and an H100 estimate for a row's sums, and what they move.

``python tests/compiled/test_compiled_rows.py v5e`` prints the figures of a device.
"""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

# One worker has them all, so that each device is compiled for once.
pytestmark = [pytest.mark.aot, pytest.mark.xdist_group("rows")]

EXAMPLES, CLASSES, FEW = 4096, 32768, 256
# Cycles on a TPU, microseconds on an H100: forward, integer labels.
ALLOWED = {
    "v5e": {"bfloat16": 0.8e6, "float32": 1.45e6},
    "v6e": {"bfloat16": 0.55e6, "float32": 0.8e6},
    "h100": {"bfloat16": 300, "float32": 350},
}
# The same with smoothing, class weights and z-loss.
ALLOWED_WITH_OPTIONS = {
    "v6e": {"bfloat16": 0.76e6, "float32": 0.8e6},
    "h100": {"bfloat16": 420, "float32": 540},
}


@pytest.mark.parametrize("device", ALLOWED)
def test_estimate(device):
    found = figures(device)
    for dtype, allowed in ALLOWED[device].items():
        estimate, passes = found[dtype]
        assert 0.3 * allowed < estimate <= allowed  # An absurd number says nothing.
        assert 1 <= passes < 1.05


@pytest.mark.parametrize("device", ALLOWED_WITH_OPTIONS)
def test_estimate_with_options(device):
    found = figures(device)
    for dtype, allowed in ALLOWED_WITH_OPTIONS[device].items():
        estimate, passes = found[f"{dtype} with options"]
        assert 0.3 * allowed < estimate <= allowed
        assert 1 <= passes < 1.05


@pytest.mark.parametrize("device", ["v6e", "h100"])
def test_the_gradient_of_a_divergence_writes_nothing_else(device):
    """Three looks at both arrays for the value, one more for the gradient, which is written."""
    passes, temporaries = figures(device)["divergence"]
    assert 8.9 < passes <= 9.1
    assert temporaries < 0.01


def test_what_is_left_out_of_an_entropy_is_not_written():
    passes, temporaries = figures("v6e")["masked entropy"]
    assert 1 <= passes < 1.05
    assert temporaries < 0.01


def test_classes_that_xla_spreads_stay_where_they_are():
    """To cut them into slices would be to move them between the devices."""
    assert 0 < figures("v5e")["carried"] <= 100 * FEW


@functools.cache
def figures(device):
    """From a process of its own: the compiler changes what JAX finds."""
    command = [sys.executable, __file__, device]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    if "unavailable" in found:
        pytest.skip(f"{device}: {found['unavailable']}")
    return found


def main():
    """The figures of a device as JSON."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import compilers  # before JAX

    device = sys.argv[1]
    if reason := compilers.unavailable(device):
        print(json.dumps({"unavailable": reason}))
        return

    import jax
    import mesh
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from jxent import softmax_cross_entropy_with_integer_labels as loss
    from jxent import softmax_entropy, softmax_kl_divergence

    def of_logits(figures, z):
        size = z.size * z.dtype.itemsize
        return figures.bytes_moved / size, figures.temporaries / size

    def estimate_and_passes(function, z, *others):
        of_loss = compilers.compile_for(device, function, z, *others)
        estimate = of_loss.estimated_cycles or 1e6 * of_loss.estimated_seconds
        return estimate, of_logits(of_loss, z)[0]

    def with_options(z, labels, weights):
        return loss(z, labels, label_smoothing=0.1, class_weights=weights, z_loss=1e-4)

    labels = jax.ShapeDtypeStruct((EXAMPLES,), "int32")
    weights = jax.ShapeDtypeStruct((CLASSES,), "float32")
    found = {}
    for dtype in ALLOWED[device]:
        z = jax.ShapeDtypeStruct((EXAMPLES, CLASSES), dtype)
        # The logits that a mask fills must not be written.
        masked = {"ignore_index": -100} if dtype == "float32" else {}
        found[dtype] = estimate_and_passes(functools.partial(loss, **masked), z, labels)
        if device in ALLOWED_WITH_OPTIONS:
            found[f"{dtype} with options"] = estimate_and_passes(with_options, z, labels, weights)
    if device == "v6e":

        def entropies(logits, where):
            return softmax_entropy(logits, where=where)

        where = jax.ShapeDtypeStruct((EXAMPLES,), "bool")
        masked_entropy = compilers.compile_for(device, entropies, z, where)
        found["masked entropy"] = of_logits(masked_entropy, z)
    if device != "v5e":

        def total(logits, target_logits):
            return softmax_kl_divergence(logits, target_logits).sum()

        z = jax.ShapeDtypeStruct((EXAMPLES, CLASSES), "bfloat16")
        divergence = compilers.compile_for(device, jax.value_and_grad(total), z, z)
        found["divergence"] = of_logits(divergence, z)
    else:
        devices = compilers.topologies.get_topology_desc(**compilers.devices[device]).devices
        spread = NamedSharding(Mesh(devices, ("model",)), PartitionSpec(None, "model"))
        z = jax.ShapeDtypeStruct((FEW, CLASSES), "bfloat16", sharding=spread)
        labels = jax.ShapeDtypeStruct((FEW,), "int32")
        found["carried"] = mesh.carried(jax.jit(loss).lower(z, labels).compile().as_text(), 1)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
