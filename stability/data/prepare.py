"""The tokens of a config: a token folder made from text that fits in memory, or a given one."""

import dataclasses
import hashlib
import json
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stability.config import Config
from stability.data import labels, listing, sources, split_names, splits, synthetic, tokens
from stability.data.tokenize import encoders
from stability.data.tokens import SPLITS, Json
from stability.errors import BadInput

_TOKENIZER_OPTIONS = ('tokenizer', 'vocabulary_size')


class DataConfig(Protocol):
  """The fields of config.data that determine the text."""

  source: str  # text | synthetic
  path: str | None  # file, folder of text or token folder; None: the embedded text
  tokenizer: str  # bytes | bpe; ignored by token folders and synthetic text, which have their own
  vocabulary_size: int  # of a BPE
  labels: str  # none | kept | weights; see labels.py


@dataclasses.dataclass(frozen=True)
class _Text:
  """The text that a token folder is made from."""

  tokenizer: Json  # the entries of meta.json that describe the tokenizer
  arrays: Mapping[str, np.ndarray]  # the tokens of each split; bytes if a BPE is to be learned
  documents: Json  # those of `arrays`, as in meta.json
  split: splits.Split | None = None  # what `arrays` holds; None: synthetic text
  files: Json = dataclasses.field(default_factory=dict)  # `files` and `cut_documents` of meta.json
  lines: Sequence[str] = ()  # on the files that the text was read from, and on its split
  entropy_rate: float | None = None


def data_config(config: Config) -> DataConfig:
  """The text of a run's config, which is the same for all runs of a sweep."""
  return types.SimpleNamespace(**config['data'])


def vocabulary_size(data: DataConfig) -> int:
  """The vocabulary size of the tokens that `prepare` would return."""
  return tokenizer(data)['vocabulary_size']


def tokenizer(data: DataConfig) -> Json:
  """`tokenizer`, `vocabulary_size` and, if known, other entries of the meta.json of `prepare`."""
  if data.source == 'synthetic':
    return {'tokenizer': 'synthetic', 'vocabulary_size': synthetic.VOCABULARY}
  if tokens.is_token_folder(data.path):
    return tokens.open_tokens(Path(data.path)).meta
  return _text_tokenizer(data)


def ignored_options(data: DataConfig) -> dict[str, tuple[Any, Any]]:
  """The options that a token folder as data.path ignores: option -> (value, that of the folder)."""
  if data.source == 'synthetic' or not tokens.is_token_folder(data.path):
    return {}
  meta = tokens.open_tokens(Path(data.path)).meta
  values = {f'data.{name}': (getattr(data, name), meta[name]) for name in _TOKENIZER_OPTIONS}
  return {option: pair for option, pair in values.items() if pair[0] != pair[1]}


def check_workdir(data: DataConfig, workdir: Path) -> None:
  """Raises BadInput for a workdir whose files would be part of the text to train on."""
  if data.path is None or tokens.is_token_folder(data.path):
    return
  if listing.lists(Path(data.path), workdir):
    raise BadInput(
        f'--workdir={workdir}: lies in config.data.path={data.path!r}; name a folder outside it'
    )


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
  if data.source != 'synthetic' and tokens.is_token_folder(data.path):
    folder = verified(Path(data.path).absolute(), sequence_length, directory)
    _tell_ignored(data, folder, tell)
    if data.labels == 'none':
      return folder
    return verified(_of_labels(folder, data.labels, directory), sequence_length, directory)
  if data.labels != 'none':
    raise BadInput(
        f'config.data.labels={data.labels}: needs a token folder with labels as config.data.path;'
        ' launch.label read makes it'
    )
  text = _synthetic_text() if data.source == 'synthetic' else _read_text(data, directory)
  folder = _folder(directory, text.tokenizer, text.arrays)
  if not folder.exists():
    _write(folder, text, sequence_length)
  for line in text.lines:
    tell(line)
  return verified(folder, sequence_length, directory)


def _tell_ignored(data: DataConfig, folder: Path, tell: Callable[[str], None]) -> None:
  ignored = ignored_options(data)
  if data.tokenizer == 'bytes':  # which has no vocabulary to choose
    ignored.pop('data.vocabulary_size', None)
  if ignored:
    meta = tokens.open_tokens(folder).meta
    options = ', '.join(f'config.{option}={value}' for option, (value, _) in ignored.items())
    tell(
        f'text: {data.path} is a token folder: its tokenizer={meta["tokenizer"]} and'
        f' vocabulary_size={meta["vocabulary_size"]} are used, not {options}'
    )


