"""Elements: yes-or-no questions, each with its own label and mask, checked once.

An element that the mask leaves out has harmless values, and `Elements.zero_masked` gives it the
loss 0 and the gradient 0.
"""

from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, boolean, elementwise, is_off, scalar, trailing
from ._dtypes import computing_dtype, widened
from ._numerics import nan_where, weighted
from ._sharding import explicit_sharding, joint_sharding, resharded


@dataclass(frozen=True)
class Elements:
    """Shape and mask of the array called `name`, shared by the arrays beside it."""

    name: str
    like: jax.Array
    counted: jax.Array | None = None
    """Which elements count; None: all."""

    @classmethod
    def of(
        cls, name: str, x: jax.Array, where: ArrayLike | None, **beside: ArrayLike | None
    ) -> Self:
        """The elements of `x` that `where` leaves, sharded as they are beside other arguments."""
        arrays = {name: x, **beside, "where": where}
        sharding = joint_sharding(x.ndim, arrays, lambda _, y: range(x.ndim - y.ndim, x.ndim))
        mask = None if where is None else resharded(boolean("where", where), sharding)
        if mask is not None and mask.shape != x.shape:
            raise ValueError(
                f"where must have the shape of {name} {x.shape}, got shape {mask.shape}"
            )
        return cls(name, resharded(x, sharding), mask)

    def fill_masked(self, x: jax.Array, value: float) -> jax.Array:
        """`x` sharded like the elements, with `value` in those that do not count."""
        x = resharded(x, explicit_sharding(self.like))
        return x if self.counted is None else jnp.where(self.counted, x, value)

    def probabilities(self, x: jax.Array) -> jax.Array:
        """Numbers in [0, 1]: NaN for any other, 1/2 for what does not count."""
        x = self.fill_masked(x, 0.5)
        return nan_where(~((x >= 0) & (x <= 1)), x)

    def zero_masked(self, losses: jax.Array) -> jax.Array:
        """The loss 0, with the gradient 0, for the elements that do not count."""
        return self.fill_masked(losses, 0.0)

    def binary_weights(
        self,
        labels: ArrayLike,
        pos_weight: ArrayLike | None = None,
        label_smoothing: ArrayLike = 0.0,
    ) -> tuple[jax.Array, jax.Array]:
        """The weights of the positive and of the negative term; NaN for a label outside [0, 1]."""
        y = elementwise("labels", labels, self.name, self.like)
        y = self.probabilities(widened(y, computing_dtype(self.like, y)))
        positive, negative = y, 1 - y
        if not is_off(label_smoothing):
            epsilon = scalar("label_smoothing", label_smoothing, y)
            positive = weighted(1 - epsilon, positive) + epsilon / 2
            negative = weighted(1 - epsilon, negative) + epsilon / 2
        if pos_weight is not None:
            weight = trailing("pos_weight", pos_weight, self.name, self.like)
            positive = positive * weight.astype(y.dtype)
        return positive, negative
