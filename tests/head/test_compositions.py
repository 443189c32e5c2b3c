"""Two transformations of JAX, one of the other, in both orders, of heads and of dense losses.

What JAX makes of a loop or of a condition depends on the order: in the gradient of a mapped loss
the tangents are mapped before they are transposed.
"""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import fast_jit
from support.heads import IGNORED, fused_head, plain_chunked, plain_head, total
from support.tiers import quick_rows

EXAMPLES, FEATURES, CLASSES = 5, 3, 4
HIGHEST = {"precision": "highest", "chunk_size": 2}


@functools.cache
def numbers():
    """Twice, to be mapped over: the second time nothing counts, and most is NaN."""
    rng = np.random.default_rng(0)
    where = np.array([[False, True, True, False, True], [False] * EXAMPLES])
    inputs, labels = rng.normal(size=(2, EXAMPLES, FEATURES)), rng.integers(CLASSES, size=(2, 5))
    return {
        "inputs": np.where(where[..., None], inputs, np.nan),
        "kernel": rng.normal(size=(2, FEATURES, CLASSES)),
        "bias": rng.normal(size=(2, CLASSES)),
        "logits": rng.normal(size=(2, EXAMPLES, CLASSES)),
        "target_logits": rng.normal(size=(2, EXAMPLES, CLASSES)),
        "labels": np.where(where, labels, IGNORED),
        "where": where,
        "weights": rng.uniform(0.5, 2, (2, EXAMPLES)),
        "temperature": rng.uniform(0.5, 2, 2),
        "label_smoothing": rng.uniform(0.1, 0.5, 2),
    }


def of_linear(reduction):
    names = ("inputs", "kernel", "labels", "bias", "weights", "label_smoothing")

    def head(a):
        return fused_head({k: a[k] for k in names}, reduction=reduction, chunk_size=2)

    def plain(a):
        return plain_head({k: a[k] for k in names}, reduction)

    return head, plain


def cross_entropy(z, labels):
    """As JAX itself has it, for labels that count."""
    of_label = jnp.take_along_axis(jax.nn.log_softmax(z), jnp.maximum(labels, 0)[:, None], axis=-1)
    return -of_label[:, 0]


def of_chunked(reduction):
    """With a result that does not depend on all arguments, and an argument that nobody needs."""

    def make(cross_entropy, a):
        def loss(z, labels, weights, _):
            losses = cross_entropy(z / a["temperature"], labels) / weights
            return (losses, z[:, 0] ** 2) if reduction == "none" else losses

        return loss

    def head(a):
        loss = make(jxent.softmax_cross_entropy_with_integer_labels, a)
        linear = jxent.LinearLogits(a["inputs"], a["kernel"], a["bias"])
        weights = jnp.where(a["where"], a["weights"], 0)
        chunked = jxent.chunked(loss, reduction=reduction, **HIGHEST)
        return chunked(linear, a["labels"], weights, a["weights"], where=a["where"])

    def plain(a):
        x = jnp.where(a["where"][:, None], a["inputs"], 0)
        linear = jxent.LinearLogits(x, a["kernel"], a["bias"])
        chunked = plain_chunked(make(cross_entropy, a), reduction)
        return chunked(linear, a["labels"], a["weights"], None, where=a["where"])

    return head, plain


def of_integer_labels():
    def dense(a):
        return jxent.softmax_cross_entropy_with_integer_labels(
            a["logits"], a["labels"], ignore_index=IGNORED, label_smoothing=a["label_smoothing"],
            class_weights=jnp.exp(a["bias"]), z_loss=a["temperature"],
        )  # fmt: skip

    def plain(a):
        options = {"label_smoothing": a["label_smoothing"], "class_weights": jnp.exp(a["bias"])}
        given = {"inputs": a["logits"], "kernel": jnp.eye(CLASSES), "labels": a["labels"]}
        return plain_head(given | options | {"z_loss": a["temperature"]}, "none")

    return dense, plain


def of_two_logits():
    def dense(a):
        return jxent.softmax_kl_divergence(a["logits"], a["target_logits"], where=a["where"])

    def plain(a):
        log_p, log_q = jax.nn.log_softmax(a["target_logits"]), jax.nn.log_softmax(a["logits"])
        return jnp.where(a["where"], jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1), 0)

    return dense, plain


def of_binary_labels():
    def dense(a):
        return jxent.sigmoid_binary_cross_entropy(
            a["logits"], jax.nn.sigmoid(a["target_logits"]), pos_weight=a["temperature"]
        )

    def plain(a):
        y, z = jax.nn.sigmoid(a["target_logits"]), a["logits"]
        return a["temperature"] * y * jax.nn.softplus(-z) + (1 - y) * jax.nn.softplus(z)

    return dense, plain


