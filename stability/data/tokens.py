"""Token files: text made into train.bin, validation.bin and meta.json once, then memory-mapped.

Text in memory is made into them here, any amount by packing.py (launch.tokenize).

A token is a byte's value or, with a learned vocabulary (bpe.py; tokenizer.json is the encoding in
the format of the library `tokenizers`), one of 256 bytes and their merges; 0 ends a document. Files
are raw little-endian unsigned integers, documents packed one after another; a side may go on in
train-00001.bin and so on (shards.py). meta.json:

  tokenizer         bytes | bpe | synthetic | tokenizer.json | sentencepiece | any other name, in
                    folders made elsewhere
  vocabulary_size   every token is below it
  end_of_document   the token after each document; null for the one endless synthetic document
  dtype             uint8 | uint16 | uint32
  train_tokens, validation_tokens
  sha256            {train, train-00001, ..., validation, ...} of the files; tokenizer, of the
                    tokenizer's own (tokenizer.json or tokenizer.model), where there is one
  documents         {train, validation}: [name, tokens without the end token] in order, or of
                    launch.tokenize, which adds what it was asked for, how many
  bigram_loss       nats on validation of the bigram model counted from train: what a model reaches
                    that has learned nothing beyond the token before
  unigram_loss      the same of the frequencies alone
  bigram_tokens     tokens of train counted for both: all that have one before, up to 50 million
  entropy_rate      nats; of synthetic text, else null
"""

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stability.data import ngrams, sources, synthetic
from stability.data.tokenize import shards
from stability.errors import BadInput, writing
from stability.storage import files as files_lib

SIDES = ('train', 'validation')
SETTINGS = 'tokenize.json'  # in a folder of launch.tokenize, before meta.json: packing.py
BYTES = {'tokenizer': 'bytes', 'vocabulary_size': 256, 'end_of_document': 0}

_TOKEN_FILES = ('meta.json', 'train.bin', 'validation.bin')
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


class DataConfig(Protocol):
  """The part of a config that decides what the text is."""

  source: str  # text | synthetic
  path: str | None  # file, folder, folder of token files; None: the embedded text
  tokenizer: str  # bytes | bpe; of text, as token files and synthetic text have theirs
  vocabulary_size: int  # of the bpe


@dataclasses.dataclass(frozen=True)
class Tokens:
  """An open token folder."""

  train: np.memmap | shards.Shards  # [train_tokens]
  validation: np.memmap | shards.Shards  # [validation_tokens]
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
    return _checked(Path(config_data.path).absolute(), sequence_length, directory)
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
    digests = _digests(sides)
    if files:
      digests['tokenizer'] = hashlib.sha256(files['tokenizer.json']).hexdigest()
    meta = about | {'sha256': digests, 'documents': lengths} | measured(sides, about, entropy_rate)
    _write(folder, meta, sides, files)
  return _checked(folder, sequence_length, directory)


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
  from stability.data.tokenize import bpe  # the library is slow to import, and most text is bytes

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
    # As sweep.json will hold it, so that what cannot be written there is refused here.
    meta = files_lib.nonfinite_to_null(json.loads((path / 'meta.json').read_text()))
  except (OSError, ValueError, RecursionError) as error:
    raise BadInput(f'{path / "meta.json"}: cannot be read: {error}') from error
  if not isinstance(meta, dict):
    raise BadInput(f'{path / "meta.json"}: must hold an object')
  wrong = [key for key in _META if key not in meta or not _is(meta[key], _META[key])]
  if wrong:
    raise BadInput(f'{path / "meta.json"}: missing or of a wrong type: {", ".join(wrong)}')
  vocabulary_size, end = meta['vocabulary_size'], meta['end_of_document']
  if not 0 < vocabulary_size < 2**31:
    raise BadInput(f'{path / "meta.json"}: vocabulary_size must be from 1 to 2^31 - 1')
  if end is not None and not 0 <= end < vocabulary_size:
    raise BadInput(
        f'{path / "meta.json"}: end_of_document={end}: must be below vocabulary_size='
        f'{vocabulary_size}, or null'
    )
  if meta['dtype'] not in _DTYPES:
    raise BadInput(f'{path / "meta.json"}: dtype must be one of {", ".join(_DTYPES)}')
  for side in SIDES:
    files, tokens = side_files(path, side, meta['sha256']), meta[f'{side}_tokens']
    if missing := [file for file in files if not file.is_file()]:
      raise BadInput(f'{missing[0]}: no such file')
    size, width = sum(file.stat().st_size for file in files), _little_endian(meta['dtype']).itemsize
    if tokens == 0 or size != tokens * width or not all(file.stat().st_size for file in files):
      raise BadInput(
          f'{files[0]}{" and on" if len(files) > 1 else ""}: holds {size} bytes; meta.json says'
          f' {tokens} tokens of {width} bytes, and at least one is needed'
      )
  return Tokens(meta=meta, **open_sides(path, meta))


def _is(value: Any, kind: Any) -> bool:
  return isinstance(value, kind) and not isinstance(value, bool)


