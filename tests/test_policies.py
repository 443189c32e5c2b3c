"""What a loss and its gradient are where the formula alone does not say, in order of precedence.

Two examples: something is wrong with the first, and the second must not notice. Each policy holds
op by op, compiled, and mapped over examples.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import ALL, BARE, bare

import jxent

INF, NAN = math.inf, math.nan

IN_EVERY_MODE = pytest.mark.parametrize("mode", ["eager", "jit", "vmap"])

_NOT_LOSSES = ("logsumexp", "log_softmax", "softmax")
_MASKABLE = [case for case in ALL if case.has_classes and case.name not in _NOT_LOSSES]
_INTEGER = [case for case in ALL if "labels" in case.kinds and case.accepts("where")]
_INTEGER_LOGITS = [case for case in _INTEGER if case.kinds[0] == "logits"]
_IGNORING = [case for case in _INTEGER if case.accepts("ignore_index")]
_SOFT = [case for case in ALL if case.name in ("softmax_cross_entropy", "poly_loss_cross_entropy")]
_SOFT.append(bare("safe_softmax_cross_entropy"))
_LOGITS = [case for case in ALL if case.kinds[0] == "logits" and case.accepts("axis")]
_LOGITS += [bare("safe_softmax_cross_entropy")]
_WITH_LIMIT = [case for case in _LOGITS if case.name != "logsumexp"]
_DIVERGENCES = [bare("softmax_kl_divergence"), bare("softmax_jensen_shannon_divergence")]


def every(cases):
    """In every mode; with options on only compiled, since they are ordinary arithmetic."""
    pairs = [(c, m) for c in cases for m in ("eager", "jit", "vmap") if m == "jit" or not c.options]
    return pytest.mark.parametrize(("case", "mode"), pairs, ids=lambda x: str(x))


@functools.cache
def _function(case, mode, has_where, ignore_index):
    fixed = {} if ignore_index is None else {"ignore_index": ignore_index}

    def value_and_gradient(where, *args):
        def total(*args):
            out = case.call(*args, **(fixed | ({"where": where} if has_where else {})))
            # The probabilities of an example add to one, which has no gradient.
            weighted = out @ jnp.arange(1.0, 1 + out.shape[-1]) if case.name == "softmax" else out
            return jnp.sum(weighted), out

        gradients, out = jax.grad(total, case.differentiable, has_aux=True)(*args)
        return out, gradients

    if mode == "eager":
        return value_and_gradient
    if mode == "jit":
        return jax.jit(value_and_gradient)
    axes = [0] * len(case.kinds) + [None] * len(case.options)
    return jax.jit(jax.vmap(value_and_gradient, (0 if has_where else None, *axes)))


@functools.cache
def _good(case, mode, where, ignore_index):
    where = None if where is None else np.asarray(where)
    return run(case, mode, case.args(), where=where, ignore_index=ignore_index)


def run(case, mode, args, where=None, ignore_index=None):
    """The losses, and the gradients with respect to the arguments, as NumPy arrays."""
    function = _function(case, mode, where is not None, ignore_index)
    where = None if where is None else jnp.asarray(where)
    return jax.tree.map(np.asarray, function(where, *map(jnp.asarray, args)))


def spoiled(case, **rows):
    """The example arguments with other first examples, by kind."""
    args = case.args()
    for kind, row in rows.items():
        i = case.kinds.index(kind)
        args[i] = args[i].at[0].set(jnp.asarray(row, args[i].dtype))
    return args


def check(case, mode, args, loss, gradient, **options):
    """The first example has this loss and gradient; the second is as if alone.

    `gradient` is a number for all of its entries, a list for the first argument's, or None where
    anything but a change of the second example's will do.
    """
    losses, gradients = run(case, mode, args, **options)
    where = options.get("where")
    where = where and tuple(tuple(x) if isinstance(x, list) else x for x in where)
    good, good_gradients = _good(case, mode, where, options.get("ignore_index"))
    np.testing.assert_allclose(losses[0], loss, rtol=1e-6, atol=0, err_msg="loss")
    np.testing.assert_allclose(losses[1], good[1], rtol=1e-6, err_msg="other loss")
    for i, (g, h) in enumerate(zip(gradients, good_gradients, strict=True)):
        if mode != "vmap" and case.differentiable[i] >= len(case.kinds):
            if not math.isnan(loss) and not math.isinf(loss):
                assert np.all(np.isfinite(g)), "gradient of an option"
            continue
        np.testing.assert_allclose(g[1], h[1], rtol=1e-6, err_msg="other gradient")
        if isinstance(gradient, list):
            if i == 0:
                np.testing.assert_allclose(g[0], gradient, rtol=1e-6, atol=1e-7)
        elif gradient is not None and case.differentiable[i] < len(case.kinds):
            np.testing.assert_array_equal(g[0], np.full_like(g[0], gradient), err_msg=str(i))


def _spoil_everything(case, number):
    return spoiled(case, **{k: 99 if k == "labels" else [number] * 3 for k in case.kinds})


# 1. Example masked by `where`, or every class masked: loss 0, gradient exactly 0.


@pytest.mark.parametrize("number", [NAN, INF, -INF])
@pytest.mark.parametrize(
    "where", [[False, True], [[False] * 3, [True] * 3]], ids=["example", "classes"]
)
@every(_MASKABLE)
def test_masked_example(case, mode, where, number):
    check(case, mode, _spoil_everything(case, number), 0.0, 0.0, where=where)


@pytest.mark.parametrize(
    "where", [[False, True], [[False] * 3, [True] * 3]], ids=["example", "classes"]
)
@pytest.mark.parametrize(
    ("name", "result"), [("logsumexp", -INF), ("log_softmax", -INF), ("softmax", 0.0)]
)
@IN_EVERY_MODE
def test_masked_example_of_what_is_no_loss(name, result, mode, where):
    case = bare(name)
    losses, (gradient,) = run(case, mode, spoiled(case, logits=[NAN, INF, INF]), where=where)
    np.testing.assert_array_equal(losses[0], np.full_like(losses[0], result))
    np.testing.assert_array_equal(gradient[0], 0.0)
    assert np.all(np.isfinite(losses[1]))
    assert np.all(np.isfinite(gradient[1]))


# 2. The label is `ignore_index`: loss 0, gradient exactly 0, even if the logits are NaN or inf.


@pytest.mark.parametrize("number", [1.0, NAN, INF, -INF])
@pytest.mark.parametrize("index", [-100, 2])
@every(_IGNORING)
def test_ignored_label(case, mode, index, number):
    args = spoiled(case, labels=index, **{case.kinds[0]: [number] * 3})
    check(case, mode, args, 0.0, 0.0, ignore_index=index)


# 3. Label outside [0, classes): NaN, and NaN in the example's gradient.


@pytest.mark.parametrize("label", [-1, -3, 3, 2**31 - 1, -(2**31)])
@every(_INTEGER)
def test_label_out_of_range(case, mode, label):
    check(case, mode, spoiled(case, labels=label), NAN, NAN)


@every(_INTEGER)
def test_label_out_of_range_before_infinity(case, mode):
    args = spoiled(case, labels=3, **{case.kinds[0]: [-INF] * 3})
    check(case, mode, args, NAN, NAN)


# 4. NaN in a class that counts: NaN, and NaN in the example's gradient.


@pytest.mark.parametrize("label", [0, 1])
@every(_INTEGER_LOGITS)
def test_nan_logit_of_integer_labels(case, mode, label):
    check(case, mode, spoiled(case, labels=label, logits=[0.0, NAN, 1.0]), NAN, NAN)


@every([case for case in _LOGITS if case not in _INTEGER])
def test_nan_logit(case, mode):
    logits = [k for k in case.kinds if k.endswith("logits")]
    for kind in logits:
        args = spoiled(case, **{kind: [0.0, NAN, 1.0]})
        losses, gradients = run(case, mode, args)
        assert np.all(np.isnan(losses[0]))
        assert np.all(np.isnan(gradients[case.kinds.index(kind)][0]))
        assert np.all(np.isfinite(losses[1]))
        assert all(np.all(np.isfinite(g[1])) for g in gradients[: len(case.kinds)])


@every([c for c in BARE if c.accepts("axis") and c not in _LOGITS and c.name != "weighted_mean"])
def test_nan_probability(case, mode):
    for kind in case.kinds:
        if kind != "labels":
            args = spoiled(case, **{kind: [NAN, 0.5, 0.5]})
            losses, gradients = run(case, mode, args)
            assert np.isnan(losses[0])
            if case.name != "negative_log_likelihood":  # Linear: its gradient knows no numbers.
                assert any(np.any(np.isnan(g[0])) for g in gradients)
            assert np.isfinite(losses[1])
            assert all(np.all(np.isfinite(g[1])) for g in gradients)


@every(_INTEGER_LOGITS)
def test_nan_before_infinity(case, mode):
    check(case, mode, spoiled(case, labels=0, logits=[-INF, NAN, 1.0]), NAN, NAN)


# 5. The integer label's class is masked, or its logit is -inf: +inf.

_FIRST_MASKED = [[False, True, True], [True, True, True]]


@pytest.mark.parametrize("logits", [[0.0, 1.0, 2.0], [NAN, 1.0, 2.0], [INF, -INF, -INF]])
@every(_INTEGER)
def test_label_on_masked_class(case, mode, logits):
    if case.kinds[0] == "predictions":
        logits = [0.0 if x == -INF else x for x in logits]
    args = spoiled(case, labels=0, **{case.kinds[0]: logits})
    check(case, mode, args, INF, None, where=_FIRST_MASKED)


@pytest.mark.parametrize("logits", [[-INF, 1.0, 2.0], [-INF] * 3, [-INF, INF, INF]])
@every(_INTEGER_LOGITS)
def test_label_on_impossible_class(case, mode, logits):
    check(case, mode, spoiled(case, labels=0, logits=logits), INF, None)


@every([case for case in _INTEGER if case.kinds[0] != "logits"])
def test_label_on_impossible_probability(case, mode):
    zero = 0.0 if case.kinds[0] == "predictions" else -INF
    check(case, mode, spoiled(case, labels=0, **{case.kinds[0]: [zero] * 3}), INF, None)


# 6. Soft-label mass on a masked class: ignored. 7. A -inf logit under a zero label: as if the
# class did not exist. In both cases the gradient is 0 there.


def _without_first_class(case, args):
    """The first example's loss and gradients with its first class taken away."""
    less = [x[:, 1:] if x.ndim == 2 else x[1:] if x.ndim else x for x in args]
    losses, gradients = run(case, "jit", less)
    return losses[0], [g[0] for g in gradients[: len(case.kinds)]]


