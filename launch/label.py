"""Selects passages of text, asks people about them and reads their answers.

  python -m launch.label select --workdir=DIR --data=FOLDER --count=N --by=RULE --output=TASKS
  python -m launch.label ask --tasks=TASKS
  python -m launch.label read --tasks=TASKS --answers=FILE[,FILE...] --output=FOLDER
  python -m launch.label keep --tasks=TASKS --output=FOLDER            all, without asking

select takes passages of the text in FOLDER (or, with --data=train, of the sweep's training text),
or whole documents with --length=0. It writes those that come first by a rule, without near-
duplicates: --count of them, or with --share=0.5 half of the text. Passages of FOLDER that share
text with the sweep's validation text are left out and counted. The rules are: disagreement, on
which several seeds disagree most; loss, whose loss is highest; gain, on which a run that was
trained on other text (--reference=DIR/runs/NAME) does better by most; and random, which needs no
model. TASKS has them as JSON lines and as tasks for Label Studio and doccano. By default, the seeds
are those of the size and options with the lowest loss.

ask shows passages one at a time: k keeps, d drops, u is unsure, b goes back, q ends; the same
command continues. A share of them (--second) is asked of a second person. read takes answers of
ask, of Label Studio or of doccano, the last one of each person, reports where people disagree, and
writes a token folder. A sweep with --config.data.path=FOLDER and --config.data.labels=kept (or
weights) trains on what was kept.
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, path_flags

# isort: split
import contextlib
import fnmatch
import functools
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import flags
from rich.console import Console

from launch.common import display, finished_runs, user
from stability import config as config_lib
from stability.errors import BadInput
from stability.labels import answers, asking, passages, tasks
from stability.storage import run_files, sweeps

if TYPE_CHECKING:
  from stability.labels.scores import Scores
  from stability.retrieval.model import Model

TRAIN = 'train'
RULES = ('disagreement', 'loss', 'gain', 'random')
MAX_SHOWN = 5  # conflicts
FLAGS_OF = {  # by word
    'select': (
        *('workdir', 'runs', 'data', 'count', 'share', 'by', 'reference', 'length', 'seed'),
        'output',
    ),
    'ask': ('tasks', 'annotator', 'second'),
    'read': ('tasks', 'answers', 'output'),
    'keep': ('tasks', 'output'),
}

FLAGS = flags.FlagValues()
_WORKDIR = app.define_workdir(FLAGS, required=False)
_RUNS = flags.DEFINE_string(
    'runs',
    None,
    'select: names of runs, forks among them, in which * stands for anything; quote it',
    flag_values=FLAGS,
)
_DATA = path_flags.define('data', None, 'select: file or folder of text, or train', FLAGS)
_COUNT = flags.DEFINE_integer(
    'count', None, 'select: number of passages; default: 50', lower_bound=1, flag_values=FLAGS
)
_SHARE = flags.DEFINE_float(
    'share',
    None,
    'select: share of the text, in characters, instead of --count; above 0',
    upper_bound=1.0,
    flag_values=FLAGS,
)
_BY = flags.DEFINE_enum('by', 'disagreement', RULES, 'select: the rule', flag_values=FLAGS)
_REFERENCE = path_flags.define(
    'reference', None, 'select --by=gain: folder of a run trained on other text', FLAGS
)
_LENGTH = flags.DEFINE_integer(
    'length',
    500,
    'select: the most characters of a passage; 0: whole documents',
    lower_bound=0,
    flag_values=FLAGS,
)
_SEED = flags.DEFINE_integer('seed', 0, 'select --by=random: seed', flag_values=FLAGS)
_TASKS = path_flags.define('tasks', None, 'ask, read, keep: folder that select wrote', FLAGS)
_ANNOTATOR = flags.DEFINE_string(
    'annotator', None, 'ask: who answers; default: the user', flag_values=FLAGS
)
_SECOND = flags.DEFINE_float(
    'second',
    0.1,
    'ask: share of the passages with the opinion of a second person',
    lower_bound=0.0,
    upper_bound=1.0,
    flag_values=FLAGS,
)
_ANSWERS = path_flags.define_list('answers', 'read: files of answers, separated by commas', FLAGS)
_OUTPUT = path_flags.define('output', None, 'select, read, keep: new folder to write', FLAGS)


def main(*words: str) -> int | None:
  """Selects, asks, reads or keeps."""
  actions = {'select': select, 'ask': ask, 'read': read, 'keep': keep}
  if len(words) != 1 or words[0] not in actions:
    shown = ' '.join(words)
    raise BadInput(f'{shown!r}: must be one of {", ".join(actions)}')
  for name in FLAGS:
    if FLAGS[name].present and name not in FLAGS_OF[words[0]]:
      allowed = ', '.join(f'--{flag}' for flag in FLAGS_OF[words[0]])
      raise BadInput(f'--{name}: not with {words[0]}, which takes {allowed}')
  return actions[words[0]]()


def _required(holder: flags.FlagHolder, what: str) -> Path:
  if not holder.value:
    raise BadInput(f'--{holder.name}: missing, must be {what}')
  return Path(holder.value)


def _new_output() -> Path:
  output = _required(_OUTPUT, 'a new folder')
  if os.path.lexists(output):
    raise BadInput(f'--output={output}: exists; must be a new folder')
  return output


# select


def select() -> None:
  """Writes tasks."""
  workdir = _required(_WORKDIR, 'the folder of a sweep')
  data, output = _required(_DATA, 'a file or folder of text'), _new_output()
  if (_BY.value == 'gain') != bool(_REFERENCE.value):
    raise BadInput('--reference: must be given with --by=gain, and only then')
  if _COUNT.value is not None and _SHARE.value is not None:
    raise BadInput('--share: must be given without --count')
  if _SHARE.value is not None and not _SHARE.value > 0:
    raise BadInput(f'--share={_SHARE.value}: must be above 0, and at most 1')
  if FLAGS['seed'].present and _BY.value != 'random':
    raise BadInput('--seed: must be given with --by=random')
  sweep = finished_runs.open_sweep(workdir)
  names = _run_names(workdir, sweep)
  if _BY.value == 'disagreement' and len(names) < 2:
    found = 'the one with the lowest loss is alone' if _RUNS.value is None else '--runs names'
    raise BadInput(
        f'--by=disagreement: needs two seeds or more that have finished; {found}: {names[0]}'
    )
  found = list(passages.cut(_documents(data, workdir, sweep), _LENGTH.value))
  if not found:
    raise BadInput(f'--data={data}: holds nothing but white space')
  shared = 0
  if str(data) != TRAIN:  # whose documents are none of the validation text
    found, shared = _apart_from_validation(found, workdir, sweep)
  if not found:
    raise BadInput(f"--data={data}: all of it occurs in the sweep's validation text")
  finished_runs.prepare(workdir, sweep)
  scores = _score(workdir, sweep, names, found)
  values = {
      'disagreement': scores.disagreement,
      'loss': scores.loss,
      'gain': scores.gain,
      'random': np.random.default_rng(_SEED.value).random(len(found)),
  }[_BY.value]
  order = np.argsort(-values, kind='stable')
  position = {passage.task: n for n, passage in enumerate(found)}
  count, characters = 50 if _COUNT.value is None else _COUNT.value, math.inf
  if _SHARE.value is not None:
    count, characters = math.inf, _SHARE.value * sum(len(passage.text) for passage in found)
  ranked = (found[n] for n in order)
  chosen, left_out = passages.without_near_duplicates(ranked, count, characters)
  written = []
  for passage in chosen:
    n = position[passage.task]
    numbers = scores.loss[n], scores.disagreement[n] if len(names) > 1 else math.nan, values[n]
    rounded = (round(float(x), 6) if math.isfinite(x) else None for x in numbers)
    written.append(tasks.Task(passage.task, *passage, *rounded))
  about = {
      'by': _BY.value,
      'runs': names,
      'workdir': str(workdir.absolute()),
      'data': str((workdir / sweep.data['path']).absolute()),
      'text': str(data),
      'reference': _REFERENCE.value,
      'passages': len(found),
  }
  tasks.write(output, written, about)
  duplicates = f', {left_out} near-duplicates left out' if left_out else ''
  print(f'{len(written)} of {len(found):,} passages by {_BY.value}{duplicates}: {output}')
  if shared:
    print(f'{shared:,} others left out, which share text with the validation text of {workdir}')


def _documents(path: Path, workdir: Path, sweep: sweeps.Sweep) -> list:
  from stability.data.tokenize import stored
  from stability.retrieval import texts

  if str(path) == TRAIN:
    return stored.documents(workdir / sweep.data['path'])
  return texts.documents(path, f'--data={str(path)!r}')


def _apart_from_validation(
    found: list[passages.Passage], workdir: Path, sweep: sweeps.Sweep
) -> tuple[list[passages.Passage], int]:
  """The passages that share nothing with the sweep's validation text; the number of the others."""
  from stability.data import tokens
  from stability.data.tokenize import stored
  from stability.retrieval import overlap

  folder = workdir / sweep.data['path']
  tokenizer = stored.StoredTokenizer(folder, sweep.data)
  validation = tokenizer.decode(np.asarray(tokens.open_tokens(folder).validation[:]))
  texts = (passage.text.encode(passage.encoding) for passage in found)
  # As the tokens say it: a tokenizer may change the text.
  shared = overlap.occurring_in([tokenizer.decode(tokenizer.encode(t)) for t in texts], validation)
  return [passage for passage, is_shared in zip(found, shared) if not is_shared], int(shared.sum())


