"""Which run is in whose hands: a worker's of ours, another launcher's, nobody's; or it is over.

A run is given to a worker together with the lease on it (stability/storage/leases.py). What a
worker leaves behind when it dies is tried again: with fewer runs on a device where memory may have
run out, or else TRIES times. Threads of all workers call here.
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

# Of a run with workers that die, without a new checkpoint in between. A machine's fault may take
# two workers of a run; a run that takes three is at fault itself, and others wait for the device.
TRIES = 3
LOOKS = 20  # at runs in other hands at a time, so that a look does not grow with the sweep


class Waiting:
  """The runs nobody trains yet, by executables."""

  def __init__(self, configs: Mapping[str, Config]):
    self._keys: dict[str, object] = {}
    self._same: dict[object, object] = {}
    self._flops: dict[str, float] = {}
    self._groups = collections.defaultdict(collections.deque)
    self._work: dict[object, float] = collections.defaultdict(float)  # FLOPs left in a group
    self._held: dict[object, object] = {}  # worker -> the key of its executables
    for name, config in configs.items():
      self.add(name, config)

  def add(self, name: str, config: Config) -> None:
    """One more run."""
    key = config_lib.static_fields(config)
    self._keys[name] = self._same.setdefault(key, key)  # thousands of equal ones take megabytes
    self._flops[name] = cost.estimated_flops(config)
    self.put_back(name)

  def put_back(self, name: str) -> None:
    """A run that was taken and is not over."""
    self._groups[self._keys[name]].append(name)
    self._work[self._keys[name]] += self._flops[name]

  def key(self, name: str) -> object:
    """Of the executables of a run."""
    return self._keys[name]

  def take(self, worker: object, like: str | None) -> str | None:
    """A run for a worker: of the executables of `like`, or, without it, of others.

    Those that no other worker holds come first, for two that compile the same waste a core; among
    them those with the most work left.
    """
    self._held.pop(worker, None)
    key = self._keys[like] if like is not None else max(self._groups, key=self._rank, default=None)
    if key is None or key not in self._groups:
      return None
    self._held[worker] = key
    name = self._groups[key].popleft()
    self._work[key] -= self._flops[name]
    if not self._groups[key]:
      del self._groups[key], self._work[key]
    return name

  def release(self, worker: object) -> None:
    """The worker has ended."""
    self._held.pop(worker, None)

  def _rank(self, key: object) -> tuple[bool, float]:
    return key not in self._held.values(), self._work[key]

  def __len__(self) -> int:
    return sum(map(len, self._groups.values()))


class Assignments:
  """The runs of a launcher until they are over."""

  def __init__(
      self,
      workdir: Path,
      configs: Mapping[str, Config],
      leases: leases_lib.LeaseManager,
      say: Callable[[str], None],
      tries: int = TRIES,
  ):
    self._workdir = workdir
    self._waiting = Waiting(configs)
    self._leases = leases
    self._say = say
    self._tries = tries
    self._hands: dict[str, WorkerProcess] = {}
    self._elsewhere: collections.deque[str] = collections.deque()
    self._over: list[str] = []
    self._most_members: dict[Any, int] = {}  # executables -> runs on a device that may fit
    self._deaths: dict[str, tuple[int, int]] = {}  # run -> since a checkpoint; the step of that
    self._is_closed = False
    self._lock = threading.RLock()

  def add(self, name: str, config: Config) -> None:
    """One more run."""
    with self._lock:
      self._waiting.add(name, config)

  def give(self, worker: WorkerProcess, like: str | None) -> dict[str, Any]:
    """The answer to a worker that asks for a run, whose lease is then ours."""
    with self._lock:
      while not self._is_closed and (name := self._waiting.take(worker, like)) is not None:
        if not self._leases.take(self._run(name), worker.pid):
          self._elsewhere.append(name)
        elif self._is_over(name):  # another launcher has trained it meanwhile
          self._end(name)
        else:
          self._hands[name] = worker
          return {'run': name, 'members': self._most_members.get(self._waiting.key(name))}
      self._waiting.release(worker)
      return {'run': None}

  def take_back(self, worker: WorkerProcess) -> None:
    """The worker has ended: what it had in hand is tried again, or has failed."""
    worker.wait()
    with self._lock:
      self._waiting.release(worker)
      self.settle()
      names = [name for name, hands in self._hands.items() if hands is worker]
      if self._is_closed or not names:
        return
      how = f'its worker {worker.end()}'
      fewer = worker.ran_out_of_memory() and worker.members > 1
      if fewer:
        most = self._most_members[self._waiting.key(names[0])] = worker.members // 2
        self._say(
            f'{", ".join(names)}: {how}; tried again from the last checkpoints with at most {most}'
            f' runs on a device, in place of {worker.members}'
        )
      for name in names:
        if fewer or worker.has_saved() or self._may_try_again(name, how):
          self._put_back(name)
        else:
          each = f', and so at each of {self._tries} tries' if self._tries > 1 else ''
          told = f'{name}: {how}{each}; the others go on'
          words = f'last words of its worker:\n{worker.last_words()}\n{told}'
          run_files.write_failure(self._run(name), words)
          self._end(name)

  def settle(self) -> None:
    """Lets go of the runs in our workers' hands that are over."""
    with self._lock:
      for name in [name for name in self._hands if self._is_over(name)]:
        self._end(name)

  def look_elsewhere(self) -> None:
    """Takes over what other launchers have left."""
    with self._lock:
      for _ in range(min(LOOKS, len(self._elsewhere))):
        name = self._elsewhere.popleft()
        if self._is_over(name):
          self._over.append(name)
        elif self._leases.take(self._run(name)):
          self._put_back(name)  # for whichever worker asks first
        else:
          self._elsewhere.append(name)

  def lost(self) -> list[WorkerProcess]:
    """The workers with a run that another launcher has taken over from this one."""
    with self._lock:
      lost = self._leases.lost()
      return [worker for name, worker in self._hands.items() if self._run(name) in lost]

  def over(self) -> list[str]:
    """The runs that are over and were not named before."""
    with self._lock:
      over, self._over = self._over, []
      return over

  def running(self) -> list[str]:
    """The runs in somebody's hands; of those elsewhere, a few."""
    with self._lock:
      return [*self._hands, *list(self._elsewhere)[:LOOKS]]

  def has_waiting(self) -> bool:
    """Whether a worker could be given something."""
    with self._lock:
      return len(self._waiting) > 0

  def close(self) -> None:
    """Nothing is given any more, and nothing that ends is held against its run."""
    with self._lock:
      self._is_closed = True
      self.settle()

  def _run(self, name: str) -> Path:
    return run_files.run_dir(self._workdir, name)

  def _is_over(self, name: str) -> bool:
    return run_files.read_result(self._run(name)) is not None

  def _end(self, name: str) -> None:
    self._hands.pop(name, None)
    self._leases.remove(self._run(name))
    self._over.append(name)

  def _put_back(self, name: str) -> None:
    self._hands.pop(name, None)
    self._leases.release(self._run(name))
    self._waiting.put_back(name)

  def _may_try_again(self, name: str, how: str) -> bool:
    step = _newest_checkpoint(self._run(name))
    deaths, reached = self._deaths.get(name, (0, step))
    deaths = 1 if step > reached else deaths + 1
    self._deaths[name] = deaths, step
    if deaths == self._tries:
      return False
    start = f'the checkpoint of step {step}' if step else 'its start'
    self._say(f'{name}: {how}; tried again from {start} (try {deaths + 1} of {self._tries})')
    return True


def _newest_checkpoint(run: Path) -> int:
  """The step of it; 0 without one."""
  steps = (int(path.name) for path in run.glob('checkpoints/*') if path.name.isdigit())
  return max(steps, default=0)
