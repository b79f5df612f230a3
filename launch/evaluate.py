"""Measures the loss of finished runs on other text than their own, and what fine-tuning forgets.

  python -m launch.evaluate --workdir=DIR [--runs=PATTERN] [--text=parent|FOLDER]

parent, the default, is the validation text of the run that a fine-tuned run started from. Any other
value is a file or folder of text, of which windows are taken that are spread evenly over it, at
most as many as the sweep has of validation text. The loss of the parent is measured on the same
windows: the difference is what a run has forgotten. If the runs were trained on some documents of
the text, a warning names these. The measurements are in DIR/report/other_text.csv and on the page;
one that is there already is not repeated.
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, path_flags

# isort: split
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from launch.common import display, finished_runs
from stability.errors import BadInput
from stability.storage import files, other_text_csv, run_files, sweeps
from stability.storage.files import Json

if TYPE_CHECKING:
  from stability.data.sources import Document
  from stability.retrieval.model import Model
  from stability.retrieval.texts import Windows

PARENT = 'parent'
SHOWN = 5  # names of documents in a line

FLAGS = flags.FlagValues()
_WORKDIR = app.define_workdir(FLAGS)
_RUNS = finished_runs.define(FLAGS)
_TEXT = path_flags.define(
    'text', PARENT, 'parent, or a file or folder of text to measure the loss on', FLAGS
)


def main() -> int:
  """Measures the runs and writes what was found; returns 1 if a run could not be read."""
  workdir = Path(_WORKDIR.value)
  sweep = finished_runs.open_sweep(workdir)
  for folder in (workdir, workdir / 'report'):
    files.refuse_links(folder)
  if _TEXT.value != PARENT and not os.path.exists(_TEXT.value):
    raise BadInput(f'--text={_TEXT.value}: no such file or folder; must be parent or a text')
  names = finished_runs.named(workdir, sweep, _RUNS.value)
  if _TEXT.value == PARENT:
    names = [name for name in names if finished_runs.parent(workdir, name)]
    if not names:
      raise BadInput('--text=parent: no finished run has a parent; must be a text')
  finished_runs.prepare(workdir, sweep)
  from stability.report import page

  measured, damaged = _Measurements(workdir, sweep), []
  if measured.trained_on:
    print(f'warning: {_trained_on(measured)}', file=sys.stderr)
  try:
    with display.Display(first_after=display.PLAIN_SECONDS) as progress:
      for done, name in enumerate(names):
        progress.show(done / len(names), [f'{done}/{len(names)} runs measured', name])
        try:
          measured.add(name)
        except BadInput as error:
          damaged.append(error)
  finally:  # after an interruption, the same command continues
    other_text_csv.add(workdir, measured.rows)
  if measured.rows:
    _print_tables(workdir, measured.rows)
    path = page.write_report(workdir)
    print(f'Report: {path}')
  for error in damaged:
    print(f'error: {error}', file=sys.stderr)
  return 1 if damaged else 0


class _Measurements:
  """The rows of some runs; runs that share texts or parents share their windows and losses."""

  def __init__(self, workdir: Path, sweep: sweeps.Sweep):
    self.rows: list[other_text_csv.Row] = []
    self._workdir = workdir
    self._sweep = sweep
    self._known = {row.key: row for row in other_text_csv.read(workdir)}
    self._windows: dict[tuple[str, int, int], Windows] = {}
    self._parent_losses: dict[tuple[str, str], float] = {}
    self.documents: list[Document] = []  # of --text
    self.trained_on: list[str] = []  # names of those that the runs were trained on
    if _TEXT.value != PARENT:
      from stability.data.tokenize import stored
      from stability.retrieval import texts, training_text

      folder = workdir / sweep.data['path']
      self._tokenizer = stored.StoredTokenizer(folder, sweep.data)
      self.documents = texts.documents(Path(_TEXT.value))
      self.trained_on = training_text.trained_on(self.documents, folder, self._tokenizer)

  def add(self, name: str) -> None:
    """Measures a run, unless its row is known; BadInput if that is impossible."""
    parent = finished_runs.parent(self._workdir, name)
    windows = self._windows_of(name, parent)
    known = self._known.get((name, windows.name))
    if known is None or known.digest != windows.digest():
      model = self._load(name)
      parent_loss = self._parent_loss(parent, windows) if parent else None
      count, loss = len(windows.tokens_NxT1), _loss(model, windows)
      known = other_text_csv.Row(
          name, windows.name, count, loss, parent_loss, windows.digest()
      )
    self.rows.append(dataclasses.replace(known, training_documents=len(self.trained_on)))

  def _windows_of(self, name: str, parent: Json | None) -> 'Windows':
    from stability.retrieval import texts

    data = self._sweep.runs[name]['data']
    length, count = data['sequence_length'], data['validation_batches'] * data['batch_size']
    source = parent['path'] if _TEXT.value == PARENT else _TEXT.value
    key = source, length, count
    if key not in self._windows:
      if _TEXT.value == PARENT:
        found = texts.of_split(_text_of(parent), 'validation', length, count, name=PARENT)
      else:
        found = texts.of_documents(source, self.documents, self._tokenizer, length, count)
      self._windows[key] = found
    return self._windows[key]

  def _load(self, name: str) -> 'Model':
    from stability.retrieval import model

    return model.Model.load(run_files.run_dir(self._workdir, name))

  def _parent_loss(self, parent: Json, windows: 'Windows') -> float:
    from stability.retrieval import model

    key = parent['sha256'], windows.digest()
    if key not in self._parent_losses:
      self._parent_losses[key] = _loss(model.Model.of_parent(parent), windows)
    return self._parent_losses[key]


def _trained_on(measured: _Measurements) -> str:
  names, count = measured.trained_on, len(measured.documents)
  shown = ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '')
  return (
      f'--text={_TEXT.value}: the runs were trained on {len(names):,} of its {count:,} documents'
      f' ({shown}); losses there may be those of memorised text'
  )


def _loss(model: 'Model', windows: 'Windows') -> float:
  return float(-model.log_p(windows.tokens_NxT1).mean(dtype='float64'))


def _text_of(parent: Json) -> Path:
  """The token folder of a parent; BadInput if it is gone or has other text."""
  path = Path(parent['path'])
  run = path if path.is_dir() else path.parent
  workdir = run.parent.parent
  try:
    data = sweeps.read_sweep(workdir).data
  except BadInput as error:
    raise BadInput(f'{path}: its sweep is not there; give its text as --text: {error}') from None
  if data['sha256'] != parent['data']['sha256']:
    raise BadInput(f'{workdir}: has other text than when the run was prepared')
  return workdir / data['path']


def _print_tables(workdir: Path, rows: Sequence[other_text_csv.Row]) -> None:
  """Prints the rows that were asked for, and the means of all that are known."""
  from stability.analysis import results
  from stability.report import other_text

  console = display.console()
  means = other_text.table(results.load_workdir(workdir), other_text_csv.read(workdir))
  for text in (other_text.of_runs(rows), means):
    table = display.table(text, left=('run', other_text.TEXT))
    display.add_rows(table, text.itertuples(index=False))
    console.print(table)


if __name__ == '__main__':
  app.run(main, FLAGS)
