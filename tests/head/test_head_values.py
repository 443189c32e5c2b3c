"""Losses over linear heads: the values and gradients of the same losses of whole logits."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support import heads
from support.cases import CASES, fast_jit
from support.tiers import quick, quick_rows

# The loss of a linear head, with its options.


@functools.cache
def both_heads(chunk_size, reduction="mean"):
    """The fused head and the plain one, as one program for all arrays of the same names."""
    fused = functools.partial(heads.fused_head, chunk_size=chunk_size, reduction=reduction)
    plain = functools.partial(heads.plain_head, reduction=reduction)
    return fast_jit(lambda arrays: [heads.value_and_gradients(f, arrays) for f in (fused, plain)])


def check(arrays, reduction="mean", chunk_size=8, tolerance=1e-12):
    with jax.enable_x64(True):
        heads.assert_close(*both_heads(chunk_size, reduction)(arrays), tolerance)


# Each of any two options is given without the other one, except that a class mask, class weights
# and label smoothing come with the z-loss.
SOME = [
    ("bias", "weights", "logit_softcap"),
    ("weights", "class_mask", "label_smoothing", "z_loss"),
    ("bias", "class_mask", "class_weights", "z_loss"),
    ("class_weights", "label_smoothing", "logit_softcap", "z_loss"),
]


@pytest.mark.parametrize(
    ("options", "reduction"),
    quick_rows([((), "mean"), *zip(SOME, ("sum", "none", "sum", "sum"), strict=True)], 0),
)
def test_options_alone(options, reduction):
    """None, or some without the others, which are no arrays of the program then."""
    given = *heads.BASE, *options
    check({k: v for k, v in heads.arrays_of_head().items() if k in given}, reduction)


def test_means_with_options_in_pairs_and_together():
    for chosen in [*itertools.combinations(heads.OPTIONS, 2), heads.OPTIONS]:
        check(heads.with_options(chosen))


def head(examples, features, classes, dtype=np.float64):
    """Random numbers and labels."""
    rng = np.random.default_rng(4)
    return {
        "inputs": rng.normal(size=(examples, features)).astype(dtype),
        "kernel": rng.normal(size=(features, classes)).astype(dtype),
        "labels": rng.integers(0, classes, examples),
    }


@pytest.mark.parametrize(
    ("classes", "chunk_size"), quick_rows([(33, 23), (33, 16), (33, None), (33, 1), (1, 22)], 1)
)
def test_scales_offsets_and_chunks(classes, chunk_size):
    """Whatever the logits' scale and offset, and however the rows are cut."""
    arrays = head(23, 6, classes)
    for scale, offset in itertools.product([1e-2, 1.0, 30.0], [0.0, 1e4]):
        changed = {"kernel": scale * arrays["kernel"], "bias": np.full(classes, offset)}
        check(arrays | changed, chunk_size=chunk_size, tolerance=1e-12 + 1e-15 * offset)


