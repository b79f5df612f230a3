"""launch.sweep --dry_run: groups, placements, hours, and XLA's count of memory."""

import os
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.monitoring
import pytest
from helpers import made_up

from configs import base, ladder
from configs import quickstart as quickstart_module
from launch import sweep
from launch.common import app, dry_run, memory_analysis, preemption, training_device
from stability import hyper
from stability.data import prepare, tokens
from stability.devices import cost as cost_lib
from stability.devices import traces
from stability.devices.cost import Machine
from stability.storage import run_files, versions

ROOT = pathlib.Path(__file__).parents[3]
LADDER = f'--config={ROOT}/configs/ladder.py:paper'
H100S = ('--devices=8', '--device_memory_gb=80', '--device_tflops=990')
ONE = ('--devices=1', '--device_memory_gb=80', '--device_tflops=990')


@pytest.fixture(autouse=True)
def variables(monkeypatch):
  """A copy of the environment, which an analysis adds that of a worker to."""
  monkeypatch.setattr(os, 'environ', os.environ.copy())


def run(capsys, *arguments: str, progress: str = '') -> list[str]:
  """The lines of a dry run that succeeds, with this on standard error."""
  code = app.execute(sweep.main, sweep.FLAGS, ['sweep', '--dry_run', *arguments])
  out, err = capsys.readouterr()
  assert (code, err) == (0, progress)
  return [line.strip() for line in out.splitlines()]


def rows(lines: list[str]) -> list[list[str]]:
  """The cells of the rows of all tables."""
  return [line.split() for line in lines if line.startswith('width=')]


@pytest.mark.slow
def test_ladder_on_eight_devices(capsys):
  lines = run(capsys, LADDER, *H100S)
  where, memory = rows(lines)[:9], rows(lines)[9:]
  assert [cells[0] for cells in where] == [cells[0] for cells in memory]
  assert len(where) == len(ladder.SIZES['paper'])
  for cells, parts in zip(where, memory):
    name, runs, _, layout, members, _, remat, flops, gb, hours = cells
    assert (runs, members, remat) == ('7', '1', 'none')
    devices = 7 if layout == 'population' else 8  # seven runs keep seven devices busy
    expected = float(flops) / (devices * 0.4 * 990e12) / 3600
    assert float(hours.replace(',', '')) == pytest.approx(expected, rel=0.01, abs=0.006), name
    assert parts[-1] == gb and 0 < float(gb) < 72
    assert float(gb) == pytest.approx(sum(map(float, parts[1:-1])), abs=0.03)
  assert where[-2][0] == 'width=2048,depth=24'
  assert where[-2][2:4] == ['1,207,959,552', 'data_parallel']
  assert where[-1][3] == 'sharded' and int(where[-1][5]) > 1
  hours = sum(float(cells[-1].replace(',', '')) for cells in where)
  (total,) = (line for line in lines if 'hours of training' in line)
  assert float(total.split()[0].replace(',', '')) == pytest.approx(hours, abs=0.05)
  assert '8 devices' in total and '40% of 990 TFLOP/s in bfloat16 (assumed' in total
  assert not any('not fit' in line for line in lines)


@pytest.mark.slow
def test_size_that_does_not_fit(capsys):
  lines = run(capsys, LADDER, *ONE)
  *others, largest = rows(lines)[:9]
  assert largest[-3:] == ['does', 'not', 'fit']
  assert all(float(cells[-1].replace(',', '')) > 0 for cells in others)
  assert re.fullmatch(
      r'1 of 9 rows do not fit 80 GB, of which 90% are usable, and are not counted in the hours:'
      r' width=4096,depth=24 \(\d+\.\d GB at least\)',
      lines[-1],
  )


def test_stated_placement_that_does_not_fit(capsys):
  stated = [f'--config.parallel.{field}' for field in ('layout=sharded', 'microbatches=1')]
  lines = run(capsys, LADDER, *H100S, *stated, '--config.parallel.remat=none')
  assert rows(lines)[8][3:7] == ['sharded', '1', '1', 'none']
  assert rows(lines)[8][-3:] == ['does', 'not', 'fit']


