"""DIR/report/retrieval.csv: losses of models with a datastore beside them, a row per measurement.

  run, method       knn, the nearest-neighbour language model, or bm25, passages in context
  k                 number of neighbours or passages; as the next two, tuned on half the windows
  temperature       of the neighbours, in squared distance; empty for bm25
  weight            of the neighbours in the mixture; empty for bm25
  windows           number of windows on which the losses are measured, the other half
  left_out          number of windows whose text stands in the datastore
  loss_without, loss_with   nats; of bm25, over the last quarter of each window
  seconds           time of the measurement, with the keys of the datastore
  keys              number of positions in the datastore
  datastore, text   names of the texts: train, validation or a path
  recall            share of the positions whose token is among the 16 nearest neighbours' values
  stable_rank       ||K||_F^2 / ||K||_2^2 of the keys K of the windows, minus their mean; as recall,
                    empty for bm25
  digest            of the tokens of both
"""

import csv
import dataclasses
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from stability.errors import BadInput
from stability.storage import files

METHODS = ('knn', 'bm25')


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

  @property
  def key(self) -> tuple[str, ...]:
    """What was measured: a new row with the same key replaces an old one."""
    return self.run, self.method, self.datastore, self.text

  @classmethod
  def parse(cls, found: dict[str, Any]) -> Self:
    """The row of a line as csv.DictReader gives it; ValueError if it is damaged."""
    if None in found:
      raise ValueError('too many cells')
    values = {}
    for field in dataclasses.fields(cls):
      text = found.get(field.name)
      if text is None:
        raise ValueError(f'{field.name} is missing')
      if field.type == float | None and not text:
        values[field.name] = None
      elif field.type is str:
        values[field.name] = text
      else:
        values[field.name] = (int if field.type is int else float)(text)
        if not math.isfinite(values[field.name]):
          raise ValueError(f'{field.name}={text}: must be a finite number')
    if values['method'] not in METHODS:
      raise ValueError(f'method={values["method"]}: must be one of {", ".join(METHODS)}')
    return cls(**values)


def path(workdir: Path) -> Path:
  """The file of a workdir."""
  return workdir / 'report' / 'retrieval.csv'


def read(workdir: Path) -> list[Row]:
  """The rows of a workdir; none if there is no file, BadInput if it is damaged."""
  file = path(workdir)
  if not file.is_file():
    return []
  try:
    lines = csv.DictReader(io.StringIO(file.read_text()), strict=True)
    rows = []
    for line in lines:
      rows.append(Row.parse(line))
  except (ValueError, csv.Error) as error:
    raise BadInput(f'{file}, line {len(rows) + 2}: damaged: {error}') from None
  return rows


def add(workdir: Path, new: Iterable[Row]) -> None:
  """Adds rows; those that measure the same as an old one replace it."""
  rows = {row.key: row for row in read(workdir)}
  rows |= {row.key: row for row in new}
  buffer = io.StringIO()
  names = [field.name for field in dataclasses.fields(Row)]
  writer = csv.DictWriter(buffer, names, lineterminator='\n')
  writer.writeheader()
  writer.writerows(dataclasses.asdict(row) for row in rows.values())
  files.write_atomic(path(workdir), buffer.getvalue())
