"""Integer-label cross-entropy beside optax: time here, and bytes moved on a TPU by its compiler.

``python benchmarks/dense.py`` times both interleaved, in one process. ``--tpu v5e:2x2`` compiles
them for that TPU instead, which takes the package `libtpu` but no TPU.
"""

import argparse
import os
import time

import numpy as np

EXAMPLES, CLASSES = 2048, 32768


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tpu", metavar="TOPOLOGY", help="compile for this TPU")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    if options.tpu:
        os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1")

    import jax
    import jax.numpy as jnp
    import optax

    import jxent

    def mean_loss(library):
        return lambda z, y: jnp.mean(library.softmax_cross_entropy_with_integer_labels(z, y))

    losses = {"jxent": mean_loss(jxent), "optax": mean_loss(optax)}
    kinds = {"value": jax.jit, "value and gradient": lambda f: jax.jit(jax.value_and_grad(f))}
    for kind, make in kinds.items():
        functions = {name: make(loss) for name, loss in losses.items()}
        if options.tpu:
            passes = {n: _passes(f, options.tpu, options.dtype) for n, f in functions.items()}
            print(f"{kind}, passes over the logits on {options.tpu}, {options.dtype}:", passes)
        else:
            seconds = _seconds(functions, options.dtype, options.runs)
            ratio = seconds["jxent"] / seconds["optax"]
            print(f"{kind}, {options.dtype}: {ratio:.2f} times optax's {seconds['optax']:.3f} s")


def _seconds(functions, dtype, runs):
    import jax
    import jax.numpy as jnp

    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.standard_normal((EXAMPLES, CLASSES), np.float32), dtype)
    y = jnp.asarray(rng.integers(0, CLASSES, EXAMPLES))
    taken = {name: [] for name in functions}
    for _ in range(runs + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function(z, y))
            taken[name].append(time.perf_counter() - start)
    return {name: float(np.median(seconds[1:])) for name, seconds in taken.items()}


def _passes(function, topology, dtype):
    import jax
    from jax.experimental import topologies

    (device, *_) = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    sharding = jax.sharding.SingleDeviceSharding(device)
    z = jax.ShapeDtypeStruct((EXAMPLES, CLASSES), dtype, sharding=sharding)
    y = jax.ShapeDtypeStruct((EXAMPLES,), "int32", sharding=sharding)
    cost = function.lower(z, y).compile().cost_analysis()
    return round(cost["bytes accessed"] / (z.size * z.dtype.itemsize), 2)


if __name__ == "__main__":
    main()
