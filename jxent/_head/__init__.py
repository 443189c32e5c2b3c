r"""Losses over linear heads, whose logits never exist whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from .._arguments import (
    ArrayLike,
    any_array,
    check_not_negative,
    floating,
    is_off,
    remedy,
    scalar,
    with_hints,
)
from .._autodiff import public
from .._dtypes import computing_dtype
from .._numerics import nan_where
from .._rows import Rows, in_range, weight_of_label
from .._sharding import AxisName, MeshAxes, in_any_shard, number_of_shards
from .._softmax import softmax_cross_entropy_with_integer_labels
from .examples import (
    NO_MEAN,
    AnyMesh,
    Reduction,
    axes_of_classes,
    check_reduction,
    checked_size,
    over_examples,
    with_weights,
)
from .logits import LinearLogits, arrays_of
from .plan import (
    COUNTED,
    WEIGHTS,
    Arrays,
    Form,
    HeadLoss,
    Name,
    Outputs,
    Plan,
    UserLoss,
    name_of,
    remembered,
)
from .rules import weigh

LABELS, CLASS_WEIGHTS = Name("of examples", "labels"), Name("of classes", "class_weights")
SMOOTHING, Z_LOSS = Name("shared", "label_smoothing"), Name("shared", "z_loss")


@public
@with_hints(
    where="weights or ignore_index for examples, class_mask for classes",
    axis="the classes last: give kernel[features, classes]",
    alpha="label_smoothing or class_weights",
    gamma="no focal loss: chunked(softmax_focal_loss_with_integer_labels) does",
    epsilon="no PolyLoss: chunked(poly_loss_cross_entropy) does",
    scale="logit_scale",
    softcap="logit_softcap",
)
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
    reduction: Reduction = "mean",
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
      chunk_size: how many examples have logits at one time. By default few on a CPU. On TPUs and
        GPUs 2048, for which kernel and gradient are moved in 2 I / 2048 of the products' time, I
        being the device's operations per byte; fewer where the temporaries would be above both a
        quarter of all logits, and 1.6 gradients of the kernel and 0.3 GB.
      precision: of the products, as in `jax.lax.dot`. By default TPUs and GPUs round the gradient
        of the logits to bfloat16 beside a bfloat16 head; with ``"highest"`` it enters in float32.
      class_axis_name: the mesh axis, or a tuple of them, over which the classes are spread. Inside
        `jax.shard_map` `kernel`, `bias`, `class_mask` and `class_weights` are then the shard's
        own, in the order of the shards, while labels number all classes.
      mesh: for global arrays, the mesh to compute on, as if this were inside `jax.shard_map`. None
        is needed: without it, XLA partitions groups of examples, one for each device.
      example_spec: how the examples ``[...]`` lie on it; by default their first dimension over
        all axes of the mesh that `class_axis_name` leaves.

    Returns:
      A scalar, or ``[...]`` for ``"none"``, in nats, float32 or float64. Products of low-precision
      inputs are accumulated in float32; gradients have their argument's dtype. ``"mean"`` and
      ``"sum"`` take three products for value and gradients, ``"none"`` four, and any of them two
      if only the inputs are differentiated.

    Note:
      An ignored example contributes nothing, even if its inputs are NaN or infinite; nor does one
      with the weight 0, nor a masked class, whatever its kernel. The mean of no examples is 0. A
      label outside [0, classes) gives NaN, a label whose class is masked +inf. Over a mesh the
      kernel's gradient is summed once, after all chunks, in its dtype. A policy of `jax.checkpoint`
      may save the gradients of a reduced head as ``"jxent_head_gradients"``. With `mesh`, examples
      and classes must divide by it. With `jax.export` any size may be a symbol, except with `mesh`.

    Example:
      >>> import jax.numpy as jnp, jxent
      >>> inputs, kernel = jnp.ones([4, 8]), jnp.zeros([8, 50])
      >>> print(jxent.linear_softmax_cross_entropy(inputs, kernel, jnp.array([0, 1, 2, 3])))
      3.9120
    """
    check_reduction(reduction)
    logits = LinearLogits(
        inputs, kernel, bias, scale=logit_scale, softcap=logit_softcap, class_mask=class_mask
    )
    arrays = arrays_of(logits, prefix="logit_")
    x, w = arrays[Name("inputs")], arrays[Name("kernel")]
    like = jnp.zeros((), computing_dtype(x, w))
    rows = Rows("inputs @ kernel", (*x.shape[:-1], w.shape[1]), (x.ndim - 1,))
    rows, arrays[LABELS] = rows.labels(labels, ignore_index)
    if rows.mask.examples is not None:
        arrays[COUNTED] = rows.mask.examples
    if (of_classes := rows.class_weights("class_weights", class_weights, like)) is not None:
        arrays[CLASS_WEIGHTS] = of_classes
    for name, number in {SMOOTHING: label_smoothing, Z_LOSS: z_loss}.items():
        if not is_off(number):
            arrays[name] = scalar(str(name), number, like)
    if reduction == "mean":
        check_not_negative("class_weights", class_weights, NO_MEAN)
    axes = axes_of_classes(mesh, class_axis_name)
    if weights is not None:
        classes = w.shape[1] * (number_of_shards(axes) if mesh is None else 1)
        names_class = in_range(arrays[LABELS], classes)[..., 0]
        arrays = with_weights(weights, reduction, arrays, names_class)
    plan = Plan(CrossEntropy(axes), precision, checked_size(chunk_size))
    total, losses = over_examples(plan, arrays, reduction, mesh, class_axis_name, example_spec)
    result: jax.Array = weigh(arrays.get(WEIGHTS), losses[0]) if reduction == "none" else total
    return result


