"""Standard streams of a program that outlives their readers.

A reader may see enough (`| head`), a terminal may close, and a container may start a program
without streams. None of these may end training, lose a report or print a traceback.
"""

import errno
import io
import os
import select
import shutil
import sys

_GONE = (errno.EPIPE, errno.EIO)  # nobody reads any more: a pipe or a terminal that is closed
_SIZES = range(20, 1001)  # characters and lines of a terminal that the environment may give


class _Stream(io.FileIO):
  """A file descriptor that drops what it can no longer write."""

  error: OSError | None = None  # why this lost output that somebody wants

  def write(self, data) -> int:
    try:
      while (written := super().write(data)) is None:  # not blocking, and full
        select.select([], [self], [])
      return written
    except OSError as error:
      if error.errno not in _GONE:
        self.error = error
      null = os.open(os.devnull, os.O_WRONLY)
      os.dup2(null, self.fileno())
      os.close(null)
      return len(data)


def protect() -> None:
  """Makes the standard streams of this process drop what they cannot write.

  Closed ones are replaced, since the next file that is opened would take their descriptor, and
  libraries write to it. Text that the encoding of a stream lacks is escaped. Streams of a notebook
  or a test are left alone.
  """
  for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
    try:
      os.fstat(number)
    except OSError:
      os.open(os.devnull, mode)  # takes the lowest free descriptor, which is this one
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    stream = getattr(sys, name)
    if stream is None or stream is getattr(sys, f'__{name}__'):
      setattr(sys, name, _protected(number, stream))
  if sys.stdin is None:
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
  for name in ('COLUMNS', 'LINES', 'JUPYTER_COLUMNS', 'JUPYTER_LINES'):  # absl and rich read them
    value = os.environ.get(name, '')
    if not (value.isascii() and value.isdigit() and int(value[:9]) in _SIZES):
      os.environ.pop(name, None)
  if shutil.get_terminal_size().columns < min(_SIZES):  # absl cannot wrap text to so few
    os.environ['COLUMNS'] = str(min(_SIZES))


def _protected(number: int, stream: io.TextIOWrapper | None) -> io.TextIOWrapper:
  raw = _Stream(number, 'w', closefd=False)
  if stream is not None:
    stream.flush()
  return io.TextIOWrapper(
      io.BufferedWriter(raw),
      encoding=stream.encoding if stream else 'utf-8',
      errors='backslashreplace',
      line_buffering=number == 2 or raw.isatty(),
  )


def lost_output() -> OSError | None:
  """Flushes standard output; returns why some of it could not be written, if that is so.

  A reader that is gone does not count, as it wants no more.
  """
  if not isinstance(sys.stdout, io.TextIOWrapper):
    return None
  sys.stdout.flush()
  return getattr(getattr(sys.stdout.buffer, 'raw', None), 'error', None)
