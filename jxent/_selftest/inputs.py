"""The inputs that losses find hard, as float64; the report rounds them to each dtype."""

from typing import Any

import numpy as np

from . import heads
from .rows import Row

Array = np.ndarray[Any, Any]
CLASSES = 8
MANY = "softmax_cross_entropy_with_integer_labels"
"""The loss that is also measured with thousands of classes."""

NAMES = {
    ("logits",): "logits",
    ("logits", "labels"): "logits, labels",
    ("logits", "distributions"): "logits, soft labels",
    ("logits", "target_logits"): "two logits",
    ("logits", "target_logits", "labels"): "two logits, labels",
    ("logits", "target_indices", "target_log_probs"): "logits, a teacher's top k",
    ("distributions",): "probabilities",
    ("distributions", "predictions"): "two probabilities",
    ("predictions", "labels"): "probabilities, labels",
    ("predictions", "distributions"): "probabilities, soft labels",
    ("log_predictions", "labels"): "log-probabilities, labels",
    ("log_predictions", "distributions"): "log-probabilities, probabilities",
    ("log_predictions", "log_distributions"): "two log-probabilities",
    ("losses", "weights"): "losses, weights",
    ("inputs", "kernel", "labels"): "head, labels",
    ("inputs", "kernel", "inputs", "kernel"): "two heads",
}
"""The names of the inputs, by the kinds of a function's arguments."""


def names_of(row: Row) -> list[str]:
    """The names of the inputs with which a row of the table is measured."""
    name = NAMES[(*row.kinds, "labels") if row.per_class else row.kinds]
    if row.binary:
        return ["two binary logits" if name == "two logits" else f"binary {name}"]
    return [name, "many logits, labels"] if row.name == MANY else [name]


def inputs() -> dict[str, tuple[Array, ...]]:
    """Returns arguments by kind. Integers are classes; all other arguments are differentiated."""
    rng = np.random.default_rng(0)
    z = _logits(rng)
    labels = np.arange(len(z), dtype=np.int32) % CLASSES
    # The first half of the rows has its margins at class 0, so class 0 is the label there.
    labels[: len(z) // 2] = 0
    labels = np.where(np.isfinite(z[np.arange(len(z)), labels]), labels, 0).astype(np.int32)
    y = _soft_labels(rng, z, labels)
    other = _targets(rng, z)
    p, q = _probabilities(z), _probabilities(other)
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(p), np.log(q)
    x, x_label, x_other = _binary(rng)
    certain = _probabilities(np.stack([np.zeros_like(x), x], axis=-1))[:, 1]
    # These labels name only classes whose probability is not 0.
    likely = np.where(p[np.arange(len(z)), labels] > 0, labels, np.argmax(p, axis=-1)).astype(
        np.int32
    )
    many = 4 * rng.normal(size=(1, 8192))
    return {
        "logits": (z,),
        "logits, labels": (z, labels),
        "logits, soft labels": (z, y),
        "two logits": (z, other),
        "two logits, labels": (z, other, labels),
        "logits, a teacher's top k": (z, *_top_k(z)),
        "many logits, labels": (many, np.array([1], np.int32)),
        "binary logits": (x,),
        "binary logits, soft labels": (x, x_label),
        "two binary logits": (x, x_other),
        "probabilities": (p,),
        "two probabilities": (p, q),
        "probabilities, labels": (p, likely),
        "binary probabilities": (certain,),
        "binary probabilities, soft labels": (certain, x_label),
        "log-probabilities, labels": (log_p, likely),
        "log-probabilities, probabilities": (log_q, p),
        "two log-probabilities": (log_q, log_p),
        "binary two log-probabilities": tuple(-np.minimum(abs(v), 80) for v in (x, x_other)),
        "losses, weights": (10 * p, q),
        **heads.inputs(),
    }


def _logits(rng: np.random.Generator) -> Array:
    """Returns rows with label margins, offsets, scales and ties, and rows with missing classes."""
    ordinary = rng.normal(size=CLASSES)
    ahead = np.eye(CLASSES)[0]
    margins = [-100, -50, -20, -5, -1, 0, 1, 2, 5, 8, 12, 16, 20, 30, 50, 70, 100]
    rows = [margin * ahead + 0.1 * (1 - ahead) * ordinary for margin in margins]
    rows += [margin * ahead + offset for margin in (5, 20) for offset in (1e4, -1e4, 1e8)]
    rows += [scale * rng.normal(size=CLASSES) for scale in (1e-3, 0.1, 1, 3, 10, 30, 100, 1e3, 1e4)]
    rows += [np.full(CLASSES, c) for c in (0.0, 1e4, 1e8)]
    rows += [30 * (ahead + np.eye(CLASSES)[1]), 1e4 + rng.normal(size=CLASSES)]
    missing = np.where(np.arange(CLASSES) % 3 == 2, -np.inf, 0.0)
    rows += [scale * ordinary + missing for scale in (0.1, 3, 30)]
    return np.stack(rows)


def _soft_labels(rng: np.random.Generator, z: Array, labels: Array) -> Array:
    """Returns labels, in turn one-hot, smoothed, uniform and random; 0 for missing classes."""
    hot = np.eye(CLASSES)[labels]
    weights = [hot, 0.9 * hot + 0.1 / CLASSES, np.ones_like(hot), rng.random(hot.shape) ** 4]
    y = np.stack([weights[i % 4][i] for i in range(len(z))]) * np.isfinite(z)
    return np.asarray(y / y.sum(axis=-1, keepdims=True))


def _targets(rng: np.random.Generator, z: Array) -> Array:
    """Returns other logits, in turn very near, near, noisy and shifted, reversed, and scaled."""
    noise = rng.normal(size=z.shape)
    others = [z + 1e-6 * noise, z + 1e-3 * noise, z + 3 * noise + 16, np.flip(z, -1), z * 1.01]
    other = np.stack([others[i % 5][i] for i in range(len(z))])
    return np.where(np.isfinite(z), other, -np.inf)


def _top_k(z: Array) -> tuple[Array, Array]:
    """Returns the likeliest classes, or those after the first, and near or far log-probabilities.

    Some rows end in padding. In every dtype the probabilities leave a rest to the other classes.
    """
    order, row = np.argsort(-z, axis=-1).astype(np.int32), np.arange(len(z))[:, None]
    index = np.where(row % 2, order[:, 1:4], order[:, :3])
    log_q = np.log(np.maximum(np.take_along_axis(_probabilities(z), index, axis=-1), 1e-33))
    near = np.minimum(np.floor(16 * log_q), -1) / 16
    log_p = np.where(row % 3 == 2, [-2.0, -0.5, -3.0], near)
    return index, np.where((row % 5 == 4) & (np.arange(3) == 2), -np.inf, log_p)


def _binary(rng: np.random.Generator) -> tuple[Array, Array, Array]:
    sizes = [0, 1e-3, 0.1, 1, 3, 8, 12, 16, 20, 30, 50, 70, 100, 1e3, 1e4]
    x = np.repeat([sign * size for size in sizes for sign in (1, -1)], 4)
    labels = np.tile([0, 1, 0.3, 1e-3], len(x) // 4)
    near = x + 1e-6 * rng.normal(size=x.shape)
    return x, labels, np.where(np.arange(len(x)) % 4 < 2, near, x * rng.normal(size=x.shape))


def _probabilities(z: Array) -> Array:
    """Softmax, with 0 for what is below 1e-33, near the end of float32's normal numbers."""
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return np.where(p < 1e-33, 0.0, p)