class CrossEntropy(NamedTuple):
    """Cross-entropy with integer labels as a `HeadLoss`."""

    axes: MeshAxes
    """The mesh axes that the classes are spread over."""

    @property
    def is_constant(self) -> bool:
        """Equal tuples are the same loss."""
        return True

    @property
    def has_one_out(self) -> bool:
        """The losses."""
        return True

    def traced(self, run: Callable[[Any], None]) -> tuple[HeadLoss, Arrays]:
        """It closes over nothing."""
        return self, {}

    def __call__(self, logits: list[jax.Array], arrays: Arrays) -> Outputs:
        """As in `HeadLoss`."""
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

    def mean_weights(self, arrays: Arrays, aux: Any) -> jax.Array | None:
        """The class weights of the labels; a mean is divided by their sum, beside the weights."""
        if CLASS_WEIGHTS not in arrays:
            return None
        weights, mask = arrays[CLASS_WEIGHTS], arrays.get(Name("class_mask"), True)
        is_negative = in_any_shard(jnp.any((weights < 0) & mask), self.axes)
        return nan_where(is_negative, weight_of_label(weights, arrays[LABELS], self.axes))

    def reads(self, name: Name) -> tuple[bool, ...]:
        """There is nothing that is not differentiated."""
        return ()

    def unflatten(self, outs: tuple[Any, ...], aux: tuple[Any, ...]) -> Any:
        """The losses, if they are not reduced."""
        return outs


# ---------------------------------------- Any loss


class ChunkedLoss(Protocol):
    """What `chunked` returns."""

    def __call__(
        self, *args: Any, where: ArrayLike | None = None, weights: ArrayLike | None = None
    ) -> Any:
        """The loss of linear logits in place of logits."""


