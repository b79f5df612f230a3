"""The training loop.

train_runs trains the runs of one static config: it loads them into the slots of a layout, steps to
the next stop of any run, logs, saves checkpoints, applies actions and finishes runs, until no run
is left. A stop is a step after which the host has something to do for a run: a logged row, a probe,
a checkpoint or the end of the run. Between stops the host does nothing; the metrics of a stop are
fetched while the steps after it run.
"""

import collections
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import logging

from stability import config as config_lib
from stability.devices.layout import PendingMetrics
from stability.devices.make_layout import is_out_of_memory
from stability.errors import BadInput
from stability.step import train_step
from stability.storage import run_files, versions
from stability.storage.sweeps import Sweep
from stability.trainer import jax_settings, state_arrays
from stability.trainer.action_executor import ActionExecutor
from stability.trainer.chunk_size import ChunkSizer
from stability.trainer.failures import (
  TooManyMembers,
  raise_if_lost,
  raise_if_too_many,
  record_failure,
)
from stability.trainer.hooks import TrainerHooks
from stability.trainer.paused import PausedRuns
from stability.trainer.run import Run
from stability.trainer.run_loader import NO_ACTIONS, RunLoader
from stability.trainer.slots import Slots


def train_runs(
    workdir: Path,
    sweep: Sweep,
    first: str,
    next_run: Callable[[], str | None],
    paused: PausedRuns | None = None,
    hooks: TrainerHooks | None = None,
) -> bool:
  """Trains the run `first` and, beside it and after it, the runs that `next_run` returns.

  If a run fails, the traceback is written to its result.json and the others continue. If the
  devices run out of memory, the runs resume from their checkpoints with fewer runs per device. If
  several processes share a run, all of them call this function; the first one writes the files.

  Args:
    workdir: folder of the sweep.
    sweep: the content of the workdir's sweep.json.
    first: name of a run. Steps are compiled for its static config.
    next_run: returns the name of another run with the same static config, or None if there is none.
    paused: the paused runs of the workdir. A run that is answered is trained further; a run that is
      paused meanwhile leaves its slot and is added.
    hooks: the layout factory, the clock, limits and callbacks.

  Returns:
    False if it was interrupted; all runs are then saved. True if only paused runs are left.

  Raises:
    BadInput: a setting of jax that has one right value (stability/settings.py) has another.
  """
  jax_settings.check()
  hooks = hooks or TrainerHooks()
  paused = PausedRuns(workdir, hooks.clock) if paused is None else paused
  names = collections.deque([] if first in paused.deadlines else [first])
  max_members = hooks.max_members
  while True:
    try:
      trainer = Trainer(workdir, sweep, first, paused, hooks, max_members)
    except Exception as error:
      if not isinstance(error, BadInput) and not is_out_of_memory(error):
        raise
      for name in {first, *names}:  # some input can be checked only when the devices are known
        run = run_files.run_dir(workdir, name)
        if run_files.read_result(run) is None:  # `first` may have ended in a larger population
          record_failure(run, hooks.processes)
        paused.deadlines.pop(name, None)
      return True
    try:
      return trainer.train(names, next_run)
    except TooManyMembers:
      max_members = max(1, trainer.members // 2)
      names.extendleft(reversed(trainer.release_runs()))
      message = 'out of memory with %d runs per device: trying %d, from checkpoints: %s'
      logging.warning(message, trainer.members, max_members, ', '.join(names))
    del trainer  # frees its device memory before the next layout is made


@dataclasses.dataclass
class PendingRows:
  """The metrics of a stop that are not fetched yet, and the runs that will log them."""

  metrics: PendingMetrics
  due: list[tuple[int, Run, int]]  # slot, run, step of the run


class Trainer:
  """Trains runs of one static config on one layout."""

  def __init__(
      self,
      workdir: Path,
      sweep: Sweep,
      first: str,
      paused: PausedRuns,
      hooks: TrainerHooks,
      max_members: int | None,
  ):
    """See train_runs. max_members: maximum number of runs per device; None: no limit."""
    self._workdir = workdir
    self._hooks = hooks
    self._paused = paused
    runs = versions.runs(run_files.run_dir(workdir, first)) or hooks.runs
    self._loader = RunLoader(workdir, sweep, runs, hooks.clock, hooks.processes, hooks.rules)
    self._static, hparams = config_lib.split(self._loader.config(first))
    self._layout = hooks.make_layout(
        workdir,
        sweep,
        self._static,
        train_step.arrays(hparams),
        runs,
        max_members,
        hooks.on_members,
    )
    # Sharpness is measured at some of the probed steps.
    probe = self._static.probe
    self._slots = Slots(self._layout, probe.sharpness_every_steps or probe.every_steps)
    self._actions = ActionExecutor(workdir, self._layout, self._loader)
    self._chunk_sizer = ChunkSizer(hooks.clock, hooks.processes)
    self._waiting: collections.deque[tuple[Run, Any]] = collections.deque()  # loaded, no slot yet
    self._pending: PendingRows | None = None

  @property
  def members(self) -> int:
    """Runs per device."""
    return self._layout.members

  def train(self, names: collections.deque[str], next_run: Callable[[], str | None]) -> bool:
    """Trains the runs `names`, then those that `next_run` returns; False if interrupted.

    A run is removed from `names` once it is loaded.
    """
    while not self._interrupted():
      self._load_answered()
      self._fill_slots(names, next_run)
      if not self._slots.runs:
        return True
      self._train_to_next_stop()
    self._save_all()
    return False

  def _interrupted(self) -> bool:
    return self._hooks.processes.any(self._hooks.interrupted())

  # Loading.

  def _load_answered(self) -> None:
    """Loads the paused runs of this static config that are answered or overdue."""
    for name in self._paused.ready():
      if config_lib.split(self._loader.config(name))[0] == self._static:
        self._load(name)

  def _fill_slots(
      self, names: collections.deque[str], next_run: Callable[[], str | None]
  ) -> None:
    """Fills free slots with waiting runs, then with new ones."""
    while not self._slots.is_full:
      if self._place_waiting():
        continue
      if self._waiting:
        # These runs are out of phase with the runs in the slots. No new run is started until those
        # have left, since it would make these runs wait even longer.
        return
      if not names and (name := next_run()):
        names.append(name)
      if not names:
        return
      self._load(names[0])
      names.popleft()

  def _load(self, name: str) -> None:
    """Loads a run and applies its due actions; the run then waits for a slot or is paused again."""
    folder = run_files.run_dir(self._workdir, name)
    timed_out = self._paused.is_overdue(name)
    deadline = self._paused.deadlines.pop(name, None)
    try:
      run, state = self._loader.load(folder, self._layout, timed_out)
      if not self._hooks.processes.is_multiprocess:
        state = self._actions.apply_due(run, state)
      if run.control.is_paused:
        self._pause(run, state, None if timed_out else deadline)
      else:
        self._waiting.append((run, state))
    except Exception as error:
      if deadline is not None and self.members > 1 and is_out_of_memory(error):
        self._paused.deadlines[name] = deadline
      self._record_failure(error, folder)

  def _place_waiting(self) -> bool:
    """Puts the first waiting run that is in phase into a free slot; False if there is none."""
    for position, (run, state) in enumerate(self._waiting):
      if self._slots.is_in_phase(run):
        try:
          self._slots.add(run, state)
        except Exception as error:
          raise_if_too_many(error, self.members)
          raise
        del self._waiting[position]
        run.start_clock()
        return True
    return False

  # Training.

  def _train_to_next_stop(self) -> None:
    """Trains to the next stop of any run and does what is due there.

    Any of the runs in the slots may have caused a failure here, so all of them fail.
    """
    try:
      self._measure_initial_losses()
      self._finish_runs()  # a run may be loaded at its last step
      runs = self._slots.runs.values()
      if runs and all(run.initial_loss is not None for run in runs):
        self._step()
        self._save_checkpoints()
        self._hooks.on_stop(runs)
        self._apply_actions()
        self._finish_runs()
    except Exception as error:
      self._record_failure(error, *(run.folder for run in self._slots.runs.values()))
      for run in self._slots.runs.values():
        run.writer.close()
      self._slots.clear()
      self._pending = None

  def _measure_initial_losses(self) -> None:
    """Measures the initial losses of new runs, unless interrupted."""
    if all(run.initial_loss is not None for run in self._slots.runs.values()):
      return
    losses = self._slots.evaluate(self._interrupted)
    for slot, run in self._slots.runs.items() if losses is not None else ():
      if run.initial_loss is None:
        run.initial_loss = losses[slot]
        run.start_clock()

  def _step(self) -> None:
    """Dispatches the steps to the next stop; logs the stop before it while they run."""
    runs = self._slots.runs
    steps = self._chunk_sizer.limit(min(run.next_stop() - run.step for run in runs.values()))
    for run in runs.values():
      run.step += steps
    # All runs are in phase: a probe that is due for one of them is due for all.
    probed = any(run.is_due('probe') for run in runs.values())
    sharp = any(run.is_due('probe', 'sharpness_every_steps') for run in runs.values())
    if steps > probed:
      metrics = self._slots.step('quiet', steps - probed)
    if probed:
      metrics = self._slots.step('sharp' if sharp else 'probed')
    self._log()
    due = [
        (slot, run, run.step)
        for slot, run in runs.items()
        if probed or run.is_due('log') or run.step == run.steps
    ]
    self._pending = PendingRows(metrics, due)

  def _log(self) -> None:
    """Writes the rows of the last stop, if they are not written yet; marks diverged runs."""
    pending, self._pending = self._pending, None
    if pending is None:
      return
    if not pending.due:
      pending.metrics.wait()
      return
    rows = pending.metrics.read()
    now = self._hooks.clock()
    for slot, run, step in pending.due:
      if not run.diverged:
        run.log(rows[slot], step, now)

  def _save_checkpoints(self) -> None:
    due = {slot: run for slot, run in self._slots.runs.items() if run.is_checkpoint_due()}
    if not due:
      return
    self._log()
    states = self._slots.states()
    for slot, run in due.items():
      if not states[slot]['diverged']:  # else only its next row says at which step
        run.save(states[slot])

  # Actions.

  def _apply_actions(self) -> None:
    """Applies the actions due on the runs in the slots."""
    runs = self._slots.runs
    if any(run.is_over() for run in runs.values()):
      self._log()  # the last rows of a run may raise alarms
    if self._hooks.processes.is_multiprocess:  # only the first process reads requests
      for run in runs.values():
        run.control.refuse_all(run.step, NO_ACTIONS)
      return
    if not any(run.has_action_due() for run in runs.values()):
      return
    self._log()
    states = self._slots.states()
    for slot, run in list(runs.items()):
      # A run that has diverged, though no row says so, waits for the row that says at which step.
      if run.has_action_due() and bool(states[slot]['diverged']) == run.diverged:
        try:
          self._apply_actions_to(slot, run, states[slot])
        except Exception as error:
          self._record_failure(error, run.folder)
          run.writer.close()
          del runs[slot]

  def _apply_actions_to(self, slot: int, run: Run, state: Any) -> None:
    """Applies the actions due on one run, which leaves its slot if it is paused or rewound."""
    step, taken = run.step, len(run.control.taken)
    state = self._actions.apply_due(run, state)
    if run.control.is_paused:
      self._pause(run, state)
      del self._slots.runs[slot]
    elif run.step != step:
      self._waiting.append((run, state))
      del self._slots.runs[slot]
    elif len(run.control.taken) != taken:
      self._slots.replace(slot, state)

  def _pause(self, run: Run, state: Any, deadline: float | None = None) -> None:
    """Saves a run, closes its files and adds it to the paused ones."""
    run.save(state)
    run.writer.close()
    self._paused.add(run, deadline)

  def _record_failure(self, error: Exception, *folders: Path) -> None:
    """Writes the results of runs that failed; raises if they are not to blame but the devices."""
    raise_if_too_many(error, self.members)
    raise_if_lost(error)
    for folder in folders:
      record_failure(folder, self._hooks.processes)

  # Ending.

  def _finish_runs(self) -> None:
    """Evaluates the runs that are over and writes their results, unless interrupted."""
    if any(run.is_over() for run in self._slots.runs.values()):
      self._log()
    over = {slot: run for slot, run in self._slots.runs.items() if run.is_over()}
    if not over:
      return
    seconds = {slot: run.elapsed() for slot, run in over.items()}
    losses = self._slots.evaluate(self._interrupted)
    if losses is None:
      return
    # All processes that share a run take part in fetching its state.
    states = self._slots.states() if any(run.keeps_parameters for run in over.values()) else []
    for slot, run in over.items():
      if run.keeps_parameters and self._hooks.processes.is_primary:
        kept = train_step.kept_variables(states[slot], self._static)
        run.save_parameters(kept, self._loader.data)
      result = run.finish(losses[slot], seconds[slot])
      if self._hooks.processes.is_primary:
        run_files.write_result(run.folder, result)
      del self._slots.runs[slot]

  def _save_all(self) -> None:
    """Saves the runs in the slots and releases all runs; waiting runs have nothing to save."""
    self._log()
    states = self._slots.states() if self._slots.runs else []
    # If a run has diverged on the device but not in the logged rows, it is not saved: when it
    # resumes, it repeats the steps since its last checkpoint, and their rows say at which step it
    # diverged.
    saved = {
        slot: run
        for slot, run in self._slots.runs.items()
        if run.step and bool(states[slot]['diverged']) == run.diverged
    }
    self._hooks.on_save([state_arrays.size(states[slot]) for slot in saved])
    for slot, run in saved.items():
      run.save(states[slot])
    self.release_runs()

  def release_runs(self) -> list[str]:
    """Closes the files of all runs without saving them; returns the names of the runs."""
    runs = [*self._slots.runs.values(), *(run for run, _ in self._waiting)]
    for run in runs:
      run.writer.close()
    self._slots.release()
    self._waiting.clear()
    self._pending = None
    return [run.folder.name for run in runs]
