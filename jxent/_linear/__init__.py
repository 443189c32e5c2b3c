r"""Cross-entropy of a linear head, whose logits never exist whole."""

import jax
import jax.numpy as jnp

from .._arguments import (
    ArrayLike,
    boolean,
    check_not_negative,
    elementwise,
    floating,
    integer,
    is_off,
    scalar,
)
from .._dtypes import computing_dtype
from .._reduction import mean
from .._rows import Rows
from .._sharding import AxisName, axes_named, bound_axes, check_replicated, explicit_sharding
from .chunks import Head, differs_between_shards
from .head import head_losses, head_total
from .mesh import AnyMesh, over_mesh


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
    class_axis_name: AxisName | None = None,
    mesh: AnyMesh | None = None,
    example_spec: jax.sharding.PartitionSpec | None = None,
) -> jax.Array:
    r"""Loss of a linear head without logits: ``[..., features], [features, classes], [...] -> []``.

    .. math:: \operatorname{loss}_i = \operatorname{ce}(x_i^\top W + b, y_i)

    with ce as in `softmax_cross_entropy_with_integer_labels`, option for option.

    Args:
      inputs: :math:`x`, floating-point ``[..., features]``.
      kernel: :math:`W`, floating-point ``[features, classes]``; ``embedding.T`` if it is tied.
      labels: integers ``[...]`` in [0, classes), or one for every example.
      bias: :math:`b`, ``[classes]``.
      weights: multiply the losses, ``[...]``; not negative under ``"mean"``. The sum of advantages,
        which have both signs, may vanish: take ``"sum"`` over a number, or ``"none"``.
      class_mask: boolean ``[classes]``, the classes that exist: False for the padding of a table.
      class_weights: ``[classes]``, multiply the smoothed labels; not negative under ``"mean"``.
      label_smoothing: a number in [0, 1].
      ignore_index: the label of examples that do not count.
      z_loss: the weight of the squared normaliser, not negative.
      logit_softcap: c > 0, for logits :math:`c \tanh(z / c)`, applied before the mask; None, or an
        infinite number, for no cap.
      reduction: ``"mean"``, which is the sum of the losses, z-loss and all, over the sum of the
        weights (times the labels' class weights) of what counts, ``"sum"``, or ``"none"``.
      chunk_size: how many examples have logits at one time; by default chosen from the shapes.
      precision: of the products, as in `jax.lax.dot`. By default TPUs and GPUs round the gradient
        of the logits to bfloat16 beside a bfloat16 head; with ``"highest"`` it enters in float32.
      class_axis_name: the mesh axis, or a tuple of them, over which the classes are spread. Inside
        `jax.shard_map` `kernel`, `bias`, `class_mask` and `class_weights` are then the shard's
        own, in the order of the shards, while labels number all classes.
      mesh: for global arrays, the mesh to compute on, as if this were inside `jax.shard_map`: XLA
        does not partition a loop over chunks of sharded examples by itself.
      example_spec: how the examples ``[...]`` lie on it; by default their first dimension over
        all axes of the mesh that `class_axis_name` leaves.

    Returns:
      A scalar, or ``[...]`` for ``"none"``, in nats, float32 or float64. Products of low-precision
      inputs are accumulated in float32; gradients have their argument's dtype. ``"mean"`` and
      ``"sum"`` take three products for value and gradients, ``"none"`` four.

    Raises:
      TypeError: a dtype does not fit, or `chunk_size` is not an integer.
      ValueError: a shape does not fit, there is no class, an option is out of its range, arrays are
        explicitly sharded without `mesh`, or a weight is negative under ``"mean"``. Traced numbers
        are taken at their word.

    Note:
      An ignored example contributes nothing, even if its inputs are NaN or infinite; nor does one
      with the weight 0, nor a masked class, whatever its kernel. The mean of no examples is 0. A
      label outside [0, classes) gives NaN, a label whose class is masked +inf. Over a mesh each
      gradient is summed once, after all chunks, in its argument's dtype; examples and classes must
      divide by it. With `jax.export` any size may be a symbol, except with `mesh`.

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
    if w.shape[1] == 0:
        raise ValueError(f"kernel must have at least one class, got shape {w.shape}")
    chunk_size = _checked_size(chunk_size)
    like = jnp.zeros((), computing_dtype(x, w))
    rows = Rows("inputs @ kernel", (*x.shape[:-1], w.shape[1]), (x.ndim - 1,))
    rows, y = rows.labels(labels, ignore_index)
    options = {
        "counted": rows.counted,
        "weights": _example_weights(rows, weights, like),
        "bias": rows.class_weights("bias", bias, like),
        "class_weights": rows.class_weights("class_weights", class_weights, like),
        "class_mask": _class_mask(rows, class_mask),
    }
    numbers = {
        "label_smoothing": None if is_off(label_smoothing) else label_smoothing,
        "z_loss": None if is_off(z_loss) else z_loss,
        "logit_softcap": logit_softcap,
    }
    options |= {name: scalar(name, x, like) for name, x in numbers.items() if x is not None}
    if reduction == "mean":
        remedy = "Write reduction='sum' and divide by a number, or reduction='none'"
        check_not_negative("weights", weights, remedy)
        check_not_negative("class_weights", class_weights, remedy)
    arrays = {"inputs": x, "kernel": w, "labels": y}
    arrays |= {name: option for name, option in options.items() if option is not None}
    if mesh is None:
        if example_spec is not None:
            raise ValueError(f"example_spec must come with a mesh, got {example_spec} alone")
        axes = bound_axes(class_axis_name)
        for name, array in arrays.items():
            if sharding := explicit_sharding(array):
                raise ValueError(
                    f"{name} must not be sharded explicitly without mesh=, the mesh to compute on,"
                    f" got {sharding.spec}"
                )
            if not differs_between_shards(name):
                check_replicated(name, array, axes)
    else:
        axes = axes_named("class_axis_name", class_axis_name)
    head = Head(precision, chunk_size, axes)
    if reduction == "none":
        losses: jax.Array = over_mesh(head_losses, mesh, example_spec, head, arrays)
        return losses
    total: jax.Array
    total, count = over_mesh(head_total, mesh, example_spec, head, arrays, totals=True)
    return total if reduction == "sum" else mean(total, count)


def _checked_size(chunk_size: int | None) -> int | None:
    if chunk_size is None:
        return None
    try:
        size = integer(chunk_size)
    except TypeError:
        raise TypeError(f"chunk_size must be an integer, got {chunk_size!r}") from None
    if size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {size}")
    return size


def _example_weights(rows: Rows, weights: ArrayLike | None, like: jax.Array) -> jax.Array | None:
    if weights is None:
        return None
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
