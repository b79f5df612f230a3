"""Documents from text files, and their split into training and validation text."""

import collections
import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from stability.data import formats, listing
from stability.errors import BadInput

Document = tuple[str, bytes]  # name, text without NUL bytes

VALIDATION_FRACTION = 0.05

# Parts of the standard library that are left out of the embedded text: tests, third-party packages,
# generated tables and build records.
_EXCLUDED_FOLDERS = {
    'test', 'tests', 'idle_test', 'site-packages', 'dist-packages', 'encodings', 'pydoc_data'
}  # fmt: skip
_EXCLUDED_PREFIXES = ('config-', '_sysconfigdata', 'html/entities.py', 'stringprep.py')


def read_documents(path: str | None) -> tuple[list[Document], listing.Listing]:
  """The documents of a file or folder, sorted by name, and what was read and left out.

  Text may have any encoding in which ASCII is one byte per character. In a folder, hidden and empty
  files, archives and binary files (a NUL byte in the first 8 KiB) are left out. Later NUL bytes are
  removed, since token 0 ends a document, and so is a byte order mark.

  Args:
    path: a file or folder; None: the source code of Python's standard library.

  Raises:
    BadInput: the path is missing, cannot be read or holds no text, or it has files of the formats
      that launch.tokenize reads, or UTF-16.
  """
  root = Path(sysconfig.get_path('stdlib') if path is None else path)
  field = f'config.data.path={str(root)!r}' + (' (the embedded text)' if path is None else '')
  try:
    if root.is_dir():
      found = listing.Listing(_library_files(root)) if path is None else listing.of_folder(root)
    elif root.is_file():
      found = listing.Listing({root.name: root})
    elif root.exists():
      raise BadInput(f'{field}: is neither a file nor a folder')
    else:
      raise BadInput(f'{field}: no such file or folder')
    documents = list(_documents(found, field))
  except OSError as error:
    raise BadInput(f'{field}: cannot be read: {error}') from error
  if not documents:
    raise BadInput(f'{field}: holds no text{found.left_out_text("; left out: ")}')
  return documents, found


def _documents(found: listing.Listing, field: str) -> Iterator[Document]:
  """The documents of the files; those without text are moved to the files that are left out."""
  archives = [name for name in found.files if formats.format_of(name) == 'archive']
  found.leave_out('archives', archives)
  if rows := [name for name in found.files if not formats.is_text(name)]:
    more = f' and {len(rows) - 1} more' if len(rows) > 1 else ''
    raise BadInput(
        f'{field}: {rows[0]}{more}: must be plain text; python -m launch.tokenize reads JSON,'
        ' parquet, Arrow and compressed files and makes a token folder for data.path'
    )
  for name, file in list(found.files.items()):
    with file.open('rb') as stream:
      head = stream.read(formats.HEAD_BYTES)
      problem = formats.problem(head)
      text = b'' if problem else (head + stream.read()).replace(b'\0', b'')
    text = text.removeprefix(formats.BYTE_ORDER_MARK)
    if problem == 'utf-16':
      raise BadInput(f'{field}: {name}: is UTF-16; must be converted to UTF-8')
    if text:
      # File names may hold bytes that are not UTF-8, which JSON cannot represent.
      yield os.fsencode(name).decode(errors='replace'), text
    else:
      found.leave_out(problem or 'empty', [name])


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


def _library_files(root: Path) -> dict[str, Path]:
  """The standard library's hand-written modules, sorted by name, without their tests."""

  def fail(error: OSError) -> None:
    raise error  # by default, os.walk skips a folder that cannot be read

  files = {}
  for folder, folders, names in os.walk(root, onerror=fail):
    folders[:] = [n for n in folders if not n.startswith('.') and n not in _EXCLUDED_FOLDERS]
    for file in (Path(folder, n) for n in names if n.endswith('.py') and not n.startswith('.')):
      name = file.relative_to(root).as_posix()
      if not name.startswith(_EXCLUDED_PREFIXES) and file.is_file() and not file.is_symlink():
        files[name] = file
  return dict(sorted(files.items()))


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
