"""Resumes with other intervals: which numbers and rows change, and what is recorded."""

import dataclasses

import pytest
from helpers.training import RATE, Killed, asks, by_step, kill, numbers, taken

from stability import config as config_lib
from stability.storage import files, run_files, sweeps


def change(run, **fields):
  """Changes options of all runs in sweep.json, as a start with other options does."""
  workdir = run.parents[1]
  sweep = sweeps.read_sweep(workdir)
  runs = {
      name: config_lib.unflatten(config_lib.flatten(config) | fields)
      for name, config in sweep.runs.items()
  }
  sweeps.write_sweep(workdir, dataclasses.replace(sweep, runs=runs))


def interrupt(train, run, step):
  train.at(run, step, kill)
  with pytest.raises(Killed):
    train(run)


def test_intervals_change_no_numbers(sweep, train):
  """Rows are logged at the old interval up to the last checkpoint, then at the new one."""
  (undisturbed,), (run,) = sweep(), sweep()
  train(undisturbed)
  interrupt(train, run, 10)
  began = run_files.read_config(run)
  change(run, **{'log.every_steps': 3, 'checkpoint.every_steps': 5, 'checkpoint.keep': 1})
  train(run)
  ours, theirs = by_step(run), by_step(undisturbed)
  assert list(ours) == [2, 4, 6, 8, 9, 12, 15, 16, 18, 20, 21, 24]
  for step in ours.keys() & theirs.keys():
    assert ours[step]['loss'] == theirs[step]['loss']
  assert numbers(run)[-1] == numbers(undisturbed)[-1]
  assert [path.name for path in (run / 'checkpoints').iterdir()] == ['20']
  assert run_files.read_config(run) == began
  first, second = files.read_lines(run / 'versions.jsonl')
  assert (first['step'], second['step']) == (0, 6) and 'options' not in first
  assert second['options'] == {
      'log.every_steps': 3, 'checkpoint.every_steps': 5, 'checkpoint.keep': 1
  }  # fmt: skip


@pytest.mark.parametrize('action', ['continue', 'stop'])
def test_paused_run_between_new_stops(sweep, train, action):
  """A paused run takes actions where it is, even if that is no longer a stop."""
  (run,) = sweep()
  train.at(run, 8, asks(run, 'pause'))
  train(run)
  change(run, **{'log.every_steps': 9, 'probe.every_steps': 6, 'checkpoint.every_steps': 0})
  asks(run, action)()
  train(run, paused=train(run))
  assert taken(run) == [('pause', 8, 'ann'), (action, 8, 'ann')]
  assert run_files.read_result(run).steps == (24 if action == 'continue' else 8)


def test_recorded_action_between_new_stops(sweep, train):
  """An action that a resume repeats is taken at its step, even if that is no longer a stop."""
  (undisturbed,), (run,) = sweep(), sweep()
  for each in (undisturbed, run):
    train.at(each, 10, asks(each, 'set', changes={RATE: 1e-3}))
  train(undisturbed)
  interrupt(train, run, 10)
  change(run, **{'log.every_steps': 9, 'checkpoint.every_steps': 0})
  train(run)
  assert taken(run) == [('set', 10, 'ann')]
  assert numbers(run)[-1] == numbers(undisturbed)[-1]
