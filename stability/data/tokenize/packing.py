"""Packs any number of documents into a token folder, in one resumable pass with bounded memory.

Documents are packed as in the paper: each is followed by an end-of-document token, without padding.
meta.json is written last. Until then, the folder also holds

  tokenize.json      the settings and a description of the input; a resume must have the same
  held_out.bin       hashes of the documents of the validation files or split, if there are any
  tokenizer.*        the tokenizer's file; a resume reads a learned BPE from it
  train.bin, ...     the tokens; a resume cuts off what was written after the last commit
  progress.json      the last commit: the position in the input and the state of the files
"""

import contextlib
import fcntl
import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stability.data import tokens
from stability.data.tokenize import encoders, resume, shards
from stability.data.tokenize.readers import Part
from stability.data.tokenize.text_field import Row
from stability.errors import BadInput
from stability.storage import files

Json = dict[str, Any]
Callback = Callable[['Packer'], None]

MAX_BAD_ROWS_SHARE = 'max_bad_rows_share'  # a setting that is absent if it is 0
CACHE = '.datasets'  # files that the `datasets` library keeps

COMMIT_SECONDS = 5.0
BATCH_BYTES = 2**20  # of text, encoded at once
BATCH_DOCUMENTS = 1024

_HELD_OUT = 'held_out.bin'
_WRITTEN_WHOLE = (
    *(tokens.SETTINGS, resume.PROGRESS, _HELD_OUT),
    *('meta.json', 'tokenizer.json', 'tokenizer.model'),
)
_TEMPORARY_PREFIXES = tuple(f'.{name}.' for name in _WRITTEN_WHOLE)  # of files.write_atomic


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """Creates and locks a folder; removes a new one if no settings were written to it.

  Raises BadInput if the folder cannot be made, holds something else or is locked by another
  process, whose files are left alone.
  """
  with contextlib.ExitStack() as stack:
    try:
      is_new = not folder.exists()
      folder.mkdir(parents=True, exist_ok=True)
      handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
      stack.callback(os.close, handle)
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise BadInput(f'--output={folder}: in use by another launch.tokenize') from None
    except (FileExistsError, NotADirectoryError) as error:
      raise BadInput(f'--output={folder}: {error.filename} is not a folder') from error
    except OSError as error:
      raise BadInput(f'--output={folder}: cannot be written: {error.strerror}') from error
    stack.callback(_remove_unused, folder, is_new)
    for path in folder.glob('.*'):
      if path.name.startswith(_TEMPORARY_PREFIXES):
        path.unlink()  # left by a process that was killed
    names = {path.name for path in folder.iterdir()}
    if names - {CACHE} and tokens.SETTINGS not in names:
      raise BadInput(f'--output={folder}: holds something else; choose a new folder')
    yield


def _remove_unused(folder: Path, is_new: bool) -> None:
  """Removes the cache of a folder without settings, and the folder if it is new."""
  if not (folder / tokens.SETTINGS).exists():
    shutil.rmtree(folder / CACHE, ignore_errors=True)
    if is_new:
      with contextlib.suppress(OSError):
        folder.rmdir()


def document_hash(document: bytes) -> int:
  """64 bits that identify a document and decide its split."""
  return int.from_bytes(hashlib.sha256(document).digest()[:8], 'little')