def test_utilisation(capsys):
  def hours(*arguments):
    return float(rows(run(capsys, LADDER, *H100S, *arguments))[8][-1].replace(',', ''))

  assert hours() == hours('--utilisation=0.4')
  assert hours('--utilisation=0.8') == pytest.approx(hours() / 2, rel=0.001)


@pytest.mark.parametrize(
    'runs, devices, rounds', [(1, 1, 1), (7, 1, 7), (7, 8, 1), (8, 8, 1), (9, 8, 2), (64, 8, 8)]
)
def test_hours_of_busiest_device(runs, devices, rounds):
  config = hyper.expand(base.get_config().to_dict(), hyper.sweep('seed', range(runs))).configs
  (group,) = cost_lib.groups(config, 256)
  machine = Machine(devices, 80e9, 1e12, 0.5)
  found = cost_lib.place(group, machine, 256)
  assert found.placement.layout == 'population'
  of_one = cost_lib.train_flops(next(iter(config.values())), 256) / 0.5e12 / 3600
  assert found.hours == pytest.approx(rounds * of_one)


def test_remat_hours():
  def hours(remat):
    point = {'parallel.remat': remat}
    (group,) = cost_lib.groups(hyper.expand(base.get_config().to_dict(), [point]).configs, 256)
    return cost_lib.place(group, Machine(1, 80e9, 1e12, 0.5), 256).hours

  assert hours('block') == pytest.approx(4 / 3 * hours('none'))


def test_group_names():
  points = hyper.product([
      hyper.sweep('model.depth', [1, 2]),
      hyper.sweep('model.qk_norm', ['layernorm', 'none']),
      hyper.sweep('optimizer.learning_rate', [1e-3, 1e-2, 1e-1]),
  ])
  configs = hyper.expand(base.get_config().to_dict(), points).configs
  groups = cost_lib.groups(configs, 256)
  assert [group.name for group in groups] == [
      f'depth={depth},qk_norm={norm}' for depth in (1, 2) for norm in ('layernorm', 'none')
  ]
  assert {group.runs for group in groups} == {3}
  plan = cost_lib.plan(groups)
  assert sum(group.flops for group in groups) == plan.flops
  assert sum(group.tokens for group in groups) == plan.tokens
  (group,) = cost_lib.groups(dict(list(configs.items())[:3]), 256)
  assert group.name == 'all'


MANY = """
from configs import base
from stability import hyper
def get_config(scale='cpu'):
  c = base.get_config(scale)
  c.model.depth = 1
  return c
def get_sweep(scale='cpu'):
  return hyper.product([
      hyper.sweep('model.width', [16 * n for n in range(1, {widths} + 1)]),
      hyper.sweep('probe.every_steps', list(range({intervals}))),
      hyper.sweep('seed', range({seeds})),
  ])
"""


@pytest.mark.slow
@pytest.mark.parametrize('arguments, tables', [((), 1), (H100S, 2)])
def test_many_runs_are_shown_by_groups(arguments, tables, tmp_path, capsys):
  (tmp_path / 'many.py').write_text(MANY.format(widths=2, intervals=60, seeds=10))
  lines = run(capsys, f'--config={tmp_path}/many.py', *arguments)
  assert len(rows(lines)) == 100 * tables
  assert all(cells[1] == '10' for cells in rows(lines)[:100])
  assert '... and 20 more groups' in lines
  assert any(line.startswith('1,200 runs') for line in lines)


def test_architectures_are_traced_once_and_not_compiled(tmp_path, capsys):
  compiled = []

  def listen(event, seconds, **details):
    if event == '/jax/core/compile/backend_compile_duration':
      compiled.append(details)

  (tmp_path / 'many.py').write_text(MANY.format(widths=2, intervals=1, seeds=2))
  traces.gradient.cache_clear()
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    assert len(rows(run(capsys, f'--config={tmp_path}/many.py'))) == 4
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert not compiled
  assert traces.gradient.cache_info().misses == 2 * 2  # widths, and depths 0 and 1


