"""The report over several sweeps: what each found, its figures, and a link to its own report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.claims import registry
from stability.analysis.claims.claim import DOES_NOT_HOLD, EXTENSION, HOLDS, UNDECIDED
from stability.errors import BadInput
from stability.report import page, terminal
from stability.storage import files, sweeps

LOSS, LOGITS = 'loss_by_learning_rate', 'attention_logits_by_learning_rate'
SHOWN = 2  # figures of each sweep
_NOTHING: tuple[list[str], list[str], list[str]] = [], [], []


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A sweep of the report; its folder has its name."""

  name: str
  question: str
  figures: Sequence[str]  # of the paper: 1 ... 13, C.1, E.1 ...
  problem: str | None  # what went wrong, if anything did


def write_overview(folder: Path, experiments: Sequence[Experiment]) -> Path:
  """Writes folder/report/index.html over the sweeps in folder/NAME, finished or not; its path.

  Beside it claims.csv, what all of them say of the paper's claims.
  """
  output = folder / 'report'
  shown, of_each = zip(*(_read(folder, each) for each in experiments), strict=True)
  readable, tally = None, ''
  if any(table is not None for table in of_each):
    judged = pd.concat(of_each, ignore_index=True)
    files.write_atomic(output / 'claims.csv', judged.to_csv(index=False))
    judged = judged[judged['reproduces']]
    readable = page.claim_cells(terminal.readable_claims(judged))
    link = Markup('<a href="#{0}">{0}</a>')
    readable.insert(0, 'experiment', judged['experiment'].map(link.format))
    tally = _tally(judged['verdict'])
  text = page.render(
      'overview.html.j2',
      experiments=shown,
      problems=[each for each, *_ in shown if each.problem],
      claims=readable,
      tally=tally,
  )
  files.write_atomic(output / 'index.html', text)
  return output / 'index.html'


def _read(folder: Path, experiment: Experiment) -> tuple[tuple[Any, ...], pd.DataFrame | None]:
  """What the page shows of an experiment, and its claims; a damaged one says so, and no more."""
  try:
    return (experiment, *_found(folder / experiment.name)), _claims(folder, experiment)
  except BadInput as error:
    told = f'{experiment.problem}; {error}' if experiment.problem else str(error)
    return (dataclasses.replace(experiment, problem=told), *_NOTHING), None


def _claims(folder: Path, experiment: Experiment) -> pd.DataFrame | None:
  """The claims about a sweep, from its report's claims.csv; None before its first report.

  Columns: those of claims.judge, experiment, and reproduces, whether it is the experiment of the
  claim's figure.
  """
  file = folder / experiment.name / 'report' / 'claims.csv'
  if not file.exists():
    return None
  table = registry.read(file)
  table = table[table['n'] > 0].assign(experiment=experiment.name)
  return table.assign(reproduces=table['figure'].isin([*experiment.figures, EXTENSION]))


def _found(workdir: Path) -> tuple[list[str], list[str], list[str]]:
  """Findings, what was run, and figures of a sweep; nothing where it has not begun."""
  if not (workdir / 'sweep.json').exists():
    return _NOTHING
  sweep = sweeps.read_sweep(workdir)
  results = results_lib.load_workdir(workdir)
  table = lr_sensitivity.lr_sensitivity(results)
  findings = list(filter(None, (page.finding(results, table), page.best(results, table))))
  counts = results.runs['status'].value_counts(sort=False).to_dict()
  about = [f'{count} {status}' for status, count in counts.items()]
  about += [page.count(results.runs['seed'].nunique(), 'seed'), f'{sweep.scale} scale']
  about += [f'{field}={value}' for field, value in sweep.overrides.items()]
  return findings, about, _shown(workdir / 'report')


def _tally(verdicts: pd.Series) -> str:
  """How many claims came out how."""
  words = {HOLDS: 'hold', DOES_NOT_HOLD: 'do not hold', UNDECIDED: UNDECIDED}  # of several
  counts = [(sum(verdicts == verdict), verdict) for verdict in words]
  return ', '.join(f'{n} {verdict if n == 1 else words[verdict]}' for n, verdict in counts if n)


def _shown(report: Path) -> list[str]:
  """Its first figures: loss against learning rate, if that is swept, and what else is, logits."""
  there = {path.stem for path in report.glob('*.svg')}
  numbers = sorted(name for name in there - {LOSS} if name.startswith('loss_by_'))
  wanted = [LOSS, *numbers, LOGITS] if LOSS in there else numbers
  return [name for name in wanted if name in there][:SHOWN]
