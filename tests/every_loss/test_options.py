"""Options that are one number, and weights whose sum divides: what is refused, what counts."""

import functools
import inspect
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import BARE, fast_jit, with_gradients

INF, NAN = math.inf, math.nan

# For each option: numbers out of its range, numbers at its edges, and what the error says.
_UNIT = "lie in [0, 1], got {}"
_AT_LEAST_0 = "be a finite number of at least 0, got {}; 0 switches it off"
OPTIONS = {
    "label_smoothing": ([-1e-6, 1.0001, INF, -INF, NAN], [0, 1, 0.0, 1.0, -0.0], _UNIT),
    "z_loss": ([-1e-6, -1, INF, -INF, NAN], [0, 1, 0.0, -0.0, 1e4], _AT_LEAST_0),
    "gamma": ([-1e-6, -1, INF, -INF, NAN], [0, 2, 0.0, -0.0, 0.5], _AT_LEAST_0),
    "alpha": ([-1e-6, -1, 1.0001, INF, NAN], [0, 1, 0.0, 1.0], f"{_UNIT}; None switches it off"),
    "epsilon": ([INF, -INF, NAN], [0, -1, -1.5, 1e3],
                "be a finite number, got {}; 0 switches it off"),
    "logit_softcap": ([0, 0.0, -0.0, -30, -INF, NAN, 1e-300], [1, 30, 1e30, INF],
                      "be positive, got {}; None switches it off"),
    "weight": ([-1e-6, 1.0001, INF, -INF, NAN], [0, 1, 0.0, 1.0, -0.0], _UNIT),
    "logit_scale": ([INF, -INF, NAN], [1, 0.0, -2.0, 1e30],
                    "be a finite number, got {}; None switches it off"),
}  # fmt: skip
FUNCTIONS = [(case, option) for case in BARE for option in OPTIONS if case.accepts(option)]
every_option = pytest.mark.parametrize(("case", "option"), FUNCTIONS, ids=str)


def _kinds(number):
    """All that a concrete number may be; JAX's own arrays and NumPy's, too."""
    yield number
    with np.errstate(all="ignore"):
        yield np.float32(number)
        yield np.float64(number)
        yield np.asarray(number, np.float32)
        yield jnp.asarray(np.float32(number))


def test_every_option_was_found():
    numbers = {"label_smoothing", "z_loss", "gamma", "alpha", "epsilon", "logit_softcap",
               "logit_scale", "weight"}  # fmt: skip
    assert {option for _, option in FUNCTIONS} == numbers == set(OPTIONS)
    # What is no number: arrays, names, and what is known when a program is traced.
    others = {"axis", "where", "class_weights", "pos_weight", "weights", "bias", "class_mask",
              "ignore_index", "reduction", "chunk_size", "precision", "class_axis_name", "mesh",
              "example_spec", "axis_name", "keepdims"}  # fmt: skip
    for case in BARE:
        assert set(list(inspect.signature(case.function).parameters)[len(case.kinds) :]) <= (
            numbers | others
        )


@every_option
def test_out_of_range(case, option):
    """The error names the option, the number, and what switches the option off."""
    numbers, _, message = OPTIONS[option]
    for number in numbers:
        for x in _kinds(number):
            with pytest.raises(ValueError, match=rf"^{option} must ") as caught:
                case.call(*case.args(), **{option: x})
            assert str(caught.value) == f"{option} must {message.format(x)}"

    # A number that the program is traced with is as concrete.
    with pytest.raises(ValueError, match=rf"^{option} must "):
        jax.jit(lambda *args: case.call(*args, **{option: np.float32(-NAN)}))(*case.args())


@every_option
def test_in_range(case, option):
    """The edges belong to it; traced numbers are taken at their word."""
    for number in OPTIONS[option][1]:
        for x in _kinds(number):
            jax.eval_shape(lambda *args, x=x: case.call(*args, **{option: x}), *case.args())
    jax.eval_shape(lambda x, *args: case.call(*args, **{option: x}), -1.0, *case.args())


INPUTS = np.float32([[0.75, -0.5], [-1.25, 2.0], [1e-6, 1e-7], [1e6, 1e5]])
KERNEL = np.float32([[1.0, -0.5, 0.25], [-0.75, 0.5, 1.25]])
LABELS = np.array([0, 1, 2, 0])
_head = functools.partial(jxent.linear_softmax_cross_entropy, reduction="none", chunk_size=2)


