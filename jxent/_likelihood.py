r"""Integer labels under predictions given as probabilities or as their logarithms."""

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, Axis
from ._dtypes import upcast
from ._labels import in_range, is_label, times_weight_of_label, weight_of_label
from ._numerics import nan_where
from ._probabilities import weighted_surprisal
from ._rows import labelled_rows


def cross_entropy_with_integer_labels(
    q: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
) -> jax.Array:
    r"""Cross-entropy of probabilities and integer labels: ``[..., classes], [...] -> [...]``.

    .. math:: -w_y \log q_y

    Args:
      q: predicted probabilities, floating-point ``[..., classes]``.
      labels: integers ``[...]`` in [0, classes), or one for every example.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `q` or of the examples: what counts.
        ``[n]`` beside ``[n, n]`` means the examples, not the classes.
      class_weights: :math:`w`, ``[classes]``.
      ignore_index: the label of examples that do not count.

    Returns:
      ``[...]`` in nats, float32 or float64.

    Raises:
      TypeError: `q` is not floating-point, `labels` not integer, or `where` not boolean.
      ValueError: a shape or `axis` does not fit, or there is no class.

    Note:
      Ignored examples, and those with no class left by `where`, have the loss 0 and the gradient
      0. A label outside [0, classes) gives NaN, in the gradient too. The probability 0, or a
      class left out by `where`, gives +inf.

    References:
      I. Goodfellow, Y. Bengio, A. Courville, `Deep Learning
      <https://www.deeplearningbook.org>`_, 2016, 6.2.2.3.

    Example:
      >>> import jxent
      >>> print(jxent.cross_entropy_with_integer_labels([[0.1, 0.3, 0.6], [0.3, 0.2, 0.5]], [2, 0]))
      [0.5108 1.2040]
    """
    rows, x, y = labelled_rows("q", q, labels, axis, where, ignore_index, class_weights, absent=0.0)
    likelihood = _at_known_label(x, y)
    weights = rows.class_weights("class_weights", class_weights, x)
    weight = jnp.ones_like(likelihood) if weights is None else weight_of_label(weights, y)
    # A masked example has the likelihood 0 and an infinite surprisal: its weight must be 0, too.
    return rows.zero_masked(weighted_surprisal(rows.zero_masked(weight), likelihood))


def negative_log_likelihood(
    log_probs: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    class_weights: ArrayLike | None = None,
    ignore_index: int | None = None,
) -> jax.Array:
    r"""Negative log-likelihood (``nll_loss``) of labels: ``[..., classes], [...] -> [...]``.

    .. math:: -w_y \ell_y

    Args:
      log_probs: :math:`\ell`, logarithms of probabilities, ``[..., classes]``.
      labels: integers ``[...]`` in [0, classes), or one for every example.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `log_probs` or of the examples: what counts.
        ``[n]`` beside ``[n, n]`` means the examples, not the classes.
      class_weights: :math:`w`, ``[classes]``.
      ignore_index: the label of examples that do not count.

    Returns:
      ``[...]`` in nats, float32 or float64.

    Raises:
      TypeError: `log_probs` is not floating-point, `labels` not integer, or `where` not boolean.
      ValueError: a shape or `axis` does not fit, or there is no class.

    Note:
      Ignored examples, and those with no class left by `where`, have the loss 0 and the gradient
      0. A label outside [0, classes) gives NaN, in the gradient too. A class at -inf, or left out
      by `where`, gives +inf.

    References:
      I. Goodfellow, Y. Bengio, A. Courville, `Deep Learning
      <https://www.deeplearningbook.org>`_, 2016, 5.5.

    Example:
      >>> import jxent
      >>> log_probs = jxent.log_softmax([[2.0, 0.0], [20.0, 0.0]])
      >>> print(jxent.negative_log_likelihood(log_probs, [0, 0]))
      [1.2693e-01 2.0612e-09]
    """
    rows, z, y = labelled_rows(
        "log_probs", log_probs, labels, axis, where, ignore_index, class_weights, absent=-jnp.inf
    )
    (z,) = upcast(z)
    losses = -_at_known_label(z, y)
    weights = rows.class_weights("class_weights", class_weights, losses)
    return rows.zero_masked(times_weight_of_label(losses, weights, y))


def _at_known_label(x: jax.Array, labels: jax.Array) -> jax.Array:
    """``[...]``, the entry that the label names; NaN, with a NaN gradient, if it names none."""
    # For an unknown label the whole row is summed: the NaN must reach the gradient of the row.
    unknown = ~in_range(labels, x.shape[-1])
    picked = jnp.where(is_label(labels, x.shape[-1]) | unknown, x, 0.0)
    return nan_where(unknown, jnp.sum(picked, axis=-1, keepdims=True))[..., 0]
