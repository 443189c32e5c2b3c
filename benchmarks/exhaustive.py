"""Measures the losses of one argument at every number there is, against exact results.

``python benchmarks/exhaustive.py`` runs through all 2^32 bit patterns of float32 and all 2^16 of
bfloat16 and float16, infinities and NaN among them. It prints a Markdown table of the largest
errors of the value and of two derivatives, each with its argument. ``--every 65537`` takes one
float32 in so many. With tqdm installed, progress is shown.

Errors are in units in the last place of the result's dtype: float32 for a value, the argument's for
a derivative. Where terms of both signs make a result, the unit is that of the sum of their sizes,
as in what the library promises. The terms are log p and log(1 - p) in the slope of the binary
entropy, log p and 1 in that of the entropy; the second derivatives of the sigmoid's entropy and of
the focal losses have such terms, too. Where the terms are below `LEAST`, a result below twice that
is right. A NaN or infinity that is missing, or should not be there, is an infinite error. Of second
derivatives nothing is promised at the ends of the domain and beyond. XLA on CPUs reads subnormal
numbers as 0; so does the truth.

The cross-entropy of softmax has the logits [x, 0] and the label 0, the focal losses the label 1.
The entropy has the probabilities [p, q] with q = 1 - p rounded to the dtype of p, and is
differentiated for p alone. The truth is of the same two numbers.

The truth is computed in float64, from closed forms of its own. It is compared with differences of
textbook formulas in `DIGITS` binary digits, at arguments of every size and at each worst one; the
largest difference, relative to the terms, stands below the table.
"""

import argparse
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import exp, log, log1p, mpf, workprec

import jxent

try:
    from tqdm import tqdm
except ImportError:

    def tqdm(rows, **_):
        """Returns the rows without a progress bar."""
        return rows


DTYPES = ("float32", "bfloat16", "float16")
CHUNK = 2**20
LEAST = 1e-33
DIGITS = 1600


class Loss(NamedTuple):
    """A loss of x, and of 1 - x where it has two arguments."""

    function: Callable
    """The library's."""
    truth: Callable
    """Gives three pairs: a result, and its terms' sizes, infinite where nothing is promised."""
    textbook: Callable
    """For numbers of mpmath."""
    probabilities: int = 0
    """How many of the arguments are probabilities; 0 if x is a logit."""


def _single(x):
    return x, jnp.abs(x)


def _parts(x):
    """``s(x), s(-x), softplus(x), softplus(-x)``, each exact where it is small, too."""
    e = jnp.exp(-jnp.abs(x))
    large, small, rest = 1 / (1 + e), e / (1 + e), jnp.log1p(e)
    up, down = jnp.where(x > 0, large, small), jnp.where(x > 0, small, large)
    return up, down, jnp.maximum(x, 0.0) + rest, jnp.maximum(-x, 0.0) + rest


def _no(x):
    up, down, loss, _ = _parts(x)
    return _single(loss), _single(up), _single(up * down)


def _yes(x):
    up, down, _, loss = _parts(x)
    return _single(loss), _single(-down), _single(up * down)


# H = |x| s(-|x|) + softplus(-|x|), with the derivatives -x s s̄ and s s̄ (x (s - s̄) - 1).
def _sigmoid_entropy(x):
    up, down, more, less = _parts(x)
    size, slope = jnp.abs(x), up * down
    value, bend = size * jnp.minimum(up, down) + jnp.minimum(more, less), x * (up - down)
    return _single(value), _single(-x * slope), (slope * (bend - 1), slope * (bend + 1))


# With s̄' = -s s̄ and l' = -s̄ the derivatives of s̄^γ l are -s̄^γ (γ s l + s̄) and
# s̄^γ s (γ² s l + (2γ + 1) s̄ - γ s̄ l).
def _focal(gamma, x):
    up, down, _, loss = _parts(x)
    power = {0.5: jnp.sqrt, 1.0: jnp.copy, 2.0: jnp.square}[gamma](down)
    more, less = gamma**2 * up * loss + (2 * gamma + 1) * down, gamma * down * loss
    second = power * up * (more - less), power * up * (more + less)
    return _single(power * loss), _single(-power * (gamma * up * loss + down)), second


# At p = 0 and 1 the slope is without its infinite part, which is documented.
def _binary_entropy(p):
    inside = (p > 0) & (p < 1)
    x = jnp.where(inside, p, 0.5)
    a, b = -jnp.log(x), -jnp.log1p(-x)
    value, slope = jnp.where(inside, x * a + (1 - x) * b, 0.0), jnp.where(inside, a - b, 1 - 2 * p)
    return _single(value), (slope, jnp.where(inside, a + b, 1.0)), _single(-1 / (x * (1 - x)))


