"""Documents of local files: JSON, parquet, Arrow and plain text, the JSON and text also compressed.

A document is UTF-8 text as bytes; a byte order mark is passed over. Invalid input raises BadInput
with its file and line (in parquet and Arrow files, its row); only empty lines are skipped.
"""

import bz2
import dataclasses
import glob
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, Protocol

from stability.data import formats, split_names
from stability.data import listing as listings
from stability.data.listing import Listing
from stability.data.tokenize import columns
from stability.data.tokenize.json_rows import JsonReader
from stability.data.tokenize.text_field import Row
from stability.errors import BadInput

PIECE_BYTES = 2**16  # longer text files are packed in pieces of at most this size

_SUPPORTED = 'supported are UTF-8 text, .json, .jsonl, .parquet and .arrow; .gz, .zst, .bz2 and .xz'
# Beside the rows that the `datasets` library writes.
_DESCRIPTIONS = ('dataset_info.json', 'dataset_infos.json', 'dataset_dict.json', 'state.json')


class Part(Protocol):
  """A unit of the input: a file, or a split of a Hugging Face dataset."""

  name: str
  split: str | None  # train | validation; None: by text_files.py or each document's hash
  size: int | None  # bytes

  def fingerprint(self) -> Any:
    """JSON that changes when the documents may have changed."""

  def documents(self, skip: int, state: Any) -> Iterator[Row]:
    """The documents after the first `skip`; `state` is what state() returned after those.

    A row that is not a text is yielded as the BadInput that says why. Anything else that is wrong
    with the input is raised.
    """

  def state(self) -> Any:
    """JSON with which `documents` can skip the documents yielded so far more quickly."""

  def bytes_read(self) -> int:
    """The number of bytes, out of `size`, that have been read."""


@dataclasses.dataclass
class File:
  """A file of documents, as a Part."""

  path: Path
  split: str | None
  field: str  # the field that holds the text, in all but text files

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

  def documents(self, skip: int, state: Any = None) -> Iterator[Row]:
    kind, compressed = formats.format_of(self.path.name), formats.compression(self.path.name)
    if kind in ('parquet', 'arrow'):
      for row, share in columns.rows(self.path, kind, self.field, skip):
        self._bytes_read = int(share * self.size)
        yield row
      return
    line = [0]  # number of the last line read
    json_reader = JsonReader(self.path, self.field, line)
    try:
      with self.path.open('rb') as self._stream:
        if compressed and not self.size:
          raise BadInput(f'{self.path}: empty, not a {compressed} file')
        stream = _decompressed(self._stream, compressed, self.path)
        head = stream.peek(formats.HEAD_BYTES)
        problem = formats.problem(head)
        if problem == 'utf-16':
          raise BadInput(f'{self.path}: is UTF-16; must be converted to UTF-8')
        if problem and kind == 'text':
          raise BadInput(f'{self.path}: is binary; {_SUPPORTED}')
        if head.startswith(formats.BYTE_ORDER_MARK):
          stream.read(len(formats.BYTE_ORDER_MARK))
        if kind == 'text':
          yield from self._text_pieces(stream, skip, line)
        else:
          yield from (json_reader.lines if kind == 'lines' else json_reader.any_json)(stream, skip)
    except EOFError:
      self._refuse(line[0], f'the {compressed} file is truncated after this line')
    except (OSError, zlib.error, lzma.LZMAError) as error:
      if compressed and getattr(error, 'errno', None) is None:
        self._refuse(line[0], f'bad {compressed} after this line: {error}')
      self._refuse(line[0], f'cannot be read: {getattr(error, "strerror", None) or error}')

  def _text_pieces(self, stream: BinaryIO, skip: int, line: list[int]) -> Iterator[bytes]:
    """The text of a file, in pieces if it is long."""
    for piece in text_pieces(stream):
      try:
        piece.decode()
      except UnicodeDecodeError as error:
        line[0] += piece.count(b'\n', 0, error.start) + 1
        self._refuse(line[0], f'bad UTF-8; {_SUPPORTED}')
      line[0] += piece.count(b'\n')
      if skip:
        skip -= 1
      else:
        yield piece

  def _refuse(self, line: int, why: str) -> NoReturn:
    raise BadInput(f'{self.path}:{line}: {why}') from None


def text_pieces(stream: BinaryIO) -> Iterator[bytes]:
  """The documents that a text is packed as: itself, or pieces, cut at line ends, if it is long."""
  rest = b''
  while block := rest + stream.read(PIECE_BYTES - len(rest)):
    end = len(block)
    if end == PIECE_BYTES:
      end = block.rfind(b'\n') + 1 or _last_character(block)
    piece, rest = block[:end], block[end:]
    yield piece


def _decompressed(stream: BinaryIO, kind: str | None, path: Path) -> Any:
  """A buffered stream of the decompressed bytes."""
  if kind == 'zstd':
    try:
      import pyarrow as pa
    except ImportError:
      raise BadInput(f"{path}: zstd needs pyarrow: pip install -e '.[hf]'") from None
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(stream), kind))
  if kind == 'bzip2':
    return io.BufferedReader(_Streams(stream, bz2.BZ2Decompressor, b''))
  if kind == 'xz':
    return io.BufferedReader(_Streams(stream, lzma.LZMADecompressor, b'\0'))
  return gzip.open(stream) if kind else stream


