"""launch.next: bad input, plans, the loop of --train, and a whole sweep as processes."""

import csv
import dataclasses
import math
import re

import pytest
from helpers import experiment, made_up
from helpers.processes import ROOT, run

from configs import base
from launch import next as next_program
from launch.backends import registry
from launch.common import app, start
from stability import hyper
from stability.analysis.prediction.next_cells import Choice
from stability.storage import files, run_files, sweeps

EXPERIMENT = experiment.config_file(
    {
        'data.batch_size': 4,
        'data.sequence_length': 16,
        'model.depth': 1,
        'schedule.steps': 20,
        'schedule.warmup_steps': 2,
    },
    """hyper.product([
      hyper.sweep('model.width', [16, 32]),
      hyper.sweep('optimizer.learning_rate', [1e-3, 1e-2, 1e-1, 1.0]),
  ])""",
)
RATES = (1e-3, 1e-2, 1e-1, 1.0)


def execute(*arguments: str) -> int:
  return app.execute(next_program.main, next_program.FLAGS, ['next', *arguments])


@pytest.fixture
def folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  return tmp_path


def write_made_up(folder, **options):
  options = {'seeds': (0,), 'widths': (16, 32), 'rates': RATES} | options
  return made_up.write_sweep(folder / 'runs', **options)


