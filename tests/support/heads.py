"""Linear heads with every option, and their losses by the definition, on whole logits."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

import jxent

IGNORED = -100


@functools.cache
def arrays_of_head(examples=23, classes=41, features=6):
    """`examples` may be the sizes of several dimensions; one label or two are ignored."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, examples)
    mask = rng.random(classes) < 0.8
    mask[labels] = True
    labels.flat[[i for i in (2, 7) if i < labels.size]] = IGNORED
    return {
        "inputs": rng.normal(size=(*labels.shape, features)),
        "kernel": rng.normal(size=(features, classes)),
        "labels": labels,
        "bias": rng.normal(size=classes),
        "weights": rng.uniform(0.5, 2, examples),
        "class_mask": mask,
        "class_weights": rng.uniform(0.5, 2, classes),
        "label_smoothing": np.float64(0.125),
        "z_loss": np.float64(0.01),
        "logit_softcap": np.float64(3.0),
    }


BASE = ("inputs", "kernel", "labels")
OPTIONS = list(arrays_of_head())[3:]
NEUTRAL = {
    **{"bias": 0, "weights": 1, "class_mask": True, "class_weights": 1},
    **{"label_smoothing": 0, "z_loss": 0, "logit_softcap": 1e6},
}
"""The options at values that change (next to) nothing: one program then serves all pairs."""


def with_options(chosen, *sizes):
    """The arrays, where the other options are neutral."""
    a = arrays_of_head(*sizes)
    return a | {k: np.full_like(a[k], x) for k, x in NEUTRAL.items() if k not in chosen}


def two_heads(examples, classes, features=5):
    """The arrays of two heads, and what losses of both may take beside their logits."""
    rng = np.random.default_rng(0)
    order = rng.permuted(np.tile(np.arange(classes), (examples, 1)), axis=1)
    return {
        "inputs": rng.normal(size=(examples, features)),
        "kernel": rng.normal(size=(features, classes)),
        "bias": rng.normal(size=classes),
        "scale": np.float64(0.75),
        "softcap": np.float64(3.0),
        "other_inputs": rng.normal(size=(examples, features - 2)),
        "other_kernel": rng.normal(size=(features - 2, classes)),
        "labels": rng.integers(0, classes, examples),
        "target_indices": order[:, :3],
        "target_log_probs": np.log(rng.dirichlet(np.ones(4), examples)[:, :3]),
        "distributions": rng.dirichlet(np.ones(classes), examples),
        "advantages": rng.normal(size=examples),
        "temperature": np.float64(1.5),
        "weights": rng.uniform(0.5, 2, examples),
        "where": np.arange(examples) % 3 != 1,
    }


def fused_head(a, **options):
    """The loss of a linear head of the arrays by name."""
    return jxent.linear_softmax_cross_entropy(
        **a, **options, ignore_index=IGNORED, precision="highest"
    )


