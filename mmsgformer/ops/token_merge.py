"""Merging tokens by significance: unimportant ones in long runs, important ones in short runs.

docs/method.md, "Self-guided attention" and "Any input size", says where each rule comes from.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from mmsgformer.compat import as_number


def sorted_runs(tokens: Tensor, significance: Tensor, run_lengths: Sequence[int]) -> list[Tensor]:
    """Sort tokens by significance, cut them into parts, and each part into runs of its length.

    The ascending order (stable) is cut into parts, least significant first: a quarter, a half and a
    quarter for three run lengths, two halves for two.

    Args:
        tokens: (B, N, C), N >= 4.
        significance: (B, N).
        run_lengths: g_p of each part.

    Returns:
        The runs of each part p, (B, ceil(n_p / g_p), g_p, C).
    """
    batch, num_tokens, channels = tokens.shape
    bounds = part_bounds(num_tokens, len(run_lengths))
    positions = [
        _run_positions(start, stop, length, tokens.device)
        for (start, stop), length in zip(bounds, run_lengths, strict=True)
    ]
    order = significance.argsort(dim=1, stable=True)
    # One gather for all parts, on the flattened batch: index_select is the fastest gather on CPU.
    index = order[:, torch.cat(positions)] + torch.arange(batch, device=tokens.device)[:, None] * num_tokens
    picked = tokens.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, channels)
    parts = picked.split([p.shape[0] for p in positions], dim=1)
    return [part.unflatten(1, (-1, length)) for part, length in zip(parts, run_lengths, strict=True)]


def merge_tokens_reference(
    tokens: Tensor, significance: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """`sorted_runs` and the weighted sums of the runs, one image, one run, one token at a time.

    Args:
        tokens: (B, N, C), N >= 4.
        significance: (B, N).
        weights: One weight per place in a run, (g_p,), for each of the two or three parts.
        biases: One scalar per part, shape (1,).

    Returns:
        The merged tokens (B, M, C), least significant first, M = sum_p ceil(n_p / g_p).
    """
    images = []
    for image, score in zip(tokens, significance.tolist(), strict=True):
        order = sorted(range(len(score)), key=score.__getitem__)
        quarter, half = len(order) // 4, len(order) // 2
        cuts = [quarter, 3 * quarter] if len(weights) == 3 else [half]
        bounds = [0, *cuts, len(order)]
        merged = []
        for part, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            members = order[bounds[part] : bounds[part + 1]]
            run_length = len(weight)
            num_runs = -(-len(members) // run_length)
            stretched = [
                members[i * len(members) // (num_runs * run_length)] for i in range(num_runs * run_length)
            ]
            for run in range(num_runs):
                places = stretched[run * run_length : (run + 1) * run_length]
                merged.append(sum(w * image[i] for w, i in zip(weight, places, strict=True)) + bias)
        images.append(torch.stack(merged))
    return torch.stack(images)


def part_bounds(num_tokens: int, num_parts: int) -> list[tuple[int, int]]:
    """Where each part of the sorted tokens starts and stops."""
    quarter, half = num_tokens // 4, num_tokens // 2
    cuts = {2: [0, half, num_tokens], 3: [0, quarter, 3 * quarter, num_tokens]}[num_parts]
    return list(itertools.pairwise(cuts))


def _run_positions(start: int, stop: int, run_length: int, device: torch.device) -> Tensor:
    """Positions (m * g,) of the tokens of a part's runs, in the sorted order.

    A part of n tokens is stretched to m * g by nearest index, so that every token is used and no run is
    partial.
    """
    size = stop - start
    stretched = as_number((size + run_length - 1) // run_length) * run_length
    return start + torch.arange(stretched, device=device) * size // stretched
