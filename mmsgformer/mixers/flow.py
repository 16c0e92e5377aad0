"""Flowformer's linear attention: flow between tokens is conserved (ICML 2022, arXiv 2202.06258)."""

import torch
from torch import Tensor

from mmsgformer.mixers.base import QKVMixer
from mmsgformer.mixers.registry import MIXERS
from mmsgformer.ops.autocast import at_least_float32, without_autocast

EPSILON = 1e-6


def product(a: Tensor, b: Tensor) -> Tensor:
    """Each token of a (B, heads, N, d) times one vector b (B, heads, 1, d), kept from 0, (B, heads, N, 1)."""
    return ((a + EPSILON) * (b + EPSILON)).sum(-1, keepdim=True) + EPSILON


@MIXERS.register_module(name='flow')
class FlowAttention(QKVMixer):
    """Attention of linear cost without softmax over pairs; sources compete, sinks allocate.

    There are no attention weights to drop out.

    Args:
        dim: Channels C, a multiple of `num_heads`.
        num_heads: Heads.
        stage: Of no effect.
        block: Of no effect.
        proj_drop: Dropout on the projection's output.
    """

    def __init__(self, dim: int, num_heads: int, stage: int, block: int, proj_drop: float = 0.0) -> None:
        super().__init__(dim, num_heads, proj_drop=proj_drop)

    def forward(self, x: Tensor, significance: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, H, W, C) -> output (B, H, W, C); the significance is passed on as it came."""
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, d) each
        with without_autocast(x):  # sums over all tokens
            out = self._flow(*(at_least_float32(t) for t in (q, k, v))).to(v.dtype)
        return self.project(out.transpose(1, 2).reshape(x.shape)), significance

    @staticmethod
    def _flow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, heads, N, d) each -> the same."""
        q, k = q.sigmoid(), k.sigmoid()
        sink_incoming = product(q, k.sum(2, keepdim=True))
        source_outgoing = product(k, q.sum(2, keepdim=True))
        conserved_sink = product(q, (k / source_outgoing).sum(2, keepdim=True))
        conserved_source = product(k, (q / sink_incoming).sum(2, keepdim=True)).clamp(-1, 1)
        competing = v * conserved_source.softmax(dim=2) * v.shape[2]
        return (q / sink_incoming) @ (k.mT @ competing) * torch.sigmoid(conserved_sink)


def from_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of thuml/Flowformer's `Flow_Attention` for images; the names are the same."""
    return dict(state_dict)
