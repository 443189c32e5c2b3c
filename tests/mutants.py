"""Deliberate breaks of the package, for each of which a test must fail.

``python tests/mutants.py`` breaks a copy of the checkout in one place at a time, and runs the
tests that most likely notice, then, if these pass, the whole quick tier, up to the first failure.
At the end it runs the tests that failed on an unbroken copy, where they must pass, prints a table,
and exits with status 1 if a mutant survived. It takes a quarter of an hour, longer if one survives.

``python tests/mutants.py _rows.py checkpoint`` takes only the mutants with one of these words in
the name of the file or in the reason; ``--likely-only`` runs no further than the likely tests, and
``--rows-only`` runs none: it sees whether each row still fits the package.

A row says which expression of which file of the package is replaced by what, and why that is
wrong. The expression must stand in the file exactly once: whoever changes the line changes the row
as well. A new rule in the package deserves a new row here.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
QUICK = ["-m", "not notebooks"]
PASSED, FAILED, NOTHING_RAN = 0, 1, 5
"""The exit statuses of pytest after which a mutant has a verdict."""


class Mutant(NamedTuple):
    """A break, and the tests that most likely notice it."""

    file: str
    """in the package"""
    expression: str
    replacement: str
    why: str
    """what is wrong then"""
    likely: tuple[str, ...]
    """test files, without ``test_`` and ``.py``"""
    keyword: str = ""
    """pytest's ``-k`` for them"""


class Verdict(NamedTuple):
    """What became of a mutant."""

    mutant: Mutant
    result: str
    """the test that fell, or why there is none"""
    fell: bool
    seconds: float


