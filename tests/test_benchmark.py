"""The benchmark's own arithmetic, and that its contestants run and learn."""

import json

import numpy as np
import pytest

from configs import benchmark as setup
from launch import app, benchmark, environment
from launch.benchmarks import plain


def test_contestants_take_turns():
  calls = []
  readings = benchmark._in_turn(
      {'a': lambda: calls.append('a') or 2.0, 'b': lambda: calls.append('b') or 1.0}, rounds=2
  )
  assert calls == ['a', 'b', 'a', 'b'] and readings == {'a': [2.0, 2.0], 'b': [1.0, 1.0]}


def test_ratios_are_taken_within_a_round():
  # The machine slows down to a tenth after the first round; the ratio does not see it.
  readings = {'a': [200.0, 20.0, 20.0], 'b': [100.0, 10.0, 10.0]}
  assert benchmark._ratio(readings, 'a', 'b') == 2.0


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [([], '--output: missing'), (['--output=x', '--only=speed'], '--only=speed: must be one of')],
)
def test_bad_input(arguments, said, capsys):
  assert app.execute(benchmark.main, benchmark.FLAGS, ['benchmark', *arguments]) == 2
  assert said in capsys.readouterr().err


def test_processes_are_measured_at_the_same_time(monkeypatch):
  monkeypatch.setattr(benchmark, 'SECONDS', 0.2)
  core = environment.cores()[:1]
  assert benchmark._speed('matmul', 64, [core, core]) > 1e6


def test_the_plain_trainer_learns_and_logs_every_tensor(tmp_path, monkeypatch):
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
