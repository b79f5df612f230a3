"""The split of text files that come without a validation split of their own: whole files."""

import hashlib
import itertools
from collections.abc import Sequence

from stability.data import splits
from stability.data.tokenize.readers import Part, is_text


def hold_out(parts: Sequence[Part], fraction: float, max_bytes: float) -> list[str]:
  """Sets the split of the text files among the parts, so that each is in one split.

  The choice depends on the beginnings of the files and on their sizes on disk. If one file
  holds nearly all the text, no split is set, and the hashes of its pieces decide.

  Args:
    parts: the parts of an input without a validation split.
    fraction: of the text to hold out.
    max_bytes: about how much of the text will be used.

  Returns:
    The names of the files that have pieces in both splits.

  Raises:
    BadInput: the beginning of a file cannot be read.
  """
  files = [part for part in parts if is_text(part)]
  if not files or not fraction:
    return []
  beginnings = [list(itertools.islice(file.documents(0), 2)) for file in files]
  digests = [hashlib.sha256(pieces[0] if pieces else b'').digest() for pieces in beginnings]
  sizes = dict.fromkeys(digests, 0)
  for digest, file in zip(digests, files, strict=True):
    sizes[digest] += file.size
  held_out = splits.hold_out(sizes, fraction * min(sum(sizes.values()), max_bytes))
  if not held_out:
    return [file.name for file, pieces in zip(files, beginnings, strict=True) if len(pieces) > 1]
  for digest, file in zip(digests, files, strict=True):
    file.split = 'validation' if digest in held_out else 'train'
  return []
