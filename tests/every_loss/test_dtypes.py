"""Every floating-point type: the result's, the gradient's, and where it is rounded."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import ALL, BARE, CASES, bare, compiled, cotangent_of, with_gradients
from support.tiers import quick, quick_rows

# Each with its options, ordinary arithmetic; --full: also without.
EVERY = pytest.mark.parametrize("case", quick(ALL, *CASES), ids=str)


# One of each way to make a loss.
_MADE = ["softmax_cross_entropy_with_integer_labels", "softmax_cross_entropy", "softmax_entropy",
         "softmax_kl_divergence", "sigmoid_binary_cross_entropy"]  # fmt: skip


# A loss scale must rescue what float16 cannot hold: here each gradient is about 2e-9.
_FAINT = [
    ("softmax_cross_entropy", [20.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
    ("safe_softmax_cross_entropy", [20.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
    ("poly_loss_cross_entropy", [20.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
    ("softmax_cross_entropy_with_integer_labels", [20.0, 0.0, 0.0], 0),
    ("logsumexp", [20.0, 0.0, 0.0], None),
    ("softmax_entropy", [22.0, 0.0, 0.0], None),
    ("softmax_kl_divergence", [20.0, 0.0, 0.0], [22.0, 0.0, 0.0]),
    ("softmax_jensen_shannon_divergence", [20.0, 0.0, 0.0], [22.0, 0.0, 0.0]),
    ("sigmoid_binary_cross_entropy", [20.0, 20.0, 20.0], [1.0, 1.0, 1.0]),
    ("sigmoid_entropy", [22.0, -22.0, 22.0], None),
    ("sigmoid_kl_divergence", [20.0, 20.0, 20.0], [22.0, 22.0, 22.0]),
    ("generalized_kl_divergence", [-20.0, -20.0, -20.0], [0.0, 0.0, 0.0]),
]


def _in_16_bits(cases):
    """Each function in one of the two; --full: without options in float16, with them in bfloat16.

    In float16 are those whose loss scaling is tested below, all others in bfloat16.
    """
    rows = [(case, jnp.float16) for case in cases if case in BARE]
    rows += [(case, jnp.bfloat16) for case in cases if case in CASES]
    scaled = {name for name, *_ in _FAINT}
    chosen = [
        case.name in scaled
        if dtype == jnp.float16
        else case.name not in scaled or case.name in _MADE
        for case, dtype in rows
    ]
    ids = [f"{case}-{jnp.dtype(dtype)}" for case, dtype in rows]
    parameters = quick_rows(rows, *np.flatnonzero(chosen))
    return pytest.mark.parametrize(("case", "dtype"), parameters, ids=ids)


@functools.cache
def _in_dtype(case, dtype):
    """The result and the gradients; the example numbers are exact in every dtype."""
    cotangent = jnp.asarray(cotangent_of(case), np.float64 if dtype == np.float64 else np.float32)
    out, *gradients = jax.tree.map(np.asarray, compiled(case)(cotangent, *case.args(dtype)))
    return out, gradients


@_in_16_bits(ALL)
def test_result_is_that_of_float32(case, dtype):
    """The function of the numbers given, not of what is left of it in their dtype."""
    small, full = _in_dtype(case, dtype)[0], _in_dtype(case, np.float32)[0]
    chex.assert_type([small, full], np.float32)
    chex.assert_trees_all_close(small, full, rtol=1e-6, atol=1e-7, strict=True)


# The linear head's gradients enter products, and have a bound of their own.
@_in_16_bits([case for case in ALL if "kernel" not in case.kinds])
def test_gradient_is_rounded_once(case, dtype):
    """The cotangent is multiplied first: half a unit in the last place is all that is lost."""
    small, full = _in_dtype(case, dtype)[1], _in_dtype(case, np.float32)[1]
    chex.assert_type(small, dtype)
    chex.assert_type(full, np.float32)
    for g, exact in zip(small, full, strict=True):
        half_unit = np.spacing(np.abs(g)).astype(np.float32) / 2
        slack = 1e-6 * np.abs(exact) + 1e-7
        assert np.all(np.abs(g.astype(np.float32) - exact) <= half_unit + slack)


# Of the others `test_one_argument_in_float64` sees the dtype.
@pytest.mark.parametrize("case", quick(CASES, *(c for c in CASES if c.name in _MADE)), ids=str)
def test_float64_stays(case):
    single = _in_dtype(case, np.float32)
    with jax.enable_x64(True):
        double = _in_dtype(case, np.float64)
    chex.assert_type(jax.tree.leaves(double), np.float64)
    (value, gradients), (expected, exact) = jax.tree.map(np.float32, double), single
    chex.assert_trees_all_close(value, expected, rtol=2e-6, atol=1e-6, strict=True)
    chex.assert_trees_all_close(gradients, exact, rtol=4e-6, atol=1e-6, strict=True)


@pytest.mark.parametrize("case", quick(ALL, *(c for c in CASES if c.name in _MADE)), ids=str)
def test_mixed_dtypes(case):
    """Every other argument in bfloat16, or all but these: each gradient in its own dtype.

    And float32 stays float32 where float64 is at hand.
    """
    args, cotangent = case.args(), cotangent_of(case)
    for start in range(min(2, len(case.differentiable))):
        small = case.differentiable[start::2]
        mixed = [x.astype(jnp.bfloat16) if i in small else x for i, x in enumerate(args)]
        with jax.enable_x64(True):
            out, *gradients = jax.eval_shape(compiled(case), cotangent, *mixed)
        assert out.dtype == np.float32
        for i, g in zip(case.differentiable, gradients, strict=True):
            assert g.dtype == mixed[i].dtype


@EVERY
def test_one_argument_in_float64(case):
    """Any positional argument that is float64 makes the result so."""
    with jax.enable_x64(True):
        for i in case.differentiable:
            if i < len(case.kinds):
                args = case.args(np.float32)
                args[i] = args[i].astype(np.float64)
                assert jax.eval_shape(case.call, *args).dtype == np.float64


@EVERY
def test_weak_types(case):
    """Python numbers take the dtype of what is beside them, and no result is weak."""
    args = case.args()
    positional, options = args[: len(case.kinds)], args[len(case.kinds) :]
    numbers = [x.tolist() if x.ndim == 0 else x for x in options]
    assert not jax.eval_shape(lambda: case.call(*(x.tolist() for x in args))).weak_type
    with jax.enable_x64(True):
        out = jax.eval_shape(lambda *args: case.call(*args, *numbers), *positional)
    assert out.dtype == np.float32


@pytest.mark.parametrize("dtype", quick([jnp.bfloat16, jnp.float16]), ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", quick(_MADE, _MADE[0], _MADE[3], _MADE[4]))
def test_logits_made_in_the_same_program(name, dtype):
    """They are rounded, all of them, though XLA computes 16 bits in 32 where it fuses."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 500)
    one_hot = np.eye(3, dtype=np.float32)[labels]
    z = jnp.asarray(3 * rng.normal(size=(500, 3)) + 12 * one_hot, dtype)
    change = jnp.asarray(rng.normal(size=(1, 3)), dtype)
    kinds = {"labels": labels, "distributions": one_hot, "target_logits": z}
    others = [kinds[kind] for kind in bare(name).kinds[1:]]

    both = with_gradients(lambda z: getattr(jxent, name)(z, *others))
    together, apart = jax.jit(lambda z: both(z + change))(z), jax.jit(both)(z + change)
    for x, y in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(("name", "first", "second"), _FAINT)
def test_loss_scaling(name, first, second):
    """A gradient that underflows float16 survives a loss scale of 2**16."""
    case = bare(name)
    args = [np.asarray([x, x]) for x in ([first] if second is None else [first, second])]

    def gradient(scale, dtype):
        cotangent = np.full_like(cotangent_of(case), scale)
        typed = [x.astype(dtype if x.dtype == np.float64 else np.int32) for x in args]
        return np.asarray(compiled(case)(cotangent, *typed)[1])

    scale = 2.0**16
    plain, scaled = gradient(1, np.float16), gradient(scale, np.float16)
    exact = gradient(1, np.float32)
    faint = np.unravel_index(np.argmin(np.abs(exact)), exact.shape)
    assert exact[faint] != 0
    assert plain[faint] == 0
    assert scaled.dtype == np.float16
    # Half a unit in the last place, also of the subnormal numbers.
    np.testing.assert_allclose(
        np.float32(scaled[faint]), scale * exact[faint], rtol=2**-11, atol=2**-25
    )
