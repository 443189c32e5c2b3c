"""The loss of a linear head over 64 TPU chips: what a chip may compute, carry and keep."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.aot


def test_no_more_than_whole_logits():
    """Three products; two gradients to reduce, and less memory than whole logits take."""
    found = json.loads(run())
    if "unavailable" in found:
        pytest.skip(found["unavailable"])
    (products, carried, temporaries), whole = found["jxent"], found["whole logits"]
    assert products == pytest.approx(3, rel=0.01)
    # The loss itself takes four numbers for each example, whole logits three.
    gradients = 2 * (8192 * 4096 + 4096 * 16032)
    assert gradients < whole[1] < 1.001 * gradients
    assert gradients < carried < 1.001 * gradients
    assert temporaries < 0.75 * whole[2]


def run():
    """The figures, from a process of its own: the compiler changes what JAX finds."""
    command = [sys.executable, __file__]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def main():
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import compilers  # before JAX

    if reason := compilers.unavailable("v5e"):
        print(json.dumps({"unavailable": reason}))
        return

    import mesh

    print(json.dumps({name: mesh.figures(mesh.SETTINGS[0], name) for name in mesh.losses()}))


if __name__ == "__main__":
    main()
