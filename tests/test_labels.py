"""Labels that are none, what is left out, and shapes that can be read two ways."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import BARE, bare, fast_jit
from tiers import quick

import jxent

INF, NAN = math.inf, math.nan

# What a binary loss takes beside its arguments, and a program for each choice.
BINARY = {
    "sigmoid_binary_cross_entropy": [{}, {"pos_weight": 2.0, "label_smoothing": 0.25}],
    "sigmoid_focal_loss": [{}, {"alpha": 0.25, "gamma": 0.0}, {"gamma": 0.5}],
    "binary_cross_entropy": [{}, {"pos_weight": 2.0, "label_smoothing": 0.25}],
}
CHOICES = [(name, i) for name, options in BINARY.items() for i in range(len(options))]
every_choice = pytest.mark.parametrize(("name", "choice"), CHOICES)
# Op by op as well, without the options, which are ordinary arithmetic.
in_each_mode = pytest.mark.parametrize(
    ("name", "choice", "mode"),
    [(name, i, "jit") for name, i in CHOICES] + [(name, 0, "eager") for name in BINARY],
)

NO_LABELS = [-1.0, 255.0, -100.0, -1e-6, 1 + 2**-23, NAN, INF, -INF]


@functools.cache
def _gradients(name, choice=None, mode="jit", masked=False):
    """The losses, and the gradients of a sum of them."""
    options = BINARY[name][choice] if choice is not None else {}

    def function(where, *args):
        def total(*args):
            kept = {"where": where} if masked else {}
            losses = getattr(jxent, name)(*args, **options, **kept)
            return jnp.sum(losses), losses

        gradients, losses = jax.grad(total, tuple(range(len(args))), has_aux=True)(*args)
        return losses, gradients

    function = function if mode == "eager" else fast_jit(function)
    return lambda *args, where=None: jax.tree.map(np.asarray, function(where, *args))


def _all_pairs(name):
    """Every first argument beside every label that is none; the last row has good labels."""
    inside = [0.0, 1.0, 0.25] if name == "binary_cross_entropy" else [0.0, 2.0, -INF, INF, NAN]
    first, labels = np.meshgrid(inside, [*NO_LABELS, 0.5], indexing="ij")
    return jnp.asarray(first.T, jnp.float32), jnp.asarray(labels.T, jnp.float32)


@in_each_mode
def test_a_binary_label_that_is_none(name, choice, mode):
    """NaN in value and gradient, in that element alone."""
    first, labels = _all_pairs(name)
    losses, gradients = _gradients(name, choice, mode)(first, labels)
    assert np.all(np.isnan(losses[:-1]))
    assert all(np.all(np.isnan(g[:-1])) for g in gradients)
    good = ~np.isnan(first[-1])
    assert not np.any(np.isnan(losses[-1][good]))
    assert not np.any(np.isnan(gradients[0][-1][good]))


@pytest.mark.parametrize(
    "dtype", quick([np.uint8, np.int8, np.int32, jnp.bfloat16, np.float64], number=2)
)
@every_choice
def test_a_binary_label_that_is_none_in_any_dtype(name, choice, dtype):
    labels = np.array([0, 1, 3]).astype(dtype)
    labels[2] = np.array(-1).astype(dtype)  # 255 if it has no sign.
    first = np.full(3, 0.25, np.float32)
    losses = getattr(jxent, name)(first, labels, **BINARY[name][choice])
    np.testing.assert_array_equal(np.isnan(losses), [False, False, True])


@pytest.mark.parametrize("name", BINARY)
def test_one_label_for_all_that_is_none(name):
    losses, (gradient, to_label) = _gradients(name)(jnp.full(3, 0.25), jnp.float32(-1))
    assert np.all(np.isnan(losses))
    assert np.all(np.isnan(gradient))
    assert np.isnan(to_label)


@pytest.mark.parametrize("name", ["binary_entropy", "binary_cross_entropy"])
def test_a_probability_that_is_none(name):
    """As for labels: a finite gradient would be believed."""
    p = jnp.array([*NO_LABELS, 0.5])
    for label in (0.0, 1.0, 0.25):
        others = [] if name == "binary_entropy" else [jnp.full_like(p, label)]
        losses, (gradient, *_) = _gradients(name)(p, *others)
        np.testing.assert_array_equal(np.isnan(losses), [*[True] * 8, False])
        np.testing.assert_array_equal(np.isnan(gradient), [*[True] * 8, False])


# `where`: what it leaves out has the loss 0 and the gradient 0.

ELEMENTWISE = {
    "sigmoid_binary_cross_entropy": 2,
    "sigmoid_focal_loss": 2,
    "sigmoid_kl_divergence": 2,
    "sigmoid_entropy": 1,
    "binary_cross_entropy": 2,
    "binary_entropy": 1,
}


def test_every_elementwise_loss_has_a_mask():
    per_element = {c.name for c in BARE if c.per_class and not c.accepts("axis")}
    assert per_element == set(ELEMENTWISE)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_masked_elements(name):
    """Whatever their logits and labels; the others do not notice."""
    anything = [NAN, INF, -INF, 0.0, 0.5, 1.0, 255.0, -1.0]
    pairs = np.stack(np.meshgrid(anything, anything), -1).reshape(-1, 2)
    count = ELEMENTWISE[name]
    bad = [jnp.asarray(x, jnp.float32) for x in pairs.T[:count]]
    good = [jnp.array([0.25, 0.75]), jnp.array([1.0, 0.5])][:count]
    args = [jnp.concatenate(x) for x in zip(bad, good, strict=True)]
    where = np.arange(len(args[0])) >= len(pairs)
    losses, gradients = _gradients(name, masked=True)(*args, where=where)
    expected, expected_gradients = _gradients(name)(*good)
    for x, y in zip([losses, *gradients], [expected, *expected_gradients], strict=True):
        np.testing.assert_array_equal(x[:-2], 0.0)
        np.testing.assert_allclose(x[-2:], y, rtol=1e-6)


@every_choice
def test_masked_elements_with_options(name, choice):
    first, labels = _all_pairs(name)
    where = np.ones(first.shape, bool)
    where[:-1] = False
    losses, gradients = _gradients(name, choice, "jit", True)(first, labels, where=where)
    for x in (losses, *gradients):
        np.testing.assert_array_equal(x[:-1], 0.0)
    expected = getattr(jxent, name)(first[-1], labels[-1], **BINARY[name][choice])
    np.testing.assert_allclose(losses[-1], expected, rtol=1e-6)


def test_a_mask_of_labels_that_stand_for_unknown():
    """The usual -1, as in the docstring, with the options' gradients."""
    logits = jnp.array([[1.0, -2.0, NAN], [0.5, INF, 3.0]])
    labels = np.array([[1, 0, -1], [1, 255, 0]])
    known = (labels >= 0) & (labels <= 1)

    def total(logits, weight, epsilon):
        losses = jxent.sigmoid_binary_cross_entropy(
            logits, labels, where=known, pos_weight=weight, label_smoothing=epsilon
        )
        return jxent.weighted_mean(losses, known), losses

    arguments = (logits, jnp.array([1.0, 2.0, 3.0]), jnp.float32(0.125))
    (gradient, *to_options), losses = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*arguments)
    z, y, w = (np.asarray(x, np.float64) for x in (logits, labels, arguments[1]))
    z, y = np.where(known, z, 0), 0.875 * y + 0.0625
    expected = w * y * np.log1p(np.exp(-z)) + (1 - y) * np.log1p(np.exp(z))
    np.testing.assert_allclose(losses, np.where(known, expected, 0), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(gradient)[~known], 0.0)
    assert all(np.all(np.isfinite(x)) for x in (gradient, *to_options))


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_no_nan_on_the_way(name):
    """Op by op; an impossible label that is left out makes none either."""
    function = getattr(jxent, name)
    args = [jnp.array([0.25, 0.0, 1.0])] * ELEMENTWISE[name]
    spoiled = [x.at[1].set(255.0) for x in args]
    where = np.array([True, False, True])

    def total(*args, **options):
        return jnp.sum(function(*args, **options))

    wrt = tuple(range(len(args)))
    with jax.debug_nans(True), jax.disable_jit():
        jax.value_and_grad(total, wrt)(*args)
        jax.value_and_grad(functools.partial(total, where=where), wrt)(*spoiled)
        if ELEMENTWISE[name] == 2 and name != "sigmoid_kl_divergence":
            with pytest.raises(FloatingPointError):
                total(args[0], spoiled[1])


