"""Token folders: train.bin, validation.bin and meta.json, written once and memory-mapped.

prepare.py makes them from text that fits in memory; launch.tokenize (tokenize/packing.py) from any
amount. A token is a byte, or an id in the vocabulary of a tokenizer that is learned or given. Token
files hold raw little-endian unsigned integers, with documents packed one after another; a long
split continues in train-00001.bin and so on (tokenize/shards.py). meta.json holds

  tokenizer         bytes | bpe | synthetic | tokenizer.json | sentencepiece, or any other name in a
                    folder made elsewhere
  vocabulary_size   greater than every token
  end_of_document   the token after each document; null for synthetic text, one endless document
  dtype             uint8 | uint16 | uint32
  train_tokens, validation_tokens
  sha256            {train, train-00001, ..., validation, ...} of the token files, and of the
                    tokenizer's file (tokenizer.json or tokenizer.model), if any, as `tokenizer`
  documents         {train, validation}: [name, tokens without the end token] of each, in order; in
                    a folder made by launch.tokenize, which also stores its settings, their number
  files             {path: {read, left_out}}: the number of files that text was read from, and of
                    those left out by reason; only in folders made from files
  cut_documents     names of the documents that have text in both splits (splits.py); only in
                    folders made from files
  bigram_loss       validation loss, in nats, of the bigram model counted on train: the loss of a
                    model that uses only the preceding token
  unigram_loss      the same for the unigram model
  bigram_tokens     training tokens counted for both, at most 50 million
  entropy_rate      nats, of synthetic text; otherwise null
"""

import dataclasses
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stability.data import checksums, ngrams
from stability.data.tokenize import shards
from stability.errors import BadInput, writing
from stability.storage import files

Json = dict[str, Any]

SPLITS = ('train', 'validation')
SETTINGS = 'tokenize.json'  # written by launch.tokenize before meta.json; see packing.py

_TEMPORARY = re.compile(r'\.[0-9a-f]{16}\.[0-9a-f]{32}')  # of a folder that prepare.py names

_TOKEN_FILES = ('meta.json', 'train.bin', 'validation.bin')
_DTYPES = ('uint8', 'uint16', 'uint32')
_META_TYPES = {  # required keys of meta.json
    'tokenizer': str,
    'vocabulary_size': int,
    'end_of_document': int | None,
    'dtype': str,
    'train_tokens': int,
    'validation_tokens': int,
    'sha256': dict,
    'documents': dict,
    'bigram_loss': float,
    'unigram_loss': float,
    'bigram_tokens': int,
    'entropy_rate': float | None,
}


@dataclasses.dataclass(frozen=True)
class Tokens:
  """An open token folder."""

  train: np.memmap | shards.ShardedArray  # [train_tokens]
  validation: np.memmap | shards.ShardedArray  # [validation_tokens]
  meta: Json


# Writing.


def smallest_dtype(vocabulary_size: int) -> str:
  """The smallest of uint8, uint16 and uint32 that can hold every token."""
  return next(dtype for dtype in _DTYPES if vocabulary_size - 1 <= np.iinfo(dtype).max)


def statistics(
    arrays: Mapping[str, np.ndarray], vocabulary_size: int, entropy_rate: float | None = None
) -> Json:
  """The part of meta.json that is computed from the tokens."""
  args = arrays['train'], arrays['validation'], vocabulary_size
  return {
      'train_tokens': len(arrays['train']),
      'validation_tokens': len(arrays['validation']),
      'bigram_loss': ngrams.bigram_loss(*args),
      'unigram_loss': ngrams.unigram_loss(*args),
      'bigram_tokens': ngrams.counted_tokens(arrays['train']),
      'entropy_rate': entropy_rate,
  }


