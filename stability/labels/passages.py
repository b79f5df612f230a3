"""Passages of documents, with their offsets in bytes."""

import hashlib
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from stability.data.sources import Document

_SHINGLE = 16  # characters; what two passages are compared by
_SHARED = 0.5  # share of the shorter one's shingles that makes two passages near-duplicates


class Passage(NamedTuple):
  """A part of a document, or a whole one."""

  document: str
  start: int  # in bytes of the document
  end: int
  text: str
  encoding: str  # of the document

  @property
  def task(self) -> str:
    """A name that depends on document, place and text."""
    content = f'{self.document}\0{self.start}\0{self.text}'
    return hashlib.sha256(content.encode(errors='surrogatepass')).hexdigest()[:12]


def cut(documents: Iterable[Document], length: int) -> Iterator[Passage]:
  """Cuts documents into passages; those without anything but white space are left out.

  Args:
    documents: name and text of each. Text that is not UTF-8 is read as Latin-1.
    length: the most characters of a passage, which ends at a line end if it has one in its second
      half; 0: whole documents.
  """
  for name, content in documents:
    encoding = 'utf-8'
    try:
      text = content.decode()
    except UnicodeDecodeError:
      encoding, text = 'latin-1', content.decode('latin-1')
    start = offset = 0
    while start < len(text):
      end = min(start + length, len(text)) if length else len(text)
      if end < len(text):
        line_end = text.rfind('\n', start + length // 2, end)
        end = end if line_end < 0 else line_end + 1
      size = len(text[start:end].encode(encoding))
      if not text[start:end].isspace():
        yield Passage(name, offset, offset + size, text[start:end], encoding)
      start, offset = end, offset + size


def without_near_duplicates(
    passages: Iterable[Passage], count: float, characters: float = math.inf
) -> tuple[list[Passage], int]:
  """The first passages that are no near-duplicates of earlier ones.

  Two passages are near-duplicates if half of the 16-character pieces of the shorter one are in the
  other, whatever their white space and case.

  Args:
    passages: in the order in which they are wanted.
    count: the number to choose.
    characters: the length of text with which it also ends.

  Returns:
    The passages, and how many were left out before the last of them.
  """
  chosen: list[Passage] = []
  shingles: list[set[str]] = []
  holders: dict[str, list[int]] = {}  # positions in `chosen` by shingle
  left_out = length = 0
  for passage in passages:
    if len(chosen) == count or length >= characters:
      break
    own = _shingles(passage.text)
    shared: dict[int, int] = {}
    for shingle in own:
      for other in holders.get(shingle, ()):
        shared[other] = shared.get(other, 0) + 1
    if any(n >= _SHARED * min(len(own), len(shingles[other])) for other, n in shared.items()):
      left_out += 1
      continue
    for shingle in own:
      holders.setdefault(shingle, []).append(len(chosen))
    chosen.append(passage)
    length += len(passage.text)
    shingles.append(own)
  return chosen, left_out


def _shingles(text: str) -> set[str]:
  words = ' '.join(text.lower().split())
  return {words[i : i + _SHINGLE] for i in range(max(1, len(words) - _SHINGLE + 1))}
