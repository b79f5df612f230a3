"""Documents from text files."""

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from stability.data import formats, listing
from stability.errors import BadInput

Document = tuple[str, bytes]  # name, text without NUL bytes

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
  found, field = find(path)
  try:
    documents = list(_documents(found, field))
  except OSError as error:
    raise BadInput(f'{field}: cannot be read: {error}') from error
  if not documents:
    raise BadInput(f'{field}: holds no text{found.left_out_text("; left out: ")}')
  return documents, found


def find(path: str | None) -> tuple[listing.Listing, str]:
  """The files that read_documents would read, and how errors call them; BadInput if none exist."""
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
  except OSError as error:
    raise BadInput(f'{field}: cannot be read: {error}') from error
  if not found.files:
    raise BadInput(f'{field}: holds no text{found.left_out_text("; left out: ")}')
  return found, field


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
