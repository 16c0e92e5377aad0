"""Draw which tokens a query sees through each token mixer: the pictures of docs/mixers.md.

    python tools/draw_mixers.py                      # all, into docs/images/mixers
    python tools/draw_mixers.py swin agent --out DIR

A map of 28 x 28 tokens of a simple scene passes through blocks of stage 2 with untrained weights. A token's
colour is how much the query's output depends on it: the norm of the derivative, relative to the largest.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsgformer.mixers import MIXERS, build

matplotlib.use('Agg')
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm

OUT = Path(__file__).parents[1] / 'docs' / 'images' / 'mixers'
SIDE = 28  # tokens, and pixels of a token's side below
PATCH = 8
DIM, HEADS, STAGE = 32, 2, 1
QUERY = (10, 9)  # row and column, on the disc and near the border of a window
SMALLEST = 1e-3  # of the largest, what still has a colour of its own
ARGUMENTS = {'neighborhood': {'dilation': [1, 2]}}


def scene() -> np.ndarray:
    """A disc, a square and two bars before a background that brightens to the right: (224, 224, 3)."""
    y, x = np.mgrid[: SIDE * PATCH, : SIDE * PATCH] / (SIDE * PATCH)
    image = np.stack([0.75 + 0.1 * x, 0.8 + 0.1 * x, 0.85 + 0.1 * x], axis=-1)
    image[(y - 0.36) ** 2 + (x - 0.32) ** 2 < 0.18**2] = 0.84, 0.37, 0.0
    image[(abs(x - 0.78) < 0.1) & (abs(y - 0.78) < 0.1)] = 0.84, 0.37, 0.0
    image[(abs(x - 0.7) < 0.03) & (y < 0.5)] = 0.0, 0.45, 0.7
    image[(abs(y - 0.72) < 0.03) & (x < 0.5)] = 0.0, 0.45, 0.7
    return image


def tokens(image: np.ndarray) -> Tensor:
    """Patches of the image as a normalised map (1, 28, 28, C) in float64, by a random projection."""
    patches = torch.from_numpy(image).unflatten(1, (SIDE, PATCH)).unflatten(0, (SIDE, PATCH))
    patches = patches.transpose(1, 2).flatten(2)  # (28, 28, 8 * 8 * 3)
    projected = patches @ torch.randn(patches.shape[-1], DIM, dtype=torch.float64)
    return F.layer_norm(projected + 0.1 * projected.std() * torch.randn_like(projected), (DIM,))[None]


def sensitivity(mixers: Sequence[nn.Module], x: Tensor, significance: Tensor | None = None) -> Tensor:
    """How much the query's output depends on every token of the map x (1, H, W, C): (H, W), at most 1.

    Of the last mixer's output; those before stand in blocks without a feed-forward network.
    """
    x = x.detach().requires_grad_()
    y = x
    for mixer in mixers:
        mixed, significance = mixer(F.layer_norm(y, (DIM,)), significance)
        y = y + mixed
    rows = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in mixed[0, QUERY[0], QUERY[1]]]
    norms = torch.cat(rows).square().sum((0, -1)).sqrt()
    return norms / norms.max()


def new_mixer(name: str, block: int) -> nn.Module:
    """Untrained, but with weights so large that attention is not all but even."""
    torch.manual_seed(0)
    mixer = build(name, DIM, HEADS, STAGE, block, **ARGUMENTS.get(name, {})).double().eval()
    for weight in mixer.parameters():
        if weight.ndim == 2:
            nn.init.normal_(weight, std=(2 / weight.shape[1]) ** 0.5)
    return mixer


def panels(name: str, x: Tensor) -> dict[str, Tensor]:
    """What to show of a mixer: one block, or both kinds of block; and two in a row."""
    even, odd = new_mixer(name, 0), new_mixer(name, 1)
    of_even = sensitivity([even], x)
    of_odd = sensitivity([odd], x, significance=even(x, None)[1])
    if torch.equal(of_even, of_odd):
        shown = {'one block': of_even}
    else:
        shown = {'even block': of_even, 'odd block': of_odd}
    return {**shown, 'two blocks in a row': sensitivity([even, odd], x)}


def draw(name: str, path: Path) -> None:
    """Write the picture of a mixer."""
    torch.manual_seed(0)
    image = scene()
    shown = panels(name, tokens(image))
    columns = 1 + len(shown)
    figure, axes = plt.subplots(1, columns, figsize=(2.4 * columns + 0.9, 2.9), layout='constrained')
    given = ', '.join(f'{key}={value!r}' for key, value in ARGUMENTS.get(name, {}).items())
    figure.suptitle(f'{name} ({given})' if given else name, fontsize=11, fontweight='bold')
    axes[0].imshow(image, extent=(-0.5, SIDE - 0.5, SIDE - 0.5, -0.5))
    axes[0].set_title('scene and query', fontsize=10)
    colors = matplotlib.colormaps['viridis'].with_extremes(bad='white')
    for ax, (title, values) in zip(axes[1:], shown.items(), strict=True):
        seen = values.numpy() > 0
        values = np.where(seen, values.clip(SMALLEST), np.nan)
        picture = ax.imshow(values, cmap=colors, norm=LogNorm(SMALLEST, 1))
        ax.set_title(f'{title}: sees {seen.mean():.0%}', fontsize=10)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        for size, color in ((9, 'white'), (7, 'black')):
            ax.plot(*QUERY[::-1], 's', markersize=size, markerfacecolor='none', markeredgecolor=color)
    figure.colorbar(picture, ax=axes[-1], label='relative influence')
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('mixers', nargs='*', metavar='MIXER', help='names; all that there are by default')
    parser.add_argument('--out', type=Path, default=OUT, help=f'folder (default: {OUT})')
    args = parser.parse_args(argv)
    for name in args.mixers:
        if name not in MIXERS.module_dict:
            parser.error(f'there is no mixer {name!r}; there are {", ".join(sorted(MIXERS.module_dict))}')
    for name in args.mixers or MIXERS.module_dict:
        draw(name, args.out / f'{name}.png')
        print(args.out / f'{name}.png')


if __name__ == '__main__':
    main()
