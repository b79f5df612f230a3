"""Tiny runs that somebody steps in to, trained as a worker trains them."""

import jax

from configs import base
from helpers import made_up
from stability import config as config_lib
from stability import hyper
from stability.control import actions
from stability.data import tokens
from stability.storage import run_files, sweeps
from stability.trainer import trainer

FIELDS = {
    'data.batch_size': 4,
    'data.sequence_length': 16,
    'data.validation_batches': 2,
    'data.source': 'synthetic',
    'model.width': 16,
    'model.depth': 1,
    'optimizer.learning_rate': 1e-2,
    'schedule.steps': 24,
    'schedule.warmup_steps': 2,
    'log.every_steps': 2,
    'probe.every_steps': 4,
    'checkpoint.every_steps': 6,
    'checkpoint.keep': 9,
}
WALL_CLOCK = {'seconds', 'tokens_per_second', 'time'}
RATE = 'optimizer.learning_rate'

_LAYOUTS = {}


def prepare(directory):
  """A folder of token files."""
  config = base.get_config().data
  config.source = 'synthetic'
  return tokens.prepare(config, directory, 16)


def share_layouts(monkeypatch):
  """Three devices; of configs that only the host reads differently, one layout, compiled once."""
  make, devices = trainer.make_layout, jax.local_devices()[:3]

  def cached(workdir, sweep, static, *arguments):
    key = static.parallel.layout
    if key not in _LAYOUTS:
      _LAYOUTS[key] = make(workdir, sweep, static, *arguments)
    return _LAYOUTS[key]

  monkeypatch.setattr(trainer, 'make_layout', cached)
  monkeypatch.setattr(jax, 'local_devices', lambda: devices)


def write_sweep(workdir, data, rates=(1e-2,), **fields):
  """A sweep of one run, or of the given rates -> its runs' folders."""
  flat = config_lib.flatten(base.get_config().to_dict()) | FIELDS | fields
  runs = hyper.expand(config_lib.unflatten(flat), hyper.sweep(RATE, rates))
  about = {'path': str(data), **tokens.open_tokens(data).meta}
  made_up.write_runs(workdir, runs, about)
  return [run_files.run_dir(workdir, name) for name in runs.configs]


class Killed(BaseException):
  """As if the process had died."""


def killed():
  raise Killed


def doing_at(monkeypatch):
  """A function that does something when a run comes to a step, `killed` after its actions."""
  todo = {}
  act = trainer.Trainer._act

  def acting(self):
    found = [(m.folder, m.step) for m in self._members.values() if (m.folder, m.step) in todo]
    doing = [do for key in found for do in todo.pop(key)]
    for do in doing:
      if do is not killed:
        do()
    act(self)
    if killed in doing:
      killed()

  monkeypatch.setattr(trainer.Trainer, '_act', acting)
  return lambda run, step, *do: todo.setdefault((run, step), []).extend(do)


def asks(run, action, **arguments):
  """What asks for an action when it is called."""
  return lambda: actions.request(run, {'action': action, **arguments}, 'ann', 'to see')


def train(*runs, paused=None):
  """Trains runs of one sweep as a worker does; returns those left paused."""
  workdir = runs[0].parent.parent
  waiting = iter(run.name for run in runs)
  paused = {} if paused is None else paused
  trainer.train_runs(
      workdir, sweeps.read_sweep(workdir), next(waiting), lambda: next(waiting, None), paused
  )
  for run in runs:
    result = run_files.read_result(run)
    assert result is None or result.error is None, result.error
  return paused


def numbers(run):
  """The lines and the result of a run, without what the clock says."""
  lines = [*run_files.read_metrics(run), run_files.read_result(run).to_json()]
  return [{key: line[key] for key in line if key not in WALL_CLOCK} for line in lines]


def told(run):
  """(action, step, by) of each record."""
  return [(r['action'], r['step'], r['by']) for r in actions.read(run)]


def by_step(run):
  """The logged lines by their step."""
  return {line['step']: line for line in run_files.read_metrics(run)}
