"""Convert a checkpoint: official names to ours and back, a backbone out of a model, .pth to .safetensors."""

import argparse
from collections.abc import Sequence

from mmsgformer.checkpoint.files import CheckpointError, read_checkpoint, write_checkpoint
from mmsgformer.cli import expanded
from mmsgformer.release.convert import FORMATS, convert


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, convert, say what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'source', type=expanded, help='an official file, or a checkpoint of a model with an SGFormer backbone'
    )
    parser.add_argument('target', type=expanded, help='the new file: .pth or .safetensors')
    parser.add_argument(
        '--to',
        choices=FORMATS,
        default='backbone',
        help="the backbone alone (default), mmpretrain's ImageClassifier, or the official names",
    )
    args = parser.parse_args(argv)
    try:
        weights, entry = convert(read_checkpoint(args.source), args.to, args.source)
        # The official files keep their weights under this name.
        official_file = args.to == 'official' and args.target.endswith('.pth')
        path, digest = write_checkpoint({'state_dict': weights} if official_file else weights, args.target)
    except (CheckpointError, OSError) as error:
        raise SystemExit(f'error: {error}') from error
    count = sum(value.numel() for value in weights.values())
    print(f'{path}: {len(weights)} tensors, {count:,} parameters, from {entry} of {args.source}')
    print(f'SHA-256 {digest}')


if __name__ == '__main__':
    main()
