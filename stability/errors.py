"""Errors that the user can fix."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator


class BadInput(ValueError):
  """An invalid input; the message is one line that names the input and says what is allowed.

  Programs print the line and exit with code 2. If a program ends with any other exception than this
  one or CannotWrite, that is a bug.
  """


class CannotWrite(OSError):
  """A file that the disk refuses to write: the disk is full, read-only, over quota or broken.

  This is not a failure of a run. Training stops, the files on disk are kept, and the same command
  resumes training once the cause is fixed. Programs print one line and exit with code 1.
  """

  def __str__(self) -> str:
    return (
        f'{self.filename}: cannot be written: {self.strerror}; everything on disk is kept, and the'
        ' same command resumes once this is fixed'
    )


# Errors that affect a whole disk; a missing folder, in contrast, affects only one run.
_DISK_ERRNOS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE),
)
_TENSORSTORE_ERRNO = re.compile(r"os_error_code='(\d+)'")  # in messages of its ValueErrors


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Raises CannotWrite for `path` if the disk refuses a write in this context."""
  try:
    yield
  except CannotWrite:
    raise
  except (OSError, ValueError) as error:
    code = getattr(error, 'errno', None)
    if match := _TENSORSTORE_ERRNO.search(str(error)):
      code = int(match[1])
    if code not in _DISK_ERRNOS:
      raise
    raise CannotWrite(code, os.strerror(code), os.fspath(path)) from error
