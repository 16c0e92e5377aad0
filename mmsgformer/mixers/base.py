"""What mixers with queries, keys and values of one linear layer share."""

from torch import Tensor, nn


class QKVMixer(nn.Module):
    """One linear layer makes [q | k | v], each [head | d]; another one projects the result.

    Args:
        dim: Channels C, a multiple of `num_heads`.
        num_heads: Heads h.
        attn_drop: Dropout on the attention weights.
        proj_drop: Dropout on the projection's output.
    """

    def __init__(self, dim: int, num_heads: int, attn_drop: float = 0.0, proj_drop: float = 0.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f'{type(self).__name__}: dim {dim} must be a multiple of num_heads {num_heads}')
        self.num_heads = num_heads
        self.attn_drop = attn_drop
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    @property
    def dropout_p(self) -> float:
        """Dropout on the attention weights, at present."""
        return self.attn_drop if self.training else 0.0

    def project(self, attended: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return self.proj_drop(self.proj(attended))
