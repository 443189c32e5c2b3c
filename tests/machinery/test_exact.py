"""The exact values and gradients that the report compares with, and the heads that it takes."""

import functools
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxent._selftest import errors, exact, heads, report
from jxent._selftest.inputs import inputs, names_of
from jxent._selftest.table import TABLE
from support.cases import fast_jit

MANY, TOP_K = "many logits, labels", "logits, a teacher's top k"
_ORDINARY = {
    "labels": np.array([1, 2]),
    "target_indices": np.array([[0, 2], [1, 0]]),
    "target_log_probs": np.array([[-1.0, -1.5], [-2.0, -0.75]]),
}


@pytest.mark.parametrize(
    "row", [row for row in TABLE.values() if row.formula], ids=lambda row: row.name
)
def test_exact_gradients_are_those_of_the_exact_values(row):
    """By differences of the values, at ordinary points; with every option."""
    rng = np.random.default_rng(0)
    arguments = [
        _ORDINARY[kind] if kind in _ORDINARY else rng.uniform(0.05, 0.95, (2, 3))
        for kind in row.kinds
    ]
    options = {name: np.asarray(x, np.float64) for name, x in row.options.items()}
    floats = [x for x in (*arguments, *options.values()) if x.dtype == np.float64]
    step = Decimal("1e-25")
    with localcontext(exact.context(100)):
        value, *gradients = row.truth(tuple(arguments), options)
        assert len(gradients) == len(floats)
        for x, gradient in zip(floats, gradients, strict=True):
            for i in np.ndindex(x.shape):
                ahead, behind = (
                    _total(row, arguments, options, x, i, sign * step) for sign in (1, -1)
                )
                difference = (ahead - behind) / (2 * step)
                assert abs(difference - gradient.exact[i]) < Decimal("1e-40"), i
        for quantity in (value, *gradients[: len(arguments)]):
            assert np.all(quantity.terms >= abs(quantity.exact) * (1 - step))


def _total(row, arguments, options, x, i, step):
    """The sum of the exact values, where entry `i` of the array `x` is moved by `step`."""

    def moved(array):
        decimals = exact.decimals(array)
        if array is x:
            decimals[i] += step
        return decimals

    result = exact.evaluate(
        row.formula, tuple(map(moved, arguments)), {name: moved(y) for name, y in options.items()}
    )
    return np.sum(result.value)


@pytest.mark.parametrize(
    ("name", "kind"),
    sorted({loss for f in report.FAMILIES for loss in f.losses if loss[1] != MANY}),
)
def test_exact_values_are_the_textbook_formulas(name, kind):
    """At ordinary points, where the textbook formula is right in floats."""
    rng = np.random.default_rng(1)
    arguments = [
        rng.uniform(0.05, 0.95, size=(1, *x.shape[1:])) if x.dtype == np.float64 else x[:1]
        for x in inputs()[kind]
    ]
    if kind == TOP_K:
        arguments[-1] -= 3  # logarithms of probabilities, which leave something to other classes
    with localcontext(exact.context(errors.DIGITS)):
        value, *gradients = errors._truth(name, tuple(arguments))
    with jax.enable_x64(True):
        textbook = report.implementations()["plain"][name]
        both = fast_jit(functools.partial(errors._value_and_gradients, name, textbook))
        values, slopes = both(tuple(map(jnp.asarray, arguments)))
    for got, true in zip((values, *slopes), (value, *gradients), strict=True):
        assert np.all(true.terms >= abs(true.exact) * (1 - Decimal("1e-25")))
        np.testing.assert_allclose(got, true.exact.astype(float), rtol=1e-12, atol=1e-14)


def test_logits_of_heads_are_exact_in_every_dtype():
    """The numbers, their products, and every partial sum of these."""
    for arguments in heads.inputs().values():
        for x in arguments:
            for dtype in errors.DTYPES:
                np.testing.assert_array_equal(x.astype(jnp.dtype(dtype)).astype(x.dtype), x)
        for x, w in zip(arguments[::2], arguments[1::2], strict=False):
            for terms in x[..., None] * w[:, None]:
                unit = next(u for u in 2.0 ** np.arange(6, -30, -1) if not np.any(terms % u))
                assert np.all(np.sum(np.abs(terms), axis=1) < 2**24 * unit)


@pytest.mark.parametrize("kind", ["head, labels", "two heads"])
def test_every_argument_of_a_head_counts(kind):
    """An error in the gradient of any one of them is seen."""
    arguments = heads.inputs()[kind]
    (row,) = (row for row in TABLE.values() if row.of_logits and kind in names_of(row))
    (family,) = (f for f in report.FAMILIES if (row.name, kind) in f.losses)
    with localcontext(exact.context(errors.DIGITS)):
        truth = row.truth(arguments)
        value, *gradients = (x.exact.astype(float) for x in truth)
        for i in range(-1, len(gradients)):
            results = [gradient * (1.001 if j == i else 1) for j, gradient in enumerate(gradients)]
            of_value, of_gradient = errors._compare((value, results), truth, family, "float32")
            assert of_value.beyond == 0
            assert (of_gradient.beyond > 0) == (i >= 0)
