r"""Cross-entropy of a linear head, whose logits never exist whole."""

import math
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from ._arguments import ArrayLike, Rows, boolean, elementwise, floating, is_off, scalar, smoothing
from ._autodiff import in_every_mode
from ._chunks import Arrays, Head, losses, losses_and_gradients
from ._labels import is_class, of_label
from ._numerics import chargeable, times
from ._statistics import computing_dtype


def linear_softmax_cross_entropy(
    inputs: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    weights: ArrayLike | None = None,
    class_mask: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    ignore_index: int | None = None,
    z_loss: ArrayLike = 0.0,
    logit_softcap: ArrayLike | None = None,
    reduction: str = "mean",
    chunk_size: int | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    r"""Loss of a linear head without logits: ``[..., features], [features, classes], [...] -> []``.

    .. math:: \operatorname{loss}_i = \operatorname{ce}(x_i^\top W + b, y_i)

    with ce as in `softmax_cross_entropy_with_integer_labels`, option for option.

    Args:
      inputs: :math:`x`, floating-point ``[..., features]``.
      kernel: :math:`W`, floating-point ``[features, classes]``; ``embedding.T`` if it is tied.
      labels: integers ``[...]`` in [0, classes), or one for every example.
      bias: :math:`b`, ``[classes]``.
      weights: multiply the losses, ``[...]``.
      class_mask: boolean ``[classes]``, the classes that exist: False for the padding of a table.
      class_weights: ``[classes]``, multiply the smoothed labels.
      label_smoothing: a number in [0, 1].
      ignore_index: the label of examples that do not count.
      z_loss: the weight of the squared normaliser.
      logit_softcap: c, for logits :math:`c \tanh(z / c)`, applied before the mask.
      reduction: ``"mean"``, over the sum of the weights of the examples that count (times their
        labels' class weights), ``"sum"``, or ``"none"``.
      chunk_size: how many examples have logits at one time; by default chosen from the shapes.
      precision: of the products, as in `jax.lax.dot`. By default TPUs and GPUs round the gradient
        of the logits to bfloat16 beside a bfloat16 head; with ``"highest"`` it enters in float32.

    Returns:
      A scalar, or ``[...]`` for ``"none"``, in nats, float32 or float64. Products of low-precision
      inputs are accumulated in float32; gradients have their argument's dtype. ``"mean"`` and
      ``"sum"`` take three products for value and gradients, ``"none"`` four.

    Raises:
      TypeError: a dtype does not fit.
      ValueError: a shape does not fit, an option is out of its range.

    Note:
      An ignored example contributes nothing, even if its inputs are NaN or infinite; nor does one
      with the weight 0, nor a masked class, whatever its kernel. The mean of no examples is 0. A
      label outside [0, classes) gives NaN, a label whose class is masked +inf.

    References:
      E. Wijmans et al., `Cut Your Losses in Large-Vocabulary Language Models
      <https://arxiv.org/abs/2411.09009>`_, 2024, has the idea; the gradients are computed with
      the loss as in P.-L. Hsu et al., `Liger Kernel <https://arxiv.org/abs/2410.10989>`_, 2024.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> inputs, kernel = jnp.ones([4, 8]), jnp.zeros([8, 50])
      >>> print(jxent.linear_softmax_cross_entropy(inputs, kernel, jnp.array([0, 1, 2, 3])))
      3.9120
    """
    x, w = floating("inputs", inputs), floating("kernel", kernel)
    if w.ndim != 2 or x.ndim == 0 or x.shape[-1] != w.shape[0]:
        raise ValueError(
            "inputs and kernel must have the shapes [..., features] and [features, classes],"
            f" got {x.shape} and {w.shape}"
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    dtype = computing_dtype(x, w)
    like = jnp.zeros((), dtype)
    rows = Rows("inputs @ kernel", (*x.shape[:-1], w.shape[1]), (x.ndim - 1,))
    rows, y = rows.labels("labels", labels, ignore_index)
    weight = _example_weights(rows, weights, like)
    counted = jnp.ones(rows.examples, bool) if rows.counted is None else rows.counted
    if weights is not None:
        # What has no weight may be anything; but where it is a number, its weight's gradient is.
        number = jnp.all(jnp.isfinite(x), axis=-1) & is_class(y, w.shape[1])[..., 0]
        counted = counted & ((weight != 0) | number)
    mask = _class_mask(rows, class_mask)
    options = {
        "bias": rows.class_weights("bias", bias, like),
        "class_weights": rows.class_weights("class_weights", class_weights, like),
        "class_mask": mask,
        "label_smoothing": None
        if is_off(label_smoothing)
        else smoothing("label_smoothing", label_smoothing, like),
        "z_loss": None if is_off(z_loss) else scalar("z_loss", z_loss, like),
        "logit_softcap": None
        if logit_softcap is None
        else scalar("logit_softcap", logit_softcap, like),
    }
    arrays = {
        "inputs": jnp.where(counted[..., None], x, 0.0).reshape(-1, x.shape[-1]),
        "kernel": w if mask is None else jnp.where(mask[None, :], w, 0.0),
        "labels": y.reshape(-1),
        "counted": counted.reshape(-1),
        **{name: option for name, option in options.items() if option is not None},
    }
    if chunk_size is None:
        chunk_size = _chunk_size(counted.size, w.shape, dtype.itemsize)
    elif chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    head = Head(tuple(arrays), chunk_size, precision)
    if reduction == "none":
        values: jax.Array = _losses_of(head)(*arrays.values())
        return times(weight, values.reshape(rows.examples))
    arrays["weights"] = weight.reshape(-1)
    total: jax.Array = _total_of(head._replace(names=tuple(arrays)))(*arrays.values())
    if reduction == "sum":
        return total
    per_class = options["class_weights"]
    share = weight if per_class is None else weight * of_label(per_class, y)
    count = jnp.sum(jnp.where(counted, share, 0.0))
    return jnp.where(count == 0, 0.0, total / jnp.where(count == 0, 1.0, count))


def _example_weights(rows: Rows, weights: ArrayLike | None, like: jax.Array) -> jax.Array:
    if weights is None:
        return jnp.ones(rows.examples, like.dtype)
    array = jnp.broadcast_to(like, rows.examples)
    return elementwise("weights", weights, "the examples", array).astype(like.dtype)


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


def _chunk_size(examples: int, kernel: tuple[int, ...], itemsize: int) -> int:
    """Examples per chunk: logits that are small beside the kernel's gradient, or in any case.

    At least 128, so that the products stay bound by arithmetic; and chunks of equal size.
    """
    features, classes = kernel
    budget = max(2**25, features * classes * itemsize // 8)
    most = max(128, budget // (classes * itemsize))
    return max(1, math.ceil(examples / max(1, math.ceil(examples / most))))


@lru_cache
def _losses_of(head: Head) -> Any:
    """The loss of each example; its gradients compute the logits again (four products)."""

    @jax.custom_vjp
    def reverse(*values: jax.Array) -> jax.Array:
        return losses(head, _named(head, values))

    def fwd(*args: Any) -> tuple[jax.Array, Any]:
        arrays = _named(head, [x.value for x in args])
        # Residuals must be arrays: the keys of the second part say what is wanted.
        return losses(head, arrays), (arrays, dict.fromkeys(_wanted(head, args), ()))

    def bwd(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
        arrays, wanted = residuals
        _, gradients = losses_and_gradients(head, arrays, cotangent, frozenset(wanted))
        return tuple(
            gradients[name].astype(arrays[name].dtype) if name in gradients else None
            for name in head.names
        )

    reverse.defvjp(fwd, bwd, symbolic_zeros=True)
    return in_every_mode(reverse)


@lru_cache
def _total_of(head: Head) -> Any:
    """The weighted sum of the losses; its gradients come with it (three products)."""

    @jax.custom_vjp
    def reverse(*values: jax.Array) -> jax.Array:
        arrays = _named(head, values)
        return jnp.sum(times(arrays["weights"], losses(head, arrays)))

    def fwd(*args: Any) -> tuple[jax.Array, Any]:
        arrays = _named(head, [x.value for x in args])
        wanted = _wanted(head, args)
        weights = arrays["weights"]
        values, gradients = losses_and_gradients(head, arrays, weights, wanted - {"weights"})
        if "weights" in wanted:
            gradients["weights"] = chargeable(weights, values)
        # Of the arguments bwd needs no more than their dtypes.
        dtypes = {name: jnp.zeros(0, arrays[name].dtype) for name in wanted}
        return jnp.sum(times(weights, values)), (gradients, dtypes)

    # The total is linear in its cotangent: the gradients were computed for 1, and wait for it in
    # the computing dtype, so that a loss scale reaches them before they are rounded.
    def bwd(residuals: Any, cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
        gradients, dtypes = residuals
        return tuple(
            (cotangent * gradients[name]).astype(dtypes[name].dtype) if name in dtypes else None
            for name in head.names
        )

    reverse.defvjp(fwd, bwd, symbolic_zeros=True)
    return in_every_mode(reverse)


def _named(head: Head, values: Any) -> Arrays:
    return dict(zip(head.names, values, strict=True))


def _wanted(head: Head, args: Any) -> frozenset[str]:
    return frozenset(name for name, x in zip(head.names, args, strict=True) if x.perturbed)
