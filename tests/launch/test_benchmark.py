"""The arithmetic of the benchmarks; the programs that they compare run and learn."""

import csv
import json
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import benchmark as setup
from launch import benchmark
from launch.benchmarks import accelerator, arms, gpu_suite, inputs, numerics, plain, probe_overhead
from launch.benchmarks.readings import in_turn, ratio
from launch.common import app, environment


def test_in_turn():
  calls = []
  readings = in_turn(
      {name: lambda name=name: calls.append(name) or len(calls) for name in 'ab'},
      rounds=2,
      warm_up=1,
  )
  assert calls == ['a', 'b'] * 3 and readings == {'a': [3, 5], 'b': [4, 6]}


def test_ratio():
  # The machine becomes ten times as slow after the first round, which leaves the ratio unchanged.
  readings = {'a': [200.0, 20.0, 20.0], 'b': [100.0, 10.0, 10.0]}
  assert ratio(readings, 'a', 'b') == 2.0


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        ([], '--output: missing'),
        (['--output=x', '--only=speed'], '--only=speed: must be one of'),
        (['--output=x', '--suite=gpu', '--only=row'], '--only=row: must be one of numerics'),
        (['--output=x', '--suite=gpu'], '--suite=gpu: needs a GPU or TPU'),
        (['--output=x', '--suite=tpu'], '--suite=tpu'),
    ],
)
def test_bad_input(arguments, said, tmp_path, monkeypatch, capsys):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  monkeypatch.chdir(tmp_path)
  assert app.execute(benchmark.main, benchmark.FLAGS, ['benchmark', *arguments]) == 2
  out, err = capsys.readouterr()
  assert said in err and err.count('\n') == 1 and not out
  assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_simultaneous_processes(monkeypatch):
  monkeypatch.setattr(benchmark, 'SECONDS', 0.2)
  core = environment.cores()[:1]
  assert benchmark._speed('matmul', 64, [core, core]) > 1e6


@pytest.mark.slow
def test_plain_script(tmp_path, monkeypatch):
  get_config = setup.get_config

  def shorter():
    c = get_config()
    c.model.depth = 1
    c.schedule.steps, c.schedule.warmup_steps = 30, 2
    c.data.source = 'synthetic'
    return c

  monkeypatch.setattr(plain.benchmark, 'get_config', shorter)
  plain.train(1e-2, tmp_path)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert len(lines) == 30 and len(lines[0]) == 2 + 3 * 13
  losses = [line['loss'] for line in lines]
  assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.3


def tiny(**fields):
  c = setup.get_config()
  c.model.width, c.model.depth, c.model.head_dim = 16, 0, 16  # fast to compile
  c.data.batch_size, c.data.sequence_length = 2, 8
  c.data.source = 'synthetic'
  c.data.validation_batches = 1
  c.schedule.steps, c.schedule.warmup_steps = 40, 2
  c.probe.every_steps = 0
  with c.ignore_type():
    c.update_from_flattened_dict(fields)
  return c


@pytest.mark.slow
def test_population(monkeypatch):
  calls = []
  timer = accelerator._timer

  def spy(config, members, runs):
    calls.append((members, runs))
    return timer(config, members, runs)

  monkeypatch.setattr(accelerator, '_timer', spy)
  readings = accelerator.population(inputs.resolve(tiny()), rounds=2, members=3, steps=4)
  assert calls == [(3, 3), (1, 3)]
  assert {name: len(found) for name, found in readings.items()} == {'together': 2, 'one by one': 2}
  assert all(seconds > 0 for found in readings.values() for seconds in found)


def test_utilisation(monkeypatch):
  monkeypatch.setattr(accelerator, '_timer', lambda *arguments: lambda steps: 0.5 * steps)
  config = inputs.resolve(tiny())
  readings = accelerator.utilisation(config, 1, steps=5, vocabulary_size=16, matmul_size=32)
  flops = 3 * 2 * 8 * 2 * 16 * 16  # of the head, in a step of 2 x 8 tokens
  assert readings['training'] == [flops / 0.5]
  assert 1e4 < readings['matmul'][0] < 1e13


def test_large_configs():
  for name, width in (('151M', 1024), ('1.2B', 2048)):
    config = accelerator.large(name)
    assert (config['model']['width'], config['model']['dtype']) == (width, 'bfloat16')
    assert config['data']['sequence_length'] == 512
    assert config['model']['head_dim'] == 64


