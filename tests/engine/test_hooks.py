"""The load hook, in real runs of MMEngine's Runner: detection, segmentation, classification."""

import contextlib
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner
from older_torch import needs_torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tolerances import assert_official

from mmsgformer.checkpoint.files import CheckpointError, latest_checkpoint, read_checkpoint
from mmsgformer.checkpoint.names import official_to_ours
from mmsgformer.cli import base_parser, load_config
from mmsgformer.engine.hooks import BadNumberError

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / 'tests' / 'golden'
CONFIGS = {
    'detector': 'configs/demo/mask-rcnn_sgformer-tiny_fpn_shapes.py',
    'segmenter': 'configs/demo/sgformer-tiny_upernet_shapes.py',
    'classifier': 'configs/demo/sgformer-tiny_shapes.py',
}


@pytest.fixture
def make_runner(shapes, tmp_path):
    """A function that makes a Runner of a kind of model that trains to an iteration, a checkpoint at each."""

    def make(kind: str, iterations: int = 2, validate: bool = False, **options: object) -> Runner:
        arguments = [str(ROOT / CONFIGS[kind]), '--data-root', str(shapes), '--work-dir', str(tmp_path)]
        cfg = load_config(base_parser('').parse_args(arguments), splits=('train',))
        cfg.merge_from_dict(
            {
                'train_cfg': dict(_delete_=True, type='IterBasedTrainLoop', max_iters=iterations),
                'train_dataloader.num_workers': 0,
                'train_dataloader.persistent_workers': False,
                'train_dataloader.batch_size': 2,
                'default_hooks.checkpoint.by_epoch': False,
                'default_hooks.checkpoint.interval': 1,
                **options,
            }
        )
        # A visualizer of the same name would be used again.
        cfg.experiment_name = f'{tmp_path.name}-{iterations}-{len(list(tmp_path.iterdir()))}'
        cfg.visualizer.name = cfg.experiment_name
        for split in ('test',) if validate else ('val', 'test'):
            for part in ('dataloader', 'cfg', 'evaluator'):
                cfg[f'{split}_{part}'] = None
        return Runner.from_cfg(cfg)

    return make


NEEDS_SCALER = needs_torch(2, 3, 'loss scaler for a CPU')
RUNS = [('classifier', False), pytest.param('segmenter', True, marks=NEEDS_SCALER)]
MORE_RUNS = [('detector', False), ('segmenter', False), ('detector', True), ('classifier', True)]


@pytest.mark.parametrize(
    ('kind', 'extras'),
    RUNS + [pytest.param(*run, marks=[pytest.mark.slow, NEEDS_SCALER]) for run in MORE_RUNS],
)
def test_training_resumes(kind, extras, make_runner, monkeypatch):
    """Without unsafe reading, and, with extras, with the state of EMA and of AMP's loss scaler.

    test_exact_resume.py has every kind with EMA: the same bits after it.
    """
    options = {'custom_hooks': [dict(type='EMAHook', momentum=0.01)] if extras else []}
    if extras:
        if not torch.cuda.is_available():
            # MMEngine's wrapper refuses a CPU, which torch's mixed precision does not.
            wrapper = 'mmengine.optim.optimizer.amp_optimizer_wrapper'
            monkeypatch.setattr(f'{wrapper}.is_cuda_available', lambda: True)
            monkeypatch.setattr(f'{wrapper}.GradScaler', functools.partial(torch.amp.GradScaler, 'cpu'))
            if kind == 'detector':  # mmcv's RoIAlign knows no bfloat16 there: the loss scaler only
                monkeypatch.setattr('mmengine.runner.amp.autocast', lambda dtype: contextlib.nullcontext())
        options['optim_wrapper'] = dict(type='AmpOptimWrapper', dtype='bfloat16')
    first = make_runner(kind, **options)
    first.train()
    path = latest_checkpoint(first.work_dir)
    assert path.endswith('iter_2.pth')
    saved = read_checkpoint(path)
    assert ('ema_state_dict' in saved) == ('loss_scaler' in saved['optimizer']) == extras

    second = make_runner(kind, iterations=3, resume=True, load_from=path, **options)
    resumed = {}
    second.register_hook(Peek(resumed), priority='LOWEST')
    second.train()
    assert resumed['iter'] == 2
    weights = saved['state_dict']
    if extras:
        # With EMA a file's state_dict is the average, and the trained weights lie in ema_state_dict.
        trained = saved['ema_state_dict']
        weights = {name: trained[f'module.{name}'] for name in weights}
        assert resumed['ema_steps'] == trained['steps']
        assert resumed['loss_scaler'] == saved['optimizer']['loss_scaler']
        assert resumed['loss_scaler']['_growth_tracker'] == 2
    assert all(torch.equal(value, weights[name]) for name, value in resumed['state_dict'].items())
    assert latest_checkpoint(second.work_dir).endswith('iter_3.pth')


