"""What XLA keeps in memory on a CPU beside the logits and their gradient."""

import jax
import pytest

from jxent import softmax_cross_entropy_with_integer_labels
from support.cases import fast_jit
from support.tiers import quick

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="XLA of JAX 0.12 is promised"),
]


# Blocks whose number divides the classes, one block for want of such, and an unrolled reduction.
@pytest.mark.parametrize("classes", quick([10, 151, 1024, 32003, 32768], 10, 151, 1024, 32003))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_exponentials_are_not_written(classes, dtype):
    def loss(z, labels):
        return softmax_cross_entropy_with_integer_labels(z, labels).mean()

    def masked(z, labels):
        return softmax_cross_entropy_with_integer_labels(z, labels, ignore_index=-100)

    z = jax.ShapeDtypeStruct((2**22 // classes, classes), dtype)
    labels = jax.ShapeDtypeStruct(z.shape[:1], "int32")
    # Some numbers for each row, and half a byte for each logit.
    allowed = 64 * z.shape[0] + z.size // 2
    for function in loss, jax.value_and_grad(loss), masked:
        found = fast_jit(function).lower(z, labels).compile().memory_analysis()
        assert found.temp_size_in_bytes <= allowed
