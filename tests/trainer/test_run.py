"""A run's progress, rows and result, without training."""

import math

import pytest

from configs import base
from stability.control.run_control import NoControl
from stability.trainer.run import Run, RunProgress


class Writer:
  """Keeps what is written."""

  def __init__(self):
    self.rows = []
    self.result = None

  def write(self, row):
    self.rows.append(row)

  def close(self, result=None):
    self.result = result


@pytest.fixture
def now():
  """The time of the run's clock, in a list."""
  return [100.0]


@pytest.fixture
def run(tmp_path, now):
  config = base.get_config().to_dict()
  run = Run(tmp_path, config, Writer(), NoControl(), clock=lambda: now[0], step=20, seconds=5.0)
  run.start_clock()
  return run


def test_progress_json():
  values = {'initial_loss': 5.5, 'seconds': 1.25, 'actions': 2}
  assert RunProgress.from_json(values).to_json() == values
  assert RunProgress().to_json() == {'initial_loss': None, 'seconds': 0.0, 'actions': 0}


def test_log(run, now):
  run.step, now[0] = 30, 102.0
  run.log({'step': 30.0, 'loss': 3.0, 'diverged': 0.0}, 30, now[0])
  (row,) = run.writer.rows
  per_step = run.config['data']['batch_size'] * run.config['data']['sequence_length']
  assert row == {
      'step': 30,
      'loss': 3.0,
      'tokens': 30 * per_step,
      'seconds': 7.0,
      'tokens_per_second': 5 * per_step,
  }
  assert not run.diverged and run.last_logged == (30, 102.0)


def test_log_diverged(run, now):
  """The device says at which step; the host has counted on."""
  run.step, now[0] = 30, 102.0
  run.log({'step': 23.0, 'loss': 3.0, 'diverged': 1.0}, 30, now[0])
  assert run.diverged and run.step == 23 and run.is_over()
  (row,) = run.writer.rows
  assert math.isnan(row['loss']) and row['step'] == 23
  per_step = run.config['data']['batch_size'] * run.config['data']['sequence_length']
  assert row['tokens'] == 22 * per_step  # update 23 was not made
  result = run.finish(math.nan, 1.0)
  assert (result.status, result.steps, result.tokens) == ('diverged', 22, 22 * per_step)


def test_log_unexpected_step(run):
  with pytest.raises(AssertionError):
    run.log({'step': 29.0, 'loss': 3.0, 'diverged': 0.0}, 30, 102.0)


@pytest.mark.parametrize(
    ('loss', 'diverged', 'stopped', 'status'),
    [
        (3.0, False, False, 'done'),
        (6.0, False, False, 'diverged'),
        (math.nan, True, False, 'diverged'),
        (3.0, False, True, 'stopped'),
        (3.0, True, True, 'diverged'),
    ],
)
def test_finish(run, loss, diverged, stopped, status):
  run.initial_loss, run.diverged, run.stopped = 5.0, diverged, stopped
  result = run.finish(loss, 9.0)
  steps = 19 if diverged else 20  # update 20 was not made
  assert (result.status, result.steps, result.seconds) == (status, steps, 9.0)
  assert run.writer.result == result
