"""Labels that are none, what is left out, and shapes that can be read two ways."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import BARE, fast_jit, with_gradients
from support.tiers import quick

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
    [(name, i, "jit") for name, i in CHOICES] + [("sigmoid_focal_loss", 0, "eager")],
)

NO_LABELS = [-1.0, 255.0, -100.0, -1e-6, 1 + 2**-23, NAN, INF, -INF]


@functools.cache
def _gradients(name, choice=0, mode="jit", masked=False):
    """The losses, and the gradients of a sum of them."""
    options = BINARY[name][choice] if choice else {}

    def losses(where, args):
        return getattr(jxent, name)(*args, **options, **({"where": where} if masked else {}))

    function = with_gradients(losses) if mode == "eager" else fast_jit(with_gradients(losses))

    def of_arrays(*args, where=None):
        out, (_, gradients) = function(where, list(map(jnp.asarray, args)))
        return jax.tree.map(np.asarray, (out, gradients))

    return of_arrays


def _all_pairs(name):
    """Every first argument beside every label that is none; the last row has good labels."""
    inside = [0.0, 2.0, -INF, INF, NAN]
    inside = [0.0, 1.0, 0.25, 0.5, 0.75] if name == "binary_cross_entropy" else inside
    first, labels = np.meshgrid(inside, [*NO_LABELS, 0.5], indexing="ij")
    return np.float32(first.T), np.float32(labels.T)


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


@every_choice
def test_a_binary_label_that_is_none_in_any_dtype(name, choice):
    first, numbers = np.full(3, 0.25, np.float32), np.array([0, 1, 3])
    labels = [numbers.astype(d) for d in (np.uint8, np.int8, np.int32, jnp.bfloat16, np.float64)]
    for x in labels:
        x[2] = np.array(-1).astype(x.dtype)  # 255 if it has no sign.

    @fast_jit
    def losses():
        return [getattr(jxent, name)(first, x, **BINARY[name][choice]) for x in labels]

    results = losses()
    for x, result in zip(labels, results, strict=True):
        np.testing.assert_array_equal(np.isnan(result), [False, False, True], str(x.dtype))
    of_truths = getattr(jxent, name)(first[:2], np.array([False, True]), **BINARY[name][choice])
    good = [x[:2] for x in results]
    chex.assert_trees_all_close(*good, of_truths, rtol=2e-6, strict=True)


@pytest.mark.parametrize("name", BINARY)
def test_one_label_for_all_that_is_none(name):
    losses, (gradient, to_label) = _gradients(name)(np.full(3, np.float32(0.25)), np.float32(-1))
    assert np.all(np.isnan(losses))
    assert np.all(np.isnan(gradient))
    assert np.isnan(to_label)


@pytest.mark.parametrize("name", ["binary_entropy", "binary_cross_entropy"])
def test_a_probability_that_is_none(name):
    """As for labels: a finite gradient would be believed."""
    p = np.float32([*NO_LABELS, 0.5])
    for label in (0.0,) if name == "binary_entropy" else (0.0, 1.0, 0.25):
        others = [] if name == "binary_entropy" else [np.full_like(p, label)]
        losses, (gradient, *_) = _gradients(name)(p, *others)
        np.testing.assert_array_equal(np.isnan(losses), [*[True] * 8, False])
        np.testing.assert_array_equal(np.isnan(gradient), [*[True] * 8, False])


# `where`: what it leaves out has the loss 0 and the gradient 0.

ELEMENTWISE = {c.name: len(c.kinds) for c in BARE if not c.accepts("axis") and c.per_class}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_masked_elements(name):
    """Whatever their logits and labels; the others do not notice."""
    anything = [NAN, INF, -INF, 0.0, 0.5, 1.0, 255.0, -1.0]
    pairs = np.stack(np.meshgrid(anything, anything), -1).reshape(-1, 2)
    count = ELEMENTWISE[name]
    bad = np.float32(pairs.T[:count])
    good = np.float32([[0.25, 0.75], [1.0, 0.5]])[:count]
    args = np.concatenate([bad, good], axis=1)
    where = np.arange(len(args[0])) >= len(pairs)
    losses, gradients = _gradients(name, masked=True)(*args, where=where)
    expected, expected_gradients = _gradients(name)(*(np.resize(x, (9, 5)) for x in good))
    for x, y in zip([losses, *gradients], [expected, *expected_gradients], strict=True):
        np.testing.assert_array_equal(x[:-2], 0.0)
        np.testing.assert_allclose(x[-2:], y[0, :2], rtol=1e-6)


@pytest.mark.parametrize(("name", "choice"), [(name, i) for name, i in CHOICES if i])
def test_masked_elements_with_options(name, choice):
    first, labels = _all_pairs(name)
    where = np.broadcast_to(np.arange(len(first))[:, None] == len(first) - 1, first.shape)
    losses, gradients = _gradients(name, choice, "jit", True)(first, labels, where=where)
    assert not any(np.any(x[:-1]) for x in (losses, *gradients))
    expected = _gradients(name, choice)(first, labels)[0]
    np.testing.assert_allclose(losses[-1], expected[-1], rtol=1e-6)


def test_a_mask_of_labels_that_stand_for_unknown():
    """The usual -1, as in the docstring, with the options' gradients."""
    logits = np.float32([[1.0, -2.0, NAN], [0.5, INF, 3.0]])
    labels = np.array([[1, 0, -1], [1, 255, 0]])
    known = (labels >= 0) & (labels <= 1)

    def total(logits, weight, epsilon):
        losses = jxent.sigmoid_binary_cross_entropy(
            logits, labels, where=known, pos_weight=weight, label_smoothing=epsilon
        )
        return jxent.weighted_mean(losses, known), losses

    arguments = (logits, np.float32([1.0, 2.0, 3.0]), np.float32(0.125))
    function = fast_jit(jax.grad(total, (0, 1, 2), has_aux=True))
    (gradient, *to_options), losses = function(*arguments)
    z, y, w = (np.asarray(x, np.float64) for x in (logits, labels, arguments[1]))
    z, y = np.where(known, z, 0), 0.875 * y + 0.0625
    expected = w * y * np.log1p(np.exp(-z)) + (1 - y) * np.log1p(np.exp(z))
    np.testing.assert_allclose(losses, np.where(known, expected, 0), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(gradient)[~known], 0.0)
    chex.assert_tree_all_finite((gradient, to_options))


