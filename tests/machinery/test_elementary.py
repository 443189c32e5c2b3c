"""Elementary functions: the package asks for each of them in its accurate form, in one file."""

import ast
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import jxent
from jxent import _numerics

PACKAGE = Path(jxent.__file__).parent
# What JAX makes of approximate instructions, and the functions that it builds of them.
INEXACT = {
    *("exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "pow", "power", "float_power"),
    *("sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh", "asinh", "acosh", "atanh"),
    *("sqrt", "rsqrt", "cbrt", "sin", "cos", "tan", "erf", "erfc", "erf_inv"),
    *("logistic", "sigmoid", "log_sigmoid", "softplus", "softmax", "log_softmax", "logsumexp"),
    *("logaddexp", "logaddexp2", "xlogy", "xlog1py", "entr", "rel_entr", "kl_div", "expit"),
    *("logit", "standardize", "silu", "gelu", "mish"),
    *("div", "divide", "true_divide", "reciprocal", "mean", "average", "var", "std"),
}
ALLOWED = {
    "_numerics.py": {"exp", "expm1", "log", "log1p", "tanh", "power"},
    # The plain way to sum a row, which the others are compared with. No TPU program has it.
    "_statistics/platforms.py": {"logsumexp"},
    # What is measured beside the package's own.
    "_selftest/devices.py": {"divide", "log", "log1p", "tanh"},
    # What textbooks print, as it is usually computed.
    "_selftest/report.py": {"exp", "log", "mean", "sigmoid", "softmax"},
    "_selftest/iris.py": {"mean"},
}
QUOTIENTS = {
    # What TPUs correct, what they correct it with, and what other platforms compute.
    "_numerics.py": {
        *("1 / b", "(expm1(y) - x) / (1 + x)", "1 / (1 + exp(-z))"),
        # Numbers of Python, as all that follow.
        *("1 / 3", "1 / unit", "1 / middle", "eps / 16", "np.finfo(z.dtype).eps / 2"),
        *("(n + 1) / math.factorial(n + 2)", "1 / math.factorial(2 * n + 3)"),
        *("coefficient(number) / coefficient(0)", "2 / (2 * n + 3)"),
    },
    "_statistics/merging.py": {"1 / UNIT"},
}
"""Where the package divides without `divide`."""
TEXTBOOK = {"_selftest/exact.py", "_selftest/sizes.py", "_selftest/table.py"}
"""Formulas in arithmetic of any kind, which may raise to any power."""


def test_nothing_else_uses_functions_that_a_tpu_approximates():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        used = inexact(path.read_text()) - ({"**"} if name in TEXTBOOK else set())
        found |= {name: used} if used else {}
    assert found == ALLOWED


def test_nothing_else_divides():
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        used = set() if name.startswith("_selftest/") else quotients(path.read_text())
        found |= {name: used} if used else {}
    assert found == QUOTIENTS


def quotients(source):
    nodes = [x for x in ast.walk(ast.parse(source)) if isinstance(x, ast.BinOp | ast.AugAssign)]
    return {ast.unparse(node) for node in nodes if isinstance(node.op, ast.Div)}


def test_the_search_finds_quotients():
    assert quotients("x = f(a / b) - 7 // 2\nx /= c") == {"a / b", "x /= c"}


@pytest.mark.parametrize(
    ("source", "used"),
    [
        ("jnp.exp(x)", {"exp"}),
        ("jax.numpy.log1p(x)", {"log1p"}),
        ("jax.lax.tanh(x)", {"tanh"}),
        ("from jax.nn import softplus", {"softplus"}),
        ("from jax.lax import exp as e, max", {"exp"}),
        ("partial(jax.nn.softmax, axis=-1)", {"softmax"}),
        ("jnp.mean(x) + lax.div(x, y)", {"mean", "div"}),
        ("x**y", {"**"}),
        ("x **= 0.5", {"**"}),
        ("pow(x, y)", {"**"}),
        ("x**2 + 2.0**n + np.log(2) + math.exp(1) + exp(x) + jnp.sum(x)", set()),
    ],
)
def test_the_search_finds(source, used):
    assert inexact(source) == used


def inexact(source):
    """The names of JAX's own inexact functions in the source; ** if a power may become one."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value, name) if name in INEXACT:
                if ast.unparse(value).split(".")[0] in ("jax", "jnp", "lax", "nn"):
                    found.add(name)
            case ast.ImportFrom(module, names) if module and module.split(".")[0] == "jax":
                found |= {alias.name for alias in names} & INEXACT
            case ast.BinOp(left, ast.Pow(), right):
                # A constant base is a number, and JAX multiplies for an integer exponent.
                if not (isinstance(left, ast.Constant) or is_integer(right)):
                    found.add("**")
            case ast.AugAssign(_, ast.Pow(), right) if not is_integer(right):
                found.add("**")
            case ast.Call(ast.Name("pow")):
                found.add("**")
    return found


def is_integer(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, int)


NAMES = ["exp", "log", "expm1", "plain_log1p", "log1p", "tanh", "sigmoid", "softplus"]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("name", NAMES)
def test_accuracy_is_asked_for(name, platform):
    """In the function and in its derivative, before a compiler sees it."""
    traced = jax.jit(jax.value_and_grad(getattr(_numerics, name))).trace(np.float32(0.5))
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    kinds = "exponential|exponential_minus_one|log|log_plus_one|logistic|power|tanh|sqrt|rsqrt"
    # JAX also makes each of them without the request, and uses that for nothing.
    used = [
        (kind, rest)
        for part in program.split("func.func")
        for result, kind, rest in re.findall(rf"(%\d+) = stablehlo.({kinds}) (.*)", part)
        if len(re.findall(rf"{result}\b", part)) > 1
    ]
    assert used
    assert all("result_accuracy_mode<HIGHEST>" in rest for _, rest in used)
    # JAX publishes how accurate two of them are on a TPU. Logarithms must be corrected by these.
    asked = {kind for kind, _ in used}
    accurate, corrected = {"exponential", "exponential_minus_one"}, {"log", "log_plus_one"}
    if platform == "tpu":
        assert asked <= accurate | corrected
        assert asked & accurate


@pytest.mark.parametrize(("exponent", "eps"), [(-1, 2), (0.5, 2), (1, 2), (2.3, 2), (3, 2), (9, 4)])
def test_power_by_exp(exponent, eps):
    """It has the error of few roundings, where the exponential of a rounded product has 100 eps.

    On a CPU, whose exponential has half a unit less of error than a GPU's.
    """
    x = np.exp(-np.random.default_rng(0).random(20_000) * 85).astype(np.float32)
    x = np.concatenate([x, x ** np.float32(0.01), 1 - x, np.float32([1])])
    y = np.float32(exponent)
    truth = x.astype(np.float64) ** np.float64(y)
    normal = truth > 1e-36
    with jax.default_device(jax.devices("cpu")[0]):
        found = jax.jit(_numerics.power_by_exp)(x[normal], y)
    np.testing.assert_allclose(found, truth[normal], rtol=eps * np.finfo(np.float32).eps)


def test_power_by_exp_at_the_edges():
    """Where the result is a limit it is the one that the instruction has."""
    x = jnp.asarray([1e-45, 1e-38, 0.5, 1 - 2**-24, 1, jnp.nan], jnp.float32)
    power = jax.jit(_numerics.power_by_exp)
    for exponent in (0, 1e-30, 1e6, 2e7, 1e30, -1e30, 3.4e38, jnp.inf, -jnp.inf, jnp.nan):
        y = jnp.asarray(exponent, x.dtype)
        with np.errstate(all="ignore"):
            expected = np.maximum(x, np.finfo(x.dtype).tiny) ** np.asarray(y)
        # A number to the power 0, and 1 to any power, is 1 for the instruction, even beside NaN.
        defined = ~(np.isnan(x) | np.isnan(y))
        found = np.asarray(power(x, y))
        np.testing.assert_allclose(found[defined], expected[defined], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_within_a_few_roundings(dtype):
    """Near 0, near a change of formula, and far: the float64 log1p of JAX 0.10 errs at -0.4."""
    rng = np.random.default_rng(1)
    near = np.concatenate([x * rng.uniform(0.5, 1, 40) for x in (1e-30, 1e-8, 1e-3, 0.3, 0.5, 1)])
    both = np.concatenate([near, -near, [0, -0.4, -0.25, 0.25, -0.5]])
    below = np.concatenate([-np.logspace(-3, 1.9, 60), both])
    ratios = np.concatenate([near, 1 / near])
    arguments = {
        "exp": below,
        "expm1": np.concatenate([below, [3, 30]]),
        "log": ratios,
        "log1p": np.concatenate([both[both > -0.999], [3, 1e5]]),
        "plain_log1p": both[both >= -0.25],
        "tanh": np.concatenate([both, [3, -8]]),
    }
    with jax.enable_x64(dtype == "float64"), mpmath.workdps(40):
        rounded = {name: x.astype(dtype) for name, x in arguments.items()}
        found = jax.jit(lambda x: {n: getattr(_numerics, n)(v) for n, v in x.items()})(rounded)
        for name, x in rounded.items():
            function = getattr(mpmath, name.removeprefix("plain_"))
            exact = np.array([float(function(mpmath.mpf(float(v)))) for v in x])
            rtol = 6 * float(np.finfo(dtype).eps)
            np.testing.assert_allclose(found[name], exact, rtol=rtol, atol=1e-37, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_quotients_and_powers_at_the_ends(dtype):
    """Of the largest and the least numbers, and in derivatives, which divide by squares."""
    with jax.enable_x64(dtype == "float64"):
        info = np.finfo(dtype)
        least, most = float(info.tiny) * 4, float(info.max) / 4
        a, b = (np.array(x, dtype) for x in ([1, most, least, 3, 0], [most, most, least, 3, 1]))
        ratio, dots = jax.jit(lambda a, b: jax.jvp(_numerics.quotient, (a, b), (a, 2 * b)))(a, b)
        np.testing.assert_allclose(ratio, [1 / most, 1, 1, 1, 0], rtol=1e-6)
        np.testing.assert_allclose(dots, [-1 / most, -1, -1, -1, 0], rtol=1e-6)
        share = np.array([least, 1e-20, 0.3, 0.75, 1 - 2.0**-20], dtype)

        def power(share):
            return _numerics.power_of_share(share, 1 - share, jnp.asarray(0.5, dtype))

        both = jax.jit(lambda x: jax.jvp(lambda x: jax.jvp(power, (x,), (x,))[1], (x,), (x,)))
        # Each derivative for the logarithm of the share is half of the one before.
        root = np.sqrt(share.astype(np.float64))
        for got, exact in zip(both(share), (root / 2, root / 4), strict=True):
            np.testing.assert_allclose(got, exact, rtol=1e-5)


def test_sigmoid_and_softplus_at_both_ends():
    with jax.enable_x64(True):
        z = np.float64([*range(-100, 101), *np.linspace(-700, 700, 29)])
        truth = 1 / (1 + np.exp(-z)), np.logaddexp(0, z)
        found = _numerics.sigmoid(jnp.asarray(z)), _numerics.softplus(jnp.asarray(z))
    np.testing.assert_allclose(found[0], truth[0], rtol=1e-15)
    np.testing.assert_allclose(found[1], truth[1], rtol=1e-15)
    infinite = jnp.asarray([-jnp.inf, jnp.inf], jnp.float32)
    np.testing.assert_array_equal(_numerics.sigmoid(infinite), [0, 1])
    np.testing.assert_array_equal(_numerics.softplus(infinite), [0, np.inf])
