"""Control of a run in training: which actions are taken on it, and when.

A RunControl raises a run's alarms, reads its requests and decides, at each of the run's stops,
which actions to take there; stability/trainer executes them. Automatic actions depend only on the
run's own rows: an alarm is acted on at the first stop after the row that raised it, no matter when
the row was read. An action is recorded on disk before it is taken. A resumed run therefore reads
from actions.jsonl which actions to take again and at which steps, and a config with a copy of that
file is enough to train the run again.
"""

import collections
import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence, Set
from pathlib import Path

from stability.config import Config
from stability.control import actions, limits, policy, records, requests
from stability.control.actions import Action
from stability.control.alarms import Alarm, Monitor, read_alarms
from stability.control.records import Record
from stability.control.rules import RulesFor, rules_for
from stability.control.stops import next_stop
from stability.errors import BadInput
from stability.storage import files, run_files
from stability.storage.files import Json
from stability.storage.run_files import COURSE_ACTIONS

ALARM, POLICY, TIMEOUT = 'alarm', 'policy', 'timeout'  # `by` of automatic actions
AUTOMATIC = (ALARM, POLICY, TIMEOUT)

_MAX_QUOTED_BYTES = 2000  # maximum quoted in the record of a request that is not JSON


class RunControl:
  """The alarms and actions of one run."""

  def __init__(
      self,
      run: Path,
      config: Config,
      step: int,
      taken: int,
      saved: Callable[[], Sequence[int]],
      timed_out: bool = False,
      rules: RulesFor = rules_for,
  ):
    """
    Args:
      run: the run's folder, whose metrics.jsonl ends at `step`.
      config: the resolved config, without the changes that actions made.
      step: the run's current step (updates made).
      taken: number of recorded actions that are already applied to the run's state.
      saved: returns the steps of the run's undamaged checkpoints.
      timed_out: whether the run was paused and nobody answered within control.timeout_seconds.
      rules: returns the rules for a run that the policy has or has not rescued.
    """
    self._run = run
    self._saved = saved
    self._timed_out = timed_out
    self._rules_for = rules
    known = records.read_records(run)
    done = [record for record in known if record.action is not None]
    self.taken = done[:taken]
    self._planned = collections.deque(done[taken:])  # to be taken again, at the same steps
    self._answered = {record.request for record in known}
    for path in requests.request_files(run):
      if path.name in self._answered:  # a crash came after its record and before its deletion
        _remove(path)
    self.config = records.current_config(config, self.taken)
    files.filter_lines(run / records.FILE, lambda line: True)  # drops a torn line
    files.filter_lines(
        run / 'alarms.jsonl', lambda alarm: (alarm['actions'], alarm['step']) <= (taken, step)
    )
    self.load_alarms(step)

  @property
  def is_paused(self) -> bool:
    """Whether the run waits for a person."""
    return records.is_paused(self.taken)

  @property
  def paused_by(self) -> str | None:
    """Who paused the run last."""
    pauses = [record.by for record in self.taken if record.action.kind == 'pause']
    return pauses[-1] if pauses else None

  @property
  def planned_step(self) -> int | None:
    """The step of the next recorded action to take again; it may be no stop of the config now."""
    return self._planned[0].step if self._planned else None

  @property
  def planned_targets(self) -> set[int]:
    """The steps that recorded rewinds, to be taken again, go back to."""
    return {record.action.to for record in self._planned if record.action.kind == 'rewind'}

  def lasting(self, steps: Iterable[int]) -> list[int]:
    """Leaves out the steps of checkpoints that only a pause or an interruption has saved.

    Nothing automatic may depend on these. The others follow from the config and from actions.
    """
    every, saved = self.config['checkpoint']['every_steps'], records.saved_steps(self.taken)
    return [step for step in steps if step in saved or (every and step % every == 0)]

  def observe(self, row: Json) -> list[Alarm]:
    """Applies the rules to the next row; writes the alarms raised to disk and returns them."""
    found = self._monitor.observe(row)
    if not found:
      return []
    saved = self.lasting(run_files.checkpoint_steps(self._run))  # unchecked, which takes no time
    rescue = policy.rescue(self.config, row['step'], row['step'], saved)
    raised = []
    for alarm in found:
      remedies = policy.suggestions(self._rules[alarm.rule], self.config)
      raised.append(
          dataclasses.replace(alarm, actions=len(self.taken), suggestions=(rescue, *remedies))
      )
      files.append_line(self._run / 'alarms.jsonl', raised[-1].to_json())
    self._pending += raised
    return raised

  def has_work(self, step: int, is_over: bool) -> bool:
    """Whether `next` may return an action at this stop."""
    if self._planned:
      return self._planned[0].step <= step
    return bool(self._due(step, is_over) or self._requests())

  def next(self, step: int, is_over: bool) -> Record | None:
    """Records the next action to take at this stop and returns it; None if there are no more.

    Args:
      step: the run's current step, which is a stop or the step at which it diverged.
      is_over: whether the run ends here unless an action prevents it.
    """
    if self._planned:
      planned = self._planned[0].step
      if planned < step:
        raise RuntimeError(
            f'{self._run}: {records.FILE} has an action at step {planned}, which has already passed'
        )
      return self._take(self._planned.popleft()) if planned == step else None
    for path in self._requests():
      record = self._answer(path, step)
      if record.action is not None:
        return record
    if self._timed_out:
      self._timed_out = False
      if self.is_paused:
        return self._act_on_timeout(step)
    alarm = self._due(step, is_over)
    if alarm is not None:
      self._pending.clear()
      return self._act_on(alarm, step)
    return None

  def refuse_all(self, step: int, reason: str) -> None:
    """Refuses the remaining requests."""
    for path in self._requests():
      self._refuse(path, step, reason)

  # Alarms.

  def load_alarms(self, step: int) -> None:
    """Restores the monitor and the alarms to act on from the run's files.

    Called at the start and after a rewind to `step`; metrics.jsonl must end there.
    """
    rescued = any(record.by == POLICY for record in self.taken)
    rules = self._rules_for(rescued)
    if self.config['control']['limits'] is not None:
      rules = limits.of_run(self._run, rules, rescued)
    self._rules = {rule.name: rule for rule in rules}
    course_changes = [  # numbers of the actions after which earlier alarms no longer count
        number
        for number, record in enumerate(self.taken, 1)
        if record.action.kind in COURSE_ACTIONS
    ]
    raised = read_alarms(self._run)
    current = [alarm for alarm in raised if alarm.actions >= max(course_changes, default=0)]
    self._monitor = Monitor(self._rules.values())
    self._monitor.restore(
        run_files.iterate_metrics(self._run), fired=[alarm.rule for alarm in current]
    )
    self._pending = [
        alarm
        for alarm in current
        if next_stop(self.config, alarm.step) >= step
        and not any(record.by in AUTOMATIC for record in self.taken[alarm.actions :])
    ]

  def _due(self, step: int, is_over: bool) -> Alarm | None:
    """The alarm to act on at this stop; None if there is none."""
    if self.config['control']['on_alarm'] == 'none':
      return None
    for alarm in self._pending:
      if is_over or next_stop(self.config, alarm.step) <= step:
        return alarm
    return None

  def _act_on(self, alarm: Alarm, step: int) -> Record | None:
    if self.config['control']['on_alarm'] == 'ask':
      return self._act(ALARM, Action('pause'), step, alarm.message)
    return self._rescue(alarm, step)

  def _rescue(self, alarm: Alarm, step: int) -> Record | None:
    tries = sum(record.by == POLICY for record in self.taken)
    if tries >= self.config['control']['tries']:
      return None
    action = policy.rescue(self.config, alarm.step, step, self.lasting(self._saved()))
    return self._act(POLICY, action, step, alarm.message)

  def _act_on_timeout(self, step: int) -> Record | None:
    raised = read_alarms(self._run)
    default = self.config['control']['default_action']
    record = self._rescue(raised[-1], step) if default == 'policy' and raised else None
    if record is not None:
      return record
    action = Action('stop' if default == 'stop' else 'continue')
    seconds = self.config['control']['timeout_seconds']
    return self._act(TIMEOUT, action, step, f'no answer within {seconds} s')

  def _act(self, by: str, action: Action, step: int, why: str) -> Record | None:
    """Records an automatic action. If it is not allowed, returns None: the run just continues."""
    try:
      action = self._checked(action, step)
    except BadInput:
      return None
    return self._record(action, step, by=by, why=why, time=files.timestamp())

  # Requests.

  def _requests(self) -> list[Path]:
    return [path for path in requests.request_files(self._run) if path.name not in self._answered]

  def _answer(self, path: Path, step: int) -> Record:
    """Records and returns the action that a request asks for, or why it is refused."""
    try:
      asked = requests.read_request(path)
      action = self._checked(requests.parse_request(asked), step)
    except BadInput as error:
      return self._refuse(path, step, str(error))
    about = {key: asked.get(key, '') for key in requests.ABOUT}
    record = self._record(action, step, request=path.name, **about)
    self._mark_answered(path)
    return record

  def _refuse(self, path: Path, step: int, reason: str) -> Record:
    asked = {'action': None}
    try:
      asked = requests.read_request(path)
    except BadInput:
      with contextlib.suppress(OSError), path.open('rb') as file:
        asked['content'] = file.read(_MAX_QUOTED_BYTES).decode(errors='replace')
    about = {key: asked.get(key, '') for key in requests.ABOUT}
    record = Record(step, None, request=path.name, refused=reason, asked=asked, **about)
    records.append_record(self._run, record)
    self._mark_answered(path)
    return record

  def _mark_answered(self, path: Path) -> None:
    self._answered.add(path.name)
    _remove(path)

  # Records.

  def _checked(self, action: Action, step: int) -> Action:
    """The action with all its arguments; BadInput if the run does not allow it now."""
    action = actions.check(action, self.config, step, records.skipped_steps(self.taken))
    if action.kind == 'rewind' and action.to:
      saved = self._saved()
      if action.to not in saved:
        steps = ', '.join(map(str, [0, *saved]))
        raise BadInput(f'rewind: to {action.to}: no such checkpoint; there are {steps}')
    if action.kind == 'continue' and not self.is_paused:
      raise BadInput('continue: the run is not paused')
    if action.kind == 'pause' and self.is_paused:
      raise BadInput('pause: the run is paused already')
    if action.kind == 'fork':
      action = dataclasses.replace(action, name=self._fork_name())
    return action

  def _fork_name(self) -> str:
    names = (f'{self._run.name}+fork{number}' for number in range(1, 10_000))
    return next(name for name in names if not (self._run.parent / name).exists())

  def _cut_name(self) -> str:
    """A new name for the rows that a rewind removes; a fork has records with higher numbers."""
    taken = {record.cut for record in self.taken}
    numbers = itertools.count(len(self.taken) + 1)
    names = (f'metrics.before_action_{number}.jsonl' for number in numbers)
    return next(name for name in names if name not in taken)

  def _record(self, action: Action, step: int, **about: str) -> Record:
    """Records an action, with the state of the run before it, and notes it as taken."""
    before = {
        'step': step,
        'loss': self._monitor.last_row.get('loss'),
        'paused': self.is_paused,
        'skipped': records.skipped_steps(self.taken),
        'hyperparameters': actions.settable_values(self.config),
    }
    cut = self._cut_name() if action.kind == 'rewind' else ''
    record = Record(step, action, cut=cut, before=before, **about)
    records.append_record(self._run, record)
    return self._take(record)

  def _take(self, record: Record) -> Record:
    """Notes a recorded action as taken."""
    self.taken.append(record)
    self.config = records.current_config(self.config, [record])
    changes_course = record.action.kind in COURSE_ACTIONS
    if changes_course or record.by in AUTOMATIC:
      self._pending.clear()
    if changes_course:
      self._monitor.rearm()
    return record


class NoControl:
  """Replaces RunControl in a process that does not write the run's files."""

  taken: Sequence[Record] = ()
  is_paused = False
  planned_step = None
  planned_targets: Set[int] = frozenset()

  def lasting(self, steps: Iterable[int]) -> list[int]:
    return list(steps)

  def observe(self, row: Json) -> list[Alarm]:
    return []

  def refuse_all(self, step: int, reason: str) -> None:
    pass


def _remove(request: Path) -> None:
  with contextlib.suppress(OSError):  # another user may own the folder; the record suffices
    request.unlink()
