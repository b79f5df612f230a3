"""launch.reproduce: the choice of experiments, their cost, failures and interruptions."""

import pathlib
import signal
import subprocess
import sys
import time
import types

import pytest
from helpers import experiment, made_up
from helpers.processes import children, is_running

from launch import reproduce, sweep
from launch.common import app, programs
from stability.storage import files, results_csv

ROOT = pathlib.Path(__file__).parents[2]
# quickstart is part of qk_layernorm; ladder is for planning; extrapolation and length are about
# proxies, rescue and stepping_in about steering a run, modern about another recipe.
OTHER_CONFIGS = {
    *('__init__', 'base', 'benchmark', 'grid', 'ladder', 'quickstart', 'rescue', 'stepping_in'),
    *('arms', 'extrapolation', 'length', 'modern', 'pretraining', 'finetuning', 'selection'),
    *('leaderboard', 'leaderboard_finals', 'leaderboard_pairs'),
}
PAPER_FIGURES = {'first': '3', 'lacking': '4', 'third': 'E.5'}


@pytest.fixture
def place(tmp_path, monkeypatch):
  """A folder with three experiments; the text of the second is missing."""
  for name, figure in PAPER_FIGURES.items():
    config = experiment.config_file(
        {
            'data.source': 'text',
            'data.path': 'gone' if name == 'lacking' else 'text',
            'data.batch_size': 2,
            'data.sequence_length': 8,
            'data.validation_batches': 1,
            'model.head_dim': 16,
            'model.depth': 0,
            'schedule.steps': 3,
            'schedule.warmup_steps': 1,
        },
        "hyper.sweep('optimizer.learning_rate', [1e-2, 1e-1])",
    )
    (tmp_path / f'{name}.py').write_text(
        f'"""What of {name}? Figure {figure} and Figure E.5 of a paper."""\n{config}'
    )
  (tmp_path / 'text').write_text('one two three four five six\n' * 50 + 'seven eight\n' * 20)
  monkeypatch.setattr(reproduce, 'FOLDER', tmp_path)
  monkeypatch.setattr(reproduce, 'EXPERIMENTS', tuple(PAPER_FIGURES))
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  monkeypatch.delenv('XLA_FLAGS')  # which the tests set
  monkeypatch.chdir(tmp_path)
  return tmp_path


def run(*arguments: str) -> int:
  before = signal.getsignal(signal.SIGTERM)
  try:
    return app.execute(reproduce.main, reproduce.FLAGS, ['reproduce', *arguments])
  finally:
    signal.signal(signal.SIGTERM, before)


def test_every_experiment_is_run():
  files = {path.stem for path in (ROOT / 'configs').glob('*.py')}
  assert set(reproduce.EXPERIMENTS) == files - OTHER_CONFIGS
  assert len(set(reproduce.EXPERIMENTS)) == len(reproduce.EXPERIMENTS)


def test_dry_run(place, capsys):
  before = sorted(place.rglob('*'))
  assert run('--dry_run', '--seeds=3') == 0
  out = capsys.readouterr().out
  rows = [[cell.strip() for cell in line.split('│')[1:-1]] for line in out.split('\n')]
  tokens = f'{6 * 3 * 2 * 8:.2e}'
  assert [row[:5] for row in rows if row] == [
      ['first', '3, E.5', '6', '6', tokens],
      ['lacking', '4, E.5', '6', '6', tokens],
      ['third', 'E.5', '6', '0', f'{0:.2e}'],  # it shares the runs of the first
  ]
  assert '12 runs to train' in out
  assert sorted(place.rglob('*')) == before


@pytest.mark.slow
def test_dry_run_at_paper_scale(capsys, monkeypatch):
  """Experiments that refuse an override are named; the others are planned."""
  monkeypatch.setenv('COLUMNS', '120')
  assert run('--dry_run', '--scale=paper', '--config.schedule.steps=50000') == 1
  captured = capsys.readouterr()
  assert captured.err.startswith('steps: ') and captured.err.count('\n') == 2
  assert 'batch_size: ' in captured.err
  assert captured.out.count('refused') == 2
  assert 'E.13' in captured.out


@pytest.mark.parametrize(
    'arguments, said',
    [
        (['--only=frist'], '--only=frist: no such experiment; the nearest is first'),
        ([], '--workdir: missing'),
        (['--workdir=text'], '--workdir=text: text is not a folder'),
        (['--workdir=text', '--dry_run'], '--workdir=text: text is not a folder'),
        (['--scale=huge', '--workdir=runs'], "scale 'huge': must be one of cpu, night, gpu, paper"),
        (['--workdir=runs', '--seeds=0'], '--seeds'),
        (['--workdir=runs', '--seeds=2', '--config.seed=1'], 'config.seed: must not be overridden'),
        (['--workdir=runs', '--config.schedule.stops=1'], 'config.schedule.steps'),
        (['--workdir=runs', '--config.schedule.steps=0'], 'config.schedule.steps=0: must be'),
    ],
)
def test_bad_input(arguments, said, place, capsys):
  before = sorted(place.rglob('*'))
  assert run(*arguments) == 2
  captured = capsys.readouterr()
  assert captured.out == '' and captured.err.count('\n') == 1 and said in captured.err
  assert sorted(place.rglob('*')) == before


def test_seeds(place, capsys):
  arguments = ['sweep', '--config=first.py', '--dry_run', '--seeds=2']
  assert app.execute(sweep.main, sweep.FLAGS, arguments) == 0
  assert '4 runs' in capsys.readouterr().out


