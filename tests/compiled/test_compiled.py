"""What the compilers for TPUs and an H100 make of the functions: bytes, memory, cycles, accuracy.

The cross-entropies and the entropy keep what the documentation promises. Each function is bounded
by what was measured, so that a change which makes XLA write the exponentials to memory is seen; one
that has not been measured, by what two looks at its arguments take.
``python tests/compiled/test_compiled.py h100 of_functions`` prints the figures of a device, as
rows of the table of what was measured.
"""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[2] / folder) for folder in ("tests", "benchmarks")]
    import compilers  # before JAX
    import jax
    import jax.numpy as jnp
    import linear_compiled
    import mesh
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    import jxent
    from support import cases

pytestmark = pytest.mark.aot


def figures(device, part, *options):
    """From a process of its own, which runs `part` below: its compiler changes what JAX finds."""
    command = [sys.executable, __file__, device, part, *map(str, options)]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    if "unavailable" in found:
        pytest.skip(f"{device}: {found['unavailable']}")
    return found


# Every function, and what is promised of some.

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
# A TPU has one function of each kind; the sums of rows below have its divergence.
MEASURED = {
    "v5e": {},
    "v6e": {
        "cross_entropy": (4.0, 0.0),
        "linear_softmax_cross_entropy": (5.154, 0.752),
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
        "softmax_log_ratio_with_integer_labels": (4.013, 0.006, 8.013, 0.001),
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
        "linear_softmax_cross_entropy": (1.133, 0.503, 4.901, 1.02),
    },
}


def bound(measured):
    """A little more, and less than what one more array of the logits' size would take."""
    return measured + min(0.04 * measured, 0.5) + 0.005


