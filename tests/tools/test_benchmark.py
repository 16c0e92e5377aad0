"""The benchmark runs, and writes what it measured."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from tool_calls import ROOT, load_tool

SMALL = (
    "small={'type': 'SGFormer', 'arch': {'embed_dims': (32, 64, 128, 256), 'depths': (1, 1, 2, 1), "
    "'num_heads': (2, 4, 8, 16)}}"
)


def test_times_memory_and_tables(run_tool, tmp_path):
    """Two backbones by preset and by config, with ratios to the first."""
    arguments = ['--inputs', '64x96:2', '--modes', 'train', '--rounds', 1, '--warmup', 1, '--amp', 'bf16']
    result = run_tool('benchmark.py', 'swin-t', SMALL, *arguments, '--out', tmp_path)
    assert result.returncode == 0, result.stderr
    results = json.loads((tmp_path / 'benchmark.json').read_text())['results']
    assert [r['backbone'] for r in results] == ['swin-t', 'small']
    assert all(r['seconds'] > 0 and r['peak_mib'] > 0 and r['gmacs'] > 0 for r in results)
    lines = (tmp_path / 'benchmark.md').read_text().splitlines()
    assert lines[-2].startswith('| train 64x96, batch 2 | swin-t |')
    assert '(1.00)' in lines[-2]
    assert (tmp_path / 'benchmark.png').stat().st_size > 0


@pytest.mark.parametrize(('arguments', 'row'), [([], '224x224, batch 8'), (['--inputs', '64'], '64x64')])
def test_the_inputs_that_are_measured(run_tool, tmp_path, arguments, row):
    """Those that were given, or the default."""
    quick = ['--no-memory', '--rounds', 1, '--warmup', 1, '--out', tmp_path]
    result = run_tool('benchmark.py', SMALL, *arguments, *quick)
    assert result.returncode == 0, result.stderr
    assert row in (tmp_path / 'benchmark.md').read_text()


def test_what_it_cannot_read_is_named(run_tool):
    for arguments in (['resnet'], ['x={}'], ['swin-t', '--inputs', '2:x']):
        result = run_tool('benchmark.py', *arguments)
        assert result.returncode == 2
        assert 'is neither one of' in result.stderr or 'is not SIZE[:BATCH]' in result.stderr


@pytest.mark.parametrize(('has_gpu', 'device'), [(True, 'cuda'), (False, 'cpu')])
def test_a_gpu_is_measured_where_there_is_one(has_gpu, device, monkeypatch, tmp_path):
    """Not the CPU beside it."""
    benchmark, measured = load_tool('benchmark'), []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: has_gpu)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'a GPU')
    monkeypatch.setattr(benchmark, 'measure', lambda arguments: measured.append(arguments.device) or [])
    benchmark.main([SMALL, '--out', str(tmp_path)])
    assert measured == [device]


def test_what_does_not_compile_or_fit_is_left_out():
    """The others are measured, and the table says so."""
    benchmark = load_tool('benchmark')

    def fail(error: Exception) -> None:
        raise error

    steps = {
        'good': lambda: None,
        'bad': lambda: fail(torch._dynamo.exc.Unsupported('no such operator')),
        'large': lambda: fail(torch.cuda.OutOfMemoryError('64 GiB')),
    }
    failures = benchmark.warm_up(steps, 'cpu', 1)
    assert list(steps) == ['good']
    assert 'no such operator' in failures['bad']
    assert '64 GiB' in failures['large']
    case = {'mode': 'infer', 'batch': 1, 'height': 8, 'width': 8}
    table = benchmark.rows([{'backbone': 'bad', **case}, {'backbone': 'good', 'seconds': 0.5, **case}])
    assert [row[2] for row in table] == ['failed', '500.0']


@pytest.mark.parametrize(
    ('name', 'size', 'reason'),
    [
        ('maxvit-t', '64', 'maxvit_tiny_tf_224 was built for images of 224 x 224, got 64 x 64'),
        ('davit-t', '252x332', 'AssertionError: '),  # mmpretrain's own fault, at some odd sizes
    ],
)
def test_a_backbone_that_does_not_take_the_size_is_named(name, size, reason, run_tool, tmp_path):
    """The others are measured."""
    if name == 'maxvit-t':
        pytest.importorskip('timm')
    quick = ['--no-memory', '--rounds', 1, '--warmup', 1, '--out', tmp_path]
    result = run_tool('benchmark.py', SMALL, name, '--inputs', size, *quick)
    assert result.returncode == 0, result.stderr
    assert f'{name} failed: ' in result.stdout
    assert reason in ' '.join(result.stdout.split())
    ours, theirs = json.loads((tmp_path / 'benchmark.json').read_text())['results']
    assert ours['seconds'] > 0
    assert 'seconds' not in theirs


def test_every_mixer_and_every_rival_has_a_name():
    """All are built, and give four maps at 224."""
    benchmark = load_tool('benchmark')
    names = [n for n in benchmark.PRESETS if n.startswith('sgformer-t') or not n.startswith('sgformer')]
    assert {'sgformer-t-swin', 'sgformer-t-hornet', 'swin-t', 'davit-t', 'gcvit-t'} <= set(names)
    for name in names:
        if name in ('maxvit-t', 'gcvit-t'):
            pytest.importorskip('timm')
        with torch.no_grad():
            maps = benchmark.build(benchmark.PRESETS[name], 'infer')(torch.zeros(1, 3, 224, 224))
        assert [m.shape[2:] for m in maps] == [(s, s) for s in (56, 28, 14, 7)], name


def test_memory_on_a_gpu_is_of_one_backbone(monkeypatch):
    """Its weights, its images and what its steps take, not the other backbones that lie there too."""
    benchmark = load_tool('benchmark')
    backbone, case = (
        torch.nn.Linear(1024, 1024, bias=False),
        benchmark.Case('infer', 2, 512, 512),
    )  # 4 + 6 MiB
    monkeypatch.setattr(torch.cuda, 'reset_peak_memory_stats', lambda: None)
    monkeypatch.setattr(torch.cuda, 'memory_allocated', lambda: 110 * benchmark.MIB)
    monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: 130 * benchmark.MIB)
    assert benchmark.peak_gpu_memory(lambda: None, backbone, case) == 30


def test_the_script_for_gpus_calls_what_there_is(monkeypatch, tmp_path):
    """With options that the tools know, for every size and type."""
    recorder, calls = tmp_path / 'python', tmp_path / 'calls'
    recorder.write_text(f'#!/bin/sh\necho "$*" >> {calls}\n')
    recorder.chmod(0o755)
    script = [str(ROOT / 'tools/benchmark_gpu.sh'), str(tmp_path / 'out')]
    environment = {**os.environ, 'PYTHON': str(recorder), 'DEVICE': 'cpu', 'INPUTS': '64:1 64x96:2'}
    subprocess.run(script, env=environment, check=True)
    pytest_call, operator, *backbones = [line.split() for line in calls.read_text().splitlines()]
    assert all(Path(ROOT, argument).exists() for argument in (pytest_call[-1], operator[0]))
    monkeypatch.syspath_prepend(ROOT / 'tools')  # one imports the other, as scripts do
    tools = {name: load_tool(name) for name in ('benchmark', 'benchmark_attention')}
    measured = []
    monkeypatch.setattr(tools['benchmark'], 'measure', lambda arguments: measured.append(arguments) or [])
    monkeypatch.setattr(tools['benchmark_attention'], 'measure', lambda case, *_: measured.append(case) or [])
    for script, *arguments in (operator, *backbones):
        tools[Path(script).stem].main(arguments)
    *cases, bfloat16, float32, compiled = measured
    assert len(cases) == 2 * 2 * 6  # types, inputs, kinds of attention
    assert (bfloat16.amp, float32.amp, compiled.amp, compiled.compile) == ('bf16', None, 'bf16', True)
    assert bfloat16.inputs == float32.inputs == compiled.inputs == [(1, 64, 64), (2, 64, 96)]
    assert len(bfloat16.backbones) == len(float32.backbones) == 8
