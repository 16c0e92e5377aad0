"""tools/compare_results.py on work dirs as the tools leave them: finished, unfinished and absent runs."""

import json
from pathlib import Path

from mmengine.config import Config

ROOT = Path(__file__).parents[2]
DETECTOR = 'coco/mask-rcnn_sgformer-s_fpn_1x_coco'
SEGMENTER = 'ade20k/sgformer-s_upernet_8xb2-160k_ade20k-512x512'


def leave_a_run(work_dirs: Path, config: str, validations: dict[int, dict]) -> Config:
    """What a training run leaves: the config's dump twice, and the log with these validations by step."""
    cfg = Config.fromfile(ROOT / 'configs' / f'{config}.py')
    work_dir = work_dirs / Path(config).name
    logs = work_dir / '20260101_000000' / 'vis_data'
    logs.mkdir(parents=True)
    cfg.dump(work_dir / f'{work_dir.name}.py')
    cfg.dump(logs / 'config.py')
    lines = [{'lr': 1e-4, 'loss': 1.0, 'step': 50}]
    lines += [{**metrics, 'step': step} for step, metrics in validations.items()]
    (logs / 'scalars.json').write_text('\n'.join(map(json.dumps, lines)))
    return cfg


def leave_a_tta_test(work_dirs: Path, cfg: Config, config: str, metrics: dict) -> None:
    """What `tools/test.py --tta` leaves after the last checkpoint."""
    folder = work_dirs / Path(config).name / '20260102_000000'
    (folder / 'vis_data').mkdir(parents=True)
    cfg.model = dict(type='SegTTAModel', module=cfg.model)
    cfg.load_from = 'somewhere/iter_160000.pth'
    cfg.dump(folder / 'vis_data' / 'config.py')
    (folder / '20260102_000000.json').write_text(json.dumps(metrics))


def rows(markdown: str) -> dict[tuple[str, str], list[str]]:
    """(config, metric) -> the cells after them."""
    cells = [[cell.strip() for cell in line.strip('|').split('|')] for line in markdown.splitlines()[2:]]
    return {(row[0], row[1]): row[2:] for row in cells}


def test_finished_runs_stand_beside_the_paper_and_others_say_how_far_they_came(run_tool, tmp_path):
    leave_a_run(tmp_path, DETECTOR, {11: {'coco/bbox_mAP': 0.1}, 12: {'coco/bbox_mAP': 0.471}})
    cfg = leave_a_run(tmp_path, SEGMENTER, {144000: {'mIoU': 40.0}, 160000: {'mIoU': 50.25}})
    leave_a_tta_test(tmp_path, cfg, SEGMENTER, {'mIoU': 51.0})
    leave_a_run(tmp_path, 'imagenet/sgformer-s_8xb128_in1k', {9: {'accuracy/top1': 60.0}})

    result = run_tool('compare_results.py', tmp_path)
    assert result.returncode == 0, result.stderr
    table = rows((tmp_path / 'compare_results.md').read_text())
    detector, segmenter = Path(DETECTOR).name, Path(SEGMENTER).name
    assert table[detector, 'box AP'] == ['47.4', '47.1', '-0.3']
    assert table[detector, 'mask AP'] == ['42.6', 'not logged', '']
    assert table[segmenter, 'mIoU'] == ['49.9', '50.2', '+0.4']
    assert table[segmenter, 'mIoU (ms+flip)'] == ['51.5', '51.0', '-0.5']
    assert table['sgformer-s_8xb128_in1k', 'Top 1 Accuracy'] == ['83.2', 'epoch 9 of 300', '']
    assert table['sgformer-b_8xb128_in1k', 'Top 1 Accuracy'] == ['84.7', 'not run', '']
    assert table['retinanet_sgformer-s_fpn_1x_coco', 'box AP'] == ['-', 'not run', '']
    assert ('retinanet_sgformer-s_fpn_1x_coco', 'mask AP') not in table
    assert (tmp_path / 'compare_results.png').stat().st_size > 10_000


def test_a_test_in_a_folder_of_its_own_is_no_newer_run(run_tool, tmp_path):
    cfg = leave_a_run(tmp_path, SEGMENTER, {160000: {'mIoU': 50.25}})
    logs = tmp_path / 'eval' / '20260102_000000' / 'vis_data'
    logs.mkdir(parents=True)
    for dump in (tmp_path / 'eval' / f'{Path(SEGMENTER).name}.py', logs / 'config.py'):
        cfg.dump(dump)
    (logs / 'scalars.json').write_text('{"mIoU": 50.25, "step": 0}')
    assert run_tool('compare_results.py', tmp_path).returncode == 0
    table = rows((tmp_path / 'compare_results.md').read_text())
    assert table[Path(SEGMENTER).name, 'mIoU'] == ['49.9', '50.2', '+0.4']


def test_a_missing_folder_is_named(run_tool, tmp_path):
    result = run_tool('compare_results.py', tmp_path / 'none')
    assert result.returncode == 2
    assert 'none is not a folder' in result.stderr
