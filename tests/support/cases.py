"""The cases: one per row of the package's table of losses, at small example arguments.

Two examples of three classes everywhere, so that little is compiled.
"""

import contextlib
import dataclasses
import functools
import gc
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jxent
from jxent._selftest.errors import compiler_options, of_some
from jxent._selftest.table import TABLE

EXAMPLES: dict[str, Any] = {
    "logits": [[1.5, -0.5, 0.25], [-2.0, 0.75, 3.0]],
    "target_logits": [[0.5, 0.75, -1.25], [1.0, -0.25, 2.0]],
    "inputs": [[0.75, -0.5], [-1.25, 2.0]],
    "kernel": [[1.0, -0.5, 0.25], [-0.75, 0.5, 1.25]],
    "labels": [0, 1],
    "target_indices": [[0, 2], [1, 2]],
    "target_log_probs": [[-0.75, -1.5], [-1.25, -1.0]],
    "distributions": [[0.75, 0.125, 0.125], [0.25, 0.125, 0.625]],
    "predictions": [[0.5, 0.25, 0.25], [0.125, 0.625, 0.25]],
    "log_predictions": [[-0.75, -1.25, -1.5], [-2.0, -0.5, -1.375]],
    "log_distributions": [[-0.5, -1.625, -1.75], [-1.125, -0.875, -1.375]],
    "losses": [[0.5, 2.0, 0.25], [1.5, 0.125, 3.0]],
    "weights": [[1.0, 0.5, 2.0], [0.25, 1.5, 0.75]],
}
"""An example of each kind of argument."""

INTEGERS = ("labels", "target_indices")
"""The kinds of arguments that are no numbers, but name classes."""


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A public function, the kinds of its positional arguments, and its traceable options."""

    name: str
    kinds: tuple[str, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What is given in every call."""

    def __str__(self) -> str:
        reduction = [self.fixed["reduction"]] if "reduction" in self.fixed else []
        return "-".join([self.name, *reduction, *(["options"] if self.options else [])])

    @property
    def function(self) -> Callable[..., jax.Array]:
        return getattr(jxent, self.name)

    @functools.cached_property
    def parameters(self) -> list[str]:
        """The names of the positional arguments."""
        return list(inspect.signature(self.function).parameters)[: len(self.kinds)]

    def accepts(self, parameter: str) -> bool:
        return parameter in inspect.signature(self.function).parameters

    @property
    def has_classes(self) -> bool:
        """Whether it reduces an axis of classes, and has masks of classes and of examples."""
        return self.accepts("axis") and self.accepts("where")

    @property
    def per_class(self) -> bool:
        """Whether the result has the shape of the first argument."""
        args = self.args()
        return jax.eval_shape(self.call, *args).shape == args[0].shape

    @property
    def differentiable(self) -> tuple[int, ...]:
        """The positions in `args` of what can be differentiated."""
        kinds = self.kinds + tuple(self.options)
        return tuple(i for i, kind in enumerate(kinds) if kind not in INTEGERS)

    def args(self, dtype=np.float32) -> list[jax.Array]:
        """The example arguments: the positional ones, then the options."""
        values = [EXAMPLES[kind] for kind in self.kinds] + list(self.options.values())
        dtypes = [np.int32 if kind in INTEGERS else dtype for kind in self.kinds]
        dtypes += [dtype] * len(self.options)
        return [jnp.asarray(v, d) for v, d in zip(values, dtypes, strict=True)]

    def call(self, *args: Any, **fixed: Any) -> jax.Array:
        """The function of `args`, with `fixed` keywords beside."""
        options = dict(zip(self.options, args[len(self.kinds) :], strict=True))
        return self.function(*args[: len(self.kinds)], **options, **self.fixed, **fixed)

    def of_floats(self, args: list[jax.Array]) -> tuple[Callable[..., jax.Array], list[jax.Array]]:
        """The function of the differentiable arguments alone, and these."""
        return of_some(self.call, self.differentiable, args)


