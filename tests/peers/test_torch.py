"""Against PyTorch: each expression of the migration tables, in value and gradient."""

import re
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from support.cases import fast_jit
from support.tiers import quick, quick_rows

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
F = torch.nn.functional
pytestmark = pytest.mark.peer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/pytorch.md").read_text("utf-8")
TABLE = re.findall(r"^\| `(F\..*?)` \| `(.*?)` \|$", PAGE, re.MULTILINE)
EVERY_ROW = pytest.mark.parametrize(("theirs", "ours"), TABLE, ids=[row[0] for row in TABLE])
INTEGER, SOFT = jxent.softmax_cross_entropy_with_integer_labels, jxent.softmax_cross_entropy
NLL = jxent.negative_log_likelihood

RTOL = 1e-12
IGNORED = -100

_rng = np.random.default_rng(0)
N, CLASSES = 6, 4
ARRAYS = {
    "z": 3 * _rng.normal(size=(N, CLASSES)),
    "p": _rng.uniform(0.05, 0.95, size=(N, CLASSES)),
    "t": _rng.dirichlet(np.ones(CLASSES), size=N),
    "log_p": np.log(_rng.dirichlet(np.ones(CLASSES), size=N)),
    "log_t": np.log(_rng.dirichlet(np.ones(CLASSES), size=N)),
    "w": _rng.uniform(0.5, 2, size=CLASSES),
    "v": _rng.uniform(0.5, 2, size=CLASSES),
    "y": np.array([3, 0, IGNORED, 2, 2, IGNORED]),
}
# What is differentiated, where it occurs. PyTorch has no gradient for the others everywhere.
DIFFERENTIATED = ("z", "p", "log_p", "log_t")


def _compare(theirs, ours, names=tuple(ARRAYS), arrays=ARRAYS):
    """`theirs` and `ours` take tensors and arrays by name; their losses and gradients agree."""
    wrt = [name for name in names if name in DIFFERENTIATED]
    tensors = {name: torch.tensor(arrays[name]).requires_grad_(name in wrt) for name in names}
    expected = theirs(**tensors)
    cotangent = 1 + np.arange(expected.numel(), dtype=float).reshape(tuple(expected.shape))
    expected_gradients = torch.autograd.grad(
        expected, [tensors[name] for name in wrt], torch.tensor(cotangent), materialize_grads=True
    )

    @fast_jit
    def losses_and_gradients(cotangent, given):
        floats = {name: given[name] for name in wrt}
        losses, pullback = jax.vjp(lambda floats: ours(**(given | floats)), floats)
        return losses, *pullback(cotangent)

    with jax.enable_x64(True):
        given = {name: jnp.asarray(arrays[name]) for name in names}
        losses, gradients = losses_and_gradients(jnp.asarray(cotangent), given)
        wanted = expected.detach().numpy()
        chex.assert_trees_all_close(losses, wanted, rtol=RTOL, atol=1e-15, strict=True)
        wanted = {name: x.numpy() for name, x in zip(wrt, expected_gradients, strict=True)}
        chex.assert_trees_all_close(gradients, wanted, rtol=1e-11, atol=1e-14, strict=True)


def _evaluated(expression):
    def function(**arrays):
        return eval(expression, {"F": F, "jnp": jnp, "jxent": jxent}, arrays)

    return function


def test_table_was_found():
    """Every function that the page promises to replace, and all of the rows."""
    assert len(TABLE) == len(re.findall(r"^\| `F\.", PAGE, re.MULTILINE)) >= 16
    assert {theirs.split("(")[0] for theirs, _ in TABLE} == {
        "F.cross_entropy",
        "F.nll_loss",
        "F.binary_cross_entropy_with_logits",
        "F.binary_cross_entropy",
        "F.multilabel_soft_margin_loss",
        "F.kl_div",
    }


@EVERY_ROW
def test_table(theirs, ours):
    """The expressions as they stand."""
    _compare(_evaluated(theirs), _evaluated(ours))


@EVERY_ROW
@pytest.mark.full
def test_table_with_numpy_arrays(theirs, ours):
    """Op by op, where an index of -100 would be an IndexError of NumPy's."""
    with jax.enable_x64(True):
        tensors = {name: torch.tensor(x) for name, x in ARRAYS.items()}
        expected = _evaluated(theirs)(**tensors).numpy()
        np.testing.assert_allclose(_evaluated(ours)(**ARRAYS), expected, rtol=RTOL, atol=1e-15)


