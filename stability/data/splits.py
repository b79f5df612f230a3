"""The split of documents into training and validation text.

Whole documents are held out: a document with text in both splits would make the validation loss of
a model that remembers it too low. Only where one document holds nearly all the text, it is cut.
"""

import collections
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence

from stability.data.sources import Document
from stability.errors import BadInput

VALIDATION_FRACTION = 0.05
_SHOWN = 3  # names of documents in a line


@dataclasses.dataclass(frozen=True)
class Split:
  """Documents, or pieces of documents, of each split in the order in which they were given.

  A piece is named by its byte range in the document: name[start:end].
  """

  train: list[Document]
  validation: list[Document]
  cut: list[str]  # names of the documents that have pieces in both splits

  def lines(self) -> list[str]:
    """What a user should know: documents that are cut, or a long validation text."""
    if self.cut:
      return [cut_line(self.cut)]
    train, validation = ([len(text) for _, text in part] for part in (self.train, self.validation))
    return share_lines(train, validation, VALIDATION_FRACTION)


def share_lines(train: Sequence[int], validation: Sequence[int], fraction: float) -> list[str]:
  """A line on documents that have over twice the fraction to hold out; their sizes by split."""
  held_out, total = sum(validation), sum(train) + sum(validation)
  if held_out <= 2 * fraction * total:
    return []
  share = f'{100 * held_out / total:.2g} % of the text'
  documents = len(train) + len(validation)
  return [f'validation text: {len(validation):,} of {documents:,} documents, {share}']


def cut_line(names: Sequence[str]) -> str:
  """The line that says which documents are cut."""
  if len(names) == 1:
    return f'text: {names[0]} is cut: part of it is training text, part is validation text'
  shown = ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')
  return (
      f'text: {len(names):,} documents are cut: part of each is training text, part is validation'
      f' text ({shown})'
  )


def train_validation_split(documents: Sequence[Document]) -> Split:
  """Splits documents, whole unless all but the largest are too short for a validation text.

  The split depends only on the SHA-256 of the texts, not on the order or names of files, and equal
  texts go to the same split, so no validation document occurs in the training text.

  Raises:
    BadInput: one split would be empty, because the text is tiny or one repeated passage.
  """
  digests = [hashlib.sha256(text).digest() for _, text in documents]
  held_out = hold_out(_sizes(digests, documents), VALIDATION_FRACTION * _bytes(documents))
  split = _split(documents, digests, held_out) if held_out else split_of_pieces(documents)
  if split is None:
    raise BadInput(
        f'config.data.path: {_bytes(documents)} bytes of text cannot be split into training and'
        ' validation text: too short, or one repeated passage'
    )
  return split


def split_of_pieces(documents: Sequence[Document]) -> Split | None:
  """Splits documents after long ones are cut at line ends; see train_validation_split.

  Nothing is cut if no document is longer than the validation text. None: one split would be empty.
  """
  share = VALIDATION_FRACTION * _bytes(documents)
  pieces, whole = list(documents), {}
  if max(len(text) for _, text in documents) > share:
    cut = [(name, list(_pieces(name, text, max(1, int(share / 2))))) for name, text in documents]
    whole = {piece: name for name, parts in cut for piece, _ in parts if len(parts) > 1}
    pieces = [piece for _, parts in cut for piece in parts]
  digests = [hashlib.sha256(text).digest() for _, text in pieces]
  held_out = _fill(_sizes(digests, pieces), share)
  return _split(pieces, digests, held_out, whole) if held_out else None


def hold_out(sizes: Mapping[bytes, int], share: float) -> set[bytes]:
  """The texts to hold out: about `share` bytes, in the order of their digests.

  Args:
    sizes: digest of a text -> total bytes of all its copies.
    share: bytes wanted. Where whole texts allow no other choice, the result has more.

  Returns:
    Digests; none if all texts but the largest have less than half the share.
  """
  held_out = _fill(sizes, share)
  if sum(sizes[digest] for digest in held_out) >= share / 2:
    return held_out
  others = sorted(sizes.keys() - held_out, key=lambda digest: (sizes[digest], digest))[:-1]
  return {*held_out, others[0]} if others else set()


def _fill(sizes: Mapping[bytes, int], share: float) -> set[bytes]:
  """Texts in the order of their digests until they have `share` bytes.

  A text that leads above twice the share, or leaves less than the largest one, is passed over.
  """
  limit = min(2 * share, sum(sizes.values()) - max(sizes.values()))
  held_out, held_out_bytes = set(), 0
  for digest in sorted(sizes):
    if held_out_bytes < share and held_out_bytes + sizes[digest] <= limit:
      held_out.add(digest)
      held_out_bytes += sizes[digest]
  return held_out


def _split(
    documents: Sequence[Document],
    digests: Sequence[bytes],
    held_out: set[bytes],
    whole: Mapping[str, str] | None = None,
) -> Split:
  """The split that holds out some digests; whole: name of a piece -> that of its document."""
  train, validation = [], []
  for digest, document in zip(digests, documents, strict=True):
    (validation if digest in held_out else train).append(document)
  whole = whole or {}
  trained = {whole[name] for name, _ in train if name in whole}
  cut = dict.fromkeys(whole[name] for name, _ in validation if whole.get(name) in trained)
  return Split(train, validation, list(cut))


def _sizes(digests: Sequence[bytes], documents: Sequence[Document]) -> collections.Counter[bytes]:
  sizes = collections.Counter()
  for digest, (_, text) in zip(digests, documents, strict=True):
    sizes[digest] += len(text)
  return sizes


def _bytes(documents: Sequence[Document]) -> int:
  return sum(len(text) for _, text in documents)


def _pieces(name: str, text: bytes, max_bytes: int) -> Iterator[Document]:
  """Cuts a text into pieces of at most `max_bytes`, at line ends where possible."""
  if len(text) <= max_bytes:
    yield name, text
    return
  start = 0
  while start < len(text):
    end = start + max_bytes
    if end < len(text):
      end = text.rfind(b'\n', start, end) + 1 or end
    end = min(end, len(text))
    yield f'{name}[{start}:{end}]', text[start:end]
    start = end
