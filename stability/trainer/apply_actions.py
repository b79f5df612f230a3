"""Carries out what a Control says: actions on a run and its state, at one of the run's stops.

stability/trainer/trainer.py brings a run and its state here, and takes both back; what is done to
them depends on nothing but the run.
"""

import functools
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stability import config as config_lib
from stability.control import actions, run_control
from stability.devices.layout import Layout
from stability.errors import BadInput
from stability.step import train_step
from stability.storage import checkpoints, files, run_files, sweeps
from stability.storage.files import Json
from stability.trainer import run as run_lib
from stability.trainer.run import Run

NO_ACTIONS = 'a run shared by several processes takes no actions'


def open_control(
    folder: Path, config: config_lib.Config, step: int, taken: int, timed_out: bool
) -> run_control.Control | run_control.NoControl:
  """Of a run at `step` with `taken` actions in its state; BadInput if it must and cannot act."""
  if run_lib.is_multiprocess():
    on_alarm = config['control']['on_alarm']
    if on_alarm != 'none':
      raise BadInput(f'config.control.on_alarm={on_alarm}: must be none: {NO_ACTIONS}')
    if len(actions.done(actions.read(folder))) > taken:
      raise BadInput(f'{folder}/actions.jsonl: {NO_ACTIONS}, and some are left to be taken again')
    if not run_lib.is_primary():
      return run_control.NoControl()
  saved = functools.partial(checkpoints.good_steps, folder)
  return run_control.Control(folder, config, step, taken, saved, timed_out)


class ActionApplier:
  """What actions do to the runs of a layout."""

  def __init__(self, workdir: Path, fields: Iterable[str], layout: Layout):
    """fields: those that the runs of the sweep differ in."""
    self._workdir = workdir
    self._fields = fields
    self._layout = layout

  def apply_due(self, run: Run, state: Any) -> Any:
    """Takes the actions due on a run at its present step; its state after them.

    The run may be at an earlier step then, be paused (its control says so) or have stopped.
    """
    if not (run.is_over() or run_control.is_stop(run.config, run.step)):
      return state
    while not run.stopped:
      record = run.control.next(run.step, run.is_over())
      if record is None:
        break
      state = self._take(run, state, record)
      told = json.dumps({key: value for key, value in record.items() if key != 'before'})
      run.writer.mark(record['step'], f'action/{record["action"]}', told)
    return state

  def _take(self, run: Run, state: Any, record: Json) -> Any:
    """Takes one action; the run's state after it."""
    if record['action'] == 'set':
      return _with(state, record['changes'], 0)
    if record['action'] == 'skip':
      return _with(state, {}, record['steps'])
    if record['action'] == 'rewind':
      return self._rewind(run, state, record)
    if record['action'] == 'fork':
      self._fork(run, state, record)
    if record['action'] == 'checkpoint':
      run.save(state)
    run.stopped = record['action'] == 'stop'
    return state

  def _rewind(self, run: Run, state: Any, record: Json) -> Any:
    """Back to a checkpoint, or to the start; hyperparameters and skipped data stay as they are.

    At no time is the newest checkpoint one that the lines of metrics.jsonl do not reach.
    """
    to = record['to']
    if to:
      found = checkpoints.restore(run.folder, only=to)
      if not found:
        raise RuntimeError(f'the checkpoint of step {to}, to rewind to, is gone')
      earlier = run_lib.unnamed(state, found[1])
    else:
      _, hparams = config_lib.split(run.config)
      earlier = self._layout.init(train_step.arrays(hparams))
    state = earlier | {'hparams': state['hparams'], 'skipped': state['skipped']}
    state = _with(state, record['changes'], record.get('skip', 0))
    rows = run_files.read_metrics(run.folder)
    later = [row for row in rows if row['step'] > to]
    files.write_lines(run.folder / record['cut'], later)
    run.seconds = run.elapsed()
    run.step, run.diverged = to, False
    run.start_clock()
    checkpoints.drop_after(run.folder, to)
    run.save(state)
    run.writer.close()
    run.writer = run_lib.open_writer(run.folder, run.config, to, self._fields)
    run.control.rewound(to)
    for alarm in actions.read_alarms(run.folder):
      if alarm['step'] > to:  # TensorBoard hides what it was told of these steps
        run.writer.mark(alarm['step'], f'alarm/{alarm["rule"]}', alarm['seen'])
    return state

  def _fork(self, run: Run, state: Any, record: Json) -> None:
    """A run that has this one's config, lines, actions and state, and changes of its own.

    As its actions begin with this one's, it too can be trained from nothing. It is a run of the
    workdir once its file in forks/ is there.
    """
    name = record['name']
    if not name.startswith(f'{run.folder.name}+'):  # what is there of that name goes
      raise BadInput(f'{run.folder}/actions.jsonl: damaged: {name!r} is no name of its fork')
    if sweeps.is_fork(self._workdir, name):
      return
    folder = run_files.run_dir(self._workdir, name)
    shutil.rmtree(folder, ignore_errors=True)  # left by a crash
    history = [
        taken
        for taken in run.control.taken
        if taken['action'] not in ('pause', 'continue', 'stop', 'fork')
    ]
    if record['changes']:
      history.append(record | {'action': 'set'})
    files.write_json(folder / 'config.json', run.config)
    files.write_lines(folder / 'actions.jsonl', history)
    files.write_lines(folder / 'metrics.jsonl', run_files.read_metrics(run.folder))
    about = run.about() | {'actions': len(history)}
    forked = run_lib.named(_with(state, record['changes'], 0))
    checkpoints.save(folder, run.step, forked, about, run.config['checkpoint']['keep'])
    sweeps.write_fork(
        self._workdir, name, sweeps.Fork(run.folder.name, run.step, record['changes'])
    )


def _with(state: Any, changes: Mapping[str, float | int], skipped: int) -> Any:
  """The state with other hyperparameters, and more data skipped."""
  return state | {
      'hparams': state['hparams'] | train_step.arrays(changes),
      'skipped': np.int32(state['skipped'] + skipped),
  }
