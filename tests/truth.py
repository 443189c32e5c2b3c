"""Every public function and its gradients in many digits, from the mathematical definitions.

Arguments and results are NumPy arrays of mpmath numbers, each input converted exactly. A result
is a `Quantity`: its value, and what its rounding errors are measured against.
"""

import math
from typing import NamedTuple

import mpmath
import numpy as np

exp = np.frompyfunc(mpmath.exp, 1, 1)
_log = np.frompyfunc(lambda x: mpmath.log(x) if x else mpmath.mpf("-inf"), 1, 1)
_multiply = np.frompyfunc(lambda a, b: a * b if a and b else mpmath.mpf(0), 2, 1)


def _nats_of(x):
    if not x or not mpmath.isfinite(x):
        return mpmath.mpf(0)
    mantissa, exponent = mpmath.frexp(abs(x))
    return mpmath.mpf(abs(math.log(mantissa) + exponent * math.log(2)))


_nats = np.frompyfunc(_nats_of, 1, 1)


class Quantity(NamedTuple):
    """A number that is a sum of terms: units of eps are multiples of `terms`, plus `extra`."""

    exact: np.ndarray
    terms: np.ndarray
    extra: np.ndarray


class Truth(NamedTuple):
    """A loss and its gradient for each differentiable argument."""

    value: Quantity
    gradients: tuple[Quantity, ...]


def number(x):
    """The floating-point numbers of `x`, exactly."""
    convert = np.frompyfunc(lambda v: mpmath.mpf(float(v)), 1, 1)
    return np.asarray(convert(np.asarray(x).astype(np.float64)), dtype=object)


def log(x):
    return _log(x)


def times(a, b):
    """``a b``, where 0 times infinity is 0."""
    return _multiply(a, b)


def total(x):
    return np.sum(x, axis=-1, keepdims=True)


def nats(x):
    """``|ln x|``, 0 for 0 and infinity."""
    return _nats(x)


def sum_of(*pairs):
    """A sum of terms, each given as (term, its own additional error in eps)."""
    shape = np.broadcast_shapes(*(np.shape(term) for term, _ in pairs))
    zero = np.full(shape, mpmath.mpf(0), dtype=object)
    exact = sum((term for term, _ in pairs), zero)
    return Quantity(
        exact, sum((abs(term) for term, _ in pairs), zero), sum((e for _, e in pairs), zero)
    )


def relative(exact):
    """A number whose relative error counts."""
    return Quantity(exact, abs(exact), 0 * abs(exact))


def relative_in_nats(exact):
    """A number whose relative error may grow with its logarithm."""
    return Quantity(exact, abs(exact), times(nats(exact), abs(exact)))


def _summed(terms):
    """The sum over classes, of terms that may differ in sign."""
    return Quantity(np.sum(terms, axis=-1), np.sum(abs(terms), axis=-1), mpmath.mpf(0))


def one_hot(labels, classes):
    return number(np.eye(classes)[np.asarray(labels)])


def without_last(truth):
    """The same without the gradient of the last argument."""
    return Truth(truth.value, truth.gradients[:-1])


def _sigmoid(z):
    return 1 / (1 + exp(-z))


def _softplus(z):
    return log(1 + exp(z))


def _distribution(z):
    e = exp(z)
    p = e / total(e)
    return p, -log(p)


def _finite(n):
    return np.where(n == mpmath.inf, mpmath.mpf(0), n)


def _others(y):
    return total(y) - y


# Softmax


def logsumexp(z):
    p, n = _distribution(z)
    exact = log(np.sum(exp(z), axis=-1))
    size = np.max(z, axis=-1)
    terms = abs(size) + mpmath.log(z.shape[-1])
    return Truth(Quantity(exact, terms, 0 * terms), (sum_of((p, times(p, 2 * n))),))


