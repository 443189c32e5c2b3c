"""Exact losses for JAX: entropy, KL divergence, cross-entropy and binary cross-entropy.

Logits, probabilities and log-probabilities are ``[..., classes]``, integer labels and losses
``[...]``, in nats; losses of yes-or-no questions have the shape of their logits. Nothing is
averaged unless the name says so, but by the linear head.
"""

from ._contents import contents as _contents
from ._divergence import (
    softmax_jensen_shannon_divergence as softmax_jensen_shannon_divergence,
)
from ._divergence import softmax_kl_divergence as softmax_kl_divergence
from ._divergence import (
    softmax_log_ratio_with_integer_labels as softmax_log_ratio_with_integer_labels,
)
from ._focal import poly_loss_cross_entropy as poly_loss_cross_entropy
from ._focal import sigmoid_focal_loss as sigmoid_focal_loss
from ._focal import (
    softmax_focal_loss_with_integer_labels as softmax_focal_loss_with_integer_labels,
)
from ._head import chunked as chunked
from ._head import linear_softmax_cross_entropy as linear_softmax_cross_entropy
from ._head.logits import LinearLogits as LinearLogits
from ._log_probabilities import generalized_kl_divergence as generalized_kl_divergence
from ._log_probabilities import kl_divergence as kl_divergence
from ._log_probabilities import kl_divergence_with_log_targets as kl_divergence_with_log_targets
from ._log_probabilities import sampled_kl_divergence as sampled_kl_divergence
from ._probabilities import binary_cross_entropy as binary_cross_entropy
from ._probabilities import binary_entropy as binary_entropy
from ._probabilities import cross_entropy as cross_entropy
from ._probabilities import cross_entropy_with_integer_labels as cross_entropy_with_integer_labels
from ._probabilities import entropy as entropy
from ._probabilities import jensen_shannon_divergence as jensen_shannon_divergence
from ._probabilities import negative_log_likelihood as negative_log_likelihood
from ._probabilities import relative_entropy as relative_entropy
from ._reduction import label_weights as label_weights
from ._reduction import weighted_mean as weighted_mean
from ._sigmoid import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from ._sigmoid import sigmoid_entropy as sigmoid_entropy
from ._sigmoid import sigmoid_kl_divergence as sigmoid_kl_divergence
from ._softmax import log_softmax as log_softmax
from ._softmax import logsumexp as logsumexp
from ._softmax import safe_softmax_cross_entropy as safe_softmax_cross_entropy
from ._softmax import softmax as softmax
from ._softmax import softmax_cross_entropy as softmax_cross_entropy
from ._softmax import (
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,
)
from ._softmax import softmax_entropy as softmax_entropy
from ._top_k import (
    softmax_kl_divergence_with_top_k_targets as softmax_kl_divergence_with_top_k_targets,
)

__version__ = "0.2.0"
__doc__ = f"{__doc__}{_contents(globals())}\n"
