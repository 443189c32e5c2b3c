"""Dense functions of arrays that are sharded: over examples, over classes, and over both.

On automatic mesh axes, and on explicit ones with specs of their own: what JAX's own arithmetic
brings together works, and each cotangent has the spec of its argument.
"""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from support.cases import CASES, bare, cosines, fast_jit, of_some, with_gradients
from support.meshes import BOTH, collectives, mesh_of
from support.meshes import assert_same as assert_close
from support.tiers import quick, quick_named, quick_rows

EXAMPLES, CLASSES = 8, 1536
DENSE = [case for case in CASES if "kernel" not in case.kinds]
SPREAD = P("data", "model")
PAIRS = [
    (P("data", "model"), P("data", None)),
    (P("data", None), P("data", "model")),
    (P("data", None), P(None, None)),
    (P(None, None), P("data", None)),
    (P(None, "model"), P("data", None)),
    (P("data", None), P(None, "model")),
    (P(None, None), P("data", "model")),
    (P(("data", "model"), None), P(None, None)),
]
"""The spec of the first argument, and that of all others."""
MASKS = ["classes", "examples", None]
SMALL = np.random.default_rng(2).uniform(0.1, 1, (8, 4, 6))


def explicit_mesh():
    return mesh_of(*BOTH, AxisType.Explicit)


@functools.cache
def arguments(case):
    """Float64, so that nothing but the way of computing can differ."""
    rng = np.random.default_rng(0)
    z = 3 * rng.normal(size=(EXAMPLES, CLASSES))
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    kinds = {"labels": rng.integers(0, CLASSES, EXAMPLES)}
    kinds |= {"target_indices": np.argsort(-z, axis=-1)[::-1, :4]}
    kinds |= {"target_log_probs": np.log(rng.dirichlet(np.ones(5), EXAMPLES)[:, :4])}
    kinds |= {"distributions": p[::-1], "predictions": p}
    kinds |= {"log_distributions": np.log(p[::-1]), "log_predictions": np.log(p)}
    kinds |= dict.fromkeys(("losses", "weights"), abs(z))
    values = [kinds.get(kind, np.roll(z, i)) for i, kind in enumerate(case.kinds)]
    options = [rng.uniform(0.5, 1, CLASSES) if np.ndim(x) else x for x in case.options.values()]
    return list(map(np.asarray, values + options))


def mask_of(case, kind):
    """What counts: all examples but one, or most classes of each, and those of the labels."""
    if kind is None or not case.accepts("where"):
        return None
    if kind == "examples" and case.has_classes:
        return np.arange(EXAMPLES) != 2
    mask = np.random.default_rng(1).random((EXAMPLES, CLASSES)) < 0.8
    if "labels" in case.kinds:
        mask[range(EXAMPLES), arguments(case)[case.kinds.index("labels")]] = True
    return mask


def specs_of(args, first, others):
    """The part of the spec for the dimensions that each array has."""

    def spec_of(x, spec):
        if np.shape(x) == (CLASSES,):
            return P(spec[1])
        # The k classes of a teacher are few, and no classes of the logits.
        entries = [spec[i] if n in (EXAMPLES, CLASSES) else None for i, n in enumerate(np.shape(x))]
        return P(*entries)

    return [None if x is None else spec_of(x, others if i else first) for i, x in enumerate(args)]


def specs_in(tree):
    return [jax.typeof(x).sharding.spec for x in jax.tree.leaves(tree)]


def losses_and_gradients(call):
    return with_gradients(call, cosines)


def masked(case):
    """The case as a function of its arguments and of a mask, the last one."""
    return lambda *args: case.call(*args[:-1], **({} if args[-1] is None else {"where": args[-1]}))


@functools.cache
def expected(case, kind):
    given = [*arguments(case), mask_of(case, kind)]
    return jax.tree.map(np.asarray, fast_jit(losses_and_gradients(masked(case)))(*given))


def placed(args, specs):
    return [x if s is None else jax.device_put(x, s) for x, s in zip(args, specs, strict=True)]


def assert_same(results, exact, rtol=1e-9):
    assert_close(results, exact, rtol, 1e-12)


