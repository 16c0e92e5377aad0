"""Run an exported model on an image or a folder of images: pictures, and predictions as JSON.

OUT_DIR/pictures/IMAGE.png has the predictions drawn; OUT_DIR/predictions.json has, by image name, boxes
(x1, y1, x2, y2 in pixels) with masks as COCO's RLE, or the share of the image of each class with
OUT_DIR/label_maps/IMAGE.png (16 bits above 256 classes), or the class of the whole image.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mmsgformer_runtime.errors import InputError, ModelError
from mmsgformer_runtime.images import find_images
from mmsgformer_runtime.masks import encode_rle
from mmsgformer_runtime.model import BACKENDS, Model
from mmsgformer_runtime.pictures import draw

SAVED_EVERY = 30  # seconds


def describe(task: str, found: dict[str, np.ndarray], classes: tuple[str, ...], label_map: Path) -> dict:
    """Predictions as plain values; a segmentation's label map is written to a PNG file."""
    if task == 'detection':
        instances = [
            {'class': classes[label], 'score': float(score), 'box': box.tolist()}
            for label, score, box in zip(found['labels'], found['scores'], found['boxes'], strict=True)
        ]
        for instance, mask in zip(instances, found.get('masks', []), strict=False):
            instance['mask'] = encode_rle(mask)
        return {'instances': instances}
    if task == 'segmentation':
        labels = found['labels'].astype(np.uint8 if len(classes) <= 256 else np.uint16)
        _write(labels, label_map)
        shares = np.bincount(labels.flatten(), minlength=len(classes)) / labels.size
        present = {classes[i]: float(share) for i, share in enumerate(shares) if share}
        return {'label_map': f'label_maps/{label_map.name}', 'shares': present}
    best = int(found['scores'].argmax())
    return {'class': classes[best], 'score': float(found['scores'][best])}


def infer(model: Model, images: Sequence[Path], out_dir: Path) -> list[str]:
    """Write pictures and predictions of all images; returns an error for each one that fails.

    predictions.json is written in any case, with the images until then.
    """
    predictions, bad, saved = {}, [], time.monotonic()

    def save() -> None:
        partial = out_dir / 'predictions.json.part'
        partial.write_text(json.dumps(predictions, indent=1))
        partial.replace(out_dir / 'predictions.json')

    try:
        for path in images:
            if time.monotonic() - saved > SAVED_EVERY:
                save()
                saved = time.monotonic()
            try:
                image = model.read(path)
                found = model.predict(image)
                label_map = out_dir / 'label_maps' / f'{path.name}.png'
                predictions[path.name] = describe(model.task, found, model.classes, label_map)
                picture = draw(image, model.task, found, model.metadata)
                _write(picture, out_dir / 'pictures' / f'{path.name}.png')
            except Exception as error:  # the others must not be lost by any
                text = ' '.join(str(error).split())
                bad.append(text if text.startswith(str(path)) else f'{path} failed: {text}')
    finally:
        save()
    return bad


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, predict; an image that fails is reported and makes the exit code 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('input', type=Path, help='an image or a folder of images')
    parser.add_argument('--model', required=True, type=Path, help='ONNX file that tools/export.py wrote')
    parser.add_argument('--out-dir', required=True, type=Path, help='folder to write to; made if needed')
    parser.add_argument('--backend', choices=BACKENDS, default=BACKENDS[0])
    parser.add_argument('--threads', type=int, default=0, help="of the CPU (default: the backend's choice)")
    args = parser.parse_args(argv)
    try:
        images = find_images(args.input)
        _refuse_earlier_results(args.out_dir)
        model = Model(args.model, args.backend, args.threads)
        if model.task == 'features':
            raise ModelError(f'{args.model} is a backbone: its maps are no predictions; export --what model')
        args.out_dir.mkdir(parents=True, exist_ok=True)
    except (InputError, ModelError, OSError) as error:
        raise SystemExit(f'error: {error}') from error
    try:
        bad = infer(model, images, args.out_dir)
    except KeyboardInterrupt:
        print(f'stopped: predictions.json in {args.out_dir} has the images until then', file=sys.stderr)
        raise SystemExit(130) from None
    good = len(images) - len(bad)
    print(f'{good} of {len(images)} images: predictions.json and pictures in {args.out_dir}')
    if bad:
        raise SystemExit('\n'.join(f'error: {line}' for line in bad))


def _refuse_earlier_results(out_dir: Path) -> None:
    for pattern in ('predictions.json', 'pictures/*'):
        for found in sorted(out_dir.glob(pattern)):
            raise InputError(f'{found} is there already, from an earlier run: give another --out-dir')


def _write(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


if __name__ == '__main__':
    main()
