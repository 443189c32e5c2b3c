r"""Logits of a linear head, which are never made whole."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jax.typing import DTypeLike

from .._arguments import ArrayLike, boolean, floating, scalar
from .._autodiff import computed_once
from .._dtypes import computing_dtype, upcast
from .._numerics import soft_cap
from .._rows import Rows
from .._sharding import joint_sharding
from .plan import Arrays, Name, Plan


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class LinearLogits:
    r"""Logits of a linear head: ``[..., features], [features, classes] -> [..., classes]``.

    .. math:: z = \operatorname{cap}_c\bigl(s \, (x^\top W + b)\bigr), \qquad
        \operatorname{cap}_c(z) = c \tanh(z / c)

    and :math:`-\infty` for a class that the mask leaves out. They stand for logits
    ``[..., classes]`` in the functions that `chunked` makes, which compute some rows of them at a
    time. The order, which differs between libraries: product, bias, scale, cap, mask.

    Args:
      inputs: :math:`x`, floating-point ``[..., features]``.
      kernel: :math:`W`, floating-point ``[features, classes]``; ``embedding.T`` if it is tied.
      bias: :math:`b`, ``[classes]``.
      scale: :math:`s`, a number: one over a temperature.
      softcap: :math:`c > 0`; None, or an infinite number, for no cap.
      class_mask: boolean ``[classes]``, the classes that exist: False for the padding of a table.

    Returns:
      A pytree, which may be an argument of `jax.jit`, `jax.grad` or `jax.vmap`. With axes in place
      of the arrays it says how to map one: ``in_axes=LinearLogits(0, None)``.

    Note:
      A masked class contributes nothing, whatever its kernel and bias. Its logit of -inf bears no
      arithmetic that is differentiated for something else, such as a temperature: use `scale`.
      Label smoothing gives mass to such a class: close over the mask, and give it to the loss as
      ``where=jnp.broadcast_to(mask, logits.shape)``.

    References:
      Gemma Team, `Gemma 2 <https://arxiv.org/abs/2408.00118>`_, 2024, caps its logits.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> logits = jxent.LinearLogits(jnp.ones([4, 8]), jnp.zeros([8, 50]))
      >>> print(logits.shape)
      (4, 50)
    """

    inputs: Any
    kernel: Any
    bias: Any = None
    scale: Any = dataclasses.field(default=None, kw_only=True)
    softcap: Any = dataclasses.field(default=None, kw_only=True)
    class_mask: Any = dataclasses.field(default=None, kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the logits, ``[..., classes]``."""
        return (*jnp.shape(self.inputs)[:-1], jnp.shape(self.kernel)[-1])


def arrays_of(logits: LinearLogits, number: int = 0, prefix: str = "") -> Arrays:
    """The arrays of these logits, checked, by kind and number.

    With the prefix errors have the names that scale and cap have for the user.
    """
    x, w = floating("inputs", logits.inputs), floating("kernel", logits.kernel)
    if w.ndim != 2 or x.ndim == 0 or x.shape[-1] != w.shape[0]:
        is_turned = w.ndim == 2 and x.ndim and x.shape[-1] == w.shape[1]
        raise ValueError(
            "inputs and kernel must have the shapes [..., features] and [features, classes],"
            f" got {x.shape} and {w.shape}{': did you mean kernel.T?' if is_turned else ''}"
        )
    if w.shape[1] == 0:
        raise ValueError(f"kernel must have at least one class, got shape {w.shape}")
    like = jnp.zeros((), computing_dtype(x, w))
    rows = Rows("inputs @ kernel", (*x.shape[:-1], w.shape[1]), (x.ndim - 1,))
    numbers = {"scale": logits.scale, "softcap": logits.softcap}
    found = {
        "inputs": x,
        "kernel": w,
        "bias": rows.class_weights("bias", logits.bias, like),
        "class_mask": _class_mask(rows, logits.class_mask),
        **{n: scalar(prefix + n, x, like) for n, x in numbers.items() if x is not None},
    }
    return {Name(kind, number): x for kind, x in found.items() if x is not None}


def _class_mask(rows: Rows, class_mask: ArrayLike | None) -> jax.Array | None:
    if class_mask is None:
        return None
    mask = boolean("class_mask", class_mask)
    if mask.shape != rows.classes:
        raise ValueError(
            f"class_mask must have one value per class of {rows.name}, shape {rows.classes},"
            f" got shape {mask.shape}"
        )
    return mask


