"""The mean of losses."""

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, Axis, axes_of, check_not_negative, elementwise
from ._dtypes import upcast
from ._numerics import divide, nan_where
from ._rows import elements_of


def weighted_mean(
    losses: ArrayLike, weights: ArrayLike | None = None, axis: Axis = None
) -> jax.Array:
    r"""Mean of losses by weight; 0 where nothing has weight: ``[...], [...] -> []``.

    .. math:: \frac{\sum_i w_i \ell_i}{\sum_i w_i}

    Args:
      losses: floating-point array.
      weights: non-negative numbers or booleans of the shape of `losses`; None for equal ones. The
        sum of advantages, which have both signs, may vanish: write ``jnp.sum(weights * losses)``
        over a number.
      axis: the axis or axes to reduce; None for all of them.

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
    _, values = elements_of("losses", losses, None, weights=weights)
    w = (
        jnp.ones_like(values)
        if weights is None
        else elementwise("weights", weights, "losses", values)
    )
    check_not_negative("weights", weights, "Write jnp.sum(weights * losses) over a number")
    values, w = upcast(values, w)
    axes = axes_of("losses", values.ndim, axis)
    total = nan_where(jnp.any(w < 0, axis=axes), jnp.sum(w, axis=axes))
    weightless = (w == 0) & ~jnp.isfinite(values)
    weighted = jnp.sum(w * jnp.where(weightless, 0.0, values), axis=axes)
    return mean(weighted, total)


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
    """``total / count``, 0 where the count is 0."""
    return jnp.where(count == 0, 0.0, divide(total, jnp.where(count == 0, 1.0, count)))
