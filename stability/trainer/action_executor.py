"""Execution of actions: changes a run's state and files as an action says.

A run's RunControl decides which actions are due. At each stop of a run, the trainer passes the run
and its state to the executor. The result depends only on the run.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stability.control.actions import Action
from stability.control.alarms import read_alarms
from stability.control.records import Record, write_taken
from stability.devices.layout import Layout
from stability.errors import BadInput
from stability.step import train_step
from stability.storage import checkpoints, files, parents, run_files, sweeps
from stability.trainer import run_loader
from stability.trainer.run import Run
from stability.trainer.state_arrays import from_arrays, to_arrays


class ActionExecutor:
  """Applies actions to the runs of a workdir."""

  def __init__(self, workdir: Path, layout: Layout, loader: run_loader.RunLoader):
    self._workdir = workdir
    self._layout = layout
    self._loader = loader

  def apply_due(self, run: Run, state: Any) -> Any:
    """Applies the actions that are due at the run's current step; returns its new state.

    An action may move the run to an earlier step, pause it (see run.control.is_paused) or stop it.
    """
    if not run.is_at_stop():
      return state
    while not run.stopped:
      record = run.control.next(run.step, run.is_over())
      if record is None:
        break
      state = self._apply(run, state, record)
      text = json.dumps({k: v for k, v in record.to_json().items() if k != 'before'})
      run.writer.mark(record.step, f'action/{record.action.kind}', text)
    return state

  def _apply(self, run: Run, state: Any, record: Record) -> Any:
    """Applies one action; returns the run's new state."""
    action = record.action
    if action.kind in ('set', 'skip'):
      return _updated(state, action.changes, action.steps)
    if action.kind == 'rewind':
      return self._rewind(run, state, record)
    if action.kind == 'fork':
      self._fork(run, state, record)
    if action.kind == 'checkpoint':
      run.save(state)
    run.stopped = action.kind == 'stop'
    return state

  def _rewind(self, run: Run, state: Any, record: Record) -> Any:
    """Moves a run back to a checkpoint or to step 0; keeps its hyperparameters and skipped data.

    Checkpoints are deleted before rows are: at no moment of the rewind is the newest checkpoint
    ahead of metrics.jsonl.
    """
    to = record.action.to
    if to:
      found = checkpoints.restore(run.folder, only=to)
      if not found:
        raise RuntimeError(f'the checkpoint of step {to}, the target of a rewind, is missing')
      earlier = from_arrays(state, found[1])
    else:
      earlier = run_loader.new_state(self._layout, run.folder, run.config)
    state = earlier | {'hparams': state['hparams'], 'skipped': state['skipped']}
    state = _updated(state, record.action.changes, record.action.skip)
    rows = run_files.iterate_metrics(run.folder)
    files.write_lines(run.folder / record.cut, (row for row in rows if row['step'] > to))
    run.seconds = run.elapsed()
    run.step, run.diverged = to, False
    run.start_clock()
    checkpoints.delete_after(run.folder, to)
    run.save(state)
    run.writer.close()
    run.writer = self._loader.open_writer(run.folder, run.config, to)
    run.control.load_alarms(to)
    for alarm in read_alarms(run.folder):
      if alarm.step > to:  # TensorBoard now hides this mark, so it is set again
        run.writer.mark(alarm.step, f'alarm/{alarm.rule}', alarm.message)
    return state

  def _fork(self, run: Run, state: Any, record: Record) -> None:
    """Creates a new run with this run's config, rows, actions and state, plus the fork's changes.

    The new run's actions begin with those of this run, so it can also be trained from step 0. It
    belongs to the workdir once its file in forks/ exists.
    """
    name, changes = record.action.name, record.action.changes
    if not name.startswith(f'{run.folder.name}+'):  # the folder of this name is deleted below
      raise BadInput(f'{run.folder}/actions.jsonl: damaged: {name!r} is not a name of its fork')
    if sweeps.is_fork(self._workdir, name):
      return
    folder = run_files.run_dir(self._workdir, name)
    shutil.rmtree(folder, ignore_errors=True)  # left by a crash
    history = [
        taken
        for taken in run.control.taken
        if taken.action.kind not in ('pause', 'continue', 'stop', 'fork')
    ]
    if changes:
      history.append(dataclasses.replace(record, action=Action('set', changes=changes)))
    history.append(dataclasses.replace(record, action=Action('checkpoint')))  # saved below
    files.write_json(folder / 'config.json', run.config)
    if record_of_parents := parents.read(run.folder):
      parents.write(folder, record_of_parents)
    if (run.folder / run_files.LIMITS).exists():
      files.write_json(folder / run_files.LIMITS, files.read_json(run.folder / run_files.LIMITS))
    write_taken(folder, history)
    files.write_lines(folder / 'metrics.jsonl', run_files.iterate_metrics(run.folder))
    progress = dataclasses.replace(run.progress(), actions=len(history)).to_json()
    arrays = to_arrays(_updated(state, changes, 0))
    checkpoints.save(folder, run.step, arrays, progress, run.config['checkpoint']['keep'])
    fork = sweeps.Fork(run.folder.name, run.step, dict(changes))
    sweeps.write_fork(self._workdir, name, fork)


def _updated(state: Any, changes: Mapping[str, float | int], skipped: int) -> Any:
  """The state with changed hyperparameters and more skipped batches."""
  return state | {
      'hparams': state['hparams'] | train_step.arrays(changes),
      'skipped': np.int32(state['skipped'] + skipped),
  }