# `ignore_index`.


@pytest.mark.parametrize(
    "case", [c for c in BARE if "labels" in c.kinds and c.has_classes], ids=str
)
def test_every_integer_loss_ignores_labels(case):
    first = jnp.array([[0.5, 0.25, 0.25], [NAN, INF, -INF], [NAN] * 3])

    @fast_jit
    def gradient_and_losses(x, labels):
        def total(x):
            losses = case.function(x, labels, ignore_index=-100)
            return jnp.sum(losses), losses

        return jax.grad(total, has_aux=True)(x)

    gradient, losses = gradient_and_losses(first, np.array([1, -100, -100]))
    np.testing.assert_array_equal(losses[1:], 0.0)
    np.testing.assert_array_equal(gradient[1:], 0.0)
    good, expected = gradient_and_losses(jnp.tile(first[0], (3, 1)), np.array([1, 1, 1]))
    np.testing.assert_allclose(losses[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[0], good[0], rtol=1e-6)


@pytest.mark.parametrize(
    "where",
    [[True, False, True], [[True] * 3, [False] * 3, [True] * 3]],
    ids=["example", "classes"],
)
@pytest.mark.parametrize(
    "case", [c for c in BARE if c.has_classes and c.accepts("ignore_index")], ids=str
)
def test_masked_and_ignored(case, where):
    """`ignore_index` beside `where`: an example counts if neither leaves it out."""
    first = jnp.array([[0.5, 0.25, 0.25], [NAN] * 3, [INF, NAN, -INF]])
    labels = np.array([1, 0, -100])

    def losses(x):
        return case.function(x, labels, where=np.array(where), ignore_index=-100)

    values, pullback = jax.vjp(losses, first)
    (gradient,) = pullback(jnp.ones_like(values))
    np.testing.assert_array_equal(values[1:], 0.0)
    np.testing.assert_array_equal(gradient[1:], 0.0)
    alone, pullback = jax.vjp(lambda x: case.function(x, labels[0]), first[0])
    np.testing.assert_allclose(values[0], alone, rtol=1e-6)
    np.testing.assert_allclose(gradient[0], *pullback(jnp.ones_like(alone)), rtol=1e-6)


def test_ignored_labels_with_class_weights_and_gamma():
    logits = jnp.array([[0.5, 0.25, 0.25], [NAN, INF, -INF]])

    def total(logits, weights, gamma):
        losses = jxent.softmax_focal_loss_with_integer_labels(
            logits, np.array([1, 255]), gamma, class_weights=weights, ignore_index=255
        )
        return jnp.sum(losses)

    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(
        logits, jnp.array([1.0, 2.0, 3.0]), 1.5
    )
    p = math.exp(0.25) / (math.exp(0.5) + 2 * math.exp(0.25))
    np.testing.assert_allclose(value, -2 * (1 - p) ** 1.5 * math.log(p), rtol=1e-6)
    np.testing.assert_array_equal(gradients[0][1], 0.0)
    assert all(np.all(np.isfinite(g)) for g in gradients)


_INDICES = [
    # dtype of the labels, the label, ignore_index, whether they are the same number
    (np.uint32, 4294967196, 4294967196, True),
    (np.uint32, 4294967295, np.uint32(4294967295), True),
    (np.uint32, 4294967196, -100, False),
    (np.int32, -100, 4294967196, False),
    (np.int32, -(2**31), -(2**31), True),
    (np.int64, -100, np.int64(-100), True),
    (np.uint8, 255, 255, True),
    (np.uint8, 156, -100, False),
    (np.int8, -100, -100, True),
    (np.uint16, 65535, 65535, True),
    (np.int32, -100, 2**63, False),
    (np.int32, -100, -(10**30), False),
]


@pytest.mark.parametrize("name", [c.name for c in BARE if c.accepts("ignore_index")])
def test_ignore_index_of_any_size(name):
    """A label that is another number is none of the classes: NaN."""
    case = bare(name)
    first = [x for x, kind in zip(case.args(), case.kinds, strict=True) if kind != "labels"]
    for dtype, label, index, same in _INDICES:
        labels = np.array([1, label]).astype(dtype)
        losses = case.call(*first, labels, ignore_index=index)
        assert losses[0] > 0
        assert losses[1] == 0 if same else np.isnan(losses[1])


@pytest.mark.parametrize("index", quick([True, np.True_, 1.0, "1", [1]], number=1))
@pytest.mark.parametrize("name", [c.name for c in BARE if c.accepts("ignore_index")])
def test_ignore_index_is_an_integer(name, index):
    case = bare(name)
    with pytest.raises(TypeError, match=r"^ignore_index must be an integer, got "):
        case.call(*case.args(), ignore_index=index)


@pytest.mark.parametrize(
    "labels", [np.array([1, 2**32]), np.uint64([1, 2**40]), [1, 2**32], [-(2**31) - 1, 0], 2**31]
)
def test_labels_that_32_bits_do_not_hold(labels):
    """JAX would cut them off without a word: 2^32 would be class 0."""
    logits = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"^labels must fit into u?int32"):
        jxent.softmax_cross_entropy_with_integer_labels(logits, labels)