def _run_names(workdir: Path, sweep: sweeps.Sweep) -> list[str]:
  """The finished runs that --runs names, or the seeds of the cell with the lowest mean loss.

  BadInput if there are none, unless the rule needs no model.
  """
  losses = {}
  for name in sweep.runs:
    result = run_files.read_result(run_files.run_dir(workdir, name))
    if result is not None and result.final_loss is not None and result.status != 'failed':
      losses[name] = result.final_loss
  if _RUNS.value is not None:
    names = [name for name in losses if fnmatch.fnmatchcase(name, _RUNS.value)]
    lengths = {sweep.runs[name]['data']['sequence_length'] for name in names}
    if len(lengths) > 1:
      raise BadInput(f'--runs={_RUNS.value}: names runs of several config.data.sequence_length')
  else:
    cells: dict[str, list[str]] = {}
    for name in losses:
      if sweeps.is_fork(workdir, name):  # no seed of its own
        continue
      flat = config_lib.flatten(sweep.runs[name]) | {'seed': None}
      if flat['init.parent'] is not None:  # it stands for the checkpoint, which may be each seed's
        flat['init.checkpoint'] = None
      cells.setdefault(repr(sorted(flat.items(), key=str)), []).append(name)
    mean = lambda cell: sum(losses[name] for name in cell) / len(cell)  # noqa: E731
    names = min(cells.values(), key=mean, default=[])
  if names or (_BY.value == 'random' and _RUNS.value is None):
    return names
  if _RUNS.value is None:
    raise BadInput(f'{workdir}: no run has finished with a finite loss; --by=random needs none')
  raise BadInput(f'--runs={_RUNS.value}: names no finished run of {workdir}')