def softmax(z, c):
    p, n = _distribution(z)
    q = total(p * c)
    size = p * total(p * abs(c))
    gradient = Quantity(p * (c - q), p * abs(c) + size, times(p * abs(c) + size, 2 * n))
    return Truth(sum_of((p, times(p, 2 * n))), (gradient,))


def log_softmax(z, c):
    p, n = _distribution(z)
    c = np.where(p == 0, mpmath.mpf(0), c)
    others = p * _others(abs(c))
    gradient = Quantity(
        c - p * total(c),
        abs(c) * (1 - p) + others,
        times(2 * n, others) + times(nats(1 - p), abs(c) * (1 - p)),
    )
    return Truth(relative_in_nats(-n), (gradient,))


def softmax_entropy(z):
    p, n = _distribution(z)
    h = total(times(p, n))
    gradient = sum_of(
        (times(p, n), times(2 * n + nats(n), times(p, n))),
        (-p * h, times(2 * n + nats(h), p * h)),
    )
    return Truth(relative_in_nats(h[..., 0]), (gradient,))


def soft_cross_entropy(z, y, epsilon=0, weights=1, zeta=0):
    """Gradients for logits and labels."""
    p, n = _distribution(z)
    classes = z.shape[-1]
    smooth = weights * ((1 - epsilon) * y + epsilon / mpmath.mpf(classes))
    loss = np.sum(times(smooth, n), axis=-1)
    m, lse = np.max(z, axis=-1), log(np.sum(exp(z), axis=-1))
    reach = 4 * (abs(m) + mpmath.log(classes))
    value = sum_of((loss, nats(loss) * loss), (zeta * lse**2, 2 * zeta * abs(lse) * reach))
    squared = 2 * zeta * lse[..., None] * p
    ahead, behind = p * _others(smooth), smooth * (1 - p)
    gradient = sum_of(
        (ahead, times(2 * n, ahead)),
        (-behind, times(nats(1 - p), behind)),
        (squared, times(2 * n, abs(squared)) + 2 * zeta * reach[..., None] * p),
    )
    to_labels = relative_in_nats(weights * (1 - epsilon) * _finite(n))
    return Truth(value, (gradient, to_labels))


def integer_cross_entropy(z, labels, epsilon=0, weights=1, zeta=0):
    y = one_hot(labels, z.shape[-1])
    truth = soft_cross_entropy(z, y, epsilon, weights, zeta)
    value, gradient = truth.value, truth.gradients[0]
    at_label = times(nats(value.exact)[..., None], gradient.terms)
    extra = np.where(y == 1, np.maximum(gradient.extra, at_label), gradient.extra)
    return Truth(value, (gradient._replace(extra=extra),))


def poly_loss(z, y, epsilon):
    """Gradients for logits, labels and epsilon."""
    p, n = _distribution(z)
    missed = total(y * (1 - p))
    loss = total(times(y, n)) + epsilon * missed
    ahead, behind = p * _others(y), y * (1 - p)
    more, less = epsilon * p * _others(y * p), epsilon * p * behind
    gradient = sum_of(
        (ahead, times(2 * n, ahead)),
        (-behind, times(nats(1 - p), behind)),
        (more, times(2 * n, abs(more))),
        (-less, times(2 * n, abs(less))),
    )
    q = np.where(p == 0, mpmath.mpf(0), 1 - p)
    to_labels = sum_of(
        (_finite(n), times(nats(_finite(n)), _finite(n))),
        (epsilon * q, times(nats(q), abs(epsilon) * q)),
    )
    return Truth(
        relative_in_nats(loss[..., 0]), (gradient, to_labels, relative_in_nats(missed[..., 0]))
    )


