"""A worker process as its launcher sees it: what it asks, its signs of life, how it ended."""

import collections
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.common import environment, preemption

Json = dict[str, Any]

COMMAND = (sys.executable, '-m', 'launch.workers.worker')
# It beats every two seconds by a thread of its own, compiling or not. One that is this late is
# stopped, or hangs with all its threads.
SILENT_SECONDS = 60
# The work itself moves every few seconds while it trains, and not at all while it compiles: the
# longest compilation that is known is far below this. Beyond it the main thread hangs.
STUCK_SECONDS = 3600
_LOG_LINES = 50  # of its output, kept for the error of a run that it died with


class WorkerProcess:
  """launch.workers.worker in a process of its own, which ends with this one."""

  def __init__(
      self,
      workdir: Path,
      cores: Sequence[int],
      flags: Sequence[str] = (),
      is_fresh: Callable[[], bool] = lambda: True,
  ):
    """
    Args:
      workdir: of the sweep.
      cores: for the worker to stay on.
      flags: of launch.workers.worker, beside these.
      is_fresh: whether to answer its signs of life: left without, it ends.
    """
    self.members = 1  # runs on a device, as it last said
    self._is_fresh = is_fresh
    self._killed: str | None = None
    self._log: collections.deque[str] = collections.deque(maxlen=_LOG_LINES)
    self._heard, self._still = time.monotonic(), 0.0
    self._process = subprocess.Popen(
        [*COMMAND, f'--workdir={workdir}', f'--cores={",".join(map(str, cores))}', *flags],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment.worker_environment(),
        start_new_session=True,  # Ctrl-C is the launcher's; a worker ends when its input closes
    )

  @property
  def pid(self) -> int:
    return self._process.pid

  def requests(self) -> Iterator[Json]:
    """What it asks, until it ends."""
    for line in self._process.stdout:
      self._heard = time.monotonic()
      message = json.loads(line)
      if 'beat' in message:
        self._still, self.members = message['beat'], message['members']
        if self._is_fresh():
          self.tell({'alive': True})
      else:
        yield message

  def output(self) -> Iterator[str]:
    """The lines it prints, until it ends."""
    for line in self._process.stderr:
      self._log.append(line.rstrip('\n'))
      yield self._log[-1]

  def last_words(self) -> str:
    """The last lines it printed."""
    return '\n'.join(self._log)

  def tell(self, message: Json) -> None:
    """Answers, or tells it to stop. Whether it is dead shows elsewhere."""
    with contextlib.suppress(OSError, ValueError):
      print(json.dumps(message), file=self._process.stdin, flush=True)

  def hangs(self) -> str | None:
    """What shows that it hangs, if anything does."""
    silent = time.monotonic() - self._heard
    if silent > SILENT_SECONDS:
      return f'gave no sign of life for {silent:.0f} s and was killed'
    if self._still > STUCK_SECONDS:
      return f'got no further for {self._still:.0f} s and was killed'
    return None

  def kill(self, why: str | None = None) -> None:
    """Ends it; its runs can be continued from their checkpoints."""
    self._killed = self._killed or why
    self._process.kill()

  def wait(self) -> int:
    """Its exit code, once it has ended."""
    return self._process.wait()

  def end(self) -> str:
    """How it ended, in words that go on from 'its worker'."""
    code = self.wait()
    if self._killed:
      return self._killed
    if code == -signal.SIGKILL:
      return 'was killed (signal 9), by the system for want of memory or by somebody'
    if code < 0:
      return f'was ended by signal {-code}'
    return f'ended with exit code {code}'

  def has_saved(self) -> bool:
    """Whether it has ended because it was told to, with all saved."""
    return self._process.poll() == preemption.EXIT_CODE

  def ran_out_of_memory(self) -> bool:
    """Whether it may have been the kernel that killed it."""
    return self.wait() == -signal.SIGKILL and not self._killed
