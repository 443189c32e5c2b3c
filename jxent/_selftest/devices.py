"""How much elementary functions err: what JAX publishes, and what the device at hand does."""

from typing import NamedTuple


class Errors(NamedTuple):
    """The largest errors of a float32 function, in units in the last place."""

    cpu: float
    gpu: float
    v5e: float
    """also a TPU v2, v3 and v4"""
    v5p: float
    v6e: float
    """also a TPU 7x"""


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
