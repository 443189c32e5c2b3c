"""Values and gradients in decimal arithmetic, from the exact floating-point inputs.

Each function has the name of the public one and takes one example, in exact decimals: a sequence
of numbers, one number for the binary functions, an integer for a label. With 60 digits the
textbook formula is enough: what cancels in it leaves more digits than any dtype has.

A result comes with its size, the sum of the absolute values of the terms it is made of: an error
relative to the size is what rounding the terms makes unavoidable.
"""

from collections.abc import Iterable
from decimal import Context, Decimal
from functools import cache
from typing import NamedTuple

CONTEXT = Context(prec=60, traps=[])
ZERO, ONE, INFINITY = Decimal(0), Decimal(1), Decimal("Infinity")
Numbers = tuple[Decimal, ...]


class Sum(NamedTuple):
    """A sum, and the sum of the absolute values of its terms."""

    total: Decimal
    size: Decimal


class Result(NamedTuple):
    """The value, and the gradient for each floating-point argument."""

    value: Sum
    gradients: tuple[list[Sum], ...]


def add_up(terms: Iterable[Decimal]) -> Sum:
    terms = tuple(terms)
    return Sum(sum(terms, ZERO), sum(map(abs, terms), ZERO))


def of(*terms: Decimal) -> Sum:
    return add_up(terms)


@cache
def exp(x: Decimal) -> Decimal:
    return x.exp(CONTEXT)


@cache
def ln(x: Decimal) -> Decimal:
    return x.ln(CONTEXT)


def times(weight: Decimal, cost: Decimal) -> Decimal:
    return weight * cost if weight else ZERO


@cache
def _softmax(z: Numbers) -> tuple[Numbers, Numbers, Decimal]:
    """Probabilities, their surprisals ``-log p``, and the normaliser."""
    top = max(z)
    exponentials = tuple(exp(x - top) for x in z)
    total = sum(exponentials, ZERO)
    p = tuple(x / total for x in exponentials)
    return p, tuple((top - x) + ln(total) for x in z), top + ln(total)


def _sigmoid(z: Decimal) -> tuple[Numbers, Numbers]:
    """The probabilities of no and yes, and their surprisals."""
    p, n, _ = _softmax((ZERO, z))
    return p, n


def logsumexp(z: Numbers) -> Result:
    p, _, normalizer = _softmax(z)
    return Result(Sum(normalizer, abs(max(z)) + ln(Decimal(len(z)))), ([of(x) for x in p],))


def softmax_cross_entropy_with_integer_labels(z: Numbers, label: int) -> Result:
    p, n, _ = _softmax(z)
    gradient = [of(-(1 - x) if j == label else x) for j, x in enumerate(p)]
    return Result(of(n[label]), (gradient,))


def log_softmax(z: Numbers, label: int) -> Result:
    """Of the label's class."""
    loss, (gradient,) = softmax_cross_entropy_with_integer_labels(z, label)
    return Result(Sum(-loss.total, loss.size), ([Sum(-g.total, g.size) for g in gradient],))


def softmax_focal_loss_with_integer_labels(z: Numbers, label: int) -> Result:
    """With gamma = 2."""
    _, (gradient,) = softmax_cross_entropy_with_integer_labels(z, label)
    p, n, _ = _softmax(z)
    missed = 1 - p[label]
    slope = 2 * missed * p[label] * n[label] + missed**2
    return Result(of(missed**2 * n[label]), ([of(slope * g.total) for g in gradient],))


def softmax_cross_entropy(z: Numbers, y: Numbers) -> Result:
    p, n, _ = _softmax(z)
    mass = sum(y, ZERO)
    to_z = [of(b * (mass - a), -a * (1 - b)) for a, b in zip(y, p, strict=True)]
    return Result(add_up(map(times, y, n)), (to_z, [of(x) for x in n]))


def poly_loss_cross_entropy(z: Numbers, y: Numbers) -> Result:
    """With epsilon = 2."""
    loss, (to_z, to_y) = softmax_cross_entropy(z, y)
    p, _, _ = _softmax(z)
    missed = add_up(2 * a * (1 - b) for a, b in zip(y, p, strict=True))
    hit = sum((a * b for a, b in zip(y, p, strict=True)), ZERO)
    extra = [of(2 * b * (hit - a * b), -2 * b * a * (1 - b)) for a, b in zip(y, p, strict=True)]
    return Result(
        add(loss, missed),
        (
            [add(g, e) for g, e in zip(to_z, extra, strict=True)],
            [add(g, of(2 * (1 - b))) for g, b in zip(to_y, p, strict=True)],
        ),
    )


