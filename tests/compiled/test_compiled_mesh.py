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
    # The losses themselves take a few numbers for each example.
    gradients = 2 * (8192 * 4096 + 4096 * 16032)
    for objective in ("", ", policy"):
        products, carried, temporaries = found["jxent" + objective]
        whole = found["whole logits" + objective]
        assert products == pytest.approx(3, rel=0.02)
        assert gradients < whole[1]
        assert gradients < carried < 1.002 * gradients
        assert carried < 1.001 * whole[1]
        assert temporaries < 0.75 * whole[2]


def run():
    """The figures, from a process of its own: the compiler changes what JAX finds."""
    command = [sys.executable, __file__]
    return subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout


def main():
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import compilers  # before JAX

    if reason := compilers.unavailable("v5e"):
        print(json.dumps({"unavailable": reason}))
        return

    import mesh

    print(json.dumps({name: mesh.figures(mesh.SETTINGS[0], name) for name in mesh.losses()}))


if __name__ == "__main__":
    main()
