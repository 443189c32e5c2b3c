"""Every function against its formula in many digits, value and gradients, on hard inputs.

Of up to 200 000 classes against extended precision: in so long a sum plain order loses bits.
"""

import functools
import inspect
import math
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent._selftest import sizes
from jxent._selftest.table import TABLE
from jxent._statistics.platforms import PLATFORMS
from support import sweeps
from support.accuracy import check, compare, double_if, value_and_gradients
from support.cases import with_gradients
from support.tiers import quick, quick_rows
from support.tolerances import DTYPES, UNITS, computing, eps, many_digits

OPTIONS = {
    "label_smoothing": (0.1, 1e-6),
    "class_weights": (np.linspace(0.25, 3, sweeps.CLASSES),),
    "z_loss": (1e-4,),
    "epsilon": (-0.5,),
    "pos_weight": (2.7,),
    "alpha": (0.25,),
    "gamma": (0.5, 2.0),
    "weight": (0.1, 1e-6, 1 - 2**-20),
}
"""The values that each option takes in turn, all options at once."""


def logits(dtype, classes=sweeps.CLASSES):
    return sweeps.rounded(dtype, sweeps.logits(classes))


def logits_and_label(dtype, classes=sweeps.CLASSES):
    """Label 1, which the margins belong to."""
    (z,) = logits(dtype, classes)
    return z, np.ones(len(z), np.int32)


def logits_and_distributions(dtype):
    return sweeps.rounded(dtype, sweeps.logits(), sweeps.soft_labels())


def logit_pairs(dtype, classes=sweeps.CLASSES):
    return sweeps.rounded(dtype, *sweeps.logit_pairs(classes))


def logit_pairs_and_label(dtype):
    """The class that the margins belong to, and another one."""
    z, target = logit_pairs(dtype)
    labels = np.arange(len(z), dtype=np.int32) % 2 + 1
    rows = np.arange(len(z))
    kept = np.isfinite(z[rows, labels]) & np.isfinite(target[rows, labels])
    return z[kept], target[kept], labels[kept]


def logits_and_top_k(dtype):
    """A teacher's likeliest classes, or those after the first, which leave something to the others.

    What the rounding of the logarithms costs where they leave nothing is tested in `test_top_k.py`.
    """
    z, teacher = sweeps.logit_pairs()
    order, row = np.argsort(-teacher, axis=-1), np.arange(len(z))[:, None]
    index = np.where(row % 2, order[:, 1:4], order[:, :3])
    teacher = teacher - np.max(teacher, axis=-1, keepdims=True)
    log_p = teacher - np.log(np.sum(np.exp(teacher), axis=-1, keepdims=True))
    log_p = np.minimum(np.take_along_axis(log_p, index, axis=-1), -(2.0**-5))
    z, log_p, index = sweeps.rounded(dtype, z, log_p, index)
    index = index.astype(np.int32)
    impossible = np.isinf(np.take_along_axis(z, index, axis=-1)) & np.isfinite(log_p)
    left = 1 - np.sum(np.exp(log_p.astype(np.float64)), axis=-1)
    kept = ~np.any(impossible, axis=-1) & (left > 2.0**-6)
    return z[kept], index[kept], log_p[kept]


def distributions(dtype):
    return sweeps.rounded(dtype, sweeps.probabilities())


def two_distributions(dtype):
    p, q = sweeps.rounded(dtype, *sweeps.probability_pairs())
    finite = np.all((q > 0) | (p == 0), axis=-1)
    return p[finite], q[finite]


def likely(p):
    return p, np.argmax(p, axis=-1).astype(np.int32)


def log(p):
    with np.errstate(divide="ignore"):
        return np.log(p)


def log_predictions_and_label(dtype):
    (log_p,) = sweeps.rounded(dtype, np.maximum(log(sweeps.probabilities()), -200))
    return likely(log_p)


def log_predictions_and_distributions(dtype):
    p, q = sweeps.probability_pairs()
    return sweeps.rounded(dtype, np.maximum(log(q), -200), p)


def log_predictions_and_log_distributions(dtype):
    p, q = sweeps.probability_pairs()
    return sweeps.rounded(dtype, np.maximum(log(q), -200), log(p))


def losses_and_weights(dtype):
    rng = np.random.default_rng(8)
    arrays = rng.exponential(size=(2, 30, 7)) * 10.0 ** rng.integers(-6, 4, (2, 30, 7))
    return sweeps.rounded(dtype, *arrays)


