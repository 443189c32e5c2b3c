"""Bytes moved and temporaries of the functions, as the compilers for a TPU and an H100 count them.

The cross-entropies and the entropy keep what the documentation promises. Each function is bounded
by what was measured, so that a change which makes XLA write the exponentials to memory is seen; one
that has not been measured, by what two looks at its arguments take.
``python tests/compiled/test_compiled.py`` measures, and prints the table that stands here.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

pytestmark = pytest.mark.aot

# More than the fast memory of any of the devices: what fits there would not count as moved.
EXAMPLES, CLASSES, FEATURES = 4096, 50304, 512
SHAPES = {"labels": (EXAMPLES,), "inputs": (EXAMPLES, FEATURES), "kernel": (FEATURES, CLASSES)}
SHAPES |= dict.fromkeys(("target_indices", "target_log_probs"), (EXAMPLES, 32))
COPY = "a copy"
OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-4}
SPARSE, SOFT = "softmax_cross_entropy_with_integer_labels", "softmax_cross_entropy"
# Name, second argument, and whether options and class weights are on.
_PROMISED = [
    (SPARSE, "labels", False),
    (SPARSE, "labels", True),
    (SOFT, "distributions", False),
    (SOFT, "distributions", True),
    ("softmax_entropy", None, False),
]
TEMPORARIES = {"v5e": 0.01, "v6e": 0.01, "h100": 0.04}
# A TPU's compiler takes up to a minute for a program in bfloat16, so each device has the promises
# in one dtype, and a v6e two of them. For a v5e that is float32, in which weights made of the
# options look like labels the user gave.
PROMISED = {"v5e": _PROMISED, "v6e": [_PROMISED[0], _PROMISED[3]], "h100": _PROMISED}
DTYPES = {"v5e": "float32", "v6e": "bfloat16", "h100": "float32"}
KINDS = ("passes", "temporaries", "passes with gradient", "temporaries with gradient")

# In bfloat16, forward, then value and gradient with respect to every argument that has one, on a
# TPU these alone: bytes moved, and temporaries, each divided by the bytes of the logits.
# A TPU has one function of each kind; `test_compiled_rows.py` has its divergence.
MEASURED = {
    "v5e": {},
    "v6e": {
        "cross_entropy": (4.0, 0.0),
        "linear_softmax_cross_entropy": (3.185, 0.329),
    },
    "h100": {
        "logsumexp": (1.016, 0.008, 3.016, 0.005),
        "log_softmax": (4.016, 0.005, 4.027, 0.005),
        "softmax": (4.016, 0.005, 4.027, 0.005),
        "softmax_entropy": (1.026, 0.013, 3.026, 0.01),
        "softmax_cross_entropy": (2.041, 0.021, 6.042, 0.016),
        "softmax_cross_entropy_with_integer_labels": (1.021, 0.01, 3.021, 0.008),
        "safe_softmax_cross_entropy": (2.041, 0.021, 6.042, 0.016),
        "poly_loss_cross_entropy": (4.039, 0.014, 12.061, 2.006),
        "softmax_focal_loss_with_integer_labels": (1.021, 0.01, 3.021, 0.008),
        "softmax_kl_divergence": (6.039, 0.006, 10.04, 0.002),
        "softmax_kl_divergence_with_top_k_targets": (3.05, 0.51, 8.56, 0.51),
        "softmax_jensen_shannon_divergence": (6.049, 0.011, 10.051, 0.002),
        "sigmoid_entropy": (3.0, 0.0, 2.0, 0.0),
        "sigmoid_binary_cross_entropy": (4.0, 0.0, 4.0, 0.0),
        "sigmoid_kl_divergence": (4.0, 0.0, 15.0, 4.5),
        "sigmoid_focal_loss": (4.0, 0.0, 4.0, 0.0),
        "kl_divergence": (2.01, 0.005, 4.0, 0.0),
        "kl_divergence_with_log_targets": (2.01, 0.005, 4.0, 0.0),
        "generalized_kl_divergence": (2.01, 0.005, 4.0, 0.0),
        "entropy": (1.01, 0.005, 2.0, 0.0),
        "cross_entropy": (2.01, 0.005, 4.0, 0.0),
        "relative_entropy": (4.041, 0.015, 10.041, 2.015),
        "jensen_shannon_divergence": (2.01, 0.005, 14.01, 4.005),
        "cross_entropy_with_integer_labels": (1.01, 0.005, 2.011, 0.0),
        "negative_log_likelihood": (1.01, 0.005, 2.011, 0.005),
        "binary_entropy": (3.0, 0.0, 8.0, 2.5),
        "binary_cross_entropy": (4.0, 0.0, 10.0, 2.0),
        "weighted_mean": (2.001, 0.0, 6.001, 0.0),
        "linear_softmax_cross_entropy": (0.251, 0.063, 2.722, 0.604),
    },
}


def bound(measured):
    """A little more, and less than what one more array of the logits' size would take."""
    return measured + min(0.04 * measured, 0.5) + 0.005


