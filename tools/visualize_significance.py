"""Draw where a trained model looks: significance, token allocation and predictions.

OUT_DIR/IMAGE.png is the panel of IMAGE.
"""

from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from mmsgformer.checkpoint.files import CheckpointError
from mmsgformer.cli import predictor_parser
from mmsgformer.data import DataError
from mmsgformer.visualization.drawing import draw_panel, seen_part
from mmsgformer.visualization.predictions import Predictor, find_images, read_image


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, draw every image; an unreadable one is reported and makes the exit code 1."""
    parser = predictor_parser(__doc__)
    parser.add_argument('images', type=Path, help='an image, or a folder of images')
    args = parser.parse_args(argv)
    try:
        images = find_images(args.images)
        predictor = Predictor(args.config, args.checkpoint, args.device)
    except (CheckpointError, DataError, FileNotFoundError) as error:
        raise SystemExit(f'error: {error}') from error
    args.out_dir.mkdir(parents=True, exist_ok=True)
    bad = []
    for path in track(images, description='drawing'):
        try:
            image, sample = read_image(path), predictor.predict(path)
        except ValueError as error:
            bad.append(str(error))
            continue
        seen = seen_part(image, sample)
        panel = draw_panel(seen, predictor.maps(path), path.name, predictor.draw(path, sample))
        panel.savefig(args.out_dir / f'{path.name}.png', dpi=100)
    print(f'{len(images) - len(bad)} of {len(images)} images drawn to {args.out_dir}')
    if bad:
        raise SystemExit('\n'.join(f'error: {line}' for line in bad))


if __name__ == '__main__':
    main()
