"""How a program learns that it is to end: by a signal, or by the death of whoever started it.

SIGTERM and SIGUSR1 are a notice that the machine is about to be taken away: what is under way is
saved. A program that is told so ends with EXIT_CODE, by which schedulers know to start it again.
Outside of training there is nothing to save, and it ends at once: what it writes, it writes whole.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
EXIT_CODE = 75  # EX_TEMPFAIL: to be started again
# That workers may take to come to the end of a step and save. Those that compile or wait end at
# once, as they have nothing to save; so only a worker that hangs takes it all.
GRACE_SECONDS = 60
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>

_state = {'told': False, 'patient': False}


class Preempted(BaseException):
  """The process was told to end. Like KeyboardInterrupt, nobody's `except Exception` has it."""


def install() -> None:
  """From now on the signals raise Preempted in the main thread."""
  for number in SIGNALS:
    signal.signal(number, _notice)


def _notice(number: int, frame: FrameType | None) -> None:
  del number, frame
  _state['told'] = True
  if not _state['patient']:
    raise Preempted


@contextlib.contextmanager
def patient() -> Iterator[Callable[[], bool]]:
  """Inside, a notice raises nothing: what is yielded says whether there was one."""
  _state['told'], _state['patient'] = False, True
  try:
    yield lambda: _state['told']
  finally:
    _state['patient'] = False


def end_with_parent() -> None:
  """From now on the kernel kills this process when whoever started it dies, where it can: Linux.

  Whatever this process is doing then: no thread of Python's runs while a library holds its lock.
  Only for one whose standard input is a pipe from whoever started it, which does so in a thread
  that lives as long as itself: the kernel counts the death of that thread.
  """
  if not sys.platform.startswith('linux'):
    return
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  parent = select.poll()
  parent.register(sys.stdin.fileno(), 0)  # 0: only whether it is closed at the other end
  if parent.poll(0):  # it died before the kernel was asked
    os._exit(1)


def end_with_input() -> None:
  """From now on the process ends when its standard input closes: with whoever started it.

  Its workers see their own input close then.
  """
  end_with_parent()

  def listen() -> None:
    while os.read(sys.stdin.fileno(), 1024):
      pass
    os._exit(1)

  threading.Thread(target=listen, daemon=True).start()