@pytest.mark.parametrize("device", MEASURED)
def test_bytes_moved_and_temporaries(device):
    figures = run(device)
    if "unavailable" in figures:
        pytest.skip(f"{device}: {figures['unavailable']}")
    # One read and one write, so that a format which is no longer understood does not pass.
    assert figures.pop(COPY)[0] == pytest.approx(2, abs=0.01)
    # Not above: as a program, this file must be the first to import JAX.
    from support.cases import BARE

    rows = MEASURED[device]
    if device == "h100":
        rows = {case.name: two_looks(case) for case in BARE} | rows
    expected = {name: tuple(map(bound, row)) for name, row in rows.items()} | {
        promised_name(*promised): promise(promised[1], TEMPORARIES[device])
        for promised in PROMISED[device]
    }
    assert figures.keys() == expected.keys()
    worse = [
        f"{device}, {name}: {kind} {found:.3f}, allowed {allowed:.3f}"
        for name, row in figures.items()
        for kind, found, allowed in zip(
            KINDS[-len(row) :], row, expected[name][-len(row) :], strict=True
        )
        if found > allowed
    ]
    assert not worse, "\n".join(worse)


def two_looks(case):
    """At each argument of the logits' size; the gradient takes two more, and is written."""
    arrays = sum(kind not in SHAPES for kind in case.kinds)
    written = 2.0 if case.per_class else 0.0  # in float32, beside logits of half its size
    return 2 * arrays + written, 0.05, 5 * arrays + written, 0.05


def promised_name(name, second, with_options):
    return f"{name}{' with options' if with_options else ''} promised"


def promise(second, temporaries):
    """One look at the logits, and at soft labels; the gradient takes one more, and is written."""
    look = 2.0 if second == "distributions" else 1.0
    return look + 0.1, temporaries, 2 * look + 1.1, temporaries


def run(device):
    """The figures for a device, from a process of its own: its compiler changes what JAX finds."""
    command = [sys.executable, __file__, device]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)


def measure(device):
    """Name of the function and dtype to the figures."""
    root = Path(__file__).parents[2]
    sys.path[:0] = [str(root / "tests"), str(root / "benchmarks")]
    import compilers  # before JAX

    reason = compilers.unavailable(device)
    if reason:
        return {"unavailable": reason}

    import jax
    import jax.numpy as jnp

    import jxent
    from support import cases

    def figures(call, differentiable, arguments, logits):
        gradient = jax.value_and_grad(lambda *args: call(*args).sum(), differentiable)
        size, row = logits.size * logits.dtype.itemsize, []
        for function in [call, gradient] if device == "h100" else [gradient]:
            found = compilers.compile_for(device, function, *arguments)
            row += [round(found.bytes_moved / size, 3), round(found.temporaries / size, 3)]
        return row

    def of_case(case):
        # The length of the chunks is left to the function.
        case = replace(case, fixed={k: v for k, v in case.fixed.items() if k != "chunk_size"})
        shapes = [SHAPES.get(kind, (EXAMPLES, CLASSES)) for kind in case.kinds]
        dtypes = ["int32" if kind in cases.INTEGERS else "bfloat16" for kind in case.kinds]
        arguments = list(map(jax.ShapeDtypeStruct, shapes, dtypes))
        logits = jax.ShapeDtypeStruct((EXAMPLES, CLASSES), "bfloat16")
        return case.name, figures(case.call, case.differentiable, arguments, logits)

    def of_promise(name, second, with_options):
        z = jax.ShapeDtypeStruct((4096, 32768), DTYPES[device])
        labels = jax.ShapeDtypeStruct(z.shape[:1], "int32")
        arguments = [z, *{"labels": [labels], "distributions": [z], None: []}[second]]
        call = function = getattr(jxent, name)
        if with_options:
            arguments.append(jax.ShapeDtypeStruct(z.shape[1:], "float32"))
            call = lambda *args: function(*args[:-1], class_weights=args[-1], **OPTIONS)  # noqa: E731
        return promised_name(name, second, with_options), figures(call, 0, arguments, z)

    copied = jax.ShapeDtypeStruct((EXAMPLES, CLASSES), "float32")
    copy = compilers.compile_for(device, jnp.negative, copied)
    chosen = [c for c in cases.BARE if device == "h100" or c.name in MEASURED[device]]
    jobs = [lambda case=case: of_case(case) for case in chosen]
    jobs += [lambda promised=promised: of_promise(*promised) for promised in PROMISED[device]]
    with ThreadPoolExecutor(2) as threads:
        table = dict(threads.map(lambda job: job(), jobs))
    return {COPY: [copy.bytes_moved / (copied.size * 4)]} | table


def main():
    """Of one device as JSON; without an argument the table."""
    if sys.argv[1:]:
        print(json.dumps(measure(sys.argv[1])))
        return
    print("MEASURED = {")
    for device in MEASURED:
        print(f'    "{device}": {{')
        for name, row in run(device).items():
            if name != COPY and "promised" not in name:
                print(f'        "{name}": {tuple(row)},')
        print("    },")
    print("}")


if __name__ == "__main__":
    main()
