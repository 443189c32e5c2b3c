"""The inputs that break others, as arrays of rows. They are made in float64, then rounded."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np

CLASSES = 6
MARGINS = (-100, -80, -50, -30, -20, -12, -8, -5, -2, -1, -0.1)
MARGINS = (*MARGINS, 0, *(-m for m in reversed(MARGINS)))
OFFSETS = (1e4, -1e4, 1e8, -1e8)
SCALES = (1e-3, 1e-2, 0.1, 1, 10, 100, 1e3, 1e4)
PERTURBATIONS = (1e-6, 1e-4, 1e-2, 0.3, 1, 3, 10, 30, 100)


def rounded(dtype, *arrays):
    """The arrays in `dtype`, without the rows that overflow in it.

    What is too small for XLA on CPU, which has no subnormal numbers, is zero. The 16-bit types,
    which share their arithmetic with float32, get every other row.
    """
    with np.errstate(over="ignore"):
        given = [np.where(np.abs(x) < 1e-37, 0.0, x) for x in arrays]
        cast = [x.astype(jnp.dtype(dtype)) for x in given]
    fit = [
        np.all(np.isinf(x) == np.isinf(y.astype(np.float64)), axis=-1)
        for x, y in zip(given, cast, strict=True)
    ]
    keep = np.logical_and.reduce(fit)
    step = 2 if jnp.dtype(dtype).itemsize == 2 else 1
    return [x[keep][::step] for x in cast]


@functools.cache
def logits(classes=CLASSES):
    """Rows of logits whose label is class 1: margins, offsets, scales, ties, -inf."""
    rng = np.random.default_rng(0)
    rows = []
    for margin, scale in itertools.product(MARGINS, (0.1, 3)):
        row = scale * rng.normal(size=classes)
        row[1] = np.max(np.delete(row, 1)) + margin
        rows.append(row)
    for offset, scale in itertools.product(OFFSETS, (1, 20)):
        rows.append(offset + scale * rng.normal(size=classes))
        tail = offset + scale * rng.normal(size=classes)
        tail[1] = np.max(tail) + 15
        rows.append(tail)
    for scale in SCALES:
        rows.extend(scale * rng.normal(size=(3, classes)))
    for value in (0, 1, -3e4):
        rows.append(np.full(classes, value))
    for top in (1.5, 20, 1e3):
        row = rng.normal(size=classes)
        row[:2] = np.max(row) + top
        rows.extend((row, row[::-1]))
    if classes > 3:
        for scale in (0.1, 1, 10, 60):
            row = scale * rng.normal(size=classes)
            row[[0, 3]] = -np.inf
            rows.append(row)
    return np.array(rows)


@functools.cache
def soft_labels(classes=CLASSES):
    """Distributions for `logits`: random, nearly one-hot, one-hot, uniform, not normalised."""
    rng = np.random.default_rng(1)
    z = logits(classes)
    y = rng.dirichlet(np.ones(classes), size=len(z))
    kind = np.arange(len(z)) % 7
    y[kind == 1] = rng.dirichlet(np.full(classes, 0.05), size=np.sum(kind == 1))
    y[kind == 2] = np.eye(classes)[1]
    y[kind == 3] = 1 / classes
    y[kind == 4] *= 3
    near = np.full(classes, 1e-6)
    near[1] = 1 - (classes - 1) * 1e-6
    y[kind == 5] = near
    return np.where(np.isinf(z), 0, y)


@functools.cache
def logit_pairs(classes=CLASSES):
    """Predictions and targets: nearly equal to far apart, shifted, nearly one-hot, uniform."""
    rng = np.random.default_rng(2)
    pairs = []
    for change, scale in itertools.product(PERTURBATIONS, (0.0, 0.1, 1, 10)):
        a = scale * rng.normal(size=classes)
        b = a + change * rng.normal(size=classes)
        pairs += [(a, b), (a, b + 7), (a + 1e4, b + 1e4)]
    for change, margin in itertools.product(PERTURBATIONS, (8, 20, 50, 100)):
        a = rng.normal(size=classes)
        a[1] += margin
        b = a + change * rng.normal(size=classes)
        pairs += [(a, b), (b, a)]
    for scale in SCALES:
        pairs.append((scale * rng.normal(size=classes), scale * rng.normal(size=classes)))
    for offset in OFFSETS:
        a = offset + 10 * rng.normal(size=classes)
        pairs.append((a, a + rng.normal(size=classes)))
        pairs.append((rng.normal(size=classes), a))
    for margin in MARGINS:
        a, b = rng.normal(size=classes), rng.normal(size=classes)
        a[1] += margin
        b[2 % classes] += margin
        pairs.append((a, b))
    a = rng.normal(size=classes)
    pairs.append((a, a))
    if classes > 3:
        for change in (1e-6, 1e-4, 1, 30):
            a = rng.normal(size=classes)
            a[[0, 3]] = -np.inf
            b = a + change * rng.normal(size=classes)
            pairs.append((a, b))
            c = rng.normal(size=classes)
            pairs.append((c, b))
    a, b = np.array(pairs).transpose(1, 0, 2)
    return a, b


@functools.cache
def binary_logits():
    rng = np.random.default_rng(3)
    scales = np.concatenate([scale * rng.normal(size=6) for scale in SCALES])
    return np.concatenate([MARGINS, scales, [1e-6, -1e-6, 1e-20]])


@functools.cache
def binary_pairs():
    """Pairs of single logits: nearly equal to far apart."""
    rng = np.random.default_rng(4)
    changes = PERTURBATIONS
    a = [m + 0.3 * rng.normal() for m in MARGINS for _ in changes]
    b = [x + change * rng.normal() for x, change in zip(a, itertools.cycle(changes), strict=False)]
    return np.array(a), np.array(b)


@functools.cache
def probabilities(classes=CLASSES):
    """Distributions: scales, nearly one-hot, one-hot, uniform, with zeros, not normalised."""
    rng = np.random.default_rng(5)
    rows = []
    for scale in (1e-3, 0.1, 1, 3, 10, 30):
        z = scale * rng.normal(size=(4, classes))
        rows.extend(np.exp(z) / np.sum(np.exp(z), axis=-1, keepdims=True))
    for tail in (1e-3, 1e-6, 1e-12, 1e-20):
        row = np.full(classes, tail)
        row[1] = 1 - (classes - 1) * tail
        rows.append(row)
    rows += [np.full(classes, 1 / classes), np.eye(classes)[1], 0.3 * rows[0], 2.5 * rows[9]]
    return np.array(rows)


@functools.cache
def probability_pairs(classes=CLASSES):
    """Two distributions each: nearly equal to far apart, and some that are not normalised."""
    rng = np.random.default_rng(6)
    p = probabilities(classes)
    pairs = [(a, rng.permutation(b)) for a, b in zip(p, rng.permutation(p), strict=True)]
    for row, change in itertools.product(p[:24], PERTURBATIONS[:6]):
        other = row * np.exp(change * rng.normal(size=classes))
        pairs += [(row, other / np.sum(other)), (row, other)]
    a, b = np.array(pairs).transpose(1, 0, 2)
    # Infinite divergences have tests of their own.
    b = np.where((b == 0) & (a > 0), 1e-3, b)
    return a, b


# Numbers of very different size, of which nothing may be rounded away.
VERY_DIFFERENT = [
    ([1e-8], [1.0]),
    ([1e-20], [1e-3]),
    ([2, 3, 4], [1e-99] * 3),
    ([1.0], [1e99]),
    ([1e-99, 0, 0], [1e-99, 1e99, 1]),
    ([3e38, 3e38, 1e-30], [3e38, 3e38, 1]),
    ([200, 300], [1e-37, 0.5]),
]


def _padded(pair, classes, least, most):
    """Within the range, and with classes that do not count, whose probabilities are 0."""
    inside = [np.where(np.equal(x, 0), 0, np.clip(x, least, most)) for x in pair]
    return [np.pad(x, (0, classes - len(x))) for x in inside]


@functools.cache
def unnormalized_pairs(dtype, classes=CLASSES):
    """Two rows of non-negative numbers each, of every size that `dtype` has, in `dtype`."""
    rng = np.random.default_rng(7)
    info = jnp.finfo(dtype)
    least, most = 1.1 * float(info.smallest_normal), float(info.max) * (1 - 1e-3)
    low, high = np.log(least), np.log(most)
    pairs = [np.exp(rng.uniform(low, high, (2, classes))) for _ in range(40)]
    # Nearly equal to far apart, at each size.
    for change, size in itertools.product(PERTURBATIONS, np.linspace(low, high, 7)):
        row = size + rng.uniform(-2, 0, classes)
        for other in row + change * rng.normal(size=classes), rng.permutation(row) + 0.1 * change:
            pairs.append(np.exp(np.clip([row, other], low, high)))
    # The ends of the range beside each other, alone and together.
    ends = [least, 2 * least, 0.9, 1.0, most / 2, most]
    for p, q in itertools.product(ends, ends):
        row = np.zeros((2, classes))
        row[:, rng.integers(classes)] = p, q
        pairs.append(row)
        other = rng.choice(ends, (2, classes))
        other[:, 0] = p, q
        pairs.append(other)
    # Sums that overflow where the result need not, as terms of both signs are large.
    for p in (most, most / 3):
        row = np.full(classes, p)
        pairs += [(row, row), (row, np.resize([p / 1.5, min(most, 1.5 * p)], classes))]
        pairs.append((row, np.resize([p / 3, p / 3, most, most, most], classes)))
    pairs = np.array(pairs)
    # Zeros, in both or in the first alone.
    pairs[::5, :, 2] = 0
    pairs[1::5, 0, 3] = 0
    pairs = np.concatenate([pairs, [_padded(x, classes, least, most) for x in VERY_DIFFERENT]])
    a, b = np.transpose(pairs, (1, 0, 2)).astype(jnp.dtype(dtype))
    return a, b
