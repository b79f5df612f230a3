"""Files -> documents, one after another: JSON lines, parquet and text, as they are or gzipped.

A document is UTF-8 text as bytes. Whatever cannot be read is refused by file and line (parquet:
row); nothing is passed over but empty lines.
"""

import dataclasses
import glob
import gzip
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol

from stability.data import sources
from stability.errors import BadInput

PIECE = 2**16  # bytes; longer text files are cut at line ends into documents of at most so many
LONGEST_LINE = 2**28  # bytes of JSON; more is no JSON lines, and would fill the memory

_ROWS = 256  # of parquet read at once
# What a split is called in a file's name, as the library `datasets` has it.
_SIDES = {
    'train': {'train', 'training'},
    'validation': {'validation', 'valid', 'dev', 'val'},
    'test': {'test', 'testing', 'eval', 'evaluation'},
}
_LINES = ('.json', '.jsonl', '.ndjson')
_PARQUET = '.parquet'


class Part(Protocol):
  """A stretch of the input: a file, or a split of a Hugging Face set."""

  name: str
  side: str | None  # train | validation; None: each document's hash decides
  size: int | None  # bytes

  def fingerprint(self) -> Any:
    """JSON that is another when the documents may be others."""

  def documents(self, skip: int, state: Any) -> Iterator[bytes]:
    """The documents but the first `skip`; state: as it was after those."""

  def state(self) -> Any:
    """JSON that makes skipping faster, after the document last given."""

  def bytes_read(self) -> int:
    """Of `size`."""


@dataclasses.dataclass
class File:
  """A file of documents."""

  path: Path
  side: str | None
  field: str  # of JSON and parquet, that holds the text

  def __post_init__(self):
    self.name = str(self.path)
    stat = self.path.stat()
    self.size, self._changed = stat.st_size, stat.st_mtime_ns
    self._read = 0
    self._raw: BinaryIO | None = None

  def fingerprint(self) -> list[int]:
    return [self.size, self._changed]

  def state(self) -> None:
    return None

  def bytes_read(self) -> int:
    if self._raw is not None and not self._raw.closed:
      self._read = self._raw.tell()
    return self._read

  def documents(self, skip: int, state: Any = None) -> Iterator[bytes]:
    """UTF-8 text of each; raises BadInput by file and line."""
    if _kind(self.path) == 'parquet':
      yield from self._rows(skip)
      return
    reader = self._lines if _kind(self.path) == 'lines' else self._pieces
    line = [0]  # the last one read
    try:
      with self.path.open('rb') as self._raw:
        if self.path.name.lower().endswith('.gz'):
          if not self.size:
            raise BadInput(f'{self.path}: empty, and no gzip file')
          yield from reader(gzip.GzipFile(fileobj=self._raw), skip, line)
        else:
          yield from reader(self._raw, skip, line)
    except EOFError:
      self._refuse(line[0], 'the gzip file is truncated after this line')
    except (gzip.BadGzipFile, zlib.error) as error:
      self._refuse(line[0], f'bad gzip after this line: {error}')
    except OSError as error:
      self._refuse(line[0], f'cannot be read: {error.strerror or error}')

  def _lines(self, stream: BinaryIO, skip: int, line: list[int]) -> Iterator[bytes]:
    while text := stream.readline(LONGEST_LINE):
      line[0] += 1
      if len(text) == LONGEST_LINE:
        self._refuse(line[0], f'longer than {LONGEST_LINE:,} bytes: are these JSON lines?')
      if text.isspace():
        continue
      if skip:
        skip -= 1
        continue
      yield self._text(text, line[0])

  def _text(self, line: bytes, number: int) -> bytes:
    """The field of a line of JSON."""
    try:
      row = json.loads(line.decode())
      if not isinstance(row, dict):
        self._refuse(number, f'must be a JSON object, not {_brief(row)}')
      if self.field not in row:
        there = ', '.join(map(repr, list(row)[:8]))
        self._refuse(number, f'has no field {self.field!r} (--field); it has {there or "none"}')
      if not isinstance(row[self.field], str):
        self._refuse(number, f'field {self.field!r} must be text, not {_brief(row[self.field])}')
      return row[self.field].encode()
    except BadInput:
      raise
    except UnicodeDecodeError as error:
      self._refuse(number, f'bad UTF-8 at byte {error.start} of the line')
    except UnicodeEncodeError:
      self._refuse(number, f'field {self.field!r} holds half of a surrogate pair')
    except json.JSONDecodeError as error:
      self._refuse(number, f'bad JSON: {error.msg} at character {error.pos}')
    except (RecursionError, ValueError) as error:  # nested too deeply; an endless number
      self._refuse(number, f'bad JSON: {error}')

  def _pieces(self, stream: BinaryIO, skip: int, line: list[int]) -> Iterator[bytes]:
    """A text, or where it is long its pieces."""
    rest = b''
    while block := rest + stream.read(PIECE - len(rest)):
      end = len(block)
      if end == PIECE:
        end = block.rfind(b'\n') + 1 or _last_character(block)
      piece, rest = block[:end], block[end:]
      try:
        piece.decode()
      except UnicodeDecodeError as error:
        line[0] += piece.count(b'\n', 0, error.start) + 1
        self._refuse(line[0], 'bad UTF-8: only text, .json, .jsonl, .parquet and gzip are read')
      line[0] += piece.count(b'\n')
      if skip:
        skip -= 1
      else:
        yield piece

  def _rows(self, skip: int) -> Iterator[bytes]:
    """Of parquet, a row group at a time."""
    try:
      import pyarrow as pa
      from pyarrow import parquet
    except ImportError:
      raise BadInput(
          f"{self.path}: parquet needs the library pyarrow: pip install 'stability[hf]'"
      ) from None
    row = 0
    try:
      with parquet.ParquetFile(self.path) as file:
        schema = file.schema_arrow
        if self.field not in schema.names:
          there = ', '.join(map(repr, schema.names[:8]))
          raise BadInput(f'{self.path}: has no column {self.field!r} (--field); it has {there}')
        type_ = schema.field(self.field).type
        if not (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
          raise BadInput(f'{self.path}: column {self.field!r} must be string, not {type_}')
        for group in range(file.num_row_groups):
          rows = file.metadata.row_group(group).num_rows
          if row + rows <= skip:
            row += rows
            continue
          for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[self.field]):
            for text in batch.column(0).cast(pa.large_binary()).to_pylist():
              row += 1
              self._read = self.size * row // file.metadata.num_rows
              if row > skip:
                yield self._checked_row(text, row)
    except (pa.ArrowException, OSError) as error:
      raise BadInput(f'{self.path}: cannot be read after row {row}: {error}') from error

  def _checked_row(self, text: bytes | None, row: int) -> bytes:
    if text is None:
      raise BadInput(f'{self.path}: row {row}: field {self.field!r} must be text, not null')
    try:
      text.decode()
    except UnicodeDecodeError as error:
      raise BadInput(f'{self.path}: row {row}: bad UTF-8 at byte {error.start}') from error
    return text

  def _refuse(self, line: int, why: str) -> NoReturn:
    raise BadInput(f'{self.path}:{line}: {why}') from None