# A term 0 log 0 has the slope 0, which is documented. Beyond p = 1 the other number is impossible.
def _entropy(p, q):
    log_p, log_q = (jnp.log(jnp.where(a > 0, a, 1.0)) for a in (p, q))
    slope, size = jnp.where(p > 0, -log_p - 1, 0.0), jnp.abs(log_p) + 1
    second = _single(-1 / jnp.where(p > 0, p, 1.0))
    return _single(-p * log_p - q * log_q), (slope, jnp.where(p > 1, jnp.inf, size)), second


def _two_classes(x):
    labels = jnp.zeros(x.shape, jnp.int32)
    logits = jnp.stack([x, jnp.zeros_like(x)], axis=-1)
    return jxent.softmax_cross_entropy_with_integer_labels(logits, labels)


def _term(x):
    return -x * log(x) if x else x


BCE = jxent.sigmoid_binary_cross_entropy
LOSSES = {
    "softmax_cross_entropy": Loss(_two_classes, _yes, lambda x: log1p(exp(-x))),
    f"{BCE.__name__}, label 0": Loss(lambda x: BCE(x, 0.0), _no, lambda x: log1p(exp(x))),
    f"{BCE.__name__}, label 1": Loss(lambda x: BCE(x, 1.0), _yes, lambda x: log1p(exp(-x))),
    "sigmoid_entropy": Loss(
        jxent.sigmoid_entropy,
        _sigmoid_entropy,
        lambda x: log1p(exp(-x)) / (1 + exp(-x)) + log1p(exp(x)) / (1 + exp(x)),
    ),
    "binary_entropy": Loss(
        jxent.binary_entropy, _binary_entropy, lambda p: _term(p) + _term(1 - p), 1
    ),
    "entropy": Loss(
        lambda p, q: jxent.entropy(jnp.stack([p, q], axis=-1)),
        _entropy,
        lambda p, q: _term(p) + _term(q),
        2,
    ),
}
for _gamma in (0.5, 1.0, 2.0):
    LOSSES[f"sigmoid_focal_loss, gamma {_gamma:g}"] = Loss(
        lambda x, gamma=_gamma: jxent.sigmoid_focal_loss(x, 1.0, gamma=gamma),
        partial(_focal, _gamma),
        lambda x, gamma=_gamma: log1p(exp(-x)) / (1 + exp(x)) ** gamma,
    )


@np.errstate(invalid="ignore")
def arguments(loss, x):
    """``[x]``, or x and 1 - x in the dtype of x."""
    return [x, 1 - x] if loss.probabilities == 2 else [x]


@np.errstate(invalid="ignore")
def as_read(loss, x):
    """The arguments in float64, as XLA reads them."""
    wide = [a.astype(np.float64) for a in arguments(loss, x)]
    return [np.where(np.abs(a) < np.finfo(np.float32).tiny, 0.0, a) for a in wide]


@partial(jax.jit, static_argnums=0)
def truth(loss, x, *others):
    """The pairs of the loss's truth, with NaN outside the domain."""
    # The limit at infinity must not be a product of 0 and infinity.
    x = jnp.clip(x, -1e300, 1e300)
    value, slope, (second, size) = loss.truth(x, *others)
    is_logit, number = not loss.probabilities, ~jnp.isnan(x)
    domain, inside = (number & (is_logit | a) for a in ((x >= 0) & (x <= 1), (x > 0) & (x < 1)))
    value, slope = ((jnp.where(domain, a, jnp.nan), size_of_a) for a, size_of_a in (value, slope))
    return value, slope, (second, jnp.where(inside, size, jnp.inf))


def error_of_truth(loss, x):
    """The largest error of the truth inside the domain, relative to the terms."""
    wide = as_read(loss, x)
    inside = (wide[0] > 0) & (wide[0] < 1) if loss.probabilities else np.isfinite(wide[0])
    wide = [a[inside] for a in wide]
    with jax.enable_x64(True):
        pairs = [[np.asarray(a) for a in pair] for pair in truth(loss, *wide)]
    largest = mpf(0)
    with workprec(DIGITS):
        for i, (at, *others) in enumerate(zip(*wide, strict=True)):
            # Steps this small leave no error of differences, and enough digits.
            h = mpf(abs(at) or 1.0) * mpf(2) ** -300
            low, middle, high = (loss.textbook(at + d, *map(mpf, others)) for d in (-h, 0 * h, h))
            exact = middle, (high - low) / (2 * h), (high - 2 * middle + low) / h**2
            for (got, size), right in zip(pairs, exact, strict=True):
                if LEAST < size[i] < np.inf:
                    largest = max(largest, abs(got[i] - right) / size[i])
    return float(largest)