class Peek(Hook):
    """Copies what a resumed run starts from."""

    def __init__(self, seen: dict) -> None:
        self.seen = seen

    def before_train(self, runner: Runner) -> None:
        self.seen['iter'] = runner.iter
        self.seen['state_dict'] = {n: value.clone() for n, value in runner.model.state_dict().items()}
        self.seen['loss_scaler'] = runner.optim_wrapper.state_dict().get('loss_scaler')
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                self.seen['ema_steps'] = hook.ema_model.steps.clone()


@pytest.mark.parametrize(
    'kind', ['detector', *(pytest.param(k, marks=pytest.mark.slow) for k in CONFIGS if k != 'detector')]
)
def test_training_starts_from_an_official_file(kind, make_runner, official, tmp_path):
    """With a learning rate of 0 what is saved is what was loaded, also in the average of EMA."""
    torch.save({'state_dict_ema': official}, tmp_path / 'official.pth')
    runner = make_runner(
        kind,
        iterations=1,
        load_from=str(tmp_path / 'official.pth'),
        custom_hooks=[dict(type='EMAHook', momentum=0.01)],
        param_scheduler=None,
        **{'optim_wrapper.optimizer.lr': 0.0, 'model.backbone.pretrain_img_size': 224},
    )
    runner.train()
    saved = read_checkpoint(latest_checkpoint(tmp_path))
    expected = official_to_ours(official)
    assert all(
        torch.equal(saved['state_dict'][f'backbone.{name}'], value) for name, value in expected.items()
    )


@pytest.mark.parametrize('kind', CONFIGS)
def test_what_an_official_file_gives_a_whole_model(kind, tiny, make_runner, draw_golden, tmp_path):
    """Through load_from, in double precision: the golden outputs. test_golden.py has those of S."""
    shapes = json.loads((GOLDEN / 'official_keys_tiny.json').read_text())
    official = {name: draw_golden(name, shape) for name, shape in shapes.items()}
    torch.save({'state_dict': official}, tmp_path / 'official.pth')
    dims = list(tiny['embed_dims'])
    runner = make_runner(
        kind,
        load_from=str(tmp_path / 'official.pth'),
        **{
            'model.backbone.arch': 't',
            'model.backbone.pretrain_img_size': 224,
            'model.backbone.out_indices': (0, 1, 2, 3),
            **{
                'detector': {'model.neck.in_channels': dims},
                'segmenter': {
                    'model.decode_head.in_channels': dims,
                    'model.auxiliary_head.in_channels': dims[2],
                },
                'classifier': {'model.head.in_channels': dims[3], 'model.head.num_classes': 1000},
            }[kind],
        },
    )
    model = runner.model.double().eval()
    if kind != 'classifier':  # dense heads are not in the file, which is for training only
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.call_hook('before_run')
    runner.load_or_resume()
    expected = official_to_ours(official)
    assert all(torch.equal(value, expected[name]) for name, value in model.backbone.state_dict().items())
    if kind == 'classifier':
        assert torch.equal(model.head.fc.weight, official['head.weight'])
        assert torch.equal(model.head.fc.bias, official['head.bias'])
    golden = np.load(GOLDEN / 'official_tiny_224.npz')
    with torch.no_grad():
        stages = model.backbone(draw_golden('image224x224', (len(golden['logits']), 3, 224, 224)))
        for i, stage in enumerate(stages):
            assert_official(stage, golden[f'stage{i}'])
        if kind == 'classifier':
            assert_official(model.head(model.neck(stages)), golden['logits'])