MUTANTS = [
    Mutant(
        "__init__.py",
        "from ._log_probabilities import kl_divergence as kl_divergence",
        "from ._log_probabilities import generalized_kl_divergence as kl_divergence",
        "a public name stands for another function",
        ("accuracy",),
        "[kl_divergence-plain",
    ),
    Mutant(
        "__main__.py",
        "return 1 if missed else 0",
        "return 0",
        "the exit status hides that a loss misses its bound",
        ("main",),
        "status_and_last_line",
    ),
    Mutant(
        "_arguments.py",
        "if not (contains(number) and contains(rounded)):",
        "if not contains(number):",
        "a cap of 1e-300 passes as positive, and is 0 in float32",
        ("options",),
        "out_of_range and linear and logit_softcap",
    ),
    Mutant(
        "_arguments.py",
        "    x = x.astype(computing_dtype(x, like))\n",
        "",
        "the gradient of what is shared by all examples is summed in 16 bits",
        ("dtypes",),
        "rounded_once and sigmoid_binary",
    ),
    Mutant(
        "_pushforward.py",
        "    @partial(jax.checkpoint, prevent_cse=False)\n",
        "",
        "linearisation stores arrays as large as the logits beside them",
        ("transformations",),
        "linearisation",
    ),
    Mutant(
        "_pushforward.py",
        "if type(dot) is ad.Zero else dot for dot in tangents]",
        "if type(dot) is ad.Zero else SymbolicZero.from_primal_value(dot)"
        " if i < parameters['pullback'].num_leaves else dot for i, dot in enumerate(tangents)]",
        "a second derivative forgets what the rule keeps",
        ("derivatives", "second_derivatives"),
        "over and softmax_cross_entropy or hessian",
    ),
    Mutant(
        "_autodiff.py",
        "return known(out, *primals), out_dot",
        "return out, out_dot",
        "a value that came with its derivative is differentiated through the forward formula",
        ("second_derivatives",),
        "came_with and soft and float32",
    ),
    Mutant(
        "_autodiff.py",
        "return known(out, *args), tangent(tuple(args), dots)[1]",
        "return out, tangent(tuple(args), dots)[1]",
        "the value loses the gradient rule when it is differentiated for the second time",
        ("second_derivatives",),
        "came_with_a_gradient_twice",
    ),
    Mutant(
        "_autodiff.py",
        "tuple(cotangent * to_argument(*given) for to_argument in partials)",
        "tuple(cotangent.astype(x.dtype) * f(*given).astype(x.dtype)"
        " for f, x in zip(partials, args, strict=True))",
        "gradients of probabilities are rounded before the cotangent reaches them",
        ("dtypes",),
        "loss_scaling and generalized",
    ),
    Mutant(
        "_contents.py",
        'inspect.isclass(function)) and not name.startswith("_")',
        "inspect.isclass(function))",
        "help lists what is not public",
        ("public",),
        "help",
    ),
    Mutant(
        "_cross_entropy.py",
        "1 / jnp.maximum(number, 1).astype(dtype)",
        "jnp.full_like(number, 1 / rows.present.shape[-1], dtype)",
        "smoothing gives the mass of masked classes to none",
        ("policies",),
        "[softmax_cross_entropy-options-classes",
    ),
    Mutant(
        "_cross_entropy.py",
        "jnp.where(is_impossible, 0.0, x)",
        "x",
        "an impossible label costs NaN where softmax has no limit, with an option",
        ("policies",),
        "[softmax_cross_entropy_with_integer_labels-options",
    ),
    Mutant(
        "_statistics/pairs.py",
        "(difference - anchor) + (error - anchor_error)",
        "difference - anchor",
        "the divergence of nearly equal distributions loses bits beside a shift",
        ("accuracy",),
        "[softmax_kl_divergence-plain",
    ),
    Mutant(
        "_statistics/pairs.py",
        "(change > -0.5) & (change < 2)",
        "(change > 1) & (change < 2)",
        "the ratio of nearly equal probabilities is a difference of surprisals, which cancels",
        ("accuracy",),
        "[softmax_kl_divergence-plain",
    ),
    Mutant(
        "_divergence.py",
        "p * (jnp.where(t == -jnp.inf, 0.0, t) - divergence[..., None])",
        "p * jnp.where(t == -jnp.inf, 0.0, t)",
        "the derivative for the target lacks that of its normaliser",
        ("accuracy",),
        "[softmax_kl_divergence-plain",
    ),
    Mutant(
        "_divergence.py",
        "mask.fill(cotangent[..., None] * x, 0.0, 0.0) for",
        "mask.fill(cotangent[..., None].astype(logits.dtype) * x.astype(logits.dtype), 0, 0) for",
        "the gradient is rounded to 16 bits before a loss scale reaches it",
        ("dtypes",),
        "loss_scaling and softmax_kl",
    ),
    Mutant(
        "_dtypes.py",
        "any(x is not None and x.dtype == np.float64 for x in arrays)",
        "all(x is None or x.dtype == np.float64 for x in arrays)",
        "float64 beside float32 is computed in float32",
        ("dtypes",),
        "one_argument_in_float64 and softmax_cross",
    ),
    Mutant(
        "_elementary.py",
        "@with_partials(lambda z: sigmoid(z) * sigmoid(-z))",
        "@with_partials(lambda z: sigmoid(z) * (1 - sigmoid(z)))",
        "the derivative of the sigmoid cancels for a large logit",
        ("second_derivatives",),
        "test_hessian and sigmoid and float32",
    ),
    Mutant(
        "_elementary.py",
        "return jax.lax.exp(x, accuracy=HIGHEST)",
        "return jax.lax.exp(x)",
        "exponentials are approximations on a TPU",
        ("elementary",),
        "asked_for",
    ),
    Mutant(
        "_elementary.py",
        "log_x, y_upper = upper(high + low), upper(y)",
        "log_x, y_upper = high + low, y",
        "a power on a TPU has the rounding error of its logarithm, times the logarithm",
        ("elementary",),
        "power_by_exp",
    ),
    Mutant(
        "_elements.py",
        "        x = self.fill_masked(x, 0.5)\n",
        "",
        "a masked label of 255 makes the gradient NaN",
        ("labels",),
        "test_masked_elements",
    ),
    Mutant(
        "_elements.py",
        "negative = weighted(1 - epsilon, negative) + epsilon / 2",
        "negative = 1 - positive",
        "a little smoothing of a positive label is rounded away",
        ("accuracy",),
        "[sigmoid_binary_cross_entropy-options",
    ),
    Mutant(
        "_focal.py",
        "    z = _finite(z)\n    up, down, losses",
        "    up, down, losses",
        "the gradient is NaN at an infinite loss: 0 times infinity",
        ("policies",),
        "[sigmoid_focal_loss-plain",
    ),
    Mutant(
        "_focal.py",
        "weighted_cost(power_of_share(-expm1(-losses), exp(-losses), gamma), losses)",
        "weighted_cost(power_of_share(1 - exp(-losses), exp(-losses), gamma), losses)",
        "the factor of an easy example cancels to 0",
        ("accuracy",),
        "[softmax_focal",
    ),
    Mutant(
        "_focal.py",
        "to_labels = jnp.where(z > -jnp.inf, q, 0.0)",
        "to_labels = q",
        "PolyLoss has a gradient for the label of a class that does not exist",
        ("policies",),
        "[poly_loss_cross_entropy-plain",
    ),
    Mutant(
        "_labels.py",
        "return weighted_cost(weight_of_label(weights, labels, axes), losses)",
        "return weight_of_label(weights, labels, axes) * losses",
        "an impossible label without weight costs NaN: 0 times infinity",
        ("policies",),
        "weightless_class",
    ),
    Mutant(
        "_labels.py",
        "return jnp.where(in_range(labels, weights.size)[..., 0], chosen, 0.0)",
        "return chosen",
        "every shard adds a class weight of its own to that of the label",
        ("class_axis",),
        "test_values and integer_loss",
    ),
    Mutant(
        "_likelihood.py",
        "is_label(labels, x.shape[-1]) | unknown",
        "is_label(labels, x.shape[-1])",
        "a label out of range gives NaN, but the gradient 0",
        ("policies",),
        "[negative_log_likelihood-plain",
    ),
    Mutant(
        "_likelihood.py",
        "weighted_surprisal(rows.zero_masked(weight), likelihood)",
        "weighted_surprisal(weight, likelihood)",
        "a masked example costs infinity, and the gradient of the class weights is NaN",
        ("policies",),
        "[cross_entropy_with_integer_labels-options-classes",
    ),
    Mutant(
        "_log_probabilities.py",
        "sum_of_products(t, zero_if_weightless(t, _log_excess(ell, t)))",
        "sum_of_products(t, _log_excess(ell, t))",
        "a class that neither distribution has costs NaN: 0 times infinity",
        ("policies",),
        "[kl_divergence-plain",
    ),
    Mutant(
        "_log_probabilities.py",
        "lambda ell, t: replaced_where(t == 0, _log_excess(ell, t), 0.0)",
        "lambda ell, t: jnp.where(t == 0, 0.0, _log_excess(ell, t))",
        "the second derivative for a target of 0 and its prediction is lost",
        ("no_nans_probability",),
        "zeros and generalized",
    ),
    Mutant(
        "_numerics.py",
        "log1p(-jnp.where(is_small, 0.5, others))",
        "log(jnp.where(is_small, 0.5, share))",
        "the derivative for gamma loses its bits for hard examples",
        ("extremes",),
        "focal and float32",
    ),
    Mutant(
        "_numerics.py",
        "-quotient(a, b) * quotient(b_dot, b)",
        "-a * b_dot / (b * b)",
        "the derivative of a quotient divides by a square that overflows or vanishes",
        ("second_derivatives",),
        "test_hessian and binary and float32",
    ),
    Mutant(
        "_numerics.py",
        "return x * (zero * infinity)",
        "return jnp.where(condition, zero * infinity, x)",
        "what is undefined has the value NaN, but the gradient 0",
        ("policies",),
        "[negative_log_likelihood-plain",
    ),
    Mutant(
        "_numerics.py",
        "jnp.where((weight == 0) & (cost == jnp.inf), 0.0, cost)",
        "jnp.where(weight == 0, 0.0, cost)",
        "NaN is lost under a weight of 0, and so is the gradient of that weight",
        ("policies",),
        "softmax_cross_entropy_with_integer_labels-options",
    ),
    Mutant(
        "_numerics.py",
        "> eps / 16",
        "> eps * 1024",
        "the series of a divergence ends too early",
        ("accuracy",),
        "[softmax_kl_divergence-plain",
    ),
    Mutant(
        "_numerics.py",
        "jnp.sum(upper, axis=-1) + jnp.sum(x - upper, axis=-1)",
        "jnp.sum(x, axis=-1)",
        "a sum of terms of both signs loses bits to cancellation",
        ("accuracy",),
        "[relative_entropy",
    ),
    Mutant(
        "_numerics.py",
        "jnp.sum(a * (b / unit), axis=-1) * unit",
        "jnp.sum(a * b, axis=-1)",
        "products of both signs that overflow add up to NaN",
        ("accuracy",),
        "[kl_divergence-any",
    ),
    Mutant(
        "_probabilities.py",
        "jnp.where((p == 0) & (q == 0), 1.0, q)",
        "jnp.where(p == 0, 1.0, q)",
        "a probability has no gradient where it is 0, and a negative prediction passes there",
        ("policies",),
        "[cross_entropy_with_integer_labels-options",
    ),
    Mutant(
        "_probabilities.py",
        "    (x,) = upcast(x)\n",
        "",
        "the two parts of a gradient are rounded to 16 bits before they are added",
        ("dtypes",),
        "rounded_once and entropy and not cross",
    ),
    Mutant(
        "_reduction.py",
        "weightless = (w == 0) & ~jnp.isfinite(values)",
        "weightless = w == 0",
        "a weight of 0 has no gradient",
        ("reduction",),
        "gradient",
    ),
    Mutant(
        "_reduction.py",
        "jnp.where(count == 0, 0.0, total / jnp.where(count == 0, 1.0, count))",
        "jnp.where(count == 0, 0.0, total / count)",
        "the mean of nothing has the gradient NaN",
        ("policies",),
        "nothing",
    ),
    Mutant(
        "_relative_entropy.py",
        "near = (p <= 2 * q) & (q <= 2 * p)",
        "near = (p <= q) & (q <= p)",
        "the terms of nearly equal probabilities cancel",
        ("accuracy",),
        "[relative_entropy",
    ),
    Mutant(
        "_relative_entropy.py",
        "replaced_where(p == 0, _log_of_share(p, q) / 2, -jnp.sign(q) / 2)",
        "replaced_where(p == 0, _log_of_share(p, q) / 2, 0.0)",
        "a class that one distribution has alone gives the other no gradient",
        ("accuracy",),
        "[jensen",
    ),
    Mutant(
        "_rows.py",
        "counted if self.counted is None else self.counted & counted",
        "counted",
        "labels() forgets the mask of `where` as soon as `ignore_index` is given",
        ("labels",),
        "masked_and_ignored",
    ),
    Mutant(
        "_mask.py",
        "            x = jnp.where(self.examples, x, uncounted)\n",
        "            pass\n",
        "NaN in a masked example reaches the gradient",
        ("labels",),
        "every_integer_loss_ignores",
    ),
    Mutant(
        "_rows.py",
        "return sum_classes(self.present, self.mesh_axes)",
        "return jnp.sum(self.present, axis=-1, keepdims=True)",
        "smoothing divides by the classes that count on one shard, not over the mesh axes",
        ("class_axis",),
        "test_values and integer_loss",
    ),
    Mutant(
        "_sharding.py",
        "return int(jax.lax.axis_size(axes)) if axes else 1",
        "return 1",
        "labels are judged by the classes of one shard",
        ("linear_mesh",),
        "judged",
    ),
    Mutant(
        "_sharding.py",
        "own.update(spec=whole) for own",
        "own for own",
        "arguments are brought to the sharding of one of them, and no more is joined",
        ("explicit_sharding",),
        "cotangents_have and softmax_cross_entropy",
    ),
    Mutant(
        "_sharding.py",
        "{*as_tuple(of_a)} & {*as_tuple(of_b)}",
        "False",
        "one mesh axis for two dimensions is left to JAX, whose error names no argument",
        ("explicit_sharding",),
        "refused",
    ),
    Mutant(
        "_sharding.py",
        " and not is_elsewhere",
        "",
        "outside of a context an array on one device is brought to a mesh, which JAX refuses",
        ("explicit_sharding",),
        "outside",
    ),
    Mutant(
        "_rows.py",
        "resharded(jnp.broadcast_to(array, self.examples), self.along())",
        "jnp.broadcast_to(array, self.examples)",
        "labels are not brought to the sharding of the examples",
        ("explicit_sharding",),
        "cotangents_have and integer_labels",
    ),
    Mutant(
        "_rows.py",
        "is_number = jnp.issubdtype(x.dtype, jnp.floating) or",
        "is_number = True or",
        "the spec of integer labels is taken for that of the classes",
        ("explicit_sharding",),
        "integer_labels or refused",
    ),
    Mutant(
        "_elements.py",
        "        x = resharded(x, explicit_sharding(self.like))\n",
        "",
        "logits of yes-or-no questions are not brought to the sharding of the labels",
        ("explicit_sharding",),
        "sigmoid",
    ),
    Mutant(
        "_top_k.py",
        "resharded(jnp.moveaxis(x, axis, -1), rows.along(None))",
        "jnp.moveaxis(x, axis, -1)",
        "a teacher's few classes stay where they are, and JAX does not sort them",
        ("explicit_sharding",),
        "cotangents_have and top_k",
    ),
    Mutant(
        "_linear/reduction.py",
        '    joint_sharding(w.ndim, given | {"weights": weights}, lambda *_: range(w.ndim))'
        "  # May refuse.\n",
        "",
        "weights of a head on other mesh axes are left to JAX, whose error names no argument",
        ("explicit_sharding",),
        "refused",
    ),
    Mutant(
        "_sigmoid.py",
        "jnp.where(z_q + z_p > 0, not_p - not_q, q - p)",
        "q - p",
        "the gradient is a difference of two sigmoids near 1",
        ("accuracy",),
        "[sigmoid_kl",
    ),
    Mutant(
        "_sigmoid.py",
        "return cotangent * to_q, ",
        "return cotangent.astype(logits.dtype) * to_q.astype(logits.dtype), ",
        "the gradient is rounded to 16 bits before a loss scale reaches it",
        ("dtypes",),
        "loss_scaling and sigmoid_kl",
    ),
    Mutant(
        "_sigmoid.py",
        "lambda z, a, b: zero_if_weightless(a, softplus(-z)),",
        "lambda z, a, b: softplus(-z),",
        "a label that agrees with an infinite logit has an infinite gradient",
        ("policies",),
        "[sigmoid_binary_cross_entropy-plain",
    ),
    Mutant(
        "_soft_cap.py",
        "lambda z, cap: _lag(_quotient(z, cap))",
        "lambda z, cap: _tanh(_quotient(z, cap))",
        "the derivative for the cap lacks that of the quotient",
        ("soft_cap",),
    ),
    Mutant(
        "_soft_cap.py",
        "return 4 * sigmoid(2 * u) * sigmoid(-2 * u)",
        "return 1 - tanh(u) ** 2",
        "the slope of the soft cap cancels for a large logit",
        ("soft_cap",),
    ),
    Mutant(
        "_softmax.py",
        "normalizer if rows.counted is None else jnp.where(rows.counted, normalizer, -jnp.inf)",
        "normalizer",
        "the normaliser of a masked example is not -inf",
        ("policies",),
        "[logsumexp-classes",
    ),
    Mutant(
        "_linear/__init__.py",
        "precision, checked_size(chunk_size))",
        "None, checked_size(chunk_size))",
        "the precision that is asked for does not reach the products",
        ("chunked_program",),
        "precision",
    ),
    Mutant(
        "_linear/__init__.py",
        "where=None if mask is None else jnp.broadcast_to(mask, z.shape)",
        "where=None",
        "a class that is masked shares in the smoothing",
        ("linear",),
        "in_pairs and mean",
    ),
    Mutant(
        "_linear/__init__.py",
        "return nan_where(is_negative, weight_of_label(weights, arrays[LABELS], self.axes))",
        "return None",
        "the mean of a head is not divided by its class weights",
        ("linear",),
        "options_alone or in_pairs",
    ),
    Mutant(
        "_linear/chunked.py",
        "has_aux)\n        plan",
        "False)\n        plan",
        "what a loss returns beside its losses is taken for losses",
        ("chunked_edges",),
        "contributes_nothing",
    ),
    Mutant(
        "_linear/chunks.py",
        "carry, last = remainder(carry, given, number * size)",
        "_, last = remainder(carry, given, number * size)",
        "the remainder of the last chunk is missing in the gradient of the kernel",
        ("chunked",),
        "every_loss",
    ),
    Mutant(
        "_linear/chunks.py",
        "number, rest = (examples + most - 1) // most, 0",
        "number, rest = jax.core.max_dim(examples // most, 1), 0",
        "an exported head loses the examples of the last chunk",
        ("symbolic_shapes",),
        "never_exist",
    ),
    Mutant(
        "_linear/chunks.py",
        "jax.checkpoint(partial(chunk, size=n), prevent_cse=False)",
        "partial(chunk, size=n)",
        "the gradient of a head without a reduction keeps the logits of every chunk",
        ("chunked_program",),
        "keep_no_logits",
    ),
    Mutant(
        "_linear/chunks.py",
        "rows[name] = jnp.where(is_counted, rows[name], 0)",
        "pass",
        "an example that stands for those that do not count has a gradient for each of them",
        ("chunked",),
        "two_heads",
    ),
    Mutant(
        "_linear/chunks.py",
        "return carry, jax.tree.map(partial(_zero_unless, is_counted), outs)",
        "return carry, outs",
        "an example that does not count has the loss of another one",
        ("chunked",),
        "trees_of_outputs and some",
    ),
    Mutant(
        "_linear/chunks.py",
        "        if not may_skip:\n",
        "        if may_skip:\n",
        "chunks of examples that do not count are computed",
        ("chunked_program",),
        "skipped",
    ),
    Mutant(
        "_linear/chunks.py",
        "back = jnp.argsort(order)",
        "back = order",
        "losses come back in the order of what counts",
        ("chunked",),
        "trees_of_outputs and some",
    ),
    Mutant(
        "_linear/closures.py",
        "if array.shape != (size,):",
        "if False:",
        "a loss that is not one of single examples is taken for one",
        ("chunked_edges",),
        "mistakes",
    ),
    Mutant(
        "_linear/closures.py",
        "        if known is x:\n",
        "        if known is not x:\n",
        "two arrays that a loss closes over are taken for each other",
        ("chunked",),
        "closes_over",
    ),
    Mutant(
        "_linear/logits.py",
        '        z = z * given["scale"].astype(z.dtype)\n',
        "        pass\n",
        "logits are not scaled",
        ("chunked",),
        "every_loss",
    ),
    Mutant(
        "_linear/logits.py",
        "        return product(*upcast(a, b))\n",
        "        return rounded(a, b)\n",
        "the gradient of the logits is rounded to 16 bits where a precision is asked for",
        ("linear",),
        "low_precision",
    ),
    Mutant(
        "_linear/logits.py",
        "changed[kernel] = jnp.where(mask[None, :], arrays[kernel], 0.0)",
        "pass",
        "NaN in the padding of a kernel reaches the gradients",
        ("rare_together",),
    ),
    Mutant(
        "_linear/mesh.py",
        "return jax.lax.psum(totals, _axes_in(spec)), each",
        "return jax.lax.pmean(totals, _axes_in(spec)), each",
        "the sum over a mesh is that of one shard",
        (
            "chunked_mesh",
            "linear_mesh",
        ),
        "weight_of_zero or more_dimensions",
    ),
    Mutant(
        "_linear/reduction.py",
        "weights = jnp.where(arrays[COUNTED], weights, 0.0)",
        "pass",
        "the mean of a head counts the ignored examples",
        ("linear",),
        "options_alone and None",
    ),
    Mutant(
        "_linear/reduction.py",
        "and axes - varying_axes(x)",
        "and False",
        "the gradient of what a loss closes over is summed over a mesh before its cotangent comes",
        ("chunked_mesh",),
        "global_arrays",
    ),
    Mutant(
        "_linear/reduction.py",
        "counted = (w != 0) | reduce(operator.and_, usable)",
        "counted = w != 0",
        "an example of weight 0 has no gradient for its weight",
        ("linear_mesh",),
        "weight_of_zero",
    ),
    Mutant(
        "_linear/rules.py",
        "totals[name] + gradients[name] for name",
        "totals[name] + upcast(gradients[name].astype(arrays[name].dtype))[0] for name",
        "the gradient of each chunk is rounded to 16 bits before it is added",
        ("linear",),
        "low_precision",
    ),
    Mutant(
        "_linear/rules.py",
        "{name: _times(cotangents[0], gradients[name]) for name in dtypes}",
        "{n: upcast(cotangents[0].astype(x.dtype) * gradients[n].astype(x.dtype))[0] "
        "for n, x in dtypes.items()}",
        "the gradients of a head are rounded to 16 bits before the loss scale reaches them",
        ("linear",),
        "loss_scale",
    ),
    Mutant(
        "_linear/rules.py",
        "losses + _zero_if_weightless(given[WEIGHTS], of_rest)",
        "losses + of_rest",
        "an impossible label of weight 0 gives its weight an infinite gradient",
        ("rare_together",),
    ),
    Mutant(
        "_linear/rules.py",
        "arrays[COUNTED] & (arrays[WEIGHTS] != 0)",
        "arrays[COUNTED]",
        "examples of weight 0 are computed",
        ("chunked_program",),
        "skipped",
    ),
    Mutant(
        "_selftest/choices.py",
        "int(number) < len(found)",
        "int(number) <= len(found)",
        "a device after the last one ends in a traceback",
        ("main",),
        "unknown_device or device_is_chosen",
    ),
    Mutant(
        "_selftest/choices.py",
        "if loss[0] in chosen",
        "if loss[0] not in chosen",
        "the numerics report measures all losses but the chosen ones",
        ("main",),
        "chosen",
    ),
    Mutant(
        "_selftest/errors.py",
        "jax.default_device(device):",
        "jax.default_device(None):",
        "the numerics report is about another device than the chosen one",
        ("main",),
        "device_is_chosen",
    ),
    Mutant(
        "_selftest/errors.py",
        "self.beyond += not part <= 1",
        "self.beyond += part > 1",
        "the numerics report does not count NaN as beyond its bound",
        ("main",),
        "broken_loss and float32",
    ),
    Mutant(
        "_selftest/exact.py",
        "lambda a, b: -a / (b * b)",
        "lambda a, b: -a / b",
        "the exact gradient of a quotient is another one",
        ("exact",),
        "exact_gradients",
    ),
    Mutant(
        "_selftest/heads.py",
        "return b @ a if transposed else a @ b",
        "return a @ b",
        "the exact gradient of a head's kernel is another one",
        ("exact",),
        "textbook and head",
    ),
    Mutant(
        "_selftest/heads.py",
        "OFFSET = 4096.0",
        "OFFSET = 4097.0",
        "heads that bfloat16 cannot hold are rounded by it",
        ("exact",),
        "logits_of_heads",
    ),
    Mutant(
        "_selftest/inputs.py",
        '"two log-probabilities": (log_q, log_p)',
        '"two log-probabilities": (log_q,)',
        "the numerics report gives one argument to a loss of two",
        ("exact",),
        "textbook and log_targets",
    ),
    Mutant(
        "_selftest/iris.py",
        '"versicolor", "virginica"',
        '"virginica", "versicolor"',
        "two species are taken for each other",
        ("main",),
        "fishers",
    ),
    Mutant(
        "_selftest/report.py",
        'zip(("value", "gradient"), line.errors["jxent"], strict=True)',
        'zip(("value",), line.errors["jxent"], strict=False)',
        "the numerics report does not look at gradients",
        ("main",),
        "broken_loss and float32",
    ),
    Mutant(
        "_selftest/report.py",
        "    if beyond:\n        return (",
        "    if beyond > 1e9:\n        return (",
        "the last line of the numerics report says that any device keeps the promise",
        ("main",),
        "last_line",
    ),
    Mutant(
        "_selftest/rows.py",
        "written[i] if i < len(written) else None",
        "None",
        "an error is relative to what is left of terms that cancel",
        ("accuracy",),
        "[log_softmax or [softmax_entropy",
    ),
    Mutant(
        "_selftest/sizes.py",
        "itself, others = own * (1 - p), p * _others(own)",
        "itself, others = own * (1 - p), 0 * own",
        "a gradient is larger than the terms that it is made of",
        ("accuracy",),
        "[softmax-plain",
    ),
    Mutant(
        "_selftest/table.py",
        "m.sum(p * (m.log(p) - log_q))",
        "m.sum(p * (m.log(p) - m.exp(log_q)))",
        "the formula of a loss is that of another one",
        ("accuracy",),
        "[kl_divergence-plain",
    ),
    Mutant(
        "_statistics/__init__.py",
        "at_infinity = jnp.where(logits == m, 0.0, -jnp.inf)",
        "at_infinity = jnp.zeros_like(logits)",
        "beside a logit of +inf the other labels cost nothing",
        ("policies",),
        "[softmax_cross_entropy_with_integer_labels-plain",
    ),
    Mutant(
        "_statistics/primitive.py",
        "    if counted is None:\n        return stats\n",
        "    return stats\n",
        "NaN in an example that is ignored reaches a gradient that all examples share",
        ("labels", "policies"),
        "ignored_labels_with_class_weights or (test_policy and options-classes)",
    ),
    Mutant(
        "_statistics/primitive.py",
        "of_this_shard(labels, logits.shape[-1], axes)",
        "labels",
        "each shard takes a label for the number of one of its own classes",
        ("class_axis",),
        "test_values and integer_loss",
    ),
    Mutant(
        "_statistics/dispatch.py",
        "return not automatic_axes(logits)",
        "return True",
        "classes that XLA has spread over devices are moved to cut them",
        ("sharded_automatically",),
        "stay_where_they_are",
    ),
    Mutant(
        "_computed_once.py",
        '_written, platform="cpu"',
        '_written, platform="cuda"',
        "a GPU writes logits to memory that it would compute again",
        ("computed_logits",),
        "affine-3",
    ),
    Mutant(
        "_rows.py",
        "computed_once(x) if absent is None else x",
        "x",
        "a CPU computes the logits again, with other rounding, for the logit of the label",
        ("computed_logits",),
        "affine-3",
    ),
    Mutant(
        "_focal.py",
        "upcast(computed_once(z), y)",
        "upcast(z, y)",
        "a CPU computes the logits of a poly loss again, with other rounding",
        ("computed_logits",),
        "poly-affine-3",
    ),
    Mutant(
        "_statistics/merging.py",
        '(sums.pop("maxima") - 1)',
        'jnp.minimum(sums.pop("maxima") - 1, 1.0)',
        "of three equal maxima in different slices one is not counted",
        ("row_sums",),
        "test_sums and cpu",
    ),
    Mutant(
        "_statistics/row_sums.py",
        'jnp.where(terms.pop("maxima"), -rest, rest)',
        'jnp.where(terms.pop("maxima"), rest, rest)',
        "on a CPU no slice is known to have the maximum",
        ("row_sums",),
        "test_sums and cpu",
    ),
    Mutant(
        "_statistics/merging.py",
        "others.append(jnp.where(is_top, -jnp.inf, kept))",
        "others.append(kept)",
        "on a CPU the maximum is not left out of its sum",
        ("row_sums",),
        "test_sums and cpu",
    ),
    Mutant(
        "_statistics/merging.py",
        '(sums.pop("heaviest") - 1) * tops["max_weight"]',
        'sums.pop("heaviest") * tops["max_weight"]',
        "the largest weight counts twice",
        ("row_sums",),
        "test_sums and cpu",
    ),
    Mutant(
        "_statistics/merging.py",
        "others.append(jax.lax.select(is_larger, a, b))",
        "others.append(b)",
        "of two classes in different slices the larger one is counted twice",
        ("row_sums",),
        "test_sums and cpu",
    ),
    Mutant(
        "_statistics/merging.py",
        "jnp.where(z == m, 0, m - z)",
        "m - z",
        "in slices the gap of an infinite logit to itself is NaN",
        ("row_sums",),
        "weighted_gap and (gpu or of_3)",
    ),
    Mutant(
        "_statistics/merging.py",
        "jnp.where(w == 0, 0, gap)",
        "gap",
        "in slices a class at -inf without weight costs NaN",
        ("row_sums",),
        "weighted_gap and (gpu or of_3)",
    ),
    Mutant(
        "_statistics/merging.py",
        "jnp.where(z == again, -jnp.inf, z)",
        "z",
        "beside an infinite logit the entropy's sum is not 0 on a GPU",
        ("row_sums",),
        "exp_gap_without_limit and gpu",
    ),
    Mutant(
        "_statistics/row_sums.py",
        "widened(mask.fill_logits(z), row.maximum.dtype)",
        "widened(z, row.maximum.dtype)",
        "on a GPU the logit of a label that does not count is not filled",
        ("row_sums",),
        "test_statistics and gpu",
    ),
    Mutant(
        "_dtypes.py",
        "bits << 16",
        "bits << 15",
        "on a GPU bfloat16 logits are others",
        ("row_sums",),
        "16_bit",
    ),
    Mutant(
        "_statistics/merging.py",
        "step = weight * jax.lax.select(is_nothing, zero, gap)",
        "step = weight * gap",
        "a class at -inf without weight costs NaN",
        ("row_sums",),
        "weighted_gap and tpu",
    ),
    Mutant(
        "_statistics/merging.py",
        "is_nothing &= gap == np.inf",
        "pass",
        "a shard whose weights are 0 has no derivative for them",
        ("row_sums",),
        "merged_shards",
    ),
    Mutant(
        "_statistics/primitive.py",
        '"weight_rest": _sum(w_dot)}',
        '"weight_rest": _sum(w_dot) * 0}',
        "in loops the largest weight's part has no derivative",
        ("row_sums",),
        "test_derivative",
    ),
    Mutant(
        "_statistics/primitive.py",
        "jnp.moveaxis(x, dim, 0)",
        "x",
        "a mapped dimension that is not the first is taken for the first",
        ("row_sums",),
        "test_mapped",
    ),
    Mutant(
        "_statistics/merging.py",
        "((m == jnp.inf) & (s != 0))",
        "(s != s)",
        "a second infinite logit is not seen",
        ("row_sums",),
        "without_limit and cpu",
    ),
    Mutant(
        "_statistics/one_pass.py",
        "(high_errors[name] + errors[name]) + lost",
        "(high_errors[name] + errors[name])",
        "the rounding errors of a long sum are lost",
        ("row_sums",),
        "test_sums and of_3",
    ),
    Mutant(
        "_statistics/slices.py",
        "place = labels - jnp.minimum(number * width, classes - width)",
        "place = labels - number * width",
        "the label's logit is sought beside its place in a slice that begins early",
        ("row_sums",),
        "16_bit",
    ),
    Mutant(
        "_statistics/one_pass.py",
        "(m_a >= m_b) | (m_a != m_a)",
        "m_a >= m_b",
        "NaN is lost in the maximum of a row that is summed in one pass",
        ("row_sums",),
        "nan_is_the_highest",
    ),
    Mutant(
        "_statistics/row_sums.py",
        "weight_rest=below + (ties - 1) * largest",
        "weight_rest=below + ties * largest",
        "the largest weight counts twice in the plain way",
        ("row_sums",),
        "test_sums and by_logsumexp",
    ),
    Mutant(
        "_statistics/slices.py",
        "np.arange(width) >= shared",
        "np.arange(width) >= 0",
        "classes that a slice shares with the one before count twice",
        ("row_sums",),
        "test_sums and (of_3 or cpu)",
    ),
    Mutant(
        "_statistics/slices.py",
        "number = number // 2",
        "number = number // 1",
        "a label beyond the first two slices is not found",
        ("row_sums",),
        "logit_of_the_label and of_3",
    ),
    Mutant(
        "_numerics.py",
        "partial(_power_of_two, dtype=np.float32)",
        "own",
        "a relative entropy in float64 does not compile for a TPU",
        ("tpu_float64",),
    ),
    Mutant(
        "_statistics/parts.py",
        "labels=mask.fill(weights.labels, 0.0, 0.0)",
        "labels=weights.labels",
        "NaN in a masked label reaches the gradient of the class weights",
        ("policies",),
        "softmax_cross_entropy-options",
    ),
    Mutant(
        "_statistics/parts.py",
        "offset.astype(dtype)",
        "0 * offset.astype(dtype)",
        "smoothing takes mass from the labels and gives it to no class",
        ("accuracy",),
        "softmax_cross_entropy-options",
    ),
    Mutant(
        "_statistics/parts.py",
        "start, start + width",
        "0, width",
        "every slice has the logits and weights of the first",
        ("row_sums",),
        "test_statistics or test_sums",
    ),
    Mutant(
        "_statistics/primitive.py",
        "_request(given, args[1:])",
        "_request(given, primals[1:])",
        "the parts of weights have no tangent",
        ("row_sums",),
        "tangents",
    ),
    Mutant(
        "_statistics/shards.py",
        "jnp.where(has_label, stats.label_logit, 0.0)",
        "stats.label_logit",
        "a shard without the label's class gives another logit for it",
        ("class_axis",),
        "test_values and integer_loss",
    ),
    Mutant(
        "_statistics/surprisals.py",
        "return jnp.where(dominant, rest, whole - x)",
        "return whole - x",
        "the gradient of a class that is nearly certain cancels",
        ("accuracy",),
        "softmax-plain",
    ),
    Mutant(
        "_statistics/surprisals.py",
        "    cotangent = jnp.where(z > -jnp.inf, cotangent, 0.0)\n",
        "",
        "classes at -inf pass their cotangent on to the others",
        ("accuracy",),
        "[log_softmax",
    ),
    Mutant(
        "_statistics/surprisals.py",
        "stats.weight_rest + (stats.max_weight - weights)",
        "(stats.weight_rest + stats.max_weight) - weights",
        "the weight of the other classes loses its bits beside a large one",
        ("accuracy",),
        "[softmax_cross_entropy-plain",
    ),
    Mutant(
        "_statistics/surprisals.py",
        "jnp.where(exists, surprisals, 0.0)",
        "surprisals",
        "a soft label has a gradient where the class does not exist",
        ("policies",),
        "[softmax_cross_entropy-plain",
    ),
    Mutant(
        "_statistics/surprisals.py",
        "        of_label = of_label * nan_if_out_of_range(z, labels, axes)\n",
        "",
        "a label out of range gives NaN, but a finite gradient",
        ("policies",),
        "[softmax_cross_entropy_with_integer_labels-plain",
    ),
    Mutant(
        "_statistics/surprisals.py",
        "return mask.fill(to_logits, 0.0, 0.0), None",
        "return to_logits, None",
        "a label on a class that is left out gives that class a gradient",
        ("policies",),
        "integer_labels and classes",
    ),
    Mutant(
        "_statistics/surprisals.py",
        "(raw.label_logit == -jnp.inf) & ~jnp.isnan(raw.sumexp_rest * nan_or_one)",
        "raw.label_logit == -jnp.inf",
        "NaN is lost beside an impossible label",
        ("policies",),
        "[softmax_cross_entropy_with_integer_labels-plain",
    ),
    Mutant(
        "_statistics/surprisals.py",
        "- w * complement(axes, z, stats)",
        "- w * (1 - p)",
        "the gradient of a label that is nearly certain cancels",
        ("accuracy",),
        "[softmax_cross_entropy-plain",
    ),
    Mutant(
        "_numerics.py",
        "log1p(jnp.where(near, change, 0.0))",
        "log(1 + jnp.where(near, change, 0.0))",
        "the logarithm of a share of a mixture cancels where the two agree",
        ("accuracy",),
        "jensen_shannon_divergence-options",
    ),
    Mutant(
        "_top_k.py",
        "t = jnp.where(near, close, _log_ratio(log_p_rest, log_q_rest))",
        "t = _log_ratio(log_p_rest, log_q_rest)",
        "what two distributions leave to other classes is not compared exactly",
        ("top_k",),
        "agree",
    ),
    Mutant(
        "_top_k.py",
        "(log_q_rest == -jnp.inf) & is_rounding",
        "(log_q_rest == -jnp.inf) & (log_p_rest == -jnp.inf)",
        "what rounding leaves of a teacher's probability costs infinity",
        ("top_k",),
        "rounded or all_classes",
    ),
    Mutant(
        "_top_k.py",
        "(log_q_rest == -jnp.inf) & is_rounding",
        "(q_rest == 0) & is_rounding",
        "a probability that underflows counts as none",
        ("top_k",),
        "underflows",
    ),
    Mutant(
        "_shares.py",
        "return mask._replace(classes=~named if mask.classes is None else mask.classes & ~named)",
        "return mask._replace(classes=~named)",
        "the classes that a teacher does not name count though the mask leaves them out",
        ("top_k",),
        "masks",
    ),
    Mutant(
        "_shares.py",
        "to_rest = jnp.where(others.maximum == -jnp.inf, 0.0, to_rest)",
        "",
        "what is left to classes that do not exist has a gradient",
        ("top_k",),
        "offset",
    ),
    Mutant(
        "_shares.py",
        "to_named -= probability((), named, row) * total",
        "to_named -= total",
        "the gradient of a named class has all of what the classes share",
        ("derivatives",),
        "top_k",
    ),
    Mutant(
        "_top_k.py",
        "undefined = jnp.any(~names",
        "undefined = jnp.any(False & ~names",
        "a class that is named twice counts once",
        ("top_k",),
        "policies",
    ),
    Mutant(
        "_focal.py",
        "exp(-gamma * jnp.abs(finite))",
        "jnp.where(gamma == 0, 1.0, 0.0)",
        "where 1 - p underflows a power of it, which need not be small, is lost",
        ("extremes",),
        "sigmoid_focal",
    ),
    Mutant(
        "_numerics.py",
        "* power_of_share(share, others, exponent) * _relative(dot, share)",
        "* power_of_share(share, others, exponent - 1) * dot",
        "a lower power overflows in the third derivative of a focal loss",
        ("extremes",),
        "third",
    ),
    Mutant(
        "_numerics.py",
        "power(share, exponent) * (1 + x * (1 + x / 2 * (1 + x / 3)))",
        "power(share, exponent)",
        "a large gamma multiplies the rounding error of 1 - p",
        ("extremes",),
        "sigmoid_focal",
    ),
    Mutant(
        "_numerics.py",
        "near = (t > -60) & (change > -0.5)",
        "near = t > -60",
        "a ratio that underflows meets a weight of 0, whose gradient is lost",
        ("extremes",),
        "weights_at_their_ends",
    ),
    Mutant(
        "_numerics.py",
        "of_own, of_other = log_of_share(own, other), log_of_share(other, own) - t",
        "of_own, of_other = log(own), log(other) - t",
        "the logarithm of a weight that is nearly 1 has lost the other weight",
        ("extremes",),
        "jensen",
    ),
    Mutant(
        "_numerics.py",
        "jnp.where(weight == 0, 0.0, weight * dot)",
        "weight * dot",
        "a label that smoothing of 1 replaces has the gradient NaN beside an infinite loss",
        ("pairs_of_conditions",),
        "smoothing_replaces",
    ),
    Mutant(
        "_divergence.py",
        "map(zero_if_weightless, weights, (from_p, from_q)) if weights else (from_p, from_q)",
        "(from_p, from_q)",
        "an infinite divergence without weight makes the Jensen-Shannon divergence NaN",
        ("extremes",),
        "jensen",
    ),
    Mutant(
        "_divergence.py",
        "jnp.where(jnp.isinf(x), 0.0, x) for x in (*ratios, from_p, from_q)",
        "jnp.where(x == -jnp.inf, 0.0, x) for x in (*ratios, from_p, from_q)",
        "an infinite divergence without weight makes the gradient NaN",
        ("extremes",),
        "jensen",
    ),
    Mutant(
        "_cross_entropy.py",
        "jnp.where((zeta == 0) & jnp.isinf(normalizer), 0.0, normalizer)",
        "normalizer",
        "a z-loss of 0 makes the loss of an infinite logit NaN",
        ("pairs_of_conditions",),
        "integer",
    ),
    Mutant(
        "_cross_entropy.py",
        "weighted_cost(weight, losses)",
        "weight * losses",
        "a label without weight whose class is left out costs NaN: 0 times infinity",
        ("pairs_of_conditions",),
        "integer",
    ),
    Mutant(
        "_log_probabilities.py",
        "near = (jnp.abs(t - 1) < 0.25) & (jnp.abs(ell) < 0.5)",
        "near = jnp.abs(t - 1) < 0",
        "near agreement the gradient of the generalized divergence cancels",
        ("extremes",),
        "agreement and generalized",
    ),
    Mutant(
        "_sigmoid.py",
        "jnp.where((slope == 0) & jnp.isinf(d), 0.0, d)",
        "d",
        "a difference of logits that overflows makes the gradient NaN where it is 0",
        ("extremes",),
        "divergence_and_entropy",
    ),
    Mutant(
        "_arguments.py",
        "numbers is not None and numbers.dtype != array.dtype",
        "isinstance(x, np.ndarray) and x.dtype != array.dtype",
        "a list of 64-bit integers is cut to 32 bits without a word",
        ("arguments",),
        "would_cut",
    ),
    Mutant(
        "_top_k.py",
        "return log_of_complement(jnp.minimum(normalizer, 0.0))",
        "return log1p(-exp(jnp.minimum(normalizer, 0.0)))",
        "what a nearly certain class leaves to the others cancels",
        ("top_k",),
        "nearly_certain",
    ),
    Mutant(
        "_top_k.py",
        "jnp.where(is_possible, beside + lost,",
        "jnp.where(is_possible, beside,",
        "far from agreement the rest of the teacher has lost bits beside larger logarithms",
        ("top_k",),
        "nearly_certain",
    ),
    Mutant(
        "_selftest/errors.py",
        "return math.ldexp(float(info.eps), exponent - 1)",
        "return math.ldexp(float(info.eps), exponent)",
        "the report allows gradients in 16 bits two units in the last place",
        ("main",),
        "last_place",
    ),
    Mutant(
        "_autodiff.py",
        "_mapped_alike(out, args) if of_aux else out\n\n    # A value",
        "out\n\n    # A value",
        "of two results of which vmap maps one the other has a tangent of another shape",
        ("compositions",),
        "weights",
    ),
    Mutant(
        "_pushforward.py",
        "ad.primitive_transposes[_refused] = _refuse",
        "ad.primitive_transposes[_refused] = lambda cotangent, x, *dots: [None] * (1 + len(dots))",
        "a bonus made of what came beside the losses has no gradient, without a word",
        ("chunked_aux",),
        "alone",
    ),
    Mutant(
        "_pushforward.py",
        "(_refused.bind(*args), dims[0])",
        "(_zero(*args), dims[0])",
        "under vmap a bonus has no gradient, without a word",
        ("chunked_aux",),
        "of_vmap or vmap",
    ),
    Mutant(
        "_linear/rules.py",
        "tuple(name != WEIGHTS for name in plan.names)",
        "tuple(True for name in plan.names)",
        "who differentiates the weights alone is refused what is no function of them",
        ("chunked_aux",),
        "weights",
    ),
    Mutant(
        "_linear/rules.py",
        "x + nothing.astype(x.dtype)",
        "x",
        "forward mode of a loss with a mask fails for an argument that it does not use",
        ("compositions",),
        "examples",
    ),
    Mutant(
        "_linear/rules.py",
        "arrays |= {COUNTED: arrays[COUNTED] & is_usable}",
        "pass",
        "on a mesh a loss of NaN without weight makes the gradients NaN",
        ("chunked_mesh",),
        "beside_a_closure",
    ),
    Mutant(
        "_linear/rules.py",
        "rest = given | {COUNTED: given[COUNTED] & (given[WEIGHTS] == 0)}",
        "rest = given",
        "the gradient of a weight is twice the loss",
        ("chunked",),
        "two_heads",
    ),
    Mutant(
        "_linear/chunks.py",
        "return _anywhere(jnp.any(conditions, axis=0)), False",
        "return _anywhere(jnp.all(conditions, axis=0)), False",
        "a chunk that one mapped example needs is skipped",
        ("compositions",),
        "examples",
    ),
    Mutant(
        "_linear/chunks.py",
        "rows[name] = jnp.where(count > 0, rows[name], harmless)",
        "pass",
        "NaN where nothing counts reaches a gradient that mapped examples share",
        ("compositions",),
        "examples",
    ),
    Mutant(
        "_linear/chunked.py",
        "if shape and shape == examples[: len(shape)]:",
        "if False:",
        "who gives a number for each sequence is told that it is the same for all examples",
        ("chunked_edges",),
        "mistakes",
    ),
    Mutant(
        "_linear/mesh.py",
        "_mapped if isinstance(plan.loss, Loss) else _remembered",
        "_remembered",
        "on a mesh a loss that closes over something else is taken for the one before",
        ("chunked_mesh",),
        "may_change",
    ),
    Mutant(
        "_linear/reduction.py",
        "nan_where(jnp.any(is_negative), ",
        "(",
        "a traced negative weight makes a mean of any size",
        ("linear_policies",),
        "negative",
    ),
    Mutant(
        "_linear/reduction.py",
        "        is_negative &= arrays[COUNTED]\n",
        "",
        "a negative weight makes the mean NaN though its example does not count",
        ("linear_policies",),
        "negative",
    ),
    Mutant(
        "_linear/__init__.py",
        "jnp.any((weights < 0) & mask)",
        "jnp.any(weights < 0)",
        "the class weight of a class that does not exist makes the mean NaN",
        ("linear_policies",),
        "negative",
    ),
    Mutant(
        "_linear/logits.py",
        "is_usable = mask | jnp.isfinite(arrays[weights])",
        "is_usable = mask | True",
        "NaN in the class weight of a masked class reaches the loss",
        ("rare_together",),
    ),
    Mutant(
        "_reduction.py",
        "nan_where(jnp.any(w < 0, axis=axes), jnp.sum(w, axis=axes))",
        "jnp.sum(w, axis=axes)",
        "a traced negative weight makes a mean of any size",
        ("reduction",),
        "negative",
    ),
]