@pytest.mark.parametrize("name", quick(ELEMENTWISE, "sigmoid_focal_loss", "binary_cross_entropy"))
def test_no_nan_on_the_way(name):
    """Op by op; an impossible label that is left out makes none either."""
    # In the shape of all pairs, whose operations are compiled.
    args = [jnp.asarray(np.resize(np.float32([0.25, 0.0, 1.0]), (9, 5)))] * ELEMENTWISE[name]
    spoiled = [jnp.asarray(np.where(x == 0, 255, x)) for x in map(np.asarray, args)]
    where = np.asarray(args[0]) != 0

    function = getattr(jxent, name)
    with jax.debug_nans(True), jax.disable_jit():
        with_gradients(function)(*args)
        with_gradients(functools.partial(function, where=where))(*spoiled)
        if ELEMENTWISE[name] == 2 and not name.endswith("kl_divergence"):
            with pytest.raises(FloatingPointError):
                function(args[0], spoiled[1])


# `ignore_index`, of which `test_policies.py` has the rest.


def test_ignored_labels_with_class_weights_and_gamma():
    logits = np.float32([[0.5, 0.25, 0.25], [NAN, INF, -INF]])

    def loss(logits, weights, gamma):
        return jxent.softmax_focal_loss_with_integer_labels(
            logits, np.array([1, 255]), gamma, class_weights=weights, ignore_index=255
        )

    arguments = logits, np.float32([1.0, 2.0, 3.0]), 1.5
    losses, gradients = fast_jit(with_gradients(loss))(*arguments)
    p = math.exp(0.25) / (math.exp(0.5) + 2 * math.exp(0.25))
    np.testing.assert_allclose(losses, [-2 * (1 - p) ** 1.5 * math.log(p), 0], rtol=1e-6)
    np.testing.assert_array_equal(gradients[0][1], 0.0)
    chex.assert_tree_all_finite(gradients)


_INDICES = [
    # dtype of the labels, the label, ignore_index, whether they are the same number
    (np.uint32, 4294967196, 4294967196, True), (np.uint32, 4294967196, -100, False),
    (np.uint32, 4294967295, np.uint32(4294967295), True), (np.int32, -100, 4294967196, False),
    (np.int32, -(2**31), -(2**31), True), (np.int64, -100, np.int64(-100), True),
    (np.uint8, 255, 255, True), (np.uint8, 156, -100, False), (np.int8, -100, -100, True),
    (np.uint16, 65535, 65535, True), (np.int32, -100, 2**63, False),
    (np.int32, -100, -(10**30), False),
]  # fmt: skip


@pytest.mark.parametrize("case", [c for c in BARE if c.accepts("ignore_index")], ids=str)
def test_ignore_index_of_any_size(case):
    """A label that is another number is none of the classes: NaN; what is no integer is refused."""
    first = [x for x, kind in zip(case.args(), case.kinds, strict=True) if kind != "labels"]
    labels = [np.array([1, label]).astype(dtype) for dtype, label, *_ in _INDICES]

    @fast_jit
    def every_loss():
        pairs = zip(labels, _INDICES, strict=True)
        return [case.call(*first, x, ignore_index=index) for x, (*_, index, _) in pairs]

    for losses, (*_, same) in zip(every_loss(), _INDICES, strict=True):
        assert losses[0] > 0
        assert losses[1] == 0 if same else np.isnan(losses[1])
    for index in (True, np.True_, 1.0, "1", [1]):
        with pytest.raises(TypeError, match=r"^ignore_index must be an integer, got "):
            case.call(*case.args(), ignore_index=index)


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


