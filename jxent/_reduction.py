"""The mean of losses, and the weights of labels in it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, Axis, any_array, axes_of, check_not_negative, elementwise, real
from ._autodiff import public
from ._dtypes import upcast
from ._numerics import divide, nan_where
from ._rows import Rows, elements_of, in_range, weight_of_label
from ._sharding import AxisName, number_of_shards, summed_over


@public
def weighted_mean(
    losses: ArrayLike,
    weights: ArrayLike | None = None,
    axis: Axis = None,
    *,
    axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Mean of losses by weight; 0 where nothing has weight: ``[...], [...] -> []``.

    .. math:: \frac{\sum_i w_i \ell_i}{\sum_i w_i}

    Args:
      losses: numbers, or truth values such as which answers are right.
      weights: non-negative numbers or booleans of the shape of `losses`, where a dimension of size
        1 stands for all; None for equal ones. The sum of advantages, which have both signs, may
        vanish: write ``jnp.sum(weights * losses)`` over a number.
      axis: the axis or axes to reduce; None for all of them.
      axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, whose devices' losses
        are reduced as well. The mean of the devices' means differs where their weights do.

    Returns:
      `losses` without the reduced axes, float32 or float64.

    Note:
      A negative weight that is traced, and cannot raise, makes the mean NaN.

      A loss with the weight 0 contributes nothing, be it NaN or infinite. Its gradient is 0, but
      what made it NaN may still turn that 0 into NaN: leave such examples out of the loss itself,
      with ``where`` or ``ignore_index``.

    References:
      PyTorch's ``reduction="mean"`` with class weights divides by the sum of weights likewise.

    Example:
      >>> import jxent
      >>> print(jxent.weighted_mean([1.0, 3.0, float("nan")], [1.0, 1.0, 0.0]))
      2.0
      >>> print(jxent.weighted_mean([1.0, 3.0], [False, False]))
      0.0
    """
    numbers = real("losses", losses, jnp.zeros(()))
    _, values = elements_of("losses", numbers, None, weights=weights)
    w = (
        jnp.ones_like(values)
        if weights is None
        else elementwise("weights", weights, "losses", values, repeats=True)
    )
    check_not_negative("weights", weights, "Write jnp.sum(weights * losses) over a number")
    values, w = upcast(values, w)
    axes = axes_of("losses", values.ndim, axis)
    total = nan_where(jnp.any(w < 0, axis=axes), jnp.sum(w, axis=axes))
    weightless = (w == 0) & ~jnp.isfinite(values)
    weighted = jnp.sum(w * jnp.where(weightless, 0.0, values), axis=axes)
    return mean(*(summed_over("axis_name", axis_name, x) for x in (weighted, total)))


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """``total / count``, 0 where the count is 0."""
    return jnp.where(count == 0, 0.0, divide(total, jnp.where(count == 0, 1.0, count)))


@public
def label_weights(
    class_weights: ArrayLike,
    labels: ArrayLike,
    ignore_index: int | None = None,
    *,
    class_axis_name: AxisName | None = None,
) -> jax.Array:
    r"""Weight of each label, for a mean of losses: ``[classes], [...] -> [...]``.

    .. math:: w_y

    Args:
      class_weights: :math:`w`, real numbers ``[classes]``.
      labels: integers ``[...]`` in [0, classes).
      ignore_index: the label of examples that do not count.
      class_axis_name: inside `jax.shard_map`, the mesh axis, or a tuple of them, over which the
        class weights are spread: each shard has a slice of them, in their order.

    Returns:
      ``[...]``, float32 or float64. It is 0 for an ignored label, and NaN for one outside
      [0, classes).

    Note:
      Labels and class weights may be sharded in any way. The weights are differentiated.

    References:
      PyTorch's ``cross_entropy`` divides its mean by the sum of these.

    Example:
      >>> import jxent
      >>> print(jxent.label_weights([0.5, 1.0, 2.0], [2, 0, -100], ignore_index=-100))
      [2.  0.5 0. ]
    """
    w, y = real("class_weights", class_weights, jnp.zeros(())), any_array("labels", labels)
    if w.ndim != 1:
        raise ValueError(f"class_weights must have the shape [classes], got shape {w.shape}")
    like = jax.ShapeDtypeStruct((*y.shape, w.size), w.dtype)
    beside = {"labels": y, "class_weights": w}
    rows = Rows.of("labels", like, (y.ndim,), None, class_axis_name, **beside)
    rows, y = rows.labels(y, ignore_index)
    (w,) = upcast(rows.row(w))
    weights = weight_of_label(w, y, rows.mesh_axes)
    classes = w.size * number_of_shards(rows.mesh_axes)
    return rows.zero_masked(nan_where(~in_range(y, classes)[..., 0], weights))
