"""Tasks for people: FOLDER as launch.label select writes it.

  tasks.jsonl         a line per task, as Task
  about.json          the sweep, the rule, and where its token files are
  label_studio.json   the same tasks for Label Studio, and label_studio.xml, its labelling interface
  doccano.jsonl       the same for doccano (text classification)
  answers.jsonl       answers given with launch.label ask

A label is keep, drop or unsure.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from stability.errors import BadInput
from stability.storage import files
from stability.storage.files import Json

LABELS = ('keep', 'drop', 'unsure')
TASKS, ABOUT, ANSWERS = 'tasks.jsonl', 'about.json', 'answers.jsonl'

_INTERFACE = """<View>
  <Text name="text" value="$text"/>
  <Choices name="label" toName="text" choice="single">
{choices}
  </Choices>
</View>
"""
_TYPES = {'task': str, 'document': str, 'start': int, 'end': int, 'text': str, 'encoding': str}


@dataclasses.dataclass(frozen=True)
class Task:
  """A passage to judge."""

  task: str  # name
  document: str
  start: int  # in bytes of the document
  end: int
  text: str
  encoding: str
  loss: float | None  # of the model, nats per token
  disagreement: float | None  # of the seeds, nats per token
  score: float | None  # by the rule that selected it

  @classmethod
  def from_json(cls, found: Json) -> Self:
    """The task of a line of tasks.jsonl; BadInput if it is damaged."""
    files.check_types(found, _TYPES)
    found = {'disagreement': found.get('uncertainty')} | found  # its name in earlier versions
    values = {field.name: found.get(field.name) for field in dataclasses.fields(cls)}
    for name in ('loss', 'disagreement', 'score'):
      if not isinstance(values[name], int | float | None):
        raise BadInput(f'{name} must be a number or null')
    try:
      values['text'].encode(values['encoding'])
    except (LookupError, UnicodeEncodeError) as error:
      raise BadInput(f'encoding={values["encoding"]!r}: {error}') from None
    return cls(**values)


def write(folder: Path, tasks: Sequence[Task], about: Json) -> None:
  """Writes a new folder of tasks, as a whole or not at all."""
  final, folder = folder, folder.with_name(f'.{folder.name}.partial')
  shutil.rmtree(folder, ignore_errors=True)
  studio = [label_studio(number, task, about) for number, task in enumerate(tasks, 1)]
  files.write_atomic(folder / 'label_studio.json', json.dumps(studio, indent=1))
  choices = '\n'.join(f'    <Choice value="{label}"/>' for label in LABELS)
  files.write_atomic(folder / 'label_studio.xml', _INTERFACE.format(choices=choices))
  files.write_lines(folder / 'doccano.jsonl', map(doccano, tasks))
  files.write_json(folder / ABOUT, about)
  files.write_lines(folder / TASKS, map(dataclasses.asdict, tasks))
  folder.rename(final)


def label_studio(number: int, task: Task, about: Json) -> Json:
  """A task in the JSON format of Label Studio; `data` comes back with the answers."""
  data = dataclasses.asdict(task)
  return {
      'id': number,
      'data': files.nonfinite_to_null(data),
      'predictions': [
          {'model_version': about['by'], 'score': data['disagreement'], 'result': []},
      ],
  }


def doccano(task: Task) -> Json:
  """A line in the JSONL format of doccano; what is neither text nor label is kept as metadata."""
  return {**dataclasses.asdict(task), 'label': []}


def read(folder: Path) -> tuple[list[Task], Json]:
  """The tasks of a folder, and about.json; BadInput if there are none or they are damaged."""
  path = folder / TASKS
  if not path.is_file():
    raise BadInput(f'--tasks={folder}: holds no {TASKS}; launch.label select writes it')
  tasks = files.parse_lines(path, Task.from_json)
  names = [task.task for task in tasks]
  for number, name in enumerate(names, 1):
    if name in names[: number - 1]:
      raise BadInput(f'{path}, line {number}: damaged: task {name!r} is there twice')
  about: dict[str, Any] = files.read_json(folder / ABOUT)
  try:
    files.check_types(about, {'data': str, 'by': str})
  except BadInput as error:
    raise BadInput(f'{folder / ABOUT}: damaged: {error}') from None
  return tasks, about