@pytest.mark.slow
def test_failed_experiment_is_retried(place, capsys):
  """The others go on, and are not trained again when the command is repeated."""
  arguments = ['--workdir=runs', '--only=third,lacking', '--workers=1']
  assert run(*arguments) == 1
  captured = capsys.readouterr()
  assert 'lacking: refused' in captured.err and '1 of 2 experiments done' in captured.out
  results = results_csv.read_results(place / 'runs' / 'third')
  assert [row['status'] for row in results] == ['done', 'done']
  page = (place / 'runs' / 'report' / 'index.html').read_text()
  assert 'lacking: refused' in page and '../third/report/index.html' in page

  trained = {
      path: path.stat().st_mtime_ns for path in (place / 'runs' / 'third').rglob('result.json')
  }
  (place / 'gone').write_text((place / 'text').read_text())
  assert run(*arguments) == 0
  results = results_csv.read_results(place / 'runs' / 'lacking')
  assert [row['status'] for row in results] == ['done', 'done']
  assert all(path.stat().st_mtime_ns == at for path, at in trained.items())
  assert 'refused' not in (place / 'runs' / 'report' / 'index.html').read_text()


@pytest.mark.parametrize(
    'code, ended, said',
    [
        (0, 0, '3 of 3 experiments done'),
        (1, 1, 'lacking: some runs failed'),
        (-9, 1, 'third: ended with exit code -9'),
        (130, 130, 'interrupted; the same command resumes'),
        (75, 75, 'preempted; to go on, start the same command again'),
    ],
)
def test_commands(place, monkeypatch, capsys, code, ended, said):
  commands = []

  class Process:

    def __init__(self, command, **_):
      commands.append(command)

    def wait(self):
      return code

  monkeypatch.setattr(subprocess, 'Popen', Process)
  arguments = ['--seeds=2', '--config.optimizer.eps=1e-15', '--config.model.qk_norm=none']
  assert run('--workdir=runs', '--scale=gpu', *arguments) == ended
  assert said in ''.join(capsys.readouterr())
  own = [
      [f'--config={name}.py:gpu', f'--workdir=runs/{name}']
      for name in ('first', 'lacking', 'third')
  ]
  assert [command[5:7] for command in commands] == (own if code < 75 else own[:1])
  assert commands[0][:5] == [*programs.command('launch.sweep'), '--attached']
  assert sorted(commands[0][7:]) == sorted(arguments)


def test_report_covers_other_calls(place, monkeypatch):
  process = types.SimpleNamespace(wait=lambda: 0)
  monkeypatch.setattr(subprocess, 'Popen', lambda *_, **__: process)
  made_up.write_sweep(place / 'runs' / 'third', seeds=(0,))
  assert run('--workdir=runs', '--only=first') == 0
  page = (place / 'runs' / 'report' / 'index.html').read_text()
  assert 'first: not started' in page and 'What of third?' in page and '41 done' in page
  assert 'lacking' not in page


def test_damaged_workdir(place, monkeypatch, capsys):
  commands = []
  process = types.SimpleNamespace(wait=lambda: 0)
  monkeypatch.setattr(subprocess, 'Popen', lambda command, **_: commands.append(command) or process)
  made_up.write_sweep(place / 'runs' / 'third', seeds=(0,))
  files.write_atomic(place / 'runs' / 'first' / 'sweep.json', '{"')
  assert run('--workdir=runs', '--only=lacking') == 0
  assert [flag for flag in commands[0] if flag.startswith('--reuse')] == ['--reuse=runs/third']
  said = capsys.readouterr().err
  assert said.startswith('no runs are reused from first: runs/first/sweep.json: cannot be read')
  page = (place / 'runs' / 'report' / 'index.html').read_text()
  assert 'first: runs/first/sweep.json: cannot be read' in page and '41 done' in page


@pytest.mark.slow
@pytest.mark.parametrize(
    ('sent', 'code', 'said'),
    [
        (signal.SIGINT, 130, 'interrupted; the same command resumes the runs\n'),
        (signal.SIGTERM, 75, 'preempted; to go on, start the same command again\n'),
        (signal.SIGKILL, -9, ''),
    ],
)
def test_child_ends_with_parent(place, sent, code, said):
  program = (
      'import pathlib; from launch import reproduce; from launch.common import app, preemption;'
      'preemption.install(); reproduce.FOLDER = pathlib.Path();'
      'reproduce.EXPERIMENTS = ("first", "third");'
      'app.run(reproduce.main, reproduce.FLAGS)'
  )
  arguments = ['--workdir=runs', '--workers=1', '--config.schedule.steps=10000000']
  process = subprocess.Popen(
      [sys.executable, '-c', program, *arguments], stderr=subprocess.PIPE, text=True
  )
  deadline = time.monotonic() + 240
  while not (place / 'runs' / 'first' / 'sweep.json').exists():
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.05)
  (child,) = children(process.pid)
  if sent == signal.SIGKILL:
    while not list(place.glob('runs/first/runs/*/lease.*')):  # a worker has asked for a run
      assert time.monotonic() < deadline and process.poll() is None
      time.sleep(0.05)
    workers = children(child)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30  # its runs are saved
    while any(map(is_running, [child, *workers])):
      assert time.monotonic() < deadline, 'a launcher outlives launch.reproduce'
      time.sleep(0.02)
  process.send_signal(sent)
  try:
    _, err = process.communicate(timeout=30)
  finally:
    process.kill()
  assert process.returncode == code and err.endswith(said)
  assert not is_running(child)
  assert not (place / 'runs' / 'third').exists()