def _synthetic_text() -> _Text:
  transition = synthetic.transition_matrix()
  arrays = {
      'train': synthetic.sample(transition, synthetic.TRAIN_TOKENS, seed=1),
      'validation': synthetic.sample(transition, synthetic.VALIDATION_TOKENS, seed=2),
  }
  return _Text(
      {'tokenizer': 'synthetic', 'vocabulary_size': len(transition), 'end_of_document': None},
      arrays,
      {split: [['synthetic', len(arrays[split])]] for split in SPLITS},
      entropy_rate=synthetic.entropy_rate(transition),
  )


def _read_text(data: DataConfig, directory: Path) -> _Text:
  """Reads and splits the files of data.path; directory: as in `prepare`."""
  documents, found = sources.read_documents(data.path)
  meta = _text_tokenizer(data)
  split = splits.train_validation_split(documents)
  if any(directory.glob('*/meta.json')):
    # A workdir from before whole documents were held out continues with its own split.
    pieces = splits.split_of_pieces(documents)
    if pieces and _folder(directory, meta, _pack(encoders.ByteEncoder(), pieces)[0]).exists():
      split = pieces
  arrays, documents = _pack(encoders.ByteEncoder(), split)
  what = "Python's standard library" if data.path is None else data.path
  lines = [f'text: {found} in {what}', *split.lines()]
  if named := split_names.named(found.files):
    lines.append(split_names.line(named, 'read like the others; launch.tokenize keeps splits'))
  return _Text(
      meta,
      arrays,
      documents,
      split,
      files={'files': {what: found.to_json()}, 'cut_documents': split.cut},
      lines=lines,
  )


def _write(folder: Path, text: _Text, sequence_length: int) -> None:
  """Writes the token folder of a text; learns the vocabulary of a BPE."""
  size, arrays, documents = text.tokenizer['vocabulary_size'], text.arrays, text.documents
  encoder = None
  if text.tokenizer['tokenizer'] == 'bpe':
    train = [content for _, content in text.split.train]
    encoder = encoders.learn(train, size, 'config.data.vocabulary_size')
    arrays, documents = _pack(encoder, text.split)
  _check_lengths(arrays, sequence_length)
  dtype = tokens.smallest_dtype(size)
  arrays = {s: a.astype(tokens.little_endian(dtype), copy=False) for s, a in arrays.items()}
  meta = text.tokenizer | {'dtype': dtype, 'sha256': tokens.digests(arrays)}
  if encoder:
    meta['sha256']['tokenizer'] = encoders.digest(encoder)
  meta |= text.files | {'documents': documents}
  meta |= tokens.statistics(arrays, size, text.entropy_rate)
  tokens.write(folder, meta, arrays, encoder.file if encoder else None)


def _of_labels(labelled: Path, rule: str, directory: Path) -> Path:
  """Makes the token folder of the training documents that data.labels chooses."""
  opened = tokens.open_tokens(labelled)
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
    meta['sha256'] = tokens.digests(arrays) | tokenizer
    meta['documents'] = meta['documents'] | {'train': [listed[n] for n in positions]}
    meta |= tokens.statistics(arrays, meta['vocabulary_size'])
    copied = [(path.name, path.read_bytes()) for path in labelled.glob('tokenizer.[jm]*')]
    tokens.write(folder, meta, arrays, copied[0] if copied else None)
  return folder


def _folder(
    directory: Path, meta: Json, arrays: Mapping[str, np.ndarray], dtype: str | None = None
) -> Path:
  """The folder of a text; meta: what `_text_tokenizer` returns, arrays: the text as bytes.

  The name is a hash of bytes even for a BPE, so that it can be computed without learning the
  vocabulary again.
  """
  dtype = dtype or tokens.smallest_dtype(meta['vocabulary_size'])
  hashed = meta | {'dtype': dtype, 'sha256': tokens.digests(arrays)}
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
) -> tuple[dict[str, np.ndarray], dict[str, list]]:
  """The tokens of each split, and its documents as in meta.json."""
  arrays, documents = {}, {}
  for name in SPLITS:
    given = getattr(split, name)
    arrays[name], lengths = encoders.pack(encoder, [text for _, text in given])
    documents[name] = [[title, length] for (title, _), length in zip(given, lengths, strict=True)]
  return arrays, documents


def _check_lengths(arrays: Mapping[str, np.ndarray], sequence_length: int) -> None:
  for split, array in arrays.items():
    if len(array) < sequence_length + 1:
      raise BadInput(
          f'config.data.path holds {len(array)} tokens of {split} text;'
          f' config.data.sequence_length={sequence_length} needs at least {sequence_length + 1}'
      )


def verified(folder: Path, sequence_length: int, directory: Path) -> Path:
  """Checks the lengths and checksums of a token folder; returns the folder."""
  opened = tokens.open_tokens(folder)
  _check_lengths({split: getattr(opened, split) for split in SPLITS}, sequence_length)
  tokens.verify(folder, directory / 'verified.json')
  return folder