BAD = {
    'nothing': ([], ['--workdir: missing', '--target and --budget']),
    'no sweep': (['--workdir=none'], ['--workdir=none: holds no sweep']),
    'empty folder': (['--workdir=empty'], ['--workdir=empty: holds no sweep']),
    'target': (['--target=big', '--budget=cpu:1h'], ['--target=big: must be one of 9.2K']),
    'no target': (['--budget=cpu:1h'], ['--workdir: missing', '--target and --budget']),
    'budget': (['--target=7B', '--budget=cpu:soon'], ['--budget=cpu:soon: must be cpu:2h']),
    'small budget': (['--target=7B', '--budget=cpu:1m'], ['--budget=cpu:1m: too small']),
    'unknown device': (['--target=7B', '--budget=8xb200:1h'], ['must be', 'h100']),
    'arms from nothing': (
        ['--target=7B', '--budget=cpu:1h', '--arms=none'],
        ['--arms=none: must be arms of configs/arms.py'],
    ),
    'train from nothing': (
        ['--target=7B', '--budget=cpu:1h', '--train'],
        ['--train: must be given with --workdir'],
    ),
    'arms': (['--workdir=runs', '--arms=swiglu'], ['--arms=swiglu: must be', 'qk_norm=none']),
    'unknown target': (['--workdir=runs', '--target=0'], ['--target=0: must be']),
    'width': (['--workdir=runs', '--width=0'], ['--width=0: must be a number of decades above 0']),
    'count': (['--workdir=runs', '--count=0'], ['--count=0']),
    'budget without training': (
        ['--workdir=runs', '--budget=cpu:1h'],
        ['--budget: must be given with --train'],
    ),
    'budget of another machine': (
        ['--workdir=runs', '--train', '--budget=8xh100:1h'],
        ['--budget=8xh100:1h: with --train, must be cpu:TIME or a number of FLOPs'],
    ),
    'output and training': (
        ['--workdir=runs', '--train', '--output=a.csv'],
        ['--output: must not be given with --train'],
    ),
    'output nowhere': (['--workdir=runs', '--output=no/a.csv'], ['its folder does not exist']),
    'backend that does not train': (
        ['--workdir=runs', '--train', '--backend=manifest', '--jobs=1'],
        ['--backend=manifest: must train the runs itself'],
    ),
    'override without a config': (
        ['--workdir=runs', '--config.schedule.steps=3'],
        ['must be given with --config'],
    ),
    'config of another sweep': (
        ['--workdir=runs', f'--config={ROOT}/configs/epsilon.py'],
        ['--workdir=runs: holds another sweep than that of --config'],
    ),
    'stray argument': (['--workdir=runs', 'soon'], ["'soon': stray argument"]),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input(case, folder, capsys):
  (folder / 'empty').mkdir()
  arguments, said = BAD[case]
  if '--workdir=runs' in arguments:
    write_made_up(folder)
  before = sorted(folder.rglob('*'))
  code = execute(*arguments)
  out, err = capsys.readouterr()
  assert (code, out) == (2, ''), err
  assert err.startswith('error: ') and err.count('\n') == 1
  for words in said:
    assert words in err
  assert sorted(folder.rglob('*')) == before


@pytest.mark.parametrize(
    ('options', 'target', 'said'),
    [
        ({'widths': (16, 32)}, ['--target=7B'], '--target: needs at least 3 sizes of each arm'),
        ({'rates': (1e-2,)}, [], 'only one learning rate'),
    ],
)
def test_sweeps_that_say_nothing(options, target, said, folder, capsys):
  write_made_up(folder, **options)
  assert execute('--workdir=runs', *target) == 2
  assert said in capsys.readouterr().err


def test_imported_runs(folder, monkeypatch, capsys):
  write_made_up(folder)
  monkeypatch.setattr(sweeps, 'is_imported', lambda _: True)
  assert execute('--workdir=runs') == 2
  assert 'runs: its runs were imported and cannot be trained here' in capsys.readouterr().err


def test_plan(folder, capsys):
  """Runs of the arm that is asked for, with reason and cost, on screen and as a file."""
  names = write_made_up(folder, leave_out=(14, 15))
  assert execute('--workdir=runs', '--arms=qk_norm=none', '--count=2', '--output=a.csv') == 0
  out = capsys.readouterr().out
  assert re.search(r'\d of 2 critical rates are known to 0\.5 decades', out)
  with (folder / 'a.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert 1 <= len(rows) <= 2
  assert list(rows[0]) == ['run', 'reason', 'FLOPs', 'seconds', 'decades', 'after']
  for row in rows:
    assert 'qk_norm=none, learning rate ' in row['run'] and row['reason'].endswith('.')
    assert row['seconds'] == '18' and float(row['FLOPs']) > 0
  assert not (folder / 'runs' / 'report').exists() and len(names) == 16


def test_reason_of_a_run_for_lr_sensitivity(folder):
  """It does not say that critical rates are known where they are not."""
  from launch.common import next_runs
  from stability.analysis.prediction.next_sweep import NextRun

  write_made_up(folder, interventions=[{'model.qk_norm': 'none'}])
  reasons = []
  for width in (1e-4, 9.0):
    growing = next_runs.load(folder / 'runs', None, width=width)
    like = growing.state.first_of_curves.iloc[0]
    run = NextRun(Choice(0, 0, None, math.nan, math.nan), like, 1e-3, 1, None)
    reasons.extend(row['reason'] for row in growing.rows([run]))
  assert reasons == [
      'No run says more about the critical rates; this one says most about LR sensitivity.',
      'All critical rates are known; it says most about LR sensitivity.',
  ]


def test_proposal(folder, capsys):
  assert execute('--target=2.4M', '--budget=cpu:1h', '--output=my.py') == 0
  out = capsys.readouterr().out
  for words in ('Regime: cpu', 'Sizes: 9.2K, 37K, 147K', 'Seeds: ', 'core-hours'):
    assert words in out
  assert 'python -m launch.sweep --config=my.py --workdir=runs/my' in out
  assert (folder / 'my.py').is_file()


# The loop of --train, with results that are made up.


@pytest.fixture
def trained(folder, monkeypatch):
  """The names of the runs of each call of the backend, which writes results instead of training."""
  (folder / 'experiment.py').write_text(EXPERIMENT)
  calls = []

  def train(workdir, configs):
    calls.append(sorted(configs))
    for name, config in configs.items():
      width, rate = config['model']['width'], config['optimizer']['learning_rate']
      loss = 3 - 0.2 * math.log2(width) + 0.3 * math.log10(rate * width / 0.5) ** 2
      result = run_files.Result('done', 5.5, loss, 768, 20, 1280, seconds=1800.0)
      run_files.write_result(run_files.run_dir(workdir, name), result)

  backend = registry.Backend(train)
  monkeypatch.setattr(registry, 'find', lambda _: backend)
  monkeypatch.setattr(start, 'finish', lambda workdir: 0)
  return calls


COMMAND = ('--config=experiment.py', '--workdir=new', '--train')


def test_train_until_known(trained, folder, capsys):
  """It begins with the smallest size, stops early, and has nothing to do the second time."""
  assert execute(*COMMAND, '--count=2') == 0
  out = capsys.readouterr().out
  assert 'All critical rates are known as closely as asked.' in out
  runs = sweeps.read_sweep(folder / 'new').runs
  names = [name for call in trained for name in call]
  assert set(runs) == set(names) and len(names) == len(set(names))
  assert all('width=16' in name for name in trained[0]) and len(trained) >= 2
  assert len(runs) < 16
  before = len(trained)
  assert execute(*COMMAND) == 0
  assert len(trained) == before
  assert 'All critical rates are known' in capsys.readouterr().out


def test_train_extends_the_grid(trained, folder, capsys):
  """Critical rates are above the grid: rates beyond it are trained until they are known."""
  config = (folder / 'experiment.py').read_text()
  (folder / 'experiment.py').write_text(config.replace('1e-1, 1.0]', '3e-2]'))
  assert execute(*COMMAND, '--width=0.9', '--budget=cpu:9h') == 0
  out = capsys.readouterr().out
  assert 'are above the grid' in out or 'has no end within the grid' in out
  assert 'All critical rates are known as closely as asked.' in out
  rates = [config['optimizer']['learning_rate']
           for config in sweeps.read_sweep(folder / 'new').runs.values()]  # fmt: skip
  assert max(rates) > 0.1


def test_critical_rates_above_the_grid_are_said(folder, capsys):
  results = {i: {'final_loss': 2.5 + 0.001 * abs(i % 4 - 1) - 0.1 * (i // 4)} for i in range(12)}
  options = {'widths': (16, 32, 64), 'interventions': [{'model.qk_norm': 'none'}]}
  write_made_up(folder, **options, results=results)
  assert execute('--workdir=runs') == 0
  out = capsys.readouterr().out
  holds = 'intervals that hold the truth in about 89 % of cases'
  assert f'0 of 3 critical rates are known to 0.5 decades ({holds}); ' in out
  assert '90 %' not in out
  assert '3 are above the grid.' in out
  assert 'The grid ends too early: a rate beyond it' in ' '.join(out.split())
  assert execute('--workdir=runs', '--target=7B') == 0
  out = capsys.readouterr().out
  assert '0 of 1 critical rates are known to 2 decades (90 % intervals)' in out
  assert 'the widest has no end within the grid: 7B, qk_norm=none.' in out
  assert 'More than 64 times the largest trained size is farther than' in out


@pytest.mark.slow
def test_train_until_the_budget_is_spent(trained, folder, capsys):
  """Each run takes half an hour; what was trained before counts."""
  assert execute(*COMMAND, '--count=1', '--budget=cpu:1h', '--width=1e-4') == 0
  assert 'The budget of cpu:1h is spent.' in capsys.readouterr().out
  assert len(trained) == 2
  assert execute(*COMMAND, '--count=1', '--budget=cpu:90m', '--width=1e-4') == 0
  assert len(trained) == 3
  flops = 3.5 * 3.0 * 4 * 16 * (2 * (12 * 16**2 + 16 * 256) + 4 * 16 * 16) * 20
  assert execute(*COMMAND, '--count=1', f'--budget={flops}', '--width=1e-4') == 0
  assert len(trained) >= 4


def test_runs_that_the_budget_does_not_pay_for(trained, folder, capsys):
  """Of each choice, only what the rest pays for is trained. Each run takes half an hour."""
  assert execute(*COMMAND, '--count=1', '--budget=cpu:30m', '--width=1e-4') == 0
  assert len(trained) == 1
  capsys.readouterr()
  assert execute(*COMMAND, '--count=4', '--budget=cpu:100m', '--width=1e-4') == 0
  assert sum(map(len, trained)) == 3
  assert 'The rest of the budget of cpu:100m pays for none' in capsys.readouterr().out


def test_an_interrupted_run_comes_first(trained, folder):
  assert execute(*COMMAND, '--count=2', '--budget=cpu:1h', '--width=1e-4') == 0
  (name, other) = trained[0]
  run_folder = run_files.run_dir(folder / 'new', name)
  (run_folder / 'result.json').unlink()
  files.write_atomic(run_folder / 'metrics.jsonl', '')
  assert execute(*COMMAND, '--count=2', '--budget=cpu:1h', '--width=1e-4') == 0
  assert trained[1] == [name] and other not in trained[1]


def test_runs_that_fail_end_it(trained, folder, monkeypatch, capsys):
  def fail(workdir, configs):
    for name in configs:
      result = run_files.Result('failed', None, None, 768, 0, 0, error='broken')
      run_files.write_result(run_files.run_dir(workdir, name), result)

  monkeypatch.setattr(registry, 'find', lambda _: registry.Backend(fail))
  assert execute(*COMMAND) == 0
  assert 'None of these runs could be trained.' in capsys.readouterr().out


def test_rates_beyond_the_grid_keep_lr_sensitivity(folder):
  """A new rate is a run like the others; LR sensitivity stays that of the grid."""
  from launch.common import next_runs

  write_made_up(folder, interventions=[{'model.qk_norm': 'none'}], rates=(1e-3, 3e-3, 1e-2))
  growing = next_runs.load(folder / 'runs', None)
  found = growing.state.next_runs(growing.flops_K, 1)
  configs = growing.configs(found)
  ((name, config),) = configs.items()
  assert config['optimizer']['learning_rate'] > 1e-2
  sweep = growing.with_runs(configs)
  assert sweep.report['windows'] == [{'where': {}, 'windows': [[1e-3, 1e-2]]}]
  assert set(sweep.runs.configs) == {*sweeps.read_sweep(folder / 'runs').runs, name}
  assert re.fullmatch(r'width=\d+,qk_norm=none,learning_rate=0\.03\d*,seed=0', name)


def test_an_arm_of_other_matrices_is_one_curve(trained, folder):
  """Trained and untrained runs have the number of parameters of the arm's own matrices."""
  source = (folder / 'experiment.py').read_text()
  swept = "'model.query_group', [2]"
  (folder / 'experiment.py').write_text(source.replace("'model.width', [16, 32]", swept))
  assert execute(*COMMAND, '--count=1', '--budget=cpu:30m', '--config.model.width=32') == 0
  assert len(trained) == 1
  growing = next_program._load(None)
  assert growing.state.runs['parameters'].tolist() == 4 * [11 * 32**2]


def test_windows_of_arms_are_kept(folder):
  """If arms have windows of their own, a rate beyond one of them changes no LR sensitivity."""
  from launch.common import next_runs

  points = [
      {'arm': arm, 'optimizer.eps': eps, 'optimizer.learning_rate': rate}
      for arm, eps, rates in (('a', 1e-8, (1e-3, 1e-2, 1e-1)), ('b', 1e-6, (1e-4, 1e-3, 1e-2)))
      for rate in rates
  ]
  made_up.write_runs(folder / 'runs', hyper.expand(base.get_config('cpu').to_dict(), points))
  growing = next_runs.load(folder / 'runs', None)
  *_, config = growing.request.runs.configs.values()
  beyond = config | {'optimizer': config['optimizer'] | {'learning_rate': 1e-1}}
  assert growing.with_runs({'x': beyond}).report['windows'] == [
      {'where': {'arm': 'a'}, 'windows': [[1e-3, 1e-1]]},
      {'where': {'arm': 'b'}, 'windows': [[1e-4, 1e-2]]},
  ]
  inside = config | {'optimizer': config['optimizer'] | {'learning_rate': 3e-3}}
  assert 'windows' not in growing.with_runs({'x': inside}).report


def finetuning(folder, finished):
  """A sweep whose runs of seed n start from the parent of seed n; those of some seeds finished.

  The critical learning rate is above the grid.
  """
  from launch.common import next_runs

  seeds = (0, 1, 2)
  points = hyper.product([
      hyper.zipit([
          hyper.sweep('seed', seeds),
          hyper.sweep('init.checkpoint', [f'parents/{seed}' for seed in seeds]),
      ]),
      hyper.sweep('optimizer.learning_rate', RATES),
  ])
  runs = hyper.expand(base.get_config('cpu').to_dict(), points)
  made_up.write_runs(folder / 'runs', runs)
  for name, config in runs.configs.items():
    if config['seed'] in finished:
      loss = 3 + 0.01 * math.log10(config['optimizer']['learning_rate'] / 1e-2) ** 2
      result = run_files.Result('done', 5.5, loss, 768, 20, 1280, seconds=1.0)
      run_files.write_result(run_files.run_dir(folder / 'runs', name), result)
  return runs, next_runs.load(folder / 'runs', None, width=1e-3)


def test_a_run_of_the_sweep_keeps_its_parent(folder):
  runs, growing = finetuning(folder, finished=(0,))
  last = growing.state.curves.log_rate_L.size - 2
  found = [growing.state._next_run(Choice(0, rate, 0, 1.0, 1.0)) for rate in range(last + 1)]
  assert [run.seed for run in found] == [1] * len(RATES)
  assert growing.configs(found) == {run.run: runs.configs[run.run] for run in found}
  assert {run.like['init.checkpoint'] for run in found} == {'parents/1'}


def test_a_new_run_starts_from_the_parent_of_its_seed(folder):
  """All runs have finished: further seeds have no known parent, further learning rates have."""
  _, growing = finetuning(folder, finished=(0, 1, 2))
  found = growing.state.next_runs(growing.flops_K, 4)
  (config,) = growing.configs(found).values()
  assert config['optimizer']['learning_rate'] == 10.0
  assert (config['init']['checkpoint'], config['seed']) == ('parents/0', 0)
  state = growing.state
  state = dataclasses.replace(
      state, results=dataclasses.replace(state.results, runs=state.runs.query('seed > 0'))
  )
  (run,) = state.next_runs(growing.flops_K, 4)
  assert (run.like['init.checkpoint'], run.seed) == ('parents/1', 1)


def test_failed_runs_are_trained_again(folder):
  """A cell of which no run has a loss is not noisy; its failed run comes before another seed."""
  from launch.common import next_runs

  failed = {3: {'status': 'failed', 'final_loss': None}, 7: {'status': 'stopped'}}
  options = {'interventions': [{'model.qk_norm': 'none'}], 'results': failed}
  names = write_made_up(folder, **options)
  growing = next_runs.load(folder / 'runs', None, width=1e-3)
  found = {
      curve: growing.state._next_run(Choice(curve, 3, curve, 1.0, 0.5)) for curve in (0, 1)
  }
  assert (found[0].run, found[0].seed) == (names[3], 0)
  assert (found[1].run, found[1].seed) == (None, 1)
  again, other = (row['reason'] for row in growing.rows(found.values()))
  assert again.startswith('It has failed; trained again, it says most about')
  assert other.startswith('No run there counts: another seed says most about')
  noisy = growing.state._next_run(Choice(0, 1, 0, 1.0, 0.5))
  assert growing.rows([noisy])[0]['reason'].startswith('The loss is noisy: another seed')


@pytest.mark.slow
def test_whole_sweep(place):
  """Trained for real, then completed by launch.sweep in the same folder."""
  arguments = ('--config=experiment.py', '--workdir=grown')
  first = run(place, 'next', *arguments, '--train', '--count=2', '--width=0.9')
  assert first.returncode == 0, first.stderr
  assert 'known as closely as asked' in first.stdout and 'Report: ' in first.stdout
  fewer = set(sweeps.read_sweep(place / 'grown').runs)
  if all('seed=0' in name for name in fewer):
    assert run(place, 'sweep', *arguments).returncode == 0
    assert fewer <= set(sweeps.read_sweep(place / 'grown').runs)
