"""Deliberate breaks of the package, for each of which a test must fail.

``python tests/mutants.py`` breaks copies of the checkout, each in one place, as many at a time as
there are cores. It runs the tests that most likely notice, then, if these pass, the whole quick
tier, up to the first failure. At the end it runs the tests that failed on an unbroken copy, where
they must pass, prints a table, and exits with status 1 if a mutant survived. It takes three minutes
on two cores, longer if one survives.

``python tests/mutants.py surprisals NaN`` takes only the mutants with one of these words in the
name of the definition or in the reason; ``--likely-only`` runs no further than the likely tests,
and ``--rows-only`` runs none: it checks in a second whether each row still fits the package.

There is one row for each rule or policy. It names a definition and says what is replaced in it:

- The definition is a function, a class, or a name that is assigned or imported at the top of a
  file; a method is ``Class.method``, and a bare call goes by the name of the function. The row does
  not say in which file it is.
- What is replaced is an expression, a statement or a keyword argument. It is compared as Python
  parses it, so layout, comments and quotes do not matter. It must occur once in all that has the
  name, unless the row says which occurrence is meant.
- The replacement of an expression needs no parentheses; that of a statement may be ``pass``.
- The likely tests are one file, wherever it is below ``tests/``, and the narrowest ``-k`` that
  suffices.

Take the shortest expression that is unique, and rather mathematics than plumbing: it survives when
the package is laid out anew. A new rule in the package deserves a new row here.
"""

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jxent"
PYTEST = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
QUICK = ["-m", "not notebooks"]
PASSED, FAILED, NOTHING_RAN = 0, 1, 5
"""The exit statuses of pytest after which a mutant has a verdict."""


class Mutant(NamedTuple):
    """A break, and the tests that most likely notice it."""

    name: str
    """of the definition that it is in"""
    pattern: str
    """the expression, the statement, or the keyword argument that is replaced"""
    replacement: str
    why: str
    """what is wrong then"""
    test: str
    """the file of the likely tests, without ``test_`` and ``.py``"""
    keyword: str = ""
    """pytest's ``-k`` for them"""
    occurrence: int | None = None
    """which one it is, from 1, if there are several"""


class Place(NamedTuple):
    """Where a mutant is."""

    path: Path
    node: ast.expr | ast.stmt | ast.keyword


class Verdict(NamedTuple):
    """What became of a mutant."""

    mutant: Mutant
    result: str
    """the test that fell, or why there is none"""
    fell: bool
    seconds: float