# Each way to make a loss of a row's statistics; the others are made in the same ways.
_WAYS_TO_MAKE = {"softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels",
                 "softmax_kl_divergence", "log_softmax"}  # fmt: skip
_WAYS = [
    (SPREAD, AxisType.Auto),
    (SPREAD, AxisType.Explicit),
    (P(None, "model"), AxisType.Auto),
    (P("data", None), AxisType.Explicit),
]
# These in every way, and the others in turn in one of those over both axes.
_SHARDED = [
    (case, *_WAYS[way])
    for i, case in enumerate(DENSE)
    for way in (range(4) if case.name in _WAYS_TO_MAKE else [i % 2])
]
_QUICK = _WAYS_TO_MAKE - {"softmax_kl_divergence"}
_QUICK_ROWS = [case.name in _QUICK and (*way,) == _WAYS[0] for case, *way in _SHARDED]


@pytest.mark.parametrize(
    ("case", "spec", "axis_type"), quick_rows(_SHARDED, *np.flatnonzero(_QUICK_ROWS)), ids=str
)
def test_same_and_nothing_gathered(case, spec, axis_type):
    mesh = mesh_of(*BOTH, axis_type)
    # Without LLVM's polish XLA of JAX 0.10 rounds in one loop otherwise than in another, so that
    # this sees whether a row's sums agree on which class is the maximum.
    gradients = fast_jit(losses_and_gradients(masked(case)))
    with jax.enable_x64(True), jax.set_mesh(mesh):
        args = [*arguments(case), None]
        shardings = [NamedSharding(mesh, s) for s in specs_of(args[:-1], spec, spec)]
        given = placed(args, [*shardings, None])
        program = gradients.lower(*given).compile()
        assert_same(program(*given), expected(case, None))
    moved = [(kind, size) for kind, size in collectives(program.as_text()) if kind != "all-reduce"]
    assert all(size <= EXAMPLES * CLASSES / 16 for _, size in moved), moved


def test_spread_classes_stay_where_they_are():
    """Over automatic axes the rows are not cut: then not even a little is moved."""
    mesh = mesh_of(*BOTH, AxisType.Auto)
    z = np.random.default_rng(0).normal(size=(EXAMPLES, CLASSES)).astype(np.float32)
    with jax.set_mesh(mesh):
        given = jax.device_put(z, NamedSharding(mesh, SPREAD))
        program = fast_jit(jxent.softmax_entropy).lower(given).compile()
    assert {kind for kind, _ in collectives(program.as_text())} == {"all-reduce"}


@pytest.mark.parametrize("axis", quick([0, -1], -1))
def test_one_row_of_soft_labels_for_all_examples(axis):
    """Its gradient is a sum over examples, for which no logits are gathered in explicit mode."""
    with jax.enable_x64(True), jax.set_mesh(explicit_mesh()):
        z, row = np.random.default_rng(1).uniform(size=(2, EXAMPLES, CLASSES))[:, :, ::2]
        row, spec = row[0], SPREAD
        if axis == 0:
            z, spec = z.T, P("model", "data")
        loss = functools.partial(jxent.softmax_cross_entropy, axis=axis, label_smoothing=0.1)
        gradients = fast_jit(with_gradients(loss))
        given = placed([z, row], [spec, P("model")])
        program = gradients.lower(*given).compile()
        moved = collectives(program.as_text())
        assert all(size <= z.size / 16 for kind, size in moved if kind != "all-reduce"), moved
        assert_same(program(*given), gradients(z, row))


# Cotangents on explicit mesh axes.

_QUICK = {"softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels",
          "cross_entropy_with_integer_labels", "sigmoid_binary_cross_entropy",
          "softmax_kl_divergence_with_top_k_targets", "weighted_mean"}  # fmt: skip