@pytest.mark.parametrize('kind', ['detector', 'segmenter'])
def test_a_model_without_its_head_is_not_tested(kind, make_runner, official, tmp_path):
    torch.save(official, tmp_path / 'official.pth')
    runner = make_runner(kind, load_from=str(tmp_path / 'official.pth'))
    runner.call_hook('before_run')
    with pytest.raises(CheckpointError, match=r'official\.pth does not hold the whole model: \d+ missing'):
        runner.load_or_resume()


def test_a_checkpoint_of_other_classes_is_not_resumed(make_runner, tmp_path):
    """Right shapes, other names: what it learned would be called wrong."""
    runner = make_runner('classifier', iterations=1)
    runner.train()
    path = latest_checkpoint(runner.work_dir)
    checkpoint = dict(read_checkpoint(path))
    names = checkpoint['meta']['dataset_meta']['classes']
    checkpoint['meta']['dataset_meta']['classes'] = names[::-1]
    torch.save(checkpoint, tmp_path / 'other.pth')
    for file, is_error in ((path, False), (tmp_path / 'other.pth', True)):
        again = make_runner('classifier', load_from=str(file), resume=True)
        again.optim_wrapper = again.build_optim_wrapper(again.optim_wrapper)
        again.call_hook('before_run')
        if is_error:
            with pytest.raises(CheckpointError, match="has 'triangle' as class 0, another \\('disc'\\)"):
                again.train()
        else:
            again.train()


def test_users_configs_are_protected_by_the_tools(tmp_path):
    """One that inherits nothing from this package gets the hook and the storage all the same."""
    config = tmp_path / 'own.py'
    config.write_text("model = dict(type='A')\ndefault_hooks = dict(checkpoint=dict(interval=7))\n")
    arguments = [str(config), '--cfg-options', 'default_hooks.checkpoint_load.partial=True']
    hooks = load_config(base_parser('').parse_args(arguments), splits=()).default_hooks
    expected = dict(type='CheckpointHook', interval=7, backend_args=dict(backend='checkpoints'))
    assert hooks.checkpoint == expected
    assert hooks.checkpoint_load == dict(type='CheckpointLoadHook', partial=True)


@pytest.mark.parametrize('name', ['checkpoint_load', 'bad_number', 'checkpoint'])
def test_a_hook_is_switched_off_as_in_mmengine(name, make_runner, tmp_path):
    """By None, whether a config has the hook or the tools would add it."""
    config = tmp_path / 'own.py'
    for text in ('', f"default_hooks = dict({name}=dict(priority='LOW'))"):
        config.write_text(text)
        arguments = [str(config), '--cfg-options', f'default_hooks.{name}=None']
        hooks = load_config(base_parser('').parse_args(arguments), splits=()).default_hooks
        assert hooks.get(name) is None
        runner = make_runner('classifier')
        runner._hooks = []
        runner.register_default_hooks(hooks)
        kinds = dict(
            checkpoint_load='CheckpointLoadHook', bad_number='BadNumberHook', checkpoint='CheckpointHook'
        )
        found = {type(hook).__name__ for hook in runner.hooks} & set(kinds.values())
        assert found == set(kinds.values()) - {kinds[name]}


def test_a_users_own_hook_for_saving_keeps_its_arguments(tmp_path):
    config = tmp_path / 'own.py'
    config.write_text("default_hooks = dict(checkpoint=dict(type='OwnHook', interval=7))\n")
    hooks = load_config(base_parser('').parse_args([str(config)]), splits=()).default_hooks
    assert hooks.checkpoint == dict(type='OwnHook', interval=7)


