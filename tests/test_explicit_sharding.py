"""Arrays over explicit mesh axes, each with a spec of its own: what JAX's arithmetic accepts works.

Cotangents come back with the specs of their arguments.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import bare, fast_jit
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from meshes import BOTH, collectives, mesh_of
from test_sharded_automatically import CLASSES, DENSE, EXAMPLES, arguments
from tiers import quick_named, quick_rows

import jxent

# Of the first argument, and of all others.
PAIRS = [
    (P("data", "model"), P("data", None)),
    (P("data", None), P("data", "model")),
    (P("data", None), P(None, None)),
    (P(None, None), P("data", None)),
    (P(None, "model"), P("data", None)),
    (P("data", None), P(None, "model")),
    (P(None, None), P("data", "model")),
    (P(("data", "model"), None), P(None, None)),
]
MASKS = [None, "classes", "examples"]


def mesh():
    return mesh_of(*BOTH, AxisType.Explicit)


def mask_of(case, kind):
    """What counts: each label's class, and all examples but the third."""
    if kind is None or not case.accepts("where"):
        return None
    if kind == "examples" and case.has_classes:
        return np.arange(EXAMPLES) != 2
    mask = np.random.default_rng(1).random((EXAMPLES, CLASSES)) < 0.8
    if "labels" in case.kinds:
        mask[range(EXAMPLES), arguments(case)[1]] = True
    return mask


def spec_of(x, spec):
    """The entries of the dimensions that an array has: the examples', the classes', or both."""
    if x.shape == (CLASSES,):
        return P(spec[1])
    return P(spec[0], spec[1] if x.shape[1:] == (CLASSES,) else None) if x.ndim == 2 else P(
        *spec[: x.ndim]
    )


def losses_and_gradients(case):
    """``(mask, *args) -> (losses, gradients)``"""

    def total(mask, *args):
        out = case.call(*args) if mask is None else case.call(*args, where=mask)
        return jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)), out

    gradient = jax.grad(total, [1 + i for i in case.differentiable], has_aux=True)
    return lambda mask, *args: gradient(mask, *args)[::-1]


def specs_of(x):
    return jax.tree.map(lambda x: jax.typeof(x).sharding.spec, x)


def all_specs(case, mask, first, others):
    """The specs of the arguments, the mask before them."""
    args = arguments(case)
    return [None if mask is None else spec_of(mask, others)] + [
        spec_of(x, first if i == 0 else others) for i, x in enumerate(args)
    ]


def joined(a, b):
    return P(*(x if x is not None else y for x, y in zip(a, b, strict=True)))


@pytest.mark.parametrize("case", DENSE, ids=str)
def test_types(case):
    """Traced alone, which takes less time than compiling."""
    with jax.enable_x64(True), jax.set_mesh(mesh()):
        for (first, others), kind in zip(PAIRS, itertools.cycle(MASKS)):
            mask = mask_of(case, kind)
            given = [mask, *arguments(case)]
            specs = all_specs(case, mask, first, others)
            types = [
                None if x is None else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh(), s))
                for x, s in zip(given, specs, strict=True)
            ]
            out, gradients = jax.eval_shape(losses_and_gradients(case), *types)
            for gradient, i in zip(gradients, case.differentiable, strict=True):
                assert gradient.sharding.spec == types[1 + i].sharding.spec, (first, others, i)
