"""The mask of rows: which classes and which examples count."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Mask(NamedTuple):
    """What counts, as booleans; None: everything."""

    classes: Any = None
    """``[..., classes]``"""
    examples: Any = None
    """``[..., 1]``"""

    def fill(self, x: jax.Array, absent: float, uncounted: float) -> jax.Array:
        """`x` with these values in the classes and in the examples that do not count."""
        if self.classes is not None:
            x = jnp.where(self.classes, x, absent)
        if self.examples is not None:
            x = jnp.where(self.examples, x, uncounted)
        return x

    def fill_logits(self, x: jax.Array) -> jax.Array:
        """Logits in which a class that does not count does not exist."""
        return self.fill(x, -jnp.inf, 0.0)


EVERYTHING = Mask()
"""The mask that leaves nothing out."""
