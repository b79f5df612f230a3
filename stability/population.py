"""The loop that drives a population: runs enter its slots, train in step, are logged, and leave.

Between two stops (a log line, a probe, a checkpoint, an end) the host does nothing. The metrics of
a stop are read while the steps after it run.
"""

import collections
import dataclasses
import math
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import logging

from stability import actions, checkpoint, control, parallel, train
from stability import config as config_lib
from stability import member as member_lib
from stability import workdir as workdir_lib
from stability.errors import BadInput, CannotWrite
from stability.layout import is_out_of_memory, make_layout
from stability.member import Member
from stability.pace import Pace, any_process
from stability.steering import NO_ACTIONS, Steering, open_control
from stability.workdir import Json

NextRun = Callable[[], str | None]  # names a waiting run of the same static config, if any
OUT_OF_MEMORY = (
    'out of memory with one run on a device: config.parallel.microbatches and'
    ' config.parallel.remat=block need less\n'
)
Paused = dict[str, float]  # runs -> when an answer is no longer waited for: by time.monotonic()


@dataclasses.dataclass(frozen=True)
class Watch:
  """What the process that trains says to the loop, and hears of it."""

  # Whether to save all runs and leave them. Asked every few seconds, which is a sign of life.
  interrupted: parallel.Interrupted = parallel.never
  most_members: int | None = None  # on a device, as more ran out of memory; None: any number
  members_chosen: Callable[[int], None] = lambda members: None


ALONE = Watch()


class TooLarge(Exception):
  """The devices' memory ran out, and fewer members a device would need less."""


@dataclasses.dataclass
class _Unread:
  """A stop whose metrics are still on their way, and the members that log it."""

  fetch: parallel.Fetch
  due: list[tuple[int, Member, int]]  # slot, run, its step


