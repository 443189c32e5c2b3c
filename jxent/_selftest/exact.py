"""Evaluates formulas and their gradients in decimal arithmetic, from exact floating-point inputs.

The formulas of `table.py` take `ARITHMETIC` to be evaluated with many digits. Textbook formulas
are right then: where terms cancel, more digits are left than any dtype has. Each number keeps the
numbers that it was computed from, and its derivative with respect to each of them. From these the
chain rule gives the gradient of a formula, with as many digits.
"""

import math
import operator
from collections.abc import Callable, Mapping
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, getcontext
from functools import cache
from itertools import count
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A NumPy array of objects. Type checkers do not know the arithmetic of its entries."""
ZERO, ONE = Decimal(0), Decimal(1)


def context(digits: int) -> Context:
    """Returns a context of so many digits and any exponent; infinity and NaN do not raise."""
    return Context(prec=digits, traps=[], Emax=MAX_EMAX, Emin=MIN_EMIN)


def _operation(
    value: Callable[..., Any], for_a: Callable[..., Any], for_b: Callable[..., Any]
) -> Callable[["Number", Any], Any]:
    """Returns an operator of two numbers, from functions of ``(a, b)``: value and derivatives."""

    def operate(a: "Number", b: Any) -> Any:
        if isinstance(b, np.ndarray):
            return NotImplemented  # NumPy then calls this for each entry
        if not isinstance(b, Number):
            y = Decimal(b)
            return Number(value(a.value, y), (a, for_a(a.value, y)))
        x, y = a.value, b.value
        return Number(value(x, y), (a, for_a(x, y)), (b, for_b(x, y)))

    return operate


def times(a: Decimal, b: Decimal) -> Decimal:
    """``a b``, where 0 times infinity is 0."""
    return a * b if a and b else ZERO


def _power(a: Decimal, b: Decimal) -> Decimal:
    return a**b if b else ONE


class Number:
    """A number, the numbers that it was computed from, and its derivative for each of these."""

    __slots__ = ("born", "made_of", "slope", "steep", "value")
    _clock = count()

    def __init__(self, value: Decimal, *made_of: tuple["Number", Decimal]) -> None:
        self.value, self.made_of = value, made_of
        self.born = next(self._clock)
        self.slope, self.steep = ZERO, False

    __add__ = _operation(operator.add, lambda a, b: ONE, lambda a, b: ONE)
    __mul__ = _operation(times, lambda a, b: b, lambda a, b: a)
    __truediv__ = _operation(operator.truediv, lambda a, b: 1 / b, lambda a, b: -a / (b * b))
    __pow__ = _operation(
        _power,
        lambda a, b: b * _power(a, b - 1),
        lambda a, b: times(_power(a, b), ln(a)),
    )

    def __neg__(self) -> "Number":
        return Number(-self.value, (self, -ONE))

    def __sub__(self, other: Any) -> Any:
        return self + -other

    def __radd__(self, other: Any) -> Any:
        return self + other

    def __rmul__(self, other: Any) -> Any:
        return self * other

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __rtruediv__(self, other: Any) -> Any:
        return Number(Decimal(other)) / self


# Exponentials and logarithms are cached: several losses need those of the same inputs.


@cache
def _exp(x: Decimal, digits: int) -> Decimal:
    return x.exp()


@cache
def _ln(x: Decimal, digits: int) -> Decimal:
    return x.ln()


def exp(x: Decimal) -> Decimal:
    return _exp(x, getcontext().prec)


def ln(x: Decimal) -> Decimal:
    return _ln(x, getcontext().prec)


def _exp_of(x: Number) -> Number:
    value = exp(x.value)
    return Number(value, (x, value))


def _log_of(x: Number) -> Number:
    return Number(ln(x.value), (x, 1 / x.value))


def _sum(x: Array) -> Any:
    rows = x.reshape(-1, x.shape[-1])
    sums = [Number(sum((v.value for v in row), ZERO), *((v, ONE) for v in row)) for row in rows]
    return np.array(sums, object).reshape(x.shape[:-1])


def _softmax(z: Array) -> Any:
    top = np.array([max(x.value for x in row) for row in z.reshape(-1, z.shape[-1])], object)
    e = ARITHMETIC.exp(z - top.reshape(*z.shape[:-1], 1))
    return e / _sum(e)[..., None]


def _sigmoid(z: Array) -> Any:
    return 1 / (1 + ARITHMETIC.exp(-z)), 1 / (1 + ARITHMETIC.exp(z))


def _one_hot(labels: Array, classes: int) -> Array:
    return _each(Number, decimals(labels[..., None] == np.arange(classes)))


def _pick(x: Array, labels: Array) -> Any:
    return np.take_along_axis(x, labels[..., None], axis=-1)[..., 0]


ARITHMETIC = SimpleNamespace(
    sum=_sum,
    exp=np.frompyfunc(_exp_of, 1, 1),
    log=np.frompyfunc(_log_of, 1, 1),
    softmax=_softmax,
    sigmoid=_sigmoid,
    one_hot=_one_hot,
    pick=_pick,
)


def decimals(x: Any) -> Array:
    """Returns floating-point numbers as an array of exact decimals, and labels as they are."""
    x = np.asarray(x)
    if np.issubdtype(x.dtype, np.integer) or x.dtype == object:
        return x
    x = x.astype(np.float64)
    return np.array([Decimal(v) for v in x.ravel().tolist()], object).reshape(x.shape)


class Result(NamedTuple):
    """Values, and their gradients for each floating-point argument, then for each option."""

    value: Array
    gradients: tuple[Array, ...]
    steep: tuple[Array, ...]
    """True where the derivative is infinite. The gradient there omits the infinite terms."""


def evaluate(
    formula: Callable[..., Any],
    arguments: tuple[Any, ...],
    options: Mapping[str, Any] | None = None,
    cotangent: Any = None,
) -> Result:
    """Evaluates a formula at these arguments, and the gradients of its values' (weighted) sum.

    Args:
      formula: the formula of a row of `table.py`.
      arguments: floating-point arrays, and labels.
      options: floating-point numbers or arrays.
      cotangent: each value's weight in the sum, in the shape of the values; None for 1.
    """
    made = [_numbers(x) for x in arguments]
    chosen = {name: _numbers(x) for name, x in (options or {}).items()}
    values = np.asarray(
        formula(ARITHMETIC, *made, **{name: x[()] for name, x in chosen.items()}), object
    )
    weights = np.full(values.shape, ONE, object) if cotangent is None else decimals(cotangent)
    _differentiate(list(zip(values.ravel(), weights.ravel(), strict=True)))
    leaves = [x for x in (*made, *chosen.values()) if x.dtype == object]
    return Result(
        _each(lambda x: x.value, values),
        tuple(_each(lambda x: x.slope, x) for x in leaves),
        tuple(_each(lambda x: x.steep, x).astype(bool) for x in leaves),
    )


def _numbers(x: Any) -> Array:
    x = decimals(x)
    return _each(Number, x) if x.dtype == object else x


def _each(function: Callable[[Any], Any], x: Array) -> Array:
    return np.array([function(v) for v in x.ravel()], object).reshape(x.shape)


def _differentiate(results: list[tuple[Number, Decimal]]) -> None:
    """Sets the slope of every number: the derivative of the results' weighted sum for it.

    A number of slope 0 adds nothing, even where its derivatives are infinite. Otherwise an infinite
    derivative, such as that of ``p log p`` at 0, is not added, but sets `steep`.
    """
    for x, weight in results:
        x.slope += weight
    for x in sorted(_ancestors([x for x, _ in results]), key=lambda x: -x.born):
        if not (x.slope or x.steep):
            continue
        for source, derivative in x.made_of:
            if derivative.is_finite():
                source.slope += times(x.slope, derivative)
                source.steep |= x.steep and bool(derivative)
            else:
                source.steep |= True


def _ancestors(results: list[Number]) -> set[Number]:
    found, waiting = set(results), list(results)
    while waiting:
        for source, _ in waiting.pop().made_of:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found


def nats(x: Decimal) -> Decimal:
    """``|ln x|``, to the precision of a float; 0 for 0 and infinity."""
    if not x or not x.is_finite():
        return ZERO
    exponent = x.adjusted()
    mantissa = float(abs(x).scaleb(-exponent))
    return Decimal(abs(math.log(mantissa) + exponent * math.log(10)))
