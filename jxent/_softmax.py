r"""Softmax, its logarithm, its normaliser and its entropy, and the cross-entropy of labels."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._arguments import ArrayLike, Axis, is_off, scalar
from ._autodiff import public
from ._dtypes import computing_dtype
from ._numerics import divide, weighted_cost
from ._rows import Rows, as_row, labelled_rows, rows_of, weight_of_label
from ._sharding import AxisName, explicit_sharding
from ._statistics import SmoothedWeights
from ._statistics.row import Row, of_logits, surprisals


@public
def logsumexp(
    logits: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    keepdims: bool = False,
    class_axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Logarithm of the sum of exponentials: ``[..., classes] -> [...]``.

    .. math:: \operatorname{lse}(z) = \log \sum_j e^{z_j} = m + \operatorname{log1p}(s)

    with :math:`m` the maximum and :math:`s` the sum of :math:`e^{z_j - m}` over the others.

    Args:
      logits: floating-point array ``[..., classes]``.
      axis: the class axis, a tuple of axes, or None for all of them, which is the default of
        `jax.nn.logsumexp`.
      where: boolean, of the shape of `logits` or of the examples: what counts.
      keepdims: whether the class axes stay, with size 1.
      class_axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, over which the
        classes are spread: each shard has a slice of them, in their order.

    Returns:
      ``[...]`` in nats, float32 or float64. Its gradient is ``softmax(logits)``.

    Note:
      Classes at -inf count for nothing. A row of nothing but these, or with no class left by
      `where`, gives -inf; a +inf logit gives +inf, NaN gives NaN. The gradient is NaN where
      softmax has no limit, as in a row of nothing but -inf: ``where=logits > -jnp.inf`` gives
      such a row the gradient 0.

    Example:
      >>> import jxent
      >>> print(jxent.logsumexp([1000.0, 1001.0]))
      1001.3133
    """
    rows, z = rows_of("logits", logits, axis, where, class_axis_name, absent=None)
    normalizer = surprisals(
        Row(z, mesh_axes=rows.mesh_axes), None, None, rows.mask, None
    ).normalizer
    result = rows.fill_examples(normalizer, -jnp.inf)
    return jnp.expand_dims(result, rows.axes) if keepdims else result


