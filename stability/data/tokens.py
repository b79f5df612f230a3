"""Token folders: train.bin, validation.bin and meta.json, written once and memory-mapped.

`prepare` makes them from text that fits in memory; launch.tokenize (tokenize/packing.py) from any
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

The module is over 400 lines since the files' description and their checks belong together.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stability.data import checksums, labels, ngrams, sources, split_names, splits, synthetic
from stability.data.tokenize import encoders, shards
from stability.errors import BadInput, writing
from stability.storage import files

Json = dict[str, Any]

SPLITS = ('train', 'validation')
SETTINGS = 'tokenize.json'  # written by launch.tokenize before meta.json; see packing.py

_TOKENIZER_OPTIONS = ('tokenizer', 'vocabulary_size')
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


class DataConfig(Protocol):
  """The fields of config.data that determine the text."""

  source: str  # text | synthetic
  path: str | None  # file, folder of text or token folder; None: the embedded text
  tokenizer: str  # bytes | bpe; ignored by token folders and synthetic text, which have their own
  vocabulary_size: int  # of a BPE
  labels: str  # none | kept | weights; see labels.py


@dataclasses.dataclass(frozen=True)
class Tokens:
  """An open token folder."""

  train: np.memmap | shards.ShardedArray  # [train_tokens]
  validation: np.memmap | shards.ShardedArray  # [validation_tokens]
  meta: Json


# Preparing.


def vocabulary_size(data: DataConfig) -> int:
  """The vocabulary size of the tokens that `prepare` would return."""
  return tokenizer(data)['vocabulary_size']


def tokenizer(data: DataConfig) -> Json:
  """`tokenizer`, `vocabulary_size` and, if known, other entries of the meta.json of `prepare`."""
  if data.source == 'synthetic':
    return {'tokenizer': 'synthetic', 'vocabulary_size': synthetic.VOCABULARY}
  if is_token_folder(data.path):
    return open_tokens(Path(data.path)).meta
  return _text_tokenizer(data)


def ignored_options(data: DataConfig) -> dict[str, tuple[Any, Any]]:
  """The options that a token folder as data.path ignores: option -> (value, that of the folder)."""
  if data.source == 'synthetic' or not is_token_folder(data.path):
    return {}
  meta = open_tokens(Path(data.path)).meta
  values = {f'data.{name}': (getattr(data, name), meta[name]) for name in _TOKENIZER_OPTIONS}
  return {option: pair for option, pair in values.items() if pair[0] != pair[1]}


def prepare(
    data: DataConfig,
    directory: Path,
    sequence_length: int,
    tell: Callable[[str], None] = lambda line: None,
) -> Path:
  """Prepares the tokens of a config; returns their folder.

  The folder is data.path itself if that is a token folder, and directory/<hash> otherwise, where
  the hash covers text and tokenizer. A new folder appears as a whole or not at all. An existing
  folder is used if its files match their checksums; directory/verified.json remembers the result.

  Args:
    data: the section `data` of the config.
    directory: holds the folders that are made.
    sequence_length: tokens predicted per window.
    tell: called with lines on the files that the text was read from, and on its split.

  Raises:
    BadInput: a split is shorter than one window, a vocabulary cannot be learned, or a token folder
      is invalid. Nothing has been written in that case.
  """
  if data.source != 'synthetic' and is_token_folder(data.path):
    folder = _verified(Path(data.path).absolute(), sequence_length, directory)
    ignored = ignored_options(data)
    if data.tokenizer == 'bytes':  # which has no vocabulary to choose
      ignored.pop('data.vocabulary_size', None)
    if ignored:
      meta = open_tokens(folder).meta
      options = ', '.join(f'config.{option}={value}' for option, (value, _) in ignored.items())
      tell(
          f'text: {data.path} is a token folder: its tokenizer={meta["tokenizer"]} and'
          f' vocabulary_size={meta["vocabulary_size"]} are used, not {options}'
      )
    if data.labels == 'none':
      return folder
    return _verified(_of_labels(folder, data.labels, directory), sequence_length, directory)
  if data.labels != 'none':
    raise BadInput(
        f'config.data.labels={data.labels}: needs a token folder with labels as config.data.path;'
        ' launch.label read makes it'
    )
  entropy_rate = found = None
  if data.source == 'synthetic':
    transition = synthetic.transition_matrix()
    arrays = {
        'train': synthetic.sample(transition, synthetic.TRAIN_TOKENS, seed=1),
        'validation': synthetic.sample(transition, synthetic.VALIDATION_TOKENS, seed=2),
    }
    meta = {'tokenizer': 'synthetic', 'vocabulary_size': len(transition), 'end_of_document': None}
    entropy_rate = synthetic.entropy_rate(transition)
    names = {split: ['synthetic'] for split in SPLITS}
    lengths = {split: [len(arrays[split])] for split in SPLITS}
  else:
    documents, found = sources.read_documents(data.path)
    what = "Python's standard library" if data.path is None else data.path
    meta = _text_tokenizer(data)
    split = splits.train_validation_split(documents)
    if any(directory.glob('*/meta.json')):
      # A workdir from before whole documents were held out continues with its own split.
      pieces = splits.split_of_pieces(documents)
      if pieces and _folder(directory, meta, _pack(encoders.ByteEncoder(), pieces)[0]).exists():
        split = pieces
    names = {name: [document for document, _ in getattr(split, name)] for name in SPLITS}
    arrays, lengths = _pack(encoders.ByteEncoder(), split)

  dtype = smallest_dtype(meta['vocabulary_size'])
  folder = _folder(directory, meta, arrays)
  meta['dtype'] = dtype
  if not folder.exists():
    encoder_file = None
    if meta['tokenizer'] == 'bpe':
      option = 'config.data.vocabulary_size'
      texts = [text for _, text in split.train]
      encoder = encoders.learn(texts, meta['vocabulary_size'], option)
      arrays, lengths = _pack(encoder, split)
      encoder_file = encoder.file
    _check_lengths(arrays, sequence_length)
    arrays = {s: array.astype(_little_endian(dtype), copy=False) for s, array in arrays.items()}
    meta['sha256'] = digests(arrays)
    if encoder_file:
      meta['sha256']['tokenizer'] = encoders.digest(encoder)
    if found is not None:
      meta['files'] = {what: found.to_json()}
      meta['cut_documents'] = split.cut
    meta['documents'] = {
        name: [list(pair) for pair in zip(names[name], lengths[name], strict=True)]
        for name in SPLITS
    }
    meta |= statistics(arrays, meta['vocabulary_size'], entropy_rate)
    write(folder, meta, arrays, encoder_file)
  if found is not None:
    tell(f'text: {found} in {what}')
    for line in split.lines():
      tell(line)
    if named := split_names.named(found.files):
      tell(split_names.line(named, 'read like the others; launch.tokenize keeps splits'))
  return _verified(folder, sequence_length, directory)


def _of_labels(labelled: Path, rule: str, directory: Path) -> Path:
  """Makes the token folder of the training documents that data.labels chooses."""
  opened = open_tokens(labelled)
  listed = opened.meta['documents'].get('train')
  listed = listed if isinstance(listed, list) else []
  positions = labels.chosen(labelled, rule, len(listed))
  train = labels.select(opened.train, [length for _, length in listed], positions)
  arrays = {'train': train, 'validation': np.asarray(opened.validation[:])}
  meta = dict(opened.meta)
  hashed = {'labels': rule, 'tokenizer': meta['sha256'].get('tokenizer')}
  folder = _folder(directory, hashed, arrays, meta['dtype'])
  if not folder.exists():
    tokenizer = {key: value for key, value in meta['sha256'].items() if key == 'tokenizer'}
    meta['sha256'] = digests(arrays) | tokenizer
    meta['documents'] = meta['documents'] | {'train': [listed[n] for n in positions]}
    meta |= statistics(arrays, meta['vocabulary_size'])
    copied = [(path.name, path.read_bytes()) for path in labelled.glob('tokenizer.[jm]*')]
    write(folder, meta, arrays, copied[0] if copied else None)
  return folder


def _folder(
    directory: Path, meta: Json, arrays: Mapping[str, np.ndarray], dtype: str | None = None
) -> Path:
  """The folder of a text; meta: what `_text_tokenizer` returns, arrays: the text as bytes.

  The name is a hash of bytes even for a BPE, so that it can be computed without learning the
  vocabulary again.
  """
  dtype = dtype or smallest_dtype(meta['vocabulary_size'])
  hashed = meta | {'dtype': dtype, 'sha256': digests(arrays)}
  return directory / hashlib.sha256(json.dumps(hashed).encode()).hexdigest()[:16]


def _text_tokenizer(data: DataConfig) -> Json:
  """The part of meta.json that describes the tokenizer of a config with data.source=text."""
  encoder = encoders.ByteEncoder
  size = encoder.vocabulary_size if data.tokenizer == 'bytes' else data.vocabulary_size
  return {
      'tokenizer': data.tokenizer,
      'vocabulary_size': size,
      'end_of_document': encoder.end_of_document,
  }


def _pack(
    encoder: encoders.Encoder, split: splits.Split
) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
  packed = {
      name: encoders.pack(encoder, [text for _, text in getattr(split, name)]) for name in SPLITS
  }
  arrays = {name: array for name, (array, _) in packed.items()}
  return arrays, {name: lengths for name, (_, lengths) in packed.items()}


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


def _check_lengths(arrays: Mapping[str, np.ndarray], sequence_length: int) -> None:
  for split, tokens in arrays.items():
    if len(tokens) < sequence_length + 1:
      raise BadInput(
          f'config.data.path holds {len(tokens)} tokens of {split} text;'
          f' config.data.sequence_length={sequence_length} needs at least {sequence_length + 1}'
      )


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
  width = _little_endian(meta['dtype']).itemsize
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
    parts = [np.memmap(shard, _little_endian(meta['dtype']), mode='r') for shard in paths]
    arrays[split] = parts[0] if len(parts) == 1 else shards.ShardedArray(parts)
  return arrays


def shard_paths(path: Path, split: str, names: Collection[str]) -> list[Path]:
  """The token files of a split, in order; names: the keys of meta.json's sha256."""
  return [path / f'{name}.bin' for name in shards.shard_names(split, names)]


def _little_endian(dtype: str) -> np.dtype:
  return np.dtype(dtype).newbyteorder('<')


# Verifying.


def _verified(folder: Path, sequence_length: int, directory: Path) -> Path:
  """Checks the lengths and checksums of a token folder; returns the folder."""
  tokens = open_tokens(folder)
  _check_lengths({split: getattr(tokens, split) for split in SPLITS}, sequence_length)
  verify(folder, directory / 'verified.json')
  return folder


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
  dtype = _little_endian(meta['dtype'])
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
