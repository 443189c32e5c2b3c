"""What a loss and its gradient are where the formula alone does not say, in order of precedence.

The policies are a table of rows, each with what must come of it. All rows of a function go through
one program together with good ones, which must not notice.
"""

import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from jxent._selftest.errors import of_some
from support.cases import ALL, BARE, INTEGERS, fast_jit, with_gradients

INF, NAN = math.inf, math.nan
LOG_2 = math.log(2)
SOME_NAN = "some NaN"
AS_OF_TWO = "that of the other two classes, and 0 for the first"


class Row(NamedTuple):
    """An example and its result.

    Nothing is said of what is None, but that a gradient is finite where the loss is, and that an
    entry of a list is no NaN.
    """

    policy: str
    args: dict[str, Any]
    """By kind of argument; the others are those of a good example."""
    loss: Any
    gradient: Any = None
    """A number or a list, for all arguments or by kind of argument."""
    layout: str = "plain"
    where: Any = True
    """Whether the example counts, or each of its classes."""
    rtol: float = 1e-6
    """Of the gradient."""


LAYOUTS = {
    "plain": {},
    "classes": {"where": [True] * 3},
    "classes, ignoring": {"where": [True] * 3, "ignore_index": 2},
    "examples": {"where": True},
    "examples, ignoring": {"where": True, "ignore_index": -100},
    "ignoring": {"ignore_index": -100},
}
"""What is given beside the arguments; each is one program, in which `where` is traced."""
_WITHOUT_OPTIONS = {"ignoring", "examples, ignoring"}
"""What the quick tier has without options alone; "examples" it leaves to others with a mask."""
_MOST_ROWS = 12
"""So many examples have the program that leaves out a class, whatever asks for it."""

_NOT_LOSSES = {"logsumexp": -INF, "log_softmax": -INF, "softmax": 0.0}
"""And the result of a masked example."""
_SOFT = {"softmax_cross_entropy", "safe_softmax_cross_entropy", "poly_loss_cross_entropy"}
_TWO_CLASSES = [False, True, True]


def policies(case):
    """The rows for a function, in order of precedence."""
    of_logits = "logits" in case.kinds and (case.accepts("axis") or case.name in _SOFT)
    integer = "labels" in case.kinds and case.accepts("where")
    if case.has_classes:
        yield from _masked(case)
    if integer:
        yield from _integer_labels(case)
    if of_logits:
        yield from _logits(case, integer)
    elif case.accepts("axis") and not case.options and case.name != "weighted_mean":
        for kind in set(case.kinds) - {"labels"}:
            # The gradient of a linear function knows no numbers.
            gradient = None if case.name == "negative_log_likelihood" else SOME_NAN
            yield Row("NaN probability", {kind: [NAN, 0.5, 0.5]}, NAN, gradient)
    if not case.options:
        yield from _TABLE.get(case.name, ())


def _masked(case):
    number_of = _NOT_LOSSES.get(case.name, 0.0)
    layout = _and_ignoring(case, "classes")
    for number in (NAN, INF, -INF):
        bad = {
            kind: np.full(x.shape[1:], 99 if kind in INTEGERS else number)
            for kind, x in zip(case.kinds, case.args(), strict=False)
        }
        for masked in sorted({"examples", _and_ignoring(case, "examples")}):
            yield Row("masked example", bad, number_of, 0.0, masked, False)
        yield Row("no class left", bad, number_of, 0.0, layout, [False] * 3)
    if set(INTEGERS) & set(case.kinds) or case.name in _NOT_LOSSES:
        return
    for number in (5.0, NAN, INF, -INF):
        args = [[number, *x[0, 1:].tolist()] for x in case.args()[: len(case.kinds)]]
        bad = dict(zip(case.kinds, args, strict=True))
        yield Row("masked class", bad, AS_OF_TWO, AS_OF_TWO, layout, _TWO_CLASSES)


def _and_ignoring(case, layout):
    """The layout of a mask: also `ignore_index` must not make it forget that."""
    return f"{layout}, ignoring" if case.accepts("ignore_index") else layout


