"""What a chunked loss returns beside its losses: whoever differentiates it is told, nobody else.

An error comes when JAX traces, so that nothing is compiled here.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jxent
from support.meshes import BOTH, mesh_of
from support.tiers import quick

MESSAGE = (
    "aux and counts, what loss returns beside its losses, must not be differentiated, but a"
    " gradient of them is taken: write their part of the objective into the losses, or use"
    " jax.lax.stop_gradient"
)
X, W = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3), np.eye(3, 4, dtype=np.float32)


def objective(logits, advantages, class_axis_name=None):
    entropy = jxent.softmax_entropy(logits, class_axis_name=class_axis_name)
    return advantages * entropy, {"entropy": entropy, "is_good": advantages > 0}


def policy_of(reduction, **spread):
    """The sum of the losses, and aux."""
    loss = functools.partial(objective, class_axis_name=spread.get("class_axis_name"))
    chunked = jxent.chunked(loss, reduction=reduction, has_aux=True, chunk_size=2, **spread)

    def policy(x, w=W, weights=None):
        weights = {} if weights is None else {"weights": weights}
        losses, aux = chunked(jxent.LinearLogits(x, w), X[:, 0], where=X[:, 0] < 0.5, **weights)
        return jnp.sum(losses), aux

    return policy


def bonus(policy):
    """The mistake."""

    def loss(x, *rest):
        value, aux = policy(x, *rest)
        return value - 0.01 * jnp.mean(aux["entropy"])

    return loss


def accumulated(policy):
    """In a loop, with a mean of aux among what the loop carries."""

    def loss(x):
        def step(carry, _):
            value, aux = jax.checkpoint(policy)(x)
            return (carry[0] + value, carry[1] + jnp.mean(aux["entropy"])), aux

        (value, mean), every = jax.lax.scan(step, (0.0, 0.0), length=2)
        return value, (mean, every)

    return loss


def with_mean(loss):
    return lambda x: (lambda value, aux: value + aux[0])(*loss(x))


def if_positive(f):
    def g(x):
        return jax.lax.cond(x[0, 0] > 0, f, lambda x: jax.tree.map(jnp.zeros_like, f(x)), x)

    return g


def both(f):
    """Mapped, with the sum of the values."""

    def g(x):
        out = jax.vmap(f)(jnp.stack([x, 2 * x]))
        return (jnp.sum(out[0]), out[1]) if isinstance(out, tuple) else jnp.sum(out)

    return g


def times(what):
    """The loss times something of aux that has no gradient."""
    return lambda policy: (
        lambda x: (lambda value, aux: value * what(aux).astype(value.dtype))(*policy(x))
    )


def value(policy):
    return lambda x: policy(x)[0]


def of_weights(loss):
    """Of which aux is no function."""
    return lambda x: jax.grad(lambda weights: loss(x, W, weights))(jnp.abs(x[:, 0]))


def tangents(policy):
    def f(x):
        loss, aux = policy(x)
        return loss, aux["entropy"]

    return lambda x: (jax.jvp(f, (x,), (x,)), jax.linearize(f, x)[1](x))


def transposed(f):
    return lambda x: jax.linear_transpose(jax.linearize(f, x)[1], x)(1.0)


has_aux = functools.partial(jax.value_and_grad, has_aux=True)
stopped = jax.lax.stop_gradient


REFUSED = {
    "alone": lambda p: jax.grad(bonus(p)),
    "of the kernel": lambda p: lambda x: jax.grad(bonus(p), 1)(x, W),
    "in jit": lambda p: jax.grad(jax.jit(bonus(p))),
    "in checkpoint": lambda p: jax.grad(jax.checkpoint(bonus(p))),
    "in cond": lambda p: jax.grad(if_positive(bonus(p))),
    "in a loop": lambda p: jax.grad(with_mean(accumulated(p))),
    "of vmap": lambda p: jax.grad(both(bonus(p))),
    "in vmap": lambda p: jax.vmap(jax.grad(bonus(p)), axis_size=2, in_axes=None),
    "transposed": lambda p: transposed(bonus(p)),
    "of jvp": lambda p: jax.grad(lambda x: jax.jvp(bonus(p), (x,), (x,))[0]),
}
ALLOWED = {
    "value": lambda p: p,
    "returned": has_aux,
    "from jit": lambda p: has_aux(jax.jit(p)),
    "from checkpoint": lambda p: has_aux(jax.checkpoint(p)),
    "from cond": lambda p: has_aux(if_positive(p)),
    "from a loop": lambda p: has_aux(accumulated(p)),
    "from vmap": lambda p: has_aux(both(p)),
    "returned in vmap": lambda p: jax.vmap(has_aux(p), axis_size=2, in_axes=None),
    "not used": lambda p: jax.grad(value(p)),
    "stopped": lambda p: jax.grad(times(lambda aux: jnp.mean(stopped(aux["entropy"])))(p)),
    "compared": lambda p: jax.grad(times(lambda aux: jnp.sum(aux["entropy"] > 0.5))(p)),
    "boolean": lambda p: jax.grad(times(lambda aux: jnp.sum(aux["is_good"]))(p)),
    "forward": tangents,
    "of weights": lambda p: of_weights(bonus(p)),
    "twice": lambda p: jax.hessian(value(p)),
    "forward over reverse": lambda p: lambda x: jax.jvp(jax.grad(value(p)), (x,), (x,)),
}


def check(name, policy):
    if name in ALLOWED:
        jax.eval_shape(ALLOWED[name](policy), X)
        return
    with pytest.raises(TypeError, match=f"^{re.escape(MESSAGE)}"):
        jax.eval_shape(REFUSED[name](policy), X)


QUICK = ("alone", "in a loop", "of vmap", "returned", "from a loop", "from vmap", "of weights")


@pytest.mark.parametrize("name", quick([*REFUSED, *ALLOWED], *QUICK))
def test_who_is_told(name):
    check(name, policy_of("mean"))


@pytest.mark.full
@pytest.mark.parametrize("spread", [{}, {"mesh": BOTH}, {"mesh": BOTH, "class_axis_name": "model"}])
def test_who_is_told_without_a_reduction_and_on_a_mesh(spread):
    spread = spread | ({"mesh": mesh_of(*spread["mesh"])} if spread else {})
    policy = policy_of("sum" if len(spread) == 1 else "none", **spread)
    # Weights, the last of them, come with a reduction.
    for name in (*QUICK[:-1], "from cond", "forward"):
        check(name, policy)


@pytest.mark.parametrize("name", ["alone", "returned"])
def test_inside_shard_map(name):
    def loss(z):
        return jxent.softmax_entropy(z), {"entropy": jxent.softmax_entropy(z)}

    policy = jxent.chunked(loss, reduction="sum", has_aux=True, chunk_size=1)

    def local(x):
        value, aux = policy(jxent.LinearLogits(x, W))
        return jax.lax.psum(value, "data"), aux

    specs = {"in_specs": P("data"), "out_specs": (P(), P("data"))}
    check(name, jax.shard_map(local, mesh=mesh_of(*BOTH), **specs))


def test_the_tangent_of_aux():
    """Forward mode cannot know what becomes of it: it is 0."""
    policy = policy_of("mean")
    (_, entropy), (dot, entropy_dot) = jax.jit(
        lambda x: jax.jvp(lambda x: (policy(x)[0], policy(x)[1]["entropy"]), (x,), (x,))
    )(X)
    assert np.any(np.asarray(entropy) != 0)
    assert dot != 0
    assert not np.any(entropy_dot)
