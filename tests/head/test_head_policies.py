"""What counts for losses of linear heads, sizes at the edge, and errors, word for word."""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jxent
from support import heads
from support.cases import fast_jit, no_leaks
from support.tiers import quick

linear_loss = jxent.linear_softmax_cross_entropy
integer_loss = jxent.softmax_cross_entropy_with_integer_labels
X, W = np.linspace(-1, 1, 15, dtype=np.float32).reshape(5, 3), np.eye(3, 4, dtype=np.float32)
SEQUENCES = np.stack([X, X])


def linear(**changes):
    return jxent.LinearLogits(**({"inputs": X, "kernel": W} | changes))


# What counts.


def test_nothing_counts():
    labels = np.full(5, heads.IGNORED)
    loss = functools.partial(linear_loss, ignore_index=heads.IGNORED, chunk_size=2)
    results = fast_jit(jax.value_and_grad(lambda w: loss(X, w, labels, weights=X[:, 0] + 2)))(W)
    chex.assert_trees_all_equal(results, (np.float32(0), np.zeros_like(W)), strict=True)


def test_out_of_range_and_masked_labels():
    options = {"class_mask": np.arange(4) > 0, "reduction": "none", "chunk_size": 2}
    loss = functools.partial(linear_loss, **options)
    losses = fast_jit(loss)(np.ones((3, 3), "f"), np.ones((3, 4), "f"), np.array([0, 1, 4]))
    np.testing.assert_allclose(losses, [np.inf, np.log(3), np.nan], rtol=1e-6)


def test_labels_of_8_bits_beside_300_classes():
    """They are numbers of classes as any others, and 44 is not 300."""
    rng, labels = np.random.default_rng(0), np.array([0, 44, 250, 255])
    x, w = (rng.normal(size=size).astype(np.float32) for size in ((4, 3), (3, 300)))
    log_p = np.log(np.float32([[0.5, 0.25]] * 4))

    @fast_jit
    def losses(labels):
        indices = jnp.stack([labels, jnp.full_like(labels, 7)], axis=-1)
        divergence = jxent.chunked(jxent.softmax_kl_divergence_with_top_k_targets, chunk_size=2)
        return divergence(jxent.LinearLogits(x, w), indices, log_p), [
            linear_loss(
                x, w, labels, ignore_index=ignored, class_weights=np.linspace(1, 2, 300),
                reduction="none", chunk_size=2,
            )
            for ignored in (255, 300)
        ]  # fmt: skip

    results, expected = (losses(labels.astype(dtype)) for dtype in (np.uint8, np.int32))
    chex.assert_tree_all_finite(results)
    chex.assert_trees_all_close(results, expected, rtol=1e-6, strict=True)
    assert results[1][0][3] == 0
    assert results[1][1][3] > 0


def test_a_negative_weight_that_is_traced():
    """It cannot raise: a mean is NaN with its gradients, unless the weight does not count."""
    x, w = np.ones((4, 2), np.float32), np.ones((2, 7), np.float32)
    labels, mask = np.array([0, heads.IGNORED, 1, 2]), np.arange(7) != 5

    def of_head(x, w, weights, class_weights):
        return linear_loss(
            x, w, labels, weights=weights, class_weights=class_weights, class_mask=mask,
            ignore_index=heads.IGNORED, chunk_size=2,
        )  # fmt: skip

    def of_policy(x, w, weights, _):
        policy = jxent.chunked(jxent.softmax_entropy, reduction="mean", chunk_size=2)
        return policy(jxent.LinearLogits(x, w), weights=weights, where=labels != heads.IGNORED)

    @fast_jit
    def program(*args):
        results = [jax.value_and_grad(f, (0, 1))(*args) for f in (of_head, of_policy)]
        return [(value, to_x, to_w[:, mask]) for value, (to_x, to_w) in results]

    for examples, classes, expected in [
        ([0], [], [True, True]),
        ([1], [], [False, False]),
        ([], [3], [True, False]),
        ([], [5], [False, False]),
    ]:
        weights, class_weights = np.ones(4, np.float32), np.ones(7, np.float32)
        weights[examples], class_weights[classes] = -1, -1
        for results, is_nan in zip(program(x, w, weights, class_weights), expected, strict=True):
            for got in results:
                assert np.all(np.isnan(got)) if is_nan else np.all(np.isfinite(got))


