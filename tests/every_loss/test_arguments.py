"""Axes and masks in every form that is allowed, and the errors, word for word, for the others."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import BARE, CASES, bare, expected, fast_jit
from support.tiers import quick, quick_named, quick_rows

_WITH_AXIS = [case for case in BARE if case.has_classes]


def every(cases):
    return pytest.mark.parametrize("case", cases, ids=str)


def _assert_same(actual, expected, name=""):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=2e-6, atol=1e-7, err_msg=name)


def _expected(case):
    return expected(case)[0]


# One of each way to bring the arguments to one form.
_FORMS = {"softmax_cross_entropy_with_integer_labels", "softmax_cross_entropy",
          "softmax_kl_divergence", "log_softmax", "relative_entropy", "kl_divergence",
          "negative_log_likelihood"}  # fmt: skip


@every(quick_named(_WITH_AXIS, _FORMS))
def test_axes_and_masks(case):
    """The class axis may be anywhere, counted from either end, or be folded into several.

    A mask of examples is a mask of all their classes; what it keeps is unchanged.
    """
    args = [np.asarray(x) for x in case.args()]
    moved = [x.T if x.ndim == 2 else x for x in args]
    # Classes 3 -> (3, 1), in front of the examples and behind them.
    folded = [x.T.reshape(-1, 2, 1) if x.ndim == 2 else x for x in args]
    examples, classes = np.array([False, True]), np.array([[False] * 3, [True] * 3])

    # Of constants, so that the compiler finds what is the same and compiles it once.
    @fast_jit
    def results():
        whole = {
            "last": case.call(*args, axis=1),
            "first": case.call(*moved, axis=0),
            "negative": case.call(*moved, axis=-2),
            "tuple of one": case.call(*args, axis=(-1,)),
            "none": jax.vmap(lambda *example: case.call(*example, axis=None))(*args),
            "all kept": case.call(*args, where=np.ones((2, 3), bool)),
        }
        if "target_indices" not in case.kinds:  # There is one axis of the classes and of the k.
            whole["tuple"] = case.call(*folded, axis=(0, 2))
        masked = {
            "classes": case.call(*args, where=classes),
            "examples": case.call(*args, where=examples),
            "first": case.call(*moved, axis=0, where=classes.T),
        }
        return whole, masked

    whole, masked = results()
    if case.per_class:
        whole |= {name: whole[name].T for name in ("first", "negative")}
        whole["tuple"] = whole["tuple"].reshape(3, 2).T
        masked["first"] = masked["first"].T
    for name, result in whole.items():
        _assert_same(result, _expected(case), name)
    for name, result in masked.items():
        _assert_same(result, masked["classes"], name)
        _assert_same(result[1], _expected(case)[1], name)


@every([case for case in _WITH_AXIS if "labels" in case.kinds[:2]])
def test_labels_in_a_tuple_of_axes_are_flat_positions(case):
    """In the order in which the tuple names the axes."""
    values = np.asarray(case.args()[0])
    cube = np.stack([values, 2 * values])  # axes: half, example, class
    labels = np.array([1, 5])

    @fast_jit
    def results():
        flat = np.moveaxis(cube, 1, 0).reshape(2, 6)
        swapped = np.moveaxis(cube, 1, 0).swapaxes(1, 2).reshape(2, 6)
        return (
            case.call(cube, labels, axis=(0, 2)),
            case.call(flat, labels),
            case.call(cube, labels, axis=(2, 0)),
            case.call(swapped, labels),
        )

    a, b, c, d = results()
    chex.assert_trees_all_close((a, c), (b, d), rtol=2e-6, atol=1e-7, strict=True)


@pytest.mark.parametrize(
    ("name", "second"),
    [(c.name, c.kinds[1]) for c in BARE if len(c.kinds) == 2 and c.name != "weighted_mean"],
)
def test_one_for_every_example(name, second):
    """One label, or the distribution ``[classes]``, stands for all; a scalar for all elements."""
    case = bare(name)
    first, other = map(np.asarray, case.args())
    # The binary functions have no classes: what is one for all of them is a scalar.
    one = other[0] if case.accepts("axis") or name.startswith("safe") else other[0, 0]
    repeated = np.broadcast_to(one, other.shape)

    @fast_jit
    def results():
        return case.call(first, one), case.call(first, repeated)

    chex.assert_trees_all_close(*results(), rtol=2e-6, atol=1e-7, strict=True)


@every([case for case in BARE if "labels" in case.kinds])
def test_integer_dtypes_of_labels(case):
    *others, labels = map(np.asarray, case.args())
    dtypes = [np.int8, np.uint8, np.int16, np.uint32, np.int32]
    results = fast_jit(lambda: [case.call(*others, labels.astype(dtype)) for dtype in dtypes])
    chex.assert_trees_all_close(
        *results(), jnp.asarray(_expected(case)), rtol=2e-6, atol=1e-7, strict=True
    )


def test_small_integers_number_many_classes():
    """300 classes, though the labels cannot count so far."""
    logits = np.zeros((1, 300), np.float32)
    logits[0, 44] = 3
    function = jxent.softmax_cross_entropy_with_integer_labels
    losses = fast_jit(lambda: [function(logits, np.array([44], d)) for d in (np.uint8, np.int8)])
    np.testing.assert_allclose(losses(), [[np.log(299 + np.exp(3.0)) - 3.0]] * 2, rtol=1e-6)


@every(quick_named(CASES, _FORMS))
def test_lists_and_numpy_arrays_and_scalars(case):
    """Lists, NumPy arrays and Python numbers are as good as arrays."""
    args = case.args()
    arrays = list(map(np.asarray, args))
    lists = [x.tolist() for x in args]
    expected, *results = fast_jit(lambda: [case.call(*x) for x in (args, arrays, lists)])()
    for result in results:
        assert isinstance(result, jax.Array)
        assert not result.weak_type
        chex.assert_trees_all_close(result, expected, rtol=2e-6, atol=1e-7, strict=True)


@pytest.mark.parametrize(
    "labels",
    [
        *([2**32], [np.int64(2**32)], (np.uint64(2**63),), [np.array(2**32)], np.array([-(2**40)])),
        *([-(2**31) - 1], 2**31),
    ],
    ids=repr,
)
def test_integers_that_jax_would_cut(labels):
    """They are class 0 in 32 bits, also as an entry of a list, for which NumPy has another path."""
    with pytest.raises(ValueError, match=r"^labels must fit into u?int32"):
        jxent.softmax_cross_entropy_with_integer_labels(np.zeros((1, 4), np.float32), labels)


def test_lists_that_hold_traced_numbers():
    """Beside numbers that are known; what is traced is differentiated."""

    def losses(a):
        integer = jxent.softmax_cross_entropy_with_integer_labels
        return jnp.stack(
            [
                jxent.weighted_mean([1.0, 3.0], [a, 1.0]),
                integer([a, 0.0], 1, class_weights=[a, 3.0]),
                jxent.sigmoid_binary_cross_entropy([0.0, a], [1, 0], pos_weight=[a, 5])[0],
                jxent.cross_entropy([0.5, 0.5], [a, 0.25]),
            ]
        )

    a, log2 = 2.0, np.log(2)
    exact = [5 / 3, 3 * np.log1p(np.exp(a)), a * log2, -0.5 * np.log(a / 4)]
    slopes = [-2 / 9, 3 / (1 + np.exp(-a)), log2, -0.5 / a]
    values, dots = fast_jit(lambda a: jax.jvp(losses, (a,), (1.0,)))(a)
    np.testing.assert_allclose(values, exact, rtol=1e-6)
    np.testing.assert_allclose(dots, slopes, rtol=1e-6)


@pytest.mark.parametrize("name", [c.name for c in BARE if not c.accepts("axis") and c.per_class])
def test_python_scalars(name):
    case = bare(name)
    result = jax.eval_shape(lambda: case.function(*[0.25] * len(case.kinds)))
    assert result.shape == ()
    assert result.dtype == jnp.float32
    assert not result.weak_type


@pytest.mark.parametrize("shape", quick([(0, 3), (2, 0, 3)]))
@every(_WITH_AXIS)
def test_no_examples(case, shape):
    args = [
        np.zeros(shape[:-1] if k == "labels" else shape, x.dtype)
        for k, x in zip(case.kinds, case.args(), strict=True)
    ]
    assert fast_jit(case.call)(*args).shape == (shape if case.per_class else shape[:-1])


Z, Y = np.zeros((2, 3), np.float32), np.zeros(2, np.int32)
_SOFT, _INTEGER = "softmax_cross_entropy", "softmax_cross_entropy_with_integer_labels"
_BINARY, _FOCAL = "sigmoid_binary_cross_entropy", "softmax_focal_loss_with_integer_labels"
_TOP_K = "softmax_kl_divergence_with_top_k_targets"
_HEAD, _ENTROPY = "linear_softmax_cross_entropy", "softmax_entropy"
_SQUARE, _CLASSES = np.zeros((3, 3), np.float32), np.arange(3)

_OF_TYPES = [
    # Dtypes and things that are no arrays; more is in `test_every_function_checks`.
    (_INTEGER, (Z.astype(bool), Y), {}, "logits must have a floating-point dtype, got bool"),
    (_INTEGER, (Z.astype(complex), Y), {},
     "logits must have a floating-point dtype, got complex64"),
    (_INTEGER, ("logits", Y), {}, "logits must be an array, got str"),
    (_INTEGER, (None, Y), {}, "logits must be an array, got NoneType"),
    (_INTEGER, ([[1.0], [1.0, 2.0]], Y), {}, "logits must be an array, got list"),
    (_INTEGER, (Z, Y.astype(np.float32)), {}, "labels must be integers, got dtype float32"),
    (_INTEGER, (Z, Y.astype(bool)), {}, "labels must be integers, got dtype bool"),
    (_INTEGER, (Z, Y), {"where": Y}, "where must be boolean, got dtype int32"),
    (_INTEGER, (Z, Y), {"ignore_index": 0.5}, "ignore_index must be an integer, got 0.5"),
    (_FOCAL, (Z, Y), {"ignore_index": True}, "ignore_index must be an integer, got True"),
    (_INTEGER, (Z, Y), {"axis": True}, "axis must be an integer or a tuple of them, got True"),
    (_BINARY, (Z, Z), {"where": Z}, "where must be boolean, got dtype float32"),
    (_INTEGER, (Z, Y), {"axis": 0.5}, "axis must be an integer or a tuple of them, got 0.5"),
    (_INTEGER, (Z, Y), {"axis": "classes"},
     "axis must be an integer or a tuple of them, got 'classes'"),
    (_SOFT, (Z, Z.astype(complex)), {}, "labels must be real numbers, got dtype complex64"),
    ("kl_divergence_with_log_targets", (Z, Z.astype(int)), {},
     "log_targets must have a floating-point dtype, got int32"),
    ("binary_cross_entropy", (Z.astype(int), Z), {},
     "probs must have a floating-point dtype, got int32"),
    ("softmax_kl_divergence", (Z, Z.astype(int)), {},
     "target_logits must have a floating-point dtype, got int32"),
    ("weighted_mean", (Z.astype(complex),), {}, "losses must be real numbers, got dtype complex64"),
    ("label_weights", (Z[0], Z), {}, "labels must be integers, got dtype float32"),
    ("label_weights", (Z[0] > 0, "y"), {}, "labels must be an array, got str"),
    ("label_weights", (Z[0], Y, 0.5), {}, "ignore_index must be an integer, got 0.5"),
    *[(_HEAD, (Z, Z.T, Y), {name: 1.0}, f"{_HEAD} has no argument {name!r}, but takes {other}")
      for name, other in [("where", "weights or ignore_index for examples, class_mask for classes"),
                          ("alpha", "label_smoothing or class_weights"),
                          ("gamma", f"no focal loss: chunked({_FOCAL}) does"),
                          ("epsilon", "no PolyLoss: chunked(poly_loss_cross_entropy) does"),
                          ("axis", "the classes last: give kernel[features, classes]"),
                          ("scale", "logit_scale"),
                          ("softcap", "logit_softcap")]],
    # Class numbers where distributions are meant.
    (_SOFT, (_SQUARE, _CLASSES), {},
     "labels must have a floating-point dtype to stand for every example, or else the shape of"
     " logits (3, 3), got int32 of shape (3,): class numbers are for"
     " softmax_cross_entropy_with_integer_labels"),
    ("cross_entropy", (_SQUARE, _CLASSES), {},
     "q must have a floating-point dtype to stand for every example, or else the shape of"
     " p (3, 3), got int32 of shape (3,): class numbers are for"
     " cross_entropy_with_integer_labels"),
    ("generalized_kl_divergence", (_SQUARE, 2), {},
     "targets must have a floating-point dtype to stand for every example, or else the shape of"
     " log_predictions (3, 3), got int32 of shape (): class numbers are for jax.nn.one_hot"),
    (_INTEGER, (Z, Y), {"label_smoothing": "some"}, "label_smoothing must be an array, got str"),
    # A teacher's top k.
    (_TOP_K, (Z, [[0.0], [1.0]], Z[:, :1]), {},
     "target_indices must be integers, got dtype float32"),
    (_TOP_K, (Z, [[0], [1]], [[0], [0]]), {},
     "target_log_probs must have a floating-point dtype, got int32"),
    # A linear head.
    (_HEAD, (Z.astype(np.int32), Z.T, Y), {}, "inputs must have a floating-point dtype, got int32"),
    *[(_HEAD, (Z, Z.T, Y), {"chunk_size": size}, f"chunk_size must be an integer, got {size!r}")
      for size in (2.0, True, "8", np.float32(8), np.bool_(True), [8], 1j)],
]  # fmt: skip
_OF_VALUES = [
    # Numbers that do not fit.
    (_INTEGER, (Z, np.array([0, 2**32])), {}, "labels must fit into int32, got 4294967296"),
    # Shapes.
    (_INTEGER, (Z, Y[:1]), {},
     "labels must have the shape of the examples of logits (2,) or be a scalar, got shape (1,)"),
    (_INTEGER, (Z, Y[:, None]), {},
     "labels must have the shape of the examples of logits (2,) or be a scalar, got shape (2, 1)"
     ": write labels.reshape((2,))"),
    (_INTEGER, (Z, Z.astype(np.int32)), {},
     "labels must have the shape of the examples of logits (2,) or be a scalar, got shape (2, 3)"),
    (_INTEGER, (Z[None].repeat(4, 0), Y), {},
     "labels must have the shape of the examples of logits (4, 2) or be a scalar, got shape (2,):"
     " write jnp.broadcast_to(labels[None, :], (4, 2))"),
    (_INTEGER, (Z[:, None].repeat(4, 1), Y), {},
     "labels must have the shape of the examples of logits (2, 4) or be a scalar, got shape (2,):"
     " write jnp.broadcast_to(labels[:, None], (2, 4))"),
    (_INTEGER, (Z, Y), {"where": np.ones(3, bool)},
     "where must have the shape of logits (2, 3) or of its examples (2,), got shape (3,):"
     " write jnp.broadcast_to(where[None, :], (2, 3))"),
    (_ENTROPY, (Z[:, None].repeat(4, 1),), {"where": np.ones(2, bool)},
     "where must have the shape of logits (2, 4, 3) or of its examples (2, 4), got shape (2,):"
     " write jnp.broadcast_to(where[:, None], (2, 4))"),
    (_ENTROPY, (Z,), {"where": np.ones((2, 1, 1), bool)},
     "where must have the shape of logits (2, 3) or of its examples (2,), got shape (2, 1, 1):"
     " write where.reshape((2,))"),
    (_INTEGER, (Z, Y), {"where": True},
     "where must have the shape of logits (2, 3) or of its examples (2,), got shape ()"),
    (_INTEGER, (Z, Y), {"class_weights": [1.0, 2.0]},
     "class_weights must have one weight per class of logits, shape (3,), got shape (2,)"),
    (_INTEGER, (Z, Y), {"class_weights": 1.0},
     "class_weights must have one weight per class of logits, shape (3,), got shape ()"),
    (_INTEGER, (Z, Y), {"z_loss": [1.0]}, "z_loss must be a scalar, got shape (1,)"),
    (_SOFT, (Z, Z[:1]), {},
     "labels must have the shape of logits (2, 3), that of its classes (3,), or be a scalar,"
     " got shape (1, 3): write jnp.broadcast_to(labels, (2, 3))"),
    (_SOFT, (Z, Y), {},
     "labels must have the shape of logits (2, 3), that of its classes (3,), or be a scalar,"
     " got shape (2,)"),
    (_SOFT, (Z[:, :0], Z[:, :0]), {}, "logits must have at least one class, got shape (2, 0)"),
    (_FOCAL, (Z, Y, [1.0, 2.0]), {}, "gamma must be a scalar, got shape (2,)"),
    ("poly_loss_cross_entropy", (Z, Z, [1.0, 2.0]), {}, "epsilon must be a scalar, got shape (2,)"),
    ("sigmoid_focal_loss", (Z, Z, [1.0, 2.0]), {}, "alpha must be a scalar, got shape (2,)"),
    (_BINARY, (Z, Z[0]), {},
     "labels must have the shape of logits (2, 3) or be a scalar, got shape (3,)"
     ": write jnp.broadcast_to(labels[None, :], (2, 3))"),
    (_BINARY, (Z[:, :1], Z[:, 0]), {},
     "labels must have the shape of logits (2, 1) or be a scalar, got shape (2,)"
     ": write jnp.broadcast_to(labels[:, None], (2, 1))"),
    (_BINARY, (Z, Z), {"pos_weight": [1.0, 2.0]},
     "pos_weight must have the last dimensions of logits (2, 3) or be a scalar, got shape (2,)"
     ": write jnp.broadcast_to(pos_weight[:, None], (2, 3))"),
    (_BINARY, (Z[0], Z[0]), {"pos_weight": Z},
     "pos_weight must have the last dimensions of logits (3,) or be a scalar, got shape (2, 3)"),
    (_BINARY, (Z, Z), {"where": np.ones(3, bool)},
     "where must have the shape of logits (2, 3), got shape (3,):"
     " write jnp.broadcast_to(where[None, :], (2, 3))"),
    ("binary_entropy", (Z,), {"where": np.ones((2, 2), bool)},
     "where must have the shape of p (2, 3), got shape (2, 2)"),
    ("sigmoid_entropy", (Z,), {"where": True},
     "where must have the shape of logits (2, 3), got shape ()"),
    ("sigmoid_kl_divergence", (Z, Z[0]), {},
     "target_logits must have the shape of logits (2, 3) or be a scalar, got shape (3,)"
     ": write jnp.broadcast_to(target_logits[None, :], (2, 3))"),
    ("relative_entropy", (Z, Z[:1]), {},
     "q must have the shape of p (2, 3), that of its classes (3,), or be a scalar,"
     " got shape (1, 3): write jnp.broadcast_to(q, (2, 3))"),
    ("weighted_mean", (Z, Z[0]), {},
     "weights must have the shape of losses (2, 3) or be a scalar, got shape (3,)"
     ": write jnp.broadcast_to(weights[None, :], (2, 3))"),
    # Axes.
    (_INTEGER, (Z, Y, (0, -3)), {}, "axis must name axes of logits, which has rank 2, got (0, -3)"),
    (_INTEGER, (Z, Y, (1, -1)), {}, "axis must not name an axis twice, got (1, -1)"),
    (_SOFT, (Z, Z, ()), {}, "logits must have at least one class, got shape (2, 3)"),
    ("softmax", (np.float32(0),), {}, "axis must name axes of logits, which has rank 0, got -1"),
    ("softmax", (np.float32(0), None), {}, "logits must have an axis of classes, got shape ()"),
    ("entropy", (Z, -3), {}, "axis must name axes of p, which has rank 2, got -3"),
    ("weighted_mean", (Z, None, 2), {}, "axis must name axes of losses, which has rank 2, got 2"),
    # Options; `test_options.py` has what is out of their ranges.
    (_HEAD, (Z, Z.T, Y), {"weights": [1.5, -1.25]},
     "weights must not be negative, got -1.25: a mean divides by their sum, which may vanish."
     " Write reduction='sum' and divide by a number, or reduction='none'"),
    (_HEAD, (Z, Z.T, Y), {"class_weights": np.float32([1.5, -1.25])},
     "class_weights must not be negative, got -1.25: a mean divides by their sum, which may"
     " vanish. Write reduction='sum' and divide by a number, or reduction='none'"),
    ("weighted_mean", (Z[0], np.float32([0.5, -0.25, 0.0])), {},
     "weights must not be negative, got -0.25: a mean divides by their sum, which may vanish."
     " Write jnp.sum(weights * losses) over a number"),
    (_INTEGER, (Z, Y), {"label_smoothing": [0.5, 0.5]},
     "label_smoothing must be a scalar, got shape (2,)"),
    (_TOP_K, (Z, [[0], [1]], Z[:, :2]), {},
     "target_log_probs must have the shape of logits (2, 3) but for the axis 1 of the"
     " classes, where both have k > 0, got target_indices (2, 1) and target_log_probs (2, 2)"),
    (_TOP_K, (Z, [[0], [1]], Z[:, :1], (0, 1)), {}, "axis must be a single one, got (0, 1)"),
    # A linear head.
    (_HEAD, (Z, _SQUARE[:2], Y), {},
     "inputs and kernel must have the shapes [..., features] and [features, classes],"
     " got (2, 3) and (2, 3): did you mean kernel.T?"),
    (_HEAD, (Z, Z.T, Y), {"reduction": "average"},
     "reduction must be 'mean', 'sum' or 'none', got 'average'"),
    (_HEAD, (Z, Z.T, np.zeros(3, np.int32)), {},
     "labels must have the shape of the examples of inputs @ kernel (2,) or be a scalar,"
     " got shape (3,)"),
    (_HEAD, (Z, Z.T, Y), {"weights": Z[:, :1]},
     "weights must have the shape of the examples (2,) or be a scalar, got shape (2, 1):"
     " write weights.reshape((2,))"),
    *[(_HEAD, (np.ones((n, k), "f"), np.ones((k, 0), "f"), np.zeros(n, int)), {},
       f"kernel must have at least one class, got shape ({k}, 0)")
      for n in (0, 4) for k in (0, 3)],
    *[(_HEAD, (Z, Z.T, Y), {"chunk_size": size},
       f"chunk_size must be at least 1, got {size}") for size in (0, -1, np.int32(0))],
]  # fmt: skip
_MISTAKES = [(*row, TypeError) for row in _OF_TYPES] + [(*row, ValueError) for row in _OF_VALUES]


@pytest.mark.parametrize(("name", "args", "options", "message", "error"), _MISTAKES)
def test_mistake(name, args, options, message, error):
    with pytest.raises(error) as caught:
        getattr(jxent, name)(*args, **options)
    assert type(caught.value) is error
    assert str(caught.value) == message


def test_a_mistake_shows_under_jit_as_well():
    message = "^labels must be integers, got dtype float32"
    with pytest.raises(TypeError, match=message):
        jax.jit(jxent.softmax_cross_entropy_with_integer_labels)(Z, Z[:, 0])


# What is no array is a name, or known when a program is traced.
_NO_ARRAYS = {
    *("axis", "class_axis_name", "ignore_index", "reduction", "chunk_size", "precision", "mesh"),
    "example_spec", "axis_name", "keepdims",
}  # fmt: skip
_KINDS_OF_ARGUMENTS = [
    (case.name, name)
    for case in BARE
    for name in inspect.signature(case.function).parameters
    if name not in _NO_ARRAYS
]
_QUICK_KINDS = [
    i
    for i, (name, argument) in enumerate(_KINDS_OF_ARGUMENTS)
    if name in (_INTEGER, _BINARY, _HEAD) or argument in ("gamma", "alpha", "epsilon", "p", "q")
]

_NOT_IN_JAX = {
    "object": lambda x: x.astype(object),
    str(np.dtype(np.longdouble)): lambda x: x.astype(np.longdouble),
    ">f4": lambda x: x.astype(">f4"),
    ">i8": lambda x: x.astype(">i8"),
    "<U3": lambda x: x.astype("U3"),
    "datetime64[s]": lambda x: np.zeros(x.shape, "M8[s]"),
    "[('a', '<f4')]": lambda x: np.zeros(x.shape, [("a", "<f4")]),
}


@pytest.mark.parametrize(("name", "argument"), quick_rows(_KINDS_OF_ARGUMENTS, *_QUICK_KINDS))
def test_arrays_that_jax_does_not_have_are_named_by_their_dtype(name, argument):
    function = getattr(jxent, name)
    case = bare(name)
    args = dict(zip(case.parameters, map(np.asarray, case.args()), strict=True))
    given = args.get(argument, np.zeros(2, np.float32))
    for dtype, changed in _NOT_IN_JAX.items():
        with pytest.raises(TypeError) as caught:
            function(**args | {argument: changed(given)})
        assert str(caught.value) == f"{argument} must be an array, got ndarray of dtype {dtype}"
    with pytest.raises(TypeError) as caught:
        function(**args | {argument: np.ma.masked_array(given)})
    assert str(caught.value) == (
        f"{argument} must be an array, got MaskedArray of dtype {given.dtype}:"
        f" give its data, and its mask as an argument"
    )


@every(_WITH_AXIS)
def test_every_function_checks(case):
    args = [np.asarray(x) for x in case.args()]
    first = case.parameters[0]
    with pytest.raises(TypeError, match=rf"^{first} must have a floating-point dtype, got int32$"):
        case.call(*(x.astype(int) for x in args))
    with pytest.raises(
        ValueError, match=f"^axis must name axes of {first}, which has rank 2, got 2$"
    ):
        case.call(*args, axis=2)
    with pytest.raises(TypeError, match=r"^where must be boolean, got dtype float32$"):
        case.call(*args, where=args[0])
    if len(args) > 1:
        with pytest.raises(ValueError, match=f"^{case.parameters[1]} must have the shape of"):
            case.call(args[0], args[1][:1], *args[2:])