@pytest.mark.slow
def test_probe_overhead():
  c = tiny(**{'log.every_steps': 10})
  readings = probe_overhead.measure(c, 1, probe_every=20)
  assert set(readings) == {'logged', 'bare steps', 'probed every 20'}
  assert all(len(found) == 1 and found[0] > 0 for found in readings.values())


def test_accelerator_rows():
  def rows(name, **found):
    return [row[1:] for row in gpu_suite.MEASUREMENTS[name](found)]

  readings = {'one by one': [8.0, 6.0, 9.0], 'together': [1.0, 1.0, 1.0]}
  assert rows('population', readings=readings) == [('8.0', '>= 5')]
  readings = {'training': [4e14, 5e14], 'matmul': [8e14, 1e15]}
  found = rows('utilisation', readings={'151M': readings, '1.2B': readings})
  assert found == [('50%', '>= 50 %'), ('50%', '>= 55 %')]
  readings = {'logged': [1.0], 'bare steps': [0.995], 'probed every 100': [1.015]}
  found = rows('probe_overhead', readings=readings)
  assert found == [('1.5%', '<= 2 %'), ('0.5%', '<= 1 %')]
  found = rows(
      'numerics',
      errors={'float32': {'loss': 2e-6}, 'bfloat16': {'loss': 0.004}},
      repeats={'twice': 0.0, 'alone': 1e-7},
  )
  equal = 'equal bit for bit'
  assert found[:2] == [('2.0e-06', '<= 1e-4'), ('4.0e-03', '<= 3e-2')]
  assert found[2:] == [(equal, equal), ('differ by 1.0e-07', equal)]
  assert rows('torch', readings={'torch': [1e5, 2e5, 3e5]}) == [('200,000', '')]
  readings = {'151M': {'measured': 0.3, 'estimated': 0.2}}
  assert rows('estimates', readings=readings) == [('1.50', '')]
  found = {'statuses': {'done': 3, 'failed': 1}, 'runs': 42, 'seconds': 61.2, 'exit code': 75}
  said = '3 done, 1 failed of 42 runs in 61 s, exit code 75'
  assert rows('quickstart', **found) == [(said, '')]


@pytest.mark.slow
def test_errors_and_repeats():
  """The CPU against itself; a run is the same twice, and about the same alone."""
  config = inputs.resolve(tiny())
  cpu = jax.local_devices(backend='cpu')[0]
  assert numerics.errors(config, cpu) == {'logits': 0, 'loss': 0, 'gradient': 0}
  found = numerics.repeats(config, members=3, steps=4)
  assert found['twice'] == 0 and found['alone'] < 1e-4
  assert numerics._largest_difference({'a': np.ones(4), 'b': np.full(4, 1.1)},
                                      {'a': np.ones(4), 'b': np.ones(4)}) == pytest.approx(0.1)


def test_torch_throughput(monkeypatch):
  pytest.importorskip('torch')
  monkeypatch.setattr(accelerator, 'VOCABULARY', 16)
  config = inputs.resolve(tiny())
  (readings,) = accelerator.torch_throughput(config, 2, steps=1)['readings'].values()
  assert len(readings) == 2 and min(readings) > 0


@pytest.mark.parametrize(
    'command, said',
    [
        ('import time; time.sleep(60)', 'not done within 1 s'),
        ('print("x"); raise ValueError("no such kernel")', 'failed: ValueError: no such kernel'),
        ('print("x"); print(\'{"readings": {"torch": [5.0]}}\')', '5'),
    ],
)
def test_a_measurement_that_ends_early(command, said, tmp_path, monkeypatch):
  monkeypatch.setattr(
      gpu_suite.programs, 'command', lambda name: [sys.executable, '-c', command]
  )
  monkeypatch.setattr(environment, 'worker_environment', dict)
  deadline = time.monotonic() + (1 if 'sleep' in command else 60)
  _, [row] = gpu_suite.measure('torch', 1, deadline, tmp_path / 'x.json')
  assert row[1] == said
  _, [row] = gpu_suite.measure('torch', 1, time.monotonic(), tmp_path / 'x.json')
  assert row == ('torch', 'no time left', '')


