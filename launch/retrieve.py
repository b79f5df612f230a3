"""Measures the loss of finished runs with and without a datastore of text; nothing is trained.

  python -m launch.retrieve --workdir=DIR [--runs=PATTERN] [--datastore=train|FOLDER]
  python -m launch.retrieve --workdir=DIR --runs=NAME --add=FOLDER       before and after
  python -m launch.retrieve --workdir=DIR --runs=NAME --ask=TEXT         what it finds for a text
  python -m launch.retrieve --workdir=DIR --runs=NAME --output=FOLDER    keeps the datastore
  python -m launch.retrieve --workdir=DIR --parents              the models that runs started from

Two methods use the text: knn, a nearest-neighbour language model, whose keys are the inputs of the
last block's MLP; and bm25, passages with the words of the text, which the model reads before it.
The datastore holds windows spread evenly over the training text of the sweep or over the text of
FOLDER, at most --keys positions. Losses are those of the sweep's validation windows, except windows
that share 32 bytes with the datastore: those are left out and counted. Half of the windows tune the
numbers of a method, the other half is reported. The measurements are in DIR/report/retrieval.csv
and on the page; one that is there already is not repeated.

--parents measures, on the text of fine-tuned runs, the models that they started from, each once: a
datastore instead of fine-tuning.

--add holds out some of the text in FOLDER and measures on it, before and after the rest is added to
the datastore. A datastore that --output keeps can be given as --datastore to the run that made it;
then --add extends it permanently, by each text once.
"""

import os

if __name__ == '__main__':  # before NumPy is imported; see stability/retrieval/search.py
  for variable in ('OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS', 'OMP_NUM_THREADS'):
    os.environ.setdefault(variable, '1')

# First of this project, since launch.common may have to mend sys.path.
from launch.common import app, path_flags

# isort: split
import contextlib
import dataclasses
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags
from rich.console import Console

from launch.common import display, environment, finished_runs
from stability.config import Config
from stability.errors import BadInput, writing
from stability.storage import files, leases, retrieval_csv, run_files, sweeps

if TYPE_CHECKING:
  from stability.data.tokenize.stored import StoredTokenizer
  from stability.retrieval.continuation import Answer
  from stability.retrieval.datastore import Datastore
  from stability.retrieval.measure import Measurements
  from stability.retrieval.model import Model
  from stability.retrieval.texts import Windows

FLAGS = flags.FlagValues()
_WORKDIR = app.define_workdir(FLAGS)
_RUNS = finished_runs.define(FLAGS)
_PARENTS = flags.DEFINE_bool(
    'parents', False, 'measure the models that the runs started from', flag_values=FLAGS
)
_DATASTORE = path_flags.define(
    'datastore',
    'train',
    'train, a file or folder of text, or a datastore that --output has kept',
    FLAGS,
)
_ADD = path_flags.define('add', None, 'file or folder of text to add to the datastore', FLAGS)
_ASK = flags.DEFINE_string(
    'ask', None, 'text to continue, with what is found for it', flag_values=FLAGS
)
_OUTPUT = path_flags.define('output', None, 'new folder in which to keep the datastore', FLAGS)
_KEYS = flags.DEFINE_integer(
    'keys',
    1_000_000,
    'the most positions of a text in the datastore',
    lower_bound=1,
    flag_values=FLAGS,
)
TEMPORARY = '.datastore.'  # start of the name of a folder


def main() -> int:
  """Measures the runs, prints the results and writes them; returns 1 if a run could not be read."""
  workdir = Path(_WORKDIR.value)
  sweep = finished_runs.open_sweep(workdir)
  names = _check_flags(workdir, sweep)
  finished_runs.prepare(workdir, sweep)
  from stability.data.tokenize import stored
  from stability.retrieval import measure

  folder = workdir / sweep.data['path']
  tokenizer = stored.StoredTokenizer(folder, sweep.data)
  console = display.console()
  damaged, rows, answer = [], [], None
  with display.Display(first_after=display.PLAIN_SECONDS) as progress:

    def show(what: str, share: float) -> None:
      done = names.index(name)
      facts = [f'{done}/{len(names)} runs finished', name, f'{what} {share:.0%}']
      progress.show(done / len(names), facts)

    tools = measure.Measurements(tokenizer, environment.core_count(), show)
    for name in names:
      try:
        model = _load(workdir, name, sweep.runs[name])
      except BadInput as error:
        damaged.append(error)
        continue
      shown = finished_runs.parent(workdir, name)['given'] if _PARENTS.value else name
      job = _Job(workdir, folder, shown, sweep.runs[name], model, tools)
      if _ASK.value is not None:
        answer = job.answer()
      else:
        rows += job.add() if _ADD.value else job.compare()
  if answer:
    _print_answer(answer, tokenizer, console)
  if rows:
    from stability.report import page  # importing Matplotlib takes a second

    _print_rows(rows, console)
    path = page.write_report(workdir)
    display.line(console, f'Report: {path}')
  for error in damaged:
    print(f'error: {error}', file=sys.stderr)
  return 1 if damaged else 0