_FIXED = {
    "linear_softmax_cross_entropy": [
        {"reduction": reduction, "chunk_size": 1} for reduction in ("none", "mean")
    ]
}

CASES = [
    Case(row.name, row.kinds, dict(row.options), fixed)
    for row in TABLE.values()
    if row.name != "chunked"  # makes a function, and is none of arrays
    for fixed in _FIXED.get(row.name, [{}])
]

BARE = [
    dataclasses.replace(case, options={}) if case.options else case
    for case in CASES
    if case.fixed.get("reduction", "none") == "none"
]
"""Each function with the options left alone: its losses, one for every example."""

ALL = BARE + [case for case in CASES if case.options]
"""Each function without its options, and where it has some, with them."""


def fast_jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` without LLVM's polish on a CPU, for programs that run once.

    On a GPU, with every rounding to 16 bits that the program asks for.
    """
    options_of_xla = compiler_options() or {"xla_allow_excess_precision": False}
    return jax.jit(function, compiler_options=options_of_xla, **options)


@contextlib.contextmanager
def no_leaks() -> Iterator[None]:
    """A check that no tracer is left behind.

    Each trace ends with a search for garbage, which need not look at what was there before.
    """
    gc.freeze()
    try:
        with jax.check_tracer_leaks():
            yield
    finally:
        gc.unfreeze()


def with_gradients(
    function: Callable[..., jax.Array], weights: Callable[[jax.Array], Any] | None = None
) -> Callable[..., Any]:
    """The function ``(*args) -> (out, gradients)``, of the sum of the results.

    The arguments may be trees. The gradients are in the same structure, for all that is
    floating-point, with None for the rest. ``weights(out)`` are factors of the results in the sum.
    """

    def both(*args: Any) -> tuple[jax.Array, Any]:
        leaves, tree = jax.tree.flatten(args)
        floats = [
            i for i, x in enumerate(leaves) if jnp.issubdtype(jnp.result_type(x), jnp.floating)
        ]

        def weighted(*leaves: Any) -> tuple[jax.Array, jax.Array]:
            out = function(*tree.unflatten(leaves))
            return (out if weights is None else out * weights(out)), out

        of_floats, given = of_some(weighted, floats, leaves)
        terms, pullback, out = jax.vjp(of_floats, *given, has_aux=True)
        gradients = dict(zip(floats, pullback(jnp.ones_like(terms)), strict=True))
        return out, tree.unflatten([gradients.get(i) for i in range(len(leaves))])

    return both


def cosines(out: jax.Array) -> jax.Array:
    """Factors by which every result counts differently in a sum."""
    return jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)


def value_and_gradients(call: Callable[..., jax.Array], differentiable: tuple[int, ...]) -> Any:
    """The function ``(cotangent, *args) -> (out, *gradients)``."""

    def function(cotangent: jax.Array, *args: jax.Array) -> tuple[jax.Array, ...]:
        of_floats, floats = of_some(call, differentiable, args)
        out, pullback = jax.vjp(of_floats, *floats)
        return out, *pullback(cotangent)

    return function


@functools.cache
def compiled(case: Case) -> Callable[..., Any]:
    """Value and gradients of a case, compiled once for all tests that need them."""
    return fast_jit(value_and_gradients(case.call, case.differentiable))


@functools.cache
def cotangent_of(case: Case) -> Any:
    """Numbers of which no two are alike, of the shape of the result, as float32."""
    shape = jax.eval_shape(case.call, *case.args()).shape
    return np.linspace(0.5, 1.5, math.prod(shape), dtype=np.float32).reshape(shape)


@functools.cache
def expected(case: Case) -> tuple[Any, ...]:
    """The value and the gradients at the example arguments, in float32."""
    results = compiled(case)(jnp.asarray(cotangent_of(case)), *case.args())
    return tuple(map(np.asarray, results))


def bare(name: str) -> Case:
    """The function called `name`, without options."""
    (case,) = (case for case in BARE if case.name == name)
    return case
