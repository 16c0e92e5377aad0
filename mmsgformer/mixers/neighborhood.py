"""Neighbourhood attention: NAT (arXiv 2204.07143), dilated (2209.15001) and with a stride (2504.16922).

No token's neighbours are gathered, which would take kernel^2 times the memory of the keys: tiles of queries
attend to all the tokens that one of them sees, with a mask. Where natten is installed and fits, it does this.
"""

import functools
from collections.abc import Sequence
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsgformer.attention import from_windows, pad_to_multiple, to_windows
from mmsgformer.mixers.base import QKVMixer
from mmsgformer.mixers.groups import attend_in_groups
from mmsgformer.mixers.registry import MIXERS
from mmsgformer.mixers.tiles import TILE, Axis, axis, from_groups, spans, to_groups


@functools.cache
def natten() -> ModuleType | None:
    """The package natten, 0.20 or later, which has strides; None where there is none. Slow to import."""
    try:
        import natten.backends
    except ImportError:
        return None
    return natten


@MIXERS.register_module(name='neighborhood')
class NeighborhoodAttention(QKVMixer):
    """Every token attends to kernel x kernel tokens around it.

    Args:
        dim: Channels C, a multiple of `num_heads`.
        num_heads: Heads.
        stage: Chooses from `dilation` if that is a list of lists.
        block: Chooses from `dilation`.
        kernel_size: Side of the neighbourhood.
        dilation: Only every so many tokens are neighbours. One number for all blocks; a list that blocks go
            through, again and again; a list of such lists, one a stage; or 'auto': 1 in even blocks and as
            much as the map has room for, min(H, W) // kernel_size, in odd ones.
        stride: So many tokens in a row share one neighbourhood, that of their middle: 1 is NAT, `kernel_size`
            is windows.
        bias: Learn a bias by relative position, as the published networks. natten has none any more.
        attn_drop: Dropout on the attention weights.
        proj_drop: Dropout on the projection's output.
        mask_padding: False: a map that is smaller than kernel_size * dilation is padded to that, and the
            padding takes part, as in natten 0.14. Else a neighbourhood that does not fit is what there is.

    Raises:
        ValueError, TypeError: The numbers do not fit.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        stage: int,
        block: int,
        kernel_size: int = 7,
        dilation: int | str | Sequence[int] | Sequence[Sequence[int]] = 1,
        stride: int = 1,
        bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        mask_padding: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, attn_drop, proj_drop)
        if kernel_size < 2 or not 1 <= stride <= kernel_size:
            raise ValueError(
                'neighborhood needs kernel_size >= 2 and 1 <= stride <= kernel_size, '
                f'got kernel_size={kernel_size}, stride={stride}'
            )
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = _of_block(dilation, stage, block)
        self.mask_padding = mask_padding
        self.bias_table = None
        if bias:
            self.bias_table = nn.Parameter(torch.empty(num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1))
            nn.init.trunc_normal_(self.bias_table, std=0.02)

    def forward(self, x: Tensor, significance: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, H, W, C) -> output (B, H, W, C); the significance is passed on as it came."""
        H, W = x.shape[1:3]
        dilation = self.dilation or max(1, min(H, W) // self.kernel_size)
        if not self.mask_padding:
            smallest = self.kernel_size * dilation
            x = F.pad(x, (0, 0, 0, max(0, smallest - W), 0, max(0, smallest - H)))
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        attend = self._natten if self._natten_fits(q, dilation) else self._attend
        return self.project(attend(q, k, v, dilation)[:, :H, :W]), significance

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, dilation: int) -> Tensor:
        """(B, H, W, C) each -> the same."""
        height, width = q.shape[1:3]
        dy, dx = min(dilation, height), min(dilation, width)
        q, k, v = (to_groups(t, dy, dx) for t in (q, k, v))  # (B * dy * dx, rows, columns, C)
        y = axis(height, self.kernel_size, dy, self.stride, q.device)
        x = axis(width, self.kernel_size, dx, self.stride, q.device)
        rows, columns = q.shape[1:3]
        queries = to_windows(pad_to_multiple(q, TILE), TILE)
        k, v = (spans(t, y.keys, x.keys) for t in (k, v))
        out = attend_in_groups(queries, k, v, self.num_heads, self._bias(y, x), self.dropout_p)
        return from_groups(from_windows(out, TILE, rows, columns), dy, dx, height, width)

    def _bias(self, y: Axis, x: Axis) -> Tensor:
        """The bias by relative position; -inf where a query does not see a key: (G, heads or 1, n, m)."""
        seen = y.seen[:, None, :, None, :, None, :, None] & x.seen[None, :, None, :, None, :, None, :]
        groups, tiles = seen.shape[0] * seen.shape[1], seen.shape[2] * seen.shape[3]
        seen = seen.reshape(groups, tiles, 1, TILE * TILE, -1)
        bias = seen.new_zeros((), dtype=torch.float32)
        if self.bias_table is not None:
            offsets = y.offset[..., None, None, None], x.offset[None, None, None]
            bias = self.bias_table[(slice(None), *offsets)]  # (heads, kinds, TILE, K, kinds, TILE, K')
            bias = bias.index_select(1, y.kind).index_select(4, x.kind).permute(1, 4, 0, 2, 5, 3, 6)
            bias = bias.reshape(tiles, self.num_heads, TILE * TILE, -1)
        return torch.where(seen, bias, -torch.inf).flatten(0, 1)

    def _natten_fits(self, q: Tensor, dilation: int) -> bool:
        """Whether natten's kernels do this: on a GPU, no bias, no dropout, and the neighbourhoods fit."""
        wanted = q.is_cuda and self.bias_table is None and self.dropout_p == 0
        if not wanted or min(q.shape[1:3]) < self.kernel_size * dilation or natten() is None:
            return False
        q = q.unflatten(-1, (self.num_heads, -1))
        return natten().backends.can_run_cutlass_fna(q, q, q)

    def _natten(self, q: Tensor, k: Tensor, v: Tensor, dilation: int) -> Tensor:
        """`_attend`, by natten."""
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)) for t in (q, k, v))
        out = natten().na2d(q, k, v, self.kernel_size, self.stride, dilation)
        return out.flatten(3)


def _of_block(dilation: int | str | Sequence, stage: int, block: int) -> int | None:
    """The dilation of this block; None is what fits into the map."""
    if dilation == 'auto':
        return None if block % 2 else 1
    chosen = dilation
    if isinstance(chosen, (list, tuple)) and all(isinstance(part, (list, tuple)) for part in chosen):
        chosen = chosen[stage] if stage < len(chosen) else None
    if isinstance(chosen, (list, tuple)):
        chosen = chosen[block % len(chosen)] if chosen else None
    if not isinstance(chosen, int) or chosen < 1:
        raise ValueError(
            "dilation must be 'auto', a positive integer, a list of them, or such a list for each stage, "
            f'got {dilation!r}'
        )
    return chosen


def from_official(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of natten 0.14's `NeighborhoodAttention2D`."""
    return {'bias_table' if key == 'rpb' else key: value for key, value in state_dict.items()}
