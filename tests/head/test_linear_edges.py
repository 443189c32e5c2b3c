"""The linear head at its edges: empty sizes, mistaken arguments, derivatives of derivatives."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from support.cases import fast_jit
from support.heads import BASE, IGNORED, arrays_of_head, floats
from support.meshes import BOTH, mesh_of

REDUCTIONS = ("mean", "sum", "none")


def plain_head(inputs, kernel, labels, bias=None, *, reduction="mean", **options):
    """The definition on whole logits, differentiated by JAX itself."""
    logits = jnp.dot(inputs, kernel, precision="highest")
    logits = logits if bias is None else logits + bias[None, :]
    if (cap := options.get("logit_softcap")) is not None:
        logits = cap * jnp.tanh(logits / cap)
    mask = options.get("class_mask", jnp.ones(logits.shape[-1], bool))
    logits = jnp.where(mask[None, :], logits, -jnp.inf)
    normalizer = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    costs = jnp.where(mask[None, :], normalizer - jnp.where(mask[None, :], logits, 0), 0)
    counted, present = labels != IGNORED, mask.astype(costs.dtype)
    targets = jax.nn.one_hot(jnp.where(counted, labels, 0), logits.shape[-1], dtype=costs.dtype)
    class_weights = options.get("class_weights", jnp.ones(logits.shape[-1], costs.dtype))
    share = targets @ class_weights
    smoothing = options.get("label_smoothing", 0.0)
    targets = (1 - smoothing) * targets + smoothing * (present / jnp.sum(present))[None, :]
    losses = jnp.sum(class_weights[None, :] * targets * costs, axis=-1)
    losses = losses + options.get("z_loss", 0.0) * normalizer[:, 0] ** 2
    weights = jnp.where(counted, options.get("weights", jnp.ones_like(losses)), 0)
    losses = jnp.where(counted, losses, 0) * weights
    if reduction == "none":
        return losses
    total = jnp.sum(losses)
    return total if reduction == "sum" else total / jnp.sum(share * weights)


def head(*args, **options):
    return jxent.linear_softmax_cross_entropy(
        *args, **options, ignore_index=IGNORED, precision="highest"
    )


def numbers(arrays):
    return {name: jnp.asarray(x) for name, x in arrays.items()}


def directions(tree, seed):
    """Numbers of the shapes of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    values = [jnp.asarray(rng.uniform(-1, 1, x.shape), x.dtype) for x in leaves]
    return jax.tree.unflatten(structure, values)


def derivatives_again(function, arrays, perturbed, *, is_forward):
    """What `jax.vjp` returns, value and pullback together, differentiated one of the two ways."""

    def losses(x):
        a = arrays | x
        args = [a.pop(name) for name in BASE]
        return function(*args, **a)

    def value_and_pullback(x, cotangent):
        out, pullback = jax.vjp(losses, x)
        return out, pullback(cotangent)

    x = {name: arrays[name] for name in perturbed}
    point = x, jnp.ones_like(losses(x))
    if is_forward:
        return jax.jvp(value_and_pullback, point, directions(point, 0))
    out, pullback = jax.vjp(value_and_pullback, *point)
    return out, pullback(directions(out, 1))


@pytest.mark.full
@pytest.mark.parametrize(
    ("perturbed", "reduction", "is_forward"),
    [("kernel", "mean", True), ("every option", "none", False)],
)
def test_value_and_pullback_differentiated_again(perturbed, reduction, is_forward):
    """With all options given, whether one differentiates for them or not."""
    with jax.enable_x64(True):
        arrays = {name: x[:22] if x.shape == (23,) else x for name, x in arrays_of_head().items()}
        arrays = numbers(arrays | {"inputs": arrays["inputs"][:22]})
        names = list(floats(arrays)) if perturbed == "every option" else [perturbed]

        def both(arrays):
            fused = functools.partial(head, reduction=reduction, chunk_size=11)
            plain = functools.partial(plain_head, reduction=reduction)
            again = functools.partial(
                derivatives_again, arrays=arrays, perturbed=names, is_forward=is_forward
            )
            return [again(f) for f in (fused, plain)]

        results, expected = map(jax.tree.leaves, fast_jit(both)(arrays))
        for got, exact in zip(results, expected, strict=True):
            size = np.linalg.norm(exact)
            assert size > 1e-3
            assert np.linalg.norm(got - exact) <= 1e-11 * size


# The examples, the features and the classes.
EMPTY = [((5,), 0, 7), ((0,), 3, 7), ((2, 0), 3, 7), ((0,), 0, 7), ((5,), 0, 1), ((0,), 3, 1)]


