"""Loading of runs, from their newest checkpoints or at step 0."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from stability import config as config_lib
from stability.config import Config
from stability.control import records
from stability.control.rules import RulesFor, rules_for
from stability.control.run_control import NoControl, RunControl
from stability.devices.layout import Layout
from stability.errors import BadInput
from stability.step import train_step
from stability.storage import checkpoints, resume, run_files, sweeps, versions
from stability.storage.files import Json
from stability.storage.metrics import MetricsWriter, NoWriter
from stability.storage.sweeps import Sweep
from stability.trainer import parents
from stability.trainer.processes import Processes
from stability.trainer.run import Run, RunProgress
from stability.trainer.state_arrays import from_arrays

NO_ACTIONS = 'a run on several processes accepts no actions'


class RunLoader:
  """Loads the runs of a workdir and opens their files."""

  def __init__(
      self,
      workdir: Path,
      sweep: Sweep,
      runs: int,
      clock: Callable[[], float],
      processes: Processes,
      rules: RulesFor = rules_for,
  ):
    self._workdir = workdir
    self._sweep = sweep
    self._runs = runs  # that the layout was made for
    self._clock = clock
    self._processes = processes
    self._rules = rules

  @property
  def data(self) -> Json:
    """The entries of meta.json of the sweep's text."""
    return self._sweep.data

  def config(self, name: str) -> Config:
    """The config of a run of the sweep, or of a fork."""
    if name in self._sweep.runs:
      return self._sweep.runs[name]
    return run_files.read_config(run_files.run_dir(self._workdir, name))

  def load(self, folder: Path, layout: Layout, timed_out: bool) -> tuple[Run, Any]:
    """Loads a run; returns the run and its state.

    Args:
      folder: the run's folder.
      layout: creates the state of a new run.
      timed_out: whether the run was paused and nobody answered before its deadline.

    Raises:
      BadInput: files of the run are damaged, or several processes share it and it needs actions or
        they have read different checkpoints.
    """
    config = self.config(folder.name)
    progress = RunProgress()
    if self._processes.is_primary:
      run_files.remove_temporaries(folder)
    found = checkpoints.restore(folder)
    step = found[0] if found else 0
    oldest, newest = self._processes.min(step), -self._processes.min(-step)
    if oldest != newest:
      raise BadInput(
          f'{folder}: its processes do not resume from the same step, but from {oldest} to'
          f' {newest}: a host cannot read a checkpoint that others read'
      )
    if found:
      _, arrays, values = found
      progress = RunProgress.from_json(values)
      state = from_arrays(layout.init(_hparams(config)), arrays)
      logging.info('%s resumes from step %d', folder.name, step)
    else:
      state = new_state(layout, folder, config)
      if self._processes.is_primary and (row := run_files.last_metrics(folder)):
        message = '%s was at step %d and has no checkpoint: it starts again from step 0'
        logging.warning(message, folder.name, row['step'])
    run = Run(
        folder=folder,
        config=config,
        writer=self.open_writer(folder, config, step),
        control=self._make_control(folder, config, step, progress.actions, timed_out),
        clock=self._clock,
        step=step,
        initial_loss=progress.initial_loss,
        seconds=progress.seconds,
        diverged=bool(state['diverged']),
    )
    # The process may have been interrupted during the final evaluation of a stopped run.
    run.stopped = any(record.action.kind == 'stop' for record in run.control.taken)
    run.start_clock()
    return run, state

  def open_writer(self, folder: Path, config: Config, step: int) -> MetricsWriter | NoWriter:
    """Opens the metrics of a run for writing after `step`; drops the rows of later steps."""
    if not self._processes.is_primary:
      return NoWriter()
    began = run_files.read_config(folder)
    options = {field: new for field, (_, new) in resume.changes(began, config).items()}
    versions.record(folder, step, options=options, runs=self._runs)
    return MetricsWriter(folder, step, sweeps.swept_values(config, self._sweep.fields))

  def _make_control(
      self, folder: Path, config: Config, step: int, taken: int, timed_out: bool
  ) -> RunControl | NoControl:
    """The control of a run; BadInput if several processes share a run that needs actions."""
    if self._processes.is_multiprocess:
      on_alarm = config['control']['on_alarm']
      if on_alarm != 'none':
        raise BadInput(f'config.control.on_alarm={on_alarm}: must be none: {NO_ACTIONS}')
      if len(records.read_taken(folder)) > taken:
        raise BadInput(
            f'{folder}/actions.jsonl: {NO_ACTIONS}, and it has actions after the last checkpoint'
        )
      if not self._processes.is_primary:
        return NoControl()
    saved = functools.partial(checkpoints.good_steps, folder)
    return RunControl(folder, config, step, taken, saved, timed_out, self._rules)


def new_state(layout: Layout, folder: Path, config: Config) -> Any:
  """The state of a run at step 0; raises BadInput if what it starts from is gone."""
  parent = parents.load(folder, config)
  if parent is None:
    return layout.init(_hparams(config))
  goes_on = {name: parent[name] for name in ('optimizer', 'average') if name in parent}
  variables = {name: tree for name, tree in parent.items() if name not in goes_on}
  state = layout.init(_hparams(config), variables)
  return state | {name: from_arrays(state[name], arrays) for name, arrays in goes_on.items()}


def _hparams(config: Config) -> dict[str, np.generic]:
  return train_step.arrays(config_lib.split(config)[1])
