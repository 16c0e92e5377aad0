"""Write a trained model, or its backbone, as one ONNX file of standard operators.

    python tools/export.py CONFIG CHECKPOINT --out model.onnx

A model takes images (B, H, W, 3) of uint8, RGB: normalisation and padding are inside; how they are resized
before, and the classes' names and colours, stand in the file's metadata. `python -m mmsgformer_runtime` runs
the file with numpy, Pillow and ONNX Runtime or OpenVINO.
"""

import argparse
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn

from mmsgformer.checkpoint.files import CheckpointError
from mmsgformer.cli import check_writable, entries_checked, expanded, expanded_path, read_config
from mmsgformer.compat import EXPORTS_ANY_SIZE
from mmsgformer.data import DataError
from mmsgformer.visualization.predictions import Predictor

# Points of a metric, in per cent, that the exported model may be away from the other: in float32, in 8 bits.
TOLERANCE, INT8_TOLERANCE = 0.1, 0.5


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, export, verify."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', type=expanded, help='config file')
    parser.add_argument('checkpoint', type=expanded, help='checkpoint of the whole model')
    parser.add_argument('--out', type=expanded_path, required=True, help='ONNX file to write')
    parser.add_argument('--what', choices=['model', 'backbone'], default='model')
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--dynamic', action='store_true', help='for every size of image (the default)')
    size.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='for this size only, faster')
    parser.add_argument(
        '--small-topk', action='store_true', help='sort in blocks, for TensorRT, whose TopK takes 3840 values'
    )
    parser.add_argument(
        '--int8', action='store_true', help='linear layers in 8 bits: smaller, quicker, not quite the same'
    )
    parser.add_argument(
        '--verify',
        type=expanded,
        metavar='DATA',
        help="compare the metrics of both on the config's test data, in this folder",
    )
    args = parser.parse_args(argv)
    if args.verify and args.what == 'backbone':
        parser.error('--verify compares metrics, which a backbone has not: leave it out, or --what model')
    if not EXPORTS_ANY_SIZE:
        raise SystemExit(f'error: exporting needs torch 2.10, this is {torch.__version__}')
    try:
        from mmsgformer.export import ExportError, export_backbone, export_model
    except ModuleNotFoundError as error:
        raise SystemExit(
            f'error: {error.name} is not installed: pip install -r requirements/export.txt'
        ) from error
    check_writable(args.out.parent, '--out')
    cfg = read_config(args.config, ('test',) if args.verify else (), data_root=args.verify)
    size = tuple(args.size) if args.size else None
    # torch's exporter tells of its own operators' annotations, and of what will be deprecated.
    logging.getLogger('torch.onnx').setLevel(logging.ERROR)
    warnings.simplefilter('ignore', FutureWarning)
    try:
        predictor = Predictor(cfg, args.checkpoint, 'cpu')
        if args.what == 'backbone':
            export_backbone(predictor.model.backbone, args.out, size, args.small_topk, args.int8)
        else:
            meta, pipeline = predictor.visualizer.dataset_meta, cfg.test_dataloader.dataset.pipeline
            export_model(predictor.model, meta, pipeline, args.out, size, args.small_topk, args.int8)
        print(f'written: {args.out}, {args.out.stat().st_size / 1e6:.1f} MB')
        if args.verify:
            # Another one: the first was changed.
            model = Predictor(cfg, args.checkpoint, 'cpu').model
            verify(cfg, model, args.out, INT8_TOLERANCE if args.int8 else TOLERANCE)
    except (CheckpointError, DataError, ExportError) as error:
        raise SystemExit(f'error: {error}') from error


def verify(cfg: Config, model: nn.Module, path: Path, tolerance: float) -> None:
    """Print both metrics; exit with a message if that of the file is further off, in points."""
    from mmsgformer.export.verify import compare

    with entries_checked():
        metrics = compare(cfg, model, path, 'onnxruntime')
    for name, (expected, found) in metrics.items():
        print(f'{name}: {expected:.4f} in PyTorch, {found:.4f} in the file')
    points = {name: _points(name, *values) for name, values in metrics.items()}
    worst = max(points, key=points.get)
    if points[worst] > tolerance:
        raise SystemExit(f'error: {worst} is {points[worst]:.2f} points away from that of the model')


def _points(name: str, expected: float, found: float) -> float:
    """A difference in per cent; COCO's are shares, in steps of 0.001, which binary numbers do not hold."""
    return round(abs(expected - found) * (100 if name.startswith('coco/') else 1), 6)


if __name__ == '__main__':
    main()
