"""Put the pictures that SignificanceVisHook drew in a run together: how the significance changes in training.

    python tools/make_evolution.py work_dirs/RUN evolution.gif    # an animation of all
    python tools/make_evolution.py work_dirs/RUN evolution.png    # a contact sheet, first to last

Reads the local files of the Visualizer, those of all parts of a run that was resumed.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

MILLISECONDS_PER_FRAME = 400


def find_pictures(work_dir: Path, image: int) -> list[Path]:
    """The pictures of one image, by iteration; the newest where a resumed run drew one again."""
    pictures = {}
    for path in sorted(work_dir.glob(f'*/vis_data/vis_image/significance_{image}_*.png')):
        pictures[int(re.search(r'\d+$', path.stem)[0])] = path
    return [pictures[step] for step in sorted(pictures)]


def evenly_spaced(pictures: list[Path], number: int) -> list[Path]:
    """At most `number` of them, with the first and the last."""
    places = np.linspace(0, len(pictures) - 1, min(number, len(pictures))).round().astype(int)
    return [pictures[place] for place in places]


def write_sheet(pictures: list[Path], out: Path) -> None:
    """All pictures, one below the other."""
    images = [np.asarray(Image.open(path).convert('RGB')) for path in pictures]
    Image.fromarray(np.concatenate(images)).save(out)


def write_animation(pictures: list[Path], out: Path) -> None:
    """All pictures, one after the other; the last stays longer."""
    first, *rest = (Image.open(path).convert('RGB') for path in pictures)
    durations = [MILLISECONDS_PER_FRAME] * len(rest) + [5 * MILLISECONDS_PER_FRAME]
    first.save(out, save_all=True, append_images=rest, duration=durations, loop=0)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, find the pictures, write what the output's suffix says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('work_dir', type=Path, help='work dir of a run with SignificanceVisHook')
    parser.add_argument('out', type=Path, help='file to write, .gif or .png')
    parser.add_argument('--image', type=int, default=0, help="which of the hook's images (default: 0)")
    parser.add_argument('--rows', type=int, default=6, help='rows of a contact sheet (default: 6)')
    args = parser.parse_args(argv)
    if args.out.suffix not in ('.gif', '.png'):
        parser.error(f'{args.out} must end in .gif or .png')
    pictures = find_pictures(args.work_dir, args.image)
    if not pictures:
        parser.error(
            f'{args.work_dir} has no pictures of image {args.image}: train with '
            "custom_hooks=[dict(type='SignificanceVisHook', interval=...)] and the LocalVisBackend"
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    if args.out.suffix == '.gif':
        write_animation(pictures, args.out)
    else:
        pictures = evenly_spaced(pictures, args.rows)
        write_sheet(pictures, args.out)
    print(f'{len(pictures)} pictures in {args.out}')


if __name__ == '__main__':
    main()