def _score(
    workdir: Path, sweep: sweeps.Sweep, names: list[str], found: list[passages.Passage]
) -> 'Scores':
  from stability.data.tokenize import stored
  from stability.labels import scores

  if _BY.value == 'random':
    return scores.Scores(*np.full((3, len(found)), np.nan))
  tokenizer = stored.StoredTokenizer(workdir / sweep.data['path'], sweep.data)
  models = [_load(workdir, name) for name in names]
  reference = None
  if _REFERENCE.value:
    run = Path(os.path.abspath(_REFERENCE.value))
    if run.parent.name != 'runs':
      raise BadInput(f'--reference={_REFERENCE.value}: must be the folder of a run, DIR/runs/NAME')
    other = sweeps.read_sweep(run.parents[1])
    if run.name not in other.runs and not sweeps.is_fork(run.parents[1], run.name):
      raise BadInput(f'--reference={_REFERENCE.value}: its sweep has no such run')
    tokenizers = [
        (each.data['tokenizer'], each.data['sha256'].get('tokenizer')) for each in (sweep, other)
    ]
    if tokenizers[0] != tokenizers[1]:
      raise BadInput(f'--reference={_REFERENCE.value}: has another tokenizer')
    reference = _load(run.parents[1], run.name)
    if reference.sequence_length != models[0].sequence_length:
      raise BadInput(
          f'--reference={_REFERENCE.value}: has another config.data.sequence_length,'
          f' {reference.sequence_length}; must be {models[0].sequence_length}'
      )
  with display.Display(first_after=display.PLAIN_SECONDS) as progress:
    show = lambda share: progress.show(share, [f'{len(found):,} passages'])  # noqa: E731
    return scores.score(found, models, tokenizer, reference, show)