SWEEPS = {
    ("logits",): logits,
    ("logits", "labels"): logits_and_label,
    ("logits", "distributions"): logits_and_distributions,
    ("logits", "target_logits"): logit_pairs,
    ("logits", "target_logits", "labels"): logit_pairs_and_label,
    ("logits", "target_indices", "target_log_probs"): logits_and_top_k,
    ("distributions",): distributions,
    ("distributions", "predictions"): two_distributions,
    ("predictions", "labels"): lambda dtype: likely(*distributions(dtype)),
    ("log_predictions", "labels"): log_predictions_and_label,
    ("log_predictions", "distributions"): log_predictions_and_distributions,
    ("log_predictions", "log_distributions"): log_predictions_and_log_distributions,
    ("losses", "weights"): losses_and_weights,
}
"""By the kinds of a function's arguments."""


def one_by_one(dtype, *arrays):
    return [x[:, 0] for x in sweeps.rounded(dtype, *(x[:, None] for x in arrays))]


def binary_logits_and_labels(dtype):
    z, y = sweeps.binary_logits(), np.array([0.0, 1.0, 0.5, 1e-3, 1 - 2**-9, 0.3])
    return one_by_one(dtype, np.repeat(z, len(y)), np.tile(y, len(z)))


def inside(*arrays):
    """Those between 0 and 1, which no rounding has taken to an end."""
    kept = (arrays[0] > 0) & (arrays[0] < 1)
    return [x[kept] for x in arrays]


def binary_probabilities(dtype):
    (p,) = inside(sweeps.probabilities().reshape(-1))
    return inside(*one_by_one(dtype, p))


def binary_probabilities_and_labels(dtype):
    (p,) = inside(sweeps.probabilities().reshape(-1))
    y = np.resize([0.0, 1.0, 0.5, 1e-3, 0.3], p.shape)
    return inside(*one_by_one(dtype, p, y))


def log_probabilities_of_samples(dtype):
    """From far apart to nearly equal, where others are negative."""
    rng = np.random.default_rng(9)
    log_p = -rng.exponential(size=500) * 10.0 ** rng.integers(-3, 2, 500)
    change = rng.normal(size=500) * 10.0 ** rng.integers(-7, 2, 500)
    return one_by_one(dtype, log_p, np.clip(log_p + change, -80, 60))


BINARY_SWEEPS = {
    ("log_predictions", "log_distributions"): log_probabilities_of_samples,
    ("logits",): lambda dtype: one_by_one(dtype, sweeps.binary_logits()),
    ("logits", "distributions"): binary_logits_and_labels,
    ("logits", "target_logits"): lambda dtype: one_by_one(dtype, *sweeps.binary_pairs()),
    ("distributions",): binary_probabilities,
    ("predictions", "distributions"): binary_probabilities_and_labels,
}
"""Where each number is an example."""


@functools.cache
def pairs(dtype):
    return sweeps.unnormalized_pairs(dtype)


def any_log_predictions(dtype):
    """In 16 bits the logarithms of targets would overflow."""
    p, q = pairs(dtype)
    return log(q.astype(np.float64)).astype(q.dtype), p


def any_logarithms(dtype):
    log_q, p = any_log_predictions(dtype)
    return log_q, log(p.astype(np.float64)).astype(p.dtype)


def any_predictions_and_label(dtype):
    _, q = pairs(dtype)
    q = q[q[:, 1] > 0]
    return q, np.ones(len(q), np.int32)


ANY_SIZE = {
    ("distributions",): lambda dtype: pairs(dtype)[:1],
    ("distributions", "predictions"): pairs,
    ("predictions", "labels"): any_predictions_and_label,
    ("log_predictions", "distributions"): any_log_predictions,
    ("log_predictions", "log_distributions"): any_logarithms,
}
"""Huge, tiny, far from a sum of one."""

TWO_CLASSES = {
    kinds: functools.partial(SWEEPS[kinds], classes=2)
    for kinds in (("logits",), ("logits", "labels"), ("logits", "target_logits"))
}


def regimes(row):
    """What a function is tried on: ``(what, arguments, number of the options' values or None)``."""
    if row.binary:
        found = [("plain", BINARY_SWEEPS[row.kinds], None)]
    else:
        found = [("plain", SWEEPS[row.kinds], None)]
        found += [
            (what, table[row.kinds], None)
            for what, table in (("any-size", ANY_SIZE), ("two-classes", TWO_CLASSES))
            if row.kinds in table
        ]
    times = max((len(OPTIONS[name]) for name in row.options), default=0)
    return found + [(f"options-{i}", found[0][1], i) for i in range(times)]


_QUICK = ("plain", "any-size", "options-0", "options-1")