def test_what_does_not_count_contributes_nothing():
    """NaN in inputs and arguments of such examples reaches no gradient, and no output."""
    where = np.arange(5) % 2 == 0
    x = np.where(where[:, None], X, np.float32(np.nan))
    weights = np.where(where, 1.5, np.inf).astype(np.float32)

    def total(x, w, weights, t):
        def loss(z, weights):
            losses = weights * jxent.logsumexp(z * t)
            return losses, (losses, losses > 0)

        chunked = jxent.chunked(loss, reduction="mean", has_aux=True, chunk_size=2)
        return chunked(jxent.LinearLogits(x, w), weights, where=where)

    def plain(x, w, weights, t):
        return jnp.mean(weights * jxent.logsumexp((x @ w) * t))

    t, positions = np.float32(0.5), (0, 1, 2, 3)
    (value, aux), gradients = fast_jit(jax.value_and_grad(total, positions, has_aux=True))(
        x, W, weights, t
    )
    expected = fast_jit(jax.value_and_grad(plain, positions))(X[where], W, weights[where], t)
    of_examples = jax.tree.map(np.asarray, (*aux, gradients[0], gradients[2]))
    assert not any(np.any(array[~where]) for array in of_examples)
    chex.assert_type(aux[1], bool)
    counted = of_examples[2][where], gradients[1], of_examples[3][where], gradients[3]
    chex.assert_trees_all_close(value, expected[0], rtol=1e-6, strict=True)
    chex.assert_trees_all_close(counted, expected[1], rtol=1e-5, strict=True)


def test_the_gradient_of_a_weight_of_zero():
    """It is the loss; without it the example is skipped."""
    weights = np.float32([1, 0, 2, 0, 0])

    def loss(z):
        entropy = jxent.softmax_entropy(z)
        return entropy, entropy

    def total(weights):
        function = jxent.chunked(loss, reduction="sum", has_aux=True, chunk_size=2)
        return function(linear(), weights=weights)

    (value, aux), gradient = fast_jit(jax.value_and_grad(total, has_aux=True))(weights)
    # The program without gradients returns the same.
    *without, entropies = fast_jit(lambda w: (*total(w), jxent.softmax_entropy(X @ W)))(weights)
    chex.assert_trees_all_close(gradient, entropies, rtol=1e-6, strict=True)
    np.testing.assert_allclose(value, np.vdot(weights, entropies), rtol=1e-6)
    chex.assert_trees_all_close([value, aux], without, rtol=1e-6, strict=True)
    np.testing.assert_array_equal(np.asarray(aux) != 0, weights != 0)
    # So does the program for one of several, which knows the losses alone.
    mapped = jax.tree.map(lambda x: x[0], fast_jit(jax.vmap(total))(weights[None]))
    chex.assert_trees_all_close(list(mapped), without, rtol=1e-6, strict=True)


