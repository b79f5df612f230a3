"""Documents of any amount -> a folder of token files (tokens.py), one pass, flat memory, resumable.

Documents are packed as the paper's are: each followed by the mark of its end, then the next,
without padding. In the folder, until meta.json is written last:

  tokenize.json      what was asked for, and of which files; whoever goes on must ask for the same
  held_out.bin       hashes of the documents of the set's own validation split, if it has one
  tokenizer.*        the tokenizer's file; a BPE is learned once
  train.bin, ...     appended to; what is past the last commit is cut off by whoever goes on
  progress.json      the last commit: where the input stands, and the files
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stability.data import tokens
from stability.data.tokenize import encoders, shards
from stability.data.tokenize.readers import Part
from stability.errors import BadInput
from stability.storage import files

Json = dict[str, Any]
Watch = Callable[['Packer'], None]

SETTINGS = tokens.SETTINGS
PROGRESS = 'progress.json'
CACHE = '.datasets'  # what the library `datasets` keeps on the disk

COMMIT_SECONDS = 5.0
BATCH_BYTES = 2**20  # of text encoded at once
BATCH_DOCUMENTS = 1024

_HELD_OUT = 'held_out.bin'
_WHOLE = (SETTINGS, PROGRESS, _HELD_OUT, 'meta.json', 'tokenizer.json', 'tokenizer.model')
_BEGUN = tuple(f'.{name}.' for name in _WHOLE)  # what files.write_atomic calls its files


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
  """Makes the folder and keeps others off; removes it again if nothing comes of it.

  Raises BadInput where it holds something else, or another process is at it.
  """
  new = not folder.exists()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
  except (FileExistsError, NotADirectoryError) as error:
    raise BadInput(f'--output={folder}: {error.filename} is no folder') from error
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise BadInput(f'--output={folder}: another launch.tokenize is at work in it') from None
    for path in folder.glob('.*'):
      if path.name.startswith(_BEGUN):
        path.unlink()  # of a write that was killed
    there = {path.name for path in folder.iterdir()}
    if there - {CACHE} and SETTINGS not in there:
      raise BadInput(f'--output={folder}: holds something else; name a new folder')
    yield
  finally:
    os.close(handle)
    if not (folder / SETTINGS).exists():
      shutil.rmtree(folder / CACHE, ignore_errors=True)
      if new:
        with contextlib.suppress(OSError):
          folder.rmdir()


def settings_before(folder: Path) -> Json | None:
  """What was asked for when the folder was begun; None: it was not."""
  return _read(folder / SETTINGS) if (folder / SETTINGS).exists() else None


def begin(folder: Path, settings: Json) -> bool:
  """Writes down what is asked for; whether it is there already, finished.

  settings: by flag; 'parts' holds [name, side, fingerprint] of the input's parts, in order. Raises
  BadInput, naming what differs, where the folder was begun with others.
  """
  before = settings_before(folder)
  if before is None:
    files.write_json(folder / SETTINGS, settings)
    return False
  now = json.loads(json.dumps(settings))
  for name in now:
    old, new = before.get(name), now[name]
    if old == new:
      continue
    what = f'{name}={old!r}, now {new!r}'
    if name == 'parts':
      what = 'other input: ' + _difference(old, new)
    raise BadInput(f'--output={folder}: was begun with {what}; name a new folder')
  return (folder / 'meta.json').exists()


def hash_(document: bytes) -> int:
  """64 bits by which documents are known and divided."""
  return int.from_bytes(hashlib.sha256(document).digest()[:8], 'little')


class Packer:
  """Goes once through the input."""

  def __init__(self, folder: Path, parts: Sequence[Part], settings: Json, watch: Watch):
    """parts: in the order of reading, validation first; watch is called now and then."""
    self._folder = folder
    self._parts = parts
    self._settings = settings
    self._watch = watch
    self.doing = 'starting'
    self.documents = {'train': 0, 'validation': 0, 'left_out': 0}
    self.tokens = {'train': 0, 'validation': 0}
    self.text_bytes = 0  # seen by this process
    self._part = 0  # that is being read

  def fraction(self) -> float | None:
    """Of the work, as far as it can be known."""
    known = []
    if self._settings['max_train_tokens']:
      known.append(self.tokens['train'] / self._settings['max_train_tokens'])
    sizes = [part.size for part in self._parts]
    if None not in sizes and sum(sizes):
      read = sum(sizes[: self._part]) + self._parts[self._part].bytes_read()
      known.append(read / sum(sizes))
    return max(known, default=None)

  def pack(self, encoder: encoders.Encoder | None) -> None:
    """Makes the files, or goes on making them; encoder: None: learn a BPE.

    Raises BadInput for the input's faults, OSError for the disk's and the network's.
    """
    held_out = self._held_out()
    encoder = encoder or self._learned(held_out)
    if encoder.file:
      name, content = encoder.file
      files.write_atomic(self._folder / name, content)
    progress = _read(self._folder / PROGRESS) if (self._folder / PROGRESS).exists() else {}
    dtype = np.dtype(tokens.smallest_dtype(encoder.vocabulary_size)).newbyteorder('<')
    with contextlib.ExitStack() as stack:
      writers = {}
      for side in tokens.SIDES:
        writers[side] = shards.Writer(
            self._folder, side, dtype, self._settings['shard_tokens'], progress.get(side)
        )
        stack.callback(writers[side].close)
      self.documents = progress.get('documents', self.documents)
      self._read_through(encoder, held_out, writers, progress.get('place', [0, 0, None]))
      self._finish(encoder, {side: writers[side].commit() for side in tokens.SIDES})

  def _read_through(
      self,
      encoder: encoders.Encoder,
      held_out: set[int],
      writers: Mapping[str, shards.Writer],
      place: list,
  ) -> None:
    """From a place on: [part, documents of it that are done, its state]."""
    self.doing = 'packing'
    self._part, done, state = place
    committed = time.monotonic()
    limit = self._settings['max_train_tokens'] or float('inf')
    self._count(writers)
    self._watch(self)
    documents = self._from(self._part, done, state)
    while self.tokens['train'] < limit:
      batch = list(_batch(documents))
      if not batch:
        return
      self._append(batch, encoder, held_out, writers, limit)
      last = batch[-1][0]
      done = sum(number == last for number, _ in batch) + (done if last == self._part else 0)
      self._part = last
      self._count(writers)
      if time.monotonic() - committed >= COMMIT_SECONDS:
        committed = time.monotonic()
        files.write_json(
            self._folder / PROGRESS,
            {
                **{side: writer.commit() for side, writer in writers.items()},
                'place': [last, done, self._parts[last].state()],
                'documents': self.documents,
            },
        )
      self._watch(self)

  def _append(
      self,
      batch: Sequence[tuple[int, bytes]],
      encoder: encoders.Encoder,
      held_out: set[int],
      writers: Mapping[str, shards.Writer],
      limit: float,
  ) -> None:
    """Encodes and appends documents, up to the one with which the training text is long enough."""
    sides = [self._side(number, text, held_out) for number, text in batch]
    kept = [(side, text) for side, (_, text) in zip(sides, batch) if side != 'left_out']
    encoded = iter(encoder.encode([text for _, text in kept]))
    end = np.array([encoder.end_of_document], np.uint32)
    pieces: dict[str, list[np.ndarray]] = {side: [] for side in tokens.SIDES}
    length = self.tokens['train']
    for side, (_, text) in zip(sides, batch):
      if length >= limit:
        break
      self.documents[side] += 1
      self.text_bytes += len(text)
      if side != 'left_out':
        found = next(encoded)
        pieces[side] += [found, end]
        length += len(found) + 1 if side == 'train' else 0
    for side, arrays in pieces.items():
      if arrays:
        writers[side].append(np.concatenate(arrays))

  def _count(self, writers: Mapping[str, shards.Writer]) -> None:
    self.tokens = {side: writer.tokens for side, writer in writers.items()}

  def _from(self, first: int, done: int, state: Any) -> Iterator[tuple[int, bytes]]:
    """The documents from a place on, each with the number of its part."""
    for number in range(first, len(self._parts)):
      there = self._parts[number].documents(*((done, state) if number == first else (0, None)))
      yield from zip(itertools.repeat(number), there)

  def _side(self, number: int, text: bytes, held_out: set[int]) -> str:
    """train, validation or left_out: empty, or to be trained on though validated on."""
    side = self._parts[number].side
    if not text:
      return 'left_out'
    if side is None:
      validated = hash_(text) < self._settings['validation_fraction'] * 2**64
      return 'validation' if validated else 'train'
    return 'left_out' if side == 'train' and hash_(text) in held_out else side

  def _held_out(self) -> set[int]:
    """The hashes of the documents of the validation split; empty where there is none."""
    splits = [part for part in self._parts if part.side == 'validation']
    file = self._folder / _HELD_OUT
    if splits and not file.exists():
      self.doing = 'looking through the validation split'
      found = []
      for part in splits:
        for text in part.documents(0, None):
          found.append(hash_(text))
          if len(found) % BATCH_DOCUMENTS == 0:
            self._watch(self)
      files.write_atomic(file, np.array(found, '<u8').tobytes())
    return set(np.fromfile(file, '<u8').tolist()) if splits else set()

  def _learned(self, held_out: set[int]) -> encoders.Encoder:
    """The BPE of the first training documents."""
    file = self._folder / 'tokenizer.json'
    if not file.exists():
      self.doing = 'learning a vocabulary'
      first = next(i for i, part in enumerate(self._parts) if part.side != 'validation')
      training = (
          text
          for number, text in self._from(first, 0, None)
          if self._side(number, text, held_out) == 'train'
      )
      documents = itertools.islice(training, self._settings['bpe_documents'])
      learned = encoders.learn(documents, self._settings['vocabulary_size'])
      files.write_atomic(file, learned.file[1])
    return encoders.Json(file.read_bytes(), None, str(file))

  def _finish(self, encoder: encoders.Encoder, written: Mapping[str, Json]) -> None:
    """Writes meta.json, and removes what is no longer needed."""
    for side in tokens.SIDES:
      if written[side]['tokens'] < 2:
        raise BadInput(
            f'--input: holds {written[side]["tokens"]} tokens of {side} text, from'
            f' {self.documents[side]} documents; more input or, where it has no validation split,'
            ' another --validation_fraction is needed, with a new --output'
        )
    self.doing = 'counting pairs of tokens'
    self._watch(self)
    digests = written['train']['sha256'] | written['validation']['sha256']
    if encoder.file:
      digests['tokenizer'] = encoders.digest(encoder)
    about = {
        'tokenizer': encoder.kind,
        'vocabulary_size': encoder.vocabulary_size,
        'end_of_document': encoder.end_of_document,
        'dtype': tokens.smallest_dtype(encoder.vocabulary_size),
        'sha256': digests,
    }
    counts = {side: self.documents[side] for side in tokens.SIDES}
    asked = {name: value for name, value in self._settings.items() if name != 'parts'}
    meta = about | tokens.measured(tokens.open_sides(self._folder, about), about, None)
    meta |= {'documents': counts, 'left_out': self.documents['left_out'], 'settings': asked}
    files.write_json(self._folder / 'meta.json', meta)
    clean(self._folder)


def clean(folder: Path) -> None:
  """Removes what only an unfinished folder needs."""
  for name in (PROGRESS, _HELD_OUT):
    (folder / name).unlink(missing_ok=True)
  shutil.rmtree(folder / CACHE, ignore_errors=True)


def _batch(documents: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
  """The next documents, as many as are encoded at once; not one is taken that is not given."""
  size = 0
  for number, (part, text) in enumerate(documents, 1):
    yield part, text
    size += len(text)
    if size >= BATCH_BYTES or number >= BATCH_DOCUMENTS:
      return


def _difference(old: list, new: list) -> str:
  """Where two lists of parts differ."""
  before, now = ({name: rest for name, *rest in parts} for parts in (old, new))
  for name in before:
    if name not in now:
      return f'{name} is gone'
    if before[name] != now[name]:
      return f'{name} has changed since'
  return next((f'{name} is new' for name in now if name not in before), 'the order is another')


def _read(file: Path) -> Json:
  try:
    found = json.loads(file.read_text())
  except (ValueError, RecursionError) as error:
    raise BadInput(f'{file}: damaged ({error}); name a new folder') from error
  if not isinstance(found, dict):
    raise BadInput(f'{file}: damaged (holds no object); name a new folder')
  return found
