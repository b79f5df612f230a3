"""Documents of Hugging Face datasets, streamed by the `datasets` library."""

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stability.data.listing import Listing
from stability.data.tokenize import text_field
from stability.data.tokenize.text_field import Row
from stability.errors import BadInput

PREFIX = 'hf:'

# Formats that contain data only; for others, `datasets` would unpickle files.
_FORMATS = ('arrow', 'csv', 'json', 'parquet', 'text')
_SPLITS = ('validation', 'train')


class DatasetSplit:
  """A split of a dataset, as a readers.Part."""

  size = None

  def __init__(self, dataset: str, builder: Any, split: str, field: str):
    """Describes a split.

    Args:
      dataset: hf:NAME[:CONFIG], as the user named it.
      builder: a DatasetBuilder of the `datasets` library.
      split: name of the split.
      field: the field that holds the text of a row.
    """
    self.dataset = dataset
    self.name = f'{dataset} {split}'
    self.split: str | None = split
    self.revision: str | None = None  # on the hub; None for a local folder
    self._dataset_split = split
    self._builder = builder
    self._field = field
    self._stream: Any = None
    files = builder.config.data_files[split]
    if match := re.match('hf://[^@]+@([^/]+)/', str(files[0])):
      self.revision = match[1]
    listing = json.dumps([list(map(str, files)), list(map(list, files.origin_metadata))])
    self._fingerprint = [len(files), hashlib.sha256(listing.encode()).hexdigest()]

  def fingerprint(self) -> list:
    return self._fingerprint

  def state(self) -> Any:
    return self._stream.state_dict()

  def bytes_read(self) -> int:
    return 0

  def documents(self, skip: int, state: Any) -> Iterator[Row]:
    """Raises BadInput if the data is at fault, OSError if the network may be."""
    number = skip
    try:
      self._stream = self._builder.as_streaming_dataset(split=self._dataset_split)
      if skip:
        self._stream.load_state_dict(state)
      for row in self._stream:
        number += 1
        where = f'--input={self.name}, document {number}'
        yield text_field.text(row, self._field, where)
    except (BadInput, GeneratorExit):
      raise
    except Exception as error:
      raise _classified(f'--input={self.name}, after document {number}', error) from error


def check_output(dataset: str, output: Path) -> None:
  """Raises BadInput for an output in a dataset's folder, where `datasets` would read it as well."""
  folder = Path(dataset.removeprefix(PREFIX).partition(':')[0])
  if folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
    raise BadInput(f'--output={output}: lies in --input={dataset}; name a folder outside it')


def find(
    dataset: str, field: str, cache: Path, revision: str | None
) -> tuple[list[DatasetSplit], Listing]:
  """The validation and training splits of a dataset, and its files; other splits are left out.

  Args:
    dataset: hf:NAME[:CONFIG], where NAME is on the hub or a local folder.
    field: the field that holds the text of a row.
    cache: folder for the files that the `datasets` library keeps.
    revision: of the dataset on the hub; None: the newest.

  Raises:
    BadInput: there is no such dataset, or it has no split named train.
    OSError: the network failed.
  """
  os.environ.setdefault('HF_HUB_DISABLE_PROGRESS_BARS', '1')
  os.environ.setdefault('USE_TORCH', '0')  # otherwise `datasets` spends seconds importing torch
  try:
    import datasets
  except ImportError:
    raise BadInput(
        f"--input={dataset}: needs the package datasets: pip install -e '.[hf]'"
    ) from None
  name, _, config = dataset.removeprefix(PREFIX).partition(':')
  datasets.disable_progress_bars()
  try:
    builder = datasets.load_dataset_builder(
        name, config or None, cache_dir=str(cache), revision=revision
    )
  except Exception as error:
    raise _classified(f'--input={dataset}', error) from error
  module = type(builder).__module__
  format_ = module.split('.')[-1]
  if not module.startswith('datasets.packaged_modules') or format_ not in _FORMATS:
    raise BadInput(
        f'--input={dataset}: has format {format_!r}, must be one of {", ".join(_FORMATS)}'
    )
  splits = list(builder.config.data_files)
  if 'train' not in splits:
    raise BadInput(f'--input={dataset}: has no split named train; it has {", ".join(splits)}')
  parts = [DatasetSplit(dataset, builder, split, field) for split in _SPLITS if split in splits]
  listing = Listing({str(f): Path(f) for split in splits for f in builder.config.data_files[split]})
  for split in splits:
    if split not in _SPLITS:
      listing.leave_out(f'of split {split}', map(str, builder.config.data_files[split]))
  return parts, listing


def _classified(where: str, error: Exception) -> Exception:
  """BadInput if the dataset is at fault, OSError if the network or the disk may be."""
  message = f'{where}: {type(error).__name__}: {error}'
  data_errors = (ValueError, TypeError, LookupError, EOFError, gzip.BadGzipFile, zlib.error)
  if isinstance(error, (*data_errors, FileNotFoundError)) or 'datasets' in type(error).__module__:
    return BadInput(message)
  return OSError(message)