def test_progress(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(dry_run, 'MOST_SILENT', 1)
  (tmp_path / 'many.py').write_text(MANY.format(widths=2, intervals=1, seeds=1))
  progress = 'tracing 2 architectures for their FLOPs and memory\n'
  assert len(rows(run(capsys, f'--config={tmp_path}/many.py', progress=progress))) == 2


def test_told_to_end(monkeypatch, capsys):
  """It has no runs to resume."""

  def end(*_):
    raise preemption.Preempted

  monkeypatch.setattr(dry_run, '_trace', end)
  code = app.execute(sweep.main, sweep.FLAGS, ['sweep', '--dry_run', LADDER])
  said = 'preempted; to go on, start the same command again\n'
  assert (code, capsys.readouterr()) == (75, ('', said))


@pytest.mark.slow
def test_hidden_groups_count(tmp_path, capsys):
  """Rows that are not shown are in the hours and among those that do not fit."""
  (tmp_path / 'many.py').write_text(MANY.format(widths=2, intervals=60, seeds=1))
  tiny = ('--devices=1', '--device_memory_gb=1e-4', '--device_tflops=1')
  lines = run(capsys, f'--config={tmp_path}/many.py', *tiny)
  assert lines[-1].startswith('120 of 120 rows do not fit') and 'and 110 more' in lines[-1]


def test_runs_are_listed(capsys):
  lines = run(capsys, f'--config={ROOT}/configs/quickstart.py')
  assert len(rows(lines)) == 42 and len(rows(lines)[0]) == 4
  assert not any('hours' in line for line in lines)


@pytest.mark.slow
def files_of(folder):
  return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob('*')]}


def test_rest_of_a_sweep_that_has_begun(tmp_path, capsys):
  quickstart = f'--config={ROOT}/configs/quickstart.py'
  requested = hyper.expand(quickstart_module.get_config().to_dict(), quickstart_module.get_sweep())
  new = run(capsys, quickstart, *H100S)
  assert run(capsys, quickstart, *H100S, f'--workdir={tmp_path / "new"}') == new
  assert not (tmp_path / 'new').exists()
  begun = tmp_path / 'begun'
  begun.mkdir()
  made_up.write_runs(begun, requested)
  done, failed = {}, run_files.Result(status='failed', error='x')
  for number, (name, config) in enumerate(requested.configs.items()):
    if config['model']['width'] == 16:
      done[name] = config
      run_files.write_result(run_files.run_dir(begun, name), made_up_result())
    elif number % 2:
      run_files.write_result(run_files.run_dir(begun, name), failed)
  assert 0 < len(done) < len(requested.configs)
  before = files_of(begun)
  lines = run(capsys, quickstart, *H100S, f'--workdir={begun}')
  assert files_of(begun) == before
  assert f'{begun}: {len(done)} of {len(requested.configs)} runs have ended' in lines
  (rest,) = (line for line in lines if line.startswith('the rest, from the start of each run: '))
  left = {name: c for name, c in requested.configs.items() if name not in done}
  plan = cost_lib.plan(cost_lib.groups(left, 256))
  assert f': {plan.runs:,} runs, {plan.tokens:,} tokens, {plan.flops:.2e} FLOPs; ' in rest
  assert sum('hours of training' in line for line in lines) == 2
  assert len(rows(lines)) == len(rows(new)) + 2 * plan.populations
  other = [quickstart, f'--workdir={begun}', '--config.schedule.warmup_steps=7']
  assert app.execute(sweep.main, sweep.FLAGS, ['sweep', '--dry_run', *other]) == 2
  assert 'holds another sweep' in capsys.readouterr().err
  for name in left:
    run_files.write_result(run_files.run_dir(begun, name), made_up_result())
  lines = run(capsys, quickstart, f'--workdir={begun}')
  assert lines[-1] == f'{begun}: {plan.runs + len(done)} of {plan.runs + len(done)} runs have ended'