@pytest.mark.parametrize("wanted", [(0, 1), 0], ids=["both", "a frozen kernel"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_chunks_that_are_not_full(reduction, wanted):
    """What fills the last one does not count again. Cotangents differ, in each direction."""
    x, w, y = head(7, 3, 5).values()

    def results(loss):
        def total(x, w):
            return jnp.sum(jnp.cos(loss(x, w)))

        gradient = jax.value_and_grad(total, wanted)
        return jax.jvp(lambda x: gradient(x, w), (x,), (jnp.sin(x),))

    def of_head(x, w):
        options = {"chunk_size": 3, "precision": "highest", "reduction": reduction}
        return jxent.linear_softmax_cross_entropy(x, w, y, **options)

    def dense(x, w):
        losses = jxent.softmax_cross_entropy_with_integer_labels(x @ w, y)
        return losses if reduction == "none" else jnp.mean(losses)

    with jax.enable_x64(True):
        found, expected = fast_jit(lambda: (results(of_head), results(dense)))()
    chex.assert_trees_all_close(found, expected, rtol=1e-12, strict=True)


@pytest.mark.full
def test_float32_against_float64():
    arrays = head(64, 32, 50_257, np.float32)
    fused, _ = both_heads(16)(arrays)
    chex.assert_type(list(fused.values()), np.float32)
    with jax.enable_x64(True):
        double = {k: v.astype(np.float64) if k != "labels" else v for k, v in arrays.items()}
        plain = fast_jit(functools.partial(heads.value_and_gradients, heads.plain_head))(double)
    for name, bound in (("value", 1e-6), ("inputs", 2e-6), ("kernel", 2e-6)):
        x, y = np.asarray(plain[name]), np.asarray(fused[name], np.float64)
        assert np.linalg.norm(x - y) <= bound * np.linalg.norm(x), name


@pytest.mark.parametrize(
    ("dtype", "reduction"), quick_rows([(jnp.bfloat16, "mean"), (jnp.float16, "none")], 0)
)
def test_low_precision(dtype, reduction):
    """Each entry of a gradient within 2^-8 of the sum of its absolute terms."""
    arrays = head(23, 6, 41, dtype)
    fused = functools.partial(heads.fused_head, chunk_size=8, reduction=reduction)
    found = fast_jit(functools.partial(heads.value_and_gradients, fused))(arrays)
    chex.assert_type([found[k] for k in ("value", *heads.BASE[:2])], [np.float32, dtype, dtype])
    x, w = (np.asarray(arrays[k], np.float64) for k in ("inputs", "kernel"))
    e = np.exp(x @ w)
    p = e / e.sum(-1, keepdims=True)
    p[np.arange(23), arrays["labels"]] -= 1
    share = heads.cotangents(23 if reduction == "none" else 1)[:, None]
    p *= np.asarray(share) / (1 if reduction == "none" else 23)
    for name, gradient, terms in (
        ("inputs", p @ w.T, abs(p) @ abs(w.T)),
        ("kernel", x.T @ p, abs(x.T) @ abs(p)),
    ):
        assert np.all(np.abs(np.asarray(found[name], np.float64) - gradient) <= 2**-8 * terms)


def test_the_loss_scale_reaches_a_gradient_before_it_is_rounded():
    """Float16 gradients of 1e-9 survive a scale of 2^16."""
    x, w = np.ones((1, 2), np.float16), np.float16([[21, 0], [0, 0]])

    def loss(w):
        return 2.0**16 * jxent.linear_softmax_cross_entropy(x, w, [0])

    gradient = np.asarray(fast_jit(jax.grad(loss))(w), np.float64)
    np.testing.assert_allclose(gradient[:, 1], 2.0**16 * np.exp(-21), rtol=1e-2)


# Any loss, over one head or two.

integer_loss = jxent.softmax_cross_entropy_with_integer_labels
EXAMPLES, CLASSES = 13, 7
LOSSES = [case for case in CASES if case.kinds[0] == "logits"]
QUICK = "softmax_cross_entropy_with_integer_labels-options"


def numbers():
    return heads.two_heads(EXAMPLES, CLASSES)


def of_whole_chunks():
    """The arrays of so many examples that no chunk is smaller than the others."""
    return {
        k: x[: EXAMPLES - 1] if np.shape(x)[:1] == (EXAMPLES,) else x for k, x in numbers().items()
    }


def linear(a):
    return jxent.LinearLogits(
        a["inputs"], a["kernel"], a["bias"], scale=a["scale"], softcap=a["softcap"]
    )


def other(a):
    return jxent.LinearLogits(a["other_inputs"], a["other_kernel"])


def chunked(loss, **options):
    return jxent.chunked(loss, **{"chunk_size": 4, "precision": "highest"} | options)


def assert_same(functions, arrays):
    """Values, and the gradients for every number, of two functions of the arrays by name."""
    with jax.enable_x64(True):
        both = fast_jit(lambda a: [heads.value_and_gradients(f, a) for f in functions])(arrays)
        chex.assert_trees_all_close(*both, rtol=1e-12, atol=1e-12, strict=True)


def that_counts(loss):
    """The loss, with every example counted."""

    def function(*args):
        losses = loss(*args)
        return losses, jnp.ones(losses.shape, bool)

    return function


def of_both(loss, call, **options):
    """The chunked loss of the arrays, and the plain one."""
    plain = heads.plain_chunked(loss, options.get("reduction", "none"))
    return [functools.partial(call, f) for f in (chunked(loss, **options), plain)]


# The losses with one reduction each, by turns: the other is made of the same chunks.
_ROWS = [(case, ("none", "mean")[i % 2]) for i, case in enumerate(LOSSES)]
_QUICK_ROWS = [i for i, (case, _) in enumerate(_ROWS) if str(case) == QUICK]


@pytest.mark.parametrize(("case", "reduction"), quick_rows(_ROWS, *_QUICK_ROWS), ids=str)
def test_every_loss_of_logits(case, reduction):
    def loss(*args):
        out = case.call(*args, *options)
        return out if out.ndim == 1 else jnp.sum(out, axis=-1)

    with jax.enable_x64(True):
        options = [
            jnp.linspace(0.5, 2, CLASSES) if np.ndim(x) else jnp.asarray(x, np.float64)
            for x in case.options.values()
        ]
    kinds = case.kinds[1:]

    def call(function, a):
        rest = [other(a) if kind == "target_logits" else a[kind] for kind in kinds]
        return function(linear(a), *rest)

    # A last chunk that is smaller is made by the same step, which one loss shows for all.
    arrays = numbers() if str(case) == QUICK else of_whole_chunks()
    plain = functools.partial(call, heads.plain_chunked(loss, reduction))
    if reduction == "mean":
        in_chunks = chunked(that_counts(loss), reduction="mean", has_counts=True)
    else:
        in_chunks = chunked(loss)
    assert_same([functools.partial(call, in_chunks), plain], arrays)


def policy(logits, labels):
    """A tree of everything that may come back."""
    nll = integer_loss(logits, labels)
    predicted = jnp.argmax(logits, axis=-1)
    return {
        "nll": nll,
        "entropy": jxent.softmax_entropy(logits),
        "correct": predicted == labels,
        "predicted": (predicted.astype(jnp.int16), 3 * labels),
        "half": nll.astype(jnp.float16),
    }


@pytest.mark.parametrize(
    ("chunk_size", "counted"),
    quick_rows(
        [(4, "some"), (13, "no mask"), (14, "all"), (1, "some"), (12, "none"), (None, "all")], 0
    ),
)
def test_trees_of_outputs(chunk_size, counted):
    of_all = np.ones(EXAMPLES, bool)
    where = {"some": numbers()["where"], "all": of_all, "none": ~of_all, "no mask": None}[counted]

    def call(function, a):
        return function(linear(a), a["labels"], where=where)

    assert_same(of_both(policy, call, chunk_size=chunk_size), numbers())


@pytest.mark.parametrize(
    ("chunk_size", "reduction"), quick_rows([(6, "mean"), (5, "sum"), (None, "mean")], 0)
)
def test_two_heads_weights_and_arguments(chunk_size, reduction):
    """A leaf of a tree of arguments is differentiated as any other; a weight may be 0."""

    def loss(student, both, teacher):
        return both["scale"] * jxent.softmax_kl_divergence(student, teacher) + both["more"][:, 0]

    def call(function, a):
        both = {"scale": a["advantages"], "more": a["distributions"]}
        return function(linear(a), both, other(a), where=a["where"], weights=a["weights"])

    arrays = of_whole_chunks()
    arrays["weights"] = arrays["weights"] * (np.arange(EXAMPLES - 1) % 5 != 1)
    assert_same(of_both(loss, call, reduction=reduction, chunk_size=chunk_size), arrays)


@pytest.mark.parametrize("reduction", quick(["none", "mean"]))
def test_what_a_loss_closes_over(reduction):
    """Numbers, class weights, masks, labels and keys, all of them traced; in functions inside."""

    def call(make, a):
        mask, shift = a["bias"] > -0.5, jnp.sum(a["labels"]) % CLASSES
        key = jax.random.key(jnp.sum(a["labels"]))

        def loss(logits, labels):
            @jax.jit
            def inner(z):
                return jax.lax.map(lambda row: row * a["softcap"], z / a["temperature"])

            noise = jax.random.uniform(key, (1, CLASSES), logits.dtype)
            where = jnp.broadcast_to(mask[None, :], logits.shape)
            return integer_loss(
                inner(logits + noise), (labels + shift) % CLASSES, where=where,
                label_smoothing=a["advantages"][0] ** 2 / 10, class_weights=jnp.exp(a["bias"]),
            )  # fmt: skip

        return make(loss)(jxent.LinearLogits(a["inputs"], a["kernel"]), a["labels"])

    finite = of_whole_chunks() | {"bias": np.abs(numbers()["bias"])}

    def in_chunks(loss):
        if reduction == "none":
            return chunked(loss)
        return chunked(that_counts(loss), reduction="mean", has_counts=True)

    plain = functools.partial(heads.plain_chunked, reduction=reduction)
    assert_same([functools.partial(call, make) for make in (in_chunks, plain)], finite)


def margin(logits, labels):
    """The user's own: a hinge between the label and the best of the others."""
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    is_label = jnp.arange(logits.shape[-1])[None, :] == labels[:, None]
    others = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return jax.nn.relu(1 + others - chosen[:, 0])


def test_modes():
    """Forward mode over reverse mode, under `vmap`, of two losses with a number closed over."""
    a = of_whole_chunks()

    def modes(make, floats):
        def objective(floats):
            def loss(logits, labels):
                losses = integer_loss(logits, labels)
                return losses / floats["scale"] + margin(logits, labels)

            logits = jxent.LinearLogits(**floats)
            losses = make(loss, reduction="mean")(logits, a["labels"], where=a["where"])
            return heads.total(losses)

        def along(floats):
            dots = jax.tree.map(jnp.cos, floats)
            return jax.jvp(jax.value_and_grad(objective), (floats,), (dots,))

        return jax.vmap(along)(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), floats))

    with jax.enable_x64(True):
        makes = chunked, heads.plain_chunked
        both = fast_jit(lambda floats: [modes(make, floats) for make in makes])
        results = both({k: a[k] for k in ("inputs", "kernel", "scale")})
        chex.assert_trees_all_close(*results, rtol=1e-10, atol=1e-11, strict=True)
