"""The assignment of a launcher's runs to its workers.

A run is assigned once this launcher has acquired its lease (stability/storage/leases.py), which
another launcher may hold. When a worker dies, its runs are retried: with fewer runs per device if
memory may have run out, otherwise up to TRIES times.
"""

import collections
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launch.workers.worker_process import WorkerProcess
from stability import config as config_lib
from stability.config import Config
from stability.devices import cost
from stability.storage import leases as leases_lib
from stability.storage import run_files

# A run fails after this many deaths of its workers without a new checkpoint in between. The machine
# may be to blame for two deaths; after three, the run itself is, and must not hold up the others.
TRIES = 3
# Runs of other launchers to check at a time, so that the cost does not grow with the sweep.
CHECKS = 20


class RunQueue:
  """The runs that wait for a worker, grouped by the executables that train them."""

  def __init__(self, configs: Mapping[str, Config]):
    self._keys: dict[str, object] = {}  # run -> key of its executables
    self._canonical: dict[object, object] = {}  # equal keys share one object, which saves megabytes
    self._flops: dict[str, float] = {}
    self._groups = collections.defaultdict(collections.deque)  # key -> runs
    self._group_flops: dict[object, float] = collections.defaultdict(float)
    self._worker_keys: dict[object, object] = {}  # worker -> key of its executables
    self._elsewhere: set[object] = set()  # keys of groups that other launchers train
    for name, config in configs.items():
      self.add(name, config)

  def add(self, name: str, config: Config) -> None:
    """Adds a new run."""
    key = config_lib.static_fields(config)
    self._keys[name] = self._canonical.setdefault(key, key)
    self._flops[name] = cost.estimated_flops(config)
    self.put_back(name)

  def put_back(self, name: str) -> None:
    """Adds a run that was taken but not finished back to the queue."""
    self._elsewhere.discard(self._keys[name])
    self._groups[self._keys[name]].append(name)
    self._group_flops[self._keys[name]] += self._flops[name]

  def key(self, name: str) -> object:
    """The key of the executables that train a run."""
    return self._keys[name]

  def waiting_like(self, name: str) -> int:
    """The number of waiting runs that the executables of a run train."""
    return len(self._groups.get(self._keys[name], ()))

  def take(self, worker: object, like: str | None) -> str | None:
    """Takes a run for a worker; returns its name, or None if there is none.

    Args:
      worker: the worker that asks for a run.
      like: a run whose executables the taken one must share. If None, groups whose executables no
        other worker has, here or of another launcher, are preferred, since compiling them twice
        wastes a core and part of a population, and among them the one with the most work left.
    """
    self._worker_keys.pop(worker, None)
    key = self._keys[like] if like is not None else max(self._groups, key=self._rank, default=None)
    if key is None or key not in self._groups:
      return None
    self._worker_keys[worker] = key
    name = self._groups[key].popleft()
    self._group_flops[key] -= self._flops[name]
    if not self._groups[key]:
      del self._groups[key], self._group_flops[key]
    return name

  def leave(self, name: str) -> None:
    """Leaves a taken run to another launcher, which trains its group."""
    self._elsewhere.add(self._keys[name])

  def forget(self, worker: object) -> None:
    """Forgets which executables a worker has, as it has ended or has nothing to train."""
    self._worker_keys.pop(worker, None)

  def _rank(self, key: object) -> tuple[bool, float]:
    is_trained = key in self._worker_keys.values() or key in self._elsewhere
    return not is_trained, self._group_flops[key]

  @property
  def groups(self) -> int:
    """The number of groups of all runs, also of those that were taken."""
    return len(self._canonical)

  def __len__(self) -> int:
    return sum(map(len, self._groups.values()))


