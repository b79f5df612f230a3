"""Stepping in: what alarms, people and the policy want of a run while it is trained.

A Control holds a run's rules, its records and its requests, and says at each of the run's stops
which actions to take there. What it says without being asked depends on the run's own rows alone:
an alarm raised by the row of one stop is acted upon at the next, whenever that row was read.
A record is on the disk before its action is taken. So a run that is resumed finds in actions.jsonl
what it has still to take again, and where; and the same file beside nothing but a config replays
the run. stability/trainer/action_executor.py carries the actions out.
"""

import collections
import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from stability.config import Config
from stability.control import actions, alarms
from stability.control.actions import Json
from stability.errors import BadInput, writing
from stability.storage import files, run_files

ALARM, POLICY, TIMEOUT = 'alarm', 'policy', 'timeout'  # who acts, beside people
AUTOMATIC = (ALARM, POLICY, TIMEOUT)

# The recipe of PaLM (arXiv 2204.02311, section 5.1), with a lower learning rate: the data alone
# did not cause its spikes, and here it is the learning rate that is too high.
REWIND_STEPS = 100  # before the alarm
LOWER = 1 / 3  # times the learning rate, at each try


def next_stop(config: Config, step: int) -> int:
  """The next step after which a run has something to do: a line, a probe, a checkpoint, its end."""
  every = (config[section]['every_steps'] for section in ('log', 'probe', 'checkpoint'))
  return min(config['schedule']['steps'], *(n * (step // n + 1) for n in every if n))


def is_stop(config: Config, step: int) -> bool:
  """Whether a step is one of the run's own stops."""
  return step == 0 or next_stop(config, step - 1) == step


def rescue(config: Config, alarm_step: int, step: int, saved: Sequence[int]) -> Json:
  """The recipe: back to before the alarm, past the data seen since, at a lower learning rate."""
  before = [s for s in saved if s <= alarm_step - REWIND_STEPS]
  to = max(before, default=0)
  rate = config['optimizer']['learning_rate'] * LOWER
  rate = max(rate, config['schedule']['min_learning_rate'])
  changes = {'optimizer.learning_rate': rate}
  return {'action': 'rewind', 'to': to, 'skip': step - to, 'changes': changes}


class Control:
  """The alarms and actions of one run, from its folder on."""

  def __init__(
      self,
      run: Path,
      config: Config,
      step: int,
      taken: int,
      saved: Callable[[], Sequence[int]],
      timed_out: bool = False,
  ):
    """
    Args:
      run: the run's folder; its metrics.jsonl ends at `step`.
      config: as it was resolved.
      step: updates made.
      taken: how many of its actions the run's state has in it.
      saved: gives the steps of its good checkpoints.
      timed_out: it waited for an answer for longer than control.timeout_seconds.
    """
    self._run = run
    self._saved = saved
    self._timed_out = timed_out
    records = actions.read(run)
    done = actions.done(records)
    self.taken = done[:taken]
    self._plan = collections.deque(done[taken:])
    self._answered = {record['request'] for record in records if 'request' in record}
    for path in actions.requests(run):
      if path.name in self._answered:  # a crash came between its record and its removal
        _remove(path)
    self.config = actions.current(config, self.taken)
    files.filter_lines(run / 'actions.jsonl', lambda line: True)
    files.filter_lines(
        run / 'alarms.jsonl', lambda alarm: (alarm['actions'], alarm['step']) <= (taken, step)
    )
    self._watch(step)

  @property
  def is_paused(self) -> bool:
    """Whether the run waits for a person."""
    return actions.is_paused(self.taken)

  @property
  def paused_by(self) -> str | None:
    """Who paused it last."""
    pauses = [record['by'] for record in self.taken if record['action'] == 'pause']
    return pauses[-1] if pauses else None

  def _watch(self, step: int) -> None:
    """Sets the rules up as they stand after `step`, from the run's files."""
    self._monitor = alarms.Monitor(rescued=any(r['by'] == POLICY for r in self.taken))
    for row in run_files.read_metrics(self._run):
      self._monitor.add(row)
    raised = actions.read_alarms(self._run)
    course = [i + 1 for i, r in enumerate(self.taken) if r['action'] in actions.COURSE]
    raised = [alarm for alarm in raised if alarm['actions'] >= max(course, default=0)]
    self._monitor.fired = {alarm['rule'] for alarm in raised}
    self._pending = [
        alarm
        for alarm in raised
        if next_stop(self.config, alarm['step']) >= step
        and not any(r['by'] in AUTOMATIC for r in self.taken[alarm['actions'] :])
    ]

  def observe(self, row: Json) -> list[Json]:
    """Holds the rules against the next row; returns the alarms raised, which are on the disk."""
    raised = []
    found = self._monitor.observe(row)
    saved = self._saved() if found else []
    for alarm in found:
      suggested = [
          rescue(self.config, row['step'], row['step'], saved),
          *alarms.suggestions(alarm['rule'], self.config),
      ]
      raised.append(alarm | {'actions': len(self.taken), 'suggested': suggested})
      _append(self._run / 'alarms.jsonl', raised[-1])
    self._pending += raised
    return raised

  def has_work(self, step: int, over: bool) -> bool:
    """Whether `next` may have something to say at this stop."""
    if self._plan:
      return self._plan[0]['step'] <= step
    return bool(self._due(step, over) or self._requests())

  def next(self, step: int, over: bool) -> Json | None:
    """The record of the next action to take at this stop, on the disk already; None: no more.

    Args:
      step: updates made: one of the run's own stops, or where it diverged.
      over: the run would end here.
    """
    if self._plan:
      planned = self._plan[0]['step']
      if planned < step:
        raise RuntimeError(f'{self._run}: its actions.jsonl has an action at step {planned}, past')
      return self._taken(self._plan.popleft()) if planned == step else None
    for path in self._requests():
      record = self._asked(path, step)
      self._answered.add(path.name)
      _remove(path)
      if record is not None:
        return record
    if self._timed_out:
      self._timed_out = False
      if self.is_paused:
        return self._time_out(step)
    alarm = self._due(step, over)
    if alarm is not None:
      self._pending.clear()
      return self._act_on(alarm, step)
    return None

  def refuse_all(self, step: int, reason: str) -> None:
    """Answers the requests that are left when the run has ended."""
    for path in self._requests():
      self._refuse(path, step, reason)
      _remove(path)

  def rewound(self, step: int) -> None:
    """The run is back at `step`, its metrics cut."""
    self._watch(step)

  def _requests(self) -> list[Path]:
    return [path for path in actions.requests(self._run) if path.name not in self._answered]

  def _due(self, step: int, over: bool) -> Json | None:
    """The alarm to act upon at this stop."""
    if self.config['control']['on_alarm'] == 'none':
      return None
    for alarm in self._pending:
      if over or next_stop(self.config, alarm['step']) <= step:
        return alarm
    return None

  def _asked(self, path: Path, step: int) -> Json | None:
    """What a request's file asks for, on record; None if it had to be refused."""
    try:
      asked = actions.read_request(path)
      action = self._checked(asked, step)
    except BadInput as error:
      self._refuse(path, step, str(error))
      return None
    about = {key: asked.get(key, '') for key in actions.ABOUT} | {'request': path.name}
    return self._record(action, step, about)

  def _checked(self, asked: Json, step: int) -> Json:
    action = actions.check(asked, self.config, step, actions.skipped(self.taken))
    if action['action'] == 'rewind' and action['to']:
      saved = self._saved()
      if action['to'] not in saved:
        there = ', '.join(map(str, [0, *saved]))
        raise BadInput(f'rewind: to {action["to"]}: no such checkpoint; there are {there}')
    if action['action'] == 'continue' and not self.is_paused:
      raise BadInput('continue: the run is not paused')
    if action['action'] == 'pause' and self.is_paused:
      raise BadInput('pause: the run is paused already')
    if action['action'] == 'fork':
      action['name'] = self._fork_name()
    return action

  def _fork_name(self) -> str:
    runs = self._run.parent
    return next(
        name
        for number in range(1, 10_000)
        if not (runs / (name := f'{self._run.name}+fork{number}')).exists()
    )

  def _act_on(self, alarm: Json, step: int) -> Json | None:
    if self.config['control']['on_alarm'] == 'ask':
      return self._by(ALARM, {'action': 'pause'}, step, alarm['seen'])
    return self._rescue(alarm, step)

  def _rescue(self, alarm: Json, step: int) -> Json | None:
    if sum(r['by'] == POLICY for r in self.taken) >= self.config['control']['tries']:
      return None
    action = rescue(self.config, alarm['step'], step, self._saved())
    return self._by(POLICY, action, step, alarm['seen'])

  def _time_out(self, step: int) -> Json | None:
    raised = actions.read_alarms(self._run)
    default = self.config['control']['default_action']
    record = self._rescue(raised[-1], step) if default == 'policy' and raised else None
    if record is not None:
      return record
    action = {'action': 'stop' if default == 'stop' else 'continue'}
    seconds = self.config['control']['timeout_seconds']
    return self._by(TIMEOUT, action, step, f'no answer within {seconds} s')

  def _by(self, who: str, action: Json, step: int, why: str) -> Json | None:
    try:
      action = self._checked(action, step)
    except BadInput:  # the run goes on as it is
      return None
    return self._record(action, step, {'by': who, 'why': why, 'time': actions.now()})

  def _record(self, action: Json, step: int, about: Json) -> Json:
    row = self._monitor.history.row
    before = {
        'step': step,
        'loss': row.get('loss'),
        'paused': self.is_paused,
        'skipped': actions.skipped(self.taken),
        'hyperparameters': actions.settable(self.config),
    }
    if action['action'] == 'rewind':
      action = action | {'cut': f'metrics.before_action_{len(self.taken) + 1}.jsonl'}
    record = {'step': step, **action, **about, 'before': before}
    _append(self._run / 'actions.jsonl', record)
    return self._taken(record)

  def _taken(self, record: Json) -> Json:
    self.taken.append(record)
    self.config = actions.current(self.config, [record])
    if record['by'] in AUTOMATIC or record['action'] in actions.COURSE:
      self._pending.clear()
    if record['action'] in actions.COURSE:
      self._monitor.fired.clear()
    return record

  def _refuse(self, path: Path, step: int, reason: str) -> None:
    asked = {'action': None}
    try:
      asked = actions.read_request(path)
    except BadInput:
      with contextlib.suppress(OSError), path.open('rb') as file:
        asked = {'action': None, 'content': file.read(2000).decode(errors='replace')}
    about = {key: asked.get(key, '') for key in actions.ABOUT}
    record = {**asked, **about, 'step': step, 'request': path.name, 'refused': reason}
    _append(self._run / 'actions.jsonl', record)


class NoControl:
  """Takes a control's place where another process has it."""

  taken: Sequence[Json] = ()
  is_paused = False

  def observe(self, row: Json) -> list[Json]:
    return []

  def refuse_all(self, step: int, reason: str) -> None:
    pass


def _remove(request: Path) -> None:
  with contextlib.suppress(OSError):  # the folder may be another person's; its record answers it
    request.unlink()


def _append(path: Path, line: Json) -> None:
  """Adds a line to a file and returns once it is on the disk."""
  with writing(path), path.open('a') as file:
    file.write(json.dumps(files.nonfinite_to_null(line), allow_nan=False) + '\n')
    file.flush()
    os.fsync(file.fileno())
