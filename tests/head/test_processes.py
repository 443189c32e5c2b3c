"""Two processes, joined by `jax.distributed` on the loopback interface, have the loss of one."""

import json
import os
import sys
import time
import traceback

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.processes import free_port, run_together

EXAMPLES, FEATURES, CLASSES = 24, 6, 40
DEVICES = 2
BOUND = 180


def arrays():
    rng = np.random.default_rng(0)
    return {
        "inputs": rng.normal(size=(EXAMPLES, FEATURES)).astype(np.float32),
        "kernel": rng.normal(size=(FEATURES, CLASSES)).astype(np.float32),
        "labels": rng.integers(0, CLASSES, EXAMPLES).astype(np.int32),
    }


def value_and_gradients(inputs, kernel, labels, **where):
    def loss(inputs, kernel):
        return jxent.linear_softmax_cross_entropy(
            inputs, kernel, labels, z_loss=0.01, label_smoothing=0.1, chunk_size=4, **where
        )

    return jax.value_and_grad(loss, (0, 1))(inputs, kernel)


def commands(*misfortune):
    port = free_port()
    return [[__file__, str(port), str(number), *misfortune] for number in range(2)]


@pytest.mark.full
def test_the_same_as_in_one_process():
    """Each process has a part of the classes (the last axis of the mesh) and of the examples."""
    # The last line, because the collectives have their say before it.
    results = [json.loads(out.splitlines()[-1]) for out in run_together(commands(), BOUND)]
    loss, gradients = jax.jit(value_and_gradients)(*map(jnp.asarray, arrays().values()))
    for result in results:
        of_both = np.float32(result["loss"]), tuple(map(np.float32, result["gradients"]))
        chex.assert_trees_all_close(of_both[0], loss, rtol=1e-6)
        chex.assert_trees_all_close(of_both[1], gradients, rtol=1e-5, atol=1e-7, strict=True)


@pytest.mark.full
@pytest.mark.parametrize("misfortune", ["raises", "is killed", "hangs"])
def test_a_failure_is_seen_and_said(misfortune):
    start = time.monotonic()
    bound = 5 if misfortune == "hangs" else BOUND
    with pytest.raises(AssertionError) as caught:
        run_together(commands(misfortune), bound)
    expected = {
        "raises": "process 1 of 2 ended with 1:\n",
        "is killed": "process 1 of 2 ended with -9:\n",
        "hangs": "after 5 s still running: processes [0, 1]\n",
    }
    assert str(caught.value).startswith(expected[misfortune])
    assert (misfortune == "raises") == ("RuntimeError: a misfortune" in str(caught.value))
    assert time.monotonic() - start < bound + 20


def work(port, number, misfortune=None):
    """One process of two, each with some of the devices of the mesh."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(number), initialization_timeout=BOUND)
    assert (jax.process_count(), len(jax.devices())) == (2, 2 * DEVICES)
    if misfortune and jax.process_index() == 1:
        fail(misfortune)
    # Neighbours in the mesh are in different processes, along both axes.
    devices = np.array(jax.devices()).reshape(2, DEVICES).T
    devices[1] = devices[1][::-1]
    mesh = jax.sharding.Mesh(devices, ("data", "model"))
    spec = jax.sharding.PartitionSpec
    specs = {"inputs": spec("data"), "kernel": spec(None, "model"), "labels": spec("data")}
    placed = [
        jax.make_array_from_callback(
            x.shape, jax.sharding.NamedSharding(mesh, specs[name]), lambda part, x=x: x[part]
        )
        for name, x in arrays().items()
    ]
    function = jax.jit(
        lambda *arrays: value_and_gradients(*arrays, mesh=mesh, class_axis_name="model"),
        out_shardings=jax.sharding.NamedSharding(mesh, spec()),
    )
    loss, gradients = function(*placed)
    result = {"loss": float(loss), "gradients": [np.asarray(g).tolist() for g in gradients]}
    print("\n" + json.dumps(result))


def fail(how):
    if how == "raises":
        raise RuntimeError("a misfortune")
    if how == "is killed":
        os.kill(os.getpid(), 9)
    time.sleep(10 * BOUND)


if __name__ == "__main__":
    try:
        work(*sys.argv[1:])
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # An orderly exit would wait for the other process.