def _integer_labels(case):
    first = case.kinds[0]
    for number in (1.0, NAN, INF, -INF):
        if case.accepts("ignore_index"):
            for layout in ("ignoring", "classes, ignoring", "examples, ignoring"):
                row = {"labels": LAYOUTS[layout]["ignore_index"], first: [number] * 3}
                yield Row("ignored label", row, 0.0, 0.0, layout)
    for label in (-1, -3, 3, 2**31 - 1, -(2**31)):
        yield Row("label out of range", {"labels": label}, NAN, NAN)
    row, layout = {"labels": 3, first: [-INF] * 3}, _and_ignoring(case, "classes")
    yield Row("label out of range before infinity", row, NAN, NAN)
    for numbers in ([0.0, 1.0, 2.0], [NAN, 1.0, 2.0], [INF, -INF, -INF]):
        numbers = [0.0 if x == -INF and first == "predictions" else x for x in numbers]
        row = {"labels": 0, first: numbers}
        # Where softmax has a limit, the class that is left out still has no gradient.
        gradient = [0.0, None, None] if first == "logits" and numbers[1] == 1.0 else None
        # The ratio of two probabilities that are 0 is none.
        is_ratio = "target_logits" in case.kinds
        loss, gradient = (NAN, [0.0, NAN, NAN]) if is_ratio else (INF, gradient)
        yield Row("label on a masked class", row, loss, gradient, layout, _TWO_CLASSES)
    if first != "logits":
        zero = 0.0 if first == "predictions" else -INF
        yield Row("label without probability", {"labels": 0, first: [zero] * 3}, INF)


def _logits(case, integer):
    for kind in case.kinds:
        if not kind.endswith("logits"):
            continue
        gradient = NAN if integer else {kind: NAN}
        for label in (0, 1) if integer else (0,):
            yield Row("NaN logit", {kind: [0.0, NAN, 1.0], "labels": label}, NAN, gradient)
        if integer:
            row = {kind: [-INF, NAN, 1.0], "labels": 0}
            yield Row("NaN before infinity", row, NAN, NAN)
        if case.name == "logsumexp":
            continue
        no_limit = [[INF, 0.0, INF]] if integer else [[-INF] * 3, [INF, 0.0, INF]]
        for numbers in no_limit:
            row = {kind: numbers, "labels": 0}
            yield Row("no limit", row, NAN, {kind: NAN})
    if integer:
        is_ratio = "target_logits" in case.kinds
        for numbers in ([-INF, 1.0, 2.0], [-INF] * 3, [-INF, INF, INF]):
            # A cost is infinite whatever the other classes are; a ratio needs both softmaxes.
            loss = NAN if is_ratio and numbers[1] != 1.0 else INF
            yield Row("label on an impossible class", {"logits": numbers, "labels": 0}, loss)
        if is_ratio:
            row = {"target_logits": [-INF, 1.0, 2.0], "labels": 0}
            yield Row("label on an impossible class", row, -INF)
            both = row | {"logits": [-INF, 0.0, 1.0]}
            yield Row("label on an impossible class of both", both, NAN)
        elif not case.options:
            for label, loss, gradient in ((0, 0.0, 0.0), (1, INF, None)):
                row = {"logits": [INF, 0.0, 1.0], "labels": label}
                yield Row("one certain class", row, loss, gradient)
    rest = {"distributions": [0.0, 0.75, 0.25], "target_logits": [-INF, 1.0, 0.5]}
    has_rest = set(case.kinds[1:]) <= rest.keys()
    if has_rest and case.name != "log_softmax" and "label_smoothing" not in case.options:
        row = {"logits": [-INF, 0.5, 1.0]} | {kind: rest[kind] for kind in case.kinds[1:]}
        yield Row("impossible class", row, AS_OF_TWO, AS_OF_TWO)
    if case.name in _SOFT:
        row = {"logits": [-INF, 0.5, 1.0], "distributions": [0.5, 0.5, 0.0]}
        yield Row("impossible class with weight", row, INF)


def _binary(*names):
    """Of each element: logit, label, loss, and the derivative for the logit."""
    elements = [
        (INF, 1.0, 0.0, 0.0), (INF, 0.0, INF, 1.0), (INF, 0.25, INF, 0.75),
        (-INF, 0.0, 0.0, 0.0), (-INF, 1.0, INF, -1.0), (-INF, 0.25, INF, -0.25),
    ]  # fmt: skip
    for name in names:
        # (1 - p_t)² of a focal loss tends to the square of the label missed.
        power = 2 if name == "sigmoid_focal_loss" else 0
        rows = [
            ([z, 0.0, 1.0], [y, 0.5, 0.5], [loss, None, None],
             [slope * abs(slope) ** power, None, None], None)
            for z, y, loss, slope in elements
        ]  # fmt: skip
        yield name, _pairs("infinite logit", "logits", "distributions", rows)


def _pairs(policy, first, second, rows):
    """Of two arguments, with the loss and the gradients for both."""
    return [
        Row(policy, {first: x, second: y}, loss, {first: to_x, second: to_y})
        for x, y, loss, to_x, to_y in rows
    ]