def add(a: Sum, b: Sum) -> Sum:
    return Sum(a.total + b.total, a.size + b.size)


def softmax_entropy(z: Numbers) -> Result:
    p, n, _ = _softmax(z)
    value = add_up(map(times, p, n))
    return Result(value, ([of(times(a, b), -a * value.total) for a, b in zip(p, n, strict=True)],))


def softmax_kl_divergence(z_q: Numbers, z_p: Numbers) -> Result:
    (q, n_q, _), (p, n_p, _) = _softmax(z_q), _softmax(z_p)
    t = log_ratio(n_q, n_p)
    value = sum(map(times, p, t), ZERO)
    # q_j - p_j = sum_i (q_j p_i - p_j q_i), terms that vanish where the distributions agree.
    to_q = [
        add_up(b * c - a * d for c, d in zip(p, q, strict=True)) for a, b in zip(p, q, strict=True)
    ]
    return Result(Sum(value, value), (to_q, _centred(p, t)))


def softmax_jensen_shannon_divergence(z_q: Numbers, z_p: Numbers) -> Result:
    q, p = _softmax(z_q)[0], _softmax(z_p)[0]
    to_p, to_q = ratios_to_mixture(p, q)
    value = sum(map(times, p + q, to_p + to_q), ZERO) / 2
    return Result(
        Sum(value, value),
        tuple(
            [Sum(g.total / 2, g.size / 2) for g in _centred(share, ratio)]
            for share, ratio in ((q, to_q), (p, to_p))
        ),
    )


def log_ratio(n_q: Numbers, n_p: Numbers) -> Numbers:
    """``log p - log q``, 0 for a class that neither has."""
    return tuple(ZERO if a == b else a - b for a, b in zip(n_q, n_p, strict=True))


def _centred(p: Numbers, t: Numbers) -> list[Sum]:
    """``p_j (t_j - sum_i p_i t_i)``."""
    mean = sum(map(times, p, t), ZERO)
    return [of(times(a, b), -a * mean) for a, b in zip(p, t, strict=True)]


def ratios_to_mixture(p: Numbers, q: Numbers) -> tuple[Numbers, Numbers]:
    """``log(p/m)`` and ``log(q/m)`` for ``m = (p + q)/2``."""
    m = tuple((a + b) / 2 for a, b in zip(p, q, strict=True))
    return tuple(
        tuple(ln(a) - ln(b) if b else ZERO for a, b in zip(x, m, strict=True)) for x in (p, q)
    )  # type: ignore[return-value]


def sigmoid_entropy(z: Decimal) -> Result:
    p, n = _sigmoid(z)
    return Result(add_up(map(times, p, n)), ([of(-z * p[0] * p[1])],))


def sigmoid_binary_cross_entropy(z: Decimal, y: Decimal) -> Result:
    p, n = _sigmoid(z)
    value = of(y * n[1], (1 - y) * n[0])
    return Result(value, ([of((1 - y) * p[1], -y * p[0])], [of(n[1], -n[0])]))


def sigmoid_kl_divergence(z_q: Decimal, z_p: Decimal) -> Result:
    value, (to_q, to_p) = softmax_kl_divergence((ZERO, z_q), (ZERO, z_p))
    return Result(value, (to_q[1:], to_p[1:]))


def sigmoid_focal_loss(z: Decimal, y: Decimal) -> Result:
    """With gamma = 2 and no alpha."""
    p, _ = _sigmoid(z)
    loss, (to_z, to_y) = sigmoid_binary_cross_entropy(z, y)
    missed = y * p[0] + (1 - y) * p[1]
    slope = of((1 - y) * p[0] * p[1], -y * p[0] * p[1])

    def gradient(of_missed: Sum, of_loss: Sum) -> Sum:
        a, b = 2 * missed * loss.total, missed**2
        return Sum(a * of_missed.total + b * of_loss.total, a * of_missed.size + b * of_loss.size)

    return Result(
        of(missed**2 * loss.total),
        ([gradient(slope, to_z[0])], [gradient(of(p[0], -p[1]), to_y[0])]),
    )
