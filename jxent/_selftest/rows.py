"""A row of the table of losses, with its exact values and gradients."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import exact, heads, sizes


@dataclass(frozen=True)
class Row:
    """A public function."""

    name: str
    kinds: tuple[str, ...]
    """The kinds of its positional arguments."""
    family: str = ""
    """The family whose bounds it keeps."""
    formula: Callable[..., Any] | None = None
    """``(m, *arguments, **options)``; None if it is tested against another function."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The options that may be traced, with examples for three classes."""
    binary: bool = False
    """Whether each number is an example, so that there is no axis of classes."""
    per_class: bool = False
    """Whether the result has an axis of classes."""
    reported: bool = True
    """Whether it stands in the report."""
    of_logits: "Row | None" = None
    """The loss of logits that it computes from the inputs and kernels of linear heads."""
    mean: bool = False
    """Whether it averages the examples of a head."""

    def truth(
        self,
        arguments: tuple[Any, ...],
        options: Mapping[str, Any] | None = None,
        cotangent: Any = None,
    ) -> list[sizes.Quantity]:
        """The exact values, and the gradients for the arguments and options, with their sizes."""
        if self.of_logits:
            decimals = tuple(map(exact.decimals, arguments))
            dense = heads.of_logits(self.kinds, decimals, np.matmul)
            return heads.carried(
                self.kinds, arguments, self.of_logits.truth(tuple(dense)), self.mean
            )
        assert self.formula
        options = options or {}
        result = exact.evaluate(self.formula, arguments, options, cotangent)
        written: sizes.Sizes = ()
        if sizes_of := getattr(sizes, self.name, None):
            given = {name: exact.decimals(x)[()] for name, x in options.items()}
            if self.per_class:
                given["cotangent"] = exact.decimals(1.0 if cotangent is None else cotangent)
            written = sizes_of(result, *map(exact.decimals, arguments), **given)
        numbers = (result.value, *result.gradients)
        quantities = []
        for i, x in enumerate(numbers):
            size = written[i] if i < len(written) else None
            # An exponential's relative error is the error of its exponent, which grows with |ln x|.
            size = size or sizes.of_itself(x, sizes.nats(x) if self.family == "softmax" else 0)
            steep = result.steep[i - 1] if i else np.zeros(x.shape, bool)
            quantities.append(sizes.Quantity(x, size.terms, size.extra + 0 * size.terms, steep))
        return quantities