def open_sides(
    path: Path, meta: Mapping[str, Any]
) -> dict[str, np.memmap | shards.Shards]:
  """Memory-maps the files of each side."""
  sides = {}
  for side in SIDES:
    files = side_files(path, side, meta['sha256'])
    parts = [np.memmap(file, _little_endian(meta['dtype']), mode='r') for file in files]
    sides[side] = parts[0] if len(parts) == 1 else shards.Shards(parts)
  return sides


def side_files(path: Path, side: str, names: Collection[str]) -> list[Path]:
  """The files of a side, in order, by the names in meta.json's sha256."""
  return [path / f'{stem}.bin' for stem in shards.stems(side, names)]


def _checked(folder: Path, sequence_length: int, directory: Path) -> Path:
  """The folder, its files verified, once for all that keep their data in `directory`."""
  tokens = open_tokens(folder)
  _check_lengths({side: getattr(tokens, side) for side in SIDES}, sequence_length)
  verify(folder, directory / 'verified.json')
  return folder


def measured(
    sides: Mapping[str, np.ndarray], about: Mapping[str, Any], entropy_rate: float | None
) -> dict[str, Any]:
  """What meta.json says of the tokens: how many, and the losses of models that know little."""
  pair = sides['train'], sides['validation'], about['vocabulary_size']
  return {
      'train_tokens': len(sides['train']),
      'validation_tokens': len(sides['validation']),
      'bigram_loss': ngrams.bigram_loss(*pair),
      'unigram_loss': ngrams.unigram_loss(*pair),
      'bigram_tokens': ngrams.counted(sides['train']),
      'entropy_rate': entropy_rate,
  }


def verify(path: Path, record: Path | None = None) -> None:
  """Reads a token folder through; raises BadInput where a checksum or a token is wrong.

  record: a file where what was found is kept, {folder: {file: [bytes, date of the last change in
  ns, SHA-256, highest token]}}, so that files of the same size and date are not read again.
  """
  meta = open_tokens(path).meta
  before = _recorded(record, path)
  found = {}
  for name, (file, dtype) in _files(path, meta).items():
    stat = file.stat()
    signature = [stat.st_size, stat.st_mtime_ns]
    there = before.get(file.name)
    if there is None or there[:2] != signature:
      there = [*signature, *_read_through(file, dtype)]
    if there[2] != meta['sha256'].get(name):
      raise BadInput(f'{file}: damaged, its SHA-256 is not the one in meta.json')
    if dtype is not None and there[3] >= meta['vocabulary_size']:
      raise BadInput(
          f'{file}: holds token {there[3]}, meta.json allows those below'
          f' vocabulary_size={meta["vocabulary_size"]}'
      )
    found[file.name] = there
  if record is not None and found != before:
    files_lib.write_json(record, {str(path): found})


def _files(path: Path, meta: Mapping[str, Any]) -> dict[str, tuple[Path, np.dtype | None]]:
  """The files of a folder by their name in meta.json, with the type of their tokens."""
  dtype = _little_endian(meta['dtype'])
  files = {
      file.stem: (file, dtype) for side in SIDES for file in side_files(path, side, meta['sha256'])
  }
  if 'tokenizer' in meta['sha256']:
    suffix = 'model' if meta['tokenizer'] == 'sentencepiece' else 'json'
    files['tokenizer'] = (path / f'tokenizer.{suffix}', None)
    if not files['tokenizer'][0].is_file():
      raise BadInput(f'{files["tokenizer"][0]}: no such file')
  return files


def _read_through(file: Path, dtype: np.dtype | None) -> tuple[str, int | None]:
  """SHA-256 of a file, and its highest token, if it holds any."""
  if dtype is None:
    return hashlib.sha256(file.read_bytes()).hexdigest(), None
  values = np.memmap(file, dtype, mode='r')
  digest, highest = hashlib.sha256(), 0
  for start in range(0, len(values), _CHUNK):
    chunk = values[start : start + _CHUNK]
    digest.update(chunk)
    highest = max(highest, int(chunk.max()))
  return digest.hexdigest(), highest


def _recorded(record: Path | None, path: Path) -> dict[str, list]:
  try:
    found = json.loads(record.read_text())[str(path)] if record else {}
    return {name: entry for name, entry in found.items() if len(entry) == 4}
  except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
    return {}  # damaged, say; it is made again


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
  there = [name for name in _TOKEN_FILES if os.path.isfile(path / name)]
  if 'meta.json' not in there and os.path.isfile(path / SETTINGS):
    raise BadInput(
        f'config.data.path={str(path)!r}: launch.tokenize has not finished it; the same command'
        ' goes on'
    )
  if not {'train.bin', 'validation.bin'}.intersection(there):
    return False
  if len(there) < len(_TOKEN_FILES):
    missing = ', '.join(name for name in _TOKEN_FILES if name not in there)
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
  with writing(folder):
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
  with writing(file), file.open('wb') as stream:
    stream.write(content)
    stream.flush()
    os.fsync(stream.fileno())