@pytest.mark.parametrize("reduction", quick(["mean", "sum", "none"]))
def test_the_gradients_as_functions_of_weights_of_zero(reduction):
    """Which weights to give examples is learned from these, beginning at 0."""
    y, weights = np.array([0, 1, 2, 1, 0]), np.array([1.0, 0.0, 2.0, 0.0, 0.0])
    x, w = np.float64(X), np.float64(W)
    options = {"reduction": reduction, "chunk_size": 2}

    def fused(x, weights):
        return jnp.sum(linear_loss(x, w, y, weights=weights, **options))

    def plain(x, weights):
        losses = jxent.softmax_cross_entropy_with_integer_labels(x @ w, y)
        return jnp.vdot(weights, losses) / (jnp.sum(weights) if reduction == "mean" else 1)

    def mixed(loss):
        of_x, of_weights = jax.grad(loss, 0), jax.grad(loss, 1)
        curvature = lambda x, weights: jax.jvp(lambda x: of_x(x, weights), (x,), (x,))[1]  # noqa: E731
        functions = [(of_x, 1), (of_weights, 0), (curvature, 1)]
        return [mode(f, i) for f, i in functions for mode in (jax.jacfwd, jax.jacrev)]

    with jax.enable_x64(True):
        found, expected = (
            fast_jit(lambda *a, loss=loss: [f(*a) for f in mixed(loss)])(x, weights)
            for loss in (fused, plain)
        )
    chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bad", quick([np.nan, np.inf, -1.0]))
def test_what_a_weight_of_zero_multiplies(bad):
    """Neither a class weight nor a count that is impossible reaches the mean."""
    y, weights = np.array([0, 1, 2, 1, 0]), np.float32([1, 0, 2, 0, 0.5])
    class_weights = np.ones(W.shape[1], np.float32)

    def of_counts(z, y, counts):
        return jxent.softmax_cross_entropy_with_integer_labels(z, y), counts

    def mean(counts):
        function = jxent.chunked(of_counts, reduction="mean", has_counts=True, chunk_size=2)
        return function(linear(), y, counts, weights=weights)

    def of_class(weight):
        weight = class_weights * np.where(np.arange(class_weights.size) == 1, weight, 1)
        return linear_loss(X, W, y, weights=weights, class_weights=weight, chunk_size=2)

    counts = np.where(weights == 0, bad, 1).astype(np.float32)
    expected = linear_loss(X, W, y, weights=weights)
    for found in (mean(counts), jax.vmap(mean)(counts[None])[0]):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    if bad > 0 or np.isnan(bad):  # A negative weight of a class makes any mean NaN.
        np.testing.assert_allclose(of_class(bad), expected, rtol=1e-6)


def test_a_frozen_kernel_that_is_not_finite():
    """The loss is NaN, and its gradient, but 0 without weight."""
    kernel = np.float32([[np.inf, np.inf, 0.0]])
    weights = np.float32([0, 1, 0])

    def total(x):
        options = {"weights": weights, "reduction": "none", "chunk_size": 1}
        return jnp.sum(linear_loss(x, kernel, np.zeros(3, int), **options) * weights)

    gradient = fast_jit(jax.grad(total))(np.ones((3, 1), "f"))
    np.testing.assert_array_equal(gradient[:, 0], [0, np.nan, 0])


def test_one_class_is_certain():
    """Its loss is the z-loss alone, whatever the logit."""
    x, w = np.float32([[1.0], [30.0]]), np.float32([[2.0]])

    def loss(w):
        options = {"z_loss": 0.25, "label_smoothing": 0.5, "reduction": "sum", "chunk_size": 1}
        return linear_loss(x, w, [0, 0], **options)

    value, gradient = fast_jit(jax.value_and_grad(loss))(w)
    np.testing.assert_allclose(value, 0.25 * (4 + 3600))
    np.testing.assert_allclose(gradient, [[0.5 * (1 * 2 + 30 * 60)]], rtol=1e-6)


# Sizes and dtypes.

# The examples, the features and the classes.
EMPTY = [((5,), 0, 7), ((0,), 3, 7), ((2, 0), 3, 7), ((0,), 0, 7), ((5,), 0, 1), ((0,), 3, 1)]


def empty_head(number):
    """Every other one has options."""
    examples, features, classes = EMPTY[number]
    a = {"inputs": np.ones((*examples, features)), "kernel": np.ones((features, classes))}
    options = {"bias": np.linspace(-1, 2, classes), "weights": np.full(examples, 2.0)}
    return a | {"labels": np.zeros(examples, int)} | (options if number % 2 else {})


