"""Divergence from a teacher's top k: exact, never negative, and what of impossible targets."""

import itertools
import math
from decimal import Decimal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import fast_jit
from support.tiers import quick, quick_rows
from support.tolerances import eps, many_digits

INF, NAN = math.inf, math.nan
loss = jxent.softmax_kl_divergence_with_top_k_targets


def with_gradients(z, index, log_p, **options):
    """The gradients of the sum of the losses for logits and targets, and the losses."""

    def total(z, log_p):
        losses = loss(z, index, log_p, **options)
        return jnp.sum(losses), losses

    return jax.grad(total, (0, 1), has_aux=True)(z, log_p)


def logs(*p):
    return np.log(np.float32(p), where=np.float32(p) > 0, out=np.full(len(p), -np.inf, np.float32))


def exact(z, index, log_p, unit):
    """The formula in many digits, and how far off it may be because the logarithms are rounded.

    Roundings of the named classes' logarithms change what these leave to the others by up to
    `lost`, which counts where the named classes are nearly everything.
    """
    z, log_p = ([Decimal(float(x)) for x in row] for row in (z, log_p))
    e = [(x - max(z)).exp() for x in z]
    p = [x.exp() for x in log_p]
    outcomes = [(a, x, e[i] / sum(e)) for a, x, i in zip(p, log_p, index, strict=True)]
    p_rest, q_rest = 1 - sum(p), sum(x for i, x in enumerate(e) if i not in set(index)) / sum(e)
    value = sum(a * (x - q.ln()) for a, x, q in outcomes if a) + of_rest(p_rest, q_rest)
    rest = (p_rest / q_rest).ln() if p_rest > 0 and q_rest else Decimal(0)
    roundings = [a * (1 + abs(x) + abs(q.ln())) for a, x, q in outcomes]
    ratios = [abs(x - q.ln() - rest) for _, x, q in outcomes]
    terms = sum(a * t for a, t in zip(roundings, ratios, strict=True))
    lost = unit * sum(roundings)
    changes = [of_rest(p_rest + x, q_rest) - of_rest(p_rest, q_rest) - x for x in (lost, -lost)]
    return value, 16 * unit * (value + terms) + (max(map(abs, changes)) if q_rest else 0)


def of_rest(p, q):
    return p * (p / q).ln() if p > 0 and q else p


@pytest.mark.parametrize(
    ("k", "dtype"),
    quick_rows([(8, "float32"), (1, "float64"), (39, "float32"), (40, "float32")], 0),
)
def test_accuracy(k, dtype):
    """From far apart to nearly equal, with rests from nearly nothing to nearly everything."""
    rng = np.random.default_rng(0)
    rows, examples = [], 3 if dtype == "float32" else 1  # More digits take longer.
    for scale, change, offset in itertools.product((0.1, 1, 5, 20), (1e-4, 1e-2, 1, 10), (0, 1e4)):
        z = (offset + scale * rng.normal(size=(examples, 40))).astype(dtype)
        teacher = z + change * rng.normal(size=z.shape)
        teacher = teacher - np.max(teacher, axis=-1, keepdims=True)
        log_p = teacher - np.log(np.sum(np.exp(teacher), -1, keepdims=True))
        index = np.argsort(-log_p, axis=-1)[:, :k]
        rows.append((z, index, np.take_along_axis(log_p, index, -1).astype(dtype)))
    with jax.enable_x64(dtype == "float64"):
        z, index, log_p = map(np.concatenate, zip(*rows, strict=True))
        got = np.asarray(fast_jit(loss)(z, index, log_p))
    chex.assert_type(got, dtype)
    assert np.all(got >= 0)
    with many_digits(dtype):
        for x, *row in zip(got, z, index.tolist(), log_p, strict=True):
            value, allowed = exact(*row, Decimal(eps(dtype)))
            assert abs(Decimal(float(x)) - value) <= allowed


