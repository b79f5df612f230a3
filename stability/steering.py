"""Carries out what a Control says: actions on a run and its state, at one of the run's stops.

stability/population.py brings a run and its state here, and takes both back; what is done to them
depends on nothing but the run.
"""

import functools
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stability import actions, checkpoint, control, parallel, train
from stability import config as config_lib
from stability import member as member_lib
from stability import workdir as workdir_lib
from stability.errors import BadInput
from stability.member import Member
from stability.workdir import Json

NO_ACTIONS = 'a run shared by several processes takes no actions'


def open_control(
    folder: Path, config: config_lib.Config, step: int, taken: int, timed_out: bool
) -> control.Control | control.NoControl:
  """Of a run at `step` with `taken` actions in its state; BadInput if it must and cannot act."""
  if member_lib.is_shared():
    on_alarm = config['control']['on_alarm']
    if on_alarm != 'none':
      raise BadInput(f'config.control.on_alarm={on_alarm}: must be none: {NO_ACTIONS}')
    if len(actions.done(actions.read(folder))) > taken:
      raise BadInput(f'{folder}/actions.jsonl: {NO_ACTIONS}, and some are left to be taken again')
    if not member_lib.writes():
      return control.NoControl()
  saved = functools.partial(checkpoint.good_steps, folder)
  return control.Control(folder, config, step, taken, saved, timed_out)


class Steering:
  """What actions do to the runs of a layout."""

  def __init__(self, workdir: Path, fields: Iterable[str], layout: parallel.Layout):
    """fields: those that the runs of the sweep differ in."""
    self._workdir = workdir
    self._fields = fields
    self._layout = layout

  def step_in(self, member: Member, state: Any) -> Any:
    """Takes the actions due on a run at its present step; its state after them.

    The run may be at an earlier step then, be paused (its control says so) or have stopped.
    """
    if not (member.is_over() or control.is_stop(member.config, member.step)):
      return state
    while not member.stopped:
      record = member.control.next(member.step, member.is_over())
      if record is None:
        break
      state = self._take(member, state, record)
      told = json.dumps({key: value for key, value in record.items() if key != 'before'})
      member.writer.mark(record['step'], f'action/{record["action"]}', told)
    return state

  def _take(self, member: Member, state: Any, record: Json) -> Any:
    """Takes one action; the run's state after it."""
    if record['action'] == 'set':
      return _with(state, record['changes'], 0)
    if record['action'] == 'skip':
      return _with(state, {}, record['steps'])
    if record['action'] == 'rewind':
      return self._rewind(member, state, record)
    if record['action'] == 'fork':
      self._fork(member, state, record)
    if record['action'] == 'checkpoint':
      member.save(state)
    member.stopped = record['action'] == 'stop'
    return state

  def _rewind(self, member: Member, state: Any, record: Json) -> Any:
    """Back to a checkpoint, or to the start; hyperparameters and skipped data stay as they are.

    At no time is the newest checkpoint one that the lines of metrics.jsonl do not reach.
    """
    to = record['to']
    if to:
      found = checkpoint.restore(member.folder, only=to)
      if not found:
        raise RuntimeError(f'the checkpoint of step {to}, to rewind to, is gone')
      earlier = member_lib.unnamed(state, found[1])
    else:
      _, hyper = config_lib.split(member.config)
      earlier = self._layout.init(train.arrays(hyper))
    state = earlier | {'hyper': state['hyper'], 'skipped': state['skipped']}
    state = _with(state, record['changes'], record.get('skip', 0))
    rows = workdir_lib.read_metrics(member.folder)
    later = [row for row in rows if row['step'] > to]
    workdir_lib.write_lines(member.folder / record['cut'], later)
    member.seconds = member.elapsed()
    member.step, member.diverged = to, False
    member.start_clock()
    checkpoint.drop_after(member.folder, to)
    member.save(state)
    member.writer.close()
    member.writer = member_lib.open_writer(member.folder, member.config, to, self._fields)
    member.control.rewound(to)
    for alarm in actions.read_alarms(member.folder):
      if alarm['step'] > to:  # TensorBoard hides what it was told of these steps
        member.writer.mark(alarm['step'], f'alarm/{alarm["rule"]}', alarm['seen'])
    return state

  def _fork(self, member: Member, state: Any, record: Json) -> None:
    """A run that has this one's config, lines, actions and state, and changes of its own.

    As its actions begin with this one's, it too can be trained from nothing. It is a run of the
    workdir once its file in forks/ is there.
    """
    name = record['name']
    if not name.startswith(f'{member.folder.name}+'):  # what is there of that name goes
      raise BadInput(f'{member.folder}/actions.jsonl: damaged: {name!r} is no name of its fork')
    if (self._workdir / 'forks' / f'{name}.json').exists():
      return
    folder = workdir_lib.run_dir(self._workdir, name)
    shutil.rmtree(folder, ignore_errors=True)  # left by a crash
    history = [
        taken
        for taken in member.control.taken
        if taken['action'] not in ('pause', 'continue', 'stop', 'fork')
    ]
    if record['changes']:
      history.append(record | {'action': 'set'})
    workdir_lib.write_json(folder / 'config.json', member.config)
    workdir_lib.write_lines(folder / 'actions.jsonl', history)
    workdir_lib.write_lines(folder / 'metrics.jsonl', workdir_lib.read_metrics(member.folder))
    about = member.about() | {'actions': len(history)}
    forked = member_lib.named(_with(state, record['changes'], 0))
    checkpoint.save(folder, member.step, forked, about, member.config['checkpoint']['keep'])
    workdir_lib.write_json(
        self._workdir / 'forks' / f'{name}.json',
        {'run': member.folder.name, 'step': member.step, 'changes': record['changes']},
    )


def _with(state: Any, changes: Mapping[str, float | int], skipped: int) -> Any:
  """The state with other hyperparameters, and more data skipped."""
  return state | {
      'hyper': state['hyper'] | train.arrays(changes),
      'skipped': np.int32(state['skipped'] + skipped),
  }
