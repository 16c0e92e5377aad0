"""Merging tokens by significance: unimportant ones in long runs, important ones in short runs.

docs/method.md, "Self-guided attention" and "Any input size", says where each rule comes from.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def merge_tokens(
    tokens: Tensor, significance: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """Sort tokens by significance and merge runs of them into one token each.

    The ascending order (stable) is cut into parts, least significant first: a quarter, a half and a
    quarter for three weights, two halves for two. Within part p every run of g_p = len(weights[p])
    tokens becomes their weighted sum plus a bias, the same for all channels.

    Args:
        tokens: (B, N, C), N >= 4.
        significance: (B, N).
        weights: One weight per place in a run, (g_p,), for each of the two or three parts.
        biases: One scalar per part, shape (1,).

    Returns:
        The merged tokens (B, M, C), least significant first, M = sum_p ceil(n_p / g_p).
    """
    batch, num_tokens, channels = tokens.shape
    runs = [
        _run_positions(start, stop, len(weight), tokens.device)
        for (start, stop), weight in zip(part_bounds(num_tokens, len(weights)), weights, strict=True)
    ]
    order = significance.argsort(dim=1, stable=True)
    # One gather for all parts, on the flattened batch: index_select is the fastest gather on CPU.
    index = order[:, torch.cat(runs)] + torch.arange(batch, device=tokens.device)[:, None] * num_tokens
    picked = tokens.flatten(0, 1).index_select(0, index.flatten()).view(*index.shape, channels)
    merged = []
    for part, weight, bias in zip(picked.split([len(r) for r in runs], dim=1), weights, biases, strict=True):
        part = part.unflatten(1, (-1, len(weight)))  # (B, m, g, C)
        merged.append((weight @ part) + bias)
    return torch.cat(merged, dim=1)


def merge_tokens_reference(
    tokens: Tensor, significance: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """`merge_tokens` one image, one run, one token at a time."""
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
    stretched = -(-size // run_length) * run_length
    return start + torch.arange(stretched, device=device) * size // stretched
