"""Run a trained model on an image, a folder of images or a video: pictures, and predictions as JSON.

OUT_DIR/pictures/IMAGE.png has the predictions drawn (a video comes out as OUT_DIR/NAME.mp4 too);
OUT_DIR/predictions.json has, by image name, boxes (x1, y1, x2, y2 in pixels) with masks as COCO's RLE, or the
share of the image of each class with OUT_DIR/label_maps/IMAGE.png (16 bits above 256 classes), or the class
of the whole image. It is written twice a minute, so that little is lost when the run is ended.

With --model FILE instead of a config and a checkpoint it runs what tools/export.py wrote, without torch or
the frameworks: `--model FILE --help` says how.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

# The frameworks are imported where they are needed: an exported model needs none of them.
if TYPE_CHECKING:
    import mmcv
    from mmengine.structures import BaseDataElement

    from mmsgformer.visualization.predictions import Predictor

SAVED_EVERY = 30  # seconds
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm')


def describe(sample: BaseDataElement, classes: tuple[str, ...], label_map: Path) -> dict:
    """A data sample's predictions as plain values; a segmentation's label map is written to a PNG file."""
    import mmcv
    from pycocotools import mask as coco_mask

    if 'pred_instances' in sample:
        found = sample.pred_instances.numpy()
        instances = [
            {'class': classes[label], 'score': float(score), 'box': box.tolist()}
            for label, score, box in zip(found.labels, found.scores, found.bboxes, strict=True)
        ]
        for instance, mask in zip(instances, found.get('masks', []), strict=False):
            rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            instance['mask'] = {'size': rle['size'], 'counts': rle['counts'].decode()}
        return {'instances': instances}
    if 'pred_sem_seg' in sample:
        kind = np.uint8 if len(classes) <= 256 else np.uint16
        labels = sample.pred_sem_seg.data[0].numpy().astype(kind)
        mmcv.imwrite(labels, str(label_map))
        shares = np.bincount(labels.flatten(), minlength=len(classes)) / labels.size
        present = {classes[i]: float(share) for i, share in enumerate(shares) if share}
        return {'label_map': f'label_maps/{label_map.name}', 'shares': present}
    label = int(sample.pred_label)
    return {'class': classes[label], 'score': float(sample.pred_score[label])}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, predict; an image that fails is reported and makes the exit code 1."""
    argv = sys.argv[1:] if argv is None else argv
    if any(argument.partition('=')[0] == '--model' for argument in argv):
        from mmsgformer_runtime.__main__ import main as run_exported

        run_exported(argv)
        return
    import mmcv

    from mmsgformer.checkpoint.files import CheckpointError
    from mmsgformer.cli import check_writable, expanded_path, predictor_parser, refuse_earlier_results
    from mmsgformer.data import DataError
    from mmsgformer.visualization.predictions import Predictor, find_images

    parser = predictor_parser(__doc__)
    parser.add_argument('input', type=expanded_path, help='an image, a folder of images, or a video')
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as frames:
        try:
            is_video = args.input.suffix.lower() in VIDEOS
            video = read_video(args.input) if is_video else None
            images = [] if is_video else find_images(args.input)
            others = len(list(args.input.iterdir())) - len(images) if args.input.is_dir() else 0
            refuse_earlier_results(
                args.out_dir, ('predictions.json', 'pictures/*'), 'give another folder with --out-dir'
            )
            check_writable(args.out_dir, '--out-dir')
            if is_video:
                video.cvt2frames(frames, show_progress=False)
                images = find_images(frames)
            predictor = Predictor(args.config, args.checkpoint, args.device)
        except (CheckpointError, DataError, FileNotFoundError) as error:
            raise SystemExit(f'error: {error}') from error
        try:
            bad = infer(predictor, images, args.out_dir)
        except KeyboardInterrupt:
            print(f'stopped: predictions.json in {args.out_dir} has the images until then', file=sys.stderr)
            raise SystemExit(130) from None
    if is_video and not bad:
        target = args.out_dir / f'{args.input.stem}.mp4'
        mmcv.frames2video(
            str(args.out_dir / 'pictures'),
            str(target),
            video.fps,
            filename_tmpl='{:06d}.jpg.png',
            end=len(images),
            show_progress=False,
        )
    if others:
        print(f'left out: {others} entries of {args.input} that are folders or no pictures that can be read')
    print(
        f'{len(images) - len(bad)} of {len(images)} images: predictions.json and pictures in {args.out_dir}'
    )
    if bad:
        raise SystemExit('\n'.join(f'error: {line}' for line in bad))


def read_video(path: Path) -> mmcv.VideoReader:
    """A video file that has frames.

    Raises:
        FileNotFoundError: There is no such file, or it is not a readable video.
    """
    import mmcv

    video = mmcv.VideoReader(str(path)) if path.is_file() else []
    if not len(video):
        raise FileNotFoundError(f'{path} is not a readable video')
    return video


def infer(predictor: Predictor, images: list[Path], out_dir: Path) -> list[str]:
    """Write pictures and predictions of all images; returns an error for each one that fails.

    predictions.json is written in any case, with the images until then.
    """
    import mmcv
    from rich.progress import track

    from mmsgformer.checkpoint.files import write_file
    from mmsgformer.visualization.predictions import describe_failure

    classes = predictor.visualizer.dataset_meta['classes']
    predictions, bad = {}, []
    saved = time.monotonic()

    def save() -> None:
        write_file(json.dumps(predictions, indent=1).encode(), out_dir / 'predictions.json')

    try:
        for path in track(images, description='predicting'):
            if time.monotonic() - saved > SAVED_EVERY:
                save()
                saved = time.monotonic()
            try:
                sample = predictor.predict(path)
                found = describe(sample, classes, out_dir / 'label_maps' / f'{path.name}.png')
                predictions[path.name] = found
                picture = predictor.draw(path, sample)
                mmcv.imwrite(mmcv.rgb2bgr(picture), str(out_dir / 'pictures' / f'{path.name}.png'))
            except Exception as error:  # the others must not be lost by any
                bad.append(describe_failure(path, error))
    finally:
        save()
    return bad


if __name__ == '__main__':
    main()
