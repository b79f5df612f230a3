"""The errors that are a person's to mend."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator


class BadInput(ValueError):
  """Something given cannot be used: one line that names it and says what is allowed.

  Programs print the line and exit with code 2; every other exception is a fault of ours.
  """


class CannotWrite(OSError):
  """A disk that takes no more: full, read-only, out of quota, broken.

  No run's fault, and no run's result: what trains stops, what stands stays, and the same command
  goes on once the cause is mended. Programs print the one line and exit with code 1.
  """

  def __str__(self) -> str:
    return (
        f'{self.filename}: cannot be written: {self.strerror}; what is there stays, and the same'
        ' command goes on once that is mended'
    )


# Of a whole disk. That a folder is missing, say, is a matter of the one run it belongs to.
_DISK = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE),
)
_TENSORSTORE = re.compile(r"os_error_code='(\d+)'")  # in the text of its ValueErrors


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
  """Raises CannotWrite, with the path, for what the disk refuses while something is written."""
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