def test_never_negative_and_zero_where_both_agree():
    """Zero exactly; or what rounding leaves, where one program rounds logarithms in two ways."""
    rng = np.random.default_rng(1)
    sizes = 10.0 ** rng.uniform(-3, 1.5, (5000, 1))
    z = (sizes * rng.normal(size=(5000, 9))).astype("float32")

    def largest(teacher):
        return jax.lax.top_k(jxent.log_softmax(teacher), 4)

    @fast_jit
    def both(z, teacher):
        log_p, index = largest(teacher)
        return loss(z, index, log_p)

    for change in (1e-7, 1e-5, 1e-3, 1):
        teacher = z + change * rng.normal(size=z.shape).astype("float32")
        assert np.all(np.asarray(both(z, teacher)) >= 0)
    assert np.all(np.asarray(both(z, z)) < 1e-8)
    log_p, index = fast_jit(largest)(z)
    np.testing.assert_array_equal(fast_jit(loss)(z, index, log_p), 0)


def test_all_classes_and_axes():
    """Of all classes it is the divergence of the logits; the classes may be any axis."""
    rng = np.random.default_rng(2)
    z, teacher = rng.normal(size=(2, 4, 6)).astype(np.float32)
    index = rng.permuted(np.tile(np.arange(6), (4, 1)), axis=1)
    expected = fast_jit(jxent.softmax_kl_divergence)(z, teacher)
    log_p = np.take_along_axis(np.asarray(jxent.log_softmax(teacher)), index, axis=-1)
    divergence = fast_jit(loss)(z, index, log_p)
    np.testing.assert_allclose(divergence, expected, rtol=1e-5)
    counted = np.arange(4) != 1
    columns = fast_jit(loss, static_argnames="axis")(z.T, index.T, log_p.T, axis=0, where=counted)
    np.testing.assert_array_equal(columns, np.where(counted, divergence, 0))


def test_derivatives():
    """Forward, reverse, and the slope of the gradient, for both arguments, under `vmap`."""
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        z, index = rng.normal(size=(2, 5)), np.array([[0, 1, 2], [3, 4, 1]])
        log_p = np.log(rng.dirichlet(np.ones(5), 2))[:, :3]

        def plain(z, log_p):
            q = jax.nn.softmax(z)
            named = jnp.sum(jax.nn.one_hot(index, 5, dtype=z.dtype), axis=1)
            q_rest, p_rest = jnp.sum(q * (1 - named), -1), 1 - jnp.sum(jnp.exp(log_p), -1)
            ratio = log_p - jnp.log(jnp.take_along_axis(q, index, -1))
            return jnp.sum(jnp.exp(log_p) * ratio, -1) + p_rest * jnp.log(p_rest / q_rest)

        def derivatives(f, *args):
            def gradients(*args):
                losses, pullback = jax.vjp(f, *args)
                return losses, pullback(jnp.ones_like(losses))

            return jax.jvp(gradients, args, tuple(map(jnp.cos, args)))

        functions = lambda z, log_p: jax.vmap(loss)(z, index, log_p), plain
        both = fast_jit(lambda *args: [derivatives(f, *args) for f in functions])(z, log_p)
        chex.assert_trees_all_close(*both, rtol=1e-10, atol=1e-12, strict=True)


LOGITS = [0.0, 1.0, 2.0, 3.0]
P = np.exp(np.array(LOGITS))
P = P / P.sum()