class _Streams(io.RawIOBase):
  """The decompressed bytes of a file of one or more streams.

  Python's own readers pass over a later stream whose beginning is damaged.
  """

  def __init__(self, file: BinaryIO, new: Callable[[], Any], padding: bytes):
    """Reads `file`, with a `new` decompressor for each stream; `padding` may follow each."""
    self._file, self._new, self._padding = file, new, padding
    self._stream = new()

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    while True:
      data = b''
      if self._stream.eof:
        data = self._stream.unused_data.lstrip(self._padding)
        while not data:
          if not (data := self._file.read(io.DEFAULT_BUFFER_SIZE)):
            return 0
          data = data.lstrip(self._padding)
        self._stream = self._new()
      elif self._stream.needs_input and not (data := self._file.read(io.DEFAULT_BUFFER_SIZE)):
        raise EOFError
      if found := self._stream.decompress(data, len(buffer)):
        buffer[: len(found)] = found
        return len(found)


def find(path: str, field: str, output: Path | None = None) -> tuple[list[File], Listing]:
  """The files of an input, sorted by name, and what is left out.

  A file that is named itself is read or refused. Of a folder or pattern, hidden and empty files,
  archives, binary files and test splits are left out. If there are JSON, parquet or Arrow files, so
  are all others, names that begin with an underscore (the records of Spark and others) and the
  descriptions that the datasets library writes. Words in names determine splits; see
  split_names.py.

  Args:
    path: a file, a folder or a glob pattern.
    field: the field that holds the text, in all but text files.
    output: the folder of the token files, which are left out of a folder or pattern.

  Raises:
    BadInput: there are no files to read.
  """
  flag = f'--input={path}'
  root = Path(path)
  try:
    if root.is_file():
      if formats.format_of(root.name) == 'archive':
        raise BadInput(f'{flag}: is an archive; {_SUPPORTED}')
      split = None if formats.format_of(root.name) == 'text' else split_names.of_rows(root.name)
      return [File(root, split if split != 'test' else None, field)], Listing({root.name: root})
    if root.is_dir():
      listing = listings.of_folder(root, output)
    elif glob.has_magic(path):
      listing = listings.matching(path, output)
    elif root.exists():
      raise BadInput(f'{flag}: is neither a file nor a folder')
    else:
      raise BadInput(f'{flag}: no such file or folder')
    if _leave_out(listing):
      splits = {name: split_names.of_rows(name) for name in listing.files}
    else:
      splits = split_names.of_texts(listing.files)
      listing.leave_out('test files', [name for name in splits if splits[name] == 'test'])
    files = [File(file, splits.get(name), field) for name, file in listing.files.items()]
  except OSError as error:
    raise BadInput(f'{flag}: cannot be read: {error}') from error
  if not files:
    raise BadInput(f'{flag}: no files to read{listing.left_out_text("; left out: ")}')
  return files, listing


def _leave_out(listing: Listing) -> bool:
  """Leaves out the files that are not to be read; returns whether the others hold rows."""
  found = {name: formats.format_of(name) for name in listing.files}
  listing.leave_out('archives', [name for name, kind in found.items() if kind == 'archive'])
  data = [name for name, kind in found.items() if kind not in ('archive', 'text')]
  for name in data:
    if Path(name).name in _DESCRIPTIONS:
      listing.leave_out('descriptions', [name])
    elif any(part.startswith('_') for part in name.split('/')):
      listing.leave_out('with an underscore', [name])
    elif split_names.of_rows(name) == 'test':
      listing.leave_out('test files', [name])
  if data:
    others = [name for name in listing.files if found[name] == 'text']
    listing.leave_out('without rows', others)
    return True
  for name, file in list(listing.files.items()):
    if not file.stat().st_size:
      listing.leave_out('empty', [name])
    elif not formats.compression(name):
      with file.open('rb') as stream:
        if formats.problem(stream.read(formats.HEAD_BYTES)) == 'binary':
          listing.leave_out('binary', [name])
  return False


def order(parts: Sequence[Part]) -> list[Part]:
  """The parts in reading order: validation splits first, if there are any.

  Without a validation split, the split of all parts is None. Text files that are named themselves
  are a validation split as those of a folder are. Raises BadInput if there is nothing to train on.
  """
  texts = {part.name: part for part in parts if is_text(part) and part.split is None}
  for name, split in split_names.of_texts(texts).items():
    texts[name].split = 'validation' if split == 'validation' else None
  validation = [part for part in parts if part.split == 'validation']
  train = [part for part in parts if part.split != 'validation']
  if not train:
    raise BadInput(f'--input: only validation files ({parts[0].name}), nothing to train on')
  for part in train:
    part.split = 'train' if validation else None
  return validation + train


def is_text(part: Part) -> bool:
  """Whether a part is a text file."""
  return isinstance(part, File) and formats.format_of(part.path.name) == 'text'


def _last_character(block: bytes) -> int:
  """Offset of the last UTF-8 character, where a cut splits no character; the end if not found."""
  for back in range(1, min(4, len(block) - 1) + 1):
    if block[-back] & 0xC0 != 0x80:
      return len(block) - back
  return len(block)
