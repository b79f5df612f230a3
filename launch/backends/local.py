"""The local backend: worker processes on this machine.

On a CPU there is one single-threaded worker per core, which is faster than a worker with several
threads (BUILD_NOTES.md). An accelerator machine has one worker, whose populations use all its
devices, or several that divide its GPUs.
"""

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from launch.common import environment, preemption
from launch.common.progress import Progress
from launch.workers import assignments as assignments_lib
from launch.workers import shares
from launch.workers.worker_process import WorkerProcess
from stability.config import Config
from stability.errors import BadInput, CannotWrite
from stability.storage import leases as leases_lib
from stability.storage import run_files, sweeps

POLL_SECONDS = 0.5
# How long to wait for a dead worker's output: its children may keep the pipe open.
OUTPUT_SECONDS = 5
CHECK_SECONDS = 2  # between checks of the runs that other launchers train


class Worker:
  """A worker process with the threads that answer its requests and read its output."""

  def __init__(
      self,
      process: WorkerProcess,
      share: shares.Share,
      assignments: assignments_lib.Assignments,
      progress: Progress,
      starts: int = 1,
  ):
    """Starts the threads.

    Args:
      process: the process to serve.
      share: of this machine, that the process has.
      assignments: the runs to assign.
      progress: shows the output.
      starts: number of this attempt to start a worker, from 1; an attempt fails if the process ends
        before its first request.
    """
    self.process = process
    self.share = share
    self.starts = starts
    self.error: Exception | None = None  # raised by a thread or reported by the process
    self._assignments = assignments
    self._progress = progress
    self._has_asked = False
    self._output = threading.Thread(target=self._show_output, daemon=True)
    self._server = threading.Thread(target=self._serve, daemon=True)
    for thread in (self._output, self._server):
      thread.start()

  def is_alive(self) -> bool:
    return self._server.is_alive() or self._output.is_alive()

  def is_starting(self) -> bool:
    """Whether the process is alive and has made no request yet."""
    return self.is_alive() and not self._has_asked

  def could_not_start(self) -> bool:
    """Whether the process ended before its first request."""
    return not self.is_alive() and not self._has_asked

  def stop(self) -> None:
    """Kills the process; its runs can be continued from their checkpoints."""
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
        self.process.send(self._assignments.assign(self.process, request['like']))
      self._output.join(OUTPUT_SECONDS)
      self._assignments.reclaim(self.process)
    except Exception as error:
      self.error = error

  def _show_output(self) -> None:
    for line in self.process.output():
      self._progress.log(line)


def check(workers: int | None) -> None:
  """Raises BadInput if this number of workers cannot train here, with the devices asked for."""
  shares.check(workers)
  environment.check_workers()


def train(
    workdir: Path,
    configs: Mapping[str, Config],
    workers: int | None,
    worker_flags: Sequence[str] = (),
    owned: Collection[str] | None = None,
) -> None:
  """Trains runs of a sweep until all have results, and shows the progress.

  Other launchers may train runs of the same sweep. This one trains the remaining runs, waits for
  those of the others, and takes over runs that they abandon.

  Args:
    workdir: folder of the sweep, with sweep.json and its other files already written.
    configs: the unfinished runs, by name.
    workers: number of workers; None: one per core on a CPU, one on an accelerator.
    worker_flags: additional flags for launch.workers.worker.
    owned: the runs, finished ones included, whose forks this launcher trains; None: all runs.

  Raises:
    preemption.Preempted: a signal told this process, or one that shares the run, to end; the runs
      have been saved.
    RuntimeError: a worker cannot start.
  """
  count = workers or (1 if environment.has_accelerator() else environment.core_count())
  count = max(1, min(count, len(configs)))
  with (
      preemption.deferred() as is_preempted,
      leases_lib.LeaseManager() as leases,
      Progress(workdir, configs) as progress,
  ):
    # If several processes share a run, a worker cannot be restarted without the others.
    tries = 1 if worker_flags else assignments_lib.TRIES
    assignments = assignments_lib.Assignments(
        workdir, configs, leases, progress.log, tries, is_preempted
    )

    def start(share: shares.Share, starts: int = 1) -> Worker:
      process = WorkerProcess(workdir, share, worker_flags, leases.is_fresh)
      return Worker(process, share, assignments, progress, starts)

    def replaced_if_dead(worker: Worker) -> Worker:
      if worker.is_alive():
        return worker
      if worker_flags and worker.process.has_saved():  # as have the others that share the run
        raise preemption.Preempted
      if not worker.could_not_start():
        return start(worker.share)
      # A worker that received a signal, as SLURM sends to all processes of a job, is not to blame.
      is_faulty = worker.process.wait() >= 0 and not worker.process.has_saved()
      if is_faulty or worker.starts == assignments_lib.TRIES:
        raise RuntimeError(
            f'a worker cannot start: it {worker.process.end_reason()}; last output:\n'
            f'{worker.process.last_output()}'
        )
      return start(worker.share, worker.starts + 1)

    pool = [start(share) for share in shares.divide(count)]
    try:
      known = set(configs)
      last_check = time.monotonic()
      while not progress.is_finished() and not is_preempted():
        time.sleep(POLL_SECONDS)
        forks = sweeps.read_forks(workdir)
        for name in forks.keys() - known:
          known.add(name)
          if owned is not None and not sweeps.descends(name, forks, owned):
            continue
          run = run_files.run_dir(workdir, name)
          if run_files.read_result(run) is None:
            progress.add(name, config := run_files.read_config(run))
            assignments.add(name, config)
        for worker in pool:
          if worker.error is not None:
            raise worker.error
          if worker.is_alive() and (reason := worker.process.hang_reason()):
            worker.process.kill(reason)
        for process in assignments.workers_without_lease():
          process.kill('was too slow, and another launcher has taken over its runs')
        if time.monotonic() - last_check > CHECK_SECONDS:
          assignments.check_elsewhere()
          last_check = time.monotonic()
        if assignments.has_waiting():
          pool = [replaced_if_dead(worker) for worker in pool]
        assignments.release_finished()
        is_starting = any(worker.is_starting() for worker in pool)
        phases = [*(['starting workers'] if is_starting else []), *assignments.phases()]
        progress.update(assignments.running(), assignments.newly_finished(), phases)
      if not progress.is_finished():
        _save(pool, progress)
    finally:
      assignments.close()
      for worker in pool:
        worker.stop()
    if is_preempted():
      raise preemption.Preempted


def _save(pool: Sequence[Worker], progress: Progress) -> None:
  """Tells the workers to save their runs and exit; waits for preemption.grace_seconds at most.

  Raises the error of a worker that could not save, as when the disk is full.
  """
  progress.log(
      f'told to end: saving, for at most {preemption.GRACE_SECONDS} s,'
      f' {preemption.SECONDS_PER_RUN} s per run and {preemption.SECONDS_PER_GB} s per GB'
  )
  for worker in pool:
    worker.process.send({'stop': True})
  told = time.monotonic()
  while any(worker.is_alive() for worker in pool):
    sizes = [size for worker in pool for size in worker.process.saving]
    if time.monotonic() - told > preemption.grace_seconds(sizes):
      break
    time.sleep(0.05)
  for worker in pool:
    if worker.error is not None:
      raise worker.error