class Packer:
  """One pass over the input."""

  def __init__(
      self,
      folder: Path,
      parts: Sequence[Part],
      settings: Json,
      record: Json,
      callback: Callback,
  ):
    """Prepares a pass.

    Args:
      folder: the folder of the token files, after `locked` and `resume.begin`.
      parts: the parts of the input in reading order, validation first.
      settings: those that `resume.begin` was given.
      record: what meta.json says of the input: `files` and `cut_documents`.
      callback: called regularly with the packer, to show progress.
    """
    self._folder = folder
    self._parts = parts
    self._settings = settings
    self._record = record
    self._callback = callback
    self.phase = 'starting'
    self.documents = {'train': 0, 'validation': 0, 'left_out': 0, 'bad': 0}
    self.tokens = {'train': 0, 'validation': 0}
    self.text_bytes = 0  # read by this process
    self._part = 0  # index of the part being read

  def fraction(self) -> float | None:
    """Fraction of the work that is done; None if it is unknown."""
    estimates = []
    if self._settings['max_train_tokens']:
      estimates.append(self.tokens['train'] / self._settings['max_train_tokens'])
    sizes = [part.size for part in self._parts]
    if None not in sizes and sum(sizes):
      read = sum(sizes[: self._part]) + self._parts[self._part].bytes_read()
      estimates.append(read / sum(sizes))
    return max(estimates, default=None)

  def pack(self, encoder: encoders.Encoder | None) -> None:
    """Writes the files, or continues to write them.

    Args:
      encoder: encodes the documents; None: a BPE learned from the first training documents.

    Raises:
      BadInput: the input is at fault. If nothing was committed, what was written is removed, so
        that the command can be given again with other input or settings.
      OSError: the disk or the network is at fault.
    """
    try:
      self._pack(encoder)
    except BadInput:
      if not self._is_committed():
        _remove_written(self._folder)
      raise

  def _is_committed(self) -> bool:
    return (self._folder / resume.PROGRESS).exists()

  def _pack(self, encoder: encoders.Encoder | None) -> None:
    held_out = self._held_out()
    encoder = encoder or self._learned(held_out)
    if encoder.file:
      name, content = encoder.file
      files.write_atomic(self._folder / name, content)
    progress = resume.progress(self._folder, len(self._parts), self._settings['shard_tokens'])
    dtype = tokens.little_endian(tokens.smallest_dtype(encoder.vocabulary_size))
    with contextlib.ExitStack() as stack:
      writers = {}
      for split in tokens.SPLITS:
        writers[split] = shards.ShardWriter(
            self._folder, split, dtype, self._settings['shard_tokens'], progress.get(split)
        )
        stack.callback(writers[split].close)
      self.documents |= progress.get('documents', {})
      self._pack_from(progress.get('place', [0, 0, None]), encoder, held_out, writers)
      self._finish(encoder, {split: writers[split].commit() for split in tokens.SPLITS})

  def _pack_from(
      self,
      position: list,
      encoder: encoders.Encoder,
      held_out: set[int],
      writers: Mapping[str, shards.ShardWriter],
  ) -> None:
    """Packs the documents from a position on.

    A position is [index of the part, number of its documents already packed, its state].
    """
    self.phase = 'packing'
    self._part, done, state = position
    committed = time.monotonic()
    limit = self._settings['max_train_tokens'] or float('inf')
    self._count(writers)
    self._callback(self)
    documents = self._documents_from(self._part, done, state)
    while self.tokens['train'] < limit:
      batch = list(_batch(documents))
      if not batch:
        return
      self._append(batch, done, encoder, held_out, writers, limit)
      last = batch[-1][0]
      done = sum(number == last for number, _ in batch) + (done if last == self._part else 0)
      self._part = last
      self._count(writers)
      if time.monotonic() - committed >= COMMIT_SECONDS:
        committed = time.monotonic()
        files.write_json(
            self._folder / resume.PROGRESS,
            {
                **{split: writer.commit() for split, writer in writers.items()},
                'place': [last, done, self._parts[last].state()],
                'documents': self.documents,
            },
        )
      self._callback(self)

  def _append(
      self,
      batch: Sequence[tuple[int, Row]],
      done: int,
      encoder: encoders.Encoder,
      held_out: set[int],
      writers: Mapping[str, shards.ShardWriter],
      limit: float,
  ) -> None:
    """Encodes and appends documents until the training text has `limit` tokens.

    `done` is the number of documents of the current part that are before the batch.
    """
    splits = [self._split(number, text, held_out) for number, text in batch]
    kept = [i for i, split in enumerate(splits) if split in tokens.SPLITS]
    try:
      encoded = iter(encoder.encode([batch[i][1] for i in kept]))
    except encoders.EndInText as error:
      part, _ = batch[kept[error.index]]
      before = sum(number == part for number, _ in batch[: kept[error.index]])
      document = before + 1 + (done if part == self._part else 0)
      raise BadInput(
          f'{self._parts[part].name}, document {document}: {error}; choose another one with'
          ' --end_of_document'
      ) from error
    end = np.array([encoder.end_of_document], np.uint32)
    pieces: dict[str, list[np.ndarray]] = {split: [] for split in tokens.SPLITS}
    train_tokens = self.tokens['train']
    for split, (_, text) in zip(splits, batch):
      if train_tokens >= limit:
        break
      self.documents[split] += 1
      if split in tokens.SPLITS:
        self.text_bytes += len(text)
        document = next(encoded)
        pieces[split] += [document, end]
        train_tokens += len(document) + 1 if split == 'train' else 0
    for split, arrays in pieces.items():
      if arrays:
        writers[split].append(np.concatenate(arrays))

  def _count(self, writers: Mapping[str, shards.ShardWriter]) -> None:
    self.tokens = {split: writer.tokens for split, writer in writers.items()}

  def _documents_from(self, first: int, done: int, state: Any) -> Iterator[tuple[int, Row]]:
    """The documents from a position on, each with the index of its part."""
    for number in range(first, len(self._parts)):
      skip = (done, state) if number == first else (0, None)
      yield from zip(itertools.repeat(number), self._parts[number].documents(*skip))

  def _is_bad(self, row: Row) -> bool:
    """Whether a row has no text; raises its BadInput unless some rows may be bad."""
    if isinstance(row, BadInput) and not self._settings.get(MAX_BAD_ROWS_SHARE):
      raise row
    return isinstance(row, BadInput)

  def _split(self, number: int, text: Row, held_out: set[int]) -> str:
    """train, validation, bad, or left_out: empty, or a training text that is also held out."""
    split = self._parts[number].split
    if self._is_bad(text):
      return 'bad'
    if not text:
      return 'left_out'
    if split != 'validation' and document_hash(text) in held_out:
      return 'left_out'
    if split is None:
      is_validation = document_hash(text) < self._settings['validation_fraction'] * 2**64
      return 'validation' if is_validation else 'train'
    return split

  def _held_out(self) -> set[int]:
    """Hashes of the documents of validation parts; empty if the input has none."""
    parts = [part for part in self._parts if part.split == 'validation']
    file = self._folder / _HELD_OUT
    if parts and not file.exists():
      self.phase = 'hashing the validation text'
      hashes = []
      for part in parts:
        for text in part.documents(0, None):
          if not self._is_bad(text):
            hashes.append(document_hash(text))
          if len(hashes) % BATCH_DOCUMENTS == 0:
            self._callback(self)
      files.write_atomic(file, np.array(hashes, '<u8').tobytes())
    return set(np.fromfile(file, '<u8').tolist()) if parts else set()

  def _learned(self, held_out: set[int]) -> encoders.Encoder:
    """The BPE of the first training documents."""
    file = self._folder / 'tokenizer.json'
    if not file.exists():
      self.phase = 'learning a vocabulary'
      first = next(i for i, part in enumerate(self._parts) if part.split != 'validation')
      training = (
          text
          for number, text in self._documents_from(first, 0, None)
          if self._split(number, text, held_out) == 'train'
      )
      texts = list(itertools.islice(training, self._settings['bpe_documents']))
      learned = encoders.learn(texts, self._settings['vocabulary_size'], '--vocabulary_size')
      files.write_atomic(file, learned.file[1])
    return encoders.JsonEncoder(file.read_bytes(), None, str(file))

  def _finish(self, encoder: encoders.Encoder, written: Mapping[str, Json]) -> None:
    """Writes meta.json and removes the files that are no longer needed."""
    new_folder = ', and choose a new --output' if self._is_committed() else ''
    share, rows = self._settings.get(MAX_BAD_ROWS_SHARE, 0), sum(self.documents.values())
    if self.documents['bad'] > share * rows:
      raise BadInput(
          f'--{MAX_BAD_ROWS_SHARE}={share}: {self.documents["bad"]:,} of {rows:,} rows have no'
          f' text; allow more{new_folder}'
      )
    for split in tokens.SPLITS:
      if written[split]['tokens'] < 2:
        raise BadInput(
            f'--input: holds {written[split]["tokens"]} tokens of {split} text, from'
            f' {self.documents[split]} documents; give more input or, if it has no validation'
            f' split, change --validation_fraction{new_folder}'
        )
    self.phase = 'counting token pairs'
    self._callback(self)
    digests = written['train']['sha256'] | written['validation']['sha256']
    if encoder.file:
      digests['tokenizer'] = encoders.digest(encoder)
    meta = {
        'tokenizer': encoder.kind,
        'vocabulary_size': encoder.vocabulary_size,
        'end_of_document': encoder.end_of_document,
        'dtype': tokens.smallest_dtype(encoder.vocabulary_size),
        'sha256': digests,
    }
    arrays = tokens.open_splits(self._folder, meta)
    meta |= tokens.statistics(arrays, encoder.vocabulary_size)
    meta |= {
        'documents': {split: self.documents[split] for split in tokens.SPLITS},
        'left_out': self.documents['left_out'],
        'bad_rows': self.documents['bad'],
        **self._record,
        'settings': {name: value for name, value in self._settings.items() if name != 'parts'},
    }
    files.write_json(self._folder / 'meta.json', meta)
    clean(self._folder)


def _remove_written(folder: Path) -> None:
  """Removes what a pass has written; the settings last, as they allow it to be resumed."""
  for split in tokens.SPLITS:
    names = (shards.shard_name(split, number) for number in itertools.count())
    for path in itertools.takewhile(Path.exists, (folder / f'{name}.bin' for name in names)):
      path.unlink()
  for name in (_HELD_OUT, 'tokenizer.json', 'tokenizer.model', tokens.SETTINGS):
    (folder / name).unlink(missing_ok=True)


def clean(folder: Path) -> None:
  """Removes the files that only an unfinished folder needs."""
  for name in (resume.PROGRESS, _HELD_OUT):
    (folder / name).unlink(missing_ok=True)
  shutil.rmtree(folder / CACHE, ignore_errors=True)


def _batch(documents: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
  """The documents of the next batch, without reading ahead."""
  size = 0
  for number, (part, text) in enumerate(documents, 1):
    yield part, text
    size += len(text) if isinstance(text, bytes) else 0
    if size >= BATCH_BYTES or number >= BATCH_DOCUMENTS:
      return