CASES = {
    **{f"linear-{reduction}": of_linear(reduction) for reduction in ("none", "sum", "mean")},
    **{f"chunked-{reduction}": of_chunked(reduction) for reduction in ("none", "sum", "mean")},
    "integer labels": of_integer_labels(),
    "two logits": of_two_logits(),
    "binary labels": of_binary_labels(),
}

OF_EXAMPLES = ("inputs", "labels", "where", "weights", "logits", "target_logits")
HEAD = ("inputs", "kernel", "bias", "weights", "temperature", "label_smoothing")
DENSE = ("logits", "target_logits", "bias", "temperature", "label_smoothing")
SHARED = ("kernel", "bias", "temperature", "label_smoothing")


def directions(tree):
    return jax.tree.map(lambda x: jnp.cos(jnp.arange(float(x.size))).reshape(x.shape), tree)


def grad(f):
    return lambda x, rest: jax.grad(lambda x: total(f(x, rest)))(x)


def vjp(f):
    def function(x, rest):
        out, pullback = jax.vjp(lambda x: f(x, rest), x)
        return out, pullback(directions(out))

    return function


def jvp(f):
    return lambda x, rest: jax.jvp(lambda x: f(x, rest), (x,), (directions(x),))


def linearize(f):
    def function(x, rest):
        out, along = jax.linearize(lambda x: f(x, rest), x)
        return out, along(directions(x))

    return function


def scan(f):
    def function(x, rest):
        def step(carry, scale):
            return carry, f(jax.tree.map(lambda x: scale * x, x), rest)

        return jax.lax.scan(step, None, jnp.array([1.0, 0.75]))[1]

    return function


def vmap(*unmapped):
    """Over the examples as they are and as they are not to count, and over all but some others."""

    def of(f):
        def function(x, rest):
            others = jax.tree.map(lambda x: x[1], numbers())
            axes = [{k: None if k in unmapped else 0 for k in given} for given in (x, rest)]
            both = [
                {k: v if k in unmapped else jnp.stack([v, others[k]]) for k, v in given.items()}
                for given in (x, rest)
            ]
            return jax.vmap(f, tuple(axes), axis_size=2)(*both)

        return function

    return of


TRANSFORMATIONS = {
    "grad": grad,
    "vjp": vjp,
    "jvp": jvp,
    "linearize": linearize,
    "vmap over all": vmap(),
    "vmap over examples": vmap(*SHARED),
    "vmap over shared": vmap(*OF_EXAMPLES),
    "vmap over weights": vmap(*SHARED, *(k for k in OF_EXAMPLES if k != "weights")),
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "scan": scan,
}


def in_both_orders(some, others):
    return [pair for x in some for y in others for pair in ((x, y), (y, x))]


_MAPPED = [name for name in TRANSFORMATIONS if name.startswith("vmap")]
_BRIEF = [("grad", _MAPPED[0]), (_MAPPED[1], "grad"), ("jvp", _MAPPED[1]), (_MAPPED[0], "jvp")]
_ROWS = [(case, *pair) for case in CASES if case != "chunked-none" for pair in _BRIEF]
# One case, which has every mechanism, goes through all of them. `vjp` is as `grad`, and `linearize`
# is as `jvp`, but for what is mapped.
_WITHOUT_VMAP = ["grad", "jvp", "checkpoint", "scan"]
_PAIRS = list(itertools.product(_WITHOUT_VMAP, repeat=2))
_PAIRS += in_both_orders(["grad", "jvp"], _MAPPED)
_PAIRS += in_both_orders(["vjp", "linearize", "jit", "checkpoint", "scan"], _MAPPED[:1])
_PAIRS += [(_MAPPED[0], _MAPPED[1])]
_ROWS += [("chunked-none", *pair) for pair in _PAIRS]
_QUICK = [
    _ROWS.index(("chunked-none", "grad", f"vmap over {what}")) for what in ("examples", "weights")
]


@pytest.mark.parametrize(("case", "outer", "inner"), quick_rows(_ROWS, *_QUICK))
def test_two_transformations(case, outer, inner):
    """What they make of a loss is what they make of its definition."""
    arrays = jax.tree.map(lambda x: x[0], numbers())
    names = HEAD if "-" in case else DENSE
    x = {k: arrays[k] for k in names}
    rest = {k: arrays[k] for k in ("labels", "where")}

    def of_both(x, rest):
        losses = [lambda x, rest, f=f: f(x | rest) for f in CASES[case]]
        of = [TRANSFORMATIONS[outer](TRANSFORMATIONS[inner](loss)) for loss in losses]
        return [f(x, rest) for f in of]

    with jax.enable_x64(True):
        x, rest = jax.tree.map(jnp.asarray, (x, rest))
        results, expected = fast_jit(of_both)(x, rest)
    chex.assert_trees_all_close(results, expected, rtol=1e-10, atol=1e-11, strict=True)