def _infinite(first, second, *pairs):
    return [Row("infinite cost", {first: x, second: y}, INF) for x, y in pairs]


_CERTAIN, _HALF, _NO_COST = [0.0, 1.0, 0.0], [0.5, 0.5, 0.0], "no cost without weight"
_NOTHING, _UP, _DOWN = [0.0] * 3, [0.0, 1.0, 0.0], [0.0, -1.0, 0.0]
_LOG_CERTAIN = [-INF, 0.0, -INF]
_OF_LOGS = ("log_predictions", "distributions")
_TWO_LOGS = ("log_predictions", "log_distributions")
_OF_PROBABILITIES = ("distributions", "predictions")


def _no_cost(kinds, first, second, to_first, to_second):
    return _pairs(_NO_COST, *kinds, [(first, second, 0.0, to_first, to_second)])


_TABLE = {
    "logsumexp": [
        Row("no limit", {"logits": numbers}, result)
        for numbers, result in [([-INF] * 3, -INF), ([INF, 0.0, INF], INF), ([INF, 0.0, 1.0], INF),
                                ([NAN, INF, 0.0], NAN)]
    ],
    "softmax_cross_entropy": _pairs(
        "the gradient of a soft label is its cost", "logits", "distributions",
        [([-INF, 0.0, 0.0], _CERTAIN, LOG_2, None, [0.0, LOG_2, LOG_2])],
    ),
    "softmax_kl_divergence": [
        Row("from an impossible class", {"logits": [-INF, 0.5, 1.0]}, INF),
        Row("of an impossible class", {"logits": [0.0] * 3, "target_logits": [-INF, 0.0, 0.0]},
            math.log(1.5), {"logits": [1 / 3, -1 / 6, -1 / 6]}),
    ],
    **dict(_binary("sigmoid_binary_cross_entropy", "sigmoid_focal_loss")),
    "sigmoid_entropy": [
        Row("infinite logit", {"logits": [x, 0.0, 1.0]}, [0.0, None, None], [0.0, None, None])
        for x in (INF, -INF)
    ],
    "sigmoid_kl_divergence": _pairs(
        "infinite logit", "logits", "target_logits",
        [
            ([z, 0.0, 1.0], [target, 0.5, 0.5], [loss, None, None], [slope, None, None],
             [0.0 if loss < INF else None, None, None])
            for z, target, loss, slope in [
                (INF, INF, 0.0, 0.0), (-INF, -INF, 0.0, 0.0), (0.0, INF, LOG_2, -0.5),
                (0.0, -INF, LOG_2, 0.5), (INF, 0.0, INF, 0.5), (-INF, 0.0, INF, -0.5),
                (INF, -INF, INF, 1.0), (-INF, INF, INF, -1.0),
            ]
        ],
    ),
    "entropy": [Row(_NO_COST, {"distributions": _CERTAIN}, 0.0, _DOWN)],
    "cross_entropy": [
        *_no_cost(_OF_PROBABILITIES, _CERTAIN, _CERTAIN, _NOTHING, _DOWN),
        *_infinite(*_OF_PROBABILITIES, (_HALF, _CERTAIN)),
    ],
    "relative_entropy": [
        *_no_cost(_OF_PROBABILITIES, _CERTAIN, _CERTAIN, _UP, _DOWN),
        *_infinite(*_OF_PROBABILITIES, (_HALF, _CERTAIN)),
    ],
    "jensen_shannon_divergence": _no_cost(
        _OF_PROBABILITIES, _CERTAIN, _CERTAIN, _NOTHING, _NOTHING
    ),
    "kl_divergence": [
        *_no_cost(_OF_LOGS, _LOG_CERTAIN, _CERTAIN, _DOWN, _UP),
        *_infinite(*_OF_LOGS, (_LOG_CERTAIN, _HALF)),
    ],
    "kl_divergence_with_log_targets": [
        *_no_cost(_TWO_LOGS, _LOG_CERTAIN, _LOG_CERTAIN, _DOWN, _UP),
        *_infinite(*_TWO_LOGS, (_LOG_CERTAIN, [-1.0, -1.0, -INF])),
    ],
    "generalized_kl_divergence": [
        *_no_cost(_OF_LOGS, _LOG_CERTAIN, _CERTAIN, _NOTHING, _NOTHING),
        *_infinite(*_OF_LOGS, (_LOG_CERTAIN, _HALF)),
    ],
    "binary_cross_entropy": _pairs(
        _NO_COST, "predictions", "distributions",
        [
            ([p, 0.5, 0.5], [y, 0.5, 0.5], [0.0, None, None], [slope, None, None], None)
            for p, y, slope in ((0.0, 0.0, 1.0), (1.0, 1.0, -1.0))
        ],
    ),
    "binary_entropy": [
        Row(_NO_COST, {"distributions": [p, 0.5, 0.5]}, [0.0, None, None]) for p in (0.0, 1.0)
    ],
}  # fmt: skip