def of(p, *named):
    """The divergence of some of `LOGITS`' classes by the formula."""
    q = [P[list(i)].sum() for i in named]
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def test_policies():
    """In one program; of possible rows nothing is NaN, and what is finite has finite gradients."""
    rows = [
        ("no probability", LOGITS, [0, 1], logs(0.5, 0), of([0.5, 0, 0.5], (0,), (1,), (2, 3))),
        ("padding out of range", LOGITS, [0, -1], logs(0.5, 0), of([0.5, 0.5], (0,), (1, 2, 3))),
        ("padding twice", LOGITS, [0, 0], logs(0.5, 0), of([0.5, 0.5], (0,), (1, 2, 3))),
        ("more than 1", LOGITS, [0, 1], logs(0.6, 0.4000002), of([0.6, 0.4], (0,), (1,))),
        ("nothing left", LOGITS, [0, 1], logs(0.5, 0.5), of([0.5, 0.5], (0,), (1,))),
        ("no other is possible", [0.0, 1.0, -INF, -INF], [0, 1], logs(0.4, 0.6), None),
    ]
    impossible = [
        ("named twice", LOGITS, [0, 0], logs(0.5, 0.2), NAN),
        ("out of range", LOGITS, [0, 4], logs(0.5, 0.2), NAN),
        ("negative", LOGITS, [-1, 2], logs(0.5, 0.2), NAN),
        ("logits", LOGITS, [3, 2], np.float32([3.0, 2.0]), NAN),
        ("probabilities", LOGITS, [3, 2], P[[3, 2]].astype(np.float32), NAN),
        ("half more than 1", LOGITS, [0, 1], logs(0.9, 0.6), NAN),
        ("a little more than rounding", LOGITS, [0, 1], logs(0.55, 0.48), NAN),
        ("NaN logit", [0.0, NAN, 2.0, 3.0], [0, 2], logs(0.5, 0.2), NAN),
        ("NaN target", LOGITS, [0, 2], np.float32([NAN, -1]), NAN),
        ("a named class at -inf", [-INF, 1.0, 2.0, 3.0], [0, 1], logs(0.5, 0.2), INF),
        ("the others at -inf", [0.0, 1.0, -INF, -INF], [0, 1], logs(0.5, 0.4), INF),
    ]
    _, z, index, log_p, _ = (list(column) for column in zip(*rows, *impossible, strict=True))
    given = np.float32(z), np.array(index), np.float32(log_p)
    gradients, losses = jax.tree.map(np.asarray, fast_jit(with_gradients)(*given))
    assert not any(np.any(np.isnan(x[: len(rows)])) for x in (losses, *gradients))
    for (name, *_, value), x, *to in zip(rows + impossible, losses, *gradients, strict=True):
        if value is not None:
            np.testing.assert_allclose(x, value, rtol=1e-5, err_msg=name)
        assert np.isfinite(x) <= all(np.all(np.isfinite(gradient)) for gradient in to), name
        assert np.isnan(x) <= np.all(np.isnan(to[0])), name


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16, np.float32])
@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0])
def test_rounding_is_not_impossible(dtype, scale):
    """Log-probabilities rounded to 16 bits, or computed in them, of every number of classes."""
    for classes in (2, 5, 300, 40_000):
        teacher = scale * np.random.default_rng(classes).normal(size=(8, classes))
        z = jnp.asarray(teacher, dtype)
        for log_p in (jax.nn.log_softmax(z), jxent.log_softmax(z).astype(dtype)):
            values, index = jax.lax.top_k(log_p, min(classes, 100))
            for given in (values, values.astype(np.float32)):
                assert jnp.all(loss(z, index, given) >= 0)


def test_masks():
    """A masked class does not exist; the teacher is renormalised without it."""
    where = np.array([[True] * 4, [True, False, True, True], [True, True, False, False]])
    index, log_p = np.array([[0, 1]] * 3), np.stack([logs(0.4, 0.3)] * 2 + [logs(0.4, 0.6)])
    z = np.float32([LOGITS] * 3)
    losses = np.asarray(fast_jit(loss)(z, index, log_p, where=where))
    # 3/7 of what is left, beside two others; and the softmax of the first two alone.
    p, q = np.array([4 / 7, 3 / 7]), P[[0, 2, 3]] / P[[0, 2, 3]].sum()
    few = np.sum(p * np.log(p / [q[0], q[1] + q[2]]))
    p, q = np.array([0.4, 0.6]), P[:2] / P[:2].sum()
    np.testing.assert_allclose(losses[1:], [few, np.sum(p * np.log(p / q))], rtol=2e-6)
    counted = np.array([True, False, False])
    bad = log_p * np.array([[1], [np.nan], [np.inf]], np.float32)
    index = index + 9 * ~counted[:, None]
    (_, gradient), masked = fast_jit(with_gradients)(z, index, bad, where=counted)
    np.testing.assert_allclose(masked, np.where(counted, losses[0], 0), rtol=1e-6)
    np.testing.assert_array_equal(np.any(gradient != 0, axis=-1), counted)


@pytest.mark.parametrize("dtype", quick([jnp.bfloat16, jnp.float16]))
def test_rounded_targets(dtype):
    """All classes named in 16 bits: what their sum lacks of 1 is no other outcome."""
    rng = np.random.default_rng(4)
    p = rng.dirichlet(np.ones(6), 200)
    index = np.tile(np.arange(6), (200, 1))
    log_p, z = np.log(p).astype(dtype), rng.normal(size=(200, 6)).astype(dtype)

    (gradient, _), losses = fast_jit(with_gradients)(z, index, log_p)
    chex.assert_type([losses, gradient], [jnp.float32, dtype])
    expected = fast_jit(jxent.softmax_kl_divergence)(z, log_p)
    np.testing.assert_allclose(losses, expected, atol=0.03)


