"""Programs as real processes: a sweep from its command to its report, killed and resumed."""

import csv
import json
import resource
import subprocess

import pytest
from helpers import experiment
from helpers.processes import (
  ROOT,
  assert_workers_end_with,
  command,
  outcomes,
  run,
  wait_for,
)

from stability.storage import files, results_csv, run_files, sweeps

pytestmark = pytest.mark.slow

EXPERIMENT = experiment.config_file(
    {
        'data.batch_size': 8,
        'schedule.steps': 600,
        'schedule.warmup_steps': 20,
        'probe.every_steps': 50,
        'checkpoint.every_steps': 100,
    },
    """hyper.product([
      hyper.sweep('model.qk_norm', ['layernorm', 'none']),
      hyper.sweep('optimizer.learning_rate', [1e-2, 1.0, 1e25]),
  ])""",
)


@pytest.fixture(scope='module')
def finished(place):
  """The process of the uninterrupted sweep."""
  return run(place, 'sweep', '--workdir=finished', '--config=experiment.py')


@pytest.mark.slow
def test_sweep(place, finished):
  assert finished.returncode == 0, finished.stderr
  workdir = place / 'finished'
  assert 'LR sensitivity' in finished.stdout
  assert 'Report: finished/report/index.html' in finished.stdout
  assert '6/6 runs finished' in finished.stderr
  with (workdir / 'results.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  assert [row['status'] for row in rows] == ['done', 'done', 'diverged'] * 2
  assert [row['model.qk_norm'] for row in rows] == ['layernorm'] * 3 + ['none'] * 3
  sweep = json.loads((workdir / 'sweep.json').read_text())
  assert list(sweep['runs']) == [row['run'] for row in rows]
  assert rows[0]['run'] == 'qk_norm=layernorm,learning_rate=0.01,seed=0'
  data = sweep['data']
  assert data['entropy_rate'] < float(rows[0]['final_loss']) < data['unigram_loss']
  assert sweep['versions']['jax']
  for name, config in sweep['runs'].items():
    folder = run_files.run_dir(workdir, name)
    assert json.loads((folder / 'config.json').read_text()) == config
    assert list(folder.glob('events.out.tfevents.*'))
  for name in ('index.html', 'lr_sensitivity.csv', 'loss_by_learning_rate.svg'):
    assert (workdir / 'report' / name).stat().st_size > 0


@pytest.mark.slow
def test_finished_sweep_is_left_alone(place, finished):
  paths = sorted((place / 'finished' / 'runs').rglob('*'))
  before = {path: path.stat().st_mtime_ns for path in paths}
  again = run(place, 'sweep', '--workdir=finished', '--config=experiment.py')
  assert again.returncode == 0 and 'LR sensitivity' in again.stdout
  assert {path: path.stat().st_mtime_ns for path in paths} == before


@pytest.mark.slow
def test_resume_after_kill(place, finished):
  assert finished.returncode == 0
  workdir = place / 'killed'
  launcher = subprocess.Popen(
      **command(place, 'sweep', '--workdir=killed', '--config=experiment.py', '--workers=1'),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
  )
  wait_for(launcher, workdir, 'runs/*/checkpoints/200/checksums.json')
  assert_workers_end_with(launcher)
  rows = results_csv.read_results(workdir)
  assert any(row['status'] == 'missing' for row in rows)
  again = run(place, 'sweep', '--workdir=killed', '--config=experiment.py', '--workers=2')
  assert again.returncode == 0, again.stderr
  assert outcomes(workdir) == outcomes(place / 'finished')


@pytest.mark.slow
def test_resume_with_other_options(place, finished):
  assert finished.returncode == 0
  workdir = place / 'other'
  arguments = ['--workdir=other', '--config=experiment.py', '--workers=1']
  launcher = subprocess.Popen(
      **command(place, 'sweep', *arguments),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
  )
  wait_for(launcher, workdir, 'runs/*/checkpoints/200/checksums.json')
  launcher.terminate()
  assert launcher.wait(timeout=100) == 75
  options = ['--config.log.every_steps=25', '--config.parallel.microbatches=2']
  again = run(place, 'sweep', *arguments, *options)
  assert again.returncode == 0, again.stderr
  rows = results_csv.read_results(workdir)
  expected = results_csv.read_results(place / 'finished')
  assert [row['status'] for row in rows] == [row['status'] for row in expected]
  last = run_files.run_dir(workdir, rows[-2]['run'])  # begun after the resume
  assert [row['step'] for row in run_files.read_metrics(last)][:3] == [25, 50, 75]
  assert files.read_lines(last / 'versions.jsonl')[-1]['options'] == {
      'log.every_steps': 25,
      'parallel.microbatches': 2,
  }


@pytest.mark.slow
def test_full_disk(place, finished):
  assert finished.returncode == 0
  workdir = place / 'disk' / 'sweep'
  workdir.parent.mkdir()
  options = ['-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(workdir.parent)]
  if subprocess.run(['mount', *options], capture_output=True, check=False).returncode:
    pytest.skip('may not mount here; storage/test_file_faults.py limits file sizes instead')
  try:
    arguments = [f'--workdir={workdir}', '--config=experiment.py']
    stopped = run(place, 'sweep', *arguments)
    assert stopped.returncode == 1, stopped.stderr
    last = stopped.stderr.splitlines()[-1]
    assert last.startswith(f'error: {workdir}/') and 'No space left on device' in last
    assert 'Traceback' not in stopped.stdout
    rows = results_csv.read_results(workdir)
    assert {row['status'] for row in rows} <= {'missing', 'done', 'diverged'}
    for row in rows:
      assert row['status'] != 'diverged' or row['learning_rate'] == 1e25
    subprocess.run(['mount', '-o', 'remount,size=64m', str(workdir.parent)], check=True)
    again = run(place, 'sweep', *arguments)
    assert again.returncode == 0, again.stderr
    assert outcomes(workdir) == outcomes(place / 'finished')
  finally:
    subprocess.run(['umount', str(workdir.parent)], check=True)


@pytest.mark.slow
def test_workers_end_with_their_launcher(place, finished):
  assert finished.returncode == 0
  workdir = place / 'long'
  arguments = ['--workdir=long', '--config=experiment.py', '--config.schedule.steps=100000']
  launcher = subprocess.Popen(
      **command(place, 'sweep', *arguments),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
  )
  wait_for(launcher, workdir, 'runs/*/checkpoints/200/checksums.json')
  assert_workers_end_with(launcher)


@pytest.mark.slow
def test_train_with_overrides(place):
  process = run(
      place,
      'train',
      '--workdir=one',
      '--config=experiment.py',
      '--config.optimizer.learning_rate=3e-2',
      '--config.schedule.steps=30',
  )
  assert process.returncode == 0, process.stderr
  sweep = sweeps.read_sweep(place / 'one')
  assert list(sweep.runs) == ['seed=0']
  assert sweep.overrides == {'optimizer.learning_rate': 0.03, 'schedule.steps': 30}
  row = results_csv.read_results(place / 'one')[0]
  assert (row['status'], row['steps'], row['learning_rate']) == ('done', 30, 0.03)


@pytest.mark.slow
def test_report(place, finished):
  report = place / 'finished' / 'report' / 'index.html'
  report.unlink()
  process = run(place, 'report', '--workdir=finished')
  assert process.returncode == 0, process.stderr
  assert report.is_file() and 'LR sensitivity' in process.stdout


def test_report_of_foreign_results(place):
  rates = ('3e-4', '1e-3', '3e-3', '1e-2', '3e-2', '1e-1', '3e-1')
  losses = ('3.961', '3.881', '3.850', '3.841', '3.857', '4.269', '5.065')
  lines = ['learning_rate,final_loss', *map(','.join, zip(rates, losses))]
  (place / 'theirs.csv').write_text('\n'.join(lines))
  arguments = ['--results=theirs.csv', '--output=theirs', '--initial_loss=10.83']
  process = run(place, 'report', *arguments)
  assert process.returncode == 0, process.stderr
  with (place / 'theirs' / 'lr_sensitivity.csv').open(newline='') as file:
    (row,) = csv.DictReader(file)
  assert round(float(row['lr_sensitivity']), 3) == 0.262


def test_dry_run(place):
  before = sorted(place.rglob('*'))
  started = resource.getrusage(resource.RUSAGE_CHILDREN)
  process = run(place, 'sweep', f'--config={ROOT}/configs/quickstart.py', '--dry_run')
  ended = resource.getrusage(resource.RUSAGE_CHILDREN)
  # Of the CPU: seconds on the clock depend on what else runs.
  assert ended.ru_utime + ended.ru_stime - started.ru_utime - started.ru_stime < 10
  assert process.returncode == 0
  assert '42 runs' in process.stdout and '24 executables' in process.stdout
  assert sorted(place.rglob('*')) == before