def find(given: str, field: str) -> tuple[list[File], list[str]]:
  """The files of an input, in order of their names, and those that are left out.

  A folder's hidden and linked files do not count; where it has files of JSON or parquet, others are
  left out. Of those, the words of a name say to which split it belongs; test splits are left out.
  Raises BadInput where there is nothing.
  """
  field_ = f'--input={given}'
  root = Path(given)
  try:
    if root.is_dir():
      paths = sources.files_under(root)
    elif root.is_file():
      paths = {root.name: root}
    elif glob.has_magic(given):
      found = [Path(name) for name in glob.glob(given, recursive=True)]
      above = Path(*_before_magic(root))
      paths = {path.relative_to(above).as_posix(): path for path in found if path.is_file()}
    else:
      raise BadInput(f'{field_}: no such file or folder')
    if any(_kind(path) != 'text' for path in paths.values()):
      chosen = {n: p for n, p in paths.items() if _kind(p) != 'text' and _side(n) != 'test'}
    else:
      chosen = paths
    files = [
        File(path, _side(name) if _kind(path) != 'text' else None, field)
        for name, path in sorted(chosen.items())
    ]
  except OSError as error:
    raise BadInput(f'{field_}: cannot be read: {error}') from error
  if not files:
    raise BadInput(f'{field_}: no files to read (hidden, linked and test files do not count)')
  return files, sorted(paths.keys() - chosen.keys())


def divide(parts: Sequence[Part]) -> list[Part]:
  """The parts in the order in which they are read: validation splits, if there are any, first.

  Without one, the hash of each document decides. Raises BadInput where nothing is to train on.
  """
  validation = [part for part in parts if part.side == 'validation']
  train = [part for part in parts if part.side != 'validation']
  if not train:
    raise BadInput(f'--input: only validation files ({parts[0].name}), and nothing to train on')
  for part in train:
    part.side = 'train' if validation else None
  return validation + train


def _kind(path: Path) -> str:
  name = path.name.lower().removesuffix('.gz')
  if name.endswith(_LINES):
    return 'lines'
  return 'parquet' if name.endswith(_PARQUET) else 'text'


def _side(name: str) -> str | None:
  words = set(re.split('[^a-z0-9]+', name.lower()))
  return next((side for side, called in _SIDES.items() if words & called), None)


def _before_magic(path: Path) -> Iterator[str]:
  for part in path.parts[:-1]:
    if glob.has_magic(part):
      return
    yield part


def _last_character(block: bytes) -> int:
  """Where the last character of UTF-8 begins, so that none is cut; the end where there is none."""
  for back in range(1, min(4, len(block) - 1) + 1):
    if block[-back] & 0xC0 != 0x80:
      return len(block) - back
  return len(block)


def _brief(value: Any) -> str:
  """What a value of JSON is."""
  names = {dict: 'an object', list: 'an array', str: 'a string', bool: 'a boolean'}
  return 'null' if value is None else names.get(type(value), 'a number')
