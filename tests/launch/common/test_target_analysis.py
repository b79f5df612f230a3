"""launch.sweep --analyze --target, with a stand-in for the compilers and with the real ones."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

from configs import base
from launch import sweep
from launch.common import app, target_analysis, target_report
from stability import hyper
from stability.devices import ahead_of_time, hlo, shapes, targets
from stability.devices import cost as cost_lib
from stability.devices.placement import Memory, Placement
from stability.errors import BadInput

ROOT = pathlib.Path(__file__).parents[3]
H100 = targets.parse('h100:8')
PROGRAM = target_analysis.Program(
    kind='quiet',
    memory_bytes=2_000_000_000,
    arguments_bytes=500_000_000,
    temporary_bytes=1_500_000_000,
    kernels=250,
    bytes=6_700_000_000,
    collectives={'all-reduce': {'count': 3, 'bytes': 450_000_000}},
    largest='f32[64,256,256]',
    unordered_scatters=2,
    compile_seconds=12.0,
)


def group(runs=7, **overrides):
  points = [{'seed': seed} | overrides for seed in range(runs)]
  configs = hyper.expand(base.get_config().to_dict(), points).configs
  return cost_lib.groups(configs, 256, lambda config, vocabulary: 1e9)[0]


def test_seconds(monkeypatch):
  """The slower of products and memory, then launches and links."""
  monkeypatch.setattr(shapes, 'step_flops', lambda config, vocabulary: 67e12)
  monkeypatch.setattr(shapes, 'gradient_flops', lambda config, vocabulary: 60e12)
  config = group().config
  found = target_analysis._seconds(
      PROGRAM, config, Placement('population', 2, 1, 'none'), 8, 256, H100
  )
  links = 2 * 7 / 8 * 1e-3  # 450 MB at 450 GB/s, twice, without a device's own eighth
  assert found == pytest.approx(2 * 1.0 + 250 * 4e-6 + links)
  sharded = Placement('sharded', 1, 1, 'block')
  found = target_analysis._seconds(PROGRAM, config, sharded, 8, 256, H100)
  assert found == pytest.approx((67 + 20) / 67 / 8 + 1e-3 + links)
  monkeypatch.setattr(shapes, 'step_flops', lambda config, vocabulary: 0.0)
  monkeypatch.setattr(shapes, 'gradient_flops', lambda config, vocabulary: 0.0)
  found = target_analysis._seconds(PROGRAM, config, sharded, 8, 256, H100)
  assert found == pytest.approx(2e-3 + 1e-3 + links)  # 6.7 GB at 3.35 TB/s


@pytest.mark.parametrize(
    'kind, optimizer, gradients',
    [
        ('quiet', 'adamw', 1),
        ('sharp', 'adamw', 1 + 8 / 3 + 20),  # 8 forward passes and 10 products with the Hessian
        ('sharp', 'muon', 1 + 8 / 3),
        ('evaluate', 'adamw', 1 / 3),
    ],
)
def test_gradients_of_a_program(kind, optimizer, gradients, monkeypatch):
  for name in ('step_flops', 'gradient_flops'):
    monkeypatch.setattr(shapes, name, lambda config, vocabulary: 67e12)
  program = dataclasses.replace(PROGRAM, kind=kind, kernels=0, collectives={})
  place = Placement('single', 1, 1, 'none')
  config = group(**{'optimizer.name': optimizer}).config
  found = target_analysis._seconds(program, config, place, 1, 256, H100)
  assert found == pytest.approx(gradients)


def test_bytes_that_a_device_sends():
  """By rings over four devices; the result is the whole array, or of a reduce-scatter a part."""
  whole = {'all-reduce': 150, 'all-gather': 75, 'all-to-all': 75, 'collective-permute': 100}
  assert {kind: target_analysis._sent(kind, 100, 4) for kind in whole} == whole
  assert target_analysis._sent('reduce-scatter', 25, 4) == 75


@pytest.mark.parametrize(
    'layout, members, devices, rounds', [('population', 2, 3, 2), ('data_parallel', 1, 8, 7)]
)
def test_device_hours(layout, members, devices, rounds):
  """Seven runs; a population of six leaves one for a second round."""
  overrides = {'schedule.steps': 1000, 'probe.every_steps': 100, 'data.validation_batches': 5}
  found = target_analysis._device_hours(
      group(**overrides),
      Placement(layout, members, 1, 'none'),
      devices,
      {'quiet': 1.0, 'probed': 3.0, 'evaluate': 0.5},
  )
  assert found == pytest.approx(rounds * devices * (1000 + 10 * 2 + 10 * 0.5) / 3600)


def test_device_hours_of_runs_of_different_length():
  """A sharp step takes the place of a probed one."""
  overrides = {'probe.every_steps': 10, 'probe.sharpness_every_steps': 100}
  points = [{'schedule.steps': steps} | overrides for steps in (1000, 3000)]
  configs = hyper.expand(base.get_config().to_dict(), points).configs
  (two,) = cost_lib.groups(configs, 256, lambda config, vocabulary: 1e9)
  seconds = {'quiet': 1.0, 'probed': 3.0, 'sharp': 20.0, 'evaluate': 0.0}
  found = target_analysis._device_hours(two, Placement('single', 1, 1, 'none'), 1, seconds)
  assert found == pytest.approx((4000 * 0.9 * 1 + 4000 * 0.09 * 3 + 40 * 20) / 3600)


def test_too_large():
  assert target_analysis._too_large([PROGRAM], 2e9) == ''
  large = dataclasses.replace(PROGRAM, memory_bytes=20 * 10**9)
  said = target_analysis._too_large([PROGRAM, large], 17.2e9)
  assert said.startswith(
      'does not fit: the program quiet needs 20.0 of 17.2 GB; its largest array is f32[64,'
  )
  assert 'microbatches' in said


def analysis(**changes):
  return target_analysis.Analysis(
      group=group(),
      placement=Placement('population', 7, 1, 'none'),
      devices=1,
      estimate=Memory(1e9, 0, 0, 1e9),
      programs={'quiet': PROGRAM},
      seconds={'quiet': 0.01},
      device_hours=1.5,
      **changes,
  )


def test_table_and_file(monkeypatch, tmp_path, capsys):
  asked = []

  def analyze(groups, vocabulary_size, found, on_program):
    for each in groups:
      on_program(each.name, 'quiet')
      asked.append(found.name)
      yield analysis()

  monkeypatch.setattr(target_analysis, 'analyze', analyze)
  monkeypatch.setattr(targets, 'check', lambda platform: None)
  file = tmp_path / 'out.json'
  config = f'--config={ROOT}/configs/quickstart.py'
  arguments = ['--dry_run', '--analyze', '--target=h100:8', '--only=2', f'--output={file}']
  assert app.execute(sweep.main, sweep.FLAGS, ['sweep', config, *arguments]) == 0
  out, err = capsys.readouterr()
  assert asked == ['h100:8'] * 2
  assert 'group 2 of 2' in err
  (row, *_) = (line.split() for line in out.splitlines() if 'quiet' in line)
  assert row[:10] == ['all', '7', 'population', '7', '1', 'quiet', '2.00', '2.00', '250', '3']
  assert '3.00 device-hours of h100 for 14 runs' in out and targets.TARGETS['h100'].source in out
  written = json.loads(file.read_text())
  assert written['device_hours'] == 3.0 and len(written['groups']) == 2
  assert written['groups'][0]['programs']['quiet']['kernels'] == 250


def test_unordered_sums_are_named():
  said = 'add up in no fixed order'
  lines = target_report.summary([analysis()], H100)
  assert any(line.startswith(f'2 scatters {said}') for line in lines)
  assert not any(said in line for line in target_report.summary([analysis()], targets.parse('v5e')))


def test_what_does_not_fit_is_named():
  refused = analysis(refusal='does not fit: needs 20.0 of 17.2 GB')
  lines = target_report.summary([refused, analysis()], targets.parse('v5e'))
  assert lines[-1] == 'all: does not fit: needs 20.0 of 17.2 GB'
  assert 'for 7 runs (estimate)' in lines[0]


class Lowered:
  """A stand-in for a lowered program whose compilation fails."""

  def __init__(self, error):
    self.error = error

  def as_text(self):
    return str(self.error)

  def compile(self):
    raise self.error


@pytest.mark.parametrize(
    'error, refusal',
    [
        ('RESOURCE_EXHAUSTED: used 20G of 15G\nlong', 'does not fit: the program quiet: used 20G'),
        ('INTERNAL: no tiling', 'refused by the compiler: the program quiet: INTERNAL: no tiling'),
        ('', 'refused by the compiler: the program quiet: RuntimeError'),
        (None, 'cannot be lowered: cuDNN is not detected.'),
    ],
)
def test_refusal_of_a_group_leaves_the_others(error, refusal, monkeypatch, tmp_path):
  """A compiler's error is told in the group's place."""

  def lower(static, *_):
    if error is None:
      raise RuntimeError('cuDNN is not detected.')
    return {'quiet': Lowered(RuntimeError(error))}

  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(targets, 'devices', lambda found: [None])
  monkeypatch.setattr(ahead_of_time, 'lower', lower)
  found = list(target_analysis.analyze([group(), group()], 256, H100, lambda name, kind: None))
  assert len(found) == 2
  for each in found:
    assert each.refusal.startswith(refusal) and not each.programs and not each.device_hours


def test_cache_is_of_the_same_environment_and_code(monkeypatch, tmp_path):
  digests = [target_analysis._digest('text', H100)]
  monkeypatch.setenv('LIBTPU_INIT_ARGS', '--xla_tpu_enable_x=true')
  digests.append(target_analysis._digest('text', H100))
  monkeypatch.setattr(hlo, '__file__', str(tmp_path / 'hlo.py'))
  (tmp_path / 'hlo.py').touch()
  digests += [target_analysis._digest('text', H100), target_analysis._digest('other', H100)]
  digests.append(target_analysis._digest('text', targets.parse('h100:4')))
  assert len(set(digests)) == 5


@pytest.mark.parametrize(
    'arguments, message',
    [
        (('--dry_run', '--target=h100'), '--target: must be given with --analyze'),
        (('--dry_run', '--analyze', '--target=b300'), '--target=b300: must be one of'),
        (('--dry_run', '--only=1'), '--only: must be given with --analyze'),
        (('--dry_run', '--analyze', '--output=x.json'), '--output: must be given with --target'),
        (('--dry_run', '--analyze', '--target=h100', '--only=0'), '--only=0'),
        (
            ('--dry_run', '--analyze', '--target=h100', '--devices=8'),
            '--devices: must not be given with --target',
        ),
        (
            ('--dry_run', '--analyze', '--target=h100', '--output=/none/x.json'),
            '--output=/none/x.json: its folder does not exist',
        ),
        (
            ('--dry_run', '--analyze', '--target=h100', f'--output={ROOT}'),
            f'--output={ROOT}: is a folder, must be a file',
        ),
    ],
)
def test_bad_input(arguments, message, monkeypatch, capsys):
  monkeypatch.setattr(targets, 'check', lambda platform: None)
  config = f'--config={ROOT}/configs/base.py'
  assert app.execute(sweep.main, sweep.FLAGS, ['sweep', config, *arguments]) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.count('\n') == 1 and message in err


def compile_for(target, tmp_path, *arguments):
  """The JSON file of a small sweep, compiled for a target in a process of its own."""
  try:
    targets.check(targets.parse(target).target.platform)
  except BadInput:
    pytest.skip(f'no compiler for {target}')
  file = tmp_path / 'out.json'
  command = [
      *(sys.executable, '-m', 'launch.sweep', f'--config={ROOT}/configs/base.py', '--dry_run'),
      *('--analyze', f'--target={target}', f'--output={file}'),
      *('--config.model.width=64', '--config.model.depth=1', '--config.probe.every_steps=0'),
      *arguments,
  ]
  done = subprocess.run(
      command, cwd=ROOT, env=os.environ | {'XDG_CACHE_HOME': str(tmp_path)}, check=False,
      capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert 'Traceback' not in done.stderr
  return json.loads(file.read_text())['groups'][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    'target, layout, kind',
    [
        ('h100', 'population', None),
        ('h100:8', 'data_parallel', 'all-reduce'),
        ('h100:8', 'sharded', 'all-gather'),
        ('v5e:2x2', 'sharded', 'all-gather'),
    ],
)
def test_real_compilers(target, layout, kind, tmp_path):
  found = compile_for(target, tmp_path, f'--config.parallel.layout={layout}')
  assert found['placement']['layout'] == layout
  program = found['programs']['quiet']
  assert program['kernels'] > 20 and program['bytes'] > program['arguments_bytes'] > 0
  assert (kind is None) == (not program['collectives'])
  assert target.startswith('v5e') or program['unordered_scatters'] == 0
  assert kind is None or program['collectives'][kind]['count'] > 0
  # Coarse, for units and shares: the arithmetic counts arrays that this compiler may fuse.
  by_arithmetic = sum(found['memory_by_arithmetic'].values())
  workspace = 4 * 2**20 if target.startswith('h100') else 0  # of cuBLAS
  assert math.isfinite(by_arithmetic) and program['memory_bytes'] - workspace < 2 * by_arithmetic
