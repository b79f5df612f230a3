"""Checksums of token files, and the record of those that were checked before."""

import hashlib
from pathlib import Path

import numpy as np

from stability.errors import BadInput
from stability.storage import files

_CHUNK = 2**22  # tokens processed at a time


def scan(file: Path, dtype: np.dtype | None) -> tuple[str, int | None]:
  """SHA-256 of a file and, if it holds tokens, the highest of them."""
  if dtype is None:
    return files.sha256(file), None
  values = np.memmap(file, dtype, mode='r')
  digest, highest = hashlib.sha256(), 0
  for start in range(0, len(values), _CHUNK):
    chunk = values[start : start + _CHUNK]
    digest.update(chunk)
    highest = max(highest, int(chunk.max()))
  return digest.hexdigest(), highest


def read_record(record: Path | None, path: Path) -> dict[str, list]:
  """The stored results of tokens.verify for a folder; empty if there are none or if damaged."""
  try:
    entries = files.read_json(record)[str(path)] if record else {}
    return {name: entry for name, entry in entries.items() if len(entry) == 4}
  except (BadInput, LookupError, TypeError, AttributeError):
    return {}
