"""Records of the actions on a run: DIR/runs/NAME/actions.jsonl. Only the trainer appends to it."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from stability.config import Config
from stability.control import actions
from stability.control.actions import Action
from stability.errors import BadInput
from stability.storage import files
from stability.storage.files import Json

FILE = 'actions.jsonl'

_REFUSAL_KEYS = ('by', 'why', 'time', 'step', 'request', 'refused')


@dataclasses.dataclass(frozen=True)
class Record:
  """An action that was taken on a run, or a request that was refused."""

  step: int  # updates made when it was taken or refused
  action: Action | None  # None: the request was refused
  by: str  # user name, or one of run_control.AUTOMATIC
  why: str  # the reason given
  time: str = ''  # UTC, of the request or of the automatic action
  request: str = ''  # name of the request's file; '' for an automatic action
  cut: str = ''  # rewind: name of the file with the rows that it removed
  # State of the run before the action: step, loss, paused, skipped, hyperparameters.
  before: Json = dataclasses.field(default_factory=dict)
  refused: str = ''  # why the request was refused
  asked: Json = dataclasses.field(default_factory=dict)  # the content of a refused request

  def to_json(self) -> Json:
    """The object in actions.jsonl."""
    about = {'by': self.by, 'why': self.why, 'time': self.time}
    if self.action is None:
      outcome = {'step': self.step, 'request': self.request, 'refused': self.refused}
      return {**self.asked, **about, **outcome}
    return {
        'step': self.step,
        **self.action.to_json(),
        **({'cut': self.cut} if self.cut else {}),
        **about,
        **({'request': self.request} if self.request else {}),
        'before': self.before,
    }

  @classmethod
  def from_json(cls, found: Json) -> Self:
    """The inverse of to_json; BadInput for an object that a trainer does not write.

    In particular, no name in a record may refer to a file in another folder.
    """
    files.check_types(found, {'step': int, 'by': str, 'why': str})
    about = dict(step=found['step'], by=found['by'], why=found['why'])
    about |= dict(time=found.get('time', ''), request=found.get('request', ''))
    files.check_types(about, {'time': str, 'request': str})
    if 'refused' in found:
      asked = {key: value for key, value in found.items() if key not in _REFUSAL_KEYS}
      return cls(action=None, refused=str(found['refused']), asked=asked, **about)
    action = Action.from_json(found)
    cut = found.get('cut', '')
    for key, kind, value in (('cut', 'rewind', cut), ('name', 'fork', action.name)):
      if action.kind == kind and not actions.is_file_name(value):
        raise BadInput(f'{key} must be the name of a file')
    return cls(action=action, cut=cut, before=found.get('before', {}), **about)

  def __str__(self) -> str:
    """The action taken, or the action refused and why."""
    if self.action is None:
      return f'{self.asked.get("action")}, refused: {self.refused}'
    return str(self.action)


def read_records(run: Path) -> list[Record]:
  """The records of a run, refused requests included; BadInput if actions.jsonl is damaged."""
  return files.parse_lines(run / FILE, Record.from_json)


def read_taken(run: Path) -> list[Record]:
  """The records of the actions that were taken on a run."""
  return [record for record in read_records(run) if record.action is not None]


def append_record(run: Path, record: Record) -> None:
  """Appends a record; it is on disk when the function returns."""
  files.append_line(run / FILE, record.to_json())


def write_taken(run: Path, taken: Iterable[Record]) -> None:
  """Writes the records of a run that will take these actions when it is trained."""
  files.write_lines(run / FILE, [record.to_json() for record in taken])


# Combined effects of the actions taken on a run.


def skipped_steps(taken: Iterable[Record]) -> int:
  """The number of batches that these actions leave out."""
  return sum(record.action.steps + record.action.skip for record in taken)


def is_paused(taken: Sequence[Record]) -> bool:
  """Whether a run is paused after these actions; a rewind resumes it, as `continue` does."""
  kinds = [record.action.kind for record in taken]
  deciding = [kind for kind in kinds if kind in ('pause', 'continue', 'stop', 'rewind')]
  return deciding[-1:] == ['pause']


def saved_steps(taken: Iterable[Record]) -> set[int]:
  """The steps at which these actions saved a checkpoint that no later rewind has deleted."""
  saved = set()
  for record in taken:
    if record.action.kind == 'checkpoint':
      saved.add(record.step)
    if record.action.kind == 'rewind':
      saved = {step for step in saved if step < record.action.to} | {record.action.to}
  return saved


def current_config(config: Config, taken: Iterable[Record]) -> Config:
  """The config of a run after the changes that these actions make."""
  for record in taken:
    if record.action.kind in ('set', 'rewind'):
      config = actions.with_changes(config, record.action.changes)
  return config