def _load(workdir: Path, name: str) -> 'Model':
  from stability.retrieval import model

  return model.Model.load(run_files.run_dir(workdir, name))


# ask


def ask() -> None:
  """Asks about the tasks in the terminal."""
  folder = _required(_TASKS, 'a folder that select wrote')
  listed, _ = tasks.read(folder)
  annotator = _ANNOTATOR.value or user.name()
  show = functools.partial(display.line, Console())
  show(asking.HELP)
  with _keys() as read_key:
    given = asking.ask(folder, listed, annotator, _SECOND.value, read_key, show)
  path = folder / tasks.ANSWERS
  all_answers = answers.read(path, [task.task for task in listed]) if path.exists() else []
  left, of_all = (
      len(asking.queue(listed, all_answers, _SECOND.value, who)) for who in (annotator, None)
  )
  others = f', {of_all - left} for somebody else' if of_all > left else ''
  show(f'{given} answers given, {left} questions left{others}: {path}')


@contextlib.contextmanager
def _keys() -> Iterator:
  """A function that returns the next key, empty at the end of the input."""
  if not sys.stdin.isatty():
    yield lambda: next((c for c in iter(lambda: sys.stdin.read(1), '') if not c.isspace()), '')
    return
  import termios
  import tty

  before = termios.tcgetattr(sys.stdin)
  try:
    tty.setcbreak(sys.stdin)  # Ctrl-C still ends the program
    yield lambda: os.read(sys.stdin.fileno(), 1).decode(errors='replace')
  finally:
    termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


# read


def read() -> None:
  """Writes a token folder of the passages that people have judged."""
  folder, output = _required(_TASKS, 'a folder that select wrote'), _new_output()
  if not _ANSWERS.value:
    raise BadInput('--answers: missing, must be files of answers, separated by commas')
  listed, about = tasks.read(folder)
  names = [task.task for task in listed]
  given = answers.read_all([Path(file) for file in _ANSWERS.value], names)
  decisions = answers.decide(given, names)
  from stability.labels import labelled

  labelled.write(output, Path(about['data']), listed, decisions)
  counts = {label: sum(d.label == label for d in decisions) for label in tasks.LABELS}
  conflicts = [decision for decision in decisions if decision.is_conflict]
  print(
      f'{len(given)} answers to {len(decisions)} of {len(listed)} tasks: {counts["keep"]} kept,'
      f' {counts["drop"]} dropped, {counts["unsure"]} undecided; annotators:'
      f' {len({answer.annotator for answer in given})}'
  )
  several = sum(len(decision.opinions) > 1 for decision in decisions)
  print(f'{len(conflicts)} conflicts among {several} tasks with several opinions')
  for decision in conflicts[:MAX_SHOWN]:
    said = ', '.join(f'{answer.annotator}: {answer.label}' for answer in decision.opinions)
    print(f'  {decision.task}: {said}')
  if len(conflicts) > MAX_SHOWN:
    print(f'  and {len(conflicts) - MAX_SHOWN} more, in {output / "labels.json"}')
  print(f'Token folder: {output}; --config.data.path={output} --config.data.labels=kept')


# keep


def keep() -> None:
  """Writes a token folder of all passages that select has written."""
  folder, output = _required(_TASKS, 'a folder that select wrote'), _new_output()
  listed, about = tasks.read(folder)
  from stability.labels import labelled

  decisions = [answers.Decision(task.task, answers.KEEP, 1.0, ()) for task in listed]
  labelled.write(output, Path(about['data']), listed, decisions)
  print(f'{len(listed)} passages in the token folder {output}: --config.data.path={output}')


if __name__ == '__main__':
  app.run(main, FLAGS, words=True)
