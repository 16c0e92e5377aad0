"""SG-Former's own attentions, by stage and block: the paper's network."""

from torch import nn

from mmsgformer.archs import NUM_STAGES
from mmsgformer.attention import FullAttention, HybridScaleAttention, SelfGuidedAttention
from mmsgformer.mixers.registry import MIXERS
from mmsgformer.ops.attention import check_backend

# Merge ratio r of the hybrid-scale blocks and run lengths g of the self-guided blocks, stages 1-3.
REDUCTIONS = (8, 4, 2)
RUN_LENGTHS = ((196, 56, 28), (49, 14, 7), (2, 1))


@MIXERS.register_module(name='sgformer')
def sgformer_attention(
    dim: int,
    num_heads: int,
    stage: int,
    block: int,
    attn_drop: float = 0.0,
    proj_drop: float = 0.0,
    backend: str = 'auto',
) -> nn.Module:
    """In stages 1-3 even blocks make the significance map and odd blocks use the map of the block before.

    `backend` is that of `mmsgformer.ops.attention_with_column_means`.

    Raises:
        ValueError: There is no such backend, or the number of heads is odd in stages 1-3.
    """
    check_backend(backend)
    if num_heads % 2 and stage < NUM_STAGES - 1:
        raise ValueError(f'stage {stage}: num_heads must be even (half global, half local), got {num_heads}')
    if stage == NUM_STAGES - 1:
        return FullAttention(dim, num_heads, attn_drop, proj_drop)
    if block % 2 == 0:
        return HybridScaleAttention(dim, num_heads, REDUCTIONS[stage], attn_drop, proj_drop, backend)
    return SelfGuidedAttention(dim, num_heads, RUN_LENGTHS[stage], attn_drop, proj_drop)
