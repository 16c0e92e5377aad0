"""Draw where a trained model looks: significance, token allocation and predictions.

OUT_DIR/IMAGE.png is the panel of IMAGE.
"""

from collections.abc import Sequence

from rich.progress import track

from mmsgformer.checkpoint.files import CheckpointError
from mmsgformer.cli import check_writable, expanded_path, predictor_parser, refuse_earlier_results
from mmsgformer.data import DataError
from mmsgformer.visualization.drawing import draw_panel, seen_part
from mmsgformer.visualization.maps import require_significance
from mmsgformer.visualization.predictions import Predictor, describe_failure, find_images


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, draw every image; one that fails is reported and makes the exit code 1."""
    parser = predictor_parser(__doc__)
    parser.add_argument('images', type=expanded_path, help='an image, or a folder of images')
    args = parser.parse_args(argv)
    try:
        images = find_images(args.images)
        refuse_earlier_results(args.out_dir, ('*.*.png',), 'give another folder with --out-dir')
        check_writable(args.out_dir, '--out-dir')
        predictor = Predictor(args.config, args.checkpoint, args.device)
        require_significance(getattr(predictor.model, 'backbone', None))
    except (CheckpointError, DataError, FileNotFoundError, ValueError) as error:
        raise SystemExit(f'error: {error}') from error
    bad = []
    for path in track(images, description='drawing'):
        try:
            sample = predictor.predict(path)
            seen = seen_part(predictor.read(path), sample)
            panel = draw_panel(seen, predictor.maps(path), path.name, predictor.draw(path, sample))
            panel.savefig(args.out_dir / f'{path.name}.png', dpi=100)
        except Exception as error:  # the others must not be lost by any
            bad.append(describe_failure(path, error))
    print(f'{len(images) - len(bad)} of {len(images)} images drawn to {args.out_dir}')
    if bad:
        raise SystemExit('\n'.join(f'error: {line}' for line in bad))


if __name__ == '__main__':
    main()