def train_population(
    workdir: Path,
    sweep: Json,
    first: str,
    next_run: NextRun,
    paused: Paused | None = None,
    watch: Watch = ALONE,
) -> bool:
  """Trains the run `first`, and beside and after it those that next_run names, to their results.

  A failure of one run is written to its result.json, with the traceback; the others go on. Where
  several processes share one run, all of them call this, and the first one writes. Runs that an
  action pauses leave their slots and are put into `paused`, which also names those of before; once
  all others are over, and none of these is answered, they are left there. Where memory runs out,
  the runs in hand go on from their checkpoints with fewer on a device.

  Returns:
    False if it was interrupted; the runs in hand are saved as they stand.
  """
  paused = {} if paused is None else paused
  names = collections.deque([] if first in paused else [first])
  most = watch.most_members
  while True:
    try:
      population = Population(workdir, sweep, first, paused, watch, most)
    except Exception as error:
      if not isinstance(error, BadInput) and not is_out_of_memory(error):
        raise
      for name in {first, *names}:  # what only the devices could tell
        _fail(workdir_lib.run_dir(workdir, name))
        paused.pop(name, None)
      return True
    try:
      return _train(population, names, next_run)
    except TooLarge:
      most = max(1, population.members // 2)
      names.extendleft(reversed(population.let_go()))
      told = 'out of memory with %d runs on a device: tried again with %d, from checkpoints: %s'
      logging.warning(told, population.members, most, ', '.join(names))
    del population  # and with it the memory it has taken


def _train(population: 'Population', names: collections.deque[str], next_run: NextRun) -> bool:
  """Trains `names`, and what next_run names after them; whether it was not interrupted."""
  while True:
    if population.is_interrupted():
      population.save_all()
      return False
    population.bring_answered()
    while population.has_free_slot():
      if population.enter_waiting():
        continue
      if population.has_waiting():  # for its phase; a new run would only put that off
        break
      if not names and (name := next_run()):
        names.append(name)
      if not names:
        break
      population.bring(names[0])
      names.popleft()
    if population.is_empty():
      return True
    population.train_chunk()


def is_answered(workdir: Path, name: str, paused: Paused) -> bool:
  """Whether a paused run has a request to look at, or has waited for long enough."""
  run = workdir_lib.run_dir(workdir, name)
  try:
    return bool(actions.unanswered(run)) or time.monotonic() > paused[name]
  except BadInput:  # a damaged record: bringing the run fails it, and no other
    return True


class Population:
  """The slots of a layout and the runs in them."""

  def __init__(
      self,
      workdir: Path,
      sweep: Json,
      first: str,
      paused: Paused,
      watch: Watch = ALONE,
      most_members: int | None = None,
  ):
    self._workdir = workdir
    self._sweep = sweep
    self._static, hyper = config_lib.split(self._config(first))
    self._watch = watch
    self._layout = make_layout(
        workdir, sweep, self._static, train.arrays(hyper), most_members, watch.members_chosen
    )
    self._pace = Pace()
    self._steering = Steering(workdir, sweep['fields'], self._layout)
    self._state = self._layout.empty()
    self._members: dict[int, Member] = {}  # slot -> run
    self._unread: _Unread | None = None
    self._waiting: collections.deque[tuple[Member, Any]] = collections.deque()  # for a slot
    self._paused = paused

  def _config(self, name: str) -> config_lib.Config:
    if name in self._sweep['runs']:
      return self._sweep['runs'][name]
    return workdir_lib.read_config(workdir_lib.run_dir(self._workdir, name))  # of a fork

  @property
  def members(self) -> int:
    """Runs on a device."""
    return self._layout.members

  def is_interrupted(self) -> bool:
    """Whether to save the runs in hand and leave; processes that share a run agree on it."""
    return any_process(self._watch.interrupted())

  def save_all(self) -> None:
    """Saves the runs in the slots where they are; those that wait are as they were brought."""
    self._log()
    states = self._layout.extract(self._state) if self._members else []
    for slot, member in self._members.items():
      # Where a run diverges is told by its next line: it comes there again from the one before.
      if member.step and bool(states[slot]['diverged']) == member.diverged:
        member.save(states[slot])
    self.let_go()

  def let_go(self) -> list[str]:
    """Leaves the runs in hand as their files are; their names."""
    members = [*self._members.values(), *(member for member, _ in self._waiting)]
    for member in members:
      member.writer.close()
    self._members.clear()
    self._waiting.clear()
    self._unread = self._state = None
    return [member.folder.name for member in members]

  def _check_memory(self, error: Exception) -> None:
    """Raises TooLarge if fewer runs on a device may be what helps against an error."""
    if self.members > 1 and is_out_of_memory(error):
      raise TooLarge from error

  def has_free_slot(self) -> bool:
    return len(self._members) < self._layout.width

  def is_empty(self) -> bool:
    return not self._members

  def is_in_phase(self, member: Member) -> bool:
    """Whether the member's probes fall on the steps on which the population's do.

    The probed executable may round otherwise than the quiet one, so a run that a neighbour's probe
    takes through it would depend on its neighbours.
    """
    # Sharpness falls on some of the probes.
    every = self._static.probe.sharpness_every_steps or self._static.probe.every_steps
    return not every or all((member.step - m.step) % every == 0 for m in self._members.values())

  def has_waiting(self) -> bool:
    return bool(self._waiting)

  def enter_waiting(self) -> bool:
    """Puts a run that waits, if one is in phase, into a free slot."""
    for position, (member, state) in enumerate(self._waiting):
      if self.is_in_phase(member):
        slot = next(s for s in range(self._layout.width) if s not in self._members)
        try:
          self._state = self._layout.insert(self._state, slot, state)
        except Exception as error:
          self._check_memory(error)
          raise
        del self._waiting[position]
        self._members[slot] = member
        member.start_clock()
        return True
    return False

  def bring_answered(self) -> None:
    """Brings the paused runs of these executables that somebody, or the time, has answered."""
    for name in list(self._paused):
      answered = is_answered(self._workdir, name, self._paused)
      if answered and config_lib.split(self._config(name))[0] == self._static:
        self.bring(name)

  def bring(self, name: str) -> None:
    """Loads a run and takes the actions due; then it waits for a slot, or is paused again.

    A failure is recorded as its result.
    """
    folder = workdir_lib.run_dir(self._workdir, name)
    deadline = self._paused.pop(name, None)
    timed_out = deadline is not None and time.monotonic() > deadline
    try:
      member, state = self._load(folder, timed_out)
      if not member_lib.is_shared():
        state = self._steering.step_in(member, state)
      if member.control.is_paused:
        self._pause(member, state, None if timed_out else deadline)
      else:
        self._waiting.append((member, state))
    except Exception as error:
      if deadline is not None and self.members > 1 and is_out_of_memory(error):
        self._paused[name] = deadline
      self._check_memory(error)
      _fail(folder)

  def _load(self, folder: Path, timed_out: bool) -> tuple[Member, Any]:
    """A run and its state, new or from its last checkpoint."""
    config = self._config(folder.name)
    _, hyper = config_lib.split(config)
    state = self._layout.init(train.arrays(hyper))
    step, about = 0, {'initial_loss': None, 'seconds': 0.0, 'actions': 0}
    found = checkpoint.restore(folder)
    if found:
      step, arrays, about = found
      state = member_lib.unnamed(state, arrays)
      logging.info('%s goes on from step %d', folder.name, step)
    elif member_lib.writes() and (line := workdir_lib.last_metrics(folder)):
      told = '%s was at step %d and has no checkpoint: it begins again from step 0'
      logging.warning(told, folder.name, line['step'])
    member = Member(
        folder=folder,
        config=config,
        writer=member_lib.open_writer(folder, config, step, self._sweep['fields']),
        control=open_control(folder, config, step, about['actions'], timed_out),
        step=step,
        initial_loss=about['initial_loss'],
        seconds=about['seconds'],
        diverged=bool(state['diverged']),
    )
    # Told to end while it evaluated a run that an action has stopped, a process saves it so.
    member.stopped = any(record['action'] == 'stop' for record in member.control.taken)
    member.start_clock()
    return member, state

  def train_chunk(self) -> None:
    """Trains to the next stop of any run, and does what is due there."""
    try:
      self._measure_initial_losses()
      self._finish()  # what was over when it came here
      if self._members and all(m.initial_loss is not None for m in self._members.values()):
        self._train()
        self._save()
        self._act()
        self._finish()
    except Exception as error:
      self._check_memory(error)
      for member in self._members.values():
        _fail(member.folder)
        member.writer.close()
      self._members.clear()
      self._unread = None
      self._state = self._layout.empty()

  def _measure_initial_losses(self) -> None:
    if any(member.initial_loss is None for member in self._members.values()):
      losses = self._layout.evaluate(self._state, self.is_interrupted)
      for slot, member in self._members.items() if losses is not None else ():
        if member.initial_loss is None:
          member.initial_loss = losses[slot]
          member.start_clock()

  def _train(self) -> None:
    steps = min(m.next_stop() - m.step for m in self._members.values())
    steps = self._pace.limit(steps)
    for member in self._members.values():
      member.step += steps
    # All are in phase: if it is due for one, it is for all.
    probed = any(member.is_due('probe') for member in self._members.values())
    sharp = any(member.is_due_for_sharpness() for member in self._members.values())
    if steps > probed:
      self._state, fetch = self._layout.advance(self._state, steps - probed)
    if probed:
      self._state, fetch = self._layout.probe(self._state, sharp)
    self._log()  # the stop before this one, while the steps just sent off run
    due = [
        (slot, member, member.step)
        for slot, member in self._members.items()
        if probed or member.is_due('log') or member.step == member.steps
    ]
    self._unread = _Unread(fetch, due)

  def _log(self) -> None:
    """Writes the lines of the last stop; a run found to have diverged is marked."""
    unread, self._unread = self._unread, None
    if unread is None:
      return
    if not unread.due:
      unread.fetch.wait()
      return
    rows = unread.fetch.read()
    now = time.perf_counter()
    for slot, member, step in unread.due:
      if member.diverged:
        continue
      row = rows[slot]
      member.diverged = bool(row.pop('diverged'))
      row['step'] = int(row['step'])
      assert member.diverged or row['step'] == step, (member.folder, row['step'], step)
      if member.diverged:
        row['loss'], member.step = math.nan, row['step']
      last_step, last_time = member.last_line
      row['tokens'] = member.tokens(row['step'])
      row['seconds'] = member.elapsed()
      row['tokens_per_second'] = member.tokens(row['step'] - last_step) / (now - last_time)
      member.last_line = row['step'], now
      member.writer.write(row)
      for alarm in member.control.observe(row):
        member.writer.mark(alarm['step'], f'alarm/{alarm["rule"]}', alarm['seen'])

  def _save(self) -> None:
    due = {
        slot: member
        for slot, member in self._members.items()
        if member.is_due('checkpoint') and member.step < member.steps
    }
    if not due:
      return
    self._log()
    states = self._layout.extract(self._state)
    for slot, member in due.items():
      if not states[slot]['diverged']:  # where it did is told by its next line
        member.save(states[slot])

  def _act(self) -> None:
    """Takes the actions due on the runs in the slots; those paused or rewound leave theirs."""
    if any(member.is_over() for member in self._members.values()):
      self._log()  # the last rows may raise alarms
    if member_lib.is_shared():  # only one process sees what is asked for; all would have to do it
      for member in self._members.values():
        member.control.refuse_all(member.step, NO_ACTIONS)
      return
    if not any(member.has_work() for member in self._members.values()):
      return
    self._log()
    states = self._layout.extract(self._state)
    for slot, member in list(self._members.items()):
      if not member.has_work():
        continue
      try:
        step, taken = member.step, len(member.control.taken)
        state = self._steering.step_in(member, states[slot])
        if member.control.is_paused or member.step != step:
          del self._members[slot]
          if member.control.is_paused:
            self._pause(member, state)
          else:
            self._waiting.append((member, state))
        elif len(member.control.taken) != taken:
          self._state = self._layout.insert(self._state, slot, state)
      except Exception as error:
        self._check_memory(error)
        _fail(member.folder)
        member.writer.close()
        del self._members[slot]

  def _pause(self, member: Member, state: Any, deadline: float | None = None) -> None:
    """Saves a run and lets go of it until it is answered."""
    member.save(state)
    member.writer.close()
    if deadline is None:
      seconds = member.config['control']['timeout_seconds']
      by_alarm = member.control.paused_by == control.ALARM
      deadline = time.monotonic() + seconds if seconds and by_alarm else math.inf
    self._paused[member.folder.name] = deadline

  def _finish(self) -> None:
    """Runs that have made all their steps, or diverged, get their result and leave."""
    if any(member.is_over() for member in self._members.values()):
      self._log()
    over = {slot: member for slot, member in self._members.items() if member.is_over()}
    if not over:
      return
    seconds = {slot: member.elapsed() for slot, member in over.items()}
    losses = self._layout.evaluate(self._state, self.is_interrupted)
    if losses is None:
      return
    for slot, member in over.items():
      status = workdir_lib.status(member.initial_loss, losses[slot])
      if member.diverged or member.stopped:
        status = 'diverged' if member.diverged else 'stopped'
      member.control.refuse_all(member.step, f'the run has ended: {status}')
      result = {
          'status': status,
          'initial_loss': member.initial_loss,
          'final_loss': losses[slot],
          'parameters': config_lib.parameters(member.config),
          'steps': member.step,
          'tokens': member.tokens(member.step),
          'seconds': seconds[slot],
          'error': None,
      }
      member.writer.close(result)
      if member_lib.writes():
        workdir_lib.write_result(member.folder, result)
      del self._members[slot]


def _fail(folder: Path) -> None:
  """Records the exception being handled as the run's result; raises it if it is no run's fault."""
  error = sys.exception()
  if isinstance(error, CannotWrite):
    raise error
  text = traceback.format_exc()
  if is_out_of_memory(error):
    text += OUT_OF_MEMORY
  if member_lib.writes():
    workdir_lib.write_failure(folder, text)