def _value_and_gradient(case, fixed):
    def losses(where, *args):
        return case.call(*args, **fixed, **({} if where is None else {"where": where}))

    def unequal(p):
        """The probabilities of an example add to one, which has no gradient."""
        return jnp.broadcast_to(jnp.arange(1.0, 1 + p.shape[-1]), p.shape)

    both = with_gradients(losses, unequal if case.name == "softmax" else None)

    def function(where, *args):
        out, (_, *gradients) = both(where, *args)
        return out, tuple(gradients[i] for i in case.differentiable)

    return function


@functools.cache
def program(case, layout, mode):
    """The losses and gradients of examples, and with options those of each example for them."""
    fixed = dict(LAYOUTS[layout])
    has_where = fixed.pop("where", None) is not None
    function = _value_and_gradient(case, fixed)
    if mode == "vmap":
        axes = [0] * len(case.kinds) + [None] * len(case.options)
        function = jax.vmap(function, (0 if has_where else None, *axes))
    return function if mode == "eager" else fast_jit(function)


def stacked(case, layout, rows):
    """The arguments of these rows, then of the good examples, and their mask."""
    good = case.args()
    args = []
    for kind, x in zip(case.kinds, good, strict=False):
        first = np.asarray(x[0])
        bad = [np.asarray(row.args.get(kind, first)) for row in rows]
        args.append(jnp.asarray(np.stack([*bad, *np.asarray(x)]), x.dtype))
    where = None
    if "where" in LAYOUTS[layout]:
        all_of_them = np.asarray(LAYOUTS[layout]["where"])
        masks = [np.broadcast_to(row.where, all_of_them.shape) for row in rows]
        where = jnp.asarray(np.stack([*masks, *[all_of_them] * len(good[0])]))
    return where, *args, *good[len(case.kinds) :]


def _groups():
    """Each function, layout and mode that has rows: with options mapped, one by one.

    With options rows that need no mask go through the program of those that have one of classes.
    """
    with_options = {case.name for case in ALL if case.options}
    for case in ALL:
        rows_of_case = list(policies(case))
        if case.options and case.has_classes:
            of_classes = _and_ignoring(case, "classes")
            rows_of_case = [
                row._replace(layout=of_classes) if row.layout == "plain" else row
                for row in rows_of_case
            ]
        for layout in LAYOUTS:
            rows = [row for row in rows_of_case if row.layout == layout]
            if not rows:
                continue
            # Op by op, and mapped, nothing depends on the layout.
            has_options = case.name in with_options
            others = ["eager", "vmap"][: 1 if has_options else 2] if layout == "plain" else []
            for mode in ["vmap"] if case.options else ["jit", *others]:
                has_options_quick = case.options and layout not in _WITHOUT_OPTIONS
                is_quick = layout != "examples" and (has_options_quick or mode == "jit")
                marks = () if is_quick else pytest.mark.full
                yield pytest.param(
                    case, layout, mode, rows, id=f"{case}-{layout}-{mode}", marks=marks
                )


@pytest.mark.parametrize(("case", "layout", "mode", "rows"), list(_groups()))
def test_policy(case, layout, mode, rows):
    function, bad = program(case, layout, mode), stacked(case, layout, rows)
    good = stacked(case, layout, [Row("good", {}, None)] * len(rows))
    losses, gradients = jax.tree.map(np.asarray, function(*bad))
    good_losses, good_gradients = jax.tree.map(np.asarray, function(*good))
    count, positional = len(rows), len(case.kinds)
    chex.assert_trees_all_close(losses[count:], good_losses[count:], rtol=1e-6, strict=True)
    kinds = [k for k in case.kinds if k not in INTEGERS]
    for i, (g, h) in enumerate(zip(gradients, good_gradients, strict=True)):
        if mode == "vmap" or case.differentiable[i] < positional:
            chex.assert_trees_all_close(g[count:], h[count:], rtol=1e-6, strict=True)
    less = [i for i, row in enumerate(rows) if row.loss is AS_OF_TWO]
    of_two = _of_the_other_classes(case, mode, bad[1:], less) if less else None
    for i, row in enumerate(rows):
        try:
            _check_row(
                row if i not in less else _as_of_two(case, row, less.index(i), *of_two),
                losses[i],
                {kind: g[i] for kind, g in zip(kinds, gradients, strict=False)},
            )
            if mode == "vmap" and np.all(np.isfinite(losses[i])):
                assert all(np.all(np.isfinite(g[i])) for g in gradients[len(kinds) :]), "options"
        except AssertionError as error:
            error.add_note(f"row {i}: {row}")
            raise