@functools.cache
def _capped(with_cap):
    def losses(x, kernel, cap):
        return _head(x, kernel, LABELS, logit_softcap=cap if with_cap else None)

    return fast_jit(with_gradients(losses))


@pytest.mark.parametrize("cap", [INF, 3.4e38, 1e32, 1e30, 1e25])
def test_an_infinite_cap_is_none(cap):
    """Nor is one beside which logits vanish, traced and concrete."""
    expected, expected_gradients = _capped(False)(INPUTS, KERNEL, 1.0)
    losses, gradients = _capped(True)(INPUTS, KERNEL, cap)
    concrete = _head(INPUTS, KERNEL, LABELS, logit_softcap=cap)
    chex.assert_trees_all_close(losses, expected, concrete, rtol=1e-6, strict=True)
    chex.assert_trees_all_close(
        gradients[:2], expected_gradients[:2], rtol=1e-5, atol=1e-9, strict=True
    )
    assert abs(gradients[2]) < 1e-20


def test_a_cap_caps():
    losses, _ = _capped(True)(INPUTS, KERNEL, 2.0)
    logits = 2 * np.tanh(INPUTS.astype(np.float64) @ KERNEL / 2)
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), LABELS]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


# Weights under a mean.

ADVANTAGES = [1.5, -1.25, 0.25, -0.5]  # They add up to nothing.
_LOSSES = [0.5, 2.0, 0.25, 1.0]
_AS_ARRAYS = [list, tuple, np.float32, np.float64, jnp.asarray]


def _mean_of_head(weights, **options):
    return jxent.linear_softmax_cross_entropy(INPUTS, KERNEL, LABELS, weights=weights, **options)


@pytest.mark.parametrize("array", _AS_ARRAYS, ids=lambda kind: kind.__name__)
def test_weights_of_both_signs_have_no_mean(array):
    """The error says what to write, under `jit` as well where the weights are concrete."""
    weights, of_classes = array(ADVANTAGES), array(ADVANTAGES[:3])
    negative = "weights must not be negative, got -1.25: "
    of_head = f"{negative}.* Write reduction='sum' and .* reduction='none'"
    of_losses = rf"{negative}.* Write jnp.sum\(weights \* losses\)"
    losses = jnp.asarray(_LOSSES)
    for message, call in [
        (f"^{of_head}", lambda: _mean_of_head(weights)),
        (f"^{negative}", jax.jit(lambda: _mean_of_head(weights))),
        (f"^class_{negative}", lambda: _mean_of_head(None, class_weights=of_classes)),
        (f"^{of_losses}", lambda: jxent.weighted_mean(_LOSSES, weights)),
        (f"^{negative}", jax.jit(lambda: jxent.weighted_mean(losses, weights))),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


def test_advantages_have_a_sum():
    """What the errors propose to write."""

    @fast_jit
    def results():
        none = {"reduction": "none"}
        return (
            _mean_of_head(None, **none),
            _mean_of_head(ADVANTAGES, reduction="sum"),
            _mean_of_head(ADVANTAGES, **none),
            _mean_of_head(None, class_weights=ADVANTAGES[:3], **none),
        )

    losses, total, each, weighted = (np.asarray(x, np.float64) for x in results())
    np.testing.assert_allclose(total, np.dot(ADVANTAGES, losses), rtol=1e-6)
    np.testing.assert_allclose(each, ADVANTAGES * losses, rtol=1e-6)
    np.testing.assert_allclose(weighted, np.take(ADVANTAGES, LABELS) * losses, rtol=1e-6)


@pytest.mark.parametrize("weights", [[0, 0, 1, 2], [-0.0, 0.5, 0, 1], [True, False, True, True]])
def test_weights_that_are_not_negative(weights):
    of_head = np.asarray(_mean_of_head(None, reduction="none"), np.float64)
    means = jxent.weighted_mean(_LOSSES, weights), _mean_of_head(weights)
    expected = [np.average(x, weights=np.asarray(weights, float)) for x in (_LOSSES, of_head)]
    np.testing.assert_allclose(means, expected, rtol=1e-6)
