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

from stability import config as config_lib
from stability.control import actions, run_control
from stability.devices import layout as layout_lib
from stability.devices import shapes
from stability.devices.make_layout import is_out_of_memory, make_layout
from stability.errors import BadInput, CannotWrite
from stability.step import train_step
from stability.storage import checkpoints, run_files
from stability.storage.sweeps import Sweep
from stability.trainer import run as run_lib
from stability.trainer.apply_actions import NO_ACTIONS, ActionApplier, open_control
from stability.trainer.chunk_size import ChunkSizer, any_process
from stability.trainer.run import Run

NextRun = Callable[[], str | None]  # names a waiting run of the same static config, if any
OUT_OF_MEMORY = (
    'out of memory with one run on a device: config.parallel.microbatches and'
    ' config.parallel.remat=block need less\n'
)
Paused = dict[str, float]  # runs -> when an answer is no longer waited for: by time.monotonic()


@dataclasses.dataclass(frozen=True)
class TrainerHooks:
  """What the process that trains says to the loop, and hears of it."""

  # Whether to save all runs and leave them. Asked every few seconds, which is a sign of life.
  interrupted: layout_lib.Interrupted = layout_lib.never
  most_members: int | None = None  # on a device, as more ran out of memory; None: any number
  members_chosen: Callable[[int], None] = lambda members: None


NO_HOOKS = TrainerHooks()


class TooLarge(Exception):
  """The devices' memory ran out, and fewer members a device would need less."""


@dataclasses.dataclass
class _Unread:
  """A stop whose metrics are still on their way, and the members that log it."""

  fetch: layout_lib.PendingMetrics
  due: list[tuple[int, Run, int]]  # slot, run, its step