def parameters():
    """Every regime in float32, most in float64, and one of each function in a 16-bit dtype.

    These are computed in float32, which is tested in `test_dtypes.py`.
    """
    for number, row in enumerate(row for row in TABLE.values() if row.formula):
        found = regimes(row)
        small = DTYPES[2 + number % 2]
        # Which values the options have does not depend on the dtype.
        once = [regime for regime in found if regime[2] in (None, 0)]
        pairs = [*((x, "float32") for x in found), *((x, "float64") for x in once)]
        for (what, arguments, i), dtype in [*pairs, (found[-1], small)]:
            is_quick = dtype == "float32" and what in _QUICK
            marks = () if is_quick else pytest.mark.full
            name = f"{row.name}-{what}-{dtype}"
            yield pytest.param(row, arguments, i, dtype, marks=marks, id=name)


@pytest.mark.parametrize(("row", "arguments", "i", "dtype"), list(parameters()))
def test_accuracy(row, arguments, i, dtype):
    args, options, fixed, cotangent = arguments(dtype), {}, {}, None
    if i is not None:
        options = {
            name: np.asarray(OPTIONS[name][min(i, len(OPTIONS[name]) - 1)], computing(dtype))
            for name in row.options
        }
        args = [x[possible(row, args[0], options)] for x in args]
    if row.per_class:
        cotangent = np.random.default_rng(7).normal(size=args[0].shape).astype(computing(dtype))
    if row.name == "weighted_mean":
        fixed = {"axis": -1}
    check(row, dtype, args, options, cotangent, **fixed)


@pytest.mark.parametrize("dtype", quick(DTYPES[:2]))
@pytest.mark.parametrize(
    "name", quick(["relative_entropy", "jensen_shannon_divergence", "cross_entropy"])
)
def test_what_is_left_does_not_sum_to_one(dtype, name):
    """Of probabilities that are masked."""
    p, q = two_distributions(dtype)
    mask = np.random.default_rng(0).random(p.shape) < 0.5
    with double_if(dtype), many_digits(dtype):
        function = functools.partial(getattr(jxent, name), where=mask)
        got = jax.jit(functools.partial(value_and_gradients, function, {}, None))(p, q)
        kept = [np.where(mask, x, x.dtype.type(0)) for x in (p, q)]
        value, *gradients = TABLE[name].truth(kept)
        of_kept = [g._replace(exact=np.where(mask, g.exact, Decimal(0))) for g in gradients]
        compare(got, [value, *of_kept], UNITS["probability"], dtype, (p, q))


def possible(row, x, options):
    """Where the options leave the loss finite, and no root of what has flushed to zero."""
    z = x.astype(np.float64)
    if row.binary:
        return np.abs(z) < 80 if options.get("gamma", 1) < 1 else np.isfinite(z)
    if "label_smoothing" in options:
        return np.all(np.isfinite(z), axis=-1)
    return np.ones(len(z), bool)


def test_every_option_has_hard_values():
    assert {name for row in TABLE.values() if row.formula for name in row.options} == set(OPTIONS)


def test_every_size_has_a_loss():
    """By name, so that a misspelt one would go unseen."""
    functions = [x for x in vars(sizes).values() if inspect.isfunction(x)]
    of_losses = {f.__name__ for f in functions if "result" in inspect.signature(f).parameters}
    assert of_losses <= {row.name for row in TABLE.values() if row.formula}


def nearly_equal_logits(dtype):
    """20 000 random pairs, most of them nearly equal."""
    rng = np.random.default_rng(9)
    shape = (20_000, sweeps.CLASSES)
    scale, change = (10.0 ** rng.uniform(low, 2, (shape[0], 1)) for low in (-3, -9))
    a = scale * rng.normal(size=shape)
    return sweeps.rounded(dtype, a, a + change * rng.normal(size=shape))


def nearly_equal_distributions(dtype, first=lambda q: q):
    rng = np.random.default_rng(10)
    p = rng.dirichlet(np.full(sweeps.CLASSES, 0.3), size=20_000)
    change = 10.0 ** rng.uniform(-9, 0, (len(p), 1))
    q = np.maximum(p * np.exp(change * rng.normal(size=p.shape)), 1e-30)
    return sweeps.rounded(dtype, first(q), p)


NEARLY_EQUAL = {
    "softmax_kl_divergence": nearly_equal_logits,
    "softmax_jensen_shannon_divergence": nearly_equal_logits,
    "jensen_shannon_divergence": nearly_equal_distributions,
    "generalized_kl_divergence": functools.partial(nearly_equal_distributions, first=np.log),
}


@pytest.mark.parametrize("dtype", quick(DTYPES))
@pytest.mark.parametrize("name", NEARLY_EQUAL)
def test_a_divergence_is_never_negative(dtype, name):
    with double_if(dtype):
        args = map(jnp.asarray, NEARLY_EQUAL[name](dtype))
        assert np.all(np.asarray(jax.jit(getattr(jxent, name))(*args)) >= 0)


# Up to 200 000 classes, against extended precision.

