"""The sizes that errors are relative to, where that is not simply the result.

Rounding the terms of a sum costs some eps of the sum of their absolute values, however much of it
cancels. That sum is the size of a value or of a gradient entry. If all terms have one sign, it is
the number itself. Otherwise a function here, with the loss's name, computes it. Each term also has
an extra error of its own, in eps. It is mostly the term times a logarithm such as log p, because
the subtraction of the largest logit loses so many eps.

Each function takes the exact result, the arguments of the loss as arrays of decimals, and its
options. It returns the size of the value, then those of the gradients for the floating-point
arguments. A size that is None or missing is the number itself.
"""

from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from . import exact
from .exact import Array, Result

ZERO: Array = exact.ZERO
ONE: Array = exact.ONE
exp: Any = np.frompyfunc(exact.exp, 1, 1)
ln: Any = np.frompyfunc(exact.ln, 1, 1)
times: Any = np.frompyfunc(exact.times, 2, 1)
nats: Any = np.frompyfunc(exact.nats, 1, 1)


class Size(NamedTuple):
    """The sum of the absolute values of the terms, and the sum of their extra errors in eps."""

    terms: Array
    extra: Array


Sizes = tuple[Size | None, ...]


class Quantity(NamedTuple):
    """Exact numbers and their sizes; for gradients also where the derivative is infinite."""

    exact: Array
    terms: Array
    extra: Array
    steep: Array = False


def of_terms(*terms: tuple[Any, Any]) -> Size:
    """Returns the size of a sum of terms, each given as (term, its own extra error in eps)."""
    shape = np.broadcast_shapes(*(np.shape(term) for term, _ in terms))
    zero = np.full(shape, ZERO, object)
    return Size(
        sum((abs(term) for term, _ in terms), zero), sum((extra for _, extra in terms), zero)
    )


def of_itself(x: Array, extra: Any = ZERO) -> Size:
    """Returns the size of a number that is its own size; `extra` is in eps of the number."""
    return Size(abs(x), times(extra, abs(x)))


def total(x: Array) -> Any:
    """Sums over classes."""
    return np.sum(x, axis=-1, keepdims=True)


def _distribution(z: Array) -> tuple[Any, Any]:
    """Returns the probabilities of logits, and their surprisals."""
    below = np.max(z, axis=-1, keepdims=True) - z
    e = exp(-below)
    return e / total(e), below + ln(total(e))


def _finite(x: Array) -> Array:
    return np.where(np.frompyfunc(lambda v: v.is_finite(), 1, 1)(x).astype(bool), x, ZERO)


def _others(y: Array) -> Any:
    return total(y) - y


def _one_hot(labels: Array, classes: int) -> Array:
    return exact.decimals(labels[..., None] == np.arange(classes))


# Softmax


def _reach(z: Array) -> Any:
    """The size of a normaliser: that of the largest logit plus the logarithm of the class count."""
    return abs(np.max(z, axis=-1)) + ln(Decimal(z.shape[-1]))


def logsumexp(result: Result, z: Array) -> Sizes:
    _, n = _distribution(z)
    return of_terms((_reach(z), ZERO)), of_itself(result.gradients[0], 2 * n)


def softmax(result: Result, z: Array, cotangent: Any) -> Sizes:
    p, n = _distribution(z)
    own = p * abs(cotangent)
    itself, others = own * (1 - p), p * _others(own)
    more = times(2 * n, itself + others) + times(nats(1 - p), itself)
    return of_itself(p, 2 * n), of_terms((itself, more), (others, p * _others(times(2 * n, own))))


def log_softmax(result: Result, z: Array, cotangent: Any) -> Sizes:
    p, n = _distribution(z)
    c = np.where(p == 0, ZERO, abs(cotangent))
    ahead, behind = p * _others(c), c * (1 - p)
    return None, of_terms((ahead, times(2 * n, ahead)), (behind, times(nats(1 - p), behind)))


def softmax_entropy(result: Result, z: Array) -> Sizes:
    p, n = _distribution(z)
    own, mean = times(p, n), p * result.value[..., None]
    return None, of_terms(
        (own, times(2 * n + nats(n), own)),
        (mean, times(2 * n + nats(result.value)[..., None], mean)),
    )