def flat_head(a, reduction):
    """The plain head, whose examples have one dimension."""
    examples, flat = a["labels"].shape, dict(a)
    for name in {"inputs", "labels", "weights"} & set(a):
        flat[name] = a[name].reshape(math.prod(examples), *a[name].shape[len(examples) :])
    losses = heads.plain_head(flat, reduction)
    return losses.reshape(examples) if reduction == "none" else losses


def test_empty_sizes():
    """No feature makes every logit its bias, no example no loss; the gradients have the shapes."""
    fused = functools.partial(heads.fused_head, chunk_size=2)

    def of_both(number, a):
        reduction = ("mean", "sum", "none")[number % 3]
        ways = [functools.partial(head, reduction=reduction) for head in (fused, flat_head)]
        return [heads.value_and_gradients(way, a) for way in ways]

    with jax.enable_x64(True):
        every = [empty_head(number) for number in range(len(EMPTY))]
        for both in fast_jit(lambda every: list(map(of_both, range(len(EMPTY)), every)))(every):
            chex.assert_trees_all_close(*both, rtol=1e-12, atol=1e-12, strict=True)
            assert not np.any(both[0]["kernel"])


def test_shapes_of_examples():
    """In one program, with a mask and without; beside them the loss of the head itself."""
    shapes = [(), (0,), (2, 0), (2, 3)]
    masks = [np.arange(np.prod(shape, dtype=int)).reshape(shape) != 1 for shape in shapes]
    rows = [
        (shape, where) for shape, mask in zip(shapes, masks, strict=True) for where in (None, mask)
    ]

    def loss(z, y):
        return {"loss": jxent.softmax_entropy(z), "label": y[..., 0]}

    def both(row, x):
        shape, where = row
        logits = jxent.LinearLogits(x, W)
        assert logits.shape[:-1] == shape
        mean = jxent.chunked(jxent.softmax_entropy, reduction="mean", chunk_size=2)
        return (
            jxent.chunked(loss, chunk_size=2)(logits, np.ones((*shape, 2), np.int32), where=where),
            mean(logits, where=where),
            [
                linear_loss(x, W, np.zeros(shape, int), reduction=reduction, chunk_size=4)
                for reduction in ("none", "sum")
            ],
        )

    inputs = [np.ones((*shape, 3), np.float32) for shape, _ in rows]
    results = fast_jit(lambda inputs: list(map(both, rows, inputs)))(inputs)
    p = np.exp([1, 1, 1, 0]) / np.sum(np.exp([1, 1, 1, 0]))
    entropy = -np.sum(p * np.log(p))
    for (shape, where), (out, mean, (losses, loss)) in zip(rows, results, strict=True):
        chex.assert_shape([out["loss"], out["label"]], shape)
        right = entropy if where is None else np.where(where, entropy, 0)
        np.testing.assert_allclose(out["loss"], right, rtol=1e-6, err_msg=str(shape))
        chex.assert_type(out["label"], np.int32)
        right = entropy if np.prod(shape) else 0
        np.testing.assert_allclose(mean, right, rtol=1e-6, err_msg=str(shape))
        chex.assert_shape([losses, loss], [shape, ()])
        np.testing.assert_allclose(losses, -np.log(p[0]), rtol=1e-6, err_msg=str(shape))
        np.testing.assert_allclose(loss, -np.prod(shape) * np.log(p[0]), rtol=1e-6)