# In 16 bits the numbers are summed in float32.
SIZES = [("float32", 200_000), ("float64", 200_000), ("bfloat16", 5_000)]
INTEGER = jxent.softmax_cross_entropy_with_integer_labels


def rows(dtype, classes):
    rng = np.random.default_rng(11)
    z = np.stack([scale * rng.normal(size=classes) for scale in (0, 1, 30)])
    ahead = rng.normal(size=classes)
    ahead[1] = 25
    z = np.concatenate([z, ahead[None], 1e4 + z[1:2]])
    return z.astype(jnp.dtype(dtype))


def exact_sums(z):
    """Of one row: p, the surprisals, and log-sum-exp; sums rounded once, in two parts each."""
    z = z.astype(np.longdouble)
    k = np.argmax(z)
    e = np.exp(z - z[k])
    others = exact_sum(np.delete(e, k))
    return e / (1 + others), np.log1p(others) + (z[k] - z), z[k] + np.log1p(others)


def exact_sum(x):
    """The sum of extended-precision numbers."""
    high = x.astype(np.float64)
    low = (x - high).astype(np.float64)
    return np.longdouble(math.fsum(high)) + np.longdouble(math.fsum(low))


def assert_near(got, exact, bound, dtype):
    got = np.asarray(got)
    error = np.abs(got.astype(np.longdouble) - exact)
    if got.dtype.itemsize == 2:
        with np.errstate(over="ignore"):
            bound = bound + np.abs(np.spacing(exact.astype(got.dtype)).astype(np.longdouble))
    worst = np.argmax(error / (bound + 1e-33))
    assert np.all(error <= bound + 1e-33), (worst, got.flat[worst], np.asarray(exact).flat[worst])


@pytest.fixture
def _one_pass_everywhere(monkeypatch):
    """The way of other platforms, on this one."""
    monkeypatch.setitem(PLATFORMS, "cpu", PLATFORMS["tpu"])
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.full
@pytest.mark.usefixtures("_one_pass_everywhere")
@pytest.mark.parametrize(("dtype", "classes"), SIZES)
def test_softmax_in_one_pass(dtype, classes):
    test_softmax(dtype, classes)


@pytest.mark.parametrize(("dtype", "classes"), quick_rows(SIZES, 0))
def test_softmax(dtype, classes):
    z = rows(dtype, classes)
    labels = np.ones(len(z), np.int32)

    @jax.jit
    def results(z):
        loss, (gradient,) = with_gradients(lambda z: INTEGER(z, labels))(z)
        soft = jxent.softmax_cross_entropy(z, jnp.full(classes, 1 / classes, loss.dtype))
        return loss, gradient, jxent.logsumexp(z), jxent.softmax_entropy(z), soft

    with double_if(dtype):
        loss, gradient, normalizer, entropy, soft = results(jnp.asarray(z))
        unit = eps(dtype)
        uniform = np.longdouble(np.asarray(1 / classes, computing(dtype)))
        for i, row in enumerate(z):
            p, n, lse = exact_sums(row)
            sums = n[1], exact_sum(p * n), uniform * exact_sum(n)
            for got, exact in zip((loss[i], entropy[i], soft[i]), sums, strict=True):
                bound = (UNITS["softmax"] + np.abs(np.log(exact))) * unit * exact
                assert_near(got, exact, bound, dtype)
            size = np.abs(np.max(row.astype(np.longdouble))) + np.log(classes)
            assert_near(normalizer[i], lse, UNITS["logsumexp"] * unit * size, dtype)
            g, allowed = p.copy(), (UNITS["softmax"] + 2 * n) * unit * p
            g[1] = -exact_sum(np.delete(p, 1))
            allowed[1] = (UNITS["softmax"] + np.abs(np.log(n[1]))) * unit * -g[1]
            assert_near(gradient[i], g, allowed, dtype)


@pytest.mark.full
@pytest.mark.parametrize(("dtype", "classes"), SIZES)
def test_divergence(dtype, classes):
    rng = np.random.default_rng(12)
    z_q = rows(dtype, classes)
    change = np.resize([0.3, 1, 3], len(z_q))[:, None]
    z_p = (z_q.astype(np.float64) + change * rng.normal(size=z_q.shape)).astype(z_q.dtype)
    with double_if(dtype):
        divergence = jax.jit(jxent.softmax_kl_divergence)(jnp.asarray(z_q), jnp.asarray(z_p))
        for i in range(len(z_q)):
            (p, n_p, _), (_, n_q, _) = exact_sums(z_p[i]), exact_sums(z_q[i])
            exact = exact_sum(p * (n_q - n_p))
            assert_near(divergence[i], exact, UNITS["divergence"] * eps(dtype) * exact, dtype)