@pytest.mark.parametrize("case", quick_named(DENSE, _QUICK), ids=str)
def test_cotangents_have_the_specs_of_their_arguments(case):
    """Traced, which takes less time than to compile."""
    gradients = losses_and_gradients(masked(case))
    with jax.enable_x64(True), jax.set_mesh(mesh := explicit_mesh()):
        for (first, others), kind in zip(PAIRS, itertools.cycle(MASKS), strict=False):
            args = [*arguments(case), mask_of(case, kind)]
            types = [
                None
                if x is None
                else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
                for x, spec in zip(args, specs_of(args, first, others), strict=True)
            ]
            losses, cotangents = jax.eval_shape(gradients, *types)
            assert specs_in(cotangents) == specs_in([types[i] for i in case.differentiable])
            # The losses lie as JAX lays what it adds: in each dimension as one of the arguments.
            shapes = [np.shape(x) for x in args[1:]]
            joint = [
                own or (other if any(n in shape for shape in shapes) else None)
                for n, own, other in zip((EXAMPLES, CLASSES), first, others, strict=True)
            ]
            assert losses.sharding.spec == P(*joint[: losses.ndim])


# Every other pair for losses that are made in different ways, and for the rest one pair in turn.
_EVERY_WAY = {"softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels",
              "sigmoid_binary_cross_entropy"}  # fmt: skip
_ROWS = [
    (case, pair, MASKS[(i + pair) % 2])
    for i, case in enumerate(DENSE)
    for pair in (range(i % 2, len(PAIRS), 2) if case.name in _EVERY_WAY else [i % len(PAIRS)])
]
_QUICK_ROWS = [i for i, (case, pair, _) in enumerate(_ROWS) if case.name in _EVERY_WAY and pair < 2]


@pytest.mark.parametrize(("case", "pair", "kind"), quick_rows(_ROWS, *_QUICK_ROWS), ids=str)
def test_same_and_only_cotangents_gathered(case, pair, kind):
    """A cotangent is gathered over the mesh axes that its argument's own spec lacks."""
    with jax.enable_x64(True), jax.set_mesh(explicit_mesh()):
        args = [*arguments(case), mask_of(case, kind)]
        specs = specs_of(args, *PAIRS[pair])
        given = placed(args, specs)
        gradients = fast_jit(losses_and_gradients(masked(case)))
        program = gradients.lower(*given).compile()
        results = program(*given)
        assert_same(results, expected(case, kind))
    assert specs_in(results[1]) == specs_in([given[i] for i in case.differentiable])
    moved = [n for kind, n in collectives(program.as_text()) if kind != "all-reduce"]
    large = [n for n in moved if n > EXAMPLES * CLASSES / 16]
    # Of each spec the axes that it lacks beside the others.
    joint = P(*(a or b for a, b in zip(*PAIRS[pair], strict=True)))
    number = [len(jax.tree.leaves(tuple(s))) for s in specs_of(args, joint, joint)[:-1]]
    number = [n - len(jax.tree.leaves(tuple(s))) for n, s in zip(number, specs, strict=False)]
    floats = {i: given[i] for i in case.differentiable}
    assert len(large) <= sum(number[i] for i, x in floats.items() if x.size >= CLASSES), moved
    assert max(large, default=0) <= max(
        math.prod(x.sharding.shard_shape(x.shape)) for x in floats.values()
    )


_OTHER_MODES = [("sigmoid_binary_cross_entropy", 1), ("softmax_cross_entropy", 4),
                ("softmax_cross_entropy_with_integer_labels", 3)]  # fmt: skip


