"""Asking a person about passages, a key for each answer; answers.jsonl has them as they are given.

Tasks that nobody has answered come first, then second opinions on a share of those that one other
person has answered. A program that is stopped anywhere goes on where it was, and several people may
answer at a time: a lease on the folder guards each change of the file.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from stability.errors import BadInput
from stability.labels import answers as answers_lib
from stability.labels.answers import DROP, KEEP, UNSURE
from stability.labels.tasks import ANSWERS, Task
from stability.storage import files, leases

KEYS = {'k': KEEP, 'd': DROP, 'u': UNSURE}
HELP = 'k keep · d drop · u unsure · b back · q quit'


def wants_second(task: str, share: float) -> bool:
  """Whether a task belongs to the share with a second opinion: a function of its name."""
  return int(hashlib.sha256(task.encode()).hexdigest()[:8], 16) < share * 2**32


def queue(
    tasks: Sequence[Task],
    given: Sequence[answers_lib.Answer],
    share: float,
    annotator: str | None,
) -> list[tuple[Task, bool]]:
  """The tasks to ask a person, and whether each is for a second opinion; None: all people."""
  by: dict[str, set[str]] = {task.task: set() for task in tasks}
  for answer in given:
    by[answer.task].add(answer.annotator)
  first = [(task, False) for task in tasks if not by[task.task]]
  second = [
      (task, True)
      for task in tasks
      if len(by[task.task]) == 1
      and annotator not in by[task.task]
      and wants_second(task.task, share)
  ]
  return first + second


def ask(
    folder: Path,
    tasks: Sequence[Task],
    annotator: str,
    share: float,
    read_key: Callable[[], str],
    show: Callable[[str], None],
) -> int:
  """Asks about the tasks until all are answered, the person quits, or no key is left.

  Args:
    folder: of the tasks.
    tasks: the tasks.
    annotator: who answers.
    share: of the tasks that get a second opinion, 0 to 1.
    read_key: returns the next key; empty at the end of the input.
    show: shows a text.

  Returns:
    The number of answers given.
  """
  path = folder / ANSWERS
  with leases.acquire(folder):
    files.filter_lines(path, lambda _: True)  # drops a line that a crash cut off
  names = [task.task for task in tasks]
  given = answers_lib.read(path, names) if path.exists() else []
  rest, position = queue(tasks, given, share, annotator), 0
  while position < len(rest):
    task, is_second = rest[position]
    what = ', a second opinion' if is_second else ''
    show(f'\n[{position + 1}/{len(rest)}{what}] {task.document}, from byte {task.start:,}')
    show(''.join(c if c.isprintable() or c in '\n\t' else '\ufffd' for c in task.text))
    key = read_key()
    while key and key not in (*KEYS, 'b', 'q'):
      show(HELP)
      key = read_key()
    if key in ('', 'q'):
      break
    if key == 'b':
      if position:
        position -= 1
        _take_back(path, rest[position][0].task, annotator)
      continue
    line = {'task': task.task, 'label': KEYS[key], 'annotator': annotator}
    with leases.acquire(folder):
      files.append_line(path, line)
    position += 1
  return position


def _take_back(path: Path, task: str, annotator: str) -> None:
  """Removes the last answer of a person to a task."""
  with leases.acquire(path.parent):
    lines = files.read_lines(path)
    own = [
        number
        for number, line in enumerate(lines)
        if (line.get('task'), line.get('annotator')) == (task, annotator)
    ]
    if not own:
      raise BadInput(f'{path}: the answer to take back is gone; somebody else has changed it')
    del lines[own[-1]]
    files.write_lines(path, lines)
