"""Documents of local files: JSON lines, parquet and plain text, all but parquet optionally gzipped.

A document is UTF-8 text as bytes. Invalid input raises BadInput with its file and line (in parquet,
its row); only empty lines are skipped.
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
from stability.data.tokenize import text_field
from stability.errors import BadInput

PIECE_BYTES = 2**16  # longer text files are cut at line ends into documents of at most this size
MAX_LINE_BYTES = 2**28  # a longer line is unlikely to be JSON, and would fill the memory

_PARQUET_ROWS = 256  # read at once
# Words in a file's name that indicate its split, as in the `datasets` library.
_SPLIT_WORDS = {
    'train': {'train', 'training'},
    'validation': {'validation', 'valid', 'dev', 'val'},
    'test': {'test', 'testing', 'eval', 'evaluation'},
}
_JSON_LINES = ('.json', '.jsonl', '.ndjson')
_PARQUET = '.parquet'


class Part(Protocol):
  """A unit of the input: a file, or a split of a Hugging Face dataset."""

  name: str
  split: str | None  # train | validation; None: decided by each document's hash
  size: int | None  # bytes

  def fingerprint(self) -> Any:
    """JSON that changes when the documents may have changed."""

  def documents(self, skip: int, state: Any) -> Iterator[bytes]:
    """The documents after the first `skip`; `state` is what state() returned after those."""

  def state(self) -> Any:
    """JSON with which `documents` can skip the documents yielded so far more quickly."""

  def bytes_read(self) -> int:
    """The number of bytes, out of `size`, that have been read."""


@dataclasses.dataclass
class File:
  """A file of documents, as a Part."""

  path: Path
  split: str | None
  field: str  # the field that holds the text, in JSON and parquet

  def __post_init__(self):
    self.name = str(self.path)
    stat = self.path.stat()
    self.size, self._modified = stat.st_size, stat.st_mtime_ns
    self._bytes_read = 0
    self._stream: BinaryIO | None = None

  def fingerprint(self) -> list[int]:
    return [self.size, self._modified]

  def state(self) -> None:
    return None

  def bytes_read(self) -> int:
    if self._stream is not None and not self._stream.closed:
      self._bytes_read = self._stream.tell()
    return self._bytes_read

  def documents(self, skip: int, state: Any = None) -> Iterator[bytes]:
    """The documents as UTF-8; BadInput for invalid input has its file and line."""
    if _format(self.path) == 'parquet':
      yield from self._parquet_rows(skip)
      return
    reader = self._json_lines if _format(self.path) == 'lines' else self._text_pieces
    line = [0]  # number of the last line read
    try:
      with self.path.open('rb') as self._stream:
        if self.path.name.lower().endswith('.gz'):
          if not self.size:
            raise BadInput(f'{self.path}: empty, not a gzip file')
          yield from reader(gzip.GzipFile(fileobj=self._stream), skip, line)
        else:
          yield from reader(self._stream, skip, line)
    except EOFError:
      self._refuse(line[0], 'the gzip file is truncated after this line')
    except (gzip.BadGzipFile, zlib.error) as error:
      self._refuse(line[0], f'bad gzip after this line: {error}')
    except OSError as error:
      self._refuse(line[0], f'cannot be read: {error.strerror or error}')

  def _json_lines(self, stream: BinaryIO, skip: int, line: list[int]) -> Iterator[bytes]:
    while text := stream.readline(MAX_LINE_BYTES):
      line[0] += 1
      if len(text) == MAX_LINE_BYTES:
        self._refuse(line[0], f'longer than {MAX_LINE_BYTES:,} bytes; is this JSON lines?')
      if text.isspace():
        continue
      if skip:
        skip -= 1
        continue
      row = self._parse(text, line[0])
      where = f'{self.path}:{line[0]}'
      text_field.check_present(self.field, row, where)
      yield text_field.utf8(row[self.field], self.field, where)

  def _parse(self, line: bytes, number: int) -> dict[str, Any]:
    """The JSON object of a line."""
    try:
      row = json.loads(line.decode())
    except UnicodeDecodeError as error:
      self._refuse(number, f'bad UTF-8 at byte {error.start} of the line')
    except json.JSONDecodeError as error:
      self._refuse(number, f'bad JSON: {error.msg} at character {error.pos}')
    except (RecursionError, ValueError) as error:  # nesting too deep; a number too long
      self._refuse(number, f'bad JSON: {error}')
    if not isinstance(row, dict):
      self._refuse(number, f'must be a JSON object, not {text_field.describe(row)}')
    return row

  def _text_pieces(self, stream: BinaryIO, skip: int, line: list[int]) -> Iterator[bytes]:
    """The text of a file, in pieces if it is long."""
    rest = b''
    while block := rest + stream.read(PIECE_BYTES - len(rest)):
      end = len(block)
      if end == PIECE_BYTES:
        end = block.rfind(b'\n') + 1 or _last_character(block)
      piece, rest = block[:end], block[end:]
      try:
        piece.decode()
      except UnicodeDecodeError as error:
        line[0] += piece.count(b'\n', 0, error.start) + 1
        self._refuse(line[0], 'bad UTF-8; supported are text, .json, .jsonl, .parquet and .gz')
      line[0] += piece.count(b'\n')
      if skip:
        skip -= 1
      else:
        yield piece

  def _parquet_rows(self, skip: int) -> Iterator[bytes]:
    """The text of each row of a parquet file, which is read by row groups."""
    try:
      import pyarrow as pa
      from pyarrow import parquet
    except ImportError:
      raise BadInput(
          f"{self.path}: parquet needs the package pyarrow: pip install 'stability[hf]'"
      ) from None
    row = 0
    try:
      with parquet.ParquetFile(self.path) as file:
        schema = file.schema_arrow
        text_field.check_present(self.field, schema.names, str(self.path))
        type_ = schema.field(self.field).type
        if not (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
          raise BadInput(f'{self.path}: field {self.field!r} must be text, not {type_}')
        for group in range(file.num_row_groups):
          rows = file.metadata.row_group(group).num_rows
          if row + rows <= skip:
            row += rows
            continue
          for batch in file.iter_batches(_PARQUET_ROWS, row_groups=[group], columns=[self.field]):
            for value in batch.column(0).cast(pa.large_binary()).to_pylist():
              row += 1
              self._bytes_read = self.size * row // file.metadata.num_rows
              if row > skip:
                yield text_field.utf8(value, self.field, f'{self.path}: row {row}')
    except (pa.ArrowException, OSError) as error:
      raise BadInput(f'{self.path}: cannot be read after row {row}: {error}') from error

  def _refuse(self, line: int, why: str) -> NoReturn:
    raise BadInput(f'{self.path}:{line}: {why}') from None


def find(path: str, field: str) -> tuple[list[File], list[str]]:
  """The files of an input, sorted by name, and the names of the files that are skipped.

  Hidden and linked files in a folder are ignored. If the input has JSON or parquet files, all other
  files are skipped, words in a file's name determine its split, and test splits are skipped.

  Args:
    path: a file, a folder or a glob pattern.
    field: the field that holds the text, in JSON and parquet.

  Raises:
    BadInput: there are no files to read.
  """
  flag = f'--input={path}'
  root = Path(path)
  try:
    if root.is_dir():
      paths = sources.files_under(root)
    elif root.is_file():
      paths = {root.name: root}
    elif glob.has_magic(path):
      matches = [Path(name) for name in glob.glob(path, recursive=True)]
      base = Path(*_parts_before_magic(root))
      paths = {match.relative_to(base).as_posix(): match for match in matches if match.is_file()}
    else:
      raise BadInput(f'{flag}: no such file or folder')
    if any(_format(file) != 'text' for file in paths.values()):
      chosen = {
          name: file
          for name, file in paths.items()
          if _format(file) != 'text' and _split_of_name(name) != 'test'
      }
    else:
      chosen = paths
    files = [
        File(file, _split_of_name(name) if _format(file) != 'text' else None, field)
        for name, file in sorted(chosen.items())
    ]
  except OSError as error:
    raise BadInput(f'{flag}: cannot be read: {error}') from error
  if not files:
    raise BadInput(f'{flag}: no files to read (hidden, linked and test files are skipped)')
  return files, sorted(paths.keys() - chosen.keys())


def order(parts: Sequence[Part]) -> list[Part]:
  """The parts in reading order: validation splits first, if there are any.

  Without a validation split, the hash of each document decides its split. Raises BadInput if there
  is nothing to train on.
  """
  validation = [part for part in parts if part.split == 'validation']
  train = [part for part in parts if part.split != 'validation']
  if not train:
    raise BadInput(f'--input: only validation files ({parts[0].name}), nothing to train on')
  for part in train:
    part.split = 'train' if validation else None
  return validation + train


def _format(path: Path) -> str:
  """The format that a file's name indicates: lines | parquet | text."""
  name = path.name.lower().removesuffix('.gz')
  if name.endswith(_JSON_LINES):
    return 'lines'
  return 'parquet' if name.endswith(_PARQUET) else 'text'


def _split_of_name(name: str) -> str | None:
  words = set(re.split('[^a-z0-9]+', name.lower()))
  return next((split for split, known in _SPLIT_WORDS.items() if words & known), None)


def _parts_before_magic(path: Path) -> Iterator[str]:
  for part in path.parts[:-1]:
    if glob.has_magic(part):
      return
    yield part


def _last_character(block: bytes) -> int:
  """Offset of the last UTF-8 character, where a cut splits no character; the end if not found."""
  for back in range(1, min(4, len(block) - 1) + 1):
    if block[-back] & 0xC0 != 0x80:
      return len(block) - back
  return len(block)
