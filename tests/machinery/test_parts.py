"""Weights and masks by their parts give the statistics that their arrays give."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxent._rows import Mask
from jxent._statistics import Request, SmoothedWeights
from jxent._statistics.platforms import (
    on_cpu,
    on_gpu,
    on_tpu,
    sum_by_logsumexp,
    sum_by_reduction,
)
from jxent._statistics.primitive import row_statistics
from jxent._statistics.slices import as_arrays
from support.cases import fast_jit
from support.tiers import quick_rows

FLOAT32, CLASSES = np.dtype(np.float32), 300
WAYS = {
    "by_logsumexp": sum_by_logsumexp,
    "cpu": on_cpu,
    "gpu": on_gpu,
    "tpu": on_tpu,
    "slices_of_77": lambda z, *args: sum_by_reduction(z, *args, min(77, z.shape[-1]), False),
    "operation": row_statistics,
}


def _parts():
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(2, 5, CLASSES)).astype(np.float32)
    scale, offset = np.full((1, 1), 0.9, np.float32), np.float32(rng.uniform(size=(5, 1)))
    factor = np.float32(rng.uniform(size=(1, CLASSES)))
    counted = np.array([True, True, False, True, True])
    # What does not count may be anything.
    mask = Mask(rng.uniform(size=z.shape) < 0.7, counted)
    z, y = (np.where(mask.classes & counted[:, None], x, np.nan) for x in (z, np.abs(y)))
    labels = np.array([0, 100, 0, 200, 299])
    arrays = labels, SmoothedWeights(y, scale, offset, factor), mask
    z, (labels, weights, mask) = jax.tree.map(jnp.asarray, (z, arrays))
    return z, Request(labels, weights, mask=mask)


def _known(stats):
    return [x for x in stats if x is not None]


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_statistics(way):
    z, parts = _parts()
    whole = row_statistics(*as_arrays(z, parts, FLOAT32), FLOAT32)
    found = fast_jit(lambda z: way(z, parts, FLOAT32))(z)
    for x, expected in zip(_known(found), _known(whole), strict=True):
        x = x if x.shape == expected.shape else x[..., None]
        np.testing.assert_allclose(x, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("way", "classes"),
    quick_rows([(way, n) for n in (CLASSES, 20) for way in WAYS], *range(1, len(WAYS)), len(WAYS)),
)
def test_weights_that_rows_share(way, classes):
    """They give what the same weights for each row give, also where the rows are mapped."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4, 6, classes)).astype(np.float32)
    labels = rng.integers(0, classes, (4, 6))
    row, factor = rng.uniform(size=(2, 1, classes)).astype(np.float32)

    def mapped(z, labels, row):
        request = Request(labels, SmoothedWeights(row, factor=factor), exp_gap=True)
        stats = WAYS[way](z, request, FLOAT32)
        return [x if x.ndim == z.ndim else x[..., None] for x in stats]

    def found(z, labels, row):
        in_rows = jax.vmap(jax.vmap(mapped, (0, 0, None)), (0, 0, None))
        return jax.vmap(mapped, (0, 0, None))(z, labels, row), in_rows(
            z[:, :, None], labels[:, :, None], row
        )

    whole = row_statistics(
        z, Request(labels, jnp.broadcast_to(row * factor, z.shape), exp_gap=True), FLOAT32
    )
    for stats in fast_jit(found)(z, labels, row):
        for x, expected in zip(stats, whole, strict=True):
            np.testing.assert_allclose(x.reshape(expected.shape), expected, rtol=1e-6)


def _tangents(of_parts, of_arrays, values, dots):
    return fast_jit(lambda *x: [jax.jvp(f, *x)[1] for f in (of_parts, of_arrays)])(values, dots)


def test_tangents():
    z, parts = _parts()
    z, weights = (jax.tree.map(jnp.nan_to_num, x) for x in (z, parts.weights))
    dots = jax.tree.map(jnp.cos, (z, weights))

    def of_parts(z, weights):
        return _known(row_statistics(z, replace(parts, weights=weights), FLOAT32))

    def of_arrays(z, weights):
        arrays = as_arrays(z, replace(parts, weights=weights), FLOAT32)
        return _known(row_statistics(*arrays, FLOAT32))

    found, expected = _tangents(of_parts, of_arrays, (z, weights), dots)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
    assert np.any(found[1] != 0)


def test_tangents_of_weights_that_rows_share():
    z, parts = _parts()
    z, weights = jnp.nan_to_num(z), SmoothedWeights(parts.weights.factor)

    def of_parts(z, weights):
        return _known(row_statistics(z, replace(parts, weights=weights), FLOAT32))

    def of_arrays(z, weights):
        row = jnp.broadcast_to(weights.labels, z.shape)
        return _known(row_statistics(z, replace(parts, weights=row), FLOAT32))

    dots = jax.tree.map(jnp.cos, (z, weights))
    for x, y in zip(*_tangents(of_parts, of_arrays, (z, weights), dots), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_tangents_of_weights():
    """Those of the plain way, which is differentiated by JAX."""
    z, parts = _parts()
    z, weights = (jax.tree.map(jnp.nan_to_num, x) for x in (z, parts.weights))

    def of_parts(weights):
        return row_statistics(z, replace(parts, weights=weights), FLOAT32).weighted_gap

    def of_arrays(weights):
        arrays = as_arrays(z, replace(parts, weights=weights), FLOAT32)
        return sum_by_logsumexp(*arrays, FLOAT32).weighted_gap

    dots = (jax.tree.map(jnp.cos, weights),)
    found, expected = _tangents(of_parts, of_arrays, (weights,), dots)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