class Assignments:
  """The runs of a launcher until they are finished. Methods may be called from any thread."""

  def __init__(
      self,
      workdir: Path,
      configs: Mapping[str, Config],
      leases: leases_lib.LeaseManager,
      log: Callable[[str], None],
      tries: int = TRIES,
      is_told: Callable[[], bool] = lambda: False,
  ):
    """All runs wait for a worker; of a group, first those that have begun.

    A population gets the width with which the first of its runs began.

    Args:
      workdir: folder of the sweep.
      configs: the unfinished runs, by name.
      leases: acquires and holds the leases of runs.
      log: prints a line.
      tries: number of deaths of its workers after which a run fails.
      is_told: returns whether the launcher was told to end. Then no run is assigned, and deaths of
        workers no longer count: what has told the launcher may end the workers too.
    """
    self._workdir = workdir
    begun = [name for name in configs if (self._run(name) / 'versions.jsonl').exists()]
    self._queue = RunQueue({name: configs[name] for name in (*begun, *configs)})
    self._leases = leases
    self._log = log
    self._tries = tries
    self._assigned: dict[str, WorkerProcess] = {}
    self._elsewhere: collections.deque[str] = collections.deque()  # runs of other launchers
    self._finished: list[str] = []  # not yet reported by `newly_finished`
    self._max_members: dict[Any, int] = {}  # key of executables -> runs per device that may fit
    self._deaths: dict[str, tuple[int, int]] = {}  # run -> deaths, checkpoint they came after
    self._is_told = is_told
    self._is_closed = False
    self._lock = threading.RLock()

  def add(self, name: str, config: Config) -> None:
    """Adds a run."""
    with self._lock:
      self._queue.add(name, config)

  def assign(self, worker: WorkerProcess, like: str | None) -> dict[str, Any]:
    """Assigns a run to a worker that asks for one; returns the answer to the worker."""
    with self._lock:
      while not self._is_over() and (name := self._queue.take(worker, like)) is not None:
        if not self._leases.try_acquire(self._run(name), worker.pid):
          self._queue.leave(name)
          self._elsewhere.append(name)
        elif self._is_finished(name):  # by another launcher
          self._finish(name)
        else:
          self._assigned[name] = worker
          return {
              'run': name,
              'members': self._max_members.get(self._queue.key(name)),
              'runs': 1 + self._queue.waiting_like(name),
          }
      self._queue.forget(worker)
      return {'run': None}

  def reclaim(self, worker: WorkerProcess) -> None:
    """Waits for a worker to end and retries its runs, or writes their failures."""
    worker.wait()
    with self._lock:
      self._queue.forget(worker)
      self.release_finished()
      names = [name for name, assigned in self._assigned.items() if assigned is worker]
      if self._is_over() or not names:
        return
      reason = f'its worker {worker.end_reason()}'
      needs_memory = worker.may_have_run_out_of_memory() and worker.members > 1
      if needs_memory:
        members = worker.members // 2
        # Of all its runs, since those that are paused may have other executables.
        self._max_members |= dict.fromkeys(map(self._queue.key, names), members)
        self._log(
            f'{", ".join(names)}: {reason}; tried again from the last checkpoints with at most'
            f' {members} runs per device instead of {worker.members}'
        )
      lost = self._leases.lost()  # another launcher trains these, as this one was too slow
      for name in names:
        if self._run(name) in lost:
          self._log(f'{name}: {reason}')
          self._put_back(name)
        elif needs_memory or worker.has_saved() or self._may_try_again(name, reason):
          self._put_back(name)
        else:
          each = f', as in each of {self._tries} tries' if self._tries > 1 else ''
          error = f'{name}: {reason}{each}; the other runs continue'
          output = f'last output of its worker:\n{worker.last_output()}\n{error}'
          run_files.write_failure(self._run(name), output)
          self._finish(name)

  def release_finished(self) -> None:
    """Releases the leases of the runs that our workers have finished."""
    with self._lock:
      for name in [name for name in self._assigned if self._is_finished(name)]:
        self._finish(name)

  def check_elsewhere(self) -> None:
    """Takes over runs that other launchers have abandoned; notes runs that they have finished."""
    with self._lock:
      for _ in range(min(CHECKS, len(self._elsewhere))):
        name = self._elsewhere.popleft()
        if self._is_finished(name):
          self._finished.append(name)
        elif self._leases.try_acquire(self._run(name)):
          self._put_back(name)
        else:
          self._elsewhere.append(name)

  def workers_without_lease(self) -> list[WorkerProcess]:
    """The workers with a run that another launcher has taken over from this one."""
    with self._lock:
      lost = self._leases.lost()
      return [worker for name, worker in self._assigned.items() if self._run(name) in lost]

  def newly_finished(self) -> list[str]:
    """The runs that have finished since the last call."""
    with self._lock:
      finished, self._finished = self._finished, []
      return finished

  def running(self) -> list[str]:
    """The runs that are being trained, including at most CHECKS runs of other launchers."""
    with self._lock:
      return [*self._assigned, *list(self._elsewhere)[:CHECKS]]

  def phases(self) -> list[str]:
    """What workers do before training, and for how many groups of runs."""
    found = collections.defaultdict(set)
    with self._lock:
      for name, worker in self._assigned.items():
        found[worker.phase].add(self._queue.key(name))
      total = self._queue.groups
    return [
        phase if total == 1 else f'{phase} for {len(found[phase])} of {total} groups of runs'
        for phase in ('reading text', 'compiling')
        if phase in found
    ]

  def has_waiting(self) -> bool:
    """Whether a run waits for a worker."""
    with self._lock:
      return len(self._queue) > 0

  def close(self) -> None:
    """Stops assigning runs; deaths of workers no longer count against their runs."""
    with self._lock:
      self._is_closed = True
      self.release_finished()

  def _is_over(self) -> bool:
    return self._is_closed or self._is_told()

  def _run(self, name: str) -> Path:
    return run_files.run_dir(self._workdir, name)

  def _is_finished(self, name: str) -> bool:
    return run_files.read_result(self._run(name)) is not None

  def _finish(self, name: str) -> None:
    self._assigned.pop(name, None)
    self._leases.remove(self._run(name))
    self._finished.append(name)

  def _put_back(self, name: str) -> None:
    self._assigned.pop(name, None)
    self._leases.release(self._run(name))
    self._queue.put_back(name)

  def _may_try_again(self, name: str, reason: str) -> bool:
    """Counts a death of a run's worker; returns whether to retry the run."""
    step = max(run_files.checkpoint_steps(self._run(name)), default=0)  # of the newest checkpoint
    deaths, checkpoint = self._deaths.get(name, (0, step))
    deaths = 1 if step > checkpoint else deaths + 1
    self._deaths[name] = deaths, step
    if deaths == self._tries:
      return False
    start = f'the checkpoint of step {step}' if step else 'its start'
    self._log(f'{name}: {reason}; tried again from {start} (try {deaths + 1} of {self._tries})')
    return True