def softmax_focal_loss(z, labels, gamma, weights=1):
    """Gradients for logits and gamma; with the error of a power, which grows with gamma."""
    p, n = _distribution(z)
    y = one_hot(labels, z.shape[-1])
    cost, likely = total(times(y, n)), total(y * p)
    missed, weight = 1 - likely, total(y * weights)
    missed = np.where(missed == 0, total((1 - y) * p), missed)
    loss = weight * missed**gamma * cost
    slope = weight * (missed**gamma + gamma * missed ** (gamma - 1) * likely * cost)
    gradient = slope * (p - y)
    reach = (1 + gamma) * nats(missed) + nats(cost)
    extra = times(abs(gradient), reach + np.where(y == 1, mpmath.mpf(0), 2 * n))
    to_gamma = loss * log(missed)
    value = Quantity(loss, abs(loss), loss * reach)
    return Truth(
        Quantity(*(x[..., 0] for x in value)),
        (
            Quantity(gradient, abs(gradient), extra),
            Quantity(*(x[..., 0] for x in (to_gamma, abs(to_gamma), abs(to_gamma) * reach))),
        ),
    )


# Divergences of softmax distributions. Since probabilities sum to one, q_j - p_j is the sum over i
# of p_i q_j - q_i p_j, and t_j less its mean under p the sum of p_i (t_j - t_i): terms that a
# normalisation error or a common shift does not enter.


def _log_ratio(z_p, z_q):
    (p, n_p), (q, n_q) = _distribution(z_p), _distribution(z_q)
    t = np.where(p == 0, -mpmath.inf, _finite(n_q) - _finite(n_p))
    t = np.where((q == 0) & (p != 0), mpmath.inf, t)
    return p, q, np.where((p == 0) & (q == 0), mpmath.mpf(0), t)


def _less_its_mean(weights, t):
    """``w_j (t_j - sum_i w_i t_i)``; its terms as written, or those of t_j less each t_i."""
    t = np.where(abs(t) == mpmath.inf, mpmath.mpf(0), t)
    mean = total(weights * t)
    exact = weights * (t - mean)
    pairwise = total(weights[..., None, :] * abs(t[..., :, None] - t[..., None, :]))[..., 0]
    terms = weights * np.maximum(abs(t) + abs(mean), pairwise)
    return Quantity(exact, terms, times(2 * nats(weights), terms))


def softmax_kl_divergence(z_q, z_p):
    """Gradients for the logits of q and of p."""
    p, q, t = _log_ratio(z_p, z_q)
    value = np.sum(times(p, t), axis=-1)
    exact = q - p
    cross = p[..., None, :] * q[..., :, None] - q[..., None, :] * p[..., :, None]
    terms = total(abs(cross))[..., 0]
    to_q = Quantity(exact, terms, times(2 * nats(np.maximum(p, q)), terms))
    return Truth(relative(value), (to_q, _less_its_mean(p, t)))


def softmax_jensen_shannon_divergence(z_q, z_p):
    """Gradients for the logits of q and of p."""
    p, q = _distribution(z_p)[0], _distribution(z_q)[0]
    m = (p + q) / 2
    quotient = np.where(m == 0, mpmath.mpf(1), m)
    u, v = log(p / quotient), log(q / quotient)
    value = np.sum(times(p, u) + times(q, v), axis=-1) / 2
    gradients = (_less_its_mean(q, v), _less_its_mean(p, u))
    return Truth(relative(value), tuple(Quantity(*(x / 2 for x in g)) for g in gradients))


# Sigmoid


def sigmoid_entropy(z):
    p, q = _sigmoid(z), _sigmoid(-z)
    value = -times(p, log(p)) - times(q, log(q))
    return Truth(relative(value), (relative(-z * p * q),))


def sigmoid_cross_entropy(z, y, weight=1, epsilon=0):
    """Gradients for logits and labels."""
    a, b = weight * ((1 - epsilon) * y + epsilon / 2), (1 - epsilon) * (1 - y) + epsilon / 2
    value = a * _softplus(-z) + b * _softplus(z)
    to_logits = sum_of((b * _sigmoid(z), 0), (-a * _sigmoid(-z), 0))
    to_labels = sum_of(
        ((1 - epsilon) * weight * _softplus(-z), 0), (-(1 - epsilon) * _softplus(z), 0)
    )
    return Truth(relative(value), (to_logits, to_labels))