def chunked(
    loss: Callable[..., Any],
    *,
    reduction: Reduction = "none",
    has_counts: bool = False,
    has_aux: bool = False,
    chunk_size: int | None = None,
    precision: jax.lax.PrecisionLike = None,
    mesh: AnyMesh | None = None,
    class_axis_name: AxisName | None = None,
    example_spec: jax.sharding.PartitionSpec | None = None,
) -> ChunkedLoss:
    r"""A loss of logits, made one of linear logits: ``[..., classes], [...] -> [...]``.

    .. math:: \operatorname{chunked}(\ell)(x, W, y)_i = \ell(x_i^\top W, y_i)

    The function returned takes `LinearLogits` where `loss` takes logits, computes the logits of
    some examples at a time, and forgets them.

    Args:
      loss: any pure function of positional arguments that treats each example by itself. A
        statistic of the batch, like the mean of the advantages, would be one of a chunk, and differ
        with `chunk_size`: compute it before, and give what follows from it as an argument. `loss`
        gets the logits ``[examples, classes]`` of a chunk, in float32 or float64, in place of each
        `LinearLogits`, and those examples of the other arguments. It returns one array
        ``[examples, ...]`` or a tree of them, floating-point, boolean or integer. What it closes
        over (a temperature, class weights, a head that is no matrix) may be traced and is
        differentiated.
      reduction: ``"none"``: all of them come back for every example, and the floating-point ones
        are differentiated. ``"mean"`` and ``"sum"``: `loss` returns one floating-point array
        ``[examples]``, which is reduced. **In the mean every example counts**, but for what
        `where`, `weights` or `has_counts` say. So a loss that leaves examples out, or weighs
        classes, raises if it comes without any of these.
      has_counts: `loss` returns ``(losses, counts)``, and the mean is the sum of the losses over
        that of the counts: ``labels != -100`` beside ``ignore_index=-100``, or `label_weights`
        beside class weights. So it is the mean of `linear_softmax_cross_entropy`. A gradient of
        counts is an error. With `has_aux` `loss` returns ``((losses, counts), aux)``.
      has_aux: `loss` returns ``(losses, aux)``, and `aux`, a tree of arrays ``[examples, ...]``,
        comes back beside the losses or their sum, for every example. Its mean is
        ``weighted_mean(aux, where)``. It has no gradient, and its tangent is 0: what shall have one
        belongs into the losses. Return it from `jax.grad` or `jax.vjp` by their ``has_aux``, or
        write ``jax.lax.stop_gradient(aux)``.
      chunk_size: how many examples have logits at one time, as in `linear_softmax_cross_entropy`.
      precision: of the products, as there.
      mesh: for global arrays, the mesh to compute on, as if this were inside `jax.shard_map`.
      class_axis_name: the mesh axis, or a tuple of them, over which the classes are spread. The
        logits have the classes of one shard, and `loss` passes the name on to its losses; what it
        returns must be the same for every shard. Inside `jax.shard_map` kernel, bias and class mask
        are then the shard's own.
      example_spec: how the examples ``[...]`` lie on the mesh; by default their first dimension
        over all of its axes that `class_axis_name` leaves.

    Returns:
      A function ``(*args, where=None, weights=None)`` of the arguments of `loss`. They are one
      `LinearLogits` or several, with the same examples ``[...]``, and arrays, or trees of them,
      whose first dimensions are the examples'. Without a `LinearLogits` the first array
      ``[..., features]`` says which these are: `loss` gets some rows of it. `where`, boolean
      ``[...]``, says which examples count. `weights`, real numbers ``[...]``, multiply the losses
      that are reduced, and divide the mean.

    Note:
      Cost, in products of examples, features and classes: ``"mean"`` and ``"sum"`` take one for
      each `LinearLogits`, and one for each of their inputs and kernels that is differentiated, as
      the gradients are computed together with the loss. ``"none"`` takes one more for each
      `LinearLogits` if anything is differentiated but the inputs of a single output. So write an
      objective inside `loss` and reduce it: a policy gradient with an entropy bonus takes 3
      products, and 4 where its terms come out of ``"none"``.

      An example that does not count has losses of 0, gradients of 0, and an `aux` of 0 or False,
      even if its inputs are NaN. Where `where` or weights of 0 leave examples out, chunks without
      any other are skipped, after the others have been brought to the front. The mean of no
      examples is 0.

      Outside of `jax.jit` a call uses the program of an earlier one if `loss` is the same function,
      and closes over nothing that may have changed: over functions, numbers and JAX's arrays alone.
      Otherwise, as with an array of NumPy, a list or an object, each call compiles anew: write
      ``jax.jit(policy)``.

      A gradient for what `loss` closes over, on a mesh of several shards of examples, takes the
      products of ``"none"``, and no chunk is skipped.

    References:
      P.-L. Hsu et al., `Liger Kernel <https://arxiv.org/abs/2410.10989>`_, 2024, computes gradients
      with the loss, by a kernel for each loss.

    Example:
      >>> import jax, jax.numpy as jnp, jxent
      >>> def objective(logits, tokens, advantages):
      ...     nll = jxent.softmax_cross_entropy_with_integer_labels(logits, tokens)
      ...     return advantages * nll - 0.01 * jxent.softmax_entropy(logits)
      >>> policy = jax.jit(jxent.chunked(objective, reduction="mean"))
      >>> logits = jxent.LinearLogits(jnp.ones([4, 8]), jnp.zeros([8, 50]))
      >>> print(policy(logits, jnp.array([0, 1, 2, 3]), jnp.array([1.0, -0.5, 0.5, 1.0])))
      1.9169
    """
    check_reduction(reduction)
    if has_counts and reduction != "mean":
        raise ValueError(f"has_counts must come with the reduction 'mean', got {reduction!r}")
    size = checked_size(chunk_size)

    def function(
        *args: Any, where: ArrayLike | None = None, weights: ArrayLike | None = None
    ) -> Any:
        arguments = _checked_arguments(args)
        arrays, examples = arguments.arrays, arguments.examples
        if where is not None:
            like = jax.ShapeDtypeStruct(examples, bool)
            arrays[COUNTED] = Rows.of("the examples", like, (), where).mask.examples
        if weights is not None:
            if reduction == "none":
                raise ValueError(
                    "weights must come with the reduction 'mean' or 'sum': without one, multiply"
                    " what comes back by them"
                )
            arrays = with_weights(weights, reduction, arrays)
        all_count = reduction == "mean" and not (has_counts or {COUNTED, WEIGHTS} & arrays.keys())
        form = Form(reduction != "none", has_counts, has_aux, all_count)
        options, names = (reduction, mesh, class_axis_name, example_spec), tuple(arrays)

        def program(loss: Callable[..., Any]) -> Callable[..., Any]:
            plan = Plan(UserLoss(arguments.tree, arguments.leaves, form, loss), precision, size)
            return lambda *x: over_examples(plan, dict(zip(names, x, strict=True)), *options)

        key = arguments.tree, arguments.leaves, form, precision, size, names, options
        total, each = remembered(program, loss, key)(*arrays.values())
        if reduction == "none":
            return each
        return (total, each) if has_aux else total

    function.__name__ = function.__qualname__ = name_of(loss)
    return public(function)


