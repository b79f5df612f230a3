"""launch.benchmarks.probes on made-up sweeps, in which some probes predict instability."""

import csv
import math
import sys

import numpy as np
import pytest
from helpers import made_up

from configs import base
from launch.benchmarks import probes
from stability import hyper
from stability.storage import files, run_files

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
CRITICAL = {16: 2e-2, 32: 2e-3}  # width -> learning rate
ONSET = 120


def write(workdir, fell_at):
  """Runs whose loss is high from ONSET on above a critical rate; their stable rank fell before."""
  points = hyper.product([
      hyper.sweep('model.width', list(CRITICAL)),
      hyper.sweep('optimizer.learning_rate', RATES),
  ])
  runs = hyper.expand(base.get_config().to_dict(), points)
  made_up.write_runs(workdir, runs)
  for name, config in runs.configs.items():
    rate, width = config['optimizer']['learning_rate'], config['model']['width']
    unstable = rate > CRITICAL[width]
    rank, fallen = width / 2, width / 16
    lines = [
        {
            'step': step,
            'loss': 4.0 if unstable and step >= ONSET else 2.0,
            'learning_rate': rate,
            'block_0/attention_logit_max': 10.0,
            'stable_rank/embedding': width / 4,
            'stable_rank/block_0/attention/key': fallen if unstable and step >= fell_at else rank,
        }
        for step in range(10, 201, 10)
    ]
    run = run_files.run_dir(workdir, name)
    files.write_lines(run / 'metrics.jsonl', lines)
    result = run_files.Result('done', 6.0, 4.0 if unstable else 2.0, steps=200)
    run_files.write_result(run, result)


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  """Probe -> its row, on a held-out sweep."""
  folder = tmp_path_factory.mktemp('sweeps')
  write(folder / 'calibration', fell_at=50)
  write(folder / 'held_out', fell_at=60)
  with pytest.MonkeyPatch.context() as patch:
    arguments = ('found.csv', 'calibration', 'held_out')
    patch.setattr(sys, 'argv', ['probes', *(str(folder / name) for name in arguments)])
    probes.main()
  return {row['probe']: row for row in csv.DictReader((folder / 'found.csv').open())}


@pytest.mark.parametrize('name', ['fall of stable rank', 'fall of stable rank, queries and keys'])
def test_a_probe_that_foretells(rows, name):
  """It falls 8 times in unstable runs and not in stable ones: the limit is 1.5 times 1."""
  row = rows[name]
  assert (row['runs'], row['unstable'], row['limit']) == ('10', '6', '1.5')
  assert [row[k] for k in ('recall', 'false_alarm_rate', 'lead')] == ['1.000', '0.000', '0.500']
  assert row['any_lead'] == '0.500' < rows[probes.SHIPPED]['any_lead']


def test_a_probe_that_never_moves(rows):
  row = rows['attention logit']
  assert (row['recall'], row['auc']) == ('0.000', '0.500')


def test_next_size(rows):
  """Width 16 is unstable at the two highest rates, width 32 at all but the lowest."""
  assert rows['fall of stable rank']['pairs'] == '5'
  assert float(rows['fall of stable rank']['auc']) == pytest.approx((2 + 2 * 0.5) / 4, abs=1e-3)
  assert rows['learning rate']['auc'] == '1.000'


def test_auc():
  values, labels = np.array([1.0, 2.0, 3.0, math.nan]), np.array([False, True, False, True])
  assert probes.auc(values, labels) == (1 + 0 + 0.5 + 0.5) / 4
