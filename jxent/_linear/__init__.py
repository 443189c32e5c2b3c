r"""Cross-entropy of a linear head, whose logits never exist whole."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._arguments import ArrayLike, check_not_negative, is_off, scalar
from .._cross_entropy import softmax_cross_entropy_with_integer_labels
from .._dtypes import computing_dtype
from .._labels import in_range, weight_of_label
from .._numerics import nan_where
from .._rows import Rows
from .._sharding import AxisName, MeshAxes, in_any_shard, number_of_shards
from .chunks import COUNTED, WEIGHTS, Arrays, Name, Plan
from .logits import LinearLogits, arrays_of
from .mesh import AnyMesh
from .reduction import (
    NO_MEAN,
    axes_of_classes,
    check_reduction,
    checked_size,
    over_examples,
    with_weights,
)
from .rules import weighted

LABELS, CLASS_WEIGHTS = Name("of examples", "labels"), Name("of classes", "class_weights")
SMOOTHING, Z_LOSS = Name("shared", "label_smoothing"), Name("shared", "z_loss")


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
    logit_scale: ArrayLike | None = None,
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
      logit_scale: multiplies the logits, before the cap: one over a temperature. None for 1.
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
        explicitly sharded without `mesh`, or a weight is negative under ``"mean"``. Traced options
        are taken at their word, but a traced weight that is negative makes the mean NaN.

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
    check_reduction(reduction)
    arrays = arrays_of(LinearLogits(inputs, kernel, bias, class_mask=class_mask), 0)
    x, w = arrays[Name("inputs")], arrays[Name("kernel")]
    like = jnp.zeros((), computing_dtype(x, w))
    rows = Rows("inputs @ kernel", (*x.shape[:-1], w.shape[1]), (x.ndim - 1,))
    rows, arrays[LABELS] = rows.labels(labels, ignore_index)
    if rows.counted is not None:
        arrays[COUNTED] = rows.counted
    if (of_classes := rows.class_weights("class_weights", class_weights, like)) is not None:
        arrays[CLASS_WEIGHTS] = of_classes
    numbers = {
        Name("scale"): ("logit_scale", logit_scale),
        Name("softcap"): ("logit_softcap", logit_softcap),
        SMOOTHING: ("label_smoothing", None if is_off(label_smoothing) else label_smoothing),
        Z_LOSS: ("z_loss", None if is_off(z_loss) else z_loss),
    }
    for name, (argument, number) in numbers.items():
        if number is not None:
            arrays[name] = scalar(argument, number, like)
    if reduction == "mean":
        check_not_negative("class_weights", class_weights, NO_MEAN)
    axes = axes_of_classes(mesh, class_axis_name)
    if weights is not None:
        classes = w.shape[1] * (number_of_shards(axes) if mesh is None else 1)
        names_class = in_range(arrays[LABELS], classes)[..., 0]
        arrays = with_weights(weights, reduction, arrays, names_class)
    plan = Plan(CrossEntropy(axes), precision, checked_size(chunk_size))
    total, losses = over_examples(plan, arrays, reduction, mesh, class_axis_name, example_spec)
    result: jax.Array = weighted(arrays.get(WEIGHTS), losses[0]) if reduction == "none" else total
    return result


class CrossEntropy(NamedTuple):
    """The loss of a chunk of examples, as in `Plan`."""

    axes: MeshAxes
    """The mesh axes that the classes are spread over."""

    def __call__(self, logits: list[jax.Array], arrays: Arrays) -> Any:
        (z,) = logits
        mask = arrays.get(Name("class_mask"))
        losses = softmax_cross_entropy_with_integer_labels(
            z,
            arrays[LABELS],
            # The classes present share in the smoothing.
            where=None if mask is None else jnp.broadcast_to(mask, z.shape),
            label_smoothing=arrays.get(SMOOTHING, 0.0),
            class_weights=arrays.get(CLASS_WEIGHTS),
            z_loss=arrays.get(Z_LOSS, 0.0),
            class_axis_name=self.axes or None,
        )
        return (losses,), ()

    def shares(self, arrays: Arrays) -> jax.Array | None:
        """The class weights of the labels, by which a mean is divided beside the weights."""
        if CLASS_WEIGHTS not in arrays:
            return None
        weights, mask = arrays[CLASS_WEIGHTS], arrays.get(Name("class_mask"), True)
        is_negative = in_any_shard(jnp.any((weights < 0) & mask), self.axes)
        return nan_where(is_negative, weight_of_label(weights, arrays[LABELS], self.axes))

    def assembled(self, outs: tuple[jax.Array, ...], aux: tuple[()]) -> Any:
        """What there is for each example."""
        return outs