def softmax_cross_entropy(
    result: Result,
    z: Array,
    y: Array,
    label_smoothing: Any = ZERO,
    class_weights: Any = ONE,
    z_loss: Any = ZERO,
) -> Sizes:
    p, n = _distribution(z)
    smoothed = class_weights * ((1 - label_smoothing) * y + label_smoothing / z.shape[-1])
    loss = np.sum(times(smoothed, n), axis=-1)
    top = np.max(z, axis=-1)
    normalizer = abs(top + ln(np.sum(exp(z - top[..., None]), axis=-1)))
    reach = 4 * _reach(z)
    value = of_terms(
        (loss, nats(loss) * loss), (z_loss * normalizer**2, 2 * z_loss * normalizer * reach)
    )
    ahead, behind = p * _others(smoothed), smoothed * (1 - p)
    squared = 2 * z_loss * normalizer[..., None] * p
    gradient = of_terms(
        (ahead, times(2 * n, ahead)),
        (behind, times(nats(1 - p), behind)),
        (squared, times(2 * n, squared) + 2 * z_loss * reach[..., None] * p),
    )
    return value, gradient


def softmax_cross_entropy_with_integer_labels(
    result: Result, z: Array, label: Array, **options: Any
) -> Sizes:
    y = _one_hot(label, z.shape[-1])
    value, gradient = softmax_cross_entropy(result, z, y, **options)
    assert gradient is not None
    # The label's entry may have the loss's extra error: both come from the other classes' sum.
    as_loss = np.where(y == 1, nats(result.value)[..., None] * gradient.terms, ZERO)
    return value, gradient._replace(extra=np.maximum(gradient.extra, as_loss))


def poly_loss_cross_entropy(result: Result, z: Array, y: Array, epsilon: Any = 2 * ONE) -> Sizes:
    p, n = _distribution(z)
    ahead, behind = p * _others(y), y * (1 - p)
    more, less = abs(epsilon) * p * _others(y * p), abs(epsilon) * p * behind
    to_z = of_terms(
        (ahead, times(2 * n, ahead)),
        (behind, times(nats(1 - p), behind)),
        (more, times(2 * n, more)),
        (less, times(2 * n, less)),
    )
    n, missed = _finite(n), np.where(p == 0, ZERO, 1 - p)
    to_y = of_terms(
        (n, times(nats(n), n)), (abs(epsilon) * missed, nats(missed) * abs(epsilon) * missed)
    )
    return None, to_z, to_y


def softmax_focal_loss_with_integer_labels(
    result: Result, z: Array, label: Array, gamma: Any = 2 * ONE, class_weights: Any = None
) -> Sizes:
    """Includes the error of a power, which grows with the exponent."""
    p, n = _distribution(z)
    y = _one_hot(label, z.shape[-1])
    missed, cost = total((1 - y) * p), total(times(y, n))
    reach = (1 + gamma) * nats(missed) + nats(cost)
    return (
        of_itself(result.value, reach[..., 0]),
        of_itself(result.gradients[0], reach + np.where(y == 1, ZERO, 2 * n)),
    )


# Divergences of softmax distributions. Since probabilities sum to one, q_j - p_j is the sum over i
# of p_i q_j - q_i p_j: terms that vanish where the distributions agree.


def _less_its_mean(p: Array, t: Array) -> Size:
    """Returns the size of ``p_j (t_j - sum_i p_i t_i)``.

    A shift of all t_j cancels in it, so t_j and the mean may both be small where t_j is far from
    other t_i. The 64 eps of the family are then relative to these differences.
    """
    t = _finite(t)
    size = p * (abs(t) + abs(total(p * t)))
    apart = total(p[..., None, :] * abs(t[..., :, None] - t[..., None, :]))[..., 0]
    largest = np.maximum(size, p * apart)
    return Size(size, 64 * (largest - size) + times(2 * nats(p), largest))


def softmax_kl_divergence(result: Result, z_q: Array, z_p: Array) -> Sizes:
    (p, n_p), (q, n_q) = _distribution(z_p), _distribution(z_q)
    crossed = p[..., None, :] * q[..., :, None] - q[..., None, :] * p[..., :, None]
    size = np.sum(abs(crossed), axis=-1)
    to_q = Size(size, times(2 * nats(np.maximum(p, q)), size))
    return None, to_q, _less_its_mean(p, _finite(n_q) - _finite(n_p))


def softmax_log_ratio_with_integer_labels(
    result: Result, z_q: Array, z_p: Array, label: Array
) -> Sizes:
    """The difference of the logits, and that of the normalisers, both less that of the maxima."""
    (_, n_p), (_, n_q) = _distribution(z_p), _distribution(z_q)
    change = _finite(z_p) - _finite(z_q)
    change = change - _finite(np.max(z_p, -1, keepdims=True) - np.max(z_q, -1, keepdims=True))
    of_label, *surprisals = (
        np.take_along_axis(x, label[..., None], axis=-1)[..., 0] for x in (change, n_p, n_q)
    )
    normalizers = of_label - result.value
    near = abs(of_label) + abs(normalizers)
    value = np.where(abs(normalizers) < ONE / 2, near, sum(surprisals))
    to_q, to_p = result.gradients[:2]
    extra = times(nats(result.value), value)
    return of_terms((value, extra)), of_itself(to_q, 2 * n_q), of_itself(to_p, 2 * n_p)


