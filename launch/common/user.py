"""The name of the user."""

import getpass
import os


def name() -> str:
  """The name of the user; a container may run with a number that has no name."""
  try:
    return getpass.getuser()
  except (ImportError, KeyError, OSError):  # of the versions of Python
    return f'uid {os.getuid()}' if hasattr(os, 'getuid') else '?'