def _of_the_other_classes(case, mode, args, rows):
    """The losses and gradients of these rows without the first class."""
    assert len(rows) <= _MOST_ROWS
    chosen, positional = np.resize(rows, _MOST_ROWS), len(case.kinds)
    args = [x[chosen] if i < positional else x for i, x in enumerate(map(np.asarray, args))]
    less = [x[:, 1:] if x.ndim == 2 else x[1:] if x.ndim else x for x in args]
    return jax.tree.map(np.asarray, program(case, "plain", mode)(None, *less))


def _as_of_two(case, row, i, losses, gradients):
    nothing = [None] if case.name == "softmax" else []
    loss = [*nothing, *losses[i]] if case.per_class else losses[i]
    parts = {
        kind: [0.0, *gradient[i]] for kind, gradient in zip(case.kinds, gradients, strict=False)
    }
    return row._replace(loss=loss, gradient=parts, rtol=2e-6)


def _check_row(row, loss, gradients):
    _check(loss, row.loss, "loss", 1e-6)
    for kind, gradient in gradients.items():
        expected = row.gradient.get(kind) if isinstance(row.gradient, dict) else row.gradient
        if expected is not None and expected is not SOME_NAN:
            _check(gradient, expected, f"gradient for {kind}", row.rtol)
    if row.gradient is SOME_NAN:
        assert any(np.any(np.isnan(g)) for g in gradients.values())
    elif np.all(np.isfinite(loss)):
        chex.assert_tree_all_finite(gradients)


def _check(got, expected, what, rtol):
    """A zero is exact."""
    expected = np.broadcast_to(np.asarray(expected, object), got.shape)
    for x, right in zip(np.ravel(got), np.ravel(expected), strict=True):
        if right is None:
            assert not np.isnan(x), what
        else:
            np.testing.assert_allclose(x, right, rtol=rtol, atol=0, err_msg=what)


_WEIGHED = [
    c for c in ALL if "class_weights" in c.options and "labels" in c.kinds and c.has_classes
]


@pytest.mark.parametrize("case", _WEIGHED, ids=str)
def test_weightless_class_of_an_impossible_label(case):
    zero = 0.0 if case.kinds[0] == "predictions" else -INF
    row = Row("no weight", {"labels": 0, case.kinds[0]: [zero, 0.5, 1.0]}, None)
    where, *args = stacked(case, "plain", [row])
    position = len(case.kinds) + list(case.options).index("class_weights")
    args[position] = args[position].at[0].set(0.0)
    losses, gradients = program(case, "plain", "jit")(where, *args)
    chex.assert_tree_all_finite((losses[0], gradients[0]))


@pytest.mark.parametrize("axis", [None, 1])
def test_mean_of_nothing(axis):
    """No example counts in a mean: 0, with the gradient 0."""

    def total(losses, weights):
        return jnp.sum(jxent.weighted_mean(losses, weights, axis))

    value_and_gradients = fast_jit(jax.value_and_grad(total, (0, 1)))
    for loss in (1.0, NAN, INF):
        results = value_and_gradients(np.full((2, 3), loss, np.float32), np.zeros((2, 3), "f"))
        chex.assert_trees_all_equal(results, jax.tree.map(np.zeros_like, results), strict=True)


# Masks whose dimensions of size 1 stand for all.


@pytest.mark.parametrize("case", [case for case in BARE if case.accepts("where")], ids=str)
def test_masks_that_are_repeated(case):
    """As the same mask written out."""
    args = case.args()
    rank = args[0].ndim
    masks = np.array([[True], [False]]), np.array([[True, False, True]]), np.array([[True]])
    masks = [mask.reshape((1,) * (rank - 2) + mask.shape) for mask in masks]

    def of_mask(mask):
        function = functools.partial(case.call, where=mask)
        of_numbers, numbers = of_some(function, case.differentiable, args)

        def total(*numbers):
            out = of_numbers(*numbers)
            return jnp.sum(out, where=jnp.isfinite(out)), out

        return jax.grad(total, tuple(range(len(numbers))), has_aux=True)(*numbers)

    both = masks, [np.broadcast_to(mask, args[0].shape) for mask in masks]
    given, exact = fast_jit(lambda both: jax.tree.map(of_mask, both))(both)
    chex.assert_trees_all_close(given, exact, rtol=1e-6, strict=True)