# Class numbers where distributions are meant, and one-hot integers where they are meant.

DISTRIBUTIONS = {
    "softmax_cross_entropy": "softmax_cross_entropy_with_integer_labels",
    "safe_softmax_cross_entropy": "softmax_cross_entropy_with_integer_labels",
    "poly_loss_cross_entropy": "jax.nn.one_hot",
    "cross_entropy": "cross_entropy_with_integer_labels",
    "relative_entropy": "cross_entropy_with_integer_labels",
    "jensen_shannon_divergence": "jax.nn.one_hot",
    "kl_divergence": "negative_log_likelihood",
    "generalized_kl_divergence": "jax.nn.one_hot",
}
of_distributions = pytest.mark.parametrize("name", DISTRIBUTIONS)
_SQUARE = np.float32([[0.5, 0.25, 0.25], [0.125, 0.625, 0.25], [0.25, 0.25, 0.5]])


def test_every_function_of_distributions():
    """Those of labels; logits and logarithms are not one-hot."""
    found = {c.name for c in BARE if "distributions" in c.kinds and len(c.kinds) == 2}
    assert found - set(ELEMENTWISE) == set(DISTRIBUTIONS)


@pytest.mark.parametrize("kind", quick([np.int32, np.uint8, bool, list]))
@of_distributions
def test_class_numbers_are_no_distribution(name, kind):
    """As many examples as classes, or one example: no shape tells them apart."""
    function = getattr(jxent, name)
    numbers = [1, 0, 1] if kind is list else np.array([1, 0, 1], kind)
    for labels in (numbers, numbers[0]):
        with pytest.raises(TypeError, match=f"class numbers are for {DISTRIBUTIONS[name]}$"):
            function(_SQUARE, labels)
    with pytest.raises(TypeError, match=f"class numbers are for {DISTRIBUTIONS[name]}"):
        jax.jit(function)(_SQUARE, jnp.array([1, 0, 1]))
    # Floating-point ones are a distribution for every example.
    shared = function(_SQUARE, np.float32([0.25, 0.25, 0.5]))
    assert shared.shape == (3,)
    repeated = function(_SQUARE, np.float32([[0.25, 0.25, 0.5]] * 3))
    np.testing.assert_allclose(shared, repeated, rtol=1e-6)


