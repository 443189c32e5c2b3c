"""The table of losses: one row per public function, from which all other lists of them are made.

A row has the function's formula, written once, as textbooks print it, for any arithmetic `m`. With
JAX's arithmetic it is the textbook column of the report. With that of `exact.py`, in many digits,
it is the truth for the report and for the tests. It takes the function's positional arguments, with
the classes last, and the options by name; those that are not given have their defaults.

`m` has `sum` (over classes), `exp`, `log`, `softmax`, `sigmoid` (the probabilities of yes and of
no), `one_hot(labels, classes)` and `pick(x, labels)`. Where terms of both signs cancel, `sizes.py`
says under the same name what the errors are relative to.
"""

from collections.abc import Callable, Mapping
from typing import Any

from .rows import Row

TABLE: dict[str, Row] = {}
Formula = Callable[..., Any]


def row(
    *kinds: str,
    family: str,
    options: Mapping[str, Any] | None = None,
    binary: bool = False,
    per_class: bool = False,
    reported: bool = True,
) -> Callable[[Formula], Formula]:
    """Adds a formula to the table, under its name; `Row` explains the parameters."""

    def add(formula: Formula) -> Formula:
        name = formula.__name__
        TABLE[name] = Row(name, kinds, family, formula, options or {}, binary, per_class, reported)
        return formula

    return add


_WEIGHTS = [0.5, 1.0, 2.0]
_SOFTMAX_OPTIONS = {"label_smoothing": 0.125, "class_weights": _WEIGHTS, "z_loss": 0.0625}
_BINARY_OPTIONS = {"pos_weight": _WEIGHTS, "label_smoothing": 0.125}


# From logits


@row("logits", family="logsumexp")
def logsumexp(m: Any, z: Any) -> Any:
    return m.log(m.sum(m.exp(z)))


@row("logits", family="softmax", per_class=True)
def log_softmax(m: Any, z: Any) -> Any:
    return m.log(m.softmax(z))


@row("logits", family="softmax", per_class=True, reported=False)
def softmax(m: Any, z: Any) -> Any:
    return m.softmax(z)


@row("logits", family="softmax")
def softmax_entropy(m: Any, z: Any) -> Any:
    return entropy(m, m.softmax(z))


@row("logits", "distributions", family="softmax", options=_SOFTMAX_OPTIONS)
def softmax_cross_entropy(
    m: Any, z: Any, y: Any, label_smoothing: Any = 0, class_weights: Any = 1, z_loss: Any = None
) -> Any:
    smoothed = (1 - label_smoothing) * y + label_smoothing / z.shape[-1]
    loss = cross_entropy(m, class_weights * smoothed, m.softmax(z))
    return loss if z_loss is None else loss + z_loss * logsumexp(m, z) ** 2


@row("logits", "labels", family="softmax", options=_SOFTMAX_OPTIONS)
def softmax_cross_entropy_with_integer_labels(m: Any, z: Any, label: Any, **options: Any) -> Any:
    if options:
        return softmax_cross_entropy(m, z, m.one_hot(label, z.shape[-1]), **options)
    return -m.log(m.pick(m.softmax(z), label))


TABLE["safe_softmax_cross_entropy"] = Row(
    "safe_softmax_cross_entropy", ("logits", "distributions"), reported=False
)


@row("logits", "distributions", family="softmax", options={"epsilon": 1.5})
def poly_loss_cross_entropy(m: Any, z: Any, y: Any, epsilon: Any = 2) -> Any:
    p = m.softmax(z)
    return m.sum(y * (epsilon * (1 - p) - m.log(p)))


@row("logits", "labels", family="softmax", options={"gamma": 1.5, "class_weights": _WEIGHTS})
def softmax_focal_loss_with_integer_labels(
    m: Any, z: Any, label: Any, gamma: Any = 2, class_weights: Any = None
) -> Any:
    p = m.pick(m.softmax(z), label)
    return _weighted(-((1 - p) ** gamma) * m.log(p), label, class_weights)


def _weighted(loss: Any, label: Any, class_weights: Any) -> Any:
    return loss if class_weights is None else class_weights[label] * loss


@row("logits", "target_logits", family="divergence")
def softmax_kl_divergence(m: Any, z_q: Any, z_p: Any) -> Any:
    return relative_entropy(m, m.softmax(z_p), m.softmax(z_q))


@row("logits", "target_logits", family="divergence", options={"weight": 0.25})
def softmax_jensen_shannon_divergence(m: Any, z_q: Any, z_p: Any, weight: Any = 0.5) -> Any:
    p, q = m.softmax(z_p), m.softmax(z_q)
    mean = weight * p + (1 - weight) * q
    return weight * relative_entropy(m, p, mean) + (1 - weight) * relative_entropy(m, q, mean)


@row("logits", "target_logits", "labels", family="divergence", reported=False)
def softmax_log_ratio_with_integer_labels(m: Any, z_q: Any, z_p: Any, label: Any) -> Any:
    p, q = (m.pick(m.softmax(z), label) for z in (z_p, z_q))
    return m.log(p / q)


@row("logits", "target_indices", "target_log_probs", family="divergence")
def softmax_kl_divergence_with_top_k_targets(m: Any, z_q: Any, index: Any, log_p: Any) -> Any:
    q, p, is_named = m.softmax(z_q), m.exp(log_p), m.one_hot(index, z_q.shape[-1])
    q_named, q_rest = m.sum(is_named * q[..., None, :]), m.sum((1 - m.sum(is_named.mT)) * q)
    p_rest = 1 - m.sum(p)
    return m.sum(p * (log_p - m.log(q_named))) + p_rest * m.log(p_rest / q_rest)