@pytest.mark.parametrize(
    ('given', 'platforms'),
    [('cuda', 'cuda,cpu'), ('cuda,cpu', 'cuda,cpu'), ('cpu', 'cpu'), ('', ''), (None, None)],
)
def test_a_measurement_has_the_cpu_beside_the_gpu(given, platforms, tmp_path, monkeypatch):
  given_variables = {} if given is None else {'JAX_PLATFORMS': given}
  monkeypatch.setattr(environment, 'worker_environment', lambda: dict(given_variables))
  seen = []

  def run(command, env, **_):
    seen.append(env.get('JAX_PLATFORMS'))
    return subprocess.CompletedProcess(command, 0, '{"cut": "x"}', '')

  monkeypatch.setattr(gpu_suite.subprocess, 'run', run)
  gpu_suite.measure('numerics', 1, time.monotonic() + 60, tmp_path / 'x.json')
  assert seen == [platforms]


@pytest.mark.slow
def test_quickstart_is_cut_off(tmp_path):
  """It is stopped in time, and what it has is kept; with the time over, it does not start."""
  file = tmp_path / 'x.json'
  deadline = time.monotonic() + gpu_suite._GRACE_SECONDS + 25
  found, [row] = gpu_suite.measure('quickstart', 1, deadline, file)
  assert found['exit code'] == 75 and 'runs in' in row[1]
  assert list(tmp_path.glob('quickstart-*/sweep.json'))
  assert gpu_suite.measure('quickstart', 1, time.monotonic(), file)[0] == {'cut': 'no time left'}


def test_suite(tmp_path, monkeypatch, capsys):
  found = {'device': 'some GPU', 'readings': {'one by one': [8.0], 'together': [1.0]}}
  monkeypatch.setattr(gpu_suite, '_in_process', lambda name, rounds, deadline: found)
  monkeypatch.setattr(environment, 'has_accelerator', lambda: True)
  file = tmp_path / 'found.json'
  arguments = [f'--output={file}', '--suite=gpu', '--only=population']
  assert app.execute(benchmark.main, benchmark.FLAGS, ['benchmark', *arguments]) == 0
  assert '8.0' in capsys.readouterr().out
  written = json.loads(file.read_text())
  assert written['population'] == found and written['machine']['jax']


def test_cost_of_arms_is_kept(tmp_path, monkeypatch):
  """A second start measures what the file lacks; names may contain commas."""
  names, measured = ('AdamW', 'experts, router bias', 'SOAP'), []
  monkeypatch.setattr(arms.arms, 'ARMS', {name: {} for name in names})
  monkeypatch.setattr(environment, 'worker_environment', dict)
  monkeypatch.setattr(environment, 'pin', lambda cores: None)
  monkeypatch.setattr(sys, 'argv', ['arms', str(tmp_path / 'cost.csv'), '0'])

  def measure(name, width):
    if len(measured) == 3:
      raise KeyboardInterrupt
    measured.append((name, width))
    return dict.fromkeys(arms.COLUMNS[2:], '1.5')

  monkeypatch.setattr(arms, 'measure', measure)
  with pytest.raises(KeyboardInterrupt):
    arms.main()
  first, measured = measured, []
  arms.main()
  assert first + measured == [(name, width) for width in arms.STEPS for name in names[1:]]
  rows = list(csv.DictReader((tmp_path / 'cost.csv').open()))
  assert [(row['arm'], int(row['width']), row['bytes']) for row in rows] == [
      (*each, '1.5') for each in first + measured
  ]


def test_ratios_are_of_the_same_round(monkeypatch):
  """The warm-up does not count, nor that the machine becomes ten times as slow."""
  monkeypatch.setattr(arms, 'ROUNDS', 2)
  ours, base = iter([9.0, 6.0, 30.0]), iter([1.0, 2.0, 20.0])
  assert arms._ratios(lambda: next(ours), lambda: next(base)) == [3.0, 1.5]


@pytest.mark.slow
def test_cost_of_an_arm(monkeypatch):
  monkeypatch.setattr(arms, 'ROUNDS', 2)
  monkeypatch.setattr(arms, 'PERIODIC', ('experts',))
  monkeypatch.setattr(arms, 'STEPS', {16: 10})
  found = arms.measure('experts', 16)  # eight of them
  assert float(found['bytes']) > 1.5
  assert 0 < float(found['low']) <= float(found['seconds']) <= float(found['high'])
  assert float(found['in_population']) > 0