@partial(jax.jit, static_argnums=0)
def results(loss, x, *others):
    """The library's values and derivatives."""

    def slope(x):
        return jax.grad(lambda x: jnp.sum(loss.function(x, *others)))(x)

    return loss.function(x, *others), slope(x), jax.grad(lambda x: jnp.sum(slope(x)))(x)


@partial(jax.jit, static_argnums=0)
def errors(loss, got, *wide):
    """The errors of the library's results in units in the last place."""
    return [_units(a, *pair) for a, pair in zip(got, truth(loss, *wide), strict=True)]


def _units(got, right, size):
    info = jnp.finfo(got.dtype)
    largest, tiny, eps = (float(a) for a in (info.max, info.tiny, info.eps))
    got = got.astype(jnp.float64)
    exponent = jax.lax.bitcast_convert_type(size, jnp.int64) & 0x7FF0000000000000
    unit = eps * jnp.maximum(jax.lax.bitcast_convert_type(exponent, jnp.float64), tiny)
    # What the largest number is not nearest to overflows.
    right = jnp.where(jnp.abs(right) < largest * (1 + eps / 4), right, right * jnp.inf)
    is_right = (got == right) | (jnp.isnan(got) & jnp.isnan(right)) | (size == jnp.inf)
    is_right |= (size < LEAST) & (jnp.abs(got) < 2 * LEAST)
    are_finite = jnp.isfinite(got) & jnp.isfinite(right)
    off = jnp.where(are_finite, jnp.abs(got - right) / unit, jnp.inf)
    return jnp.where(is_right, 0.0, off).astype(jnp.float32)


def worst(loss, dtype, every=1):
    """The largest error of each result, and its argument."""
    bits = 8 * jnp.dtype(dtype).itemsize
    every = every if bits == 32 else 1

    def of_chunk(start):
        patterns = np.arange(start, min(start + CHUNK * every, 2**bits), every, f"uint{bits}")
        x = patterns.view(jnp.dtype(dtype))
        got = results(loss, *arguments(loss, x))
        with jax.enable_x64(True):
            found = [np.asarray(a) for a in errors(loss, got, *as_read(loss, x))]
        return [(float(a.max()), x[a.argmax()]) for a in found]

    first, *starts = range(0, 2**bits, CHUNK * every)
    with ThreadPoolExecutor(2) as pool:
        rest = tqdm(pool.map(of_chunk, starts), total=len(starts), leave=False)
        chunks = [of_chunk(first), *rest]
    return [max(cells, key=lambda cell: cell[0]) for cells in zip(*chunks, strict=True)]


def samples():
    """Arguments of every size, and more between 0 and 1 and where the sigmoid bends."""
    rng = np.random.default_rng(0)
    near_one = 1 - np.exp2(-rng.uniform(1, 24, 100))
    drawn = np.concatenate([rng.uniform(0, 1, 300), rng.uniform(-90, 90, 300), near_one])
    patterns = np.arange(0, 2**32, 2**23, np.uint32)
    return np.concatenate([patterns.view(np.float32), drawn.astype(np.float32)])


def main():
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="of float32, one in so many")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--losses", default="", help="those that have this in their name")
    options = parser.parse_args()
    device, start = jax.devices()[0].device_kind, time.perf_counter()
    print(f"Python {platform.python_version()}, JAX {jax.__version__}; {device}.")
    print("Largest errors in units in the last place, and where they are.\n")
    print("| loss | dtype | value | first derivative | second derivative |\n|---|---|--:|--:|--:|")
    of_truth = 0.0
    for name, loss in LOSSES.items():
        if options.losses in name:
            of_truth = max(of_truth, error_of_truth(loss, samples()))
            for dtype in options.dtypes:
                cells = worst(loss, dtype, options.every)
                places = np.array([x for _, x in cells])
                of_truth = max(of_truth, error_of_truth(loss, places))
                texts = [f"{error:.2f} at {x!s}" for error, x in cells]
                print(f"| {name} | {dtype} | {' | '.join(texts)} |", flush=True)
    print(f"\nThe truth is off by at most {of_truth:.1e} of the sum of its terms' sizes.")
    print(f"This took {time.perf_counter() - start:.0f} seconds.")


if __name__ == "__main__":
    main()
