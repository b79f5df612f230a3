"""The share of steps in which interventions acted, by arm, and what reports say of it."""

import dataclasses
import json

import pandas as pd
import pytest
from helpers import made_up

from configs import base
from stability import hyper
from stability.analysis import inert
from stability.analysis import results as results_lib
from stability.report import findings, tables
from stability.storage import run_files

CLIP, CAP = 'acted/clip_norm', 'acted/qk_clip'


@pytest.fixture
def workdir(tmp_path):
  """Three arms of two seeds; the third one has logged no row yet."""
  arms = [{}, {'optimizer.qk_clip': 100.0}, {'optimizer.qk_clip': 30.0}]
  arms = [{'arm': name} | arm for name, arm in zip(('none', 'high', 'low'), arms, strict=True)]
  points = hyper.product([arms, hyper.sweep('seed', [0, 1])])
  runs = hyper.expand(base.get_config().to_dict(), points)
  made_up.write_runs(tmp_path, runs)
  rows = {
      'none': [[{CLIP: 1.0}, {CLIP: 0.0}], [{CLIP: 1.0}, {}, {CLIP: 1.0}]],
      'high': [[{CLIP: 0.0, CAP: 0.0}], [{CLIP: 0.0, CAP: 0.0}]],
  }
  for name, config in runs.configs.items():
    if config['arm'] in rows:
      lines = rows[config['arm']][config['seed']]
      lines = [json.dumps({'step': n, 'loss': 3.0} | row) + '\n' for n, row in enumerate(lines)]
      metrics = run_files.run_dir(tmp_path, name) / 'metrics.jsonl'
      metrics.write_text(''.join(lines) + '{"acted/x": 1')
  return tmp_path


def test_shares(workdir):
  results = results_lib.load_workdir(workdir)
  shares = inert.by_arm(results, inert.load(workdir))
  expected = {'arm': ['none', 'high'], 'clip_norm': [0.75, 0], 'qk_clip': [None, 0]}
  pd.testing.assert_frame_equal(shares, pd.DataFrame(expected), check_dtype=False)
  assert findings.on_inert(results, shares) == (
      'Never acted in a measured step: clip_norm with high; qk_clip.'
  )
  assert findings.on_inert(results, shares.iloc[:1]) is None
  cells = tables.acted(results, shares).to_numpy().tolist()
  assert cells == [['none', '75%', ''], ['high', '0%', '0%']]


def test_without_probes(workdir):
  for path in workdir.glob('runs/*/metrics.jsonl'):
    path.write_text('{"step": 1, "loss": 3.0}\n')
  results = results_lib.load_workdir(workdir)
  for groups in (results.groups, []):
    table = inert.by_arm(dataclasses.replace(results, groups=groups), inert.load(workdir))
    assert len(table) == 0
