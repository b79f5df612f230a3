"""Token folders whose documents people have judged: labels.json, and training on what they kept.

labels.json lists an entry per training document, in order: {task, label, weight, opinions}, where
label is keep, drop or unsure, weight is from 0 to 1, and opinions lists [annotator, label].
data.labels chooses what of the training text is used:

  none      all of it
  kept      the documents labelled keep
  weights   documents in proportion to their weights: where these sum up to the next whole number,
            in the order of the documents, a document is used

So the text of a weight of 0.5 occurs every second time, and a batch needs no weights of its own.
Validation text stays as it is.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stability.errors import BadInput
from stability.storage import files

FILE = 'labels.json'


def write(folder: Path, entries: Sequence[Mapping[str, Any]]) -> None:
  """Writes the labels of the documents of a token folder."""
  files.write_json(folder / FILE, {'documents': list(entries)})


def chosen(folder: Path, rule: str, documents: int) -> list[int]:
  """The positions of the training documents to use.

  Args:
    folder: the token folder.
    rule: kept or weights.
    documents: number of training documents.

  Raises:
    BadInput: the folder has no labels, they are damaged, or nothing is left.
  """
  path = folder / FILE
  if not path.is_file():
    raise BadInput(
        f'config.data.labels={rule}: config.data.path={str(folder)!r} has no {FILE}; launch.label'
        ' read writes it'
    )
  entries = files.read_json(path).get('documents')
  if not isinstance(entries, list) or len(entries) != documents:
    raise BadInput(f'{path}: damaged: documents must have an entry for each of {documents}')
  weights = []
  for number, entry in enumerate(entries):
    weight = entry.get('weight') if isinstance(entry, dict) else None
    if not isinstance(weight, int | float) or not 0 <= weight <= 1 or 'label' not in entry:
      raise BadInput(f'{path}: damaged: entry {number} must have a label and a weight from 0 to 1')
    weights.append(float(entry['label'] == 'keep') if rule == 'kept' else float(weight))
  # Rounded, so that three thirds are one.
  sums = [math.floor(round(total, 9)) for total in itertools.accumulate(weights)]
  found = [n for n, (a, b) in enumerate(itertools.pairwise([0, *sums])) if b > a]
  if not found:
    raise BadInput(f'config.data.labels={rule}: no document of {folder} is left')
  return found


def select(tokens: np.ndarray, lengths: Sequence[int], positions: Sequence[int]) -> np.ndarray:
  """Some documents of a text, each with the end token after it: [tokens]."""
  ends = np.cumsum([length + 1 for length in lengths])
  return np.concatenate([tokens[ends[n] - lengths[n] - 1 : ends[n]] for n in positions])
