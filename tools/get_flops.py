"""Count the parameters and multiply-accumulates (MACs) of a config's model, module by module.

Counted for one image, with torch's counter: convolutions, linear layers, matrix products and attention's two
products (fused or not). The significance is read off the attention and costs no product more. Two-stage
detectors run their box heads on the RPN's proposals (1000 with random weights) and their mask heads on 100.
Not counted: norms, activations, softmax, sorting, pooling, RoIAlign, deformable attention's sampling,
post-processing.
"""

import argparse
from collections.abc import Sequence

import torch
from mmengine.config import Config
from rich.console import Console
from rich.table import Table

from mmsgformer.cli import OptionsAction, expanded
from mmsgformer.release.flops import DEFAULT_SHAPES, count_costs


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, build the model, run it once, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', type=expanded, help='config file')
    parser.add_argument('--shape', nargs=2, type=int, metavar=('H', 'W'), help='size of the input image')
    parser.add_argument('--depth', type=int, default=3, help='levels of modules to list (default: 3)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionsAction, default={}, help='key=value overrides'
    )
    args = parser.parse_args(argv)
    try:
        cfg = Config.fromfile(args.config)
    except FileNotFoundError as error:
        parser.error(str(error))
    cfg.merge_from_dict(args.cfg_options)
    if cfg.get('default_scope') not in DEFAULT_SHAPES:
        parser.error(f'{args.config}: default_scope must be one of {list(DEFAULT_SHAPES)}')
    shape = tuple(args.shape or DEFAULT_SHAPES[cfg.default_scope])
    if min(shape) < 32:
        parser.error(f'--shape: at least 32 x 32, got {shape[0]} x {shape[1]}')
    torch.manual_seed(0)
    total, *modules = count_costs(cfg, shape)

    table = Table('module', title=f'one image of {shape[0]} x {shape[1]}')
    table.add_column('parameters, M', justify='right')
    table.add_column('GMACs', justify='right')
    for cost in modules:
        depth = cost.name.count('.')
        if depth < args.depth and cost.parameters:
            name = '  ' * depth + cost.name.rpartition('.')[2]
            table.add_row(name, f'{cost.parameters / 1e6:.6f}', f'{cost.macs / 1e9:.3f}')
    table.add_section()
    table.add_row('all', f'{total.parameters / 1e6:.6f}', f'{total.macs / 1e9:.3f}')
    console = Console()
    console.print(table)
    console.print(' '.join(__doc__.split('\n\n')[1].split()), highlight=False)


if __name__ == '__main__':
    main()
