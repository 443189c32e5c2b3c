"""Options at both ends of their range, and one rounding beside them, times rows that are hard.

Confident, equal, nearly equal and masked rows meet every end of every option, and the ends of two
options each other. All options are arguments of the program, so that a loss is compiled once.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent._selftest.sizes import Quantity
from jxent._selftest.table import TABLE
from support import tolerances
from support.accuracy import double_if
from support.cases import fast_jit, of_some
from support.tiers import quick

ROWS = [row for row in TABLE.values() if row.formula and row.options]


def ends(dtype):
    """For each option: what leaves it alone, its ends, their neighbours, and ordinary numbers."""
    info, one = np.finfo(dtype), np.ones((), dtype)
    # A part of the least number must be a normal one: XLA counts others as 0.
    least, below, above = 64 * info.tiny, np.nextafter(one, one - 1), np.nextafter(one, one + 1)
    unit = [0, least, info.eps, 0.25, below, 1]
    return {
        "label_smoothing": unit,
        "weight": [0.5, *unit, 1e-30, np.nextafter(one / 2, one)],
        "alpha": unit,
        "gamma": [0, least, 1e-10, 0.1, 0.5, below, 1, above, 2, 20, 1e4],
        "epsilon": [0, least, -0.5, 2, 1e4],
        "z_loss": [0, least, 1e-4, 10],
        "class_weights": [[1, 1, 1], [0, 0, 0], [least, 1, 1], [0, 1, 2]],
        "pos_weight": [[1] * 3, [0] * 3, [least, 1, 2], [1e4] * 3],
    }


def draws(row, dtype):
    """Each option at each of its ends, the others left alone; then every two at their extremes."""
    of = {name: ends(dtype)[name] for name in row.options}
    alone = {name: values[0] for name, values in of.items()}
    singles = [alone | {name: x} for name, values in of.items() for x in values]
    pairs = itertools.combinations(of, 2)
    return singles + [
        alone | {a: x, b: y} for a, b in pairs for x in of[a][1::2] for y in of[b][1::2]
    ]


def arguments(row, dtype):
    """Pairs of rows; margins at which exponentials, or their squares, underflow."""
    far = 90 if dtype == "float32" else 800
    z = [[0, 0, 0], [far, 0, 0], [0, far, 0], [0, 0, -far], [far, far, 0], [20, 0, 0], [61, 0, 0]]
    z += [[2 * far, 0, -2 * far], [1e-6, 0, 0], [1e4, 1e4, 0], [1e3, 0, -1e3]]
    z += [[0, -np.inf, 0], [-np.inf, far, 0], [0, -np.inf, -np.inf]]
    soft = [[1, 0, 0], [0, 1, 0], [1 / 3] * 3, [0.25, 0.75, 0], [0, 0, 0]]
    # Its complement has an exponential that underflows, but not beyond the digits of the truth.
    least = 90 if dtype == "float32" else 710
    binary = [[0, 1e-6, 20], [-20, 44.25, 48], [-48, least, -least], [1e4, -1e4, 3]]
    labels = [[0, 1, 0.25], [1, 0, 0.5], [np.nextafter(np.ones((), dtype), 0), 1, 1]]
    likely = [[1, 0.5, 1e-25], [0, 1, 0.5], [1e-6, 0.9, 1]]
    kinds = {
        "logits": binary if row.binary else z,
        "target_logits": z,
        "distributions": labels if row.binary else soft,
        "predictions": likely if row.binary else soft,
        "log_predictions": [[0, -far, -1e4], [-1, -0.5, -3]],
        "labels": np.arange(3, dtype=np.int32),
    }
    found = zip(*itertools.product(*(kinds[kind] for kind in row.kinds)), strict=True)
    return [
        np.asarray(x, np.int32 if kind == "labels" else dtype)
        for kind, x in zip(row.kinds, found, strict=True)
    ]


def program(row):
    """The value, the gradients for the arguments, and those for the options."""
    floats = [i for i, kind in enumerate(row.kinds) if kind != "labels"]

    def both(options, *args):
        def function(options, *given):
            of_floats, _ = of_some(lambda *args: call(options, *args), floats, args)
            return of_floats(*given)

        def call(options, *args):
            return getattr(jxent, row.name)(*args, **options)

        out, pullback = jax.vjp(function, options, *(args[i] for i in floats))
        to_options, *gradients = pullback(jnp.ones_like(out))
        return [out, *gradients], to_options

    return fast_jit(both)


@pytest.mark.parametrize("dtype", quick(["float32", "float64"]))
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_values_and_gradients(row, dtype):
    with double_if(dtype), tolerances.many_digits(dtype):
        args, run, failed = arguments(row, dtype), program(row), []
        for options in draws(row, dtype):
            options = {name: np.asarray(x, dtype) for name, x in options.items()}
            results, to_options = run(options, *args)
            exact = row.truth(tuple(args), options)
            # What an infinite loss does to its own gradient is a matter of policy.
            finite = np.frompyfunc(lambda x: x.is_finite(), 1, 1)(exact[0].exact).astype(bool)
            assert np.isposinf(np.asarray(results[0])[~finite]).all(), options
            for got, right in zip(results, exact, strict=False):
                right = Quantity(*(np.broadcast_to(x, right.exact.shape)[finite] for x in right))
                worst, message = tolerances.worst_error(
                    np.asarray(got)[finite], right, tolerances.UNITS[row.family], dtype
                )
                if not worst <= 1:
                    failed.append(f"{options}: {message}")
            if finite.all() and any(np.isnan(x).any() for x in to_options.values()):
                failed.append(f"{options}: NaN for the options, {to_options}")
        assert not failed, "\n".join(failed)
