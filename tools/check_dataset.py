"""Check the data of a config, training, validation and test: every annotation, every image, every label map.

Prints everything that is wrong and what to do; exits with 1 if training would fail or go wrong on it. Notes
say what training makes of unusual images.
"""

import argparse
import tempfile
from collections.abc import Iterable, Sequence

from rich.progress import track

from mmsgformer.cli import OptionsAction, add_data_options, expanded, read_config
from mmsgformer.data.check import check_data

SPLITS = ('train', 'val', 'test')


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, check, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', type=expanded, help='config file')
    add_data_options(parser)
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionsAction, default={}, help='override entries of the config'
    )
    args = parser.parse_args(argv)

    def bar(results: Iterable, count: int) -> Iterable:
        return track(results, total=count, description='checking')

    with tempfile.TemporaryDirectory() as folder:
        cfg = read_config(args.config, SPLITS, args.data_root, args.cfg_options, args.data, work_dir=folder)
        problems, count = check_data(cfg, SPLITS, bar)
    notes: dict[str, list[str]] = {}
    for problem in problems:
        if problem.is_error:
            print(f'error: {problem.file}: {problem.text}')
        else:
            notes.setdefault(problem.text, []).append(problem.file)
    for text, files in notes.items():
        print(f'note: {files[0]}{f" and {len(files) - 1} more" if files[1:] else ""}: {text}')
    errors = sum(problem.is_error for problem in problems)
    print(f'{count} images: {errors} errors, {len(problems) - errors} notes')
    if errors:
        raise SystemExit(1)


if __name__ == '__main__':
    main()
