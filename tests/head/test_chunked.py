"""Any loss over linear heads: the values and gradients of the same loss of whole logits."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import CASES, fast_jit
from support.tiers import quick, quick_rows

EXAMPLES, FEATURES, CLASSES = 13, 5, 7
LOSSES = [case for case in CASES if case.kinds[0] == "logits"]
QUICK = "softmax_cross_entropy_with_integer_labels-options"


@functools.cache
def numbers():
    rng = np.random.default_rng(0)
    return {
        "inputs": rng.normal(size=(EXAMPLES, FEATURES)),
        "kernel": rng.normal(size=(FEATURES, CLASSES)),
        "bias": rng.normal(size=CLASSES),
        "scale": np.float64(0.75),
        "softcap": np.float64(3.0),
        "other_inputs": rng.normal(size=(EXAMPLES, FEATURES - 2)),
        "other_kernel": rng.normal(size=(FEATURES - 2, CLASSES)),
        "labels": rng.integers(0, CLASSES, EXAMPLES),
        "target_indices": rng.permuted(np.tile(np.arange(CLASSES), (EXAMPLES, 1)), axis=1)[:, :3],
        "target_log_probs": np.log(rng.dirichlet(np.ones(4), EXAMPLES)[:, :3]),
        "distributions": rng.dirichlet(np.ones(CLASSES), EXAMPLES),
        "advantages": rng.normal(size=EXAMPLES),
        "weights": rng.uniform(0.5, 2, EXAMPLES),
        "where": np.arange(EXAMPLES) % 3 != 1,
    }


def of_whole_chunks():
    """The arrays of so many examples that no chunk is smaller than the others."""
    some = {k: x[: EXAMPLES - 1] for k, x in numbers().items() if np.shape(x)[:1] == (EXAMPLES,)}
    return numbers() | some


def linear(a):
    return jxent.LinearLogits(
        a["inputs"], a["kernel"], a["bias"], scale=a["scale"], softcap=a["softcap"]
    )


def other(a):
    return jxent.LinearLogits(a["other_inputs"], a["other_kernel"])


def whole(logits):
    """The logits of a `LinearLogits`, by its definition."""
    z = jnp.dot(logits.inputs, logits.kernel, precision="highest")
    z = z if logits.bias is None else z + logits.bias[None, :]
    z = z if logits.scale is None else z * logits.scale
    z = z if logits.softcap is None else logits.softcap * jnp.tanh(z / logits.softcap)
    mask = logits.class_mask
    return z if mask is None else jnp.where(mask[None, :], z, -jnp.inf)


def dense(loss, reduction="none"):
    """What `jxent.chunked` is to compute."""

    def function(*args, where=None, weights=None):
        args = [whole(x) if isinstance(x, jxent.LinearLogits) else x for x in args]
        out = loss(*args)
        if where is not None:
            out = jax.tree.map(lambda x: jnp.where(where, x, jnp.zeros((), x.dtype)), out)
        if reduction == "none":
            return out
        weights = jnp.ones_like(out) if weights is None else weights
        weights = weights if where is None else jnp.where(where, weights, 0)
        total = jnp.sum(weights * out)
        return total if reduction == "sum" else total / jnp.sum(weights)

    return function


def chunked(loss, **options):
    return jxent.chunked(loss, **{"chunk_size": 4, "precision": "highest"} | options)


def total(tree):
    """A sum of what is floating-point, no two numbers of which count alike."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum(
        jnp.vdot(jnp.cos(i + jnp.arange(float(x.size))), x.ravel().astype(float))
        for i, x in enumerate(floats)
    )


def assert_same(functions, arrays=None, tolerance=1e-12):
    """Values, and the gradients for every number, of two functions of the arrays by name."""
    with jax.enable_x64(True):
        arrays = jax.tree.map(jnp.asarray, numbers() | (arrays or {}))
        floats = {k: x for k, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}

        def value_and_gradients(function, arrays, floats):
            def of_floats(floats):
                out = function(arrays | floats)
                return total(out), out

            return jax.grad(of_floats, has_aux=True)(floats)

        def both(arrays, floats):
            return [value_and_gradients(f, arrays, floats) for f in functions]

        results = fast_jit(both)(arrays, floats)
        chex.assert_trees_all_close(*results, rtol=tolerance, atol=tolerance, strict=True)