# fmt: off
MUTANTS = [
    # One mechanism of differentiation.
    Mutant("in_every_mode", "value_with_rule(out, *args)", "out",
        "the value loses the gradient rule when it is differentiated for the second time",
        "second_derivatives", "came_with_a_gradient_twice"),
    Mutant("_written_out", "partial(jax.checkpoint, prevent_cse=False)", "lambda f: f",
        "linearisation stores arrays as large as the logits beside them",
        "transformations", "linearisation and softmax_entropy"),
    Mutant("loss_with_partials",
        "tuple(cotangent * to_argument(*given) for to_argument in partials)",
        "tuple(cotangent.astype(x.dtype) * f(*given).astype(x.dtype)"
        " for f, x in zip(partials, args, strict=True))",
        "gradients are rounded to 16 bits before the loss scale reaches them",
        "dtypes", "loss_scaling and generalized"),
    Mutant("varying_over", 'jax.lax.pcast(x, missing, to="varying") if missing else x', "x",
        "in a shard_map a cotangent varies over other mesh axes than its argument",
        "class_axis", "replicated_and_sharded"),
    Mutant("ad.primitive_transposes[_refused]", "_refuse",
        "lambda cotangent, x, *dots: [None] * (1 + len(dots))",
        "a bonus made of what came beside the losses has no gradient, without a word",
        "chunked_aux", "alone"),
    # Softmax and its cross-entropies: what must not cancel.
    Mutant("Row.sum_of_others", "jnp.where(dominant, rest, whole - x)", "whole - x",
        "the gradient of a class that is nearly certain cancels", "accuracy", "[softmax-plain"),
    Mutant("_entropy_bwd", "row.surprisal() - row.entropy()", "row.surprisal()",
        "the gradient of the entropy lacks that of the normaliser",
        "accuracy", "[softmax_entropy-plain"),
    Mutant("_surprisals_bwd", "of_label * not_p_y", "of_label * (1 - p_y)",
        "the gradient of an integer label that is nearly certain cancels",
        "accuracy", "[softmax_cross_entropy_with_integer_labels-plain"),
    Mutant("_surprisals_bwd", "row.complement()", "1 - p",
        "the gradient of a soft label that is nearly certain cancels",
        "accuracy", "[softmax_cross_entropy-plain"),
    # Their policies.
    Mutant("without_limit_nan", "(m == jnp.inf) & (s != 0)", "False",
        "a second infinite logit is not seen", "row_sums", "without_limit and cpu"),
    Mutant("surprisals", "~jnp.isnan(raw.sumexp_rest * nan_or_one)", "True",
        "NaN is lost beside an impossible label",
        "policies", "[softmax_cross_entropy_with_integer_labels-plain"),
    Mutant("_surprisals_bwd", "of_label * nan_if_out_of_range(row.z, labels, axes)", "of_label",
        "a label out of range gives NaN, but a finite gradient",
        "policies", "[softmax_cross_entropy_with_integer_labels-plain"),
    Mutant("_surprisals_bwd", "mask.fill(to_logits, 0.0, 0.0)", "to_logits",
        "a label on a class that is left out gives that class a gradient",
        "policies", "[softmax_cross_entropy_with_integer_labels-classes"),
    Mutant("Row.surprisal", "jnp.where(self.exists, -self.log_probability(), 0.0)",
        "-self.log_probability()",
        "a soft label has a gradient where the class does not exist",
        "policies", "[softmax_cross_entropy-plain"),
    Mutant("Row.pull_surprisals", "jnp.where(self.z > -jnp.inf, c, 0.0)", "c",
        "classes at -inf pass their cotangent on to the others", "accuracy", "[log_softmax"),
    # The options of the cross-entropies.
    Mutant("_uniform_probability", "divide(1.0, jnp.maximum(number, 1).astype(dtype))",
        "divide(1.0, jnp.full_like(number, rows.mask.classes.shape[-1], dtype))"
        " if rows.mask.classes is not None else divide(1.0, number)",
        "smoothing gives the mass of masked classes to none",
        "policies", "[softmax_cross_entropy-options-classes"),
    Mutant("as_array", "mask.fill(weights.labels, 0.0, 0.0)", "weights.labels",
        "NaN in a masked label reaches the gradient of the class weights",
        "policies", "[softmax_cross_entropy-options-classes"),
    Mutant("softmax_cross_entropy_with_integer_labels", "weighted_cost(weight, of_row.of_label)",
        "weight * of_row.of_label",
        "a label without weight whose class is left out costs NaN: 0 times infinity",
        "pairs_of_conditions", "integer and 5-int32"),
    Mutant("surprisals",
        "is_impossible &= ~jnp.expand_dims(is_weightless, range(is_weightless.ndim, m.ndim))",
        "pass",
        "a row without a limit costs a number where its impossible label has no weight",
        "pairs_of_conditions", "integer and 1-int32"),
    Mutant("_z_terms", "jnp.where((zeta == 0) & jnp.isinf(normalizer), 0.0, normalizer)",
        "normalizer",
        "a z-loss of 0 makes the loss of an infinite logit NaN",
        "pairs_of_conditions", "integer and 5-int32"),
    # Divergences.
    Mutant("_anchored_difference", "(difference - anchor) + (error - anchor_error)",
        "difference - anchor",
        "the divergence of nearly equal distributions loses bits beside a shift",
        "accuracy", "[softmax_kl_divergence-plain"),
    Mutant("_softmax_kl_bwd", "divergence[..., None] - t", "-t",
        "the derivative for the target lacks that of its normaliser",
        "accuracy", "[softmax_kl_divergence-plain"),
    Mutant("_softmax_kl_bwd", "weighted_cost(p, divergence[..., None] - t)",
        "p * (divergence[..., None] - t)",
        "a class without probability has the gradient NaN",
        "extremes", "lowest_number"),
    Mutant("_softmax_js", "jnp.where(x == 0, -jnp.inf, t)", "t",
        "beside a class without probability the second derivative for the weight is NaN",
        "extremes", "weights_at_their_ends"),
    Mutant("_softmax_js_bwd", "weighted(factor, cost)", "factor * cost",
        "where a weight is 0 the derivative of its gradients is NaN",
        "extremes", "weights_at_their_ends"),
    Mutant("weighted_mixture_ratio", "log1p(jnp.where(near, change, 0.0))",
        "log(1 + jnp.where(near, change, 0.0))",
        "the logarithm of a share of a mixture cancels where the two agree",
        "accuracy", "[softmax_jensen_shannon_divergence-options-0"),
    Mutant("_sigmoid_kl_bwd", "jnp.where(z_q + z_p > 0, not_p - not_q, q - p)", "q - p",
        "the gradient is a difference of two sigmoids near 1", "accuracy", "[sigmoid_kl"),
    Mutant("_generalized_kl", "replaced_where(t == 0, _log_excess(ell, t), 0.0)",
        "jnp.where(t == 0, 0.0, _log_excess(ell, t))",
        "the second derivative for a target of 0 and its prediction is lost",
        "no_nans", "zeros and generalized"),
    Mutant("_relative_entropy", "(p <= 2 * q) & (q <= 2 * p)", "(p <= q) & (q <= p)",
        "the terms of nearly equal probabilities cancel", "accuracy", "[relative_entropy-plain"),
    Mutant("_jensen_shannon_to_p",
        "replaced_where(p == 0, 0.5 * _log_of_share(p, q), -0.5 * jnp.sign(q))",
        "replaced_where(p == 0, 0.5 * _log_of_share(p, q), 0.0)",
        "a class that one distribution has alone gives the other no gradient",
        "accuracy", "[jensen_shannon_divergence-plain"),
    # Losses of probabilities.
    Mutant("_surprisal", "jnp.where((p == 0) & (q == 0), 1.0, q)", "jnp.where(p == 0, 1.0, q)",
        "a probability has no gradient where it is 0, and a negative prediction passes there",
        "policies", "[cross_entropy_with_integer_labels-options"),
    Mutant("_at_known_label", "is_label(labels, x.shape[-1]) | unknown",
        "is_label(labels, x.shape[-1])",
        "a label out of range gives NaN, but the gradient 0",
        "policies", "[negative_log_likelihood-plain"),
    # Yes-or-no questions, focal losses and PolyLoss.
    Mutant("binary_loss", "zero_if_weightless(a, softplus(-z))", "softplus(-z)",
        "a label that agrees with an infinite logit has an infinite gradient",
        "policies", "[sigmoid_binary_cross_entropy-plain"),
    Mutant("checked_probabilities", "(x >= 0) & (x <= 1)", "x >= 0",
        "a binary label above 1 rewards a mistake",
        "labels", "a_binary_label_that_is_none and sigmoid_binary"),
    Mutant("checked_probabilities", "elements.fill_elements(x, 0.5)", "x",
        "a masked label of 255 makes the gradient NaN",
        "labels", "test_masked_elements and [sigmoid_binary"),
    Mutant("binary_weights", "weighted(1 - epsilon, negative) + 0.5 * epsilon", "1 - positive",
        "a little smoothing of a positive label is rounded away",
        "accuracy", "[sigmoid_binary_cross_entropy-options"),
    Mutant("_binary_focal_to_logits", "finite(z)", "z",
        "the gradient is NaN at an infinite loss: 0 times infinity",
        "policies", "[sigmoid_focal_loss-plain"),
    Mutant("_binary_focal_to_logits", "jnp.minimum(finite_binary_loss(z, a, b), LARGEST)",
        "finite_binary_loss(z, a, b)",
        "gamma times the largest loss overflows in a second derivative",
        "extremes", "focal_losses_of_the_largest"),
    Mutant("_binary_focal_to_weight",
        "_power_slope(finite_binary_loss(near, a, b), missed, right, gamma)",
        "gamma * power_of_share(missed, right, gamma) *"
        " _ratio(finite_binary_loss(near, a, b), missed, 1.0)",
        "a second derivative for labels overflows beside a power that would make it small",
        "extremes", "nearly_underflows"),
    # Top k.
    Mutant("_log_ratio_of_rest", "jnp.where(near, close, _log_ratio(log_p_rest, log_q_rest))",
        "_log_ratio(log_p_rest, log_q_rest)",
        "what two distributions leave to other classes is not compared exactly", "top_k", "agree"),
    Mutant("_log_ratio_of_rest", "log_p_rest <= log(rounding * (1 + _nats(log_p)))",
        "log_p_rest == -jnp.inf",
        "what rounding leaves of a teacher's probability costs infinity", "top_k", "rounded"),
    Mutant("softmax_kl_divergence_with_top_k_targets", "excess > 2**-7 * (1 + _nats(log_p))",
        "excess > jnp.inf",
        "a teacher's logits are taken for its log-probabilities", "top_k", "policies"),
    Mutant("at_label", "psum_classes(jnp.where(is_here, at_label(x, labels), 0.0), axes)",
        "psum_classes(at_label(x, labels), axes)",
        "a class on another shard has the logit of some class here",
        "class_axis", "values_and_gradients and top_k"),
    Mutant("_softmax_js", "psum_classes(x, row_q.mesh_axes)",
        "x + 0 * psum_classes(x, row_q.mesh_axes)",
        "a divergence of spread classes is that of some shards",
        "class_axis", "values_and_gradients and mixture"),
    Mutant("_missed", "sum_classes(labels * row.complement(), row.mesh_axes)",
        "jnp.sum(labels * row.complement(), axis=-1, keepdims=True)",
        "what PolyLoss misses on other shards is not counted",
        "class_axis", "values_and_gradients and poly"),
    Mutant("_sampled_kl", "exp(close) * excess(-close)", "expm1(close) - close",
        "the divergence of samples that nearly agree is 0 or negative",
        "accuracy", "[sampled_kl_divergence-plain"),
    Mutant("difference",
        "with_partials(lambda a, b: jnp.ones_like(a), lambda a, b: -jnp.ones_like(b))",
        "(lambda f: f)",
        "where two logits agree the second derivative is 0",
        "second_derivatives", "equal and sigmoid"),
    Mutant("_nan_if_undefined", "~_at_label(of_p).exists & ~_at_label(of_q).exists", "False",
        "the ratio of two probabilities that are 0 is 1",
        "policies", "softmax_log_ratio_with_integer_labels"),
    Mutant("_label_log_ratio_bwd", "mask.fill(cotangent * to_logits, 0.0, 0.0)",
        "cotangent * to_logits",
        "a class that is left out has the gradient NaN of an impossible label",
        "policies", "softmax_log_ratio_with_integer_labels"),
    Mutant("_label_log_ratio_bwd",
        "cotangent[..., None] * _nan_if_undefined(row_q, labels, *known[:2])",
        "cotangent[..., None]",
        "the ratio to a softmax without a limit is NaN, but has a gradient",
        "policies", "softmax_log_ratio_with_integer_labels"),
    Mutant("_log_shares_bwd", "Row(named, row).probability() * total", "total",
        "the gradient of a named class has all of what the classes share",
        "accuracy", "[softmax_kl_divergence_with_top_k"),
    # Exact expressions.
    Mutant("excess", "small**2 * series", "small * exp(small) - expm1(small)",
        "the terms of a divergence of nearly equal distributions cancel",
        "accuracy", "[softmax_kl_divergence-plain"),
    Mutant("log_quotient", "jnp.where(close, plain_log1p(of_change), log(of_ratio))",
        "log(jnp.where(close, ratio, of_ratio))",
        "the logarithm of a quotient near 1 has lost the bits that rounding took from it",
        "accuracy", "[jensen_shannon_divergence-plain"),
    Mutant("log_of_complement", "log(-expm1(jnp.where(near, x, -1.0)))",
        "log1p(-exp(jnp.where(near, x, -1.0)))",
        "what a nearly certain class leaves to the others cancels", "top_k", "nearly_certain"),
    Mutant("_OF_QUOTIENT", "-divide(a, b) * divide(dot, b)", "-a * dot / (b * b)",
        "the derivative of a quotient divides by a square that overflows or vanishes",
        "second_derivatives", "test_hessian and binary"),
    Mutant("power_of_share", "power(share, exponent) * (1 + x * (1 + 0.5 * x * (1 + (1 / 3) * x)))",
        "power(share, exponent)",
        "a large gamma multiplies the rounding error of 1 - p",
        "extremes", "values_and_gradients and sigmoid_focal"),
    Mutant("zero_if_weightless", "(weight == 0) & (cost == jnp.inf)", "weight == 0",
        "NaN is lost under a weight of 0, and so is the gradient of that weight",
        "policies", "[softmax_cross_entropy_with_integer_labels-options"),
    Mutant("sech2", "4 * sigmoid(2 * u) * sigmoid(-2 * u)", "1 - tanh(u) ** 2",
        "the slope of the soft cap cancels for a large logit", "soft_cap", "two_orders"),
    Mutant("exp", "jax.lax.exp(x, accuracy=HIGHEST)", "jax.lax.exp(x)",
        "exponentials are approximations on a TPU", "elementary", "asked_for"),
    Mutant("_inverse_on_tpu", "r * jnp.where(factor < 2, factor, 1.0)", "r",
        "a division is an approximation on a TPU", "tpu_arithmetic", "jensen"),
    Mutant("_plain_log1p_on_tpu", "y - d * (1 - 0.5 * d)", "y",
        "a logarithm is an approximation on a TPU", "tpu_arithmetic", "softmax_cross"),
    Mutant("_tanh_on_tpu", "divide(change, 2 + change)", "jax.lax.tanh(jnp.abs(x))",
        "a hyperbolic tangent is an approximation on a TPU", "tpu_arithmetic", "soft_cap"),
    # Dtypes.
    Mutant("computing_dtype", "any(x is not None and x.dtype == np.float64 for x in arrays)",
        "all(x is None or x.dtype == np.float64 for x in arrays)",
        "float64 beside float32 is computed in float32",
        "dtypes", "one_argument_in_float64 and [softmax_cross_entropy-"),
    Mutant("broadcast", "x.astype(computing_dtype(x, like))", "x",
        "the gradient of what is shared by all examples is summed in 16 bits",
        "dtypes", "rounded_once and sigmoid_binary"),
    Mutant("widened", "jax.lax.reduce_precision(x.astype(np.float32), **bits)",
        "x.astype(np.float32)",
        "logits made in 16 bits are rounded for some of their readers",
        "dtypes", "same_program and sigmoid_binary"),
    # JAX 0.10 computes these logits once without being told to: there it survives.
    Mutant("_lowered_for", "platform == here", "False",
        "a CPU computes logits again, with other rounding, for the logit of the label",
        "computed_logits", "integer-affine-3"),
    # Arguments, masks and labels.
    Mutant("kl_divergence", "from ._log_probabilities import kl_divergence as kl_divergence",
        "from ._log_probabilities import generalized_kl_divergence as kl_divergence",
        "a public name stands for another function", "accuracy", "[kl_divergence-plain"),
    Mutant("groups",
        '(inspect.isfunction(function) or inspect.isclass(function)) and not name.startswith("_")',
        "inspect.isfunction(function) or inspect.isclass(function)",
        "help lists what is not public", "public", "help"),
    Mutant("scalar", "contains(number) and contains(rounded)", "contains(number)",
        "a cap of 1e-300 passes as positive, and is 0 in float32",
        "options", "out_of_range and linear and logit_softcap"),
    Mutant("Rows.labels", "array.shape not in ((), self.examples)", "False",
        "labels of another shape are silently broadcast",
        "arguments", "mistake and softmax_cross_entropy_with_integer_labels"),
    Mutant("Rows.distributions", "is_shared and not jnp.issubdtype(array.dtype, jnp.floating)",
        "False",
        "class numbers by mistake are a distribution for every example",
        "labels", "class_numbers and [softmax_cross"),
    Mutant("Mask.fill", "jnp.where(self.examples[..., None], x, uncounted)", "x",
        "NaN in a masked example reaches the gradient",
        "policies", "[softmax_cross_entropy_with_integer_labels-ignoring"),
    Mutant("Rows.labels", "counted if others is None else others & counted", "counted",
        "labels() forgets the mask of `where` as soon as `ignore_index` is given",
        "policies", "[softmax_cross_entropy_with_integer_labels-examples"),
    Mutant("_only_of", "counted is None", "True",
        "NaN in an example that is ignored reaches a gradient that all examples share",
        "labels", "ignored_labels_with_class_weights"),
    # Means.
    Mutant("weighted_mean", "nan_where(jnp.any(w < 0, axis=axes), jnp.sum(w, axis=axes))",
        "jnp.sum(w, axis=axes)",
        "a traced negative weight makes a mean of any size", "reduction", "negative"),
    Mutant("weighted_mean", 'summed_over("axis_name", axis_name, x)', "x",
        "a mean over devices is that of one device", "reduction", "over_devices"),
    Mutant("label_weights", "nan_where(~in_range(y, classes)[..., 0], weights)", "weights",
        "a label out of range has the weight 0", "reduction", "label_weights"),
    Mutant("Rows.of", "mask.shape == x.shape or any(mask.shape[i] != 1 for i in axes)",
        "mask.shape == x.shape",
        "a mask of classes for all examples is one of examples", "policies", "repeated"),
    Mutant("mean", "divide(total, jnp.where(count == 0, 1.0, count))", "divide(total, count)",
        "the mean of nothing has the gradient NaN", "policies", "mean_of_nothing"),
    # Sums of rows, as each platform makes them.
    Mutant("finish_sums", 'sums.pop("maxima") - 1', 'jnp.minimum(sums.pop("maxima") - 1, 1.0)',
        "of three equal maxima in different slices one is not counted",
        "row_sums", "test_sums and cpu"),
    Mutant("merge_slices", "jnp.where(z == again, -jnp.inf, z)", "z",
        "beside an infinite logit the entropy's sum is not 0 on a GPU",
        "row_sums", "exp_gap_without_limit and gpu"),
    Mutant("_merge_two", "(high_errors[name] + errors[name]) + lost",
        "high_errors[name] + errors[name]",
        "the rounding errors of a long sum are lost in one pass", "row_sums", "test_sums and of_3"),
    Mutant("rescaled_to", "jax.lax.select(is_nothing, zero, gap)", "gap",
        "a class at -inf without weight costs NaN", "row_sums", "weighted_gap and tpu"),
    Mutant("slices", "np.arange(width) >= np.expand_dims(shared, -1)", "np.arange(width) >= 0",
        "classes that a slice shares with the one before count twice",
        "row_sums", "test_sums and cpu"),
    Mutant("slices", "starts[-1][:-1] + width", "0 * starts[-1][:-1]",
        "a class that two blocks share counts twice", "row_sums", "test_sums and blocks_of_7"),
    Mutant("_tangents", "_row_sum(w_dot)", "0 * _row_sum(w_dot)",
        "in loops the largest weight's part has no derivative",
        "row_sums", "test_derivative and jacfwd"),
    Mutant("_batched", "jnp.moveaxis(x, dim, 0)", "x",
        "a mapped dimension that is not the first is taken for the first",
        "row_sums", "test_mapped"),
    # Arrays that are spread over a mesh.
    Mutant("has_whole_rows", "not automatic_axes(logits)", "True",
        "classes that XLA has spread over devices are moved to cut them",
        "sharding", "stay_where_they_are"),
    Mutant("joint_sharding", "own.update(spec=whole)", "own",
        "arguments are brought to the sharding of one of them, and no more is joined",
        "sharding", "cotangents_have and [softmax_cross_entropy-"),
    Mutant("weight_of_label", "jnp.where(in_range(labels, weights.size)[..., 0], chosen, 0.0)",
        "chosen",
        "every shard adds a class weight of its own to that of the label",
        "class_axis", "test_values and integer_loss"),
    # Heads whose logits never exist whole.
    Mutant("_over_those_that_count", "(examples + size - 1) // size",
        "jax.core.max_dim(examples // size, 1)",
        "an exported head loses the examples of the last chunk", "symbolic_shapes", "never_exist"),
    Mutant("_in_chunks", "jax.checkpoint(chunk, prevent_cse=False)", "chunk",
        "the gradient of a head without a reduction keeps the logits of every chunk",
        "chunked_program", "keep_no_logits and all"),
    Mutant("_over_all", "start + jnp.arange(size) < examples", "jnp.ones(size, bool)",
        "the last example counts again in the rest of the last chunk",
        "head_values", "not_full"),
    Mutant("with_chunk_size", "-(-examples // (number * tile)) * tile", "size",
        "the last chunk may be nearly empty", "chunked_program", "default_chunks"),
    Mutant("weighed", "weigh(arrays.get(WEIGHTS), outs[0])", "outs[0]",
        "a mapped total forgets its weights", "head_transformed", "mapped_examples"),
    Mutant("_as_more_examples", "size == 0", "False",
        "jax.vmap over no examples at all fails", "head_transformed", "nothing_is_mapped"),
    Mutant("of_examples", "with_vmap_rule(function, rule, *values)", "function(*values)",
        "mapped heads have whole logits", "head_transformed", "memory_of_mapped"),
    Mutant("_laid_out", "devices > 1", "False",
        "sharded examples are computed on every device", "head_partitioned", "no_more"),
    Mutant("over_chunks", "gathered(x)", "x",
        "a kernel whose features are spread is gathered in each chunk",
        "head_partitioned", "no_more"),
    Mutant("_cotangents", "jnp.sum(x, axis=range(plan.groups))", "x[0]",
        "the kernel's gradient is that of one group", "head_partitioned", "any_layout"),
    Mutant("_zero_weightless", "arrays[WEIGHTS] != 0", "arrays[WEIGHTS] == arrays[WEIGHTS]",
        "where totals are mapped an example of weight 0 has an aux",
        "head_policies", "the_gradient_of_a_weight_of_zero"),
    Mutant("total_of", "of_all(_without_weightless(arrays))", "of_all(arrays)",
        "examples of weight 0 are computed", "chunked_program", "skipped"),
    Mutant("differentiated_whole", "restrict_to_perturbed(loop, primals, tangents)",
        "restrict_to_perturbed(value or loop, primals, tangents)",
        "gradients do not change with a weight of 0", "head_policies", "as_functions_of_weights"),
    Mutant("_count", "weigh(weights, of_labels)", "weights * of_labels.astype(weights.dtype)",
        "an impossible count without weight makes the mean NaN",
        "head_policies", "what_a_weight_of_zero"),
    Mutant("values_of", "name.kind == 'inputs'", "False",
        "a frozen kernel costs the logits again", "chunked_program", "products"),
    Mutant("values_of", "_times(to_outs[0][..., None], x)", "x",
        "beside a frozen kernel every example has the cotangent 1", "head_values", "frozen"),
    Mutant("values_of", "jnp.where(is_usable[..., None], x, 0)", "x",
        "a gradient that is kept is NaN without weight", "head_policies", "frozen"),
    Mutant("total_of", "checkpoint_name(x, SAVED)", "x",
        "a policy cannot save the gradients of a head", "head_transformed", "checkpoint"),
    Mutant("gradients_of_product", "computed_once(to_product, 'tpu')", "to_product",
        "TPUs compute the gradient of logits twice", "chunked_program", "written_once"),
    Mutant("_over_those_that_count", "not may_skip", "may_skip",
        "chunks of examples that do not count are computed", "chunked_program", "skipped"),
    Mutant("_over_those_that_count", "jax.tree.map(partial(zero_unless, is_counted), outs)",
        "outs",
        "an example that does not count has the loss of another one",
        "head_values", "trees_of_outputs"),
    Mutant("_place", "known is x", "known is not x",
        "two arrays that a loss closes over are taken for each other",
        "head_values", "closes_over"),
    Mutant("without_masked_classes", "jnp.where(mask[None, :], arrays[kernel], 0.0)",
        "arrays[kernel]",
        "NaN in the padding of a kernel reaches the gradients", "rare_together"),
    Mutant("_in_shard_map", "jax.lax.psum(totals, _axes_in(spec))",
        "jax.lax.pmean(totals, _axes_in(spec))",
        "the sum over a mesh is that of one shard", "head_mesh", "more_dimensions"),
    Mutant("_count", "jnp.where(arrays[COUNTED], weights, 0.0)", "weights",
        "the mean of a head counts the ignored examples", "head_values", "options_alone"),
    Mutant("with_weights", "(w != 0) | reduce(operator.and_, usable)", "w != 0",
        "an example of weight 0 has no gradient for its weight",
        "head_policies", "the_gradient_of_a_weight_of_zero"),
    Mutant("_outputs_and_gradients", "totals[name] + gradients[name]",
        "totals[name] + upcast(gradients[name].astype(arrays[name].dtype))[0]",
        "the gradient of each chunk is rounded to 16 bits before it is added",
        "head_values", "low_precision"),
    Mutant("_anywhere_rule", "jnp.any(conditions, axis=0)", "jnp.all(conditions, axis=0)",
        "a chunk that one group needs is skipped", "head_partitioned", "any_layout"),
    Mutant("on_explicit_mesh", "AxisType.Explicit not in mesh.axis_types or"
        " not jax.typeof(x).sharding.mesh.empty", "True",
        "on explicit axes what lies on no mesh cannot be differentiated",
        "head_partitioned", "without_a_mesh"),
    Mutant("is_explicit",
        "AxisType.Explicit in mesh.axis_types or any(map(explicit_sharding, arrays))",
        "any(map(explicit_sharding, arrays))",
        "on explicit axes the head refuses class weights", "head_partitioned", "without_a_mesh"),
    Mutant("remedy", "shape == part or (fits(shape, part) and any(n != 1 for n in shape))", "False",
        "who gives a number for each sequence is told that it is the same for all examples",
        "head_policies", "mistakes_of_shape"),
    Mutant("UserLoss.traced", "self.form.all_count", "False",
        "what a loss ignores makes its mean smaller, without a word", "counts", "does_not_say"),
    Mutant("UserLoss.has_one_out", "[x.aval.ndim for x, is_out in outs if is_out] == [1]",
        "len(self.results[0].is_out) == 1",
        "beside a frozen kernel the gradients of several numbers for an example are one",
        "outputs", "frozen"),
    Mutant("UserLoss.mean_weights", "nan_where(counts < 0, counts)", "counts",
        "traced negative counts make a mean of any size", "counts", "negative"),
    Mutant("UserLoss.reads", 'leaf == Name("inputs", name.which) and name.kind in HEAD', "False",
        "the gradient of counts that are made of logits is missing, without a word",
        "counts", "differentiates"),
    Mutant("_parts", "isinstance(x, jax.core.Tracer) or not isinstance(x, _UNCHANGING)", "False",
        "a loss has the program of what it closed over before that changed in place",
        "remembered", "changes_in_place"),
    Mutant("remembered", "key not in known or known[key][0] != parts", "key not in known",
        "a loss has the program of what it closed over before", "remembered", "closes_over"),
    Mutant("public", "_name.set(function.__name__)", '_name.set("function")',
        "logs do not say which loss is compiled", "public", "softmax_entropy"),
    # The numerics report.
    Mutant("main", "1 if missed else 0", "0",
        "the exit status hides that a loss misses its bound", "main", "status_and_last_line"),
    Mutant("Error.meet", "not part <= 1", "part > 1",
        "NaN is within its bound", "main", "broken_loss and undefined"),
    Mutant("Row.truth", "written[i] if i < len(written) else None", "None",
        "an error is relative to what is left of terms that cancel",
        "accuracy", "[softmax_entropy-plain"),
]
# fmt: on


