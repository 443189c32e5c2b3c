"""Probabilities that are masked, so that what is left does not sum to one, and values by hand."""

from decimal import Decimal

import jax
import numpy as np
import pytest

import jxent
from jxent._selftest.table import TABLE
from support import sweeps, tolerances
from support.accuracy import compare, double_if, value_and_gradients
from support.tiers import quick
from support.tolerances import DTYPES, UNITS


@pytest.mark.parametrize("dtype", quick(DTYPES[:2]))
@pytest.mark.parametrize(
    "name", quick(["relative_entropy", "jensen_shannon_divergence", "cross_entropy"])
)
def test_what_is_left_does_not_sum_to_one(dtype, name):
    p, q = sweeps.rounded(dtype, *sweeps.probability_pairs())
    finite = np.all((q > 0) | (p == 0), axis=-1)
    p, q = p[finite], q[finite]
    mask = np.random.default_rng(0).random(p.shape) < 0.5
    with double_if(dtype), tolerances.many_digits(dtype):
        got = value_and_gradients(lambda p, q: getattr(jxent, name)(p, q, where=mask), (p, q))
        kept = [np.where(mask, x, x.dtype.type(0)) for x in (p, q)]
        value, *gradients = TABLE[name].truth(kept)
        of_kept = [g._replace(exact=np.where(mask, g.exact, Decimal(0))) for g in gradients]
        compare(got, [value, *of_kept], UNITS["probability"], dtype, (p, q))


def test_values():
    """By hand: numbers of very different size, of which nothing may be rounded away."""
    least = 2.0**-126
    for p, q, value in [
        ([1e-8], [1.0], -1e-8 * 8 * np.log(10)),
        ([1e-20], [1e-3], -1e-20 * 17 * np.log(10)),
        (
            [2, 3, 4],
            [least] * 3,
            2 * np.log(2) + 3 * np.log(3) + 4 * np.log(4) + 9 * 126 * np.log(2),
        ),
        ([1.0], [3.4e38], -np.log(3.4e38)),
        ([least, 0, 0], [least, 3.4e38, 1], 0),
        ([3e38, 3e38, 1e-30], [3e38, 3e38, 1], -1e-30 * 30 * np.log(10)),
    ]:
        p, q = np.float32(p), np.float32(q)
        np.testing.assert_allclose(jxent.relative_entropy(p, q), value, rtol=1e-6)
    to_p, to_q = jax.grad(jxent.relative_entropy, (0, 1))(*np.float32([[200, 300], [1e-37, 0.5]]))
    np.testing.assert_allclose(
        to_p, [1 + np.log(200) + 37 * np.log(10), 1 + np.log(600)], rtol=1e-6
    )
    np.testing.assert_array_equal(to_q, np.float32([-np.inf, -600]))
    with jax.enable_x64(True):
        divergence = jxent.relative_entropy(np.array([1e-200]), np.array([1e200]))
    np.testing.assert_allclose(divergence, -1e-200 * 400 * np.log(10), rtol=1e-14)
