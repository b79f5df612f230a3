"""Measures the loss of finished runs on other text than their own, and what fine-tuning forgets.

  python -m launch.evaluate --workdir=DIR [--runs=PATTERN] [--text=parent|FOLDER]

parent, the default, is the validation text of the run that a fine-tuned run started from. Any other
value is a file or folder of text, of which windows are taken that are spread evenly over it, at
most as many as the sweep has of validation text. The loss of the parent is measured on the same
windows: the difference is what a run has forgotten. If the runs, or the runs that they started
from, were trained on some documents of the text, a warning names these. The measurements are in
DIR/report/other_text.csv and on the page; one that is there already is not repeated.
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, path_flags

# isort: split
import dataclasses
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from launch.common import display, finished_runs
from stability.errors import BadInput
from stability.storage import files, other_text_csv, parents, run_files, sweeps
from stability.storage.files import Json

if TYPE_CHECKING:
  from stability.data.sources import Document
  from stability.retrieval.model import Model
  from stability.retrieval.texts import Windows

PARENT = 'parent'
SHOWN = 5  # names in a line

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

  measured, damaged = _Measurements(workdir, sweep, names), []
  for warning in measured.warnings():
    print(f'warning: --text={_TEXT.value}: {warning}', file=sys.stderr)
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
  for error in dict.fromkeys(map(str, damaged)):  # runs may share a parent
    print(f'error: {error}', file=sys.stderr)
  return 1 if damaged else 0


class _Measurements:
  """The rows of some runs; runs that share texts or parents share their windows and losses."""

  def __init__(self, workdir: Path, sweep: sweeps.Sweep, names: Sequence[str]):
    """Prepares to measure these runs; BadInput if --text cannot be read or is too short."""
    self.rows: list[other_text_csv.Row] = []
    self._workdir = workdir
    self._sweep = sweep
    self._known = {row.key: row for row in other_text_csv.read(workdir)}
    self._windows: dict[tuple[str, int, int], Windows] = {}
    self._parent_losses: dict[tuple[str, str], float] = {}
    self._documents: list[Document] = []  # of --text
    self._training = None
    if _TEXT.value != PARENT:
      from stability.data.tokenize import stored
      from stability.retrieval import texts

      folder = workdir / sweep.data['path']
      self._tokenizer = stored.StoredTokenizer(folder, sweep.data)
      self._documents = texts.documents(Path(_TEXT.value))
      for name in names:  # before anything is measured: the text may be too short for one
        self._windows_of(name, None)
      runs = {name: run_files.run_dir(workdir, name) for name in names}
      self._training = _TrainingDocuments(self._documents, folder, runs)

  def warnings(self) -> list[str]:
    """Sentences on training documents in --text; none if it is the text of the parents."""
    return self._training.warnings() if self._training else []

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
    count = len(self._training.of_run(name)) if self._training else 0
    self.rows.append(dataclasses.replace(known, training_documents=count))

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
        found = texts.of_documents(source, self._documents, self._tokenizer, length, count)
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


class _TrainingDocuments:
  """The documents of --text that runs, or the runs that they started from, were trained on."""

  def __init__(self, documents: 'Sequence[Document]', folder: Path, runs: dict[str, Path]):
    """Looks for the documents in the token folder of the runs and in those of their parents."""
    self._documents = documents
    self._of_folders: dict[Path, set[str]] = {}
    self._own = self._of_folder(folder)
    self._of_parents: dict[str, set[str]] = {name: set() for name in runs}
    self._unchecked: set[str] = set()  # paths of parents
    for name, run in runs.items():
      for parent in parents.ancestors(run):
        try:
          self._of_parents[name] |= self._of_folder(_text_of(parent))
        except BadInput:
          self._unchecked.add(parent['path'])

  def of_run(self, name: str) -> set[str]:
    """The names of the documents that a run or a parent was trained on, as far as known."""
    return self._own | self._of_parents[name]

  def warnings(self) -> list[str]:
    """Sentences on the documents, and on parents whose text is unknown."""
    found = []
    of_parents = set().union(*self._of_parents.values())
    for who, names in (('the runs', self._own), ('their parents', of_parents)):
      if names:
        shown = _shown([name for name, _ in self._documents if name in names])
        found.append(
            f'{who} were trained on {len(names):,} of its {len(self._documents):,} documents'
            f' ({shown}); losses there may be those of memorised text'
        )
    if self._unchecked:
      found.append(
          'could not be compared with the training text of these parents, whose sweeps are gone or'
          f' have other text: {_shown(sorted(self._unchecked))}'
      )
    return found

  def _of_folder(self, folder: Path) -> set[str]:
    from stability.data import tokens
    from stability.data.tokenize import stored
    from stability.retrieval import training_text

    if folder not in self._of_folders:
      tokenizer = stored.StoredTokenizer(folder, tokens.open_tokens(folder).meta)
      found = training_text.trained_on(self._documents, folder, tokenizer)
      self._of_folders[folder] = set(found)
    return self._of_folders[folder]


def _shown(names: Collection[str]) -> str:
  return ', '.join(list(names)[:SHOWN]) + (', ...' if len(names) > SHOWN else '')


def _loss(model: 'Model', windows: 'Windows') -> float:
  return float(-model.log_p(windows.tokens_NxT1).mean(dtype='float64'))


def _text_of(parent: Json) -> Path:
  """The token folder of a parent; BadInput if it is gone or has other text."""
  workdir = parents.run_of(parent).parent.parent
  try:
    data = sweeps.read_sweep(workdir).data
  except BadInput as error:
    raise BadInput(
        f'{parent["path"]}: its sweep is not there; give text that it was not trained on as'
        f' --text: {error}'
    ) from None
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
    display.print_table(console, text, left=('run', other_text.TEXT))


if __name__ == '__main__':
  app.run(main, FLAGS)
