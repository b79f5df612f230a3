"""Trains tiny runs in this process, and calls functions when they reach a step."""

import jax
import pytest

from configs import base
from helpers import made_up
from stability import config as config_lib
from stability import hyper
from stability.control.actions import Action
from stability.control.records import read_taken
from stability.control.requests import write_request
from stability.data import prepare as prepare_lib
from stability.data import tokens
from stability.devices.make_layout import make_layout
from stability.storage import run_files, sweeps
from stability.trainer.hooks import TrainerHooks
from stability.trainer.paused import PausedRuns
from stability.trainer.processes import Processes
from stability.trainer.trainer import train_runs

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
POPULATION = {'parallel.layout': 'population', 'parallel.members': 1}
WALL_CLOCK = {'seconds', 'tokens_per_second', 'time'}
RATE = 'optimizer.learning_rate'

_HOST_ONLY = ('checkpoint', 'control', 'log')  # sections that no compiled program depends on
_LAYOUTS = {}


def prepare(directory):
  """Writes a folder of token files."""
  config = base.get_config().data
  config.source = 'synthetic'
  return prepare_lib.prepare(config, directory, 16)


def write_sweep(workdir, data, points=({},), **fields):
  """Writes a sweep; returns the folders of its runs."""
  flat = config_lib.flatten(base.get_config().to_dict()) | FIELDS | fields
  runs = hyper.expand(config_lib.unflatten(flat), list(points))
  text = {'path': str(data), **tokens.open_tokens(data).meta}
  made_up.write_runs(workdir, runs, text)
  return [run_files.run_dir(workdir, name) for name in runs.configs]


def cached_layout(workdir, sweep, static, *arguments):
  """A make_layout for three devices that compiles each program once."""
  flat = config_lib.flatten(static.to_dict())
  key = frozenset(item for item in flat.items() if item[0].split('.')[0] not in _HOST_ONLY)
  if key not in _LAYOUTS:
    devices = jax.local_devices()[:3]
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(jax, 'local_devices', lambda: devices)
      _LAYOUTS[key] = make_layout(workdir, sweep, static, *arguments)
  return _LAYOUTS[key]


class _WatchedMetrics:
  """Metrics that call a function before they are fetched."""

  def __init__(self, metrics, before_read):
    self._metrics, self._before_read = metrics, before_read
    self.wait = metrics.wait

  def read(self):
    self._before_read()
    return self._metrics.read()


class WatchedLayout:
  """A layout that calls a function before metrics are fetched."""

  def __init__(self, layout, before_read):
    self._layout, self._before_read = layout, before_read

  def __getattr__(self, name):
    return getattr(self._layout, name)

  def step(self, state, kind, steps=1):
    state, metrics = self._layout.step(state, kind, steps)
    return state, _WatchedMetrics(metrics, self._before_read)


class TwoProcesses(Processes):
  """Two processes that agree on everything; this one is the first."""

  is_multiprocess = True

  def any(self, value):
    return value

  def min(self, value):
    return value


class Killed(BaseException):
  """Ends training as the death of the process would."""


def kill():
  """Raises Killed."""
  raise Killed


def preempt():
  """Tells training to save its runs and end; to be given to `Training.at`."""


class Training:
  """Trains runs as a worker does, on cached layouts."""

  def __init__(self, **hooks):
    self._hooks = {'make_layout': cached_layout, 'runs': 3, **hooks}
    self._at_stops = {}
    self._when_over = []
    self._runs = ()
    self._kill = self._preempt = False

  def at(self, run, step, *calls):
    """Calls functions when a run reaches a step, before its actions.

    `kill` and `preempt` take effect after its actions.
    """
    self._at_stops.setdefault((run, step), []).extend(calls)

  def when_over(self, call):
    """Calls a function during the final evaluation of the next run that is over."""
    self._when_over.append(call)

  def __call__(self, *runs, paused=None, may_fail=False):
    """Trains runs of one sweep; returns the paused runs."""
    workdir = runs[0].parents[1]
    waiting = iter(run.name for run in runs)
    paused = PausedRuns(workdir) if paused is None else paused
    hooks = TrainerHooks(on_stop=self._on_stop, interrupted=self._interrupted, **self._hooks)
    sweep = sweeps.read_sweep(workdir)
    train_runs(workdir, sweep, next(waiting), lambda: next(waiting, None), paused, hooks)
    for run in runs:
      result = run_files.read_result(run)
      assert may_fail or result is None or result.error is None, result.error
    return paused

  def _on_stop(self, runs):
    self._runs = runs
    calls = []
    for run in runs:
      calls += self._at_stops.pop((run.folder, run.step), ())
    for call in calls:
      if call is not kill:
        call()
    self._kill, self._preempt = kill in calls, preempt in calls

  def _interrupted(self):
    if self._kill:
      self._kill = False
      kill()
    if self._when_over and any(run.is_over() for run in self._runs):
      self._when_over.pop(0)()
    is_preempted, self._preempt = self._preempt, False
    return is_preempted


def asks(run, action, **arguments):
  """A function that requests an action."""
  return lambda: write_request(run, Action(action, **arguments), 'ann', 'to see')


def numbers(run):
  """The rows and the result of a run without wall-clock values."""
  lines = [*run_files.read_metrics(run), run_files.read_result(run).to_json()]
  return [{key: line[key] for key in line if key not in WALL_CLOCK} for line in lines]


def taken(run):
  """(action, step, by) of each action taken."""
  return [(r.action.kind, r.step, r.by) for r in read_taken(run)]


def by_step(run):
  """The logged rows by their step."""
  return {line['step']: line for line in run_files.read_metrics(run)}
