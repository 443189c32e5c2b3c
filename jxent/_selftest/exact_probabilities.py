"""Values and gradients in decimal arithmetic of the functions of probabilities."""

from decimal import Decimal

from .exact import (
    INFINITY,
    ONE,
    ZERO,
    Numbers,
    Result,
    Sum,
    add_up,
    exp,
    ln,
    log_ratio,
    of,
    ratios_to_mixture,
    times,
)


def entropy(p: Numbers) -> Result:
    value = add_up(times(x, -ln(x)) for x in p)
    return Result(value, ([of(-ln(x), -ONE) for x in p],))


def cross_entropy(p: Numbers, q: Numbers) -> Result:
    value = add_up(times(a, -ln(b)) for a, b in zip(p, q, strict=True))
    return Result(value, ([of(-ln(b)) for b in q], _minus_quotient(p, q)))


def _minus_quotient(p: Numbers, q: Numbers) -> list[Sum]:
    return [of(-a / b if a else ZERO) for a, b in zip(p, q, strict=True)]


def relative_entropy(p: Numbers, q: Numbers) -> Result:
    t = log_ratio(tuple(-ln(x) for x in q), tuple(-ln(x) for x in p))
    value = sum(map(times, p, t), ZERO)
    # It is a sum of non-negative terms p_j t_j - p_j + q_j, and a difference of totals.
    difference = sum(p, ZERO) - sum(q, ZERO)
    size = abs(value - difference) + abs(difference)
    to_p = [of(x if a else -INFINITY, ONE) for a, x in zip(p, t, strict=True)]
    return Result(Sum(value, size), (to_p, _minus_quotient(p, q)))


def jensen_shannon_divergence(p: Numbers, q: Numbers) -> Result:
    ratios = ratios_to_mixture(p, q)
    value = sum(map(times, p + q, ratios[0] + ratios[1]), ZERO) / 2
    to_p, to_q = (
        [of(r / 2 if x else -INFINITY) for x, r in zip(share, ratio, strict=True)]
        for share, ratio in zip((p, q), ratios, strict=True)
    )
    return Result(Sum(value, value), (to_p, to_q))


def binary_entropy(p: Decimal) -> Result:
    value = of(times(p, -ln(p)), times(1 - p, -ln(1 - p)))
    return Result(value, ([of(ln(1 - p), -ln(p))],))


def binary_cross_entropy(p: Decimal, y: Decimal) -> Result:
    value = of(times(y, -ln(p)), times(1 - y, -ln(1 - p)))
    to_p = of((1 - y) / (1 - p) if y != 1 else ZERO, -y / p if y else ZERO)
    return Result(value, ([to_p], [of(-ln(p), ln(1 - p))]))


def cross_entropy_with_integer_labels(q: Numbers, label: int) -> Result:
    gradient = [of(-1 / x) if j == label else of(ZERO) for j, x in enumerate(q)]
    return Result(of(-ln(q[label])), (gradient,))


def negative_log_likelihood(log_probs: Numbers, label: int) -> Result:
    gradient = [of(-ONE if j == label else ZERO) for j in range(len(log_probs))]
    return Result(of(-log_probs[label]), (gradient,))


def kl_divergence(log_q: Numbers, t: Numbers) -> Result:
    terms = [(times(a, ln(a)), times(a, -b)) for a, b in zip(t, log_q, strict=True)]
    to_t = [of(ln(a), -b, ONE) for a, b in zip(t, log_q, strict=True)]
    return Result(add_up(x for pair in terms for x in pair), ([of(-a) for a in t], to_t))


def kl_divergence_with_log_targets(log_q: Numbers, log_t: Numbers) -> Result:
    value, (to_q, to_t) = kl_divergence(log_q, tuple(map(exp, log_t)))
    return Result(
        value,
        (
            to_q,
            [
                Sum(times(exp(x), g.total), times(exp(x), g.size))
                for x, g in zip(log_t, to_t, strict=True)
            ],
        ),
    )


def generalized_kl_divergence(log_q: Numbers, t: Numbers) -> Result:
    terms = [(times(a, ln(a)), times(a, -b), -a, exp(b)) for a, b in zip(t, log_q, strict=True)]
    to_q = [of(exp(b), -a) for a, b in zip(t, log_q, strict=True)]
    to_t = [of(ln(a), -b) for a, b in zip(t, log_q, strict=True)]
    return Result(add_up(x for four in terms for x in four), (to_q, to_t))