@pytest.mark.parametrize("dtype", quick([jnp.bfloat16, jnp.float16]))
def test_low_precision(dtype):
    """The loss gets float32; gradients have their argument's dtype, those of closures too."""
    x, w, t, weights = (np.asarray(x).astype(dtype) for x in (X, W, 0.75, np.linspace(0.5, 1.5, 5)))

    def losses(make, x, w, t, weights):
        def loss(z, weights):
            assert z.dtype == jnp.float32
            return weights.astype(jnp.float32) * jxent.softmax_entropy(z * t.astype(jnp.float32))

        return make(loss)(x, w, weights)

    def chunked(loss):
        function = jxent.chunked(loss, reduction="sum", chunk_size=2)
        return lambda x, w, weights: function(jxent.LinearLogits(x, w), weights)

    def dense(loss):
        product = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
        return lambda x, w, weights: jnp.sum(loss(product(x, w), weights))

    both = [
        jax.value_and_grad(functools.partial(losses, f), (0, 1, 2, 3)) for f in (chunked, dense)
    ]
    results = fast_jit(lambda *args: [f(*args) for f in both])(x, w, t, weights)
    chex.assert_trees_all_equal_shapes_and_dtypes(*results)
    of_chunks, expected = jax.tree.map(np.float64, results)
    chex.assert_trees_all_close(of_chunks, expected, rtol=2**-6, atol=2**-9, strict=True)


def test_a_loss_that_is_less_precise_than_its_logits():
    with jax.enable_x64(True):
        logits = jxent.LinearLogits(X.astype(np.float64), W.astype(np.float64))

        def loss(z):
            return jxent.softmax_entropy(z).astype(jnp.float16)

        def total(logits, weights):
            return jxent.chunked(loss, reduction="mean", chunk_size=2)(logits, weights=weights)

        gradients = jax.eval_shape(jax.grad(total, (0, 1)), logits, np.linspace(0.5, 1.5, 5))
        assert {x.dtype for x in jax.tree.leaves(gradients)} == {np.dtype(np.float64)}


def test_chunk_size_of_any_integer_type():
    """They make the same program."""

    def lowered(size):
        loss = functools.partial(linear_loss, X, W, np.zeros(5, int), chunk_size=size)
        return jax.jit(loss).lower().as_text()

    assert len(set(map(lowered, (3, np.uint8(3), jnp.array(3))))) == 1
    assert lowered(3) != lowered(2)


def test_without_jit_and_without_leaks():
    """What a loss closes over leaks neither with `jax_disable_jit` nor under a check for leaks."""

    def total(t):
        function = jxent.chunked(lambda z: jnp.sum(jnp.tanh(z * t), axis=-1), chunk_size=2)
        return jnp.sum(function(linear(inputs=X[1:]), where=X[1:, 0] > -0.5))

    z = (X @ W)[2:]
    expected = np.sum(z * (1 - np.tanh(0.5 * z) ** 2))
    with jax.disable_jit():
        np.testing.assert_allclose(jax.grad(total)(0.5), expected, rtol=1e-5)
    with no_leaks():
        jax.make_jaxpr(jax.grad(total))(0.5)
        jax.make_jaxpr(jax.vmap(lambda t: jax.jvp(total, (t,), (t,))))(np.ones(2, "f"))


@pytest.mark.full
def test_exported_with_a_symbolic_batch():
    """Fewer examples than a chunk has, and more; with and without a mask."""

    def loss(x, labels, where):
        def policy(z, y):
            return integer_loss(z, y)

        function = jxent.chunked(policy, reduction="mean", chunk_size=4)
        logits = jxent.LinearLogits(x, W)
        return jnp.sum(function(logits, labels)) + jnp.sum(function(logits, labels, where=where))

    def exact(x, labels, where):
        value, to_x, e = 0, 0, np.exp(np.float64(x @ W))
        p, is_label = e / e.sum(-1, keepdims=True), labels[:, None] == np.arange(4)
        for counted in (np.ones(len(x)), where):
            share = counted / np.sum(counted)
            value -= share @ np.log(p[is_label])
            to_x += share[:, None] * ((p - is_label) @ W.T)
        return value, to_x

    def arrays(n):
        x = np.cos(np.arange(3 * n)).reshape(n, 3).astype(np.float32)
        return x, np.arange(n, dtype=np.int32) % 4, np.arange(n) % 3 != 1

    specs = export.symbolic_args_specs(arrays(2), ("n, 3", "n", "n"))
    program = export.export(jax.jit(jax.value_and_grad(loss)))(*specs)
    for n in (1, 4, 9):
        for got, right in zip(fast_jit(program.call)(*arrays(n)), exact(*arrays(n)), strict=True):
            np.testing.assert_allclose(got, right, rtol=1e-5, atol=1e-6)