def test_empty_sizes():
    """No feature makes every logit its bias, no example no loss; the gradients have the shapes."""
    # Each reduction with and without options.
    cases = [(*sizes, i % 2 == 0, REDUCTIONS[i % 3]) for i, sizes in enumerate(EMPTY)]

    def bias_of(classes):
        return np.linspace(-1, 2, classes, dtype=np.float32)

    def value_and_gradients(case, floats):
        examples, _, _, is_bare, reduction = case

        def loss(x, w, bias):
            options = {} if is_bare else {"bias": bias, "weights": np.full(examples, 2, "f")}
            losses = jxent.linear_softmax_cross_entropy(
                x, w, np.zeros(examples, int), **options, reduction=reduction, chunk_size=2
            )
            return jnp.sum(losses), losses

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*floats)

    floats = [
        (np.ones((*examples, features), "f"), np.ones((features, classes), "f"), bias_of(classes))
        for examples, features, classes, *_ in cases
    ]
    results = fast_jit(lambda floats: list(map(value_and_gradients, cases, floats)))(floats)
    for case, ((_, losses), (to_x, to_w, to_bias)) in zip(cases, results, strict=True):
        examples, features, classes, is_bare, reduction = case
        logits = np.zeros(classes) if is_bare else bias_of(classes).astype(np.float64)
        each = np.log(np.sum(np.exp(logits - logits[0])))
        number, weight = np.prod(examples), 1 if is_bare else 2
        total = {"mean": each * (number > 0), "sum": weight * number * each, "none": weight * each}
        assert losses.shape == (examples if reduction == "none" else ()), case
        right = np.full(losses.shape, total[reduction])
        np.testing.assert_allclose(losses, right, rtol=1e-6, err_msg=str(case))
        assert to_x.shape == (*examples, features), case
        assert to_w.shape == (features, classes), case
        assert not np.any(to_w), case
        p = np.exp(logits) / np.sum(np.exp(logits)) - (np.arange(classes) == 0)
        share = number > 0 if reduction == "mean" else weight * number
        right = 0 if is_bare else share * p
        np.testing.assert_allclose(to_bias, right, atol=0 if is_bare else 1e-6, err_msg=str(case))


def test_one_class_is_certain():
    """Its loss is the z-loss alone, whatever the logit."""
    x, w = np.float32([[1.0], [30.0]]), np.float32([[2.0]])

    def loss(w):
        return jnp.sum(
            jxent.linear_softmax_cross_entropy(
                x, w, [0, 0], z_loss=0.25, label_smoothing=0.5, reduction="none", chunk_size=1
            )
        )

    value, gradient = fast_jit(jax.value_and_grad(loss))(w)
    np.testing.assert_allclose(value, 0.25 * (4 + 3600))
    np.testing.assert_allclose(gradient, [[0.5 * (1 * 2 + 30 * 60)]], rtol=1e-6)


def arguments(**changes):
    arrays = {name: jnp.asarray(arrays_of_head()[name]) for name in BASE}
    return {"ignore_index": IGNORED} | arrays | changes


@pytest.mark.parametrize("features", [0, 3])
@pytest.mark.parametrize("examples", [0, 4])
def test_no_class_is_a_mistake(features, examples):
    x, w = np.ones((examples, features), "f"), np.ones((features, 0), "f")
    message = f"kernel must have at least one class, got shape ({features}, 0)"
    with pytest.raises(ValueError, match=re.escape(message)):
        jxent.linear_softmax_cross_entropy(x, w, np.zeros(examples, int))


@pytest.mark.parametrize("chunk_size", [2.0, True, "8", np.float32(8), np.bool_(True), [8], 1j])
def test_chunk_size_is_an_integer(chunk_size):
    message = re.escape(f"chunk_size must be an integer, got {chunk_size!r}")
    with pytest.raises(TypeError, match=message):
        jxent.linear_softmax_cross_entropy(**arguments(chunk_size=chunk_size))


@pytest.mark.parametrize("chunk_size", [0, -1, np.int32(0)])
def test_chunk_size_is_positive(chunk_size):
    with pytest.raises(ValueError, match=f"chunk_size must be at least 1, got {chunk_size}"):
        jxent.linear_softmax_cross_entropy(**arguments(chunk_size=chunk_size))


def test_chunk_size_of_any_integer_type():
    """They make the same program."""

    def lowered(size):
        options = arguments(chunk_size=size)
        return jax.jit(lambda: jxent.linear_softmax_cross_entropy(**options)).lower().as_text()

    sizes = (8, np.uint8(8), jnp.array(8))
    assert len(set(map(lowered, sizes))) == 1
    assert lowered(8) != lowered(9)


def test_explicitly_sharded_examples_need_a_mesh():
    mesh = mesh_of(*BOTH, AxisType.Explicit)
    args = {
        "inputs": np.ones((8, 2), "f"),
        "kernel": np.ones((2, 3), "f"),
        "labels": np.zeros(8, int),
        "weights": np.ones(8, "f"),
    }
    specs = [
        ("inputs", P("data", None)),
        ("inputs", P(None, "model")),
        ("labels", P("data")),
        ("weights", P("data")),
    ]
    loss = jxent.linear_softmax_cross_entropy
    with jax.set_mesh(mesh):
        sharded = [
            args | {name: jax.device_put(args[name], NamedSharding(mesh, spec))}
            for name, spec in specs
        ]
        for (name, spec), some in zip(specs, sharded, strict=True):
            message = (
                f"{name} must not be sharded explicitly without mesh=, the mesh to compute on,"
                f" got {spec}"
            )
            for chunk_size in (None, 2):
                with pytest.raises(ValueError, match=re.escape(message)):
                    loss(**some, chunk_size=chunk_size)
        _, by_feature, labels, weights = sharded
        by_example = sharded[0] | {"labels": labels["labels"], "weights": weights["weights"]}
        losses = fast_jit(lambda *given: [loss(**some, mesh=mesh, chunk_size=2) for some in given])(
            by_example, by_feature
        )
    np.testing.assert_allclose(losses, np.log(3), rtol=1e-6)
