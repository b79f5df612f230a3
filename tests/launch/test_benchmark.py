"""The arithmetic of the benchmarks; the programs that they compare run and learn."""

import json

import numpy as np
import pytest

from configs import benchmark as setup
from launch import benchmark
from launch.benchmarks import accelerator, inputs, plain, probe_overhead
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
        (['--output=x', '--suite=gpu', '--only=row'], '--only=row: must be one of population'),
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
  found = {'readings': {'one by one': [8.0, 6.0, 9.0], 'together': [1.0, 1.0, 1.0]}}
  assert benchmark._population_row(found)[1:] == ('8.0', '>= 5')
  readings = {'training': [4e14, 5e14], 'matmul': [8e14, 1e15]}
  rows = benchmark._utilisation_rows({'readings': {'151M': readings, '1.2B': readings}})
  assert [row[1:] for row in rows] == [('50%', '>= 50 %'), ('50%', '>= 55 %')]
  readings = {'logged': [1.0], 'bare steps': [0.995], 'probed every 100': [1.015]}
  rows = benchmark._probe_overhead_rows({'readings': readings})
  assert [row[1:] for row in rows] == [('1.5%', '<= 2 %'), ('0.5%', '<= 1 %')]


def test_suite(tmp_path, monkeypatch, capsys):
  found = {'device': 'some GPU', 'readings': {'one by one': [8.0], 'together': [1.0]}}
  monkeypatch.setattr(benchmark, '_on_accelerator', lambda what, rounds: found)
  monkeypatch.setattr(environment, 'has_accelerator', lambda: True)
  file = tmp_path / 'found.json'
  arguments = [f'--output={file}', '--suite=gpu', '--only=population']
  assert app.execute(benchmark.main, benchmark.FLAGS, ['benchmark', *arguments]) == 0
  assert '8.0' in capsys.readouterr().out
  written = json.loads(file.read_text())
  assert written['population'] == found and written['machine']['jax']
