"""What the metafiles say of every released config: its cost, and the paper's numbers."""

from pathlib import Path
from typing import NamedTuple

from mmengine.fileio import load

PAPER = ' (paper)'


class Model(NamedTuple):
    """A released config.

    Attributes:
        name: The config's stem.
        config: Its path, relative to the folder of model-index.yml.
        parameters: Counted here.
        macs: Multiply-accumulates of one image, counted here.
        paper_cost: 'Parameters' and 'FLOPs' as the paper gives them, where it does.
        paper: The paper's results, metric -> value, in percent.
    """

    name: str
    config: str
    parameters: int
    macs: int
    paper_cost: dict[str, float]
    paper: dict[str, float]


def read_models(root: Path) -> list[Model]:
    """All models that ROOT/model-index.yml imports, in its order.

    Raises:
        FileNotFoundError: There is no model-index.yml, or a file that it names is missing.
    """
    models = []
    for path in load(root / 'model-index.yml')['Import']:
        for entry in load(root / path)['Models']:
            metadata = entry['Metadata']
            results = {}
            for result in entry.get('Results', []):
                results |= result['Metrics']
            models.append(
                Model(
                    name=entry['Name'],
                    config=entry['Config'],
                    parameters=metadata['Parameters'],
                    macs=metadata['FLOPs'],
                    paper_cost=_of_the_paper(metadata),
                    paper=_of_the_paper(results),
                )
            )
    return models


def _of_the_paper(values: dict) -> dict:
    """The entries that are marked as the paper's, without the mark."""
    return {key.removesuffix(PAPER): value for key, value in values.items() if key.endswith(PAPER)}