@pytest.mark.parametrize("dtype", quick(["float32", "float64"]))
def test_a_single_class_that_is_nearly_certain(dtype):
    """What it leaves to the others is -expm1 of its logarithm, to the last bits."""
    margins, sizes = (0, 20, -20, 80, 200), (1e-30, 1e-20, 1e-8, 1e-3, 0.5, 30)
    pairs = [([z, 0, 0], [-size]) for z in margins for size in sizes]
    with jax.enable_x64(dtype == "float64"), many_digits(dtype):
        z, log_p = (np.array(x, dtype) for x in zip(*pairs, strict=True))
        index = np.zeros(log_p.shape, np.int32)
        (to_z, to_p), got = fast_jit(with_gradients)(z, index, log_p)
        for i, (row, (x,)) in enumerate(zip(z, log_p, strict=True)):
            e, x = [Decimal(float(v)).exp() for v in row], Decimal(float(x))
            p, q, q_rest = x.exp(), e[0] / sum(e), sum(e[1:]) / sum(e)
            t, t_rest = x - q.ln(), ((1 - p) / q_rest).ln()
            for found, exact, terms in (
                (got[i], p * t + (1 - p) * t_rest, 0),
                (to_p[i, 0], p * (t - t_rest), p * (abs(t) + abs(t_rest))),
                (to_z[i, 0], q - p, 0),
            ):
                allowed = 32 * Decimal(eps(dtype)) * max(abs(exact), terms)
                assert abs(Decimal(float(found)) - exact) <= allowed + Decimal("1e-33")


@pytest.mark.parametrize("classes", quick([4000, 30_000, 100_000]))
@pytest.mark.parametrize("dtype", quick([np.float32, jnp.bfloat16]))
def test_a_teacher_that_names_every_class(classes, dtype):
    """What rounding takes from the sum is no other outcome, and what is clearly more costs +inf."""
    rng = np.random.default_rng(6)
    z, teacher = np.array([[0.1], [1], [5]]) * rng.normal(size=(2, 3, classes))
    log_p = teacher - np.log(np.sum(np.exp(teacher), axis=-1, keepdims=True))
    index = np.argsort(-log_p, axis=-1)
    log_p = np.take_along_axis(log_p, index, axis=-1)
    nats = -np.sum(np.exp(log_p) * log_p, axis=-1, keepdims=True)
    # The border is at four roundings of a logarithm and of what it is the logarithm of.
    border = 4 * float(jnp.finfo(dtype).eps) * (1 + nats)
    within, beyond = (np.asarray(log_p + np.log1p(-x * border)).astype(dtype) for x in (0.5, 2))
    z = z.astype(np.float32)

    given = within.astype(np.float64)
    q = np.float64(z) - np.log(np.sum(np.exp(np.float64(z)), axis=-1, keepdims=True))
    exact = np.sum(np.exp(given) * (given - np.take_along_axis(q, index, axis=-1)), axis=-1)
    losses = fast_jit(loss)
    np.testing.assert_allclose(losses(z, index, within), exact, rtol=0.02, atol=2 * border.max())
    assert np.all(np.isposinf(losses(z, index, beyond)))


@pytest.mark.parametrize("others", [2.0, -INF])
def test_an_offset_of_all_logits_changes_nothing(others):
    """Also where no other class is possible, and what the teacher leaves to them costs infinity."""
    given = np.float32([0, 1, others]), np.array([0, 1]), logs(0.4, 0.3)
    (gradient, _), _ = fast_jit(with_gradients)(*given)
    np.testing.assert_allclose(np.sum(gradient), 0, atol=1e-7)


def test_what_underflows_is_not_impossible():
    """What rounded targets leave may be no more than rounding, but other classes are possible."""
    z, log_p = np.float32([0, 0, -200, -200]), np.log(np.array([0.5, 0.49])).astype(jnp.bfloat16)
    with many_digits("float32"):
        value, _ = exact(z, [0, 1], log_p, Decimal(0))
    divergence = fast_jit(loss)(z, np.array([0, 1]), log_p)
    np.testing.assert_allclose(divergence, float(value), rtol=1e-5)
