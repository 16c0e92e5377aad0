"""Pure functions on tensors, each with a slow, obvious reference beside it or in torch."""

from mmsgformer.ops.attention import (
    attention_with_column_means,
    attention_with_column_means_reference,
    dot_product_attention,
)
from mmsgformer.ops.token_merge import merge_tokens_reference, sorted_runs

__all__ = [
    'attention_with_column_means',
    'attention_with_column_means_reference',
    'dot_product_attention',
    'merge_tokens_reference',
    'sorted_runs',
]