@pytest.mark.parametrize(("name", "pair"), quick_rows(_OTHER_MODES, 0))
def test_other_modes(name, pair):
    """Forward, second derivatives both ways, and mapped over an axis that is not sharded."""
    case = bare(name)

    def modes(*args):
        loss, floats = of_some(masked(case), case.differentiable, args)

        def total(*values):
            out = loss(*values)
            return jnp.sum(out * jnp.cos(out))

        dots = [jnp.sin(5 * x) for x in floats]
        at = range(len(floats))
        axes = tuple(x.ndim // 2 for x in floats)
        stacked = [jnp.stack([x, x / 2], axis) for x, axis in zip(floats, axes, strict=True)]
        gradient = jax.grad(total, at)

        def along(*values):
            return sum(jnp.sum(g * dot) for g, dot in zip(gradient(*values), dots, strict=True))

        return (
            jax.jvp(gradient, floats, dots)[1],
            jax.grad(along, at)(*floats),
            jax.jvp(total, floats, dots)[1],
            jax.vmap(gradient, axes, axes)(*stacked),
        )

    with jax.enable_x64(True):
        args = [*arguments(case), mask_of(case, "classes")]
        program = fast_jit(modes)
        exact = jax.tree.map(np.asarray, program(*args))
        with jax.set_mesh(explicit_mesh()):
            given = placed(args, specs_of(args, *PAIRS[pair]))
            results = program(*given)
    assert_same(results, exact, rtol=1e-8)
    own = specs_in([given[i] for i in case.differentiable])
    assert specs_in(results[0]) == own
    assert specs_in(results[1]) == own
    mapped = [P(*s[: len(s) // 2], None, *s[len(s) // 2 :]) for s in own]
    assert specs_in(results[3]) == mapped


def losses_of_boxes(z, y, labels, weights, mask, axis=(1, 2)):
    """Over the classes of two axes, of which the second may be sharded alone."""
    integer = jxent.softmax_cross_entropy_with_integer_labels(
        z, labels, axis, mask, class_weights=weights, label_smoothing=0.1
    )
    soft = jxent.softmax_cross_entropy(z, y, axis, class_weights=weights)
    of_row = jxent.softmax_cross_entropy(z, weights, axis)
    return integer + soft + of_row + jnp.sum(jxent.log_softmax(z, axis), (1, 2))


@pytest.mark.full
@pytest.mark.parametrize(
    ("first", "others"),
    [
        (P("data", None, "model"), P("data", None, None)),
        (P(None, "model", None), P("data", None, None)),
        (P(None, None, None), P("data", None, "model")),
        (P(None, "data", None), P(None, None, "model")),
    ],
)
def test_classes_of_several_axes(first, others):
    with jax.enable_x64(True), jax.set_mesh(explicit_mesh()):
        weights, mask = SMALL[0] + 1, SMALL[:, 0, 0] > 0.2
        args = [jnp.asarray(x) for x in (SMALL, SMALL[::-1], np.arange(8), weights, mask)]
        specs = [first, others, P(others[0]), P(*others[1:]), P(others[0])]
        program = fast_jit(losses_and_gradients(losses_of_boxes))
        given = placed(args, specs)
        results = program(*given)
        assert_same(results, program(*args))
    assert specs_in(results[1]) == specs_in([given[i] for i in (0, 1, 3)])


@pytest.mark.full
@pytest.mark.parametrize("axis", [-1, 0])
def test_a_teacher_of_a_few_classes(axis):
    """They are sorted, which JAX does not where they are spread, and their axis is their own."""
    case = bare("softmax_kl_divergence_with_top_k_targets")
    specs = [P("data", "model"), P(None, "model"), P("data", "model"), P("data", None)]

    def divergences(z, indices, log_probs, mask):
        return case.function(z, indices, log_probs, axis, mask)

    with jax.enable_x64(True), jax.set_mesh(explicit_mesh()):
        args = [*arguments(case), jnp.asarray(mask_of(case, "classes"))]
        if axis == 0:
            args, specs = [x.T for x in args], [P(*spec[::-1]) for spec in specs]
        program = fast_jit(losses_and_gradients(divergences))
        given = placed(args, specs)
        results = program(*given)
        assert_same(results, program(*args))
    assert specs_in(results[1]) == specs_in([given[0], given[2]])


def test_outside_of_a_context():
    """There JAX moves nothing from one device to a mesh, and its arithmetic works all the same."""
    z, labels, mask = SMALL[:, 0].astype(np.float32), np.arange(8) % 6, SMALL[:, 2, 0] > 0.2
    given = jax.device_put(z, NamedSharding(explicit_mesh(), P("data", "model")))
    loss = jxent.softmax_cross_entropy_with_integer_labels
    losses, exact = loss(given, labels, where=mask), loss(z, labels, where=mask)
    np.testing.assert_allclose(losses, exact, rtol=1e-6)
    assert specs_in(losses) == [P("data")]


@pytest.mark.full
@pytest.mark.parametrize("spec", [P("data", "model"), P(None, "model")])
def test_eagerly_beside_arrays_that_are_on_no_mesh(spec):
    with jax.enable_x64(True):
        z, y, mask = jnp.asarray(SMALL[:, 0]), SMALL[:, 1], SMALL[:, 2] > 0.1
        labels = np.argmax(mask, axis=-1)

        def total(z):
            integer = jxent.softmax_cross_entropy_with_integer_labels(z, labels, where=mask)
            binary = jxent.sigmoid_binary_cross_entropy(z, y, where=mask, pos_weight=y[0])
            soft = jxent.softmax_cross_entropy(z, y[0]) + jxent.negative_log_likelihood(-z, 2)
            return jnp.sum(integer + soft + jnp.sum(binary, axis=-1))

        exact = jax.value_and_grad(total)(z)
        with jax.set_mesh(explicit_mesh()):
            results = jax.value_and_grad(total)(jax.device_put(z, spec))
        assert_same(results, exact)
        assert specs_in(results[1]) == [spec]


DATA, MODEL, TURNED = P("data", None), P("model", None), P(None, "data")
FLOATS, INTEGERS, TRUTHS = np.float32, np.int32, np.bool_


def integer_loss(z, labels):
    return jxent.softmax_cross_entropy_with_integer_labels(z, labels)


def loss_of_head(x, weights):
    kernel, labels = jnp.ones((8, 8)), jnp.arange(8)
    return jxent.linear_softmax_cross_entropy(
        x, kernel, labels, weights=weights, mesh=explicit_mesh(), class_axis_name="model"
    )


_SOFT, _NAMES = jxent.softmax_cross_entropy, "logits labels"
_REFUSED = [
    (_SOFT, [DATA, MODEL], FLOATS, _NAMES),
    (_SOFT, [DATA, TURNED], FLOATS, _NAMES),
    (_SOFT, [DATA, P(("data", "model"), None)], FLOATS, _NAMES),
    (jxent.softmax_kl_divergence, [TURNED, DATA], FLOATS, "logits target_logits"),
    (jxent.cross_entropy, [DATA, MODEL], FLOATS, "p q"),
    (jxent.kl_divergence, [DATA, MODEL], FLOATS, "log_predictions targets"),
    (jxent.weighted_mean, [DATA, MODEL], FLOATS, "losses weights"),
    (lambda z, m: jxent.entropy(z, where=m), [DATA, MODEL], TRUTHS, "p where"),
    (lambda z, m: jxent.binary_entropy(z, where=m), [DATA, MODEL], TRUTHS, "p where"),
    (integer_loss, [DATA, P("model")], INTEGERS, _NAMES),
    # The classes lie on the axis that the examples would lie on.
    (integer_loss, [P(None, "model"), P("model")], INTEGERS, _NAMES),
    (_SOFT, [DATA, P("data")], FLOATS, _NAMES),
    (lambda z, w: integer_loss(z, 0) + _SOFT(z, z, class_weights=w),
     [DATA, P("data")], INTEGERS, "logits class_weights"),
    (lambda y, w: jxent.sigmoid_binary_cross_entropy(jnp.zeros((8, 8)), y, pos_weight=w),
     [DATA, P("data")], FLOATS, "labels pos_weight"),
    (lambda z, i: jxent.softmax_kl_divergence_with_top_k_targets(z, i[:, :2], jnp.zeros((8, 2))),
     [DATA, MODEL], INTEGERS, "logits target_indices"),
    (loss_of_head, [DATA, P("model")], FLOATS, "inputs weights"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "specs", "dtype", "names"), _REFUSED)
def test_refused(function, specs, dtype, names):
    """What lies on other mesh axes: there JAX's arithmetic does not choose either."""
    name, other = names.split()
    with jax.set_mesh(explicit_mesh()):
        shapes = [(8,) * len(spec) for spec in specs]
        x, y = placed([np.ones(shapes[0], FLOATS), np.ones(shapes[1], dtype)], specs)
        message = re.escape(
            f"{other} must be sharded in a way that suits {name}, got {specs[1]} beside {specs[0]}:"
            " change one of them with jax.sharding.reshard"
        )
        with pytest.raises(ValueError, match=f"^{message}($|\n)"):
            function(x, y)


def test_what_the_message_advises():
    with jax.set_mesh(explicit_mesh()):
        x, y = placed([np.ones((8, 8), np.float32)] * 2, [DATA, MODEL])
        losses = jxent.softmax_cross_entropy(x, jax.sharding.reshard(y, DATA))
        assert jax.typeof(losses).sharding.spec == P("data")
