"""The operator is measured in the shapes in which the network calls it."""

import re

import pytest
import torch
from tool_calls import ROOT, load_tool

from mmsgformer import SGFormer, attention


@pytest.mark.parametrize('size', [(1, 64, 64), (2, 100, 75)], ids=str)
def test_shapes_are_the_networks(size, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools')
    called = []

    def record(q, k, *others):
        called.append((*q.shape[:3], k.shape[2], q.shape[3]))
        return operator(q, k, *others)

    operator = attention.attention_with_column_means
    monkeypatch.setattr(attention, 'attention_with_column_means', record)
    batch, *sides = size
    with torch.no_grad():
        SGFormer('t').eval()(torch.randn(batch, 3, *sides))
    measured = load_tool('benchmark_attention').cases('t', batch, *sides)
    assert set(measured) == set(called)


@pytest.mark.parametrize('options', [['--no-memory'], pytest.param([], marks=pytest.mark.slow)], ids=str)
def test_it_prints_a_table_for_each_type(options, run_tool):
    arguments = ['--inputs', 64, '--arch', 't', '--rounds', 1, '--types', 'fp32', 'bf16', *options]
    result = run_tool('benchmark_attention.py', *arguments)
    assert result.returncode == 0, result.stderr
    tables = result.stdout.split('with means / torch, without')[1:]
    assert len(tables) == 2
    for table in tables:
        rows = re.findall(r'^\| (\d.*) \|$', table, re.M)
        assert len(rows) == 6
        assert all(len(row.split(' | ')) == (3 if options else 4) for row in rows)
