"""Make a file to hand out of a training checkpoint: weights and meta only, with its hash in its name."""

import argparse
from collections.abc import Sequence

from mmsgformer.checkpoint.files import CheckpointError, read_checkpoint, write_checkpoint
from mmsgformer.cli import expanded
from mmsgformer.release.convert import publishable


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, strip, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('checkpoint', type=expanded, help="a checkpoint that MMEngine's Runner saved")
    parser.add_argument(
        'target', type=expanded, help='the new file without the hash: NAME.pth becomes NAME-01234567.pth'
    )
    args = parser.parse_args(argv)
    try:
        if not args.target.endswith('.pth'):
            raise CheckpointError(f'{args.target} must end in .pth: .safetensors has no place for the meta')
        content = publishable(read_checkpoint(args.checkpoint), args.checkpoint)
        path, digest = write_checkpoint(content, args.target, hash_in_name=True)
    except (CheckpointError, OSError) as error:
        raise SystemExit(f'error: {error}') from error
    print(f'{path}: {path.stat().st_size:,} bytes\nSHA-256 {digest}')


if __name__ == '__main__':
    main()