def main(arguments=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", help="in the names of files or in the reasons")
    parser.add_argument("--likely-only", action="store_true", help="only the likely tests")
    parser.add_argument("--rows-only", action="store_true", help="only whether each row fits")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds for a run of pytest")
    options = parser.parse_args(arguments)
    chosen = [
        mutant
        for mutant in MUTANTS
        if not options.words or any(w in f"{mutant.file}: {mutant.why}" for w in options.words)
    ]
    start = time.perf_counter()
    if problems := _problems():
        print("\n".join(problems))
    if problems or options.rows_only:
        return bool(problems)
    with tempfile.TemporaryDirectory(prefix="mutants-") as directory:
        work = Path(directory)
        _copy_checkout(work / "unbroken")
        # Compiled programs are kept from one mutant to the next.
        (work / "compiled").mkdir()
        (work / "unbroken/.pytest_cache").symlink_to(work / "compiled")
        verdicts = []
        for mutant in chosen:
            verdicts.append(_verdict(mutant, work, options))
            print(_line(verdicts[-1]), flush=True)
        red = _red_without_a_mutant(verdicts, work, options)
    print("\n" + "\n".join(_table(verdicts)))
    survivors = sum(not verdict.fell for verdict in verdicts)
    print(f"\n{len(verdicts)} mutants, {survivors} without a test that falls")
    if red:
        print(f"These tests fail without a mutant as well, so they prove nothing:\n{red}")
    print(f"{time.perf_counter() - start:.0f} s")
    return 1 if survivors or red else 0


def _copy_checkout(to):
    """What git knows, and what it would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name, follow_symlinks=False)


def _problems():
    """Rows that cannot be applied, and files without a row."""
    package, found = ROOT / "jxent", []
    for mutant in MUTANTS:
        path = package / mutant.file
        number = path.read_text().count(mutant.expression) if path.exists() else 0
        if number != 1:
            found.append(
                f"{mutant.file} must have this exactly once, not {number} times:"
                f" {mutant.expression!r}"
            )
        found += [
            f"{mutant.file}: there is no test_{stem}.py below tests"
            for stem in mutant.likely
            if not _tests(ROOT, stem)
        ]
    files = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    without_code = {"_selftest/__init__.py"}
    missing = sorted(files - without_code - {mutant.file for mutant in MUTANTS})
    return found + [f"{file} has no mutant" for file in missing]


def _tests(checkout, stem):
    """The file of this name, in whichever folder of the tests it is."""
    return [str(p.relative_to(checkout)) for p in checkout.glob(f"tests/**/test_{stem}.py")]


def _verdict(mutant, work, options):
    start = time.perf_counter()
    checkout = work / "broken"
    shutil.copytree(work / "unbroken", checkout, symlinks=True)
    try:
        path = checkout / "jxent" / mutant.file
        path.write_text(path.read_text().replace(mutant.expression, mutant.replacement))
        likely = [path for stem in mutant.likely for path in _tests(checkout, stem)]
        likely += ["-k", mutant.keyword] if mutant.keyword else []
        status, result = _pytest(likely + QUICK, checkout, options.timeout)
        if status in (PASSED, NOTHING_RAN) and not options.likely_only:
            status, result = _pytest(QUICK, checkout, options.timeout)
            result = "SURVIVED" if status == PASSED else result
        elif status == PASSED:
            result = "SURVIVED the likely tests"
        elif status == NOTHING_RAN:
            result = "SURVIVED, for there is no likely test of that name"
    finally:
        shutil.rmtree(checkout)
    return Verdict(mutant, result, status == FAILED, time.perf_counter() - start)


def _pytest(arguments, checkout, timeout):
    """The exit status, and the test that failed, or what went wrong."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    where = [sys.executable, "-c", "import jxent; print(*jxent.__path__)"]
    run = {"cwd": checkout, "env": environment, "capture_output": True, "text": True}
    path = subprocess.run(where, **run).stdout.strip()
    if path != str(checkout / "jxent"):
        return None, f"the package is imported from {path or 'nowhere'}, not from the copy"
    try:
        done = subprocess.run([*PYTEST, *arguments], timeout=timeout, **run)
    except subprocess.TimeoutExpired:
        return None, f"no end after {timeout:.0f} s"
    names = re.findall(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode == FAILED and names:
        return FAILED, names[0]
    said = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode, f"pytest ended with {done.returncode}: {said[-1] if said else ''}"


def _red_without_a_mutant(verdicts, work, options):
    """The first test that fails although nothing is broken, or nothing."""
    tests = sorted({verdict.result for verdict in verdicts if verdict.fell})
    if not tests:
        return ""
    status, result = _pytest(tests, work / "unbroken", options.timeout)
    return "" if status == PASSED else result


def _line(verdict):
    mutant, result, _, seconds = verdict
    return f"{seconds:5.0f} s  {mutant.file}: {mutant.why}\n         {result}"


def _table(verdicts):
    rows = [("file", "why it is wrong", "falls in", "s")]
    rows += [(v.mutant.file, v.mutant.why, v.result, f"{v.seconds:.0f}") for v in verdicts]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


if __name__ == "__main__":
    sys.exit(main())