def test_a_config_without_hooks_gets_all(tmp_path):
    config = tmp_path / 'own.py'
    config.write_text('model = dict()\n')
    hooks = load_config(base_parser('').parse_args([str(config)]), splits=()).default_hooks
    saving = dict(type='CheckpointHook', interval=1, backend_args=dict(backend='checkpoints'))
    assert hooks.checkpoint == saving
    assert hooks.checkpoint_load.type == 'CheckpointLoadHook'
    assert hooks.bad_number.type == 'BadNumberHook'


def test_remote_checkpoints_keep_their_storage(tmp_path):
    config = tmp_path / 'own.py'
    config.write_text("model = dict()\ndefault_hooks = dict(checkpoint=dict(out_dir='s3://bucket/a'))\n")
    hooks = load_config(base_parser('').parse_args([str(config)]), splits=()).default_hooks
    assert 'backend_args' not in hooks.checkpoint


def test_weights_alone_are_not_resumed_from(make_runner, tmp_path):
    model = make_runner('classifier').model
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, tmp_path / 'weights.pth')
    runner = make_runner('classifier', load_from=str(tmp_path / 'weights.pth'), resume=True)
    with pytest.raises(CheckpointError, match='cannot be resumed, it has no message_hub, optimizer'):
        runner.train()


def test_significance_is_drawn_while_training_and_changes_nothing(make_runner, tmp_path):
    """Read back from the event files that TensorBoard shows."""
    weights = []
    for drawing in (False, True):
        runner = make_runner(
            'segmenter',
            iterations=1,
            custom_hooks=[dict(type='SignificanceVisHook', interval=1, num_images=1)] if drawing else [],
            randomness=dict(seed=0),
            validate=True,
            **{'visualizer.vis_backends': [dict(type='TensorboardVisBackend')]},
        )
        runner.train()
        weights.append(runner.model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    runs = [EventAccumulator(str(path.parent)).Reload() for path in tmp_path.rglob('events*')]
    (events,) = [run for run in runs if 'significance_0' in run.Tags()['images']]
    assert [image.step for image in events.Images('significance_0')] == [0, 1]


RESNET = dict(_delete_=True, type='mmseg.ResNetV1c', depth=18)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'validate': True, 'model.backbone.mixer': 'swin'}, "the model has the mixer 'swin'"),
        ({'validate': True, 'model.backbone': RESNET}, 'the model has the ResNetV1c, and only an SGFormer'),
        ({'validate': False}, 'needs a val_dataloader'),
    ],
)
def test_nothing_to_draw_is_named_before_training(options, message, make_runner):
    hooks = [dict(type='SignificanceVisHook', interval=1)]
    runner = make_runner('segmenter', iterations=1, custom_hooks=hooks, **options)
    with pytest.raises(ValueError, match=message):
        runner.train()


class Poison(Hook):
    """Makes a weight NaN in the second iteration, at a moment."""

    priority = 'VERY_HIGH'  # before EMA and saving

    def __init__(self, moment: str) -> None:
        setattr(self, moment, self.poison)

    def poison(self, runner: Runner, *_: object, **__: object) -> None:
        if runner.iter == 1:
            next(runner.model.parameters()).data.fill_(float('nan'))


@pytest.mark.parametrize(
    ('moment', 'message'),
    [
        ('before_train_iter', r'iteration 2 has a loss that is not finite: loss nan, decode\.loss_ce nan'),
        ('after_train_iter', r'after iteration 2, backbone\.pos_embed has NaN or infinite values'),
    ],
)
def test_bad_numbers_stop_a_run_and_are_not_saved(moment, message, make_runner, tmp_path):
    """The last good checkpoint is named, and stays although only one is kept."""
    options = {'default_hooks.checkpoint.max_keep_ckpts': 1}
    options['custom_hooks'] = [dict(type='EMAHook', momentum=0.1)]
    runner = make_runner('segmenter', iterations=3, **options)
    runner.register_hook(Poison(moment))
    with pytest.raises(BadNumberError, match=rf'{message}.*The last checkpoint: .*iter_1\.pth'):
        runner.train()
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_1.pth']
    saved = read_checkpoint(tmp_path / 'iter_1.pth')
    for weights in (saved['state_dict'], saved['ema_state_dict']):
        assert all(value.isfinite().all() for value in weights.values())
