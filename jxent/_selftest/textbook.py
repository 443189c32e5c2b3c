"""The formulas as textbooks print them, under the names of the public functions."""

import jax
import jax.numpy as jnp

Array = jax.Array


def logsumexp(z: Array) -> Array:
    return jnp.log(jnp.sum(jnp.exp(z), axis=-1))


def log_softmax(z: Array) -> Array:
    return jnp.log(jax.nn.softmax(z))


def softmax_entropy(z: Array) -> Array:
    return entropy(jax.nn.softmax(z))


def softmax_cross_entropy(z: Array, y: Array) -> Array:
    return cross_entropy(y, jax.nn.softmax(z))


def softmax_cross_entropy_with_integer_labels(z: Array, labels: Array) -> Array:
    return cross_entropy_with_integer_labels(jax.nn.softmax(z), labels)


def poly_loss_cross_entropy(z: Array, y: Array) -> Array:
    p = jax.nn.softmax(z)
    return cross_entropy(y, p) + 2 * jnp.sum(y * (1 - p), axis=-1)


def softmax_focal_loss_with_integer_labels(z: Array, labels: Array) -> Array:
    p = jnp.take_along_axis(jax.nn.softmax(z), labels[:, None], axis=-1)[:, 0]
    return -((1 - p) ** 2) * jnp.log(p)


def softmax_kl_divergence(z_q: Array, z_p: Array) -> Array:
    return relative_entropy(jax.nn.softmax(z_p), jax.nn.softmax(z_q))


def softmax_jensen_shannon_divergence(z_q: Array, z_p: Array) -> Array:
    return jensen_shannon_divergence(jax.nn.softmax(z_p), jax.nn.softmax(z_q))


def sigmoid_entropy(z: Array) -> Array:
    return binary_entropy(jax.nn.sigmoid(z))


def sigmoid_binary_cross_entropy(z: Array, y: Array) -> Array:
    return binary_cross_entropy(jax.nn.sigmoid(z), y)


def sigmoid_kl_divergence(z_q: Array, z_p: Array) -> Array:
    p, q = jax.nn.sigmoid(z_p), jax.nn.sigmoid(z_q)
    return p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q))


def sigmoid_focal_loss(z: Array, y: Array) -> Array:
    p = jax.nn.sigmoid(z)
    return (y * (1 - p) + (1 - y) * p) ** 2 * binary_cross_entropy(p, y)


def entropy(p: Array) -> Array:
    return -jnp.sum(p * jnp.log(p), axis=-1)


def cross_entropy(p: Array, q: Array) -> Array:
    return -jnp.sum(p * jnp.log(q), axis=-1)


def cross_entropy_with_integer_labels(q: Array, labels: Array) -> Array:
    return -jnp.log(jnp.take_along_axis(q, labels[:, None], axis=-1)[:, 0])


def negative_log_likelihood(log_probs: Array, labels: Array) -> Array:
    return -jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]


def relative_entropy(p: Array, q: Array) -> Array:
    return jnp.sum(p * jnp.log(p / q), axis=-1)


def jensen_shannon_divergence(p: Array, q: Array) -> Array:
    m = (p + q) / 2
    return (relative_entropy(p, m) + relative_entropy(q, m)) / 2


def binary_entropy(p: Array) -> Array:
    return -p * jnp.log(p) - (1 - p) * jnp.log(1 - p)


def binary_cross_entropy(p: Array, y: Array) -> Array:
    return -y * jnp.log(p) - (1 - y) * jnp.log(1 - p)


def kl_divergence(log_q: Array, t: Array) -> Array:
    return jnp.sum(t * (jnp.log(t) - log_q), axis=-1)


def kl_divergence_with_log_targets(log_q: Array, log_t: Array) -> Array:
    return jnp.sum(jnp.exp(log_t) * (log_t - log_q), axis=-1)


def generalized_kl_divergence(log_q: Array, t: Array) -> Array:
    return jnp.sum(t * (jnp.log(t) - log_q) - t + jnp.exp(log_q), axis=-1)