def without_masked_classes(arrays: Arrays) -> Arrays:
    """Puts harmless numbers into the entries of masked classes, which may be NaN."""
    changed = dict(arrays)
    for name, mask in arrays.items():
        if name.kind == "class_mask":
            kernel, bias = Name("kernel", name.which), Name("bias", name.which)
            changed[kernel] = jnp.where(mask[None, :], arrays[kernel], 0.0)
            if bias in arrays:
                changed[bias] = jnp.where(mask, arrays[bias], 0.0)
            # Class weights come with one head. Only those that are not finite are replaced, so that
            # a masked label stays impossible.
            for weights in (k for k in arrays if k.kind == "of classes"):
                is_usable = mask | jnp.isfinite(arrays[weights])
                changed[weights] = jnp.where(is_usable, arrays[weights], 1.0)
    return changed


def product(plan: Plan, arrays: Arrays, number: int) -> jax.Array:
    """``x W`` of the logits of this number, or x where there is no kernel."""
    x, w = arrays[Name("inputs", number)], arrays.get(Name("kernel", number))
    if w is None:
        return x
    return _dot(plan.precision, x, w, (1, 0), computing_dtype(x, w))


def finished(arrays: Arrays, number: int, z: jax.Array) -> jax.Array:
    """The logits, from the product of inputs and kernel."""
    given = {kind: x for (kind, which), x in arrays.items() if which == number}
    if "bias" in given:
        z = z + given["bias"].astype(z.dtype)[None, :]
    if "scale" in given:
        z = z * given["scale"].astype(z.dtype)
    if "softcap" in given:
        z = soft_cap(z, given["softcap"].astype(z.dtype))
    if "class_mask" in given:
        z = jnp.where(given["class_mask"][None, :], z, -jnp.inf)
    return z


def gradients_of_product(
    plan: Plan, arrays: Arrays, number: int, to_product: jax.Array, wanted: frozenset[Name]
) -> Mapping[Name, jax.Array]:
    """The wanted gradients for inputs and kernel, in the computing dtype."""
    inputs, kernel = Name("inputs", number), Name("kernel", number)
    x, w = arrays[inputs], arrays.get(kernel)
    if w is None:
        return {inputs: to_product}
    dtype = computing_dtype(x, w)
    in_bfloat16 = x.dtype == w.dtype == jnp.bfloat16
    found = {}
    # Below 1536 features it takes longer to write it than to make it twice (by a TPU's compiler).
    is_large = is_symbolic_dim(x.shape[1]) or x.shape[1] >= 1536
    if {inputs, kernel} <= wanted and is_large:
        to_product = computed_once(to_product, "tpu")
    if inputs in wanted:
        found[inputs] = _dot(plan.precision, to_product, w, (1, 1), dtype, in_bfloat16)
    if kernel in wanted:
        found[kernel] = _dot(plan.precision, x, to_product, (0, 0), dtype, in_bfloat16)
    return found


def _dot(
    precision: jax.lax.PrecisionLike,
    a: jax.Array,
    b: jax.Array,
    axes: tuple[int, int],
    dtype: DTypeLike,
    in_bfloat16: bool = False,
) -> jax.Array:
    """The product of two matrices over one axis of each, accumulated in `dtype`.

    The gradient of the logits is float32, and `precision` says how the hardware multiplies it.
    Without a `precision` it is rounded to bfloat16 beside a bfloat16 head. TPUs do so themselves;
    a GPU must be told, or it would first write the whole kernel to memory in float32.
    """
    # Where what is summed is spread over explicit axes, JAX wants to be told of the result.
    places = {
        name: [None if i == summed else place for i in range(2)]
        for place, (name, summed) in enumerate(zip("ab", axes, strict=True))
    }
    dot = partial(
        jax.lax.dot_general,
        dimension_numbers=(((axes[0],), (axes[1],)), ((), ())),
        precision=precision,
        preferred_element_type=dtype,
        out_sharding=joint_sharding(2, {"a": a, "b": b}, lambda name, _: places[name]),
    )

    if a.dtype == b.dtype:
        return dot(a, b)

    def rounded(a: jax.Array, b: jax.Array) -> jax.Array:
        return dot(a.astype(jnp.bfloat16), b.astype(jnp.bfloat16))

    def unrounded(a: jax.Array, b: jax.Array) -> jax.Array:
        return dot(*upcast(a, b))

    if precision is not None or not in_bfloat16:
        return unrounded(a, b)
    result: jax.Array = jax.lax.platform_dependent(a, b, cuda=rounded, default=unrounded)
    return result
