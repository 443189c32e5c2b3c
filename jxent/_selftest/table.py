"""The table of losses: one row per public function, from which all other lists of them are made.

A formula is written once, as textbooks print it, for whatever arithmetic `m` it is given. With
that of JAX it is the report's textbook column; with that of `exact.py`, in many digits, the truth.
It takes the function's positional arguments, with the classes last, and its options by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import exact, sizes
from .sizes import Quantity, Sizes


@dataclass(frozen=True)
class Row:
    """A public function."""

    name: str
    kinds: tuple[str, ...]
    """of its positional arguments"""
    family: str = ""
    """whose bounds it keeps"""
    formula: Callable[..., Any] | None = None
    """``(m, *arguments, **options)``; None for what is tested against another function"""
    options: Mapping[str, Any] = field(default_factory=dict)
    """those that may be traced, with examples for three classes"""
    sizes: Callable[..., Any] | None = None
    """what the errors are relative to, where that is not the result: see `sizes.py`"""
    binary: bool = False
    """whether each number is an example, and there is no axis of classes"""
    per_class: bool = False
    """whether the result has an axis of classes"""
    reported: bool = True
    """whether it stands in the report"""

    def truth(
        self,
        arguments: tuple[Any, ...],
        options: Mapping[str, Any] | None = None,
        cotangent: Any = None,
    ) -> list[Quantity]:
        """The exact values, and the gradients for the arguments and options, with their sizes."""
        assert self.formula
        options = options or {}
        result = exact.evaluate(self.formula, arguments, options, cotangent)
        written: Sizes = ()
        if self.sizes:
            given = {name: exact.decimals(x)[()] for name, x in options.items()}
            if self.per_class:
                given["cotangent"] = exact.decimals(1.0 if cotangent is None else cotangent)
            written = self.sizes(result, *map(exact.decimals, arguments), **given)
        numbers = (result.value, *result.gradients)
        quantities = []
        for i, x in enumerate(numbers):
            size = written[i] if i < len(written) else None
            # The logarithm of a probability is as exact as the difference of two logits.
            size = size or sizes.of_itself(x, sizes.nats(x) if self.family == "softmax" else 0)
            steep = result.steep[i - 1] if i else np.zeros(x.shape, bool)
            quantities.append(Quantity(x, size.terms, size.extra + 0 * size.terms, steep))
        return quantities


# Each takes the arithmetic first.


def logsumexp(m: Any, z: Any) -> Any:
    return m.log(m.sum(m.exp(z)))


def log_softmax(m: Any, z: Any) -> Any:
    return m.log(m.softmax(z))


def entropy(m: Any, p: Any) -> Any:
    return -m.sum(p * m.log(p))


def cross_entropy(m: Any, p: Any, q: Any) -> Any:
    return -m.sum(p * m.log(q))


def relative_entropy(m: Any, p: Any, q: Any) -> Any:
    return m.sum(p * m.log(p / q))


def jensen_shannon_divergence(m: Any, p: Any, q: Any) -> Any:
    mean = (p + q) / 2
    return (relative_entropy(m, p, mean) + relative_entropy(m, q, mean)) / 2


def softmax_cross_entropy(
    m: Any, z: Any, y: Any, label_smoothing: Any = 0, class_weights: Any = 1, z_loss: Any = None
) -> Any:
    smoothed = (1 - label_smoothing) * y + label_smoothing / z.shape[-1]
    loss = cross_entropy(m, class_weights * smoothed, m.softmax(z))
    return loss if z_loss is None else loss + z_loss * logsumexp(m, z) ** 2


def softmax_cross_entropy_with_integer_labels(m: Any, z: Any, label: Any, **options: Any) -> Any:
    if options:
        return softmax_cross_entropy(m, z, m.one_hot(label, z.shape[-1]), **options)
    return -m.log(m.pick(m.softmax(z), label))


def poly_loss_cross_entropy(m: Any, z: Any, y: Any, epsilon: Any = 2) -> Any:
    p = m.softmax(z)
    return m.sum(y * (epsilon * (1 - p) - m.log(p)))


def softmax_focal_loss_with_integer_labels(
    m: Any, z: Any, label: Any, gamma: Any = 2, class_weights: Any = None
) -> Any:
    p = m.pick(m.softmax(z), label)
    loss = -((1 - p) ** gamma) * m.log(p)
    return loss if class_weights is None else class_weights[label] * loss


def sigmoid_entropy(m: Any, z: Any) -> Any:
    p, q = m.sigmoid(z)
    return -p * m.log(p) - q * m.log(q)


def sigmoid_binary_cross_entropy(
    m: Any, z: Any, y: Any, pos_weight: Any = 1, label_smoothing: Any = 0
) -> Any:
    p, q = m.sigmoid(z)
    return _binary_cross_entropy(m, p, q, y, pos_weight, label_smoothing)


def binary_cross_entropy(
    m: Any, p: Any, y: Any, pos_weight: Any = 1, label_smoothing: Any = 0
) -> Any:
    return _binary_cross_entropy(m, p, 1 - p, y, pos_weight, label_smoothing)


def _binary_cross_entropy(
    m: Any, p: Any, q: Any, y: Any, pos_weight: Any, label_smoothing: Any
) -> Any:
    y = (1 - label_smoothing) * y + label_smoothing / 2
    return -pos_weight * y * m.log(p) - (1 - y) * m.log(q)


def sigmoid_kl_divergence(m: Any, z_q: Any, z_p: Any) -> Any:
    (p, not_p), (q, not_q) = m.sigmoid(z_p), m.sigmoid(z_q)
    return p * m.log(p / q) + not_p * m.log(not_p / not_q)


def sigmoid_focal_loss(m: Any, z: Any, y: Any, alpha: Any = None, gamma: Any = 2) -> Any:
    p, q = m.sigmoid(z)
    loss = (y * q + (1 - y) * p) ** gamma * _binary_cross_entropy(m, p, q, y, 1, 0)
    return loss if alpha is None else (alpha * y + (1 - alpha) * (1 - y)) * loss


def binary_entropy(m: Any, p: Any) -> Any:
    return -p * m.log(p) - (1 - p) * m.log(1 - p)


def cross_entropy_with_integer_labels(m: Any, q: Any, label: Any, class_weights: Any = None) -> Any:
    loss = -m.log(m.pick(q, label))
    return loss if class_weights is None else class_weights[label] * loss


def negative_log_likelihood(m: Any, log_p: Any, label: Any, class_weights: Any = None) -> Any:
    loss = -m.pick(log_p, label)
    return loss if class_weights is None else class_weights[label] * loss


def generalized_kl_divergence(m: Any, log_q: Any, p: Any) -> Any:
    return m.sum(p * (m.log(p) - log_q - 1) + m.exp(log_q))


_WEIGHTS = [0.5, 1.0, 2.0]
_SOFTMAX = {"label_smoothing": 0.125, "class_weights": _WEIGHTS, "z_loss": 0.0625}
_BINARY = {"pos_weight": _WEIGHTS, "label_smoothing": 0.125}
_PAIR = ("distributions", "predictions")

TABLE = (
    Row("logsumexp", ("logits",), "logsumexp", logsumexp, sizes=sizes.logsumexp),
    Row(
        "log_softmax", ("logits",), "softmax", log_softmax, sizes=sizes.log_softmax, per_class=True
    ),
    Row(
        "softmax",
        ("logits",),
        "softmax",
        lambda m, z: m.softmax(z),
        sizes=sizes.softmax,
        per_class=True,
        reported=False,
    ),
    Row(
        "softmax_entropy",
        ("logits",),
        "softmax",
        lambda m, z: entropy(m, m.softmax(z)),
        sizes=sizes.softmax_entropy,
    ),
    Row(
        "softmax_cross_entropy",
        ("logits", "distributions"),
        "softmax",
        softmax_cross_entropy,
        _SOFTMAX,
        sizes.softmax_cross_entropy,
    ),
    Row(
        "softmax_cross_entropy_with_integer_labels",
        ("logits", "labels"),
        "softmax",
        softmax_cross_entropy_with_integer_labels,
        _SOFTMAX,
        sizes.softmax_cross_entropy_with_integer_labels,
    ),
    Row("safe_softmax_cross_entropy", ("logits", "distributions"), reported=False),
    Row(
        "poly_loss_cross_entropy",
        ("logits", "distributions"),
        "softmax",
        poly_loss_cross_entropy,
        {"epsilon": 1.5},
        sizes.poly_loss_cross_entropy,
    ),
    Row(
        "softmax_focal_loss_with_integer_labels",
        ("logits", "labels"),
        "softmax",
        softmax_focal_loss_with_integer_labels,
        {"gamma": 1.5, "class_weights": _WEIGHTS},
        sizes.softmax_focal_loss_with_integer_labels,
    ),
    Row(
        "softmax_kl_divergence",
        ("logits", "target_logits"),
        "divergence",
        lambda m, z_q, z_p: relative_entropy(m, m.softmax(z_p), m.softmax(z_q)),
        sizes=sizes.softmax_kl_divergence,
    ),
    Row(
        "softmax_jensen_shannon_divergence",
        ("logits", "target_logits"),
        "divergence",
        lambda m, z_q, z_p: jensen_shannon_divergence(m, m.softmax(z_p), m.softmax(z_q)),
        sizes=sizes.softmax_jensen_shannon_divergence,
    ),
    Row("sigmoid_entropy", ("logits",), "sigmoid", sigmoid_entropy, binary=True),
    Row(
        "sigmoid_binary_cross_entropy",
        ("logits", "distributions"),
        "sigmoid",
        sigmoid_binary_cross_entropy,
        _BINARY,
        sizes.sigmoid_binary_cross_entropy,
        binary=True,
    ),
    Row(
        "sigmoid_kl_divergence",
        ("logits", "target_logits"),
        "divergence",
        sigmoid_kl_divergence,
        sizes=sizes.sigmoid_kl_divergence,
        binary=True,
    ),
    Row(
        "sigmoid_focal_loss",
        ("logits", "distributions"),
        "power of sigmoid",
        sigmoid_focal_loss,
        {"alpha": 0.25, "gamma": 1.5},
        sizes.sigmoid_focal_loss,
        binary=True,
    ),
    Row(
        "kl_divergence",
        ("log_predictions", "distributions"),
        "log-probability",
        lambda m, log_q, p: m.sum(p * (m.log(p) - log_q)),
        sizes=sizes.kl_divergence,
    ),
    Row(
        "kl_divergence_with_log_targets",
        ("log_predictions", "log_distributions"),
        "log-probability",
        lambda m, log_q, log_p: m.sum(m.exp(log_p) * (log_p - log_q)),
        sizes=sizes.kl_divergence_with_log_targets,
    ),
    Row(
        "generalized_kl_divergence",
        ("log_predictions", "distributions"),
        "log-probability",
        generalized_kl_divergence,
        sizes=sizes.generalized_kl_divergence,
    ),
    Row("entropy", ("distributions",), "probability", entropy, sizes=sizes.entropy),
    Row("cross_entropy", _PAIR, "probability", cross_entropy, sizes=sizes.cross_entropy),
    Row("relative_entropy", _PAIR, "probability", relative_entropy, sizes=sizes.relative_entropy),
    Row("jensen_shannon_divergence", _PAIR, "probability", jensen_shannon_divergence),
    Row(
        "cross_entropy_with_integer_labels",
        ("predictions", "labels"),
        "probability",
        cross_entropy_with_integer_labels,
        {"class_weights": _WEIGHTS},
    ),
    Row(
        "negative_log_likelihood",
        ("log_predictions", "labels"),
        "log-probability",
        negative_log_likelihood,
        {"class_weights": _WEIGHTS},
    ),
    Row(
        "binary_entropy",
        ("distributions",),
        "probability",
        binary_entropy,
        sizes=sizes.binary_entropy,
        binary=True,
    ),
    Row(
        "binary_cross_entropy",
        ("predictions", "distributions"),
        "probability",
        binary_cross_entropy,
        _BINARY,
        sizes.binary_cross_entropy,
        binary=True,
    ),
    Row(
        "weighted_mean",
        ("losses", "weights"),
        "probability",
        lambda m, losses, weights: m.sum(weights * losses) / m.sum(weights),
        sizes=sizes.weighted_mean,
        reported=False,
    ),
    Row(
        "linear_softmax_cross_entropy",
        ("inputs", "kernel", "labels"),
        options=_SOFTMAX | {"bias": [0.5, -0.25, 1.0], "weights": [0.5, 1.5], "logit_softcap": 4.0},
        reported=False,
    ),
)

ROWS = {row.name: row for row in TABLE}


def _pick(x: Any, labels: Any) -> Any:
    return jnp.take_along_axis(x, labels[..., None], axis=-1)[..., 0]


def _sigmoid(z: Any) -> Any:
    p = jax.nn.sigmoid(z)
    return p, 1 - p


ARITHMETIC = SimpleNamespace(
    sum=lambda x: jnp.sum(x, axis=-1),
    exp=jnp.exp,
    log=jnp.log,
    softmax=jax.nn.softmax,
    sigmoid=_sigmoid,
    one_hot=jax.nn.one_hot,
    pick=_pick,
)
"""That of JAX; `sigmoid` gives the probabilities of yes and of no."""
