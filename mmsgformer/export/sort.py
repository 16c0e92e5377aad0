"""The stable sort in forms that ONNX has: as TopK, or in blocks for runtimes whose TopK is small.

ONNX's TopK puts equal values in the order of their places: of all elements it is a stable sort. TensorRT
takes no more than 3840 of them.
"""

import torch
import torch.nn.functional as F
from onnxscript import FLOAT, INT64
from onnxscript import opset20 as op
from torch import Tensor

# Eleven halvings find a place in a sorted block.
HALVINGS = 11
BLOCK = 2**HALVINGS - 1


def sort_by_topk(
    x: FLOAT, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[FLOAT, INT64]:
    """The stable sort in ONNX's operators, as torch's exporter calls a translation."""
    length = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
    return op.TopK(x, length, axis=dim, largest=int(descending), sorted=1)


def argsort(x: Tensor, *, stable: bool, dim: int = -1, descending: bool = False) -> Tensor:
    """`torch.argsort` by a sort, which is exported in one form or the other."""
    return x.sort(stable=stable, dim=dim, descending=descending).indices


def sort_in_blocks(
    x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    """`torch.sort(stable=True)` of the rows of a finite matrix (B, N), by sorts of `BLOCK` elements.

    The place of an element is its place in its block, plus how many elements of each other block come before
    it, which a binary search says: N * N / BLOCK * log2(BLOCK) steps, and N are below 100,000.

    Returns:
        The sorted rows and, of each of their elements, the column that it comes from.
    """
    if x.ndim != 2 or descending:
        return NotImplemented  # a block is sorted by the operator itself
    batch, columns = x.shape
    blocks = (columns + BLOCK - 1) // BLOCK
    padded = F.pad(x, (0, blocks * BLOCK - columns), value=torch.inf).view(batch, blocks, BLOCK)
    values, places = padded.sort(dim=2, stable=True)
    block = torch.arange(blocks, device=x.device)
    source = (places + block[:, None] * BLOCK).flatten(1)  # (B, M), M = blocks * BLOCK
    values = values.flatten(1)

    owner = block[:, None].expand(-1, BLOCK).flatten()  # (M,): the block of each element
    # Of equal elements those of the earlier block come first. (blocks, M)
    ties_before = block[:, None] < owner
    before = torch.zeros_like(ties_before, dtype=torch.int64).expand(batch, -1, -1)  # (B, blocks, M)
    for halving in reversed(range(HALVINGS)):
        # The last of `before + 2**halving` elements: if that comes before, all of them do.
        last = before + (2**halving - 1)
        candidate = values.view(batch, blocks, BLOCK).gather(2, last)
        value = values[:, None]
        comes_before = (candidate < value) | ((candidate == value) & ties_before)
        before = before + comes_before * 2**halving
    own_place = torch.arange(BLOCK, device=x.device).repeat(blocks)
    rank = torch.where(block[:, None] == owner, own_place, before).sum(dim=1)  # (B, M), a permutation
    order = torch.zeros_like(source).scatter(1, rank, source)[:, :columns]
    return x.gather(1, order), order
