"""People's answers to tasks, in the formats that tools export, and what they decide.

  plain         JSON lines: {"task": NAME, "label": "keep", "annotator": "ann"}
  Label Studio  its JSON export: an array of tasks with `data` and `annotations`, each with
                `completed_by` and a `result` whose choice is the label; or its JSON-MIN export,
                plain but for a number as annotator
  doccano       its JSONL export: {"id": 1, "text": ..., "label": ["keep"], "task": NAME}; in some
                versions `labels`. The annotator is the file's name, as in an export by user; of
                files of one name, as much of the path as tells them apart.

The last answer of each annotator to a task is an opinion. The label of a task is that of most
opinions; `unsure` is none. If as many opinions keep as drop it, nothing is decided, and it is left
out.
"""

import collections
import dataclasses
import json
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from stability.errors import BadInput
from stability.labels.tasks import LABELS

KEEP, DROP, UNSURE = LABELS


@dataclasses.dataclass(frozen=True)
class Answer:
  """What an annotator says of a task."""

  task: str
  label: str  # one of LABELS
  annotator: str


@dataclasses.dataclass(frozen=True)
class Decision:
  """What the opinions on a task come to."""

  task: str
  label: str  # keep or drop; unsure: undecided
  weight: float  # share of keep among the opinions that are not unsure; 0 without any
  opinions: tuple[Answer, ...]  # one of each annotator

  @property
  def is_conflict(self) -> bool:
    """Whether some keep and others drop it."""
    return 0 < self.weight < 1


def read_all(paths: Sequence[Path], known: Iterable[str]) -> list[Answer]:
  """The answers in several files; see `read`."""
  names = set(known)
  ends = {path: _ends(Path(os.path.abspath(path))) for path in paths}
  found = []
  for path in paths:
    taken = {end for other in ends.values() if other != ends[path] for end in other}
    found += read(path, names, next(end for end in ends[path] if end not in taken))
  return found


def _ends(path: Path) -> list[str]:
  """What a file may be called: the ends of its path without suffix, and last the path itself."""
  parts = (path.parent / path.stem).parts[1:]
  return [*('/'.join(parts[-depth:]) for depth in range(1, len(parts) + 1)), str(path)]


def read(path: Path, known: Iterable[str], person: str | None = None) -> list[Answer]:
  """The answers in a file, in any of the layouts.

  Args:
    path: the file.
    known: the names of the tasks.
    person: the annotator of answers that name none; None: the file's name without suffix.

  Raises:
    BadInput: the file cannot be read, or an answer is broken; the message has its place.
  """
  try:
    text = path.read_text(encoding='utf-8-sig')
  except (OSError, ValueError) as error:
    raise BadInput(f'{path}: cannot be read: {error}') from None
  names = set(known)
  found = []
  for place, value in _values(path, text):
    try:
      answers = list(_parse(value, person or path.stem))
      for answer in answers:
        if answer.task not in names:
          raise BadInput(f'task={answer.task!r}: is none of the tasks')
    except BadInput as error:
      raise BadInput(f'{place}: {error}') from None
    found += answers
  return found


def decide(answers: Sequence[Answer], tasks: Iterable[str]) -> list[Decision]:
  """The decision on each task that has an answer, in the order of the tasks.

  Args:
    answers: in the order in which they were given; an annotator's last one to a task counts.
    tasks: the names of the tasks.
  """
  by_task: dict[str, dict[str, Answer]] = {}
  for answer in answers:
    by_task.setdefault(answer.task, {})[answer.annotator] = answer
  return [_decide(task, by_task[task].values()) for task in tasks if task in by_task]


def _decide(task: str, opinions: Collection[Answer]) -> Decision:
  counts = collections.Counter(answer.label for answer in opinions)
  votes = counts[KEEP] + counts[DROP]
  label = UNSURE
  if counts[KEEP] != counts[DROP]:
    label = KEEP if counts[KEEP] > counts[DROP] else DROP
  return Decision(task, label, counts[KEEP] / votes if votes else 0.0, tuple(opinions))


def _values(path: Path, text: str) -> Iterable[tuple[str, Any]]:
  """The objects of a JSON array or of JSON lines, each with its place: file, and item or line."""
  if text.lstrip().startswith('['):
    for number, value in enumerate(_loads(str(path), text), 1):
      yield f'{path}, item {number}', value
    return
  for number, line in enumerate(text.split('\n'), 1):  # a text may hold other line ends
    if line.strip():
      place = f'{path}, line {number}'
      yield place, _loads(place, line)


def _loads(place: str, text: str) -> Any:
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    raise BadInput(f'{place}: is not JSON: {error}') from None


def _parse(value: Any, person: str) -> Iterable[Answer]:
  """The answers of an object; `person` has given those that name nobody."""
  if not isinstance(value, dict):
    raise BadInput('must be an object')
  if 'annotations' in value:
    return _label_studio(value)
  labels = value.get('labels', value.get('label'))
  if isinstance(labels, list):
    labels = [_label(label) for label in labels]
    if len(labels) > 1:
      raise BadInput(f'label={labels}: must be one label')
    return [Answer(_text(value, 'task'), label, person) for label in labels]
  if isinstance(annotator := value.get('annotator'), int) and not isinstance(annotator, bool):
    value = value | {'annotator': str(annotator)}
  return [Answer(_text(value, 'task'), _label(labels), _text(value, 'annotator'))]


def _label_studio(value: dict[str, Any]) -> list[Answer]:
  data, annotations = value.get('data'), value['annotations']
  if not isinstance(data, dict) or not isinstance(annotations, list):
    raise BadInput('data must be an object, annotations an array')
  task, found = _text(data, 'task'), []
  for annotation in annotations:
    try:
      if annotation.get('was_cancelled'):
        continue
      by = annotation.get('completed_by', 'unknown')
      annotator = str(by.get('email', by.get('id')) if isinstance(by, dict) else by)
      choices = [
          label
          for result in annotation['result']
          if result['type'] == 'choices'
          for label in result['value']['choices']
      ]
    except (KeyError, TypeError, AttributeError) as error:
      raise BadInput(f'annotations: not as Label Studio exports them: {error!r}') from None
    if len(choices) > 1:
      raise BadInput(f'choices={choices}: must be one label')
    found += [Answer(task, _label(label), annotator) for label in choices]
  return found


def _text(value: dict[str, Any], key: str) -> str:
  if not isinstance(value.get(key), str) or not value[key]:
    raise BadInput(f'{key}: missing, must be a text')
  return value[key]


def _label(label: Any) -> str:
  if label not in LABELS:
    raise BadInput(f'label={label!r}: must be one of {", ".join(LABELS)}')
  return label