class _Arguments(NamedTuple):
    """The positional arguments of a loss."""

    tree: Any
    leaves: tuple[Name, ...]
    """The names of the tree's leaves."""
    arrays: Arrays
    examples: tuple[int, ...]
    """The shape of the examples."""


def _checked_arguments(args: tuple[Any, ...]) -> _Arguments:
    found, tree = jax.tree_util.tree_flatten_with_path(
        args, is_leaf=lambda x: isinstance(x, LinearLogits)
    )
    arrays: Arrays = {}
    leaves: list[Name] = []
    shapes: list[tuple[str, tuple[int, ...]]] = []
    has_head = any(isinstance(x, LinearLogits) for _, x in found)
    for i, (path, x) in enumerate(found):
        what = f"argument {path[0].idx}{jax.tree_util.keystr(path[1:])}"
        if isinstance(x, LinearLogits):
            name = Name("inputs", len(shapes))
            arrays |= arrays_of(x, len(shapes))
        elif i == 0 and not has_head:
            name = Name("inputs")
            arrays[name] = floating(f"{what}, without a LinearLogits,", x)
        else:
            name = Name("of examples", what)
            arrays[name] = any_array(what, x)
        if name.kind == "inputs":
            shapes.append((what, arrays[name].shape[:-1]))
        leaves.append(name)
    if not shapes:
        raise TypeError("what chunked returns must be given arguments, got none")
    first, examples = shapes[0]
    for what, shape in shapes:
        if shape != examples:
            raise ValueError(f"{what} must have the examples of {first}, {examples}, got {shape}")
    for name, x in arrays.items():
        if name.kind == "of examples" and x.shape[: len(examples)] != examples:
            of_all = ": what is the same for all examples belongs into the loss"
            of_all = "" if x.shape[:1] == examples[:1] else of_all
            raise ValueError(
                f"{name} must begin with the shape of the examples {examples}, got shape"
                f" {x.shape}{remedy('x', x.shape, examples) or of_all}"
            )
    return _Arguments(tree, tuple(leaves), arrays, examples)
