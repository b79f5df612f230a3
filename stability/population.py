"""The loop that drives a population: runs enter its slots, train in step, are logged, and leave.

Between two stops (a log line, a probe, a checkpoint, an end) the host does nothing. The metrics of
a stop are read while the steps after it run.
"""

import dataclasses
import math
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from stability import checkpoint, large_run, optimizer, parallel, placement, train
from stability import config as config_lib
from stability import workdir as workdir_lib
from stability.data import batches, tokens
from stability.errors import BadInput
from stability.metrics import MetricsWriter, NoWriter
from stability.workdir import Json

LARGE_RUN = {'data_parallel': large_run.DataParallel, 'sharded': large_run.Sharded}
NextRun = Callable[[], str | None]  # names a waiting run of the same static config, if any

# Larger text stays on the host: placement.USABLE leaves a tenth of the memory beside a step's own.
TEXT_SHARE = 0.05


@dataclasses.dataclass
class Member:
  """A run while it is trained."""

  folder: Path
  config: config_lib.Config
  writer: MetricsWriter
  step: int  # updates made, as the host counts them
  initial_loss: float | None  # None until it is measured
  seconds: float  # spent before `since`
  since: float = 0.0  # time of its first step here
  last_line: tuple[int, float] = (0, 0.0)  # step and time of the last logged line
  diverged: bool = False

  def start_clock(self) -> None:
    """From now on it trains."""
    self.since = time.perf_counter()
    self.last_line = self.step, self.since

  @property
  def steps(self) -> int:
    """Updates the run is to make."""
    return self.config['schedule']['steps']

  def tokens(self, step: int) -> int:
    """Tokens trained on in `step` updates."""
    return step * self.config['data']['batch_size'] * self.config['data']['sequence_length']

  def elapsed(self) -> float:
    """Seconds of training, those before a resume included."""
    return self.seconds + time.perf_counter() - self.since

  def next_stop(self) -> int:
    """The next step after which the host has something to do for this run."""
    every = (self.config[section]['every_steps'] for section in ('log', 'probe', 'checkpoint'))
    return min(self.steps, *(n * (self.step // n + 1) for n in every if n))

  def is_due(self, section: str) -> bool:
    """Whether log, probe or checkpoint falls on the present step."""
    every = self.config[section]['every_steps']
    return every > 0 and self.step % every == 0


@dataclasses.dataclass
class _Unread:
  """A stop whose metrics are still on their way, and the members that log it."""

  fetch: parallel.Fetch
  due: list[tuple[int, Member, int]]  # slot, run, its step


def train_population(workdir: Path, sweep: Json, first: str, next_run: NextRun) -> None:
  """Trains the run `first`, and beside and after it those that next_run names, to their results.

  A failure of one run is written to its result.json, with the traceback; the others go on. Where
  several processes share one run, all of them call this, and the first one writes.
  """
  try:
    population = Population(workdir, sweep, first)
  except BadInput:  # what only the devices could tell
    _fail(workdir_lib.run_dir(workdir, first))
    return
  name: str | None = first
  waiting: tuple[Member, Any] | None = None
  while True:
    while population.has_free_slot():
      if waiting is None:
        name, current = None, name or next_run()
        if current is None:
          break
        waiting = population.load(current)
      elif population.is_in_phase(waiting[0]):
        population.enter(*waiting)
        waiting = None
      else:
        break
    if population.is_empty():
      return
    population.train_chunk()


class Population:
  """The slots of a layout and the runs in them."""

  def __init__(self, workdir: Path, sweep: Json, first: str):
    self._workdir = workdir
    self._sweep = sweep
    self._static, hyper = config_lib.split(sweep['runs'][first])
    self._layout = make_layout(workdir, sweep, self._static, train.arrays(hyper))
    self._state = self._layout.empty()
    self._members: dict[int, Member] = {}  # slot -> run
    self._unread: _Unread | None = None

  def has_free_slot(self) -> bool:
    return len(self._members) < self._layout.width

  def is_empty(self) -> bool:
    return not self._members

  def is_in_phase(self, member: Member) -> bool:
    """Whether the member's probes fall on the steps on which the population's do.

    The probed executable may round otherwise than the quiet one, so a run that a neighbour's probe
    takes through it would depend on its neighbours.
    """
    every = self._static.probe.every_steps
    return not every or all((member.step - m.step) % every == 0 for m in self._members.values())

  def load(self, name: str) -> tuple[Member, Any] | None:
    """A run and its state, new or from its last checkpoint; None if that fails: it is recorded."""
    folder = workdir_lib.run_dir(self._workdir, name)
    try:
      config = self._sweep['runs'][name]
      _, hyper = config_lib.split(config)
      state = self._layout.init(train.arrays(hyper))
      step, about = 0, {'initial_loss': None, 'seconds': 0.0}
      found = checkpoint.restore(folder)
      if found:
        step, arrays, about = found
        state = _unnamed(state, arrays)
        logging.info('%s goes on from step %d', name, step)
      swept = workdir_lib.swept_values(config, self._sweep['fields'])
      writer = MetricsWriter(folder, step, swept) if _writes() else NoWriter()
      return Member(folder, config, writer, step, about['initial_loss'], about['seconds']), state
    except Exception:
      _fail(folder)
      return None

  def enter(self, member: Member, state: Any) -> None:
    """Puts a run into a free slot."""
    slot = next(s for s in range(self._layout.width) if s not in self._members)
    self._state = self._layout.insert(self._state, slot, state)
    self._members[slot] = member
    member.start_clock()

  def train_chunk(self) -> None:
    """Trains to the next stop of any run, and does what is due there."""
    try:
      self._measure_initial_losses()
      self._train()
      self._save()
      self._finish()
    except Exception:
      for member in self._members.values():
        _fail(member.folder)
        member.writer.close()
      self._members.clear()
      self._unread = None
      self._state = self._layout.empty()

  def _measure_initial_losses(self) -> None:
    if any(member.initial_loss is None for member in self._members.values()):
      losses = self._layout.evaluate(self._state)
      for slot, member in self._members.items():
        if member.initial_loss is None:
          member.initial_loss = losses[slot]
          member.start_clock()

  def _train(self) -> None:
    steps = min(member.next_stop() - member.step for member in self._members.values())
    for member in self._members.values():
      member.step += steps
    # All are in phase: if it is due for one, it is for all.
    probed = any(member.is_due('probe') for member in self._members.values())
    if steps > probed:
      self._state, fetch = self._layout.advance(self._state, steps - probed)
    if probed:
      self._state, fetch = self._layout.probe(self._state)
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
      if member.diverged:
        continue
      member.writer.flush()
      about = {'initial_loss': member.initial_loss, 'seconds': member.elapsed()}
      keep = member.config['checkpoint']['keep']
      checkpoint.save(member.folder, member.step, _named(states[slot]), about, keep)

  def _finish(self) -> None:
    """Runs that have made all their steps, or diverged, get their result and leave."""
    if any(member.step == member.steps for member in self._members.values()):
      self._log()
    over = {
        slot: member
        for slot, member in self._members.items()
        if member.diverged or member.step == member.steps
    }
    if not over:
      return
    seconds = {slot: member.elapsed() for slot, member in over.items()}
    losses = self._layout.evaluate(self._state)
    for slot, member in over.items():
      status = workdir_lib.status(member.initial_loss, losses[slot])
      result = {
          'status': 'diverged' if member.diverged else status,
          'initial_loss': member.initial_loss,
          'final_loss': losses[slot],
          'parameters': config_lib.parameters(member.config),
          'steps': member.step,
          'tokens': member.tokens(member.step),
          'seconds': seconds[slot],
          'error': None,
      }
      member.writer.close(result)
      if _writes():
        workdir_lib.write_result(member.folder, result)
      del self._members[slot]


def make_layout(
    workdir: Path,
    sweep: Json,
    static: ml_collections.FrozenConfigDict,
    hyper: optimizer.Hyperparameters,
) -> parallel.Layout:
  """The layout that stability/placement.py chooses, its executables compiled."""
  text = tokens.open_tokens(workdir / sweep['data']['path'])
  data = {'train': text.train, 'validation': _validation(text, static)}
  vocabulary_size = text.meta['vocabulary_size']
  together = jax.process_count() > 1  # one run on the devices of several processes
  devices = jax.devices() if together else jax.local_devices()
  memory = _device_memory()
  runs = sum(config_lib.split(config)[0] == static for config in sweep['runs'].values())
  place = placement.choose(static, len(devices), memory, devices[0].platform, runs, vocabulary_size)
  if together and place.layout not in LARGE_RUN:
    raise BadInput(
        f'config.parallel.layout={static.parallel.layout}: must be one of {", ".join(LARGE_RUN)}'
        f' on {jax.process_count()} processes'
    )
  programs = train.programs(
      static,
      vocabulary_size,
      microbatches=place.microbatches,
      remat=place.remat == 'block',
      fused=devices[0].platform == 'gpu',
  )
  if place.layout in LARGE_RUN:
    return LARGE_RUN[place.layout](programs, data, hyper, devices)
  host_drawn = len(text.train) > batches.MAX_DEVICE_TOKENS or (
      memory is not None and text.train.nbytes > TEXT_SHARE * memory
  )
  if place.layout == 'single':
    return parallel.Single(programs, data, hyper, host_drawn)
  devices, members = devices[:runs], place.members
  while True:
    layout = parallel.Population(programs, data, hyper, devices, members, host_drawn)
    if memory is None or members == 1 or static.parallel.members or layout.memory() <= memory:
      return layout
    members = math.ceil(members / 2)  # the arithmetic was wrong: XLA counts more


def _device_memory() -> float | None:
  """Bytes that a process may take of a device, where it says so; the same on all processes."""
  stats = jax.local_devices()[0].memory_stats() or {}
  memory = float(stats.get('bytes_limit', 0))
  if jax.process_count() > 1:
    memory = float(multihost_utils.broadcast_one_to_all(np.float32(memory)))
  return memory or None


def _validation(text: tokens.Tokens, static: ml_collections.FrozenConfigDict) -> np.ndarray:
  """The fixed validation batches, [batches, batch_size, sequence_length + 1]."""
  c = static.data
  starts = batches.validation_starts(
      c.validation_batches * c.batch_size, c.sequence_length, len(text.validation)
  )
  windows = batches.gather(text.validation, starts, c.sequence_length)
  return windows.reshape(c.validation_batches, c.batch_size, c.sequence_length + 1)


def _named(state: Any) -> checkpoint.Arrays:
  """A run's state as arrays by path."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(state)
  return {_path(path): np.asarray(leaf) for path, leaf in leaves}


def _unnamed(like: Any, arrays: checkpoint.Arrays) -> Any:
  """The inverse of _named, in the structure of `like`; KeyError if they do not agree."""
  return jax.tree_util.tree_map_with_path(lambda path, _: arrays[_path(path)], like)


def _path(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _fail(folder: Path) -> None:
  """Records the exception being handled as the run's result."""
  if _writes():
    workdir_lib.write_failure(folder, traceback.format_exc())


def _writes() -> bool:
  """Whether this process writes the files of runs: the first of those that share one."""
  return jax.process_index() == 0
