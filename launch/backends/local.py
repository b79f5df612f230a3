"""The local backend: worker processes on this machine.

On a CPU there is one single-threaded worker a core, which beats threads (BUILD_NOTES.md); an
accelerator machine gets one worker, whose populations spread over its devices.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.common import environment, preemption
from launch.common.progress import Progress
from launch.workers import assignments as assignments_lib
from launch.workers.worker_process import WorkerProcess
from stability.config import Config
from stability.errors import BadInput, CannotWrite
from stability.storage import leases as leases_lib
from stability.storage import run_files, sweeps

POLL_SECONDS = 0.5
LISTEN_SECONDS = 5  # for a dead worker's last words; a process of its own may keep the pipe open
LOOK_SECONDS = 2  # between looks at what other launchers have in hand


class Worker:
  """A worker process, served by threads."""

  def __init__(
      self,
      process: WorkerProcess,
      cores: Sequence[int],
      assignments: assignments_lib.Assignments,
      progress: Progress,
      starts: int = 1,
  ):
    """starts: of workers in this one's place, one after another, that died before they asked."""
    self.process = process
    self.cores = cores
    self.starts = starts
    self.error: Exception | None = None  # in a thread that serves it, or told by the process
    self._assignments = assignments
    self._progress = progress
    self._has_asked = False
    self._listener = threading.Thread(target=self._listen, daemon=True)
    self._server = threading.Thread(target=self._serve, daemon=True)
    for thread in (self._listener, self._server):
      thread.start()

  def is_alive(self) -> bool:
    return self._server.is_alive() or self._listener.is_alive()

  def could_not_start(self) -> bool:
    """Whether it died before it asked for a run."""
    return not self.is_alive() and not self._has_asked

  def stop(self) -> None:
    """Ends the process; its runs can be continued from their checkpoints."""
    self.process.kill('was ended')
    self.process.wait()

  def _serve(self) -> None:
    try:
      for request in self.process.requests():
        self._has_asked = True
        if 'cannot_write' in request:
          raise CannotWrite(*request['cannot_write'])
        if 'bad_input' in request:
          raise BadInput(request['bad_input'])
        self.process.tell(self._assignments.give(self.process, request['like']))
      self._listener.join(LISTEN_SECONDS)
      self._assignments.take_back(self.process)
    except Exception as error:
      self.error = error

  def _listen(self) -> None:
    for line in self.process.output():
      self._progress.say(line)


def train(
    workdir: Path,
    configs: Mapping[str, Config],
    workers: int | None,
    worker_flags: Sequence[str] = (),
) -> None:
  """Trains the given runs of a sweep to their results, showing progress.

  Other launchers may be at work on them: this one trains what they do not, waits for what they do,
  and takes over what they leave. Raises preemption.Preempted, everything saved, if told to end.

  Args:
    workdir: of the sweep, with its files in place.
    configs: the runs that are not over.
    workers: how many; None: one a core on a CPU, one on an accelerator.
    worker_flags: of launch.workers.worker, beside those of every worker.
  """
  cores = environment.cores()
  count = workers or (1 if environment.has_accelerator() else len(cores))
  count = max(1, min(count, len(configs)))
  shares = [cores[i::count] or cores for i in range(count)]
  with (
      preemption.patient() as is_told,
      leases_lib.LeaseManager() as leases,
      Progress(workdir, configs) as progress,
  ):
    # Where processes share a run, one alone cannot be started again.
    tries = 1 if worker_flags else assignments_lib.TRIES
    assignments = assignments_lib.Assignments(workdir, configs, leases, progress.say, tries)

    def worker(share: Sequence[int], starts: int = 1) -> Worker:
      process = WorkerProcess(workdir, share, worker_flags, leases.is_fresh)
      return Worker(process, share, assignments, progress, starts)

    def kept(one: Worker) -> Worker:
      """It, or a new one in the place of one that died while there is work."""
      if one.is_alive():
        return one
      if not one.could_not_start():
        return worker(one.cores)
      # One that was told to end, as SLURM tells all processes of a job, can start.
      is_faulty = one.process.wait() >= 0 and not one.process.has_saved()
      if is_faulty or one.starts == assignments_lib.TRIES:
        words = one.process.last_words()
        raise RuntimeError(f'a worker cannot start: it {one.process.end()}; last words:\n{words}')
      return worker(one.cores, one.starts + 1)

    crew = [worker(share) for share in shares]
    try:
      known = set(configs)
      looked = time.monotonic()
      while not progress.is_over() and not is_told():
        time.sleep(POLL_SECONDS)
        for name in sweeps.read_forks(workdir).keys() - known:
          known.add(name)
          run = run_files.run_dir(workdir, name)
          if run_files.read_result(run) is None:
            progress.add(name, config := run_files.read_config(run))
            assignments.add(name, config)
        for one in crew:
          if one.error is not None:
            raise one.error
          if one.is_alive() and (why := one.process.hangs()):
            one.process.kill(why)
        for process in assignments.lost():
          process.kill('was late, so that another launcher took over what it had in hand')
        if time.monotonic() - looked > LOOK_SECONDS:
          assignments.look_elsewhere()
          looked = time.monotonic()
        crew = [kept(one) if assignments.has_waiting() else one for one in crew]
        assignments.settle()
        progress.show(assignments.running(), assignments.over())
      if not progress.is_over():
        _await_saved(crew, progress)
    finally:
      assignments.close()
      for one in crew:
        one.stop()
    if is_told():
      raise preemption.Preempted


def _await_saved(crew: Sequence[Worker], progress: Progress) -> None:
  """Has the workers save what they have in hand; they end then."""
  progress.say(f'told to end: saving, for {preemption.GRACE_SECONDS} s at the most')
  for one in crew:
    one.process.tell({'stop': True})
  deadline = time.monotonic() + preemption.GRACE_SECONDS
  while time.monotonic() < deadline and any(one.is_alive() for one in crew):
    time.sleep(0.05)