def plain_head(a, reduction="mean", shared=True):
    """The definition, with harmless numbers wherever nothing counts.

    `shared` says whether a mean is divided by the class weights of the labels, too.
    """
    examples, (_, classes) = len(a["labels"]), a["kernel"].shape
    a = {
        "bias": jnp.zeros(classes),
        "weights": jnp.ones(examples),
        "class_mask": jnp.ones(classes, bool),
        "class_weights": jnp.ones(classes),
        "label_smoothing": 0.0,
        "z_loss": 0.0,
        "logit_scale": 1.0,
        "logit_softcap": jnp.inf,
    } | a
    mask, exists = a["class_mask"], (a["labels"] >= 0) & (a["labels"] < classes)
    labels = jnp.where(exists, a["labels"], 0).astype(int)
    is_possible = exists & (mask[labels] | (a["label_smoothing"] == 1))
    # Without weight nothing counts that has no loss, and without one of both no gradient is NaN.
    counts = (a["labels"] != IGNORED) & (is_possible | (a["weights"] != 0))
    is_usable = jnp.all(jnp.isfinite(a["inputs"]), axis=-1)
    counts &= is_usable
    x = jnp.where(counts[:, None], a["inputs"], 0)
    kernel, bias = jnp.where(mask[None, :], a["kernel"], 0), jnp.where(mask, a["bias"], 0)
    scale, cap = a["logit_scale"], a["logit_softcap"]
    z = whole(jxent.LinearLogits(x, kernel, bias, scale=scale, softcap=cap))
    normalizer = jax.nn.logsumexp(z, axis=-1, where=mask[None, :], keepdims=True)
    costs = jnp.where(mask[None, :], normalizer - z, 0)
    class_weights = jnp.where(mask, a["class_weights"], 0)
    share = jnp.where(mask, 1.0, 0.0)
    share /= jnp.sum(share)
    of_label = jnp.where(jnp.arange(classes)[None, :] == labels[:, None], 1.0, 0.0)
    smoothing = a["label_smoothing"]
    targets = class_weights[None, :] * ((1 - smoothing) * of_label + smoothing * share[None, :])
    losses = jnp.sum(targets * costs, axis=-1) + a["z_loss"] * normalizer[:, 0] ** 2
    weights = jnp.where((a["labels"] != IGNORED) & is_usable, a["weights"], 0)
    losses = weights * jnp.where(counts, losses, 0)
    if reduction == "none":
        return losses
    of_classes = jnp.where(jnp.isfinite(a["class_weights"]), a["class_weights"], 1)
    of_labels = jnp.where(exists, of_classes[labels], 0)
    return reduced(losses, weights * of_labels if shared else weights, reduction)


def whole(logits):
    """The logits of a `LinearLogits`, by its definition."""
    z = jnp.dot(logits.inputs, logits.kernel, precision="highest")
    z = z if logits.bias is None else z + jnp.broadcast_to(logits.bias, z.shape)
    z = z if logits.scale is None else z * logits.scale
    if (cap := logits.softcap) is not None:
        finite = jnp.where(cap < jnp.inf, cap, 1)
        z = jnp.where(cap < jnp.inf, finite * jnp.tanh(z / finite), z)
    mask = logits.class_mask
    return z if mask is None else jnp.where(mask[None, :], z, -jnp.inf)


def reduced(losses, weights, reduction):
    """The sum of losses that have their weights, or this over the sum of the weights, if any."""
    total, number = jnp.sum(losses), jnp.sum(weights)
    mean = jnp.where(number == 0, 0, total / jnp.where(number == 0, 1, number))
    return total if reduction == "sum" else mean


def plain_chunked(loss, reduction="none", has_aux=False):
    """What `jxent.chunked` is to compute."""

    def function(*args, where=None, weights=None):
        out = loss(*(whole(x) if isinstance(x, jxent.LinearLogits) else x for x in args))
        if where is not None:
            out = jax.tree.map(lambda x: jnp.where(where, x, jnp.zeros((), x.dtype)), out)
        if reduction == "none":
            return out
        out, *aux = out if has_aux else (out,)
        weights = jnp.ones_like(out) if weights is None else weights
        weights = weights if where is None else jnp.where(where, weights, 0)
        value = reduced(weights * out, weights, reduction)
        return (value, *aux) if has_aux else value

    return function


def is_float(x):
    return jnp.issubdtype(x.dtype, jnp.floating)


def cotangents(number):
    """No two of which are alike, and none is 1."""
    return jnp.cos(1 + jnp.arange(float(number)))


def total(tree):
    """A sum of what is floating-point, no two numbers of which count alike."""
    floats = [x.ravel().astype(float) for x in jax.tree.leaves(tree) if is_float(x)]
    return sum(jnp.vdot(i + cotangents(x.size), x) for i, x in enumerate(floats))


def value_and_gradients(function, a, names=None):
    """What a function of arrays by name returns, and the gradient of `total` for each float."""

    def of_floats(floats):
        out = function(a | floats)
        return total(out), out

    names = [name for name in a if is_float(a[name])] if names is None else names
    gradients, out = jax.grad(of_floats, has_aux=True)({name: a[name] for name in names})
    return {"value": out, **gradients}


def assert_close(actual, expected, tolerance):
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)
    for name, x in expected.items():
        x, y = np.asarray(x, np.float64), np.asarray(actual[name], np.float64)
        assert np.linalg.norm(x - y) <= tolerance * np.linalg.norm(x) + 1e-18, name