def test_head_with_class_weights_and_z_loss():
    """As the docs say: one of the two rows, and with another z-loss the other one."""
    over_examples, over_weights = (row for row in TABLE if "logsumexp" in row[0])
    head = fast_jit(partial(jxent.linear_softmax_cross_entropy, ignore_index=IGNORED))
    with jax.enable_x64(True):
        arrays = {"y": ARRAYS["y"], "w": ARRAYS["w"]}
        x, kernel = _rng.normal(size=(N, 3)), _rng.normal(size=(3, CLASSES))
        tensors = {name: torch.tensor(a) for name, a in (arrays | {"z": x @ kernel}).items()}
        weights = np.where(arrays["y"] == IGNORED, 0, arrays["w"][arrays["y"].clip(0)])
        for row, z_loss in (
            (over_weights, 0.01),
            (over_examples, 0.01 * weights.sum() / np.sum(arrays["y"] != IGNORED)),
        ):
            loss = head(x, kernel, ARRAYS["y"], class_weights=ARRAYS["w"], z_loss=z_loss)
            np.testing.assert_allclose(loss, _evaluated(row[0])(**tensors), rtol=RTOL)


def test_smoothing_of_integer_labels_as_in_t5x_and_megatron():
    """The label keeps 1 - ε, each of the others gets ε / (K - 1)."""
    with jax.enable_x64(True):
        z, labels = ARRAYS["z"], np.arange(N) % CLASSES
        smoothed = np.where(np.arange(CLASSES) == labels[:, None], 0.9, 0.1 / (CLASSES - 1))
        expected = F.cross_entropy(torch.tensor(z), torch.tensor(smoothed), reduction="none")
        smoothing = 0.1 * CLASSES / (CLASSES - 1)
        losses = fast_jit(partial(INTEGER, label_smoothing=smoothing))(z, labels)
        np.testing.assert_allclose(losses, expected, rtol=RTOL)


def test_divergence_of_yes_and_no_keeps_its_bits():
    """Our expression in float32, where PyTorch's difference has lost all of them."""
    (row,) = (row for row in TABLE if " - F.binary_cross_entropy" in row[0])
    t = np.float32([1e-10, 0.5, 0.3, 0.0, 1.0, 0.7, 1e-5])
    p = np.float32([2e-10, 0.5001, 0.3001, 0.5, 0.5, 1e-20, 1.001e-5])
    with jax.enable_x64(True):
        a, b = (np.stack([x, 1 - x.astype(np.float64)], -1) for x in (t, p))
        terms = np.where(a > 0, a * np.log(np.where(a > 0, a, 1) / b) - a + b, b)
        exact = terms.sum(-1)
    np.testing.assert_allclose(fast_jit(_evaluated(row[1]))(t=t, p=p), exact, rtol=1e-3)


def _reduced(losses, reduction, total=None):
    """PyTorch's reductions; its mean divides by the weights of the labels, if there are any."""
    if reduction == "none":
        return losses
    mean = jnp.mean(losses) if total is None else jnp.sum(losses) / total
    return jnp.sum(losses) if reduction == "sum" else mean


# The reductions are these tests' own arithmetic, so that they meet the options by turns.
_OF_CLASSES = [
    (F.cross_entropy, INTEGER, "z y", True, {"label_smoothing": 0.3}, "mean"),
    (F.cross_entropy, SOFT, "z t", True, {"label_smoothing": 0.3}, "mean"),
    (F.nll_loss, NLL, "log_p y", True, {}, "mean"),
    (F.cross_entropy, INTEGER, "z y", True, {"ignore_index": 2}, "sum"),
    (F.cross_entropy, INTEGER, "z y", False, {"label_smoothing": 0.3, "ignore_index": 2}, "none"),
    (F.cross_entropy, INTEGER, "z y", False, {}, "mean"),
    (F.cross_entropy, SOFT, "z t", True, {}, "sum"),
    (F.cross_entropy, SOFT, "z t", False, {"label_smoothing": 0.3}, "none"),
    (F.nll_loss, NLL, "log_p y", False, {}, "none"),
    (F.nll_loss, NLL, "log_p y", False, {}, "sum"),
]