def sigmoid_kl_divergence(z_q, z_p):
    """Gradients for the logits of q and of p."""
    pairs = (np.stack([0 * z, z], axis=-1) for z in (z_q, z_p))
    truth = softmax_kl_divergence(*pairs)
    return Truth(truth.value, tuple(Quantity(*(x[..., 1] for x in g)) for g in truth.gradients))


def sigmoid_focal_loss(z, y, alpha, gamma):
    """Gradients for logits and labels; with the error of a power, which grows with gamma."""
    p, q = _sigmoid(z), _sigmoid(-z)
    b = 1 - y
    missed, cost = y * q + b * p, y * _softplus(-z) + b * _softplus(z)
    share = alpha * y + (1 - alpha) * b
    power, slope = missed**gamma, gamma * missed ** (gamma - 1)
    loss = share * power * cost
    reach = (1 + gamma) * nats(missed)
    to_logits = sum_of(
        (share * slope * b * p * q * cost, 0),
        (-share * slope * y * p * q * cost, 0),
        (share * power * b * p, 0),
        (-share * power * y * q, 0),
    )
    to_labels = sum_of(
        (alpha * power * cost, 0),
        (-(1 - alpha) * power * cost, 0),
        (share * slope * q * cost, 0),
        (-share * slope * p * cost, 0),
        (share * power * _softplus(-z), 0),
        (-share * power * _softplus(z), 0),
    )
    return Truth(
        Quantity(loss, loss, loss * reach),
        tuple(g._replace(extra=reach * g.terms) for g in (to_logits, to_labels)),
    )


# Probabilities


def entropy(p):
    n = -log(p)
    one = mpmath.mpf(1)
    weight = np.where(p == 0, 0 * one, one)
    return Truth(_summed(times(p, n)), (sum_of((times(weight, n), 0), (-weight, 0)),))


def cross_entropy(p, q):
    """Gradients for p and q."""
    n = -log(q)
    to_p = np.where((p == 0) & (q == 0), mpmath.mpf(0), n)
    to_q = -np.where(p == 0, mpmath.mpf(0), p / np.where(p == 0, mpmath.mpf(1), q))
    return Truth(_summed(times(p, n)), (relative(to_p), relative(to_q)))


def _quotient(a, b):
    """``a / b``, 0 where a is 0."""
    return a / np.where(a == 0, mpmath.mpf(1), b)


def _log_quotient(p, q):
    some = (p != 0) & (q != 0)
    one = mpmath.mpf(1)
    ratio = log(np.where(some, p, one) / np.where(some, q, one))
    return np.where(
        some, ratio, np.where(p == q, 0 * one, np.where(p == 0, -one, one) * mpmath.inf)
    )


def relative_entropy(p, q):
    """Gradients for p and q. The numbers need not sum to one, and then the sign is free.

    The terms are those of the sum, or where these cancel, as for distributions that nearly agree,
    the excess over ``p - q``, none of them negative, and the difference of the totals.
    """
    t = _log_quotient(p, q)
    one = mpmath.mpf(1)
    value = np.sum(times(p, t), axis=-1)
    normal = np.sum(times(p, t) - p + q, axis=-1)
    surplus = np.sum(p - q, axis=-1)
    terms = np.minimum(normal + abs(surplus), np.sum(abs(times(p, t)), axis=-1))
    weight = np.where(p == 0, 0 * one, one)
    to_q = -weight * p / np.where(p == 0, one, q)
    return Truth(
        Quantity(value, terms, 0 * value),
        (sum_of((times(weight, t), 0), (weight, 0)), relative(to_q)),
    )