def _check_flags(workdir: Path, sweep: sweeps.Sweep) -> list[str]:
  """The finished runs that --runs names; BadInput for flags that do not go together."""
  for folder in (workdir, workdir / 'report'):
    files.refuse_links(folder)
  if _ASK.value is not None and (_ADD.value or _OUTPUT.value):
    raise BadInput('--ask: answers from a datastore; must be given without --add and --output')
  if _ASK.value is not None and not _ASK.value.strip():
    raise BadInput('--ask: must be a text')
  if _ADD.value and not os.path.exists(_ADD.value):
    raise BadInput(f'--add={_ADD.value}: no such file or folder')
  if _DATASTORE.value != 'train' and not os.path.exists(_DATASTORE.value):
    raise BadInput(
        f'--datastore={_DATASTORE.value}: no such file or folder; must be train, text or a kept'
        ' datastore'
    )
  if _OUTPUT.value and os.path.lexists(_OUTPUT.value):
    raise BadInput(f'--output={_OUTPUT.value}: exists; must be a new folder')
  if _OUTPUT.value and _is_kept():
    raise BadInput('--output: must be given without a kept --datastore')
  if FLAGS['keys'].present and _is_kept() and not _ADD.value:
    raise BadInput('--keys: must be given without a kept --datastore, or with --add')
  names = finished_runs.named(workdir, sweep, _RUNS.value)
  if _PARENTS.value:
    names = _one_of_each_parent(workdir, names)
  if len(names) > 1 and (_ASK.value is not None or _OUTPUT.value or _is_kept()):
    raise BadInput(
        f'--runs={_RUNS.value}: names {len(names)} runs; --ask, --output and a kept datastore need'
        f' one, such as {names[0]}'
    )
  return names


def _is_kept() -> bool:
  """Whether --datastore names a folder that an earlier --output has written."""
  return (Path(_DATASTORE.value) / 'datastore.json').is_file()


def _kind() -> str:
  """Which models are measured, as in retrieval.csv."""
  return retrieval_csv.PARENT if _PARENTS.value else retrieval_csv.RUN


def _one_of_each_parent(workdir: Path, names: Sequence[str]) -> list[str]:
  """The first of the runs that started from each checkpoint."""
  found: dict[str, str] = {}
  for name in names:
    if parent := finished_runs.parent(workdir, name):
      found.setdefault(parent['given'], name)
  if not found:
    raise BadInput(f'--parents: no finished run of --runs={_RUNS.value} has a parent')
  return list(found.values())


def _load(workdir: Path, name: str, config: Config) -> 'Model':
  from stability.retrieval import model, overlap

  length = config['data']['sequence_length']
  if length < overlap.LENGTH:  # what stands in the datastore could not be found
    raise BadInput(
        f'{name}: config.data.sequence_length={length}: must be at least {overlap.LENGTH}'
    )
  run = run_files.run_dir(workdir, name)
  if _PARENTS.value:
    return model.Model.of_parent(finished_runs.parent(workdir, name), length)
  return model.Model.load(run)


