"""The launcher's side of a worker process: its requests, its heartbeat and how it ended."""

import collections
import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.common import environment, preemption, programs
from launch.workers.shares import Share

Json = dict[str, Any]

COMMAND = tuple(programs.command('launch.workers.worker'))
# A thread of the worker sends a heartbeat every two seconds, even while the worker compiles. A
# worker whose heartbeat is this late has been stopped, or hangs with all its threads.
SILENT_SECONDS = 60
# The main thread makes progress every few seconds while it trains, and when a program is compiled.
# No compilation is known to take nearly this long: a main thread without progress for longer hangs.
STUCK_SECONDS = 3600
_LOG_LINES = 50  # number of last lines kept for the error of a run whose worker dies


class WorkerProcess:
  """launch.workers.worker in a process of its own, which ends with this one."""

  def __init__(
      self,
      workdir: Path,
      share: Share,
      flags: Sequence[str] = (),
      is_fresh: Callable[[], bool] = lambda: True,
  ):
    """Starts the process.

    Args:
      workdir: folder of the sweep.
      share: of this machine, for the worker.
      flags: additional flags for launch.workers.worker.
      is_fresh: returns whether to answer a heartbeat; a worker that gets no answers exits.
    """
    self.members = 1  # runs per device, as last reported
    self.phase = 'starting'  # as last reported; see launch/workers/worker.py
    self.saving: list[int] = []  # bytes of each state that it saves before it ends
    self._is_fresh = is_fresh
    self._killed_because: str | None = None
    self._log: collections.deque[str] = collections.deque(maxlen=_LOG_LINES)
    self._last_heard, self._seconds_stuck = time.monotonic(), 0.0
    self._process = subprocess.Popen(
        [*COMMAND, f'--workdir={workdir}', f'--cores={",".join(map(str, share.cores))}', *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding='utf-8',
        errors='replace',  # libraries may print anything
        env=environment.worker_environment() | share.variables,
        start_new_session=True,  # so that Ctrl-C reaches only the launcher
    )

  @property
  def pid(self) -> int:
    return self._process.pid

  def requests(self) -> Iterator[Json]:
    """The worker's requests, until it ends. Its reports are handled here."""
    for line in self._process.stdout:
      self._last_heard = time.monotonic()
      message = json.loads(line)
      if 'beat' in message:
        self._seconds_stuck, self.members = message['beat'], message['members']
        self.phase = message['phase']
        if self._is_fresh():
          self.send({'alive': True})
      elif 'saving' in message:
        self.saving = message['saving']
      else:
        yield message

  def output(self) -> Iterator[str]:
    """The lines that the worker prints, until it ends."""
    for line in self._process.stderr:
      self._log.append(line.rstrip('\n'))
      yield self._log[-1]

  def last_output(self) -> str:
    """The last lines that the worker printed."""
    return '\n'.join(self._log)

  def send(self, message: Json) -> None:
    """Sends an answer or {'stop': True}; does nothing if the worker has died."""
    with contextlib.suppress(OSError, ValueError):
      print(json.dumps(message), file=self._process.stdin, flush=True)

  def hang_reason(self) -> str | None:
    """Why the worker counts as hanging; None if it does not."""
    silent = time.monotonic() - self._last_heard
    if silent > SILENT_SECONDS:
      return f'sent no heartbeat for {silent:.0f} s and was killed'
    if self._seconds_stuck > STUCK_SECONDS:
      return f'made no progress for {self._seconds_stuck:.0f} s and was killed'
    return None

  def kill(self, because: str | None = None) -> None:
    """Kills the worker; its runs can be continued from their checkpoints."""
    self._killed_because = self._killed_because or because
    self._process.kill()

  def wait(self) -> int:
    """Waits for the worker to end; returns its exit code."""
    return self._process.wait()

  def end_reason(self) -> str:
    """How the worker ended, as a predicate: 'ended with exit code 3', for example."""
    code = self.wait()
    if self._killed_because:
      return self._killed_because
    if code == -signal.SIGKILL:
      return 'was killed (signal 9), by the system for lack of memory or by a user'
    if code < 0:
      return f'was ended by signal {-code}'
    return f'ended with exit code {code}'

  def has_saved(self) -> bool:
    """Whether the worker was told to end and has saved its runs."""
    return self._process.poll() == preemption.EXIT_CODE

  def may_have_run_out_of_memory(self) -> bool:
    """Whether the kernel may have killed the worker for lack of memory."""
    return self.wait() == -signal.SIGKILL and not self._killed_because
