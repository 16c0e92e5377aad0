"""Write one page on a training run: what was trained, curves, metrics, mistakes, and where the model looks.

The page is one HTML file that needs no other and no network. The model is the work dir's best checkpoint if
there is one, or else the last; it is tested now, on the test data if the config has some, or else on the
validation data.
"""

import argparse
from collections.abc import Sequence

from mmengine.logging import MMLogger
from rich.progress import track

from mmsgformer.checkpoint.files import CheckpointError, write_file
from mmsgformer.cli import check_writable, expanded, expanded_path, read_config, refuse_earlier_results
from mmsgformer.data import DataError, check_dataset_paths
from mmsgformer.report.data import split_to_report
from mmsgformer.report.page import make_page
from mmsgformer.report.run import read_run


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, make the page, write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('work_dir', type=expanded_path, help='work dir of a training run')
    parser.add_argument('--data-root', type=expanded, help='where the data set is now, if it was moved')
    parser.add_argument('--out', type=expanded_path, help='file to write (default: WORK_DIR/report.html)')
    args = parser.parse_args(argv)
    out = args.out or args.work_dir / 'report.html'
    MMLogger.get_instance('mmengine', log_level='WARNING')
    try:
        run = read_run(args.work_dir)
        refuse_earlier_results(out.parent, (out.name,), 'give another file with --out')
        check_writable(out.parent, '--out')
        cfg = read_config(str(run.config), (), args.data_root)
        split = split_to_report(cfg)
        check_dataset_paths(cfg, (split,))
        page = make_page(run, cfg, split, lambda items, count: track(items, 'testing', total=count))
        write_file(page.encode(), out)
    except (CheckpointError, DataError, OSError, ValueError) as error:
        raise SystemExit(f'error: {" ".join(str(error).split())}') from error
    print(f'{out}: {out.stat().st_size / 1e6:.1f} MB, on the {split} data, checkpoint {run.checkpoint.name}')


if __name__ == '__main__':
    main()
