"""Adaptive average pooling as two products with matrices, which ONNX can write for a map of any size."""

import torch
from torch import Tensor, nn


class AdaptiveAveragePool(nn.Module):
    """`nn.AdaptiveAvgPool2d` with one number: (B, C, H, W) -> (B, C, size, size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        rows, columns = (averaging_matrix(side, self.size, x) for side in x.shape[2:])
        return rows @ x @ columns.mT


def averaging_matrix(size: int, new_size: int, like: Tensor) -> Tensor:
    """The matrix (new_size, size) that averages one side of a map over the cells of adaptive pooling.

    Cell i reaches from floor(i * size / new_size) to ceil((i + 1) * size / new_size).
    """
    cell = torch.arange(new_size, device=like.device)[:, None]
    place = torch.arange(size, device=like.device)
    start = cell * size // new_size
    stop = ((cell + 1) * size + new_size - 1) // new_size
    inside = ((place >= start) & (place < stop)).to(like.dtype)
    return inside / inside.sum(dim=1, keepdim=True)
