"""Hugging Face sets -> documents, streamed by their library `datasets`."""

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stability.errors import BadInput

PREFIX = 'hf:'

# Formats that hold data alone: `datasets` would unpickle files of others.
_FORMATS = ('arrow', 'csv', 'json', 'parquet', 'text')
_SIDES = ('validation', 'train')


class Split:
  """A split of a set: stability.data.tokenize.readers.Part."""

  size = None

  def __init__(self, given: str, builder: Any, side: str, field: str):
    """builder: of `datasets`."""
    self.name = f'{given} {side}'
    self.side: str | None = side
    self.revision: str | None = None  # of the set on the hub; None: a folder
    self._split = side
    self._builder = builder
    self._field = field
    self._stream: Any = None
    files = builder.config.data_files[side]
    if found := re.match('hf://[^@]+@([^/]+)/', str(files[0])):
      self.revision = found[1]
    listed = json.dumps([list(map(str, files)), list(map(list, files.origin_metadata))])
    self._listed = [len(files), hashlib.sha256(listed.encode()).hexdigest()]

  def fingerprint(self) -> list:
    return self._listed

  def state(self) -> Any:
    return self._stream.state_dict()

  def bytes_read(self) -> int:
    return 0

  def documents(self, skip: int, state: Any) -> Iterator[bytes]:
    """UTF-8 text of each; raises BadInput by document, and OSError of the network."""
    done = skip
    try:
      self._stream = self._builder.as_streaming_dataset(split=self._split)
      if skip:
        self._stream.load_state_dict(state)
      for row in self._stream:
        done += 1
        yield self._text(row, done)
    except (BadInput, GeneratorExit):
      raise
    except Exception as error:
      raise _explained(f'--input={self.name}, after document {done}', error) from error

  def _text(self, row: dict[str, Any], number: int) -> bytes:
    where = f'--input={self.name}, document {number}'
    if self._field not in row:
      there = ', '.join(map(repr, list(row)[:8]))
      raise BadInput(f'{where}: has no field {self._field!r} (--field); it has {there}')
    text = row[self._field]
    if not isinstance(text, str):
      raise BadInput(
          f'{where}: field {self._field!r} must be text, not {type(text).__name__}'
      )
    try:
      return text.encode()
    except UnicodeEncodeError:
      raise BadInput(f'{where}: field {self._field!r} holds half of a surrogate pair') from None


def find(given: str, field: str, cache: Path, revision: str | None) -> list[Split]:
  """The splits to be read of hf:NAME[:CONFIG], where NAME is on the hub or a folder.

  revision: of the set on the hub; None: the newest. What `datasets` keeps on disk is in `cache`.
  Raises BadInput where there is no such set or it has no split named train, OSError of the network.
  """
  os.environ.setdefault('HF_HUB_DISABLE_PROGRESS_BARS', '1')
  os.environ.setdefault('USE_TORCH', '0')  # else it imports torch, where that is installed: seconds
  try:
    import datasets
  except ImportError:
    raise BadInput(
        f"--input={given}: needs the library datasets: pip install 'stability[hf]'"
    ) from None
  name, _, config = given.removeprefix(PREFIX).partition(':')
  datasets.disable_progress_bars()
  try:
    builder = datasets.load_dataset_builder(
        name, config or None, cache_dir=str(cache), revision=revision
    )
  except Exception as error:
    raise _explained(f'--input={given}', error) from error
  format_ = type(builder).__module__.split('.')[-1]
  if not type(builder).__module__.startswith('datasets.packaged_modules') or (
      format_ not in _FORMATS
  ):
    raise BadInput(f'--input={given}: is of {format_!r}, must be one of {", ".join(_FORMATS)}')
  splits = list(builder.config.data_files)
  if 'train' not in splits:
    raise BadInput(f'--input={given}: has no split named train; it has {", ".join(splits)}')
  return [Split(given, builder, side, field) for side in _SIDES if side in splits]


def _explained(where: str, error: Exception) -> Exception:
  """BadInput where the set is at fault, OSError where the network or the disk may be."""
  what = f'{where}: {type(error).__name__}: {error}'
  data = (ValueError, TypeError, LookupError, EOFError, gzip.BadGzipFile, zlib.error)
  if isinstance(error, (*data, FileNotFoundError)) or 'datasets' in type(error).__module__:
    return BadInput(what)
  return OSError(what)
