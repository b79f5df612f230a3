"""DIR/report/retrieval.csv: losses of models with a datastore beside them, a row per measurement.

  run               its name; of a parent, the init.checkpoint of the runs that started from it
  method            knn, the nearest-neighbour language model, or bm25, passages in context
  k                 number of neighbours or passages; as the next two, tuned on half the windows
  temperature       of the neighbours, in squared distance; empty for bm25
  weight            of the neighbours in the mixture; empty for bm25
  windows           number of windows on which the losses are measured, the other half
  left_out          number of windows whose text stands in the datastore
  loss_without, loss_with   nats; of bm25, over the last quarter of each window
  seconds           time of the measurement, with the keys of the datastore unless it was kept
  keys              number of positions in the datastore
  datastore, text   names of the texts: train, validation or a path
  recall            share of the positions whose token is among the 16 nearest neighbours' values
  stable_rank       ||K||_F^2 / ||K||_2^2 of the keys K of the windows, minus their mean; as recall,
                    empty for bm25
  digest            of the tokens of both
  model             whose losses these are: run, or parent, the parameters that runs started from
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from stability.storage import rows_csv

METHODS = ('knn', 'bm25')
RUN, PARENT = 'run', 'parent'  # models


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of the file; see there."""

  run: str
  method: str
  k: int
  temperature: float | None
  weight: float | None
  windows: int
  left_out: int
  loss_without: float
  loss_with: float
  seconds: float
  keys: int
  datastore: str
  text: str
  recall: float | None
  stable_rank: float | None
  digest: str
  model: str = RUN

  def __post_init__(self):
    if self.method not in METHODS:
      raise ValueError(f'method={self.method}: must be one of {", ".join(METHODS)}')
    if self.model not in (RUN, PARENT):
      raise ValueError(f'model={self.model}: must be {RUN} or {PARENT}')

  @property
  def key(self) -> tuple[str, ...]:
    """What was measured."""
    return self.run, self.model, self.method, self.datastore, self.text


def path(workdir: Path) -> Path:
  """The file of a workdir."""
  return workdir / 'report' / 'retrieval.csv'


def read(workdir: Path) -> list[Row]:
  """The rows of a workdir; none if there is no file, BadInput if it is damaged."""
  return rows_csv.read(path(workdir), Row)


def add(workdir: Path, new: Iterable[Row]) -> None:
  """Adds rows; those that measure the same as an old one replace it."""
  rows_csv.add(path(workdir), Row, new)
