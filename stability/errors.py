"""Errors that a person can fix."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator


class BadInput(ValueError):
  """An input that cannot be used; the message is one line that names it and what is allowed.

  Programs print the line and exit with code 2. Every other exception is a bug.
  """


class CannotWrite(OSError):
  """A disk that refuses to be written: full, read-only, over quota, broken.

  It is the fault and the result of no run: training stops, what is on the disk stays, and the same
  command resumes once the cause is fixed. Programs print one line and exit with code 1.
  """

  def __str__(self) -> str:
    return (
        f'{self.filename}: cannot be written: {self.strerror}; everything on disk is kept, and the'
        ' same command resumes once this is fixed'
    )


# Errors of a whole disk. A missing folder, for example, concerns the one run it belongs to.
_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE),
)
_TENSORSTORE = re.compile(r"os_error_code='(\d+)'")  # in the text of its ValueErrors


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Raises CannotWrite, naming the path, if the disk refuses a write."""
  try:
    yield
  except CannotWrite:
    raise
  except (OSError, ValueError) as error:
    number = getattr(error, 'errno', None)
    if found := _TENSORSTORE.search(str(error)):
      number = int(found[1])
    if number not in _DISK:
      raise
    raise CannotWrite(number, os.strerror(number), os.fspath(path)) from error