def train_runs(
    workdir: Path,
    sweep: Sweep,
    first: str,
    next_run: NextRun,
    paused: Paused | None = None,
    watch: TrainerHooks = NO_HOOKS,
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
      trainer = Trainer(workdir, sweep, first, paused, watch, most)
    except Exception as error:
      if not isinstance(error, BadInput) and not is_out_of_memory(error):
        raise
      for name in {first, *names}:  # what only the devices could tell
        _fail(run_files.run_dir(workdir, name))
        paused.pop(name, None)
      return True
    try:
      return _train(trainer, names, next_run)
    except TooLarge:
      most = max(1, trainer.members // 2)
      names.extendleft(reversed(trainer.release_runs()))
      told = 'out of memory with %d runs on a device: tried again with %d, from checkpoints: %s'
      logging.warning(told, trainer.members, most, ', '.join(names))
    del trainer  # and with it the memory it has taken


def _train(trainer: 'Trainer', names: collections.deque[str], next_run: NextRun) -> bool:
  """Trains `names`, and what next_run names after them; whether it was not interrupted."""
  while True:
    if trainer.is_interrupted():
      trainer.save_all()
      return False
    trainer.load_answered()
    while trainer.has_free_slot():
      if trainer.fill_slot():
        continue
      if trainer.has_waiting():  # for its phase; a new run would only put that off
        break
      if not names and (name := next_run()):
        names.append(name)
      if not names:
        break
      trainer.load_run(names[0])
      names.popleft()
    if trainer.is_empty():
      return True
    trainer.train_chunk()


def is_answered(workdir: Path, name: str, paused: Paused) -> bool:
  """Whether a paused run has a request to look at, or has waited for long enough."""
  run = run_files.run_dir(workdir, name)
  try:
    return bool(actions.unanswered(run)) or time.monotonic() > paused[name]
  except BadInput:  # a damaged record: bringing the run fails it, and no other
    return True


class Trainer:
  """The slots of a layout and the runs in them."""

  def __init__(
      self,
      workdir: Path,
      sweep: Sweep,
      first: str,
      paused: Paused,
      watch: TrainerHooks = NO_HOOKS,
      most_members: int | None = None,
  ):
    self._workdir = workdir
    self._sweep = sweep
    self._static, hparams = config_lib.split(self._config(first))
    self._watch = watch
    self._layout = make_layout(
        workdir, sweep, self._static, train_step.arrays(hparams), most_members, watch.members_chosen
    )
    self._chunk_sizer = ChunkSizer()
    self._steering = ActionApplier(workdir, sweep.fields, self._layout)
    self._state = self._layout.empty()
    self._runs: dict[int, Run] = {}  # slot -> run
    self._unread: _Unread | None = None
    self._waiting: collections.deque[tuple[Run, Any]] = collections.deque()  # for a slot
    self._paused = paused

  def _config(self, name: str) -> config_lib.Config:
    if name in self._sweep.runs:
      return self._sweep.runs[name]
    return run_files.read_config(run_files.run_dir(self._workdir, name))  # of a fork

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
    states = self._layout.extract(self._state) if self._runs else []
    for slot, run in self._runs.items():
      # Where a run diverges is told by its next line: it comes there again from the one before.
      if run.step and bool(states[slot]['diverged']) == run.diverged:
        run.save(states[slot])
    self.release_runs()

  def release_runs(self) -> list[str]:
    """Leaves the runs in hand as their files are; their names."""
    members = [*self._runs.values(), *(run for run, _ in self._waiting)]
    for run in members:
      run.writer.close()
    self._runs.clear()
    self._waiting.clear()
    self._unread = self._state = None
    return [run.folder.name for run in members]

  def _check_memory(self, error: Exception) -> None:
    """Raises TooLarge if fewer runs on a device may be what helps against an error."""
    if self.members > 1 and is_out_of_memory(error):
      raise TooLarge from error

  def has_free_slot(self) -> bool:
    return len(self._runs) < self._layout.width

  def is_empty(self) -> bool:
    return not self._runs

  def is_in_phase(self, run: Run) -> bool:
    """Whether the member's probes fall on the steps on which the population's do.

    The probed executable may round otherwise than the quiet one, so a run that a neighbour's probe
    takes through it would depend on its neighbours.
    """
    # Sharpness falls on some of the probes.
    every = self._static.probe.sharpness_every_steps or self._static.probe.every_steps
    return not every or all((run.step - m.step) % every == 0 for m in self._runs.values())

  def has_waiting(self) -> bool:
    return bool(self._waiting)

  def fill_slot(self) -> bool:
    """Puts a run that waits, if one is in phase, into a free slot."""
    for position, (run, state) in enumerate(self._waiting):
      if self.is_in_phase(run):
        slot = next(s for s in range(self._layout.width) if s not in self._runs)
        try:
          self._state = self._layout.insert(self._state, slot, state)
        except Exception as error:
          self._check_memory(error)
          raise
        del self._waiting[position]
        self._runs[slot] = run
        run.start_clock()
        return True
    return False

  def load_answered(self) -> None:
    """Brings the paused runs of these executables that somebody, or the time, has answered."""
    for name in list(self._paused):
      answered = is_answered(self._workdir, name, self._paused)
      if answered and config_lib.split(self._config(name))[0] == self._static:
        self.load_run(name)

  def load_run(self, name: str) -> None:
    """Loads a run and takes the actions due; then it waits for a slot, or is paused again.

    A failure is recorded as its result.
    """
    folder = run_files.run_dir(self._workdir, name)
    deadline = self._paused.pop(name, None)
    timed_out = deadline is not None and time.monotonic() > deadline
    try:
      run, state = self._load(folder, timed_out)
      if not run_lib.is_multiprocess():
        state = self._steering.apply_due(run, state)
      if run.control.is_paused:
        self._pause(run, state, None if timed_out else deadline)
      else:
        self._waiting.append((run, state))
    except Exception as error:
      if deadline is not None and self.members > 1 and is_out_of_memory(error):
        self._paused[name] = deadline
      self._check_memory(error)
      _fail(folder)

  def _load(self, folder: Path, timed_out: bool) -> tuple[Run, Any]:
    """A run and its state, new or from its last checkpoint."""
    config = self._config(folder.name)
    _, hparams = config_lib.split(config)
    state = self._layout.init(train_step.arrays(hparams))
    step, about = 0, {'initial_loss': None, 'seconds': 0.0, 'actions': 0}
    found = checkpoints.restore(folder)
    if found:
      step, arrays, about = found
      state = run_lib.unnamed(state, arrays)
      logging.info('%s goes on from step %d', folder.name, step)
    elif run_lib.is_primary() and (line := run_files.last_metrics(folder)):
      told = '%s was at step %d and has no checkpoint: it begins again from step 0'
      logging.warning(told, folder.name, line['step'])
    run = Run(
        folder=folder,
        config=config,
        writer=run_lib.open_writer(folder, config, step, self._sweep.fields),
        control=open_control(folder, config, step, about['actions'], timed_out),
        step=step,
        initial_loss=about['initial_loss'],
        seconds=about['seconds'],
        diverged=bool(state['diverged']),
    )
    # Told to end while it evaluated a run that an action has stopped, a process saves it so.
    run.stopped = any(record['action'] == 'stop' for record in run.control.taken)
    run.start_clock()
    return run, state

  def train_chunk(self) -> None:
    """Trains to the next stop of any run, and does what is due there."""
    try:
      self._measure_initial_losses()
      self._finish()  # what was over when it came here
      if self._runs and all(m.initial_loss is not None for m in self._runs.values()):
        self._train()
        self._save()
        self._act()
        self._finish()
    except Exception as error:
      self._check_memory(error)
      for run in self._runs.values():
        _fail(run.folder)
        run.writer.close()
      self._runs.clear()
      self._unread = None
      self._state = self._layout.empty()

  def _measure_initial_losses(self) -> None:
    if any(run.initial_loss is None for run in self._runs.values()):
      losses = self._layout.evaluate(self._state, self.is_interrupted)
      for slot, run in self._runs.items() if losses is not None else ():
        if run.initial_loss is None:
          run.initial_loss = losses[slot]
          run.start_clock()

  def _train(self) -> None:
    steps = min(m.next_stop() - m.step for m in self._runs.values())
    steps = self._chunk_sizer.limit(steps)
    for run in self._runs.values():
      run.step += steps
    # All are in phase: if it is due for one, it is for all.
    probed = any(run.is_due('probe') for run in self._runs.values())
    sharp = any(run.is_due_for_sharpness() for run in self._runs.values())
    if steps > probed:
      self._state, fetch = self._layout.step(self._state, 'quiet', steps - probed)
    if probed:
      self._state, fetch = self._layout.step(self._state, 'sharp' if sharp else 'probed')
    self._log()  # the stop before this one, while the steps just sent off run
    due = [
        (slot, run, run.step)
        for slot, run in self._runs.items()
        if probed or run.is_due('log') or run.step == run.steps
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
    for slot, run, step in unread.due:
      if run.diverged:
        continue
      row = rows[slot]
      run.diverged = bool(row.pop('diverged'))
      row['step'] = int(row['step'])
      assert run.diverged or row['step'] == step, (run.folder, row['step'], step)
      if run.diverged:
        row['loss'], run.step = math.nan, row['step']
      last_step, last_time = run.last_line
      row['tokens'] = run.tokens(row['step'])
      row['seconds'] = run.elapsed()
      row['tokens_per_second'] = run.tokens(row['step'] - last_step) / (now - last_time)
      run.last_line = row['step'], now
      run.writer.write(row)
      for alarm in run.control.observe(row):
        run.writer.mark(alarm['step'], f'alarm/{alarm["rule"]}', alarm['seen'])

  def _save(self) -> None:
    due = {
        slot: run
        for slot, run in self._runs.items()
        if run.is_due('checkpoint') and run.step < run.steps
    }
    if not due:
      return
    self._log()
    states = self._layout.extract(self._state)
    for slot, run in due.items():
      if not states[slot]['diverged']:  # where it did is told by its next line
        run.save(states[slot])

  def _act(self) -> None:
    """Takes the actions due on the runs in the slots; those paused or rewound leave theirs."""
    if any(run.is_over() for run in self._runs.values()):
      self._log()  # the last rows may raise alarms
    if run_lib.is_multiprocess():  # only one process sees what is asked for
      for run in self._runs.values():
        run.control.refuse_all(run.step, NO_ACTIONS)
      return
    if not any(run.has_work() for run in self._runs.values()):
      return
    self._log()
    states = self._layout.extract(self._state)
    for slot, run in list(self._runs.items()):
      if not run.has_work():
        continue
      try:
        step, taken = run.step, len(run.control.taken)
        state = self._steering.apply_due(run, states[slot])
        if run.control.is_paused or run.step != step:
          del self._runs[slot]
          if run.control.is_paused:
            self._pause(run, state)
          else:
            self._waiting.append((run, state))
        elif len(run.control.taken) != taken:
          self._state = self._layout.insert(self._state, slot, state)
      except Exception as error:
        self._check_memory(error)
        _fail(run.folder)
        run.writer.close()
        del self._runs[slot]

  def _pause(self, run: Run, state: Any, deadline: float | None = None) -> None:
    """Saves a run and lets go of it until it is answered."""
    run.save(state)
    run.writer.close()
    if deadline is None:
      seconds = run.config['control']['timeout_seconds']
      by_alarm = run.control.paused_by == run_control.ALARM
      deadline = time.monotonic() + seconds if seconds and by_alarm else math.inf
    self._paused[run.folder.name] = deadline

  def _finish(self) -> None:
    """Runs that have made all their steps, or diverged, get their result and leave."""
    if any(run.is_over() for run in self._runs.values()):
      self._log()
    over = {slot: run for slot, run in self._runs.items() if run.is_over()}
    if not over:
      return
    seconds = {slot: run.elapsed() for slot, run in over.items()}
    losses = self._layout.evaluate(self._state, self.is_interrupted)
    if losses is None:
      return
    for slot, run in over.items():
      status = run_files.final_status(run.initial_loss, losses[slot])
      if run.diverged or run.stopped:
        status = 'diverged' if run.diverged else 'stopped'
      run.control.refuse_all(run.step, f'the run has ended: {status}')
      result = run_files.Result(
          status=status,
          initial_loss=run.initial_loss,
          final_loss=losses[slot],
          parameters=shapes.parameters(run.config),
          steps=run.step,
          tokens=run.tokens(run.step),
          seconds=seconds[slot],
      )
      run.writer.close(result)
      if run_lib.is_primary():
        run_files.write_result(run.folder, result)
      del self._runs[slot]


def _fail(folder: Path) -> None:
  """Records the exception being handled as the run's result; raises it if it is no run's fault."""
  error = sys.exception()
  if isinstance(error, CannotWrite):
    raise error
  text = traceback.format_exc()
  if is_out_of_memory(error):
    text += OUT_OF_MEMORY
  if run_lib.is_primary():
    run_files.write_failure(folder, text)
