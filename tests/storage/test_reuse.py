"""Reuse of runs of another sweep: the numbers of training, and only of equal runs."""

import json
import math
import shutil

import numpy as np
import pytest
from helpers.processes import run
from tensorboard.backend.event_processing import event_accumulator

from stability.storage import (
  files,
  leases,
  parameters,
  results_csv,
  reuse,
  run_files,
  safetensors,
  sweeps,
)

pytestmark = pytest.mark.slow  # trains three sweeps

EXPERIMENT = """
from configs import base
from stability import hyper

def get_config(scale='cpu'):
  c = base.get_config(scale)
  c.data.source = 'synthetic'
  c.data.batch_size = 2
  c.data.sequence_length = 8
  c.data.validation_batches = 1
  c.model.width = 16
  c.model.depth = 0
  c.schedule.steps = 40
  c.schedule.warmup_steps = 1
  c.checkpoint.every_steps = {every}
  return c

def get_sweep(scale='cpu'):
  return hyper.product([{fields}])
"""
RATE = "hyper.sweep('optimizer.learning_rate', [1e-2, 1e25])"
EPS = "hyper.sweep('optimizer.eps', [1e-8, 1e-4])"
SAME = ('eps=1e-08,learning_rate=0.01,seed=0', 'eps=1e-08,learning_rate=1e+25,seed=0')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """Sweeps: rates, of two runs; grid, of these and two more, reusing rates; alone, grid anew."""
  folder = tmp_path_factory.mktemp('place')
  (folder / 'rates.py').write_text(EXPERIMENT.format(every=10, fields=RATE))
  (folder / 'grid.py').write_text(EXPERIMENT.format(every=20, fields=f'{EPS}, {RATE}'))
  for arguments in (
      ['--config=rates.py', '--workdir=rates'],
      ['--config=grid.py', '--workdir=grid', '--reuse=rates'],
      ['--config=grid.py', '--workdir=alone'],
  ):
    process = run(folder, 'sweep', *arguments, '--workers=1')
    assert process.returncode == 0, process.stderr
    (folder / f'{arguments[1].partition("=")[2]}.out').write_text(process.stdout)
  return folder


@pytest.fixture(autouse=True)
def settings_of_workers(monkeypatch):
  """The settings here are those of the programs above, not those of the tests."""
  monkeypatch.setenv('XLA_FLAGS', '')


def numbers(run_folder):
  """The rows of a run without wall-clock values."""
  clocks = ('seconds', 'tokens_per_second')
  lines = run_files.read_metrics(run_folder)
  return [{key: value for key, value in line.items() if key not in clocks} for line in lines]


def test_reused_runs_equal_trained_ones(place):
  assert '2 runs are reused' in (place / 'grid.out').read_text()
  rows = results_csv.read_results(place / 'grid')
  assert len(rows) == 4 and {row['status'] for row in rows} == {'done', 'diverged'}
  for row in rows:
    ours, trained = (place / name / 'runs' / row['run'] for name in ('grid', 'alone'))
    assert numbers(ours) == numbers(trained) and numbers(ours)
    result, expected = map(run_files.read_result, (ours, trained))
    assert result.trained_in == (
        f'../../../rates/runs/{row["run"].partition(",")[2]}' if row['run'] in SAME else None
    )
    for key in ('status', 'initial_loss', 'final_loss', 'steps', 'tokens', 'error'):
      assert getattr(result, key) == getattr(expected, key)


def test_seconds_are_those_of_the_training(place):
  source = run_files.read_result(place / 'rates/runs/learning_rate=0.01,seed=0')
  assert run_files.read_result(place / 'grid/runs' / SAME[0]).seconds == source.seconds


def test_tensorboard_has_the_fields_of_the_new_sweep(place):
  folder = place / 'grid/runs' / SAME[0]
  events = event_accumulator.EventAccumulator(str(folder)).Reload()
  shown = [(event.step, event.value) for event in events.Scalars('loss')]
  assert shown == [
      (line['step'], pytest.approx(line['loss'])) for line in run_files.read_metrics(folder)
  ]
  assert b'optimizer.eps' in next(folder.glob('events.*')).read_bytes()


def change(path, edit):
  content = json.loads(path.read_text())
  edit(content)
  path.write_text(json.dumps(content))


def other_text(sweep, run_folder):
  change(sweep / 'sweep.json', lambda found: found['data'].update(sha256={'train': 'other'}))


def other_versions(sweep, run_folder):
  change(run_folder / 'versions.jsonl', lambda line: line['versions'].update(jax='0.1'))
  (run_folder / 'versions.jsonl').write_text((run_folder / 'versions.jsonl').read_text() + '\n')


def other_settings(sweep, run_folder):
  change(
      run_folder / 'versions.jsonl',
      lambda line: line['versions'].update(JAX_DEFAULT_MATMUL_PRECISION='bfloat16'),
  )
  (run_folder / 'versions.jsonl').write_text((run_folder / 'versions.jsonl').read_text() + '\n')


def other_device(sweep, run_folder):
  (line,) = files.read_lines(run_folder / 'versions.jsonl')
  assert line['device'] == {'platform': 'cpu', 'kind': 'cpu'}
  gpu = {'platform': 'gpu', 'kind': 'NVIDIA H200'}
  files.write_lines(run_folder / 'versions.jsonl', [line | {'device': gpu}])


def unknown_device(sweep, run_folder):
  (line,) = files.read_lines(run_folder / 'versions.jsonl')
  del line['device']
  files.write_lines(run_folder / 'versions.jsonl', [line])