def test_rest_of_runs_to_reuse(tmp_path, capsys, monkeypatch):
  """As a start would find them, with and without a sweep that has begun."""
  monkeypatch.setattr(training_device, 'find', lambda: {'platform': 'cpu'})
  quickstart = (f'--config={ROOT}/configs/quickstart.py', '--config.data.source=synthetic')
  given = quickstart_module.get_config()
  given.data.source = 'synthetic'
  requested = hyper.expand(given.to_dict(), quickstart_module.get_sweep(), ['data.source'])
  other, begun = tmp_path / 'other', tmp_path / 'begun'
  source = types.SimpleNamespace(**given.to_dict()['data'])
  folder = prepare.prepare(source, other / 'data', source.sequence_length)
  data = {'path': str(folder.relative_to(other)), **tokens.open_tokens(folder).meta}
  for workdir in (other, begun):
    made_up.write_runs(workdir, requested, data)
  done = [name for name, config in requested.configs.items() if config['model']['width'] == 16]
  for name in done:
    run_files.write_result(run_files.run_dir(other, name), made_up_result())
    versions.record(run_files.run_dir(other, name), 0, trained_on={'platform': 'cpu'})
  run_files.write_result(run_files.run_dir(begun, done[0]), made_up_result())
  (run_files.run_dir(begun, done[1]) / 'metrics.jsonl').touch()
  before = files_of(tmp_path)

  def dry_run_says(*arguments):
    return run(capsys, *quickstart, f'--reuse={other}', *arguments)

  def rest(count):
    return f'the rest, from the start of each run: {count} runs, '

  lines, runs = dry_run_says(*H100S), len(requested.configs)
  assert f'started here, it reuses {len(done)} runs from other sweeps' in lines
  assert any(line.startswith(rest(runs - len(done))) for line in lines)
  assert sum('hours of training' in line for line in lines) == 2
  *_, ended, reused, left = dry_run_says(f'--workdir={begun}')
  assert ended == f'{begun}: 1 of {runs} runs have ended'
  assert reused == f'started here, it reuses {len(done) - 2} runs from other sweeps'
  assert left.startswith(rest(runs - 1 - (len(done) - 2)))
  *_, none, left = dry_run_says('--config.optimizer.eps=1e-7')
  assert none == (
      f'started here, it reuses 0 runs from other sweeps: {other} has no run with the config of one'
      ' of these'
  )
  assert left.startswith(rest(runs))
  monkeypatch.setattr(training_device, 'find', lambda: {'platform': 'gpu'})
  assert f'{other} was trained on another device: cpu -> gpu' in dry_run_says()[-2]
  assert files_of(tmp_path) == before
  arguments = ['sweep', '--dry_run', *quickstart, f'--reuse={tmp_path}']
  assert app.execute(sweep.main, sweep.FLAGS, arguments) == 2
  assert f'--reuse={tmp_path}: holds no sweep' in capsys.readouterr().err


def made_up_result():
  return run_files.Result(status='done', initial_loss=5.0, final_loss=2.0, steps=1, tokens=1)


