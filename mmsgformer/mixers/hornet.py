"""HorNet's recursive gated convolution: depthwise 7x7 convolutions that gate each other, no attention at all.

Source: HorNet (NeurIPS 2022, arXiv 2207.14284) and its code, raoyongming/HorNet (MIT).
"""

from collections.abc import Mapping

from torch import Tensor, nn

from mmsgformer.attention import conv_channels_last
from mmsgformer.mixers.registry import MIXERS

ORDERS = (2, 3, 4, 5)
SCALE = 1 / 3


@MIXERS.register_module(name='hornet')
class RecursiveGatedConv(nn.Module):
    """gnConv: a chain of gates, twice as wide at every step. It has no heads and takes none.

    Args:
        dim: Channels C, a multiple of 2 ** (order - 1).
        order: Steps of the chain, by default 2, 3, 4, 5 in stages 1-4.
        proj_drop: Dropout on the output.

    Raises:
        ValueError: C cannot be halved as often.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        stage: int = 0,
        block: int = 0,
        order: int | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        order = ORDERS[stage] if order is None else order
        if order < 1 or dim % 2 ** (order - 1):
            raise ValueError(
                f'hornet needs order >= 1 and 2 ** (order - 1) to divide {dim}, got order {order}'
            )
        self.dims = [dim // 2**i for i in reversed(range(order))]
        gates = sum(self.dims)
        self.proj_in = nn.Linear(dim, self.dims[0] + gates)
        self.dwconv = nn.Conv2d(gates, gates, 7, padding=3, groups=gates)
        self.pws = nn.ModuleList(nn.Linear(*dims) for dims in zip(self.dims, self.dims[1:], strict=False))
        self.proj_out = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, significance: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """x (B, H, W, C) -> output (B, H, W, C); the significance is passed on as it came."""
        y, gates = self.proj_in(x).split([self.dims[0], sum(self.dims)], dim=-1)
        first, *others = (conv_channels_last(self.dwconv, gates) * SCALE).split(self.dims, dim=-1)
        y = y * first
        for widen, gate in zip(self.pws, others, strict=True):
            y = widen(y) * gate
        return self.proj_drop(self.proj_out(y)), significance


def from_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The official gnconv's weights; its 1x1 convolutions are linear layers here."""
    pointwise = {name for name in state_dict if name.endswith('weight') and not name.startswith('dwconv')}
    return {name: value.flatten(1) if name in pointwise else value for name, value in state_dict.items()}
