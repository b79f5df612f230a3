"""Measurements of runs with a datastore: the rows of retrieval.csv."""

import functools
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

from stability.data.tokenize.stored import StoredTokenizer
from stability.retrieval import comparison, lexical
from stability.retrieval.comparison import Progress
from stability.retrieval.datastore import Datastore
from stability.retrieval.model import Model
from stability.retrieval.texts import Windows
from stability.storage.retrieval_csv import METHODS, Row


def digest(texts: Sequence[Windows], windows: Windows) -> str:
  """16 hexadecimal digits of the tokens of a datastore's texts and of the measured windows."""
  digests = ''.join(each.digest() for each in (*texts, windows))
  return hashlib.sha256(digests.encode()).hexdigest()[:16]


class Measurements:
  """Measures runs; those that share texts share what does not depend on the model."""

  def __init__(self, tokenizer: StoredTokenizer, threads: int, on_progress: Progress):
    self.tokenizer = tokenizer
    self._threads = threads
    self._on_progress = on_progress
    self._kept: dict[str, tuple[Windows, int]] = {}
    self._passages: dict[str, lexical.Passages] = {}

  def build(self, folder: Path, run: str, model: Model, text: Windows) -> Datastore:
    """Makes the datastore of a run and a text in a folder."""
    folder.mkdir()
    store = Datastore.create(folder, run, model)
    self.add(store, model, text)
    return store

  def add(self, store: Datastore, model: Model, text: Windows) -> None:
    """Adds a text to a datastore."""
    store.add(text, model, functools.partial(self._on_progress, 'keys'))

  def passages(self, store: Datastore) -> lexical.Passages:
    """The passages of a datastore."""
    texts = [part.windows for part in store.parts]
    key = ''.join(text.digest() for text in texts)
    if key not in self._passages:
      self._passages[key] = lexical.Passages(texts, self.tokenizer)
    return self._passages[key]

  def without_overlap(self, windows: Windows, texts: Sequence[Windows]) -> tuple[Windows, int]:
    """See comparison.without_overlap."""
    key = digest(texts, windows)
    if key not in self._kept:
      self._on_progress('overlap', 0.0)
      self._kept[key] = comparison.without_overlap(windows, texts, self.tokenizer)
    return self._kept[key]

  def rows(
      self,
      run: str,
      model: Model,
      store: Datastore,
      windows: Windows,
      left_out: int,
      started: float,
  ) -> list[Row]:
    """The rows of both methods.

    Args:
      run: name of the run.
      model: its model.
      store: its datastore.
      windows: the windows to measure on, of which none stands in the datastore.
      left_out: number of windows that were left out for that.
      started: clock time at which the datastore was begun.
    """
    texts = [part.windows for part in store.parts]
    found = []
    for method in METHODS:
      if method == 'knn':
        compared = comparison.compare_knn(model, store, windows, self._threads, self._on_progress)
      else:
        started = time.monotonic()
        passages = self.passages(store)
        compared = comparison.compare_in_context(model, passages, windows, self._on_progress)
      found.append(
          Row(
              run=run,
              method=method,
              left_out=left_out,
              seconds=round(time.monotonic() - started, 2),
              keys=store.keys,
              datastore=store.name,
              text=windows.name,
              digest=digest(texts, windows),
              **compared._asdict(),
          )
      )
    return found