@of_distributions
def test_one_hot_labels_of_any_dtype(name):
    """In the shape of the other array, of one example as well; either one of probabilities."""
    function = getattr(jxent, name)
    hot = np.eye(3)[[2, 0, 1]]
    either = name in ("cross_entropy", "relative_entropy", "jensen_shannon_divergence")

    @fast_jit
    def results(x):
        def gradient(labels):
            return jax.grad(lambda x: jnp.sum(function(x, labels)))(x)

        dtypes = [np.float32, np.int32, np.uint8, bool]
        return (
            [(function(x, hot.astype(d)), gradient(hot.astype(d))) for d in dtypes],
            [function(x[0], hot[0].astype(d)) for d in dtypes],
            [function(hot.astype(d), x) for d in dtypes] if either else (),
            function(hot.astype(bool), x.astype(jnp.bfloat16)) if either else (),
        )

    rows, single, swapped, low = results(_SQUARE)
    for same in (rows, single, swapped):
        for result in same[1:]:
            assert jax.tree.all(jax.tree.map(np.array_equal, result, same[0]))
    assert {x.dtype for x in jax.tree.leaves((rows, single, swapped, low))} == {np.dtype("float32")}
    listed = function(_SQUARE.tolist(), hot.astype(int).tolist())
    np.testing.assert_allclose(listed, rows[0][0], rtol=1e-6)
    if either:
        np.testing.assert_allclose(low, swapped[0], rtol=1e-6)