def of_both(loss, call, **options):
    """The chunked loss of the arrays, and the dense one."""
    reduction = options.get("reduction", "none")
    return [functools.partial(call, f) for f in (chunked(loss, **options), dense(loss, reduction))]


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
    assert_same(of_both(loss, call, reduction=reduction), arrays)


def policy(logits, labels):
    """A tree of everything that may come back."""
    nll = jxent.softmax_cross_entropy_with_integer_labels(logits, labels)
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
        [
            (4, "some"),
            (13, "no mask"),
            (14, "all"),
            (1, "some"),
            (12, "none"),
            (None, "all"),
        ],
        0,
    ),
)
def test_trees_of_outputs(chunk_size, counted):
    where = {"some": numbers()["where"], "all": np.ones(EXAMPLES, bool)}
    where["none"] = ~where["all"]

    def call(function, a):
        return function(
            linear(a), a["labels"], where=None if counted == "no mask" else where[counted]
        )

    assert_same(of_both(policy, call, chunk_size=chunk_size))


@pytest.mark.parametrize(
    ("chunk_size", "reduction"),
    quick_rows([(6, "mean"), (5, "sum"), (None, "mean")], 0),
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
    both = of_both(loss, call, reduction=reduction, chunk_size=chunk_size)
    assert_same(both, arrays)


@pytest.mark.parametrize("reduction", quick(["none", "mean"]))
def test_what_a_loss_closes_over(reduction):
    """Numbers, class weights, masks, labels and keys, all of them traced; in functions inside."""

    def call(make, a):
        mask, shift = a["bias"] > -0.5, jnp.sum(a["labels"]) % CLASSES
        key = jax.random.key(jnp.sum(a["labels"]))

        def loss(logits, labels):
            @jax.jit
            def inner(z):
                return jax.lax.map(lambda row: row * a["softcap"], z / a["scale"])

            noise = jax.random.uniform(key, (1, CLASSES), logits.dtype)
            where = jnp.broadcast_to(mask[None, :], logits.shape)
            return jxent.softmax_cross_entropy_with_integer_labels(
                inner(logits + noise),
                (labels + shift) % CLASSES,
                where=where,
                label_smoothing=a["advantages"][0] ** 2 / 10,
                class_weights=jnp.exp(a["bias"]),
            )

        return make(loss)(jxent.LinearLogits(a["inputs"], a["kernel"]), a["labels"])

    finite = of_whole_chunks() | {"bias": np.abs(numbers()["bias"])}
    makes = [functools.partial(f, reduction=reduction) for f in (chunked, dense)]
    assert_same([functools.partial(call, make) for make in makes], finite)


def margin(logits, labels):
    """The user's own: a hinge between the label and the best of the others."""
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    is_label = jnp.arange(logits.shape[-1])[None, :] == labels[:, None]
    others = jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=-1)
    return jax.nn.relu(1 + others - chosen[:, 0])


def objective(make):
    """A loss of its own beside one of the package, with an array that is closed over."""

    def f(a):
        def loss(logits, labels):
            losses = jxent.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses / a["scale"] + margin(logits, labels)

        logits = jxent.LinearLogits(a["inputs"], a["kernel"], scale=a["scale"])
        arrays = of_whole_chunks()
        return total(make(loss, reduction="mean")(logits, arrays["labels"], where=arrays["where"]))

    return f


def test_modes():
    """Forward mode over reverse mode, under `vmap`."""

    def modes(f, floats):
        def along(a):
            return jax.jvp(jax.value_and_grad(f), (a,), (jax.tree.map(jnp.cos, a),))

        return jax.vmap(along)(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), floats))

    with jax.enable_x64(True):
        floats = {k: of_whole_chunks()[k] for k in ("inputs", "kernel")}
        floats["scale"] = numbers()["scale"]
        makes = chunked, dense
        both = fast_jit(lambda floats: [modes(objective(make), floats) for make in makes])
        chex.assert_trees_all_close(*both(floats), rtol=1e-10, atol=1e-11, strict=True)
