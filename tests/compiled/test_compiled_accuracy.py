"""What the programs for TPUs ask of their exponentials and logarithms: the accurate form."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.aot

DEVICES = {"v5e": "CASES", "v6e": "BARE"}
"""With the options on one device, and without them on another: each program takes ten seconds."""
INEXACT = (
    *("exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "power", "tanh"),
    *("sqrt", "rsqrt", "cbrt", "sine", "cosine", "tan", "atan2", "erf"),
)
ACCURATE = "result_accuracy={mode=highest}"


def test_every_instruction_is_asked_for_accuracy():
    """Of every value and gradient, in one program for each device."""
    command = [sys.executable, __file__]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    if "unavailable" in found:
        pytest.skip(found["unavailable"])
    assert found.keys() == DEVICES.keys()
    for device, (accurate, inexact) in found.items():
        assert inexact == [], device
        # Otherwise the format of programs is no longer understood.
        assert {"exponential", "exponential-minus-one", "log", "log-plus-one"} <= set(accurate)


def main():
    """Of each device what is asked for accuracy, and what is not, with its origin, as JSON."""
    root = Path(__file__).parents[2]
    sys.path[:0] = [str(root / "tests"), str(root / "benchmarks")]
    import compilers  # before JAX

    if reason := compilers.unavailable("v5e"):
        print(json.dumps({"unavailable": reason}))
        return

    import jax

    from support import cases

    def of_device(device):
        chosen = getattr(cases, DEVICES[device])

        def program(*arguments):
            given, results = iter(arguments), []
            for case in chosen:
                args = [next(given) for _ in case.args()]
                total = lambda *args, case=case: case.call(*args).sum()  # noqa: E731
                results.append(jax.value_and_grad(total, case.differentiable)(*args))
            return results

        arguments = [jax.typeof(x) for case in chosen for x in case.args()]
        accurate, inexact = set(), []
        for line in compilers.compile_for(device, program, *arguments).text.splitlines():
            found = re.search(r" = \S+ ([\w-]+)\(", line)
            if found and found[1] in INEXACT:
                if ACCURATE in line:
                    accurate.add(found[1])
                else:
                    inexact.append([found[1], *re.findall(r'op_name="([^"]*)"', line)])
        return device, (sorted(accurate), inexact)

    print(json.dumps(dict(map(of_device, DEVICES))))


if __name__ == "__main__":
    main()