def other_config(sweep, run_folder):
  name = run_folder.name
  change(sweep / 'sweep.json', lambda found: found['runs'][name]['optimizer'].update(beta1=0.8))


def resumed_with_other_options(sweep, run_folder):
  line = json.loads((run_folder / 'versions.jsonl').read_text())
  later = line | {'step': 20, 'options': {'parallel.microbatches': 2}}
  (run_folder / 'versions.jsonl').write_text(f'{json.dumps(line)}\n{json.dumps(later)}\n')


def had_actions(sweep, run_folder):
  (run_folder / 'actions.jsonl').write_text('{}\n')


def has_not_ended(sweep, run_folder):
  (run_folder / 'result.json').unlink()


def has_failed(sweep, run_folder):
  change(run_folder / 'result.json', lambda result: result.update(status='failed', error='x'))


def is_damaged(sweep, run_folder):
  (run_folder / 'result.json').write_text('{"status"')


def has_damaged_metrics(sweep, run_folder):
  lines = (run_folder / 'metrics.jsonl').read_text()
  (run_folder / 'metrics.jsonl').write_text('damaged\n' + lines)


def test_labels_do_not_matter(place):
  config = next(iter(sweeps.read_sweep(place / 'rates').runs.values()))
  assert reuse.key(config | {'arm': 'baseline'}) == reuse.key(config)
  assert reuse.key(config | {'seed': 7}) != reuse.key(config)


def test_limits_of_alarms(place, tmp_path):
  """The content of a file of limits counts, not its path."""
  config = next(iter(sweeps.read_sweep(place / 'rates').runs.values()))
  keys = []
  for number, limit in enumerate((50.0, 50.0, 60.0)):
    run = tmp_path / str(number)
    files.write_json(run / 'limits.json', {'limits': {'x': limit}, 'made_from': {'n': number}})
    limited = config | {'control': config['control'] | {'limits': f'{number}.json'}}
    keys.append(reuse._key_of(run, limited))
  assert keys[0] == keys[1] != keys[2] and keys[0] != reuse._key_of(tmp_path, config)


NO_SUCH = 'no such run that is done'


@pytest.mark.parametrize(
    'spoil, why',
    [
        (None, ''),
        (unknown_device, ''),
        (other_device, 'another device: gpu NVIDIA H200 -> cpu'),
        (other_text, 'another text'),
        (other_versions, 'versions or settings: jax 0.1 -> '),
        (other_settings, 'versions or settings: '),
        (other_config, 'no run with the config'),
        (resumed_with_other_options, NO_SUCH),
        (had_actions, NO_SUCH),
        (has_not_ended, NO_SUCH),
        (has_failed, NO_SUCH),
        (is_damaged, NO_SUCH),
        (has_damaged_metrics, NO_SUCH),
    ],
)
def test_which_runs_are_reused(place, tmp_path, spoil, why):
  shutil.copytree(place / 'rates', tmp_path / 'rates')
  shutil.copytree(place / 'grid', tmp_path / 'grid')
  shutil.rmtree(tmp_path / 'grid/runs' / SAME[0])
  run_folder = tmp_path / 'grid/runs' / SAME[0]
  run_folder.mkdir()
  if spoil:
    spoil(tmp_path / 'rates', tmp_path / 'rates/runs/learning_rate=0.01,seed=0')
  waiting = {SAME[0]: sweeps.read_sweep(tmp_path / 'grid').runs[SAME[0]]}
  arguments = tmp_path / 'grid', waiting, [tmp_path / 'rates'], {'platform': 'cpu'}
  taken = reuse.reuse_runs(*arguments)
  assert taken == ([] if why else [SAME[0]])
  if why:
    assert why in reuse.why_none(*arguments)
  else:
    (line,) = files.read_lines(run_folder / 'versions.jsonl')
    assert ('device' in line) == (spoil is None)
  assert (run_folder / 'result.json').exists() == (not why)
  assert leases.holder(run_folder) is None


def test_run_in_training_is_not_reused(place, tmp_path):
  shutil.copytree(place / 'grid', tmp_path / 'grid')
  waiting = {}
  for name in SAME:
    folder = tmp_path / 'grid/runs' / name
    (folder / 'result.json').unlink()
    waiting[name] = sweeps.read_sweep(tmp_path / 'grid').runs[name]
  (folder / 'metrics.jsonl').unlink()
  held = leases.try_acquire(folder)
  assert reuse.reuse_runs(tmp_path / 'grid', waiting, [place / 'rates']) == []
  held.release()
  assert reuse.reuse_runs(tmp_path / 'grid', waiting, [place / 'rates']) == [SAME[1]]
  last = run_files.read_metrics(folder)[-1]
  assert last['loss'] is None or math.isfinite(last['loss'])


def test_folder_without_sweep(place):
  process = run(place, 'sweep', '--config=rates.py', '--workdir=new', '--reuse=nothing')
  assert process.returncode == 2 and process.stderr.count('\n') == 1
  assert '--reuse=nothing: holds no sweep' in process.stderr
  assert not (place / 'new').exists()


def test_parameters(place):
  """Those of reused runs are copied."""
  for name in SAME:
    reused, alone = (
        safetensors.read(place / sweep / 'runs' / name / parameters.FILE)[0]
        for sweep in ('grid', 'alone')
    )
    assert reused.keys() == alone.keys()
    assert all(np.array_equal(reused[key], alone[key], equal_nan=True) for key in alone)