@pytest.mark.parametrize("device", MEASURED)
def test_bytes_moved_and_temporaries(device):
    # Not above: as a program, this file must be the first to import JAX.
    from support.cases import BARE

    found = figures(device, "of_functions")
    # One read and one write, so that a format which is no longer understood does not pass.
    assert found.pop(COPY)[0] == pytest.approx(2, abs=0.01)
    rows = MEASURED[device]
    if device == "h100":
        rows = {case.name: two_looks(case) for case in BARE} | rows
    expected = {name: tuple(map(bound, row)) for name, row in rows.items()} | {
        promised_name(*promised): promise(promised[1], TEMPORARIES[device])
        for promised in PROMISED[device]
    }
    assert found.keys() == expected.keys()
    worse = [
        f"{device}, {name}: {kind} {is_now:.3f}, allowed {allowed:.3f}"
        for name, row in found.items()
        for kind, is_now, allowed in zip(
            KINDS[-len(row) :], row, expected[name][-len(row) :], strict=True
        )
        if is_now > allowed
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


def relative(found, z):
    """The bytes moved and the temporaries, each divided by the bytes of the logits."""
    size = z.size * z.dtype.itemsize
    return [found.bytes_moved / size, found.temporaries / size]


def of_functions(device):
    """Name of the function to the figures."""

    def row(call, differentiable, arguments, z):
        gradient = jax.value_and_grad(lambda *args: call(*args).sum(), differentiable)
        programs = [call, gradient] if device == "h100" else [gradient]
        found = [compilers.compile_for(device, program, *arguments) for program in programs]
        return [round(figure, 3) for each in found for figure in relative(each, z)]

    def of_case(case):
        # The length of the chunks is left to the function.
        case = replace(case, fixed={k: v for k, v in case.fixed.items() if k != "chunk_size"})
        shapes = [SHAPES.get(kind, (EXAMPLES, CLASSES)) for kind in case.kinds]
        dtypes = ["int32" if kind in cases.INTEGERS else "bfloat16" for kind in case.kinds]
        arguments = list(map(jax.ShapeDtypeStruct, shapes, dtypes))
        z = jax.ShapeDtypeStruct((EXAMPLES, CLASSES), "bfloat16")
        return case.name, row(case.call, case.differentiable, arguments, z)

    def of_promise(name, second, with_options):
        z = jax.ShapeDtypeStruct((4096, 32768), DTYPES[device])
        labels = jax.ShapeDtypeStruct(z.shape[:1], "int32")
        arguments = [z, *{"labels": [labels], "distributions": [z], None: []}[second]]
        call = function = getattr(jxent, name)
        if with_options:
            arguments.append(jax.ShapeDtypeStruct(z.shape[1:], "float32"))
            call = lambda *args: function(*args[:-1], class_weights=args[-1], **OPTIONS)  # noqa: E731
        return promised_name(name, second, with_options), row(call, 0, arguments, z)

    copied = jax.ShapeDtypeStruct((EXAMPLES, CLASSES), "float32")
    copy = relative(compilers.compile_for(device, jnp.negative, copied), copied)
    chosen = [c for c in cases.BARE if device == "h100" or c.name in MEASURED[device]]
    jobs = [lambda case=case: of_case(case) for case in chosen]
    jobs += [lambda promised=promised: of_promise(*promised) for promised in PROMISED[device]]
    with ThreadPoolExecutor(2) as threads:
        return {COPY: copy, **dict(threads.map(lambda job: job(), jobs))}


# A row's sums, of integer labels without and with smoothing, class weights and z-loss.

ROWS, FEW = (4096, 32768), 256
# Cycles on a TPU, microseconds on an H100, at most. One pass reads the logits.
ESTIMATES = {
    "bfloat16": {"v5e": 0.8e6, "v6e": 0.55e6, "h100": 300},
    "float32": {"v5e": 1.45e6, "v6e": 0.8e6, "h100": 350},
    "bfloat16 with options": {"v6e": 0.76e6, "h100": 420},
    "float32 with options": {"v6e": 0.8e6, "h100": 540},
}
# What is left out of an entropy is not written. Three looks at both arrays are the value of a
# divergence, one more its gradient, which is written, and nothing else.
PASSES = {"masked entropy": (["v6e"], 1, 1.05), "divergence": (["v6e", "h100"], 8.9, 9.1)}


@pytest.mark.parametrize("device", ["v5e", "v6e", "h100"])
def test_sums_of_rows(device):
    found = figures(device, "of_rows")
    for name in [name for name, row in ESTIMATES.items() if device in row]:
        estimate, passes, _ = found.pop(name)
        assert 0.3 < estimate / ESTIMATES[name][device] <= 1, name  # An absurd number says nothing.
        assert 1 <= passes < 1.05, name
    for name, (devices, least, most) in PASSES.items():
        if device in devices:
            _, passes, temporaries = found.pop(name)
            assert least <= passes < most, name
            assert temporaries < 0.01, name
    if device == "v5e":
        # To cut classes that XLA spreads into slices would be to move them between the devices.
        assert 0 < found.pop("carried") <= 100 * FEW
    assert not found


def of_rows(device):
    loss = jxent.softmax_cross_entropy_with_integer_labels

    def of(function, z, *others):
        found = compilers.compile_for(device, function, z, *others)
        estimate = found.estimated_cycles or 1e6 * (found.estimated_seconds or 0)
        return [estimate, *relative(found, z)]

    def masked(z, labels):
        """The logits that a mask fills must not be written."""
        return loss(z, labels, ignore_index=-100)

    def with_options(z, labels, weights):
        return loss(z, labels, class_weights=weights, **OPTIONS)

    def divergence(z, target):
        return jxent.softmax_kl_divergence(z, target).sum()

    labels = jax.ShapeDtypeStruct(ROWS[:1], "int32")
    weights = jax.ShapeDtypeStruct(ROWS[1:], "float32")
    half, single = (jax.ShapeDtypeStruct(ROWS, dtype) for dtype in ("bfloat16", "float32"))
    found = {"bfloat16": of(loss, half, labels), "float32": of(masked, single, labels)}
    if device == "v5e":
        devices = compilers.topologies.get_topology_desc(**compilers.devices[device]).devices
        spread = NamedSharding(Mesh(devices, ("model",)), PartitionSpec(None, "model"))
        z = jax.ShapeDtypeStruct((FEW, ROWS[1]), "bfloat16", sharding=spread)
        compiled = jax.jit(loss).lower(z, labels.update(shape=(FEW,))).compile()
        return found | {"carried": compilers.carried(compiled.as_text())}
    for z in half, single:
        found[f"{z.dtype} with options"] = of(with_options, z, labels, weights)
    found["divergence"] = of(jax.value_and_grad(divergence), half, half)
    if device == "v6e":
        entropy = lambda z, where: jxent.softmax_entropy(z, where=where)  # noqa: E731
        found["masked entropy"] = of(entropy, single, labels.update(dtype="bool"))
    return found


# The accurate form of exponentials and logarithms is asked for.

# With the options on one device, and without them on another: each program takes ten seconds.
CASES = {"v5e": "CASES", "v6e": "BARE"}
INEXACT = (
    *("exponential", "exponential-minus-one", "log", "log-plus-one", "logistic", "power", "tanh"),
    *("sqrt", "rsqrt", "cbrt", "sine", "cosine", "tan", "atan2", "erf"),
)
ACCURATE = "result_accuracy={mode=highest}"


@pytest.mark.parametrize("device", CASES)
def test_every_instruction_is_asked_for_accuracy(device):
    """Of every value and gradient, in one program for each device."""
    found = figures(device, "of_accuracy")
    assert found["inexact"] == []
    # Otherwise the format of programs is no longer understood.
    assert {"exponential", "exponential-minus-one", "log", "log-plus-one"} <= set(found["accurate"])


def of_accuracy(device):
    """What is asked for accuracy, and what is not, with its origin."""
    chosen = getattr(cases, CASES[device])

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
    return {"accurate": sorted(accurate), "inexact": inexact}


# The loss of a linear head on one device, in chunks of the length that the head chooses.

# Examples, features and classes, and for each device the most time that value and gradients may
# take, in units of the three products that they need. With few features the other arithmetic
# weighs more.
HEADS = [
    ((4096, 4096, 128256), {"h100": 1.36}),
    ((8192, 4096, 128256), {"v5p": 1.5, "v5e": 1.65, "v6e": 2.1, "h100": 1.3}),
    ((32768, 2560, 128256), {"v5p": 1.5, "v5e": 1.65, "v6e": 2.1, "h100": 1.35}),
    ((16384, 1024, 50304), {"v5p": 1.57, "v5e": 1.57, "v6e": 2.36, "h100": 1.88}),
]


@pytest.mark.parametrize(
    ("device", "shape", "most"),
    [(device, shape, most) for shape, bounds in HEADS for device, most in bounds.items()],
)
def test_time_and_temporaries_of_a_head(device, shape, most):
    found = figures(device, "of_head", *shape)
    # Less than the products take would mean that the estimates are no longer understood.
    assert 1 < found["products"] <= most
    examples, features, classes = shape
    logits, kernel = (4e-9 * n * classes for n in (examples, features))
    assert found["temporaries"] / 1e9 <= max(logits / 4, 1.6 * kernel + 0.3)


def of_head(device, *sizes):
    shape = linear_compiled.Shape(*map(int, sizes))
    with ThreadPoolExecutor(2) as threads:
        head = threads.submit(
            linear_compiled.figures, device, jxent.linear_softmax_cross_entropy, shape
        )
        products = threads.submit(linear_compiled.products, device, shape)
    time, temporaries = head.result()
    return {"products": time / products.result(), "temporaries": temporaries}


# The loss of a linear head over 64 TPU chips: what a chip may compute, carry and keep.


def test_no_more_than_whole_logits():
    """Three products; two gradients to reduce, and less memory than whole logits take."""
    found = figures("v5e", "of_mesh")
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
    # Without the argument the gradient of inputs is summed in float32, and the kernel's once, too.
    for axes in ("explicit", "automatic"):
        products, carried, _ = found[f"jxent without mesh, {axes} axes"]
        assert products == pytest.approx(3, rel=0.02)
        gradients = 4 * 8192 * 4096 + 2 * 4096 * 16032
        assert gradients < carried < 1.01 * gradients


def of_mesh(_):
    return {name: mesh.figures(mesh.SETTINGS[0], name) for name in mesh.losses()}


if __name__ == "__main__":
    device, part, *options = sys.argv[1:]
    reason = compilers.unavailable(device)
    found = {"unavailable": reason} if reason else globals()[part](device, *options)
    print("{" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in found.items()) + "}")
