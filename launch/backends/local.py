"""The local backend: worker processes on this machine.

On a CPU there is one single-threaded worker a core, which beats threads (BUILD_NOTES.md); an
accelerator machine gets one worker, whose populations spread over its devices.
"""

import collections
import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch import environment
from launch.progress import Progress
from stability import config as config_lib
from stability import plan
from stability import workdir as workdir_lib
from stability.config import Config
from stability.errors import CannotWrite

POLL_SECONDS = 0.5
_LOG_LINES = 50  # of a worker's output, kept for the error of a run that it died with


class Waiting:
  """The runs nobody trains yet, by executables."""

  def __init__(self, configs: Mapping[str, Config]):
    self._keys = {name: config_lib.static_fields(config) for name, config in configs.items()}
    self._flops = {name: plan.train_flops(config) for name, config in configs.items()}
    self._groups = collections.defaultdict(collections.deque)
    for name, key in self._keys.items():
      self._groups[key].append(name)
    self._held: dict[object, object] = {}  # worker -> the key of its executables
    self._lock = threading.Lock()  # every worker's thread takes from it

  def add(self, name: str, config: Config) -> None:
    """One more run."""
    with self._lock:
      self._keys[name] = config_lib.static_fields(config)
      self._flops[name] = plan.train_flops(config)
      self._groups[self._keys[name]].append(name)

  def take(self, worker: object, like: str | None) -> str | None:
    """A run for a worker: of the executables of `like`, or, without it, of others.

    Those that no other worker holds come first, for two that compile the same waste a core; among
    them those with the most work left.
    """
    with self._lock:
      self._held.pop(worker, None)
      if like is not None:
        key = self._keys[like]
      else:
        left = (key for key, group in self._groups.items() if group)
        key = max(left, key=self._rank, default=None)
      if key is None or not self._groups[key]:
        return None
      self._held[worker] = key
      return self._groups[key].popleft()

  def release(self, worker: object) -> None:
    """The worker has ended."""
    with self._lock:
      self._held.pop(worker, None)

  def _rank(self, key: object) -> tuple[bool, float]:
    work = sum(self._flops[name] for name in self._groups[key])
    return key not in self._held.values(), work

  def __len__(self) -> int:
    return sum(map(len, self._groups.values()))


class Worker:
  """A worker process, served by a thread."""

  def __init__(
      self,
      workdir: Path,
      cores: Sequence[int],
      waiting: Waiting,
      progress: Progress,
      flags: Sequence[str] = (),
  ):
    """flags: of launch.worker, beside those of every worker."""
    self.cores = cores
    self.flags = flags
    self._workdir = workdir
    self._waiting = waiting
    self._progress = progress
    self._given: list[str] = []
    self._given_lock = threading.Lock()
    self._has_asked = False
    self.cannot_write: CannotWrite | None = None  # what the disk refused
    self._log: collections.deque[str] = collections.deque(maxlen=_LOG_LINES)
    self._process = subprocess.Popen(
        [
            *(sys.executable, '-m', 'launch.worker'),
            *(f'--workdir={workdir}', f'--cores={",".join(map(str, cores))}', *flags),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment.worker_environment(),
        start_new_session=True,  # Ctrl-C is the launcher's; a worker ends when its input closes
    )
    self._threads = [
        threading.Thread(target=self._serve, daemon=True),
        threading.Thread(target=self._listen, daemon=True),
    ]
    for thread in self._threads:
      thread.start()

  def is_alive(self) -> bool:
    return any(thread.is_alive() for thread in self._threads)

  def could_not_start(self) -> bool:
    """Whether it died before it asked for a run: another would do the same."""
    return not self.is_alive() and not self._has_asked

  def last_words(self) -> str:
    return '\n'.join(self._log)

  def running(self) -> list[str]:
    """The runs given to it that are not over."""
    with self._given_lock:  # its thread may be adding one
      self._given = [
          name
          for name in self._given
          if workdir_lib.read_result(workdir_lib.run_dir(self._workdir, name)) is None
      ]
      return list(self._given)

  def stop(self) -> None:
    """Ends the process; its runs can be continued from their checkpoints."""
    self._process.kill()
    self._process.wait()

  def _serve(self) -> None:
    """Answers its requests until it ends; the runs it died with have failed."""
    for line in self._process.stdout:
      self._has_asked = True
      asked = json.loads(line)
      if 'cannot_write' in asked:
        self.cannot_write = CannotWrite(*asked['cannot_write'])
        return
      name = self._waiting.take(self, asked['like'])
      if name is not None:
        with self._given_lock:
          self._given.append(name)
      try:
        print(json.dumps({'run': name}), file=self._process.stdin, flush=True)
      except BrokenPipeError:
        break  # it is dead: what follows says so
    code = self._process.wait()
    self._waiting.release(self)
    for name in self.running():
      error = f'its last words:\n{self.last_words()}\nits worker ended with exit code {code}'
      try:
        workdir_lib.write_failure(workdir_lib.run_dir(self._workdir, name), error)
      except CannotWrite as refused:
        self.cannot_write = refused

  def _listen(self) -> None:
    for line in self._process.stderr:
      self._log.append(line.rstrip('\n'))
      self._progress.say(line.rstrip('\n'))


def train(
    workdir: Path,
    configs: Mapping[str, Config],
    workers: int | None,
    worker_flags: Sequence[str] = (),
) -> None:
  """Trains the given runs of a sweep to their results, showing progress.

  Args:
    workdir: of the sweep, with its files in place.
    configs: the runs that are not over.
    workers: how many; None: one a core on a CPU, one on an accelerator.
    worker_flags: of launch.worker, beside those of every worker.
  """
  waiting = Waiting(configs)
  cores = environment.cores()
  count = workers or (1 if environment.has_accelerator() else len(cores))
  count = max(1, min(count, len(configs)))
  shares = [cores[i::count] or cores for i in range(count)]
  with Progress(workdir, configs) as progress:
    crew = [Worker(workdir, share, waiting, progress, worker_flags) for share in shares]
    try:
      known = set(configs)
      while not progress.is_over():
        time.sleep(POLL_SECONDS)
        for refused in filter(None, (worker.cannot_write for worker in crew)):
          raise refused
        for name in workdir_lib.read_forks(workdir).keys() - known:
          known.add(name)
          run = workdir_lib.run_dir(workdir, name)
          if workdir_lib.read_result(run) is None:
            progress.add(name, config := workdir_lib.read_config(run))
            waiting.add(name, config)
        if waiting:
          crew = [_replaced(worker, workdir, waiting, progress) for worker in crew]
        progress.show([name for worker in crew for name in worker.running()])
    finally:
      for worker in crew:
        worker.stop()


def _replaced(worker: Worker, workdir: Path, waiting: Waiting, progress: Progress) -> Worker:
  """The worker, or a new one in the place of one that died with its runs."""
  if worker.is_alive():
    return worker
  if worker.could_not_start():
    raise RuntimeError(f'a worker cannot start; its last words:\n{worker.last_words()}')
  return Worker(workdir, worker.cores, waiting, progress, worker.flags)
