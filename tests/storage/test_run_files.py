"""The result and the rows of a run, and the results of all runs in results.csv."""

import csv
import json
import math

import pytest
from helpers import made_up

from configs import base
from stability import hyper
from stability.errors import BadInput
from stability.storage import files, results_csv, run_files
from stability.storage.run_files import Result

RESULT = Result(
    status='diverged',
    initial_loss=5.5,
    final_loss=math.nan,
    parameters=36864,
    steps=90,
    tokens=5760,
    seconds=1.5,
)


@pytest.mark.parametrize(
    ('initial', 'final', 'status'),
    [
        (5.5, 2.0, 'done'),
        (5.5, 5.5, 'done'),
        (5.5, 5.6, 'diverged'),
        (5.5, math.nan, 'diverged'),
        (5.5, math.inf, 'diverged'),
    ],
)
def test_final_status(initial, final, status):
  assert run_files.final_status(initial, final) == status


def test_result_on_disk(tmp_path):
  assert run_files.read_result(tmp_path) is None
  run_files.write_result(tmp_path, RESULT)
  found = json.loads((tmp_path / 'result.json').read_text())
  assert list(found) == [
      *('status', 'initial_loss', 'final_loss', 'parameters', 'steps', 'tokens', 'seconds', 'error')
  ]
  read = run_files.read_result(tmp_path)
  assert read.final_loss is None and read.to_json() == found


def test_reused_result(tmp_path):
  run_files.write_result(tmp_path, Result('done', trained_in='../x'))
  assert run_files.read_result(tmp_path).trained_in == '../x'


def test_result_of_older_versions(tmp_path):
  """Parameters may be absent, and unknown keys are ignored."""
  found = RESULT.to_json() | {'new': 1, 'final_loss': 6.0}
  del found['parameters']
  files.write_json(tmp_path / 'result.json', found)
  assert run_files.read_result(tmp_path).parameters is None


@pytest.mark.parametrize(
    'change', [{'status': 'fine'}, {'status': []}, {'steps': '9'}, {'seconds': True}, {'error': 3}]
)
def test_damaged_result(tmp_path, change):
  files.write_json(tmp_path / 'result.json', RESULT.to_json() | change)
  with pytest.raises(BadInput, match=r'result.json: damaged: '):
    run_files.read_result(tmp_path)


def test_metrics(tmp_path):
  assert run_files.read_metrics(tmp_path) == [] and run_files.last_metrics(tmp_path) is None
  rows = [{'step': step} for step in (10, 20, 30)]
  files.write_lines(tmp_path / 'metrics.jsonl', rows)
  assert run_files.last_metrics(tmp_path) == rows[-1]
  run_files.truncate_metrics(tmp_path, 20)
  assert run_files.read_metrics(tmp_path) == rows[:2]


def test_results_csv(tmp_path):
  points = hyper.sweep('optimizer.learning_rate', (1e-3, 1e-2))
  runs = hyper.expand(base.get_config().to_dict(), points)
  made_up.write_runs(tmp_path, runs)
  first = run_files.run_dir(tmp_path, next(iter(runs.configs)))
  run_files.write_result(first, Result('done', final_loss=2.5))
  with results_csv.write_results(tmp_path).open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert [row['status'] for row in rows] == ['done', 'missing']
  assert rows[0]['run'] == 'learning_rate=0.001,seed=0'
  assert rows[0]['optimizer.learning_rate'] == rows[0]['learning_rate'] == '0.001'
  assert (rows[0]['final_loss'], rows[1]['final_loss']) == ('2.5', '')
  assert rows[0]['parameters'] == str(12 * 3 * 64**2)