def test_a_pytree_of_axes():
    """`vmap` and `grad` take `LinearLogits` as any other tree."""
    function = jxent.chunked(lambda z: (jxent.softmax_entropy(z), jnp.argmax(z, axis=-1)))
    axes = jxent.LinearLogits(0, None, scale=0)
    logits = jxent.LinearLogits(np.stack([X, 2 * X]), W, scale=np.float32([0.5, 2]))
    whole = logits.scale[:, None, None] * (logits.inputs @ W)
    (entropy, likeliest), expected = fast_jit(
        lambda logits: (jax.vmap(function, in_axes=(axes,))(logits), jxent.softmax_entropy(whole))
    )(logits)
    chex.assert_trees_all_close(entropy, expected, rtol=1e-6, strict=True)
    np.testing.assert_array_equal(likeliest, np.argmax(whole, axis=-1))


# Mistakes.

OK = jxent.softmax_entropy
IN_THE_LOSS = "what is the same for all examples belongs into the loss"


@pytest.mark.parametrize(
    ("inputs", "argument", "where", "remedy"),
    [
        (X, {"a": [X[:4]]}, "['a'][0]", f": {IN_THE_LOSS}"),
        (X, np.float32(1), "", f": {IN_THE_LOSS}"),
        (X[None], X[0, :1], "", ": write jnp.broadcast_to(x[:, None], (1, 5))"),
        (SEQUENCES, X[0, :1], "", f": {IN_THE_LOSS}"),
        (SEQUENCES, X[:2, 0], "", ": write jnp.broadcast_to(x[:, None], (2, 5))"),
        (SEQUENCES, X[:, 0], "", ": write jnp.broadcast_to(x[None, :], (2, 5))"),
        (SEQUENCES, X[:2, :1], "", ": write jnp.broadcast_to(x, (2, 5))"),
        (SEQUENCES[None], X[None, :2, 0], "",
         ": write jnp.broadcast_to(x[:, :, None], (1, 2, 5))"),
        (SEQUENCES, np.ones((2, 6), int), "", ""),
    ],
)  # fmt: skip
def test_mistakes_of_shape(inputs, argument, where, remedy):
    (leaf,) = jax.tree.leaves(argument)
    message = (
        f"argument 1{where} must begin with the shape of the examples {inputs.shape[:-1]},"
        f" got shape {np.shape(leaf)}{remedy}"
    )
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}(\n|$)"):
        jxent.chunked(OK, chunk_size=2)(linear(inputs=inputs), argument)


