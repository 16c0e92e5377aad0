"""DaViT's two attentions in turn: of tokens within windows, and of channels (ECCV 2022, arXiv 2204.03645)."""

import torch.nn.functional as F
from torch import Tensor, nn

from mmsgformer.mixers.base import QKVMixer
from mmsgformer.mixers.groups import GroupMixer
from mmsgformer.mixers.registry import MIXERS
from mmsgformer.ops.autocast import at_least_float32, without_autocast


@MIXERS.register_module(name='davit')
def dual_attention(
    dim: int,
    num_heads: int,
    stage: int,
    block: int,
    window_size: int = 7,
    attn_drop: float = 0.0,
    proj_drop: float = 0.0,
    mask_padding: bool = True,
) -> nn.Module:
    """Windows without any position in even blocks, `ChannelAttention` in odd ones.

    Args:
        dim: Channels C, a multiple of `num_heads`.
        num_heads: Heads of the windows, and groups of the channels.
        stage: Of no effect.
        block: Says which of the two.
        window_size: Side of a window.
        attn_drop: Dropout on the attention weights.
        proj_drop: Dropout on the projection's output.
        mask_padding: Hide the windows' padded tokens. The official code does not.
    """
    if block % 2:
        return ChannelAttention(dim, num_heads, attn_drop, proj_drop)
    return GroupMixer(dim, num_heads, window_size, attn_drop, proj_drop, mask_padding)


class ChannelAttention(QKVMixer):
    """Within each group of d channels, a d x d softmax over v's channels mixes the channels of q."""

    def forward(self, x: Tensor, significance: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, H, W, C) -> output (B, H, W, C); the significance is passed on as it came."""
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, d) each
        with without_autocast(x):  # the logits are sums over all tokens
            logits = (at_least_float32(k) * k.shape[-1] ** -0.5).mT @ at_least_float32(v)
        weights = F.dropout(logits.softmax(dim=-1), self.dropout_p)
        out = q @ weights.mT.to(q.dtype)
        return self.project(out.transpose(1, 2).reshape(x.shape)), significance


def from_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of dingmyu/davit's `WindowAttention` or `ChannelAttention`, or of their block's `attn`."""
    return {key.removeprefix('attn.'): value for key, value in state_dict.items()}