def _check_first_class_is_gone(case, mode, args, where=None):
    losses, gradients = run(case, mode, args, where=where)
    loss, expected = _without_first_class(case, args)
    np.testing.assert_allclose(losses[0], loss, rtol=1e-6)
    for g, h in zip(gradients, expected, strict=False):
        assert np.all(np.isfinite(g))
        np.testing.assert_array_equal(g[0][0], 0.0)
        np.testing.assert_allclose(g[0][1:], h, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("number", [5.0, NAN, INF, -INF])
@every([c for c in _MASKABLE if c not in _INTEGER])
def test_masked_class(case, mode, number):
    args = case.args()
    args = [x.at[0, 0].set(number) if i < len(case.kinds) else x for i, x in enumerate(args)]
    _check_first_class_is_gone(case, mode, args, where=_FIRST_MASKED)


@every([c for c in _SOFT if "label_smoothing" not in c.options] + _DIVERGENCES)
def test_impossible_class_without_weight(case, mode):
    rows = {"logits": [-INF, 0.5, 1.0]}
    if "distributions" in case.kinds:
        rows["distributions"] = [0.0, 0.75, 0.25]
    else:
        rows["target_logits"] = [-INF, 1.0, 0.5]
    _check_first_class_is_gone(case, mode, spoiled(case, **rows))


@every([c for c in _LOGITS if c.kinds == ("logits",) and c.name != "log_softmax"])
def test_impossible_class(case, mode):
    args = spoiled(case, logits=[-INF, 0.5, 1.0])
    losses, (gradient,) = run(case, mode, args)
    loss, (expected,) = _without_first_class(case, args)
    np.testing.assert_allclose(losses[0][1:] if case.per_class else losses[0], loss, rtol=1e-6)
    np.testing.assert_allclose(gradient[0][1:], expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(gradient[0][0], 0.0)


@every(_SOFT)
def test_impossible_class_with_weight(case, mode):
    args = spoiled(case, logits=[-INF, 0.5, 1.0], distributions=[0.5, 0.5, 0.0])
    check(case, mode, args, INF, None)


@every([_DIVERGENCES[0]])
def test_divergence_from_impossible_class(case, mode):
    check(case, mode, spoiled(case, logits=[-INF, 0.5, 1.0]), INF, None)


@every([_DIVERGENCES[0]])
def test_divergence_of_impossible_class(case, mode):
    args = spoiled(case, logits=[0.0] * 3, target_logits=[-INF, 0.0, 0.0])
    check(case, mode, args, math.log(1.5), [1 / 3, -1 / 6, -1 / 6])


@IN_EVERY_MODE
def test_gradient_of_a_soft_label_is_its_cost(mode):
    case = bare("softmax_cross_entropy")
    args = spoiled(case, logits=[-INF, 0.0, 0.0], distributions=[0.0, 1.0, 0.0])
    _, (_, gradient) = run(case, mode, args)
    np.testing.assert_allclose(gradient[0], [0.0, math.log(2), math.log(2)], rtol=1e-6)


# 8. Every logit -inf and none masked, or two +inf logits: NaN.


@pytest.mark.parametrize("logits", [[-INF] * 3, [INF, 0.0, INF]])
@every(_WITH_LIMIT)
def test_no_limit(case, mode, logits):
    for kind in case.kinds:
        if kind.endswith("logits"):
            rows = {kind: logits}
            if "labels" in case.kinds:
                if logits[0] == -INF:
                    continue  # The label's logit is -inf: the row above decides.
                rows["labels"] = 0
            losses, gradients = run(case, mode, spoiled(case, **rows))
            assert np.all(np.isnan(losses[0]))
            assert np.all(np.isnan(gradients[case.kinds.index(kind)][0]))
            assert np.all(np.isfinite(losses[1]))
            assert all(np.all(np.isfinite(g[1])) for g in gradients[:1])


@pytest.mark.parametrize(
    ("logits", "result"),
    [([-INF] * 3, -INF), ([INF, 0.0, INF], INF), ([INF, 0.0, 1.0], INF), ([NAN, INF, 0.0], NAN)],
)
@IN_EVERY_MODE
def test_logsumexp_without_limit(logits, result, mode):
    case = bare("logsumexp")
    losses, (gradient,) = run(case, mode, spoiled(case, logits=logits))
    np.testing.assert_array_equal(losses[0], result)
    assert np.isfinite(losses[1])
    assert np.all(np.isfinite(gradient[1]))


@pytest.mark.parametrize(("label", "loss"), [(0, 0.0), (1, INF)])
@every([c for c in _INTEGER_LOGITS if not c.options])
def test_one_certain_class(case, mode, label, loss):
    args = spoiled(case, labels=label, logits=[INF, 0.0, 1.0])
    check(case, mode, args, loss, 0.0 if loss == 0 else None)


# 9. Binary losses of infinite logits: the limit.


@pytest.mark.parametrize("name", ["sigmoid_binary_cross_entropy", "sigmoid_focal_loss"])
@pytest.mark.parametrize(
    ("logit", "label", "loss", "slope"),
    [
        (INF, 1.0, 0.0, 0.0),
        (INF, 0.0, INF, 1.0),
        (-INF, 0.0, 0.0, 0.0),
        (-INF, 1.0, INF, -1.0),
        (INF, 0.25, INF, 0.75),
        (-INF, 0.25, INF, -0.25),
    ],
)
@IN_EVERY_MODE
def test_infinite_binary_logit(name, logit, label, loss, slope, mode):
    case = bare(name)
    if name == "sigmoid_focal_loss":
        slope *= abs(slope) ** 2  # (1 - p_t)² tends to the square of the label missed.
    args = spoiled(case, logits=[logit, 0.0, 1.0], distributions=[label, 0.5, 0.5])
    losses, gradients = run(case, mode, args)
    np.testing.assert_array_equal(losses[0][0], loss)
    np.testing.assert_allclose(gradients[0][0][0], slope, rtol=1e-6)
    assert not np.any(np.isnan(losses))
    assert not any(np.any(np.isnan(g)) for g in gradients)
    if loss == 0:
        # What has no weight costs nothing, so the gradient for the label is finite as well.
        assert all(np.all(np.isfinite(g)) for g in gradients)


@pytest.mark.parametrize("logit", [INF, -INF])
@IN_EVERY_MODE
def test_infinite_logit_entropy(logit, mode):
    case = bare("sigmoid_entropy")
    losses, (gradient,) = run(case, mode, spoiled(case, logits=[logit, 0.0, 1.0]))
    assert losses[0][0] == 0
    assert gradient[0][0] == 0
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize(
    ("logit", "target", "loss", "slope"),
    [
        (INF, INF, 0.0, 0.0),
        (-INF, -INF, 0.0, 0.0),
        (0.0, INF, math.log(2), -0.5),
        (0.0, -INF, math.log(2), 0.5),
        (INF, 0.0, INF, 0.5),
        (-INF, 0.0, INF, -0.5),
        (INF, -INF, INF, 1.0),
        (-INF, INF, INF, -1.0),
    ],
)
@IN_EVERY_MODE
def test_infinite_logit_divergence(logit, target, loss, slope, mode):
    case = bare("sigmoid_kl_divergence")
    rows = {"logits": [logit, 0.0, 1.0], "target_logits": [target, 0.5, 0.5]}
    losses, gradients = run(case, mode, spoiled(case, **rows))
    np.testing.assert_allclose(losses[0][0], loss, rtol=1e-6)
    np.testing.assert_allclose(gradients[0][0][0], slope, rtol=1e-6, atol=1e-7)
    if math.isfinite(loss):
        np.testing.assert_allclose(gradients[1][0][0], 0.0, atol=1e-7)
    assert not np.any(np.isnan(losses))
    assert all(np.all(np.isfinite(g[1])) for g in gradients)


# 10. A probability of 0 with no weight: 0, and 0 for its weightless terms in the gradient.


@pytest.mark.parametrize(
    ("name", "rows", "gradients"),
    [
        ("entropy", [[0.0, 1.0, 0.0]], [[0.0, -1.0, 0.0]]),
        ("cross_entropy", [[0.0, 1.0, 0.0]] * 2, [[0.0, 0.0, 0.0], [0.0, -1.0, 0.0]]),
        ("relative_entropy", [[0.0, 1.0, 0.0]] * 2, [[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]),
        ("jensen_shannon_divergence", [[0.0, 1.0, 0.0]] * 2, [[0.0, 0.0, 0.0]] * 2),
        ("kl_divergence", [[-INF, 0.0, -INF], [0.0, 1.0, 0.0]], [[0.0, -1, 0.0], [0.0, 1.0, 0.0]]),
        ("kl_divergence_with_log_targets", [[-INF, 0.0, -INF]] * 2, [[0.0, -1, 0], [0.0, 1, 0]]),
        ("generalized_kl_divergence", [[-INF, 0.0, -INF], [0.0, 1.0, 0.0]], [[0.0] * 3] * 2),
    ],
)
@IN_EVERY_MODE
def test_no_cost_without_weight(name, rows, gradients, mode):
    case = bare(name)
    losses, actual = run(case, mode, spoiled(case, **dict(zip(case.kinds, rows, strict=True))))
    assert losses[0] == 0
    for g, expected in zip(actual, gradients, strict=True):
        np.testing.assert_array_equal(g[0], np.asarray(expected, np.float32))
        assert np.all(np.isfinite(g[1]))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("cross_entropy", [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]),
        ("relative_entropy", [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]),
        ("kl_divergence", [[-INF, 0.0, -INF], [0.5, 0.5, 0.0]]),
        ("kl_divergence_with_log_targets", [[-INF, 0.0, -INF], [-1.0, -1.0, -INF]]),
        ("generalized_kl_divergence", [[-INF, 0.0, -INF], [0.5, 0.5, 0.0]]),
    ],
)
@IN_EVERY_MODE
def test_infinite_cost_with_weight(name, rows, mode):
    case = bare(name)
    check(case, mode, spoiled(case, **dict(zip(case.kinds, rows, strict=True))), INF, None)


@pytest.mark.parametrize(("p", "y", "slope"), [(0.0, 0.0, 1.0), (1.0, 1.0, -1.0)])
@IN_EVERY_MODE
def test_certain_binary_probability(p, y, slope, mode):
    case = bare("binary_cross_entropy")
    args = spoiled(case, predictions=[p, 0.5, 0.5], distributions=[y, 0.5, 0.5])
    losses, gradients = run(case, mode, args)
    assert losses[0][0] == 0
    assert gradients[0][0][0] == slope
    assert all(np.all(np.isfinite(g)) for g in gradients)


@pytest.mark.parametrize("p", [0.0, 1.0])
@IN_EVERY_MODE
def test_certain_binary_entropy(p, mode):
    case = bare("binary_entropy")
    losses, (gradient,) = run(case, mode, spoiled(case, distributions=[p, 0.5, 0.5]))
    assert losses[0][0] == 0
    assert np.all(np.isfinite(gradient))


@every([case for case in _INTEGER if "class_weights" in case.options])
def test_weightless_class_of_an_impossible_label(case, mode):
    zero = 0.0 if case.kinds[0] == "predictions" else -INF
    args = spoiled(case, labels=0, **{case.kinds[0]: [zero, 0.5, 1.0]})
    position = len(case.kinds) + list(case.options).index("class_weights")
    args[position] = args[position].at[0].set(0.0)
    losses, gradients = run(case, mode, args)
    assert np.isfinite(losses[0])
    assert np.all(np.isfinite(gradients[0]))


# 11. No example counts in a mean: 0, with the gradient 0.


@pytest.mark.parametrize("loss", [1.0, NAN, INF])
@pytest.mark.parametrize("axis", [None, 1])
def test_mean_of_nothing(loss, axis):
    def total(losses, weights):
        return jnp.sum(jxent.weighted_mean(losses, weights, axis))

    losses, weights = jnp.full((2, 3), loss), jnp.zeros((2, 3))
    for function in (total, jax.jit(total)):
        value, gradients = jax.value_and_grad(function, (0, 1))(losses, weights)
        assert value == 0
        assert all(np.all(np.asarray(g) == 0) for g in gradients)