@public
def log_softmax(
    logits: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    class_axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Logarithm of the softmax probabilities: ``[..., classes] -> [..., classes]``.

    .. math:: \log p_j = -\bigl((m - z_j) + \operatorname{log1p}(s)\bigr)

    a sum of terms of one sign: exact also for a class that is nearly certain.

    Args:
      logits: floating-point array ``[..., classes]``.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.
      class_axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, over which the
        classes are spread: each shard has a slice of them, in their order.

    Returns:
      The shape of `logits`, in nats, float32 or float64.

    Note:
      -inf for a class at -inf and for what `where` leaves out, with no gradient there. One +inf
      logit takes all the probability. Where softmax has no limit (NaN, every logit -inf, two
      +inf) the row is NaN.

    Example:
      >>> import jxent
      >>> print(jxent.log_softmax([20.0, 0.0]))
      [-2.0612e-09 -2.0000e+01]
    """
    rows, z = rows_of("logits", logits, axis, where, class_axis_name, absent=None)
    return rows.to_user_layout(
        rows.mask.fill(
            _log_softmax(Row(z, mesh_axes=rows.mesh_axes), rows.mask), -jnp.inf, -jnp.inf
        )
    )


@public
def softmax(
    logits: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    class_axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Softmax probabilities: ``[..., classes] -> [..., classes]``.

    .. math:: p_j = \frac{e^{z_j}}{\sum_i e^{z_i}} = \frac{e^{z_j - m}}{1 + s}

    Args:
      logits: floating-point array ``[..., classes]``.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.
      class_axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, over which the
        classes are spread: each shard has a slice of them, in their order.

    Returns:
      The shape of `logits`, float32 or float64.

    Note:
      0 for a class at -inf and for what `where` leaves out. One +inf logit takes all the
      probability. Where softmax has no limit (NaN, every logit -inf, two +inf) the row is NaN.

    Example:
      >>> import jxent
      >>> print(jxent.softmax([1000.0, 1000.0]))
      [0.5 0.5]
    """
    rows, z = rows_of("logits", logits, axis, where, class_axis_name, absent=None)
    return rows.to_user_layout(
        rows.mask.fill(_softmax(Row(z, mesh_axes=rows.mesh_axes), rows.mask), 0.0, 0.0)
    )


@public
def softmax_entropy(
    logits: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    class_axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Entropy of the softmax distribution: ``[..., classes] -> [...]``.

    .. math:: H(p) = -\sum_j p_j \log p_j, \qquad p = \operatorname{softmax}(z)

    Args:
      logits: floating-point array ``[..., classes]``.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.
      class_axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, over which the
        classes are spread: each shard has a slice of them, in their order.

    Returns:
      ``[...]`` in nats, between 0 and log(classes), float32 or float64.

    Note:
      A class at -inf does not exist. An example with no class left by `where` has the entropy 0
      and the gradient 0. Where softmax has no limit (NaN, every logit -inf, two +inf) it is NaN.

    Example:
      >>> import jxent
      >>> print(jxent.softmax_entropy([[0.0, 0.0], [40.0, 0.0]]))
      [6.9315e-01 1.7418e-16]
    """
    rows, z = rows_of("logits", logits, axis, where, class_axis_name, absent=None)
    return rows.zero_masked(_softmax_entropy(Row(z, mesh_axes=rows.mesh_axes), rows.mask))


_softmax = of_logits(Row.probability)
_log_softmax = of_logits(Row.log_probability)


@partial(of_logits, exp_gap=True)
def _softmax_entropy(row: Row) -> Any:
    return row.entropy()[..., 0]


# ---------------------------------------- Cross-entropy


@public
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    class_axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Cross-entropy of softmax and distributions: ``[..., classes], [..., classes] -> [...]``.

    .. math::
        -\sum_j w_j \tilde y_j \log p_j + \zeta \operatorname{lse}(z)^2, \qquad
        \tilde y = (1 - \varepsilon) y + \varepsilon / K

    Args:
      logits: floating-point array ``[..., classes]``.
      labels: non-negative numbers of the shape of `logits`: one-hot, as integers or booleans, too,
        or any distribution. They need not sum to one. Floating-point ``[classes]`` are for every
        example, beside square logits, too.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.
      label_smoothing: :math:`\varepsilon` in [0, 1]; K is the number of classes that count.
      class_weights: :math:`w`, ``[classes]``, multiplies the smoothed labels. Negative ones, which
        reward mistakes, are taken at their word, as in PyTorch.
      z_loss: :math:`\zeta`, the weight of the squared normaliser, not negative.
      class_axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, over which the
        classes are spread: each shard has a slice of them, in their order.

    Returns:
      ``[...]`` in nats, float32 or float64.

    Note:
      A logit of -inf costs nothing under a zero label, +inf under any other. Label mass on a
      class that `where` leaves out is ignored; an example with nothing left has the loss 0 and
      the gradient 0. Where softmax has no limit (NaN, every logit -inf, two +inf) the loss is
      NaN. The gradient with respect to a label is :math:`-\log p_j`, but 0 for a logit of -inf and
      for what is beside one of +inf.

    Example:
      >>> import jxent
      >>> print(jxent.softmax_cross_entropy([[2.0, 0.0], [20.0, 0.0]], [1.0, 0.0]))
      [1.2693e-01 2.0612e-09]
    """
    beside = {"labels": labels, "class_weights": class_weights}
    rows, z = rows_of("logits", logits, axis, where, class_axis_name, absent=None, **beside)
    of_labels = "softmax_cross_entropy_with_integer_labels"
    y = rows.distributions("labels", labels, z, of_labels, absent=None)
    weights = _weighted(y, rows.class_weights("class_weights", class_weights, z))
    if not is_off(label_smoothing):
        probability = _uniform_probability(rows, computing_dtype(z, y))
        epsilon = scalar("label_smoothing", label_smoothing, probability)
        scale = jnp.reshape(1 - epsilon, (1,) * y.ndim)
        weights = weights._replace(scale=scale, offset=epsilon * probability)
    of_row = surprisals(Row(z, mesh_axes=rows.mesh_axes), None, weights, rows.mask, None)
    return rows.zero_masked(sum(_z_terms(rows, z_loss, of_row.normalizer), of_row.of_weights))


@public
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: Axis = -1,
    where: ArrayLike | None = None,
    *,
    label_smoothing: ArrayLike = 0.0,
    class_weights: ArrayLike | None = None,
    z_loss: ArrayLike = 0.0,
    ignore_index: int | None = None,
    class_axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Cross-entropy of softmax and integer labels: ``[..., classes], [...] -> [...]``.

    .. math::
        (1 - \varepsilon) w_y (-\log p_y) + \frac{\varepsilon}{K} \sum_j w_j (-\log p_j)
        + \zeta \operatorname{lse}(z)^2

    Args:
      logits: floating-point array ``[..., classes]``.
      labels: integers ``[...]`` in [0, classes), or one for every example. With a tuple of axes,
        flat positions in them.
      axis: the class axis, a tuple of axes, or None for all of them.
      where: boolean, of the shape of `logits` or of the examples: what counts.
      label_smoothing: :math:`\varepsilon` in [0, 1]; K is the number of classes that count.
      class_weights: :math:`w`, ``[classes]``, multiplies the smoothed labels. Negative ones, which
        reward mistakes, are taken at their word, as in PyTorch.
      z_loss: :math:`\zeta`, the weight of the squared normaliser, not negative.
      ignore_index: the label of examples that do not count.
      class_axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, over which the
        classes are spread: each shard has a slice of them, in their order, and labels number all.

    Returns:
      ``[...]`` in nats, float32 or float64.

    Note:
      Ignored examples, and those with no class left by `where`, have the loss 0 and the gradient
      0, whatever their logits. A label outside [0, classes) gives NaN, in the gradient too; so
      does NaN in a class that counts. A label whose class is left out by `where`, or has the
      logit -inf, gives +inf.

    Example:
      >>> import jxent
      >>> logits, labels = [[2.0, 0.0], [20.0, 0.0], [0.0, 0.0]], [0, 0, -100]
      >>> print(
      ...     jxent.softmax_cross_entropy_with_integer_labels(logits, labels, ignore_index=-100)
      ... )
      [1.2693e-01 2.0612e-09 0.0000e+00]
    """
    rows, z, y = labelled_rows(
        "logits", logits, labels, axis, where, ignore_index, class_weights, class_axis_name
    )
    weights, smoothed = rows.class_weights("class_weights", class_weights, z), None
    # All factors of the label are one weight. Where it is 0 the label's loss may be infinite.
    weight = None if weights is None else weight_of_label(weights, y, rows.mesh_axes)
    if not is_off(label_smoothing):
        smoothed = _weighted(_uniform(rows, z), weights)
        epsilon = scalar("label_smoothing", label_smoothing, jnp.zeros((), computing_dtype(z)))
        weight = 1 - epsilon if weight is None else (1 - epsilon) * weight
    is_weightless = None if weight is None else weight == 0
    row = Row(z, mesh_axes=rows.mesh_axes)
    of_row = surprisals(row, y, smoothed, rows.mask, is_weightless)
    terms = _z_terms(rows, z_loss, of_row.normalizer)
    if smoothed is not None:
        terms.append(weighted_cost(epsilon, of_row.of_weights))
    losses = of_row.of_label if weight is None else weighted_cost(weight, of_row.of_label)
    # The loss of an impossible label is +inf even where softmax has no limit. The other terms are
    # NaN there, and would make it NaN.
    is_impossible = losses == jnp.inf
    return rows.zero_masked(losses + sum(jnp.where(is_impossible, 0.0, x) for x in terms))


@public
def safe_softmax_cross_entropy(logits: ArrayLike, labels: ArrayLike) -> jax.Array:
    r"""Cross-entropy of softmax and distributions: ``[..., classes], [..., classes] -> [...]``.

    .. math:: -\sum_j y_j \log p_j

    The same as `softmax_cross_entropy`, which is safe already; optax has both.

    Args:
      logits: floating-point array ``[..., classes]``.
      labels: non-negative numbers of the shape of `logits`, or floating-point ``[classes]`` for
        every example.

    Returns:
      ``[...]`` in nats, float32 or float64.

    Note:
      A logit of -inf costs nothing under a zero label, +inf under any other.

    Example:
      >>> import jxent
      >>> import jax.numpy as jnp
      >>> print(jxent.safe_softmax_cross_entropy([0.0, 0.0, -jnp.inf], [0.5, 0.5, 0.0]))
      0.6931
    """
    return softmax_cross_entropy(logits, labels)


def _weighted(labels: jax.Array, weights: jax.Array | None) -> SmoothedWeights:
    return SmoothedWeights(labels, factor=None if weights is None else as_row(weights, labels.ndim))


def _uniform(rows: Rows, z: jax.Array) -> jax.Array:
    """The uniform distribution over the classes that count, as one row for all where possible.

    Over explicit axes it must have the sharding of the logits.
    """
    probability = _uniform_probability(rows, computing_dtype(z))
    if explicit_sharding(z):
        return jnp.zeros_like(z, probability.dtype) + probability
    return jnp.broadcast_to(probability, (*probability.shape[:-1], z.shape[-1]))


def _uniform_probability(rows: Rows, dtype: np.dtype[Any]) -> jax.Array:
    """``[..., 1]``: the probability of each class that counts, if all have the same."""
    number = rows.number_present()
    if rows.mask.classes is None:
        number = jnp.full((1,) * (len(rows.examples) + 1), number, dtype)
    return divide(1.0, jnp.maximum(number, 1).astype(dtype))


def _z_terms(rows: Rows, weight: ArrayLike, normalizer: jax.Array) -> list[jax.Array]:
    if is_off(weight):
        return []
    zeta = rows.scalar("z_loss", weight, normalizer)
    # With the weight 0 a normaliser costs nothing, even if it or its square is infinite.
    finite = jnp.where((zeta == 0) & jnp.isinf(normalizer), 0.0, normalizer)
    return [zeta * finite * finite]