def main(arguments=None):
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("words", nargs="*", help="in the names of definitions or in the reasons")
    parser.add_argument("--likely-only", action="store_true", help="only the likely tests")
    parser.add_argument("--rows-only", action="store_true", help="only whether each row fits")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="mutants at a time")
    parser.add_argument("--timeout", type=float, default=7200, help="seconds for a run of pytest")
    options = parser.parse_args(arguments)
    chosen = [
        mutant
        for mutant in MUTANTS
        if not options.words or any(w in f"{mutant.name}: {mutant.why}" for w in options.words)
    ]
    start = time.perf_counter()
    if problems := _problems():
        print("\n".join(problems))
    if problems or options.rows_only:
        return bool(problems)
    with (
        tempfile.TemporaryDirectory(prefix="mutants-") as directory,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        work = Path(directory)
        _copy_checkout(work / "unbroken")
        # Compiled programs are kept from one mutant to the next.
        (work / "compiled").mkdir()
        (work / "unbroken/.pytest_cache").symlink_to(work / "compiled")
        verdicts = []
        for verdict in pool.map(lambda mutant: _verdict(mutant, work, options), chosen):
            print(_line(verdict), flush=True)
            verdicts.append(verdict)
        red = _red_without_a_mutant(verdicts, work, options)
    print("\n" + "\n".join(_table(verdicts)))
    survivors = sum(not verdict.fell for verdict in verdicts)
    print(f"\n{len(verdicts)} mutants, {survivors} without a test that falls")
    if red:
        print(f"These tests fail without a mutant as well, so they prove nothing:\n{red}")
    print(f"{time.perf_counter() - start:.0f} s")
    return 1 if survivors or red else 0


@cache
def _source(path: Path) -> bytes:
    """What is there when this begins: the checkout may change while it runs."""
    return path.read_bytes()


@cache
def _definitions() -> dict[str, list[tuple[Path, ast.stmt]]]:
    """What the names at the top of the package's files and classes stand for."""
    found = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(_source(path)).body:
            inner = node.body if isinstance(node, ast.ClassDef) else []
            names = [(name, node) for name in _names(node)]
            names += [(f"{node.name}.{name}", child) for child in inner for name in _names(child)]
            for name, defined in names:
                found[name].append((path, defined))
    return found


def _names(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            return [node.name]
        case ast.Assign():
            return [ast.unparse(target) for target in node.targets]
        case ast.AnnAssign():
            return [ast.unparse(node.target)]
        case ast.Import() | ast.ImportFrom():
            return [alias.asname or alias.name for alias in node.names]
        case ast.Expr(ast.Call(function)):
            return [ast.unparse(function)]
    return []


@cache
def _parsed(pattern: str) -> list[ast.AST]:
    """What Python may take it for: an expression, or else a statement or a keyword argument."""
    with suppress(SyntaxError):
        return [ast.parse(pattern, mode="eval").body]
    found = []
    with suppress(SyntaxError):
        found += ast.parse(pattern).body
    with suppress(SyntaxError):
        found += ast.parse(f"f({pattern})", mode="eval").body.keywords
    return found


def _places(mutant: Mutant) -> list[Place]:
    """Wherever the pattern is in what has the name."""
    patterns = _parsed(mutant.pattern)
    kinds, dumps = tuple(map(type, patterns)), set(map(ast.dump, patterns))
    found = []
    for path, definition in _definitions()[mutant.name]:
        nodes = [node for node in ast.walk(definition) if isinstance(node, kinds)]
        same = [node for node in nodes if ast.dump(node) in dumps]
        same.sort(key=lambda node: (node.lineno, node.col_offset))
        found += [Place(path, node) for node in same]
    return found


def _broken(mutant: Mutant) -> tuple[Path, bytes]:
    """The file that it is in, and how that reads then, with as many lines as before."""
    path, node = _places(mutant)[(mutant.occurrence or 1) - 1]
    lines = _source(path).splitlines(keepends=True)
    before = b"".join(lines[: node.lineno - 1]) + lines[node.lineno - 1][: node.col_offset]
    after = lines[node.end_lineno - 1][node.end_col_offset :] + b"".join(lines[node.end_lineno :])
    text = mutant.replacement + "\n" * (node.end_lineno - node.lineno)
    text = f"({text})" if isinstance(node, ast.expr) else text
    return path, before + text.encode() + after


def _test_files(mutant: Mutant) -> list[str]:
    return [str(p.relative_to(ROOT)) for p in ROOT.glob(f"tests/**/test_{mutant.test}.py")]


def _problems():
    """Rows that do not fit the package, and topics without a row: files, and folders of them."""
    found, topics = [], {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")}
    for mutant in MUTANTS:
        number, which = len(_places(mutant)), mutant.occurrence
        if not number or (number > 1 if which is None else number < which):
            elsewhere = [name for name in _definitions() if _places(mutant._replace(name=name))]
            found.append(
                f"{mutant.name} has this {number} times: {mutant.pattern!r}"
                + (f"; {', '.join(elsewhere)} has it" if elsewhere and not number else "")
            )
            continue
        path, text = _broken(mutant)
        topics.discard(path.relative_to(PACKAGE).parts[0])
        try:
            ast.parse(text)
        except SyntaxError as error:
            found.append(f"{mutant.name} cannot have {mutant.replacement!r}: {error.msg}")
        if len(_test_files(mutant)) != 1:
            found.append(f"{mutant.name}: there must be one test_{mutant.test}.py below tests/")
    return found + [f"{topic} has no mutant" for topic in sorted(topics)]


def _verdict(mutant, work, options):
    start = time.perf_counter()
    checkout = Path(tempfile.mkdtemp(dir=work))
    shutil.copytree(work / "unbroken", checkout, symlinks=True, dirs_exist_ok=True)
    try:
        path, text = _broken(mutant)
        (checkout / path.relative_to(ROOT)).write_bytes(text)
        likely = _test_files(mutant) + (["-k", mutant.keyword] if mutant.keyword else [])
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
    where = [sys.executable, "-c", "import importlib.util as u; print(u.find_spec('jxent').origin)"]
    run = {"cwd": checkout, "env": environment, "capture_output": True, "text": True}
    path = subprocess.run(where, **run).stdout.strip()
    if path != str(checkout / "jxent/__init__.py"):
        return None, f"the package is imported from {path or 'nowhere'}, not from the copy"
    try:
        done = subprocess.run([*PYTEST, *arguments], timeout=timeout, **run)
    except subprocess.TimeoutExpired:
        return None, f"no end after {timeout:.0f} s"
    # A break is wrong, but runs: without this check a name that is gone would fall in any test.
    if broken := re.search(r"^E +(?:Name|Attribute)Error: .*$", done.stdout, re.MULTILINE):
        return None, f"the replacement does not run: {broken[0][1:].strip()}"
    names = re.findall(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode == FAILED and names:
        return FAILED, names[0]
    said = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode, f"pytest ended with {done.returncode}: {said[-1] if said else ''}"


def _copy_checkout(to):
    """What git knows, and what it would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, to / name, follow_symlinks=False)


def _red_without_a_mutant(verdicts, work, options):
    """The first test that fails although nothing is broken, or nothing."""
    tests = sorted({verdict.result for verdict in verdicts if verdict.fell})
    if not tests:
        return ""
    tests += ["-n", str(options.jobs)]
    status, result = _pytest(tests, work / "unbroken", options.timeout)
    return "" if status == PASSED else result


def _line(verdict):
    mutant, result, _, seconds = verdict
    return f"{seconds:5.0f} s  {mutant.name}: {mutant.why}\n         {result}"


def _table(verdicts):
    rows = [("where", "why it is wrong", "falls in", "s")]
    rows += [(v.mutant.name, v.mutant.why, v.result, f"{v.seconds:.0f}") for v in verdicts]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


if __name__ == "__main__":
    sys.exit(main())
