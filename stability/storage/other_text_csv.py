"""DIR/report/other_text.csv: losses of finished runs on other text than their own.

  run
  text          where the text is from: `parent`, that of the run's parent, or a path
  windows       number of windows
  loss          nats
  parent_loss   of the run's parent on the same windows; empty without a parent
  digest        of the tokens of the windows
  training_documents  number of documents of the text that the run, or one that it started from
                      (its parent, the parent of that), was trained on, as far as known
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from stability.storage import rows_csv


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of the file; see there."""

  run: str
  text: str
  windows: int
  loss: float
  parent_loss: float | None
  digest: str
  training_documents: int = 0

  @property
  def key(self) -> tuple[str, ...]:
    """What was measured."""
    return self.run, self.text


def path(workdir: Path) -> Path:
  """The file of a workdir."""
  return workdir / 'report' / 'other_text.csv'


def read(workdir: Path) -> list[Row]:
  """The rows of a workdir; none if there is no file, BadInput if it is damaged."""
  return rows_csv.read(path(workdir), Row)


def add(workdir: Path, new: Iterable[Row]) -> None:
  """Adds rows; those that measure the same as an old one replace it."""
  rows_csv.add(path(workdir), Row, new)
