"""Exact losses for JAX: entropy, KL divergence, cross-entropy and binary cross-entropy.

Shapes: z logits, p and q probabilities, log q log-probabilities [..., classes]; y integer labels
[...]; t numbers in [0, 1]. Losses are [...], in nats; of yes-or-no questions, the shape of z.

from logits
  softmax_cross_entropy(z, p)                         distributions [..., classes] as labels
  softmax_cross_entropy_with_integer_labels(z, y)     one class is right
  safe_softmax_cross_entropy(z, p)                    the first, by optax's other name
  poly_loss_cross_entropy(z, p)                       plus a multiple of 1 - p_y
  softmax_focal_loss_with_integer_labels(z, y)        easy examples fade
  softmax_kl_divergence(z, target z)                  KL(target, prediction)
  softmax_jensen_shannon_divergence(z, target z)      symmetric, at most log 2
  softmax_entropy(z)                                  how unsure the prediction is
  logsumexp(z), log_softmax(z), softmax(z)            the parts
from features and a head
  linear_softmax_cross_entropy(x, kernel, y)          x [..., features]; without the logits; mean
yes or no, from logits of any shape
  sigmoid_binary_cross_entropy(z, t)                  one question for each logit
  sigmoid_focal_loss(z, t)                            easy examples fade
  sigmoid_kl_divergence(z, target z)                  KL(target, prediction)
  sigmoid_entropy(z)                                  how unsure the prediction is
from log-probabilities
  negative_log_likelihood(log q, y)                   one class is right
  kl_divergence(log q, p)                             KL(p, q)
  kl_divergence_with_log_targets(log q, log p)        KL(p, q)
  generalized_kl_divergence(log q, p)                 of measures that need not sum to one
from probabilities
  cross_entropy_with_integer_labels(q, y)             one class is right
  cross_entropy(p, q)                                 p is true, q predicted
  relative_entropy(p, q)                              KL(p, q)
  jensen_shannon_divergence(p, q)                     symmetric, at most log 2
  entropy(p)                                          of a distribution
  binary_cross_entropy(q, t)                          yes or no, of any shape
  binary_entropy(q)                                   of a coin
reduction
  weighted_mean(losses, weights)                      0 where nothing has weight
"""

from ._cross_entropy import safe_softmax_cross_entropy as safe_softmax_cross_entropy
from ._cross_entropy import softmax_cross_entropy as softmax_cross_entropy
from ._cross_entropy import (
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
)
from ._divergence import (
    softmax_jensen_shannon_divergence as softmax_jensen_shannon_divergence,
)
from ._divergence import softmax_kl_divergence as softmax_kl_divergence
from ._focal import poly_loss_cross_entropy as poly_loss_cross_entropy
from ._focal import sigmoid_focal_loss as sigmoid_focal_loss
from ._focal import (
    softmax_focal_loss_with_integer_labels as softmax_focal_loss_with_integer_labels,
)
from ._likelihood import cross_entropy_with_integer_labels as cross_entropy_with_integer_labels
from ._likelihood import negative_log_likelihood as negative_log_likelihood
from ._linear import linear_softmax_cross_entropy as linear_softmax_cross_entropy
from ._log_probabilities import generalized_kl_divergence as generalized_kl_divergence
from ._log_probabilities import kl_divergence as kl_divergence
from ._log_probabilities import kl_divergence_with_log_targets as kl_divergence_with_log_targets
from ._probabilities import binary_cross_entropy as binary_cross_entropy
from ._probabilities import binary_entropy as binary_entropy
from ._probabilities import cross_entropy as cross_entropy
from ._probabilities import entropy as entropy
from ._reduction import weighted_mean as weighted_mean
from ._relative_entropy import jensen_shannon_divergence as jensen_shannon_divergence
from ._relative_entropy import relative_entropy as relative_entropy
from ._sigmoid import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from ._sigmoid import sigmoid_entropy as sigmoid_entropy
from ._sigmoid import sigmoid_kl_divergence as sigmoid_kl_divergence
from ._softmax import log_softmax as log_softmax
from ._softmax import logsumexp as logsumexp
from ._softmax import softmax as softmax
from ._softmax import softmax_entropy as softmax_entropy

__version__ = "0.1.0"
