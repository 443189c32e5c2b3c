"""How much elementary functions err: what JAX publishes, and what the device at hand does."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import _numerics

Array = np.ndarray[Any, Any]


class Errors(NamedTuple):
    """The largest errors of a float32 function, in units in the last place."""

    cpu: float
    gpu: float
    v5e: float
    """also of a TPU v2, v3 and v4"""
    v5p: float
    v6e: float
    """also of a TPU 7x"""


ERRORS = {
    "exp": Errors(1.5, 2, 116, 109.5, 65),
    "exp highest": Errors(1.5, 2, 1.5, 1.5, 1.5),
    "expm1": Errors(6.5, 1.5, 1772, 1357.5, 3.5),
    "expm1 highest": Errors(6.5, 1.5, 2, 2, 2),
    "log": Errors(1.5, 1, 4030.5, 62, 2.5),
    "log1p": Errors(3, 1, 4034, 63, 3),
    "log2": Errors(2.5, 2, 5159, 57.5, 2.5),
    "logistic": Errors(2.5, 4, 243, 124, 65.5),
    "reciprocal": Errors(0.5, 1, 198, 40, 1.5),
    "rsqrt": Errors(2, 2, 2.5, 2.5, 1.5),
    "sqrt": Errors(0.5, 1, 3, 3, 2),
    "tanh": Errors(5, 5.5, 1365.5, 92, 1.5),
}
"""From "Numerical accuracy" in the documentation of JAX, as reviewed on 2026-09-18."""

COLUMNS = {
    **{f"TPU {kind}": "v5e" for kind in ("v2", "v3", "v4", "v5 lite")},
    **{"TPU v5": "v5p", "TPU v5p": "v5p", "TPU v5e": "v5e"},
    **{f"TPU {kind}": "v6e" for kind in ("v6 lite", "v6e", "7x")},
    "TPU7x": "v6e",
}
"""The columns of `ERRORS` by the names that JAX gives to kinds of TPUs."""


class Elementary(NamedTuple):
    """An elementary function, as JAX and as this package computes it."""

    row: str | None
    """of `ERRORS`, if it has one"""
    jax: Callable[..., jax.Array]
    ours: Callable[..., jax.Array]
    exact: Callable[..., Any]
    """in float64"""
    lowest: float
    """the domain, from here to infinity"""
    assumed: float
    """the largest relative error that the bounds of the losses are derived from, in eps"""


def _sum(x: jax.Array) -> jax.Array:
    return jnp.sum(x, axis=-1)


ELEMENTARY = {
    "exp": Elementary("exp highest", _numerics.exp, _numerics.exp, np.exp, -np.inf, 2),
    "expm1": Elementary("expm1 highest", _numerics.expm1, _numerics.expm1, np.expm1, -np.inf, 6.5),
    "log": Elementary("log", jnp.log, _numerics.log, np.log, 0, 2.5),
    "log1p": Elementary("log1p", jnp.log1p, _numerics.log1p, np.log1p, -1, 3.5),
    "tanh": Elementary("tanh", jnp.tanh, _numerics.tanh, np.tanh, -np.inf, 5.5),
    "quotient": Elementary("reciprocal", jnp.divide, _numerics.divide, np.divide, -np.inf, 1.5),
    "sum": Elementary(None, _sum, _sum, partial(np.sum, axis=-1), 0, 3),
}
POINTS = 1_000_000


def measure(name: str, device: jax.Device | None = None) -> dict[str, float | None]:
    """The largest errors over a million numbers, of JAX's function and of this package's.

    Those of JAX, as published and as found, are in units in the last place; the others in eps.
    """
    function = ELEMENTARY[name]
    args = [_numbers(seed, function.lowest) for seed in range(1 + (name == "quotient"))]
    if name == "sum":  # of a thousand rows
        args = [x.reshape(1000, -1) for x in args]
    with np.errstate(all="ignore"):
        exact = function.exact(*(x.astype(np.float64) for x in args))
    with jax.default_device(device):
        theirs, _ = _worst(jax.jit(function.jax)(*args), exact)
        _, ours = _worst(jax.jit(function.ours)(*args), exact)
    in_theory = published(function.row, device or jax.local_devices()[0])
    return {"jax": theirs, "published": in_theory, "jxent": ours, "assumed": function.assumed}


def published(row: str | None, device: jax.Device) -> float | None:
    """The entry of `ERRORS` for this device, if there is one."""
    column = COLUMNS.get(device.device_kind, device.platform)
    return getattr(ERRORS[row], column, None) if row else None


def _numbers(seed: int, lowest: float) -> Array:
    """Half of them of a size between 1e-30 and 1e30, half of one between 0.01 and 100."""
    rng = np.random.default_rng(seed)
    size = np.log(10) * np.concatenate([rng.uniform(-a, a, POINTS // 2) for a in (30, 2)])
    x = np.exp(size) * rng.choice([-1, 1], POINTS)
    inside: Array = np.where(x > lowest, x, -1 / x if lowest else -x).astype(np.float32)
    return inside


def _worst(found: Any, exact: Array) -> tuple[float, float]:
    """The largest error of the results of a size between 1e-30 and 1e30.

    In units in the last place, and in eps relative to the result; a unit is half an eps to one.
    """
    counted = (np.abs(exact) >= 1e-30) & (np.abs(exact) <= 1e30)
    found, exact = np.asarray(found, np.float64)[counted], exact[counted]
    error, size = np.abs(found - exact) / np.finfo(np.float32).eps, np.abs(exact)
    return float(np.max(error / np.exp2(np.floor(np.log2(size))))), float(np.max(error / size))


def as_text(measured: dict[str, dict[str, Any]]) -> str:
    """Returns a table of all functions, and says which of them err more than was assumed."""
    lines = [
        f"Elementary functions in float32: the largest errors over {POINTS:,} numbers.",
        "JAX: as it computes them, and as its documentation says; in units in the last place.",
        "jxent: as it computes them, and what its bounds are derived from; relative, in eps.",
        f"{'':10}{'JAX':>10}{'published':>11}{'jxent':>8}{'derived from':>14}",
    ]
    for name, found in measured.items():
        in_theory = "-" if found["published"] is None else f"{found['published']:g}"
        lines.append(
            f"  {name:8}{found['jax']:10.1f}{in_theory:>11}{found['jxent']:8.1f}"
            f"{found['assumed']:14g}"
        )
    return "\n".join([*lines, *worse(measured)])


def worse(measured: dict[str, dict[str, Any]]) -> list[str]:
    """Describes each function that errs more than the bounds allow for."""
    return [
        f"This device is worse than what the bounds were derived from: {name} errs by"
        f" {found['jxent']:.1f} eps, not by {found['assumed']:g}."
        for name, found in measured.items()
        if not found["jxent"] <= found["assumed"]
    ]
