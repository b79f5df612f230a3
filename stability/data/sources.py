"""Text on disk -> documents, and their division into training and validation text."""

import collections
import hashlib
import os
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from stability.errors import BadInput

Document = tuple[str, bytes]  # name, text without NUL bytes

# Of the embedded text: tests, other people's packages, generated tables and build records.
_LEFT_OUT_FOLDERS = {
    'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', 'encodings', 'pydoc_data'
}  # fmt: skip
_LEFT_OUT_PREFIXES = ('config-', '_sysconfigdata', 'html/entities.py', 'stringprep.py')


def documents(path: str | None) -> list[Document]:
  """The documents of a file or a folder, ordered by name; None: the Python library's own sources.

  Text is bytes in any encoding. Of a folder, hidden files, binary ones (a NUL byte in the first
  8 KiB) and symbolic links are left out: a link's target inside the folder has its own name, and
  one outside was not asked for. NUL bytes further on are removed, since token 0 ends a document.
  Raises BadInput where the path is missing, cannot be read or holds no text.
  """
  root = Path(sysconfig.get_path('stdlib') if path is None else path)
  field = f'config.data.path={str(root)!r}' + (' (the embedded text)' if path is None else '')
  try:
    if root.is_dir():
      files = _library_files(root) if path is None else files_under(root)
    elif root.is_file():
      files = {root.name: root}
    else:
      raise BadInput(f'{field}: no such file or folder')
    # A name may hold bytes that are not UTF-8; what is written to JSON and shown may not.
    found = [
        (os.fsencode(name).decode(errors='replace'), _text(file))
        for name, file in sorted(files.items())
    ]
  except OSError as error:
    raise BadInput(f'{field}: cannot be read: {error}') from error
  found = [(name, text) for name, text in found if text]
  if not found:
    raise BadInput(f'{field}: holds no text (hidden, binary, empty and linked files do not count)')
  return found


def split(
    documents: Sequence[Document], validation_fraction: float = 0.05
) -> tuple[list[Document], list[Document]]:
  """Divides documents into (training, validation), each in the order given.

  Sides follow from the SHA-256 of the texts alone, so the order and names of files play no role
  and equal texts share a side: no validation document is in the training text. Where a document
  exceeds the validation share, the long ones are cut at line ends first. Raises BadInput where a
  side would be empty: text of a few bytes, or one passage repeated.
  """
  total = sum(len(text) for _, text in documents)
  share = validation_fraction * total
  if max(len(text) for _, text in documents) > share:  # always so with fewer than 20
    most = max(1, int(share / 2))
    documents = [piece for name, text in documents for piece in _pieces(name, text, most)]

  digests = [hashlib.sha256(text).digest() for _, text in documents]
  sizes = collections.Counter()  # bytes of all documents with that text
  for digest, (_, text) in zip(digests, documents, strict=True):
    sizes[digest] += len(text)
  held_out, held = set(), 0
  for digest in sorted(sizes):
    # A text repeated so often that it would take twice the share is left to training.
    if held < share and held + sizes[digest] <= 2 * share:
      held_out.add(digest)
      held += sizes[digest]
  if not 0 < held < total:
    raise BadInput(
        f'config.data.path: {total} bytes of text cannot be divided into training and validation'
        ' text: too short, or one passage repeated'
    )
  train, validation = [], []
  for digest, document in zip(digests, documents, strict=True):
    (validation if digest in held_out else train).append(document)
  return train, validation


def files_under(root: Path, left_out: Collection[str] = ()) -> dict[str, Path]:
  """Regular files under root by relative posix path, but not hidden ones and folders left out."""

  def fail(error: OSError) -> None:
    raise error  # os.walk would pass over a folder that cannot be read

  files = {}
  for folder, folders, names in os.walk(root, onerror=fail):
    folders[:] = [name for name in folders if not name.startswith('.') and name not in left_out]
    for name in names:
      file = Path(folder, name)
      if not name.startswith('.') and file.is_file() and not file.is_symlink():
        files[file.relative_to(root).as_posix()] = file
  return files


def _library_files(root: Path) -> dict[str, Path]:
  """The embedded text: the sources under root that people wrote to be used."""
  return {
      name: file
      for name, file in files_under(root, _LEFT_OUT_FOLDERS).items()
      if name.endswith('.py') and not name.startswith(_LEFT_OUT_PREFIXES)
  }


def _text(file: Path) -> bytes:
  """A file's bytes without NULs; nothing of a binary file."""
  with file.open('rb') as stream:
    head = stream.read(8192)
    return b'' if b'\0' in head else head + stream.read().replace(b'\0', b'')


def _pieces(name: str, text: bytes, most: int) -> Iterator[Document]:
  """Cuts a text after line ends, or where a line is too long inside it, into `most` bytes or less.

  A piece is named by its place in the document: name[start:end].
  """
  if len(text) <= most:
    yield name, text
    return
  start = 0
  while start < len(text):
    end = start + most
    if end < len(text):
      end = text.rfind(b'\n', start, end) + 1 or end
    end = min(end, len(text))
    yield f'{name}[{start}:{end}]', text[start:end]
    start = end
