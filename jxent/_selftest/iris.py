"""Trains a softmax classifier for Fisher's iris with the library, by gradient descent."""

import csv
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jxent import softmax_cross_entropy_with_integer_labels, weighted_mean

SPECIES = ("setosa", "versicolor", "virginica")
Parameters = tuple[jax.Array, jax.Array]


def load() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The measurements ``[150, 4]`` in centimetres, and the species ``[150]``."""
    text = resources.files(__package__).joinpath("iris.csv").read_text(encoding="utf-8")
    _, *rows = csv.reader(line for line in text.splitlines() if not line.startswith("#"))
    measurements = np.array([[float(x) for x in row[:-1]] for row in rows], np.float32)
    return measurements, np.array([SPECIES.index(row[-1]) for row in rows], np.int32)


def train(
    steps: tuple[int, ...] = (0, 1, 10, 100, 1000), rate: float = 0.5
) -> tuple[list[tuple[int, float]], float]:
    """Trains, and returns the loss after each of these numbers of steps and the final accuracy."""
    measurements, species = load()
    features = jnp.asarray((measurements - measurements.mean(0)) / measurements.std(0))
    labels = jnp.asarray(species)

    def logits(parameters: Parameters) -> jax.Array:
        kernel, bias = parameters
        return features @ kernel + bias

    @jax.jit
    def loss(parameters: Parameters) -> jax.Array:
        losses = softmax_cross_entropy_with_integer_labels(logits(parameters), labels)
        return weighted_mean(losses)

    @jax.jit
    def descend(parameters: Parameters, n: jax.Array) -> Parameters:
        def step(_: jax.Array, parameters: Parameters) -> Parameters:
            kernel, bias = jax.grad(loss)(parameters)
            return parameters[0] - rate * kernel, parameters[1] - rate * bias

        descended: Parameters = jax.lax.fori_loop(0, n, step, parameters)
        return descended

    parameters = (jnp.zeros((features.shape[1], len(SPECIES))), jnp.zeros((1, len(SPECIES))))
    history, done = [], 0
    for n in steps:
        parameters = descend(parameters, jnp.asarray(n - done))
        history.append((n, float(loss(parameters))))
        done = n
    accuracy = jnp.mean(jnp.argmax(logits(parameters), axis=-1) == labels)
    return history, float(accuracy)
