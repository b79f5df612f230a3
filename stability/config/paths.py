"""Paths as users write them: `~` is the home folder, and URLs are refused."""

import os
import re

from stability.errors import BadInput

# pathlib turns the // of a URL into /.
_URL = re.compile('[A-Za-z][A-Za-z0-9+.-]+:/')


def is_url(text: str) -> bool:
  """Whether a text is a URL, such as gs://bucket/folder, and not a path."""
  return _URL.match(text) is not None


def local(text: str) -> str:
  """The path with `~` and `~USER` replaced by the home folder.

  Raises BadInput, whose message says what is allowed, for a URL and if there is no such home.
  """
  if is_url(text):
    raise BadInput('must be a path in the file system, not a URL')
  expanded = os.path.expanduser(text)
  if expanded.startswith('~'):
    home = text.partition('/')[0]
    raise BadInput(f'there is no home folder {home}; for a file of that name, write ./{text}')
  return expanded