class _Job:
  """Measures one run, or answers from it, as the flags ask."""

  def __init__(
      self,
      workdir: Path,
      folder: Path,
      name: str,
      config: Config,
      model: 'Model',
      tools: 'Measurements',
  ):
    self._workdir = workdir
    self._folder = folder  # of the tokens
    self._name = name
    self._data = config['data']
    self._model = model
    self._tools = tools
    self._count = max(1, _KEYS.value // self._length)

  @property
  def _length(self) -> int:
    return self._data['sequence_length']

  def compare(self) -> list[retrieval_csv.Row]:
    """The rows with the datastore; those that are in retrieval.csv are not measured again."""
    from stability.retrieval import texts

    count = self._data['validation_batches'] * self._data['batch_size']
    validation = texts.of_split(self._folder, 'validation', self._length, count)
    if not _is_kept():
      # Before anything is built: the text may have nothing left to measure on, or be measured.
      base = self._base()
      kept, left_out = self._tools.without_overlap(validation, [base])
      known = self._measured([base], kept)
      if known and not _OUTPUT.value:
        return known
    started = time.monotonic()
    with self._store() as store:
      stored = [part.windows for part in store.parts]
      kept, left_out = self._tools.without_overlap(validation, stored)
      rows = self._tools.rows(self._name, self._model, store, kept, left_out, started)
    return self._keep(rows)

  def add(self) -> list[retrieval_csv.Row]:
    """The rows on held-out text of --add, before and after the rest of it is added."""
    from stability.retrieval import texts

    added, held_out = texts.of_path_in_two(
        Path(_ADD.value), self._tools.tokenizer, self._length, self._count
    )
    started = time.monotonic()
    with self._store() as store:
      of_store = time.monotonic() - started  # its keys serve the rows before and after
      stored = [part.windows for part in store.parts]
      kept, left_out = self._tools.without_overlap(held_out, [*stored, added])
      is_there = added.digest() in [text.digest() for text in stored]
      if is_there:
        print(f'--add={_ADD.value}: is in the datastore already; not added again', file=sys.stderr)
        if known := self._measured(stored, kept):
          return known
      rows = self._tools.rows(self._name, self._model, store, kept, left_out, started)
      if not is_there:
        started = time.monotonic() - of_store
        self._tools.add(store, self._model, added)
        rows += self._tools.rows(self._name, self._model, store, kept, left_out, started)
    return self._keep(rows)

  def answer(self) -> 'Answer':
    """The answer to --ask, with the numbers that were tuned for the datastore, if any."""
    from stability.retrieval import continuation, knn

    with self._store() as store:
      setting = None
      for row in self._known():
        if (row.method, row.datastore, row.keys) == ('knn', store.name, store.keys):
          setting = knn.Setting(row.k, row.temperature, row.weight)
      passages = self._tools.passages(store)
      return continuation.answer(
          self._model, self._tools.tokenizer, store, passages, _ASK.value.encode(), setting
      )

  def _known(self) -> list[retrieval_csv.Row]:
    """The rows of the model that are there already."""
    rows = retrieval_csv.read(self._workdir)
    return [row for row in rows if (row.run, row.model) == (self._name, _kind())]

  def _measured(self, texts: 'Sequence[Windows]', windows: 'Windows') -> list[retrieval_csv.Row]:
    """The known rows that measure a datastore of these texts on these windows."""
    from stability.retrieval import measure

    digest = measure.digest(texts, windows)
    return [row for row in self._known() if row.digest == digest]

  def _keep(self, rows: Sequence[retrieval_csv.Row]) -> list[retrieval_csv.Row]:
    """Writes rows of the model and returns them."""
    rows = [dataclasses.replace(row, model=_kind()) for row in rows]
    retrieval_csv.add(self._workdir, rows)
    return rows

  def _base(self) -> 'Windows':
    """The text of --datastore."""
    from stability.retrieval import texts

    if _DATASTORE.value == 'train':
      return texts.of_split(self._folder, 'train', self._length, self._count)
    path = Path(_DATASTORE.value)
    return texts.of_path(path, self._tools.tokenizer, self._length, self._count)

  @contextlib.contextmanager
  def _store(self) -> 'Iterator[Datastore]':
    """The datastore of the flags: kept, or made and, without --output, deleted at the end."""
    from stability.retrieval import datastore

    if _is_kept():
      yield datastore.Datastore.open(Path(_DATASTORE.value), self._model)
      return
    output = Path(_OUTPUT.value) if _OUTPUT.value else None
    parent = output.parent if output else self._workdir
    with writing(parent):
      parent.mkdir(parents=True, exist_ok=True)
      _delete_left(parent)
      temporary = tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=parent)
    with temporary as folder, leases.acquire(Path(folder)):
      store = self._tools.build(Path(folder) / 'store', self._name, self._model, self._base())
      yield store
      if output:
        store.folder.rename(output)


def _delete_left(parent: Path) -> None:
  """Deletes the temporary datastores of processes that were killed."""
  for folder in parent.glob(f'{TEMPORARY}*'):
    with contextlib.suppress(FileNotFoundError):  # somebody else deletes it
      # Without a lease, it has just been made.
      if any(map(leases.is_lease, folder.iterdir())) and leases.holder(folder) is None:
        shutil.rmtree(folder, ignore_errors=True)


def _print_rows(rows: Sequence[retrieval_csv.Row], console: Console) -> None:
  from stability.report import retrieval

  text = retrieval.table(rows)
  # What is the same in all rows stands above the table, which has to fit; all is in the CSV file.
  same = [name for name in retrieval.SHARED if text[name].nunique() == 1]
  shared = ', '.join(f'{name} {text[name].iloc[0]}' for name in same)
  display.line(console, shared)
  text = text.drop(columns=same)
  display.print_table(console, text, left=retrieval.TEXT_COLUMNS, spare=retrieval.SPARE)


def _print_answer(answer: 'Answer', tokenizer: 'StoredTokenizer', console: Console) -> None:
  lines = ['passages found, with their BM25 scores:']
  for found in answer.passages:
    text = _shown(tokenizer.decode(found.tokens))
    lines.append(f'  {found.score:.2f}  {text}  ({found.source})')
  lines.append('nearest neighbours of the next token, with their squared distances:')
  for near in answer.neighbours:
    value = f'{_shown(near.before)} -> {_shown(near.value)}'
    lines.append(f'  {near.distance:.3g}  {value}  ({near.source})')
  used, untuned = answer.setting, '' if answer.is_tuned else '; not tuned: run without --ask first'
  lines.append(f'k {used.k}, temperature {used.temperature:g}, weight {used.weight:g}{untuned}')
  lines.append(f'continuation without the datastore: {_shown(answer.alone)}')
  lines.append(f'continuation with the passages:     {_shown(answer.with_passages)}')
  lines.append(f'continuation with the neighbours:   {_shown(answer.with_neighbours)}')
  for line in lines:
    display.line(console, line)


def _shown(text: bytes) -> str:
  """The text in quotes, on one line."""
  return repr(text.decode(errors='replace'))


if __name__ == '__main__':
  app.run(main, FLAGS)
