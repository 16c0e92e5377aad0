"""Run a study, or go on with one: many backbones under one recipe, with the statistics to compare them.

    python tools/study.py configs/studies/camvid.yml --data-root data/camvid

docs/study.md has the protocol and the format of the file. Every run is a process of tools/train.py and, at
its backbone's best learning rate, of tools/test.py and tools/test_corruptions.py. Finished runs are skipped,
and those that were interrupted go on where they were. Ctrl-C ends the runs too. Writes results.csv,
results.md and results.png, and with --costs costs.png: what backbones reach, over what they cost.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from mmsgformer.cli import check_writable, expanded, expanded_path
from mmsgformer.sgformer import MIN_SIZE
from mmsgformer.study.plan import read_study
from mmsgformer.study.run import StudyError, run_study, write_costs


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, run the study."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('study', type=expanded_path, help='YAML file of the study')
    parser.add_argument('--data-root', type=expanded, help="folder of the data set, instead of the study's")
    parser.add_argument(
        '--work-dir', type=expanded_path, help='folder of all runs (default: work_dirs/studies/NAME)'
    )
    parser.add_argument(
        '--costs',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="draw the metric over the backbones' GMACs for an image of this size, too",
    )
    args = parser.parse_args(argv)
    if args.costs and min(args.costs) < MIN_SIZE:
        parser.error(f'--costs: at least {MIN_SIZE} x {MIN_SIZE}, got {args.costs[0]} x {args.costs[1]}')
    try:
        study = read_study(args.study)
    except (FileNotFoundError, ImportError, ValueError) as error:
        parser.error(str(error))
    if args.data_root:
        study = study._replace(data_root=args.data_root)
    folder = args.work_dir or Path('work_dirs', 'studies', args.study.stem)
    check_writable(folder, '--work-dir')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the runs are ended, as with Ctrl-C
    try:
        failed = run_study(study, folder)
    except StudyError as error:
        raise SystemExit(f'error: {error}') from error
    except KeyboardInterrupt:
        raise SystemExit('interrupted: the same command goes on') from None
    for job in failed:
        print(f'error: {job.task}ing failed, see {folder / job.run.folder / job.task}.log')
    if failed:
        raise SystemExit(1)
    if args.costs:
        write_costs(study, folder, tuple(args.costs))
    print((folder / 'results.md').read_text(), end='')
    print(f'Written: {folder}/results.csv, results.md, results.png' + (', costs.png' if args.costs else ''))


if __name__ == '__main__':
    main()