def test_no_accelerator_and_no_files(tmp_path):
  """With JAX_PLATFORMS=cuda, on a machine that may have no GPU."""
  program = (
      'import sys; from launch import sweep; from launch.common import app\n'
      "sys.argv[0] = 'sweep'; code = app.execute(sweep.main, sweep.FLAGS, sys.argv)\n"
      'import jax; sys.exit(code or jax.default_backend() != "cpu")'
  )
  command = [sys.executable, '-c', program, f'--config={ROOT}/configs/base.py', '--dry_run', *H100S]
  environment = os.environ | {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cuda'}
  subprocess.run(command, cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'arguments, message',
    [
        (H100S, '--devices: must be given with --dry_run'),
        (('--utilisation=0.5',), '--utilisation: must be given with --dry_run'),
        (('--analyze',), '--analyze: must be given with --dry_run'),
        (('--dry_run', '--devices=8'), '--device_memory_gb: missing'),
        (('--dry_run', '--utilisation=0.5'), '--devices: missing'),
        (('--dry_run', *H100S, '--devices=0'), '--devices=0: must be a number above 0'),
        (('--dry_run', *H100S, '--devices=1.5'), '--devices=1.5'),
        (('--dry_run', *H100S, '--device_memory_gb=nan'), '--device_memory_gb=nan: must be'),
        (('--dry_run', *H100S, '--device_tflops=inf'), '--device_tflops=inf: must be'),
        (('--dry_run', *H100S, '--device_tflops=-1'), '--device_tflops=-1.0: must be'),
        (('--dry_run', *H100S, '--utilisation=0'), '--utilisation=0.0: must be'),
        (('--dry_run', *H100S, '--utilisation=1.1'), '--utilisation=1.1: must not be above 1'),
        (('--dry_run', *H100S, '--analyze'), '--devices: must not be given with --analyze'),
        (('--dry_run', '--config.data.path=gone.txt'), "'gone.txt': no such file or folder"),
        (
            ('--dry_run', '--config.data.path=.', '--workdir=../runs'),
            "config.data.path='.': holds no text",
        ),
        (
            ('--dry_run', '--config.data.path=.'),
            "--workdir=runs: lies in config.data.path='.'; name a folder outside it",
        ),
        (
            ('--dry_run', *H100S, '--config.parallel.microbatches=3'),
            'config.parallel.microbatches=3: must divide',
        ),
        (
            ('--dry_run', '--analyze', '--config.parallel.layout=sharded'),
            'placed sharded, must be single or population',
        ),
    ],
)
def test_bad_input(arguments, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  config = f'--config={ROOT}/configs/base.py'
  code = app.execute(sweep.main, sweep.FLAGS, ['sweep', config, '--workdir=runs', *arguments])
  out, err = capsys.readouterr()
  assert (code, out) == (2, '') and err.count('\n') == 1 and message in err
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('more', [(), ('--dry_run',)])
@pytest.mark.parametrize(
    ('workdir', 'message'), [('a.txt', 'is not a folder'), ('.', 'is not empty and holds no sweep')]
)
def test_a_workdir_is_refused_as_by_a_start(workdir, message, more, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a.txt').write_text('text')
  arguments = [f'--config={ROOT}/configs/base.py', f'--workdir={workdir}', *more]
  code = app.execute(sweep.main, sweep.FLAGS, ['sweep', *arguments])
  out, err = capsys.readouterr()
  assert (code, out) == (2, '') and err.count('\n') == 1
  assert err.startswith(f'error: --workdir={workdir}: ') and message in err
  assert [path.name for path in tmp_path.iterdir()] == ['a.txt']


@pytest.mark.slow
def test_estimate_against_xla():
  """Compiled as a worker does; 15 % is promised."""
  points = [
      {'model.width': 16, 'model.depth': 1},
      {'model.width': 128, 'model.depth': 2},
      {'model.qk_norm': 'none', 'model.attention_gate': 'sigmoid', 'optimizer.name': 'adafactor'},
      {'model.norm_position': 'peri', 'model.attention': 'squared_relu', 'model.depth': 1},
      {'parallel.microbatches': 4, 'model.attention_soft_cap': 50.0, 'optimizer.name': 'lion'},
      {'parallel.layout': 'population', 'parallel.members': 2, 'model.depth': 1},
  ]
  configs = hyper.expand(base.get_config().to_dict(), points).configs
  groups = cost_lib.groups(configs, 256)
  found = list(memory_analysis.analyze(groups, 256))
  assert [one.group.runs for one in found] == [1] * len(points)
  for one, tolerance in zip(found, [0.05, 0.05, 0.05, 0.15, 0.1, 0.05], strict=True):
    estimate = one.estimate
    assert estimate.params + estimate.optimizer == pytest.approx(one.arguments, rel=0.001, abs=200)
    assert estimate.gradients + estimate.activations == pytest.approx(one.temporary, rel=tolerance)
    assert estimate.total == pytest.approx(one.total, rel=tolerance)
    outputs = one.total - one.arguments - one.temporary
    assert outputs < 10_000  # the state takes the place of the old one


def test_analysis_row(monkeypatch, capsys):
  found = memory_analysis.Analysis(
      group=cost_lib.Group('width=8', {}, 1, 1, 1.0),
      placement=cost_lib.Placement('single', 1, 1, 'none'),
      estimate=cost_lib.Memory(1e6, 2e6, 3e6, 4e6),
      arguments=3_000_000,
      temporary=5_000_000,
      total=8_000_000,
  )
  monkeypatch.setattr(memory_analysis, 'analyze', lambda groups, vocabulary_size: [found])
  lines = run(capsys, f'--config={ROOT}/configs/base.py', '--analyze')
  (line,) = (line for line in lines if line.startswith('width=8'))
  assert ' '.join(line.split()) == (
      'width=8 single 1 3.00 / 3.00 7.00 / 5.00 10.00 / 8.00 1.25'
  )