@pytest.mark.parametrize(
    ("theirs", "ours", "names", "weighted", "options", "reduction"),
    quick_rows(_OF_CLASSES, 0, 1, 2),
)
def test_losses_of_classes(theirs, ours, names, weighted, options, reduction):
    """Class weights, ignored labels and label smoothing.

    For distributions as labels the mean divides by the number of examples.
    """
    first, second = names.split()
    options = options if second == "t" else {"ignore_index": IGNORED} | options
    ignored = options.get("ignore_index", IGNORED)
    arrays = ARRAYS | {"y": np.where(ARRAYS["y"] == IGNORED, ignored, ARRAYS["y"])}

    def of_torch(**a):
        weight = a["w"] if weighted else None
        return theirs(a[first], a[second], weight=weight, reduction=reduction, **options)

    def of_jxent(**a):
        y, weights = a[second], a["w"] if weighted else None
        losses = ours(a[first], y, class_weights=weights, **options)
        if second == "t":
            return _reduced(losses, reduction)
        share = jnp.where(y == ignored, 0, weights[y] if weighted else 1)
        return _reduced(losses, reduction, jnp.sum(share))

    _compare(of_torch, of_jxent, (first, second, "w"), arrays)


def test_cross_entropy_of_pictures():
    """PyTorch has the classes on axis 1."""
    z, y = _rng.normal(size=(2, CLASSES, 3, 2)), _rng.integers(CLASSES, size=(2, 3, 2))
    theirs = _evaluated('F.cross_entropy(z, y, reduction="none")')
    ours = _evaluated("jxent.softmax_cross_entropy_with_integer_labels(z, y, axis=1)")
    _compare(theirs, ours, ("z", "y"), {"z": z, "y": y})


_BINARY = [
    (F.binary_cross_entropy_with_logits, jxent.sigmoid_binary_cross_entropy, "z"),
    (F.binary_cross_entropy, jxent.binary_cross_entropy, "p"),
    (F.multilabel_soft_margin_loss, jxent.sigmoid_binary_cross_entropy, "z"),
]
_OF_ELEMENTS = [
    (*row, *rest)
    for rest in ((True, True, "mean"), (False, True, "sum"), (True, False, "none"))
    for row in _BINARY
]


@pytest.mark.parametrize(
    ("theirs", "ours", "first", "weighted", "positive", "reduction"),
    quick_rows(_OF_ELEMENTS, 0, 1, 2),
)
def test_losses_of_elements(theirs, ours, first, weighted, positive, reduction):
    """A weight multiplies; positive weights are an option of one function."""
    positive = positive and theirs is F.binary_cross_entropy_with_logits

    def options(a):
        return {"pos_weight": a["v"]} if positive else {}

    def of_torch(**a):
        weight = a["w"] if weighted else None
        return theirs(a[first], a["t"], weight, reduction=reduction, **options(a))

    def of_jxent(**a):
        losses = (a["w"] if weighted else 1) * ours(a[first], a["t"], **options(a))
        # The loss of many labels is the mean over the classes of each example.
        is_mean = theirs is F.multilabel_soft_margin_loss
        return _reduced(jnp.mean(losses, axis=-1) if is_mean else losses, reduction)

    _compare(of_torch, of_jxent, (first, "t", "w", "v"))


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize("reduction", quick(["none", "sum", "batchmean", "mean"], "batchmean"))
@pytest.mark.parametrize("log_target", [False, True])
def test_kl_div(log_target, reduction):
    """PyTorch sums over no class: its "none" is a term per class, its "mean" that of all terms."""
    target = "log_t" if log_target else "t"
    divergence = jxent.kl_divergence_with_log_targets if log_target else jxent.kl_divergence

    def ours(log_p, **arrays):
        t = arrays[target]
        if reduction in ("none", "mean"):
            return _reduced(divergence(log_p[..., None], t[..., None]), reduction)
        return _reduced(divergence(log_p, t), "sum" if reduction == "sum" else "mean")

    def theirs(log_p, **arrays):
        return F.kl_div(log_p, arrays[target], log_target=log_target, reduction=reduction)

    _compare(theirs, ours, ("log_p", target))


def test_what_differs():
    """What the page says that PyTorch does otherwise."""
    zero, one = torch.zeros(1), torch.ones(1)
    assert F.binary_cross_entropy(zero, one) == 100
    ignored = np.array([IGNORED, IGNORED])
    assert torch.isnan(F.cross_entropy(torch.zeros(2, 3), torch.tensor(ignored)))

    @fast_jit
    def ours():
        z = np.zeros((2, 3), np.float32)
        mean = jxent.weighted_mean(INTEGER(z, ignored, ignore_index=IGNORED), ignored != IGNORED)
        return jxent.binary_cross_entropy(0.0, 1.0), mean, INTEGER(z[0], 3)

    np.testing.assert_array_equal(ours(), [np.inf, 0, np.nan])
    with pytest.raises(IndexError):
        F.cross_entropy(torch.zeros(1, 3), torch.tensor([3]))
