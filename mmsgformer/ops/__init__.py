"""Pure functions on tensors, each with a slow, obvious reference beside it."""

from mmsgformer.ops.attention import (
    attention_with_column_means,
    attention_with_column_means_reference,
)
from mmsgformer.ops.token_merge import merge_tokens, merge_tokens_reference

__all__ = [
    'attention_with_column_means',
    'attention_with_column_means_reference',
    'merge_tokens',
    'merge_tokens_reference',
]
