"""Write one page on a training run: what was trained, curves, metrics, mistakes, and where the model looks.

The page is one HTML file that needs no other and no network. The model is the work dir's best checkpoint if
there is one, or else the last; it is tested now, on the test data if the config has some, or else on the
validation data.
"""

import argparse
import glob
import tempfile
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.progress import track

from mmsgformer.checkpoint.files import CheckpointError, write_file
from mmsgformer.cli import (
    add_data_options,
    check_writable,
    expanded_path,
    read_config,
    refuse_earlier_results,
)
from mmsgformer.data import DataError, check_dataset_paths
from mmsgformer.report.data import split_to_report
from mmsgformer.report.page import make_page
from mmsgformer.report.run import Run, read_run


def page_of(run: Run, args: argparse.Namespace) -> str:
    """The page of a run, on the data that the arguments say."""
    with tempfile.TemporaryDirectory() as folder:  # for what --data has to write down
        cfg = read_config(str(run.config), (), args.data_root, data=args.data, work_dir=folder)
        split = split_to_report(cfg)
        check_paths(cfg, split)
        return make_page(run, cfg, split, lambda items, count: track(items, 'testing', total=count))


def check_paths(cfg: Config, split: str) -> None:
    """`check_dataset_paths`, with the options that there are here."""
    try:
        check_dataset_paths(cfg, (split,))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f'{str(error).partition(". Give")[0]}. Say where the data are now with --data-root or --data'
        ) from error


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, make the page, write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('work_dir', type=expanded_path, help='work dir of a training run')
    add_data_options(parser)
    parser.add_argument('--out', type=expanded_path, help='file to write (default: WORK_DIR/report.html)')
    args = parser.parse_args(argv)
    out = args.out or args.work_dir / 'report.html'
    MMLogger.get_instance('mmengine', log_level='WARNING')
    try:
        run = read_run(args.work_dir)
        refuse_earlier_results(out.parent, (glob.escape(out.name),), 'give another file with --out')
        check_writable(out.parent, '--out')
        write_file(page_of(run, args).encode(), out)
    except (CheckpointError, DataError, OSError) as error:
        raise SystemExit(f'error: {" ".join(str(error).split())}') from error
    print(f'{out}: {out.stat().st_size / 1e6:.1f} MB, of {run.checkpoint}')


if __name__ == '__main__':
    main()