@row("logits", family="sigmoid", binary=True)
def sigmoid_entropy(m: Any, z: Any) -> Any:
    p, q = m.sigmoid(z)
    return -p * m.log(p) - q * m.log(q)


@row("logits", "distributions", family="sigmoid", options=_BINARY_OPTIONS, binary=True)
def sigmoid_binary_cross_entropy(
    m: Any, z: Any, y: Any, pos_weight: Any = 1, label_smoothing: Any = 0
) -> Any:
    p, q = m.sigmoid(z)
    return _surprisal(m, p, q, y, pos_weight, label_smoothing)


def _surprisal(
    m: Any, p: Any, q: Any, y: Any, pos_weight: Any = 1, label_smoothing: Any = 0
) -> Any:
    y = (1 - label_smoothing) * y + label_smoothing / 2
    return -pos_weight * y * m.log(p) - (1 - y) * m.log(q)


@row("logits", "target_logits", family="divergence", binary=True)
def sigmoid_kl_divergence(m: Any, z_q: Any, z_p: Any) -> Any:
    (p, not_p), (q, not_q) = m.sigmoid(z_p), m.sigmoid(z_q)
    return p * m.log(p / q) + not_p * m.log(not_p / not_q)


@row(
    "logits",
    "distributions",
    family="power of sigmoid",
    options={"alpha": 0.25, "gamma": 1.5},
    binary=True,
)
def sigmoid_focal_loss(m: Any, z: Any, y: Any, alpha: Any = None, gamma: Any = 2) -> Any:
    p, q = m.sigmoid(z)
    loss = (y * q + (1 - y) * p) ** gamma * _surprisal(m, p, q, y)
    return loss if alpha is None else (alpha * y + (1 - alpha) * (1 - y)) * loss


# From log-probabilities


@row("log_predictions", "distributions", family="log-probability")
def kl_divergence(m: Any, log_q: Any, p: Any) -> Any:
    return m.sum(p * (m.log(p) - log_q))


@row("log_predictions", "log_distributions", family="log-probability")
def kl_divergence_with_log_targets(m: Any, log_q: Any, log_p: Any) -> Any:
    return m.sum(m.exp(log_p) * (log_p - log_q))


@row("log_predictions", "distributions", family="log-probability")
def generalized_kl_divergence(m: Any, log_q: Any, p: Any) -> Any:
    return m.sum(p * (m.log(p) - log_q - 1) + m.exp(log_q))


# Its error grows with the logarithm of the result, like that of a softmax.
@row("log_predictions", "log_distributions", family="softmax", binary=True, reported=False)
def sampled_kl_divergence(m: Any, log_p: Any, log_q: Any) -> Any:
    return m.exp(log_q - log_p) - 1 - (log_q - log_p)


# From probabilities


@row("distributions", family="probability")
def entropy(m: Any, p: Any) -> Any:
    return -m.sum(p * m.log(p))


@row("distributions", "predictions", family="probability")
def cross_entropy(m: Any, p: Any, q: Any) -> Any:
    return -m.sum(p * m.log(q))


@row("distributions", "predictions", family="probability")
def relative_entropy(m: Any, p: Any, q: Any) -> Any:
    return m.sum(p * m.log(p / q))


@row("distributions", "predictions", family="probability")
def jensen_shannon_divergence(m: Any, p: Any, q: Any) -> Any:
    mean = (p + q) / 2
    return (relative_entropy(m, p, mean) + relative_entropy(m, q, mean)) / 2


@row("predictions", "labels", family="probability", options={"class_weights": _WEIGHTS})
def cross_entropy_with_integer_labels(m: Any, q: Any, label: Any, class_weights: Any = None) -> Any:
    return _weighted(-m.log(m.pick(q, label)), label, class_weights)


@row("log_predictions", "labels", family="log-probability", options={"class_weights": _WEIGHTS})
def negative_log_likelihood(m: Any, log_p: Any, label: Any, class_weights: Any = None) -> Any:
    return _weighted(-m.pick(log_p, label), label, class_weights)


@row("distributions", family="probability", binary=True)
def binary_entropy(m: Any, p: Any) -> Any:
    return -p * m.log(p) - (1 - p) * m.log(1 - p)


@row("predictions", "distributions", family="probability", options=_BINARY_OPTIONS, binary=True)
def binary_cross_entropy(
    m: Any, p: Any, y: Any, pos_weight: Any = 1, label_smoothing: Any = 0
) -> Any:
    return _surprisal(m, p, 1 - p, y, pos_weight, label_smoothing)


# Reduction, and linear heads


@row("losses", "weights", family="probability", reported=False)
def weighted_mean(m: Any, losses: Any, weights: Any) -> Any:
    return m.sum(weights * losses) / m.sum(weights)


TABLE["linear_softmax_cross_entropy"] = Row(
    "linear_softmax_cross_entropy",
    ("inputs", "kernel", "labels"),
    family="softmax",
    options={
        **_SOFTMAX_OPTIONS,
        "bias": [0.5, -0.25, 1.0],
        "weights": [0.5, 1.5],
        "logit_softcap": 4.0,
    },
    of_logits=TABLE["softmax_cross_entropy_with_integer_labels"],
    mean=True,
)

# `chunked` takes any loss of logits; it is measured with the divergence of two heads.
TABLE["chunked"] = Row(
    "chunked",
    ("inputs", "kernel", "inputs", "kernel"),
    family="divergence",
    of_logits=TABLE["softmax_kl_divergence"],
)