@pytest.mark.parametrize(
    ("options", "args", "call", "error", "message"),
    [
        ({"reduction": "avg"}, (), {}, ValueError,
         "reduction must be 'mean', 'sum' or 'none', got 'avg'"),
        ({"chunk_size": 0}, (), {}, ValueError, "chunk_size must be at least 1, got 0"),
        ({}, (), {}, TypeError, "what chunked returns must be given arguments, got none"),
        ({}, (np.arange(5),), {}, TypeError,
         "argument 0, without a LinearLogits, must have a floating-point dtype, got int32"),
        ({}, (linear(kernel=W[:2]),), {}, ValueError,
         "inputs and kernel must have the shapes [..., features] and [features, classes], got"
         " (5, 3) and (2, 4)"),
        ({}, (linear(kernel=W.T),), {}, ValueError,
         "inputs and kernel must have the shapes [..., features] and [features, classes], got"
         " (5, 3) and (4, 3): did you mean kernel.T?"),
        ({}, (linear(kernel=W[:, :0]),), {}, ValueError,
         "kernel must have at least one class, got shape (3, 0)"),
        ({}, (linear(bias=np.ones(3, np.float32)),), {}, ValueError,
         "bias must have one weight per class of inputs @ kernel, shape (4,), got shape (3,)"),
        ({}, (linear(softcap=0.0),), {}, ValueError,
         "softcap must be positive, got 0.0; None switches it off"),
        ({}, (linear(scale=np.inf),), {}, ValueError,
         "scale must be a finite number, got inf; None switches it off"),
        ({}, (linear(class_mask=np.ones(4)),), {}, TypeError,
         "class_mask must be boolean, got dtype float32"),
        ({}, (linear(), linear(inputs=X[:4])), {}, ValueError,
         "argument 1 must have the examples of argument 0, (5,), got (4,)"),
        ({}, (linear(),), {"where": np.ones(4, bool)}, ValueError,
         "where must have the shape of the examples (5,), got shape (4,)"),
        ({}, (linear(),), {"where": np.ones(5)}, TypeError,
         "where must be boolean, got dtype float32"),
        ({}, (linear(),), {"weights": np.ones(5)}, ValueError,
         "weights must come with the reduction 'mean' or 'sum': without one, multiply what comes"
         " back by them"),
        ({"reduction": "mean"}, (linear(),), {"weights": -np.ones(5)}, ValueError,
         "weights must not be negative, got -1.0: a mean divides by their sum, which may vanish."
         " Write reduction='sum' and divide by a number, or reduction='none'"),
        ({"loss": lambda z: jnp.mean(OK(z))}, (linear(),), {}, ValueError,
         "loss must return arrays of the 2 examples of a chunk, shape (2, ...), got shape ()"),
        ({"loss": lambda z: {"log": z.T}}, (linear(),), {}, ValueError,
         "loss must return arrays of the 2 examples of a chunk, shape (2, ...), got shape (4, 2) at"
         " ['log']"),
        ({"loss": lambda z: z, "reduction": "sum"}, (linear(),), {}, ValueError,
         "loss must return one number for each of the 2 examples of a chunk, shape (2,), got shape"
         " (2, 4)"),
        ({"loss": lambda z: None}, (linear(),), {}, TypeError,
         "loss must return at least one array, got nothing"),
        ({"loss": lambda z: (object(),)}, (linear(),), {}, TypeError,
         "what loss returns at [0] must be an array, got object"),
        ({"loss": lambda z: (OK(z), OK(z)), "reduction": "sum"}, (linear(),), {}, TypeError,
         "loss must return one array to be reduced, got tuple of 2: has_aux=True takes (losses,"
         " aux)"),
        ({"loss": lambda z: {"a": OK(z), "b": OK(z)}, "reduction": "sum"}, (linear(),), {},
         TypeError, "loss must return one array to be reduced, got dict of 2"),
        ({"loss": lambda z: jnp.argmax(z, -1), "reduction": "sum"}, (linear(),), {}, TypeError,
         "loss must return floating-point numbers to be reduced, got int32"),
        ({"has_aux": True}, (linear(),), {}, TypeError,
         "loss must return a pair (losses, aux) where has_aux is True, got an array"),
        ({"has_counts": True, "reduction": "mean"}, (linear(),), {}, TypeError,
         "loss must return a pair (losses, counts) where has_counts is True, got an array"),
        ({"has_counts": True}, (linear(),), {}, ValueError,
         "has_counts must come with the reduction 'mean', got 'none'"),
        ({"loss": lambda z: (OK(z), z[0]), "has_aux": True}, (linear(),), {}, ValueError,
         "loss must return arrays of the 2 examples of a chunk, shape (2, ...), got shape (4,) at"
         " aux"),
        ({"loss": lambda z: (OK(z), z), "has_counts": True, "reduction": "mean"}, (linear(),), {},
         ValueError, "loss must return one number for each of the 2 examples of a chunk, shape"
         " (2,), got shape (2, 4) at counts"),
    ],
)  # fmt: skip
def test_mistakes(options, args, call, error, message):
    options = {"loss": OK, "chunk_size": 2} | options
    with pytest.raises(error, match=rf"^{re.escape(message)}(\n|$)"):
        jxent.chunked(**options)(*args, **call)