# Two sizes are equal: what a shape is taken for.


def test_masks_of_square_arrays_are_of_examples():
    """JAX and optax would broadcast ``[n]`` over the classes."""
    where = np.array([True, False, True])
    by_rows, by_columns = (np.broadcast_to(x, (3, 3)) for x in (where[:, None], where[None, :]))

    def masked(case):
        others = [np.arange(3) if k == "labels" else _SQUARE.T for k in case.kinds[1:]]
        return [case.call(_SQUARE, *others, where=x) for x in (where, by_rows, by_columns)]

    results = fast_jit(lambda: [masked(case) for case in BARE if case.has_classes])
    for by_example, by_row, by_column in results():
        np.testing.assert_array_equal(by_example, by_row)
        assert not np.array_equal(by_example, by_column)


def test_what_square_logits_share():
    logits, numbers = jnp.asarray(_SQUARE), jnp.array([1.0, 2.0, 4.0])
    per_class = np.broadcast_to(numbers, (3, 3))
    by_class = jxent.sigmoid_binary_cross_entropy(logits, np.ones((3, 3)), pos_weight=per_class)
    result = jxent.sigmoid_binary_cross_entropy(logits, np.ones((3, 3)), pos_weight=numbers)
    np.testing.assert_allclose(result, by_class, rtol=1e-6)
    labels = jxent.softmax_cross_entropy(logits, numbers)
    np.testing.assert_allclose(labels, jxent.softmax_cross_entropy(logits, per_class), rtol=1e-6)
    examples = jxent.softmax_cross_entropy_with_integer_labels(logits, [0, 1, 1])
    np.testing.assert_allclose(
        examples, jxent.softmax_cross_entropy(logits, np.eye(3)[[0, 1, 1]]), rtol=1e-6
    )


def test_logsumexp_reduces_the_last_axis():
    assert jxent.logsumexp(_SQUARE).shape == (3,)
    assert jax.nn.logsumexp(_SQUARE).shape == ()
    np.testing.assert_allclose(
        jxent.logsumexp(_SQUARE, axis=None), jax.nn.logsumexp(_SQUARE), rtol=1e-6
    )