def sampled_kl_divergence(result: Result, log_p: Array, log_q: Array) -> Sizes:
    """Includes the rounding of the exponent."""
    d = abs(log_q - log_p)
    return tuple(of_itself(x, d) for x in (result.value, *result.gradients))


def softmax_jensen_shannon_divergence(
    result: Result, z_q: Array, z_p: Array, weight: Any = ONE / 2
) -> Sizes:
    p, q = _distribution(z_p)[0], _distribution(z_q)[0]
    mean = np.where(p + q == 0, ONE, weight * p + (1 - weight) * q)
    u, v = (np.where(x == 0, ZERO, ln(np.where(x == 0, ONE, x) / mean)) for x in (p, q))
    to_weight = np.sum(times(p, u) + times(q, v))
    return (
        None,
        _part(1 - weight, _less_its_mean(q, v)),
        _part(weight, _less_its_mean(p, u)),
        Size(to_weight, ZERO),
    )


def _part(weight: Any, size: Size) -> Size:
    return Size(weight * size.terms, weight * size.extra)


def softmax_kl_divergence_with_top_k_targets(
    result: Result, z_q: Array, index: Array, log_p: Array
) -> Sizes:
    """Includes the errors of the given logarithms and of those that they are compared with.

    The probability that the named classes leave has the error of their sum. Classes without
    probability add nothing.
    """
    q, n = _distribution(z_q)
    is_named = index[..., None] == np.arange(z_q.shape[-1])
    is_other = ~np.any(is_named, axis=-2)
    n_q, n_p, p = np.take_along_axis(n, index, axis=-1), _finite(-log_p), exp(log_p)
    q_rest, p_rest = total(is_other * q), 1 - total(p)
    t, t_rest = np.where(p == 0, ZERO, log_p + n_q), ln(p_rest / q_rest)
    off = times(p, 1 + n_p + n_q)
    value = abs(result.value) + np.sum(off * abs(t - t_rest), axis=-1)
    # The gradient is q_i - p_i for the named classes, and for the others their shares of q_* - p_*.
    named = np.sum(is_named * (abs(exp(-n_q) - p) + off)[..., None], axis=-2)
    to_z = named + is_other * q / q_rest * (abs(q_rest - p_rest) + total(off))
    rest = abs(t_rest) + nats(q_rest) + total(off) / p_rest
    to_log_p = times(p, abs(t) + n_p + n_q + rest)
    return of_terms((value, ZERO)), of_terms((to_z, ZERO)), of_terms((to_log_p, ZERO))


def sigmoid_kl_divergence(result: Result, z_q: Array, z_p: Array) -> Sizes:
    """Takes the softmax divergence of two classes; the gradients are the second class's."""
    pairs = (np.stack([0 * z, z], axis=-1) for z in (z_q, z_p))
    _, *gradients = softmax_kl_divergence(result, *pairs)
    return None, *(Size(*(x[..., 1] for x in size)) for size in gradients if size)


# Sigmoid


def _sigmoid(z: Array) -> tuple[Any, Any]:
    return 1 / (1 + exp(-z)), 1 / (1 + exp(z))


def sigmoid_binary_cross_entropy(
    result: Result, z: Array, y: Array, pos_weight: Any = ONE, label_smoothing: Any = ZERO
) -> Sizes:
    p, q = _sigmoid(z)
    yes, no = _weights(y, pos_weight, label_smoothing)
    return (
        None,
        of_terms((no * p, ZERO), (yes * q, ZERO)),
        _to_binary_labels(p, q, pos_weight, label_smoothing),
    )


def _weights(y: Array, pos_weight: Any, label_smoothing: Any) -> tuple[Any, Any]:
    """Returns the weights of the two surprisals, of yes and of no."""
    smoothed = (1 - label_smoothing) * y + label_smoothing / 2
    return pos_weight * smoothed, 1 - smoothed


def _to_binary_labels(p: Array, q: Array, pos_weight: Any, label_smoothing: Any) -> Size:
    kept = 1 - label_smoothing
    return of_terms((kept * pos_weight * ln(p), ZERO), (kept * ln(q), ZERO))


