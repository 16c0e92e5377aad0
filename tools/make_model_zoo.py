"""Write the tables of docs/model_zoo.md from the metafiles: every config's cost and the paper's numbers."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmsgformer.release.model_index import Model, read_models

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'model_zoo.md'
# What stands around a table in the page; the folder's name goes in.
BEGIN, END = '<!-- {} begin: written by tools/make_model_zoo.py -->\n', '<!-- {} end -->'


def row(model: Model) -> str:
    """A model's line: config, parameters, GMACs, results; the paper's numbers are marked."""
    parameters, gmacs = [f'{model.parameters / 1e6:.2f}'], [f'{model.macs / 1e9:.1f}']
    if 'Parameters' in model.paper_cost:
        parameters.append(f'{model.paper_cost["Parameters"] / 1e6:.0f} (paper)')
    if 'FLOPs' in model.paper_cost:
        gmacs.append(f'{model.paper_cost["FLOPs"] / 1e9:.0f} (paper)')
    results = ', '.join(f'{metric} {value:.1f}' for metric, value in model.paper.items())
    results = f'{results} (paper)' if results else '-'
    return f'| [{model.name}](../{model.config}) | {", ".join(parameters)} | {", ".join(gmacs)} | {results} |'


def table(folder: str) -> str:
    """The table of the configs in this folder of configs/."""
    rows = [row(m) for m in read_models(ROOT) if Path(m.config).parent.name == folder]
    return '\n'.join(['| config | parameters, M | GMACs | results |', '|---|---|---|---|', *rows]) + '\n'


def fill(page: str) -> str:
    """The page with its tables written anew."""
    for folder in ('imagenet', 'coco', 'ade20k', 'imagenette', 'camvid', 'nuclei'):
        begin, end = BEGIN.format(folder), END.format(folder)
        head, _, rest = page.partition(begin)
        page = head + begin + table(folder) + end + rest.partition(end)[2]
    return page


def main(argv: Sequence[str] | None = None) -> None:
    """Fill the page."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    PAGE.write_text(fill(PAGE.read_text()))


if __name__ == '__main__':
    main()