def jensen_shannon_divergence(p, q):
    """Gradients for p and q."""
    m = (p + q) / 2
    u, v = _log_quotient(p, m), _log_quotient(q, m)
    value = np.sum(times(p, u) - p + m + times(q, v) - q + m, axis=-1) / 2
    half = mpmath.mpf(1) / 2

    def gradient(share, ratio, other):
        at_zero = np.where(other == 0, 0 * half, -half)
        return relative(np.where(share == 0, at_zero, np.where(share == 0, 0 * half, ratio) / 2))

    return Truth(relative(value), (gradient(p, u, q), gradient(q, v, p)))


def cross_entropy_with_integer_labels(q, labels, weights=1):
    y = weights * one_hot(labels, q.shape[-1])
    return Truth(relative(np.sum(times(y, -log(q)), axis=-1)), (relative(_quotient(-y, q)),))


def negative_log_likelihood(log_probs, labels, weights=1):
    y = weights * one_hot(labels, log_probs.shape[-1])
    return Truth(relative(np.sum(times(y, -log_probs), axis=-1)), (relative(-y),))


def binary_entropy(p):
    n, c = -log(p), -log(1 - p)
    return Truth(relative(times(p, n) + times(1 - p, c)), (sum_of((n, 0), (-c, 0)),))


def binary_cross_entropy(p, y, weight=1, epsilon=0):
    """Gradients for probabilities and labels."""
    a, b = weight * ((1 - epsilon) * y + epsilon / 2), (1 - epsilon) * (1 - y) + epsilon / 2
    n, c = -log(p), -log(1 - p)
    to_p = sum_of((b / (1 - p), 0), (-a / p, 0))
    to_y = sum_of(((1 - epsilon) * weight * n, 0), (-(1 - epsilon) * c, 0))
    return Truth(relative(times(a, n) + times(b, c)), (to_p, to_y))


# Log-probabilities. The rounding of log t, where it is taken, cannot be seen past.


def kl_divergence(log_q, t):
    """Gradients for log-predictions and targets."""
    n = log(np.where(t == 0, mpmath.mpf(1), t))
    weight = np.where(t == 0, mpmath.mpf(0), mpmath.mpf(1))
    value = Quantity(
        np.sum(times(t, n - log_q), axis=-1), np.sum(t * abs(n) + times(t, abs(log_q)), axis=-1), 0
    )
    to_t = sum_of((weight * n, 0), (times(weight, -log_q), 0), (weight, 0))
    return Truth(value, (relative(-t), to_t))


def kl_divergence_with_log_targets(log_q, log_t):
    """Gradients for log-predictions and log-targets."""
    t = exp(log_t)
    difference = np.where(t == 0, mpmath.mpf(0), log_t - np.where(t == 0, mpmath.mpf(0), log_q))
    terms = t * difference
    return Truth(_summed(terms), (relative(-t), sum_of((terms, 0), (t, 0))))


def generalized_kl_divergence(log_q, t):
    """Gradients for log-predictions and targets."""
    q = exp(log_q)
    n = log(np.where(t == 0, mpmath.mpf(1), t))
    ratio = np.where(t == 0, mpmath.mpf(0), n - np.where(t == 0, mpmath.mpf(0), log_q))
    exact = np.sum(t * ratio - t + q, axis=-1)
    value = Quantity(exact, exact + np.sum(abs(ratio) * t * (abs(n)), axis=-1), 0)
    weight = np.where(t == 0, mpmath.mpf(0), mpmath.mpf(1))
    to_log_q = sum_of((q, 0), (-t, 0))
    to_t = sum_of((weight * n, 0), (times(weight, -log_q), 0))
    return Truth(value, (to_log_q, to_t))


def weighted_mean(losses, weights):
    """Over the last axis. Gradients for losses and weights."""
    sum_of_weights = total(weights)
    share = weights / sum_of_weights
    mean = total(share * losses)
    to_weights = sum_of((losses / sum_of_weights, 0), (-mean / sum_of_weights, 0))
    return Truth(relative(mean[..., 0]), (relative(share), to_weights))