@of_distributions
def test_class_numbers_are_no_distribution(name):
    """As many examples as classes, or one example: no shape tells them apart."""
    function = getattr(jxent, name)
    arrays = [np.array([1, 0, 1], dtype) for dtype in (np.int32, np.uint8, bool)]
    for labels in ([1, 0, 1], 1, *arrays, *(x[0] for x in arrays)):
        with pytest.raises(TypeError, match=f"class numbers are for {DISTRIBUTIONS[name]}$"):
            function(_SQUARE, labels)
    with pytest.raises(TypeError, match=f"class numbers are for {DISTRIBUTIONS[name]}"):
        jax.jit(function)(_SQUARE, arrays[0])


@pytest.mark.parametrize(
    "name", quick(DISTRIBUTIONS, "softmax_cross_entropy", "relative_entropy", "kl_divergence")
)
def test_one_hot_labels_of_any_dtype(name):
    """In the shape of the other array, of one example as well; either one of probabilities.

    Floating-point ones of one example are a distribution for every example.
    """
    function = getattr(jxent, name)
    hot, one = np.eye(3)[[2, 0, 1]], np.float32([0.25, 0.25, 0.5])
    either = name in ("cross_entropy", "relative_entropy", "jensen_shannon_divergence")

    @fast_jit
    def results(x):
        def with_gradient(labels):
            return with_gradients(lambda x: function(x, labels))(x)

        dtypes = [np.float32, np.int32, np.uint8, bool]
        return (
            [with_gradient(hot.astype(d)) for d in dtypes],
            [function(x[0], hot[0].astype(d)) for d in dtypes],
            [function(hot.astype(d), x) for d in dtypes] if either else (),
            function(hot.astype(bool), x.astype(jnp.bfloat16)) if either else (),
            function(x, one),
            function(x, np.stack([one] * 3)),
            function(_SQUARE.tolist(), hot.astype(int).tolist()),
        )

    rows, single, swapped, low, shared, repeated, listed = results(_SQUARE)
    for same in filter(None, (rows, single, swapped)):
        chex.assert_trees_all_equal(*same, strict=True)
    chex.assert_type(jax.tree.leaves((rows, single, swapped, low)), np.float32)
    np.testing.assert_allclose(listed, rows[0][0], rtol=1e-6)
    chex.assert_shape(shared, (3,))
    chex.assert_trees_all_close(shared, repeated, rtol=1e-6, strict=True)
    if either:
        np.testing.assert_allclose(low, swapped[0], rtol=1e-6)


# Two sizes are equal: what a shape is taken for.


@pytest.mark.full
def test_masks_of_square_arrays_are_of_examples():
    """JAX and optax would broadcast ``[n]`` over the classes."""
    where = np.array([True, False, True])
    by_rows, by_columns = (np.broadcast_to(x, (3, 3)) for x in (where[:, None], where[None, :]))

    kinds = {"labels": np.arange(3), "target_indices": np.tile(np.arange(3), (3, 1))}
    kinds |= {"target_log_probs": np.full((3, 3), -1.5)}

    def masked(case):
        others = [kinds.get(kind, _SQUARE.T) for kind in case.kinds[1:]]
        return [case.call(_SQUARE, *others, where=x) for x in (where, by_rows, by_columns)]

    results = fast_jit(lambda: [masked(case) for case in BARE if case.has_classes])
    for by_example, by_row, by_column in results():
        chex.assert_trees_all_equal(by_example, by_row, strict=True)
        assert not np.array_equal(by_example, by_column)


def test_what_square_logits_share():
    numbers, ones = np.float32([1.0, 2.0, 4.0]), np.ones((3, 3))
    per_class = np.broadcast_to(numbers, (3, 3))

    @fast_jit
    def pairs(logits):
        binary, soft = jxent.sigmoid_binary_cross_entropy, jxent.softmax_cross_entropy
        integer = jxent.softmax_cross_entropy_with_integer_labels
        return (
            [binary(logits, ones, pos_weight=weight) for weight in (numbers, per_class)],
            [soft(logits, numbers), soft(logits, per_class)],
            [integer(logits, [0, 1, 1]), soft(logits, np.eye(3)[[0, 1, 1]])],
        )

    for shared, written_out in pairs(_SQUARE):
        chex.assert_trees_all_close(shared, written_out, rtol=1e-6, strict=True)


def test_logsumexp_reduces_the_last_axis():
    assert jax.eval_shape(jxent.logsumexp, _SQUARE).shape == (3,)
    assert jax.eval_shape(jax.nn.logsumexp, _SQUARE).shape == ()
    over_all = [jxent.logsumexp(_SQUARE, axis=None), fast_jit(jax.nn.logsumexp)(_SQUARE)]
    np.testing.assert_allclose(*over_all, rtol=1e-6)


@pytest.mark.parametrize("axis", [-1, 0, (0, 2), (2, 0), None, (1,)])
def test_logsumexp_that_keeps_the_axes(axis):
    z = np.linspace(-3, 3, 24, dtype=np.float32).reshape(2, 3, 4)
    kept = jxent.logsumexp(z, axis, keepdims=True)
    chex.assert_trees_all_close(
        kept, jax.nn.logsumexp(z, axis, keepdims=True), rtol=1e-6, strict=True
    )
    np.testing.assert_array_equal(jnp.squeeze(kept, axis), jxent.logsumexp(z, axis))
