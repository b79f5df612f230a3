"""Preemption: how a program ends on a signal or when its parent dies.

SIGTERM and SIGUSR1 announce that the machine is about to be taken away, SIGHUP that the terminal is
closed. If runs are being trained, they are saved first. Otherwise there is nothing to save, since
files are written atomically, and the program exits at once. In both cases it exits with EXIT_CODE,
which tells a scheduler to start it again.

Programs call `install` before their other imports, which take a second. A signal that comes before
that, while Python itself starts (a few hundredths of a second), ends the process with code 143.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
EXIT_CODE = 75  # EX_TEMPFAIL
MESSAGE = 'preempted; to go on, start the same command again'  # a dry run's, too
# Workers are given this long to finish a step and save. Those that compile or wait have nothing to
# save and end at once, so only a worker that hangs takes all of it.
GRACE_SECONDS = 60
# Saving runs takes more: each GB is compressed, written, read again and hashed. The 0.2 GB/s are
# assumed; on two busy cores with a disk of 0.17 GB/s, a GB took 18 to 23 s.
SECONDS_PER_RUN, SECONDS_PER_GB = 0.3, 5
_PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>

_state = {'received': False, 'is_deferred': False, 'is_raised': False}


class Preempted(BaseException):
  """Raised when a signal tells the process to end. `except Exception` does not catch it."""


def install() -> None:
  """Makes the signals end the process with EXIT_CODE.

  Within `raised` they raise Preempted in the main thread, within `deferred` they wait. Elsewhere,
  and during any import outside `deferred`, the process exits at once: a module may catch the
  exception, and extension modules crash if their own imports raise it.
  """
  handle(_handle)


def handle(handler: Callable[[int, FrameType | None], None]) -> None:
  """Sets the handler of the signals; a SIGHUP that nohup has made ignored stays ignored."""
  for number in SIGNALS:
    if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
      signal.signal(number, handler)


def _handle(number: int, frame: FrameType | None) -> None:
  del number
  _state['received'] = True
  if _state['is_deferred']:
    return
  if _state['is_raised'] and not _is_import(frame):
    raise Preempted
  with contextlib.suppress(OSError):  # standard error may be closed
    os.write(2, f'{MESSAGE}\n'.encode())
  os._exit(EXIT_CODE)


def _is_import(frame: FrameType | None) -> bool:
  """Whether this frame or one of its callers is importing a module."""
  while frame and frame.f_code.co_filename != '<frozen importlib._bootstrap>':
    frame = frame.f_back
  return frame is not None


@contextlib.contextmanager
def raised() -> Iterator[None]:
  """A context in which signals raise Preempted, which the caller catches."""
  before, _state['is_raised'] = _state['is_raised'], True
  try:
    yield
  finally:
    _state['is_raised'] = before


@contextlib.contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
  """A context in which signals raise nothing; yields a function that returns whether one came."""
  _state['received'], _state['is_deferred'] = False, True
  try:
    yield lambda: _state['received']
  finally:
    _state['is_deferred'] = False


def grace_seconds(sizes: Collection[float]) -> int:
  """How long workers that save runs may take to end.

  Args:
    sizes: the size of each run's state in bytes.
  """
  saving = SECONDS_PER_RUN * len(sizes) + SECONDS_PER_GB * sum(sizes) / 1e9
  return GRACE_SECONDS + int(saving)


def end_with_parent() -> None:
  """On Linux, makes the kernel kill this process when its parent dies.

  A Python thread could not do this, since none runs while a library holds the interpreter lock. The
  kernel watches the parent's thread that started this process, which must live as long as the
  parent. Standard input must be a pipe from the parent.
  """
  if not sys.platform.startswith('linux'):
    return
  ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
  poll = select.poll()
  poll.register(sys.stdin.fileno(), 0)  # 0: report only that the other end is closed
  if poll.poll(0):  # the parent died before the call to prctl
    os._exit(1)


def end_with_stdin() -> None:
  """Makes this process end as on SIGTERM when standard input closes; runs are saved first.

  Standard input must be a pipe from the parent, so that it closes when the parent dies.
  """

  def listen() -> None:
    while os.read(sys.stdin.fileno(), 1024):
      pass
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=listen, daemon=True).start()