def digests(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
  """SHA-256 of each split: the part `sha256` of meta.json."""
  return {split: hashlib.sha256(arrays[split]).hexdigest() for split in SPLITS}


def write(
    folder: Path,
    meta: Json,
    arrays: Mapping[str, np.ndarray],
    encoder_file: tuple[str, bytes] | None = None,
) -> None:
  """Writes a token folder under a temporary name, then renames it."""
  temporary = folder.with_name(f'.{folder.name}.{uuid.uuid4().hex}')
  with writing(folder):
    temporary.mkdir(parents=True)
  try:
    _write_file(temporary / 'meta.json', json.dumps(meta, indent=1).encode())
    for split in SPLITS:
      _write_file(temporary / f'{split}.bin', arrays[split])
    if encoder_file:
      _write_file(temporary / encoder_file[0], encoder_file[1])
    try:
      os.rename(temporary, folder)
    except OSError:
      if not folder.exists():  # if it does, another launcher has just written the same text
        raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def remove_temporaries(directory: Path) -> None:
  """Deletes the folders that killed processes have left of `write`; no process may be in it now."""
  for path in directory.glob('.*'):
    if _TEMPORARY.fullmatch(path.name) and not path.is_symlink():
      shutil.rmtree(path)


def _write_file(file: Path, content: bytes | np.ndarray) -> None:
  with writing(file), file.open('wb') as stream:
    stream.write(content)
    stream.flush()
    os.fsync(stream.fileno())


# Opening.


def is_token_folder(path: str | None) -> bool:
  """Whether a data.path is a token folder; raises BadInput for an incomplete one."""
  if path is None:
    return False
  folder = Path(path)
  present = [name for name in _TOKEN_FILES if os.path.isfile(folder / name)]
  if 'meta.json' not in present and os.path.isfile(folder / SETTINGS):
    raise BadInput(
        f'config.data.path={path!r}: launch.tokenize has not finished it; the same command'
        ' resumes'
    )
  if not {'train.bin', 'validation.bin'}.intersection(present):
    return False
  if len(present) < len(_TOKEN_FILES):
    missing = ', '.join(name for name in _TOKEN_FILES if name not in present)
    nanogpt = ''
    if os.path.isfile(folder / 'val.bin'):
      nanogpt = '; launch.tokenize --from=nanogpt makes a token folder from those of nanoGPT'
    raise BadInput(f'config.data.path={path!r}: holds {present[-1]}, but not {missing}{nanogpt}')
  return True


def open_tokens(path: Path) -> Tokens:
  """Memory-maps a token folder; raises BadInput if meta.json is invalid or file sizes differ."""
  file = path / 'meta.json'
  meta = files.read_json(file)
  try:
    meta = files.nonfinite_to_null(meta)  # sweep.json, which will contain it, allows no NaN
  except ValueError as error:
    raise BadInput(f'{file}: cannot be read: {error}') from error
  wrong = [key for key, kind in _META_TYPES.items() if not _has_type(meta.get(key, ...), kind)]
  if wrong:
    raise BadInput(f'{file}: missing or of the wrong type: {", ".join(wrong)}')
  size, end = meta['vocabulary_size'], meta['end_of_document']
  if not 0 < size < 2**31:
    raise BadInput(f'{file}: vocabulary_size must be from 1 to 2^31 - 1')
  if end is not None and not 0 <= end < size:
    raise BadInput(
        f'{file}: end_of_document={end}: must be below vocabulary_size={size}, or null'
    )
  if meta['dtype'] not in _DTYPES:
    raise BadInput(f'{file}: dtype must be one of {", ".join(_DTYPES)}')
  width = little_endian(meta['dtype']).itemsize
  for split in SPLITS:
    paths, tokens = shard_paths(path, split, meta['sha256']), meta[f'{split}_tokens']
    if missing := [shard for shard in paths if not shard.is_file()]:
      raise BadInput(f'{missing[0]}: no such file')
    sizes = [shard.stat().st_size for shard in paths]
    if tokens == 0 or sum(sizes) != tokens * width or not all(sizes):
      more = f' and {len(paths) - 1} more' if len(paths) > 1 else ''
      raise BadInput(
          f'{paths[0]}{more}: holds {sum(sizes)} bytes; meta.json says {tokens} tokens of {width}'
          ' bytes, and at least one is needed'
      )
  return Tokens(meta=meta, **open_splits(path, meta))


def _has_type(value: Any, kind: Any) -> bool:
  return isinstance(value, kind) and not isinstance(value, bool)


def open_splits(path: Path, meta: Json) -> dict[str, np.memmap | shards.ShardedArray]:
  """Memory-maps the files of each split."""
  arrays = {}
  for split in SPLITS:
    paths = shard_paths(path, split, meta['sha256'])
    parts = [np.memmap(shard, little_endian(meta['dtype']), mode='r') for shard in paths]
    arrays[split] = parts[0] if len(parts) == 1 else shards.ShardedArray(parts)
  return arrays


def shard_paths(path: Path, split: str, names: Collection[str]) -> list[Path]:
  """The token files of a split, in order; names: the keys of meta.json's sha256."""
  return [path / f'{name}.bin' for name in shards.shard_names(split, names)]


def little_endian(dtype: str) -> np.dtype:
  """The dtype of token files, as meta.json names it."""
  return np.dtype(dtype).newbyteorder('<')


# Verifying.


def verify(path: Path, record: Path | None = None) -> None:
  """Reads all files of a token folder; raises BadInput if a checksum or a token is wrong.

  Args:
    path: the token folder.
    record: a file that stores the result, so that files of the same size and modification time are
      not read again: {folder: {file: [bytes, modified in ns, SHA-256, highest token]}}.
  """
  meta = open_tokens(path).meta
  known = checksums.read_record(record, path)
  result = {}
  for name, (file, dtype) in _checksummed_files(path, meta).items():
    stat = file.stat()
    signature = [stat.st_size, stat.st_mtime_ns]
    entry = known.get(file.name)
    if entry is None or entry[:2] != signature:
      entry = [*signature, *checksums.scan(file, dtype)]
    _, _, digest, highest = entry
    if digest != meta['sha256'].get(name):
      raise BadInput(f'{file}: damaged: its SHA-256 is not the one in meta.json')
    if dtype is not None and highest >= meta['vocabulary_size']:
      raise BadInput(
          f'{file}: holds token {highest}, but meta.json says'
          f' vocabulary_size={meta["vocabulary_size"]}'
      )
    result[file.name] = entry
  if record is not None and result != known:
    files.write_json(record, {str(path): result})


def _checksummed_files(path: Path, meta: Json) -> dict[str, tuple[Path, np.dtype | None]]:
  """The files of a token folder, each with its tokens' dtype, by key in meta.json's sha256."""
  dtype = little_endian(meta['dtype'])
  found = {
      shard.stem: (shard, dtype)
      for split in SPLITS
      for shard in shard_paths(path, split, meta['sha256'])
  }
  if 'tokenizer' in meta['sha256']:
    suffix = 'model' if meta['tokenizer'] == 'sentencepiece' else 'json'
    file = path / f'tokenizer.{suffix}'
    if not file.is_file():
      raise BadInput(f'{file}: no such file')
    found['tokenizer'] = (file, None)
  return found
