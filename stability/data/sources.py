"""Documents from text files, and their split into training and validation text."""

import collections
import hashlib
import os
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from stability.errors import BadInput

Document = tuple[str, bytes]  # name, text without NUL bytes

VALIDATION_FRACTION = 0.05

# Parts of the standard library that are left out of the embedded text: tests, third-party packages,
# generated tables and build records.
_EXCLUDED_FOLDERS = {
    'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', 'encodings', 'pydoc_data'
}  # fmt: skip
_EXCLUDED_PREFIXES = ('config-', '_sysconfigdata', 'html/entities.py', 'stringprep.py')


def read_documents(path: str | None) -> list[Document]:
  """The documents of a file or folder, sorted by name.

  Text may have any encoding. In a folder, hidden files, binary files (a NUL byte in the first 8
  KiB) and symbolic links are skipped: a link inside the folder would duplicate its target, and one
  that leads outside was not asked for. Later NUL bytes are removed, since token 0 ends a document.

  Args:
    path: a file or folder; None: the source code of Python's standard library.

  Raises:
    BadInput: the path is missing, cannot be read or holds no text.
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
    # File names may hold bytes that are not UTF-8, which JSON cannot represent.
    found = [
        (os.fsencode(name).decode(errors='replace'), _text(file))
        for name, file in sorted(files.items())
    ]
  except OSError as error:
    raise BadInput(f'{field}: cannot be read: {error}') from error
  found = [(name, text) for name, text in found if text]
  if not found:
    raise BadInput(f'{field}: holds no text (hidden, binary, empty and linked files are skipped)')
  return found


def train_validation_split(
    documents: Sequence[Document],
) -> tuple[list[Document], list[Document]]:
  """Splits documents into (training, validation), each in the given order.

  The split depends only on the SHA-256 of the texts, not on the order or names of files, and equal
  texts go to the same split, so no validation document occurs in the training text. If a document
  exceeds the validation share, long documents are first cut at line ends.

  Raises:
    BadInput: one split would be empty, because the text is tiny or one repeated passage.
  """
  total = sum(len(text) for _, text in documents)
  share = VALIDATION_FRACTION * total
  if max(len(text) for _, text in documents) > share:  # always true of fewer than 20 documents
    max_bytes = max(1, int(share / 2))
    documents = [piece for name, text in documents for piece in _pieces(name, text, max_bytes)]

  digests = [hashlib.sha256(text).digest() for _, text in documents]
  sizes = collections.Counter()  # total bytes of all copies of a text
  for digest, (_, text) in zip(digests, documents, strict=True):
    sizes[digest] += len(text)
  held_out, held_out_bytes = set(), 0
  for digest in sorted(sizes):
    # A text whose copies would take the total above twice the share stays in training.
    if held_out_bytes < share and held_out_bytes + sizes[digest] <= 2 * share:
      held_out.add(digest)
      held_out_bytes += sizes[digest]
  if not 0 < held_out_bytes < total:
    raise BadInput(
        f'config.data.path: {total} bytes of text cannot be split into training and validation'
        ' text: too short, or one repeated passage'
    )
  train, validation = [], []
  for digest, document in zip(digests, documents, strict=True):
    (validation if digest in held_out else train).append(document)
  return train, validation


def files_under(root: Path, excluded_folders: Collection[str] = ()) -> dict[str, Path]:
  """Regular files below root by relative POSIX path, without hidden and linked ones.

  Hidden folders, linked folders and folders named in `excluded_folders` are skipped.
  """

  def fail(error: OSError) -> None:
    raise error  # by default, os.walk skips a folder that cannot be read

  files = {}
  for folder, folders, names in os.walk(root, onerror=fail):
    folders[:] = [
        name for name in folders if not name.startswith('.') and name not in excluded_folders
    ]
    for name in names:
      file = Path(folder, name)
      if not name.startswith('.') and file.is_file() and not file.is_symlink():
        files[file.relative_to(root).as_posix()] = file
  return files


def _library_files(root: Path) -> dict[str, Path]:
  """The standard library's hand-written modules, without their tests."""
  return {
      name: file
      for name, file in files_under(root, _EXCLUDED_FOLDERS).items()
      if name.endswith('.py') and not name.startswith(_EXCLUDED_PREFIXES)
  }


def _text(file: Path) -> bytes:
  """A file's bytes without NULs; empty for a binary file."""
  with file.open('rb') as stream:
    head = stream.read(8192)
    return b'' if b'\0' in head else head + stream.read().replace(b'\0', b'')


def _pieces(name: str, text: bytes, max_bytes: int) -> Iterator[Document]:
  """Cuts a text into pieces of at most `max_bytes`, at line ends where possible.

  A piece is named by its byte range in the document: name[start:end].
  """
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
