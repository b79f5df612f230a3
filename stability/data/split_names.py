"""The splits that words in the names of files stand for: wiki.test.txt, train-00000-of-00007.json.

A word is a whole part of the name, between characters other than letters and digits. In the names
of files of rows it always counts. In those of text files, which may be a source tree, it counts

  only beside training text: the same folder has a file or folder of the same name, but for
  numbers, with a word for training, as wiki.train.txt beside wiki.test.txt, or train/ beside test/
  only in names that end in .txt, .text, .raw, .tokens, a word or nothing

so that a tests.txt, a requirements/dev.txt, a test.py or a folder test/ is text like any other.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import PurePath

from stability.data import formats

# As in the `datasets` library.
_WORDS = {
    'train': {'train', 'training'},
    'validation': {'validation', 'valid', 'dev', 'val'},
    'test': {'test', 'testing', 'eval', 'evaluation'},
}
_TEXT_ENDS = {'', 'txt', 'text', 'raw', 'tokens'}.union(*_WORDS.values())
_SHOWN = 3  # names in a line

_Place = tuple[tuple[str, ...], tuple[str, ...]]  # folders, other words of the name in the last


def of_rows(name: str) -> str | None:
  """The split that the name of a file of rows tells."""
  words = set(_words(name))
  return next((split for split, known in _WORDS.items() if words & known), None)


def of_texts(names: Iterable[str]) -> dict[str, str]:
  """The text files, among these, of a validation or test split: name -> validation | test."""
  places = {name: list(_places(name)) for name in names}
  trained = {place for found in places.values() for split, place in found if split == 'train'}
  splits = {}
  for name, found in places.items():
    counted = {split for split, place in found if place in trained}
    if counted - {'train'}:
      splits[name] = 'test' if 'test' in counted else 'validation'
  return splits


def named(names: Iterable[str]) -> list[str]:
  """The text files with a word for validation or test, whether it counts or not."""
  return [name for name in names if {split for split, _ in _places(name)} - {'train'}]


def line(names: list[str], what: str) -> str:
  """A line on text files with such names: `what` is done with them."""
  shown = ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')
  files = f'{len(names):,} file{"" if len(names) == 1 else "s"}'
  return f'text: {files} named as validation or test text ({shown}): {what}'


def _places(name: str) -> Iterator[tuple[str, _Place]]:
  """For each word in the name of a text file: its split, and what a training file must share."""
  *folders, last = PurePath(name).parts
  if formats.compression(last):
    last = last.rpartition('.')[0]
  if PurePath(last).suffix.lower().removeprefix('.') not in _TEXT_ENDS:
    return
  parts = (*folders, last)
  for depth, part in enumerate(parts):
    words = _words(part)
    for split, known in _WORDS.items():
      for word in known.intersection(words):
        others = (w for w in words if w not in (word, 'of') and not w.isdigit())
        yield split, (parts[:depth], tuple(others))


def _words(name: str) -> list[str]:
  return re.split('[^a-z0-9]+', name.lower())
