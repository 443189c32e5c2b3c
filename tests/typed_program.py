"""Every public function, called with each kind of argument: for a strict type checker to pass."""

import jax
import jax.numpy as jnp
import numpy as np

import jxent


def losses() -> list[jax.Array]:
    """One of each, so that a name or an annotation that is missing is an error."""
    logits = jnp.zeros((2, 3))
    labels = np.array([2, 0])
    rows = [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    log_q = jxent.log_softmax(logits, axis=-1)
    q: jax.Array = jxent.softmax(logits, where=np.ones((2, 3), bool))
    return [
        jxent.binary_cross_entropy(0.5, True, pos_weight=2.0),
        jxent.binary_entropy(q),
        jxent.cross_entropy(rows, q),
        jxent.cross_entropy_with_integer_labels(q, labels),
        jxent.entropy(q, axis=(0, 1)),
        jxent.generalized_kl_divergence(log_q, rows),
        jxent.jensen_shannon_divergence(q, q),
        jxent.kl_divergence(log_q, rows, where=None),
        jxent.kl_divergence_with_log_targets(log_q, log_q),
        jxent.linear_softmax_cross_entropy(logits, np.eye(3), labels, reduction="sum"),
        jxent.logsumexp(logits, axis=None),
        jxent.negative_log_likelihood(log_q, labels),
        jxent.poly_loss_cross_entropy(logits, rows, epsilon=1.0),
        jxent.relative_entropy(q, q),
        jxent.safe_softmax_cross_entropy(logits, rows),
        jxent.sigmoid_binary_cross_entropy([2.0, -1.0], [1, 0], label_smoothing=0.1),
        jxent.sigmoid_entropy(0.0),
        jxent.sigmoid_focal_loss(logits, jnp.ones((2, 3)), alpha=0.25),
        jxent.sigmoid_kl_divergence(logits, logits),
        jxent.softmax_cross_entropy(logits, rows, class_weights=[1.0, 2.0, 3.0]),
        jxent.softmax_cross_entropy_with_integer_labels(logits, [2, -100], ignore_index=-100),
        jxent.softmax_entropy(logits),
        jxent.softmax_focal_loss_with_integer_labels(logits, labels, gamma=1.5),
        jxent.softmax_jensen_shannon_divergence(logits, logits),
        jxent.softmax_kl_divergence(logits, logits),
        jxent.weighted_mean([1.0, 2.0], [True, False]),
    ]
