"""Token files: text made into train.bin, validation.bin and meta.json once, then memory-mapped.

A token is a byte's value or, with a learned vocabulary (bpe.py; tokenizer.json is the encoding in
the format of the library `tokenizers`), one of 256 bytes and their merges; 0 ends a document. Files
are raw little-endian unsigned integers, documents packed one after another. meta.json:

  tokenizer         bytes | bpe | synthetic | any other name, in folders made elsewhere
  vocabulary_size   every token is below it
  end_of_document   the token after each document; null for the one endless synthetic document
  dtype             uint8 | uint16 | uint32
  train_tokens, validation_tokens
  sha256            {train, validation} of the files
  documents         {train, validation}: [name, tokens without the end token] in order
  bigram_loss       nats on validation of the bigram model counted from train: what a model reaches
                    that has learned nothing beyond the token before
  unigram_loss      the same of the frequencies alone
  bigram_tokens     tokens of train counted for both: all that have one before, up to 50 million
  entropy_rate      nats; of synthetic text, else null
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stability.data import sources, synthetic
from stability.errors import BadInput

SIDES = ('train', 'validation')
BYTES = {'tokenizer': 'bytes', 'vocabulary_size': 256, 'end_of_document': 0}

_FILES = ('meta.json', 'train.bin', 'validation.bin')
_DTYPES = ('uint8', 'uint16', 'uint32')
_META = {  # what meta.json holds; a folder made elsewhere too
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
_CHUNK = 2**22  # tokens worked on at a time
_MOST_COUNTED = 50_000_000  # tokens of a side that the bigram model and its loss look at


class DataConfig(Protocol):
  """The part of a config that decides what the text is."""

  source: str  # text | synthetic
  path: str | None  # file, folder, folder of token files; None: the embedded text
  tokenizer: str  # bytes | bpe; of text, as token files and synthetic text have theirs
  vocabulary_size: int  # of the bpe


@dataclasses.dataclass(frozen=True)
class Tokens:
  """An open token folder."""

  train: np.memmap  # [train_tokens]
  validation: np.memmap  # [validation_tokens]
  meta: dict[str, Any]


def vocabulary_size(config_data: DataConfig) -> int:
  """Of the tokens that prepare makes or finds, without making them."""
  if config_data.source == 'synthetic':
    return synthetic.VOCABULARY
  if config_data.path is not None and _is_token_folder(Path(config_data.path)):
    return open_tokens(Path(config_data.path)).meta['vocabulary_size']
  return _about(config_data)['vocabulary_size']


def prepare(config_data: DataConfig, directory: Path, sequence_length: int) -> Path:
  """Makes directory/<hash>/ from the text and returns it; the hash is of text and tokenizer.

  The folder appears whole or not at all, and one that is there already is reused if its files
  match their checksums. A data.path that is itself a token folder is checked and returned as is.
  Raises BadInput, before anything is written, where a side is shorter than one sequence and the
  token after it, or where a vocabulary cannot be learned.
  """
  entropy_rate = None
  if config_data.source == 'synthetic':
    transition = synthetic.random_transition()
    sides = {
        'train': synthetic.sample(transition, synthetic.TRAIN_TOKENS, seed=1),
        'validation': synthetic.sample(transition, synthetic.VALIDATION_TOKENS, seed=2),
    }
    about = {'tokenizer': 'synthetic', 'vocabulary_size': len(transition), 'end_of_document': None}
    entropy_rate = synthetic.entropy_rate(transition)
    lengths = {side: [['synthetic', len(sides[side])]] for side in SIDES}
  elif config_data.path is not None and _is_token_folder(Path(config_data.path)):
    return _checked(Path(config_data.path).absolute(), sequence_length)
  else:
    documents = dict(zip(SIDES, sources.split(sources.documents(config_data.path)), strict=True))
    sides = {side: encode(documents[side]) for side in SIDES}
    about = _about(config_data)
    lengths = {side: [[name, len(text)] for name, text in documents[side]] for side in SIDES}

  dtype = smallest_dtype(about['vocabulary_size'])
  about |= {'dtype': dtype, 'sha256': _digests(sides)}
  # The bytes of a text name its folder, so that a vocabulary is learned from it once.
  folder = directory / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
  if not folder.exists():
    files = {}
    if about['tokenizer'] == 'bpe':
      sides, lengths, files['tokenizer.json'] = _learn(documents, about['vocabulary_size'])
    _check_lengths(sides, sequence_length)
    sides = {side: sides[side].astype(_little_endian(dtype), copy=False) for side in SIDES}
    train, validation = sides['train'], sides['validation']
    meta = {
        **about,
        'sha256': _digests(sides),
        'train_tokens': len(train),
        'validation_tokens': len(validation),
        'bigram_loss': bigram_loss(train, validation, about['vocabulary_size']),
        'unigram_loss': unigram_loss(train, validation, about['vocabulary_size']),
        'bigram_tokens': sum(len(chunk) - 1 for chunk in _chunks(train)),
        'entropy_rate': entropy_rate,
        'documents': lengths,
    }
    _write(folder, meta, sides, files)
  return _checked(folder, sequence_length)


def encode(documents: Sequence[sources.Document]) -> np.ndarray:
  """Documents as bytes, each followed by the end token 0; uint8 [tokens]."""
  return np.frombuffer(b''.join(text + b'\0' for _, text in documents), np.uint8)


def _about(config_data: DataConfig) -> dict[str, Any]:
  """What meta.json says of the tokenizer of a text."""
  if config_data.tokenizer == 'bytes':
    return dict(BYTES)
  return BYTES | {'tokenizer': 'bpe', 'vocabulary_size': config_data.vocabulary_size}


def _learn(
    documents: Mapping[str, Sequence[sources.Document]], vocabulary_size: int
) -> tuple[dict[str, np.ndarray], dict[str, list], bytes]:
  """Learns a BPE from the training side: the tokens of both, [name, tokens] of each, its file."""
  from stability.data import bpe  # the library is slow to import, and most text is bytes

  tokenizer = bpe.learn(documents['train'], vocabulary_size)
  sides, lengths = {}, {}
  for side in SIDES:
    sides[side], counts = bpe.encode(tokenizer, documents[side])
    names = [name for name, _ in documents[side]]
    lengths[side] = [list(pair) for pair in zip(names, counts, strict=True)]
  return sides, lengths, tokenizer.to_str(pretty=True).encode()


def smallest_dtype(vocabulary_size: int) -> str:
  """uint8, uint16 or uint32, the first that holds every token."""
  return next(dtype for dtype in _DTYPES if vocabulary_size - 1 <= np.iinfo(dtype).max)


def open_tokens(path: Path) -> Tokens:
  """Memory-maps a token folder; raises BadInput where meta.json and the files disagree in size."""
  try:
    meta = json.loads((path / 'meta.json').read_text())
  except (OSError, ValueError) as error:
    raise BadInput(f'{path / "meta.json"}: cannot be read: {error}') from error
  if not isinstance(meta, dict):
    raise BadInput(f'{path / "meta.json"}: must hold an object')
  wrong = [key for key in _META if key not in meta or not isinstance(meta[key], _META[key])]
  if wrong:
    raise BadInput(f'{path / "meta.json"}: missing or of a wrong type: {", ".join(wrong)}')
  if meta['dtype'] not in _DTYPES:
    raise BadInput(f'{path / "meta.json"}: dtype must be one of {", ".join(_DTYPES)}')
  dtype = _little_endian(meta['dtype'])
  arrays = {}
  for side in SIDES:
    file, tokens = path / f'{side}.bin', meta[f'{side}_tokens']
    if not file.is_file():
      raise BadInput(f'{file}: no such file')
    if tokens == 0 or file.stat().st_size != tokens * dtype.itemsize:
      raise BadInput(
          f'{file}: holds {file.stat().st_size} bytes; meta.json says {tokens} tokens of'
          f' {dtype.itemsize} bytes, and at least one is needed'
      )
    arrays[side] = np.memmap(file, dtype, mode='r')
  return Tokens(meta=meta, **arrays)


def _checked(folder: Path, sequence_length: int) -> Path:
  """The folder, its files verified and long enough."""
  verify(folder)
  tokens = open_tokens(folder)
  _check_lengths({side: getattr(tokens, side) for side in SIDES}, sequence_length)
  return folder


def verify(path: Path) -> None:
  """Reads a token folder through; raises BadInput where a checksum or a token is wrong."""
  tokens = open_tokens(path)
  for side in SIDES:
    values = getattr(tokens, side)
    digest, highest = hashlib.sha256(), 0
    for start in range(0, len(values), _CHUNK):
      chunk = values[start : start + _CHUNK]
      digest.update(chunk)
      highest = max(highest, int(chunk.max()))
    if digest.hexdigest() != tokens.meta['sha256'].get(side):
      raise BadInput(f'{path / side}.bin: damaged, its SHA-256 is not the one in meta.json')
    if highest >= tokens.meta['vocabulary_size']:
      raise BadInput(
          f'{path / side}.bin: holds token {highest}, meta.json allows those below'
          f' vocabulary_size={tokens.meta["vocabulary_size"]}'
      )


def bigram_loss(train: np.ndarray, validation: np.ndarray, vocabulary_size: int) -> float:
  """Nats per token on validation of the bigram model counted from train; two tokens or more each.

  p(b|a) = (c(a,b) + p(b)) / (c(a) + 1): one imagined count, spread as the add-one unigram p(b).
  """
  pairs, counts = _count_pairs(train, vocabulary_size)
  firsts = np.bincount(pairs // vocabulary_size, counts, vocabulary_size)
  seconds = np.bincount(pairs % vocabulary_size, counts, vocabulary_size)
  wanted, times = _count_pairs(validation, vocabulary_size)
  at = np.minimum(np.searchsorted(pairs, wanted), len(pairs) - 1)
  seen = np.where(pairs[at] == wanted, counts[at], 0)
  a, b = np.divmod(wanted, vocabulary_size)
  log = np.log((seen + _add_one(seconds)[b]) / (firsts[a] + 1))
  return float(-(times @ log) / times.sum())


def unigram_loss(train: np.ndarray, validation: np.ndarray, vocabulary_size: int) -> float:
  """Nats per token on validation of the frequencies in train, with one count added to each."""
  times = _count_next(validation, vocabulary_size)
  log = np.log(_add_one(_count_next(train, vocabulary_size)))
  return float(-(times @ log) / times.sum())


def _chunks(tokens: np.ndarray) -> Iterator[np.ndarray]:
  """Pieces that overlap by a token, so that every pair is in one; of long text an even part."""
  count = math.ceil((len(tokens) - 1) / _CHUNK)
  used = min(count, _MOST_COUNTED // _CHUNK)
  for i in range(used):
    start = i * count // used * _CHUNK
    yield tokens[start : start + _CHUNK + 1].astype(np.int64)


def _count_pairs(tokens: np.ndarray, vocabulary_size: int) -> tuple[np.ndarray, np.ndarray]:
  """The distinct a * vocabulary_size + b of neighbours a, b, in order, and how often each is."""
  pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
  for chunk in _chunks(tokens):
    new, times = np.unique(chunk[:-1] * vocabulary_size + chunk[1:], return_counts=True)
    pairs, place = np.unique(np.concatenate([pairs, new]), return_inverse=True)
    counts = np.bincount(place, np.concatenate([counts, times])).astype(np.int64)
  return pairs, counts


def _count_next(tokens: np.ndarray, vocabulary_size: int) -> np.ndarray:
  """How often each token follows another, int64 [vocabulary_size]."""
  return sum(np.bincount(chunk[1:], minlength=vocabulary_size) for chunk in _chunks(tokens))


def _add_one(counts: np.ndarray) -> np.ndarray:
  """Probabilities from counts, with one more of each."""
  return (counts + 1) / (counts.sum() + len(counts))


def _digests(sides: Mapping[str, np.ndarray]) -> dict[str, str]:
  return {side: hashlib.sha256(sides[side]).hexdigest() for side in SIDES}


def _check_lengths(sides: Mapping[str, np.ndarray], sequence_length: int) -> None:
  for side, tokens in sides.items():
    if len(tokens) < sequence_length + 1:
      raise BadInput(
          f'config.data.path holds {len(tokens)} tokens of {side} text;'
          f' config.data.sequence_length={sequence_length} needs at least {sequence_length + 1}'
      )


def _little_endian(dtype: str) -> np.dtype:
  return np.dtype(dtype).newbyteorder('<')


def _is_token_folder(path: Path) -> bool:
  """Whether token files are meant; raises BadInput where one is missing, lest it pass as text."""
  there = [name for name in _FILES if os.path.isfile(path / name)]
  if not {'train.bin', 'validation.bin'}.intersection(there):
    return False
  if len(there) < len(_FILES):
    missing = ', '.join(name for name in _FILES if name not in there)
    raise BadInput(f'config.data.path={str(path)!r}: holds {there[-1]}, but not {missing}')
  return True


def _write(
    folder: Path,
    meta: dict[str, Any],
    sides: Mapping[str, np.ndarray],
    files: Mapping[str, bytes],
) -> None:
  """Writes a token folder under another name, then gives it its own."""
  temporary = folder.with_name(f'.{folder.name}.{uuid.uuid4().hex}')
  temporary.mkdir(parents=True)
  try:
    _write_file(temporary / 'meta.json', json.dumps(meta, indent=1).encode())
    for side in SIDES:
      _write_file(temporary / f'{side}.bin', sides[side])
    for name, content in files.items():
      _write_file(temporary / name, content)
    try:
      os.rename(temporary, folder)
    except OSError:
      # Another launcher was first with the same text; whatever else it is, is no fault of ours.
      if not folder.exists():
        raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _write_file(file: Path, content: bytes | np.ndarray) -> None:
  with file.open('wb') as stream:
    stream.write(content)
    stream.flush()
    os.fsync(stream.fileno())