def sigmoid_focal_loss(
    result: Result, z: Array, y: Array, alpha: Any = None, gamma: Any = 2 * ONE
) -> Sizes:
    """Includes the error of a power, which grows with the exponent."""
    p, q = _sigmoid(z)
    yes, no = -ln(p), -ln(q)
    of_yes, of_no = (ONE, ONE) if alpha is None else (alpha, 1 - alpha)
    share = of_yes * y + of_no * (1 - y)
    missed, cost = y * q + (1 - y) * p, y * yes + (1 - y) * no
    power, slope = share * missed**gamma, share * gamma * missed ** (gamma - 1) * cost
    reach = (1 + gamma) * nats(missed)
    to_z = [slope * (1 - y) * p * q, slope * y * p * q, power * (1 - y) * p, power * y * q]
    to_y = [slope * q, slope * p, power * yes, power * no]
    if alpha is not None:
        to_y += [of_yes * missed**gamma * cost, of_no * missed**gamma * cost]
    return (
        of_itself(result.value, reach),
        *(of_terms(*((x, reach * x) for x in terms)) for terms in (to_z, to_y)),
    )


# Probabilities


def entropy(result: Result, p: Array) -> Sizes:
    n = ln(p)
    return (
        _sum_of_sizes(times(p, n)),
        of_terms((np.where(p == 0, ZERO, abs(n) + 1), ZERO)),
    )


def _sum_of_sizes(*terms: Array) -> Size:
    return of_terms((np.sum(sum(map(abs, terms)), axis=-1), ZERO))


def cross_entropy(result: Result, p: Array, q: Array) -> Sizes:
    return (_sum_of_sizes(times(p, ln(q))),)


def relative_entropy(result: Result, p: Array, q: Array) -> Sizes:
    """Takes the smaller size: the terms as written, or ``sum(p - q)`` and the rest of the value."""
    t = _log_ratio(p, q)
    surplus = np.sum(p, axis=-1) - np.sum(q, axis=-1)
    size = np.minimum(abs(result.value - surplus) + abs(surplus), np.sum(abs(times(p, t)), axis=-1))
    to_p = np.where(p == 0, ZERO, abs(t) + 1)
    return of_terms((size, ZERO)), of_terms((to_p, ZERO))


def _log_ratio(p: Array, q: Array) -> Array:
    """``log p - log q``, 0 where p is 0."""
    return np.where(p == 0, ZERO, ln(np.where(p == 0, ONE, p)) - ln(q))


def binary_entropy(result: Result, p: Array) -> Sizes:
    return None, of_terms((ln(p), ZERO), (ln(1 - p), ZERO))


def binary_cross_entropy(
    result: Result, p: Array, y: Array, pos_weight: Any = ONE, label_smoothing: Any = ZERO
) -> Sizes:
    yes, no = _weights(y, pos_weight, label_smoothing)
    return (
        None,
        of_terms((times(yes, 1 / p), ZERO), (times(no, 1 / (1 - p)), ZERO)),
        _to_binary_labels(p, 1 - p, pos_weight, label_smoothing),
    )


# Log-probabilities. A loss that takes the logarithm of p keeps its rounding error.


def kl_divergence(result: Result, log_q: Array, p: Array) -> Sizes:
    n = ln(p)
    to_p = np.where(p == 0, ZERO, abs(n) + abs(log_q) + 1)
    return _sum_of_sizes(times(p, n), times(p, log_q)), None, of_terms((to_p, ZERO))


def kl_divergence_with_log_targets(result: Result, log_q: Array, log_p: Array) -> Sizes:
    p = exp(log_p)
    terms = times(p, np.where(p == 0, ZERO, log_p - log_q))
    return _sum_of_sizes(terms), None, of_terms((terms, ZERO), (p, ZERO))


def generalized_kl_divergence(result: Result, log_q: Array, p: Array) -> Sizes:
    """Takes the smaller size: the terms as written, or the result and the rounding of log p."""
    n, q = ln(p), exp(log_q)
    ratio = np.where(p == 0, ZERO, n - log_q)
    written = np.sum(abs(times(p, n)) + abs(times(p, log_q)) + p + q, axis=-1)
    seen = result.value + np.sum(times(abs(ratio), times(p, abs(n))), axis=-1)
    to_p = np.where(p == 0, ZERO, abs(n) + abs(log_q))
    return (
        of_terms((np.minimum(written, seen), ZERO)),
        of_terms((p, ZERO), (q, ZERO)),
        of_terms((to_p, ZERO)),
    )


# Reduction


def weighted_mean(result: Result, losses: Array, weights: Array) -> Sizes:
    weight = total(weights)
    mean = result.value[..., None]
    return None, None, of_terms((losses / weight, ZERO), (mean / weight, ZERO))
