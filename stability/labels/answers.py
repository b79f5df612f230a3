"""Answers of people to tasks, in the layouts in which tools give them back, and what follows.

  plain         JSON lines: {"task": NAME, "label": "keep", "annotator": "ann"}
  Label Studio  its JSON export: an array of tasks with `data` and `annotations`, each with
                `completed_by` and a `result` whose choice is the label
  doccano       its JSONL export: {"id": 1, "text": ..., "label": ["keep"], "task": NAME}; in some
                versions `labels`. The annotator is the file's name, as in an export by user.

The last answer of each annotator to a task is an opinion. The label of a task is that of most
opinions; `unsure` is none. If as many opinions keep as drop it, nothing is decided, and it is left
out.
"""

import collections
import dataclasses
import json
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


def read(path: Path, known: Iterable[str]) -> list[Answer]:
  """The answers in a file, in any of the layouts.

  Args:
    path: the file.
    known: the names of the tasks.

  Raises:
    BadInput: the file cannot be read, or an answer is broken; the message has file and line.
  """
  try:
    text = path.read_text(encoding='utf-8')
  except (OSError, ValueError) as error:
    raise BadInput(f'{path}: cannot be read: {error}') from None
  names = set(known)
  found = []
  for line, value in _values(path, text):
    try:
      answers = list(_parse(value, path.stem))
      for answer in answers:
        if answer.task not in names:
          raise BadInput(f'task={answer.task!r}: is none of the tasks')
    except BadInput as error:
      raise BadInput(f'{path}, line {line}: {error}') from None
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


def _values(path: Path, text: str) -> Iterable[tuple[int, Any]]:
  """The objects of a JSON array or of JSON lines, each with the line on which it begins."""
  start = len(text) - len(text.lstrip())
  if text[start : start + 1] != '[':
    for number, line in enumerate(text.split('\n'), 1):  # a text may hold other line ends
      if line.strip():
        yield number, _load(path, number, line)
    return
  decoder, position = json.JSONDecoder(), start + 1
  while True:
    position += len(text) - position - len(text[position:].lstrip(' \t\r\n,'))
    line = text.count('\n', 0, position) + 1
    if text[position : position + 1] == ']':
      return
    try:
      value, position = decoder.raw_decode(text, position)
    except (ValueError, RecursionError) as error:
      raise BadInput(f'{path}, line {line}: is not JSON: {error}') from None
    yield line, value


def _load(path: Path, number: int, line: str) -> Any:
  try:
    return json.loads(line)
  except (ValueError, RecursionError) as error:
    raise BadInput(f'{path}, line {number}: is not JSON: {error}') from None


def _parse(value: Any, file: str) -> Iterable[Answer]:
  """The answers of an object; `file` is the name of its file without suffix."""
  if not isinstance(value, dict):
    raise BadInput('must be an object')
  if 'annotations' in value:
    return _label_studio(value)
  labels = value.get('labels', value.get('label'))
  if isinstance(labels, list):
    labels = [_label(label) for label in labels]
    if len(labels) > 1:
      raise BadInput(f'label={labels}: must be one label')
    return [Answer(_text(value, 'task'), label, file) for label in labels]
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
