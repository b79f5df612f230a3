"""The report over several sweeps: the findings, figures and report of each."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.claims import registry
from stability.analysis.claims.claim import EXTENSION
from stability.errors import BadInput
from stability.report import findings, page, tables
from stability.storage import files, sweeps

LOSS, LOGITS = 'loss_by_learning_rate', 'attention_logits_by_learning_rate'
MAX_FIGURES = 2  # per sweep
_EMPTY: tuple[list[str], list[str], list[str]] = [], [], []


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A sweep in the report."""

  name: str  # also the name of its folder
  question: str  # its heading
  figures: Sequence[str]  # those of the paper that it reproduces: 1 ... 13, C.1, E.1 ...
  problem: str | None  # what went wrong, if anything


def write_overview(folder: Path, experiments: Sequence[Experiment]) -> Path:
  """Writes folder/report/ on the sweeps in folder/NAME, finished or not.

  The verdicts on the claims of all sweeps are written to claims.csv there.

  Returns:
    The path of the report's index.html.
  """
  output = folder / 'report'
  read = (_read(folder, experiment) for experiment in experiments)
  shown, claim_tables = zip(*read, strict=True)
  readable, tally = None, ''
  if any(table is not None for table in claim_tables):
    judged = pd.concat(claim_tables, ignore_index=True)
    files.write_atomic(output / 'claims.csv', judged.to_csv(index=False))
    judged = judged[judged['reproduces']]
    readable = page.claim_cells(tables.claims(judged))
    link = Markup('<a href="#{0}">{0}</a>')
    readable.insert(0, 'experiment', judged['experiment'].map(link.format))
    tally = tables.count_verdicts(judged['verdict'])
  text = page.render(
      'overview.html.j2',
      experiments=shown,
      problems=[experiment for experiment, *_ in shown if experiment.problem],
      claims=readable,
      tally=tally,
  )
  files.write_atomic(output / 'index.html', text)
  return output / 'index.html'


def _read(folder: Path, experiment: Experiment) -> tuple[tuple[Any, ...], pd.DataFrame | None]:
  """The page's entries for an experiment, and its claims; only the problem if it is damaged."""
  try:
    return (experiment, *_entries(folder / experiment.name)), _claims(folder, experiment)
  except BadInput as error:
    problem = f'{experiment.problem}; {error}' if experiment.problem else str(error)
    return (dataclasses.replace(experiment, problem=problem), *_EMPTY), None


def _claims(folder: Path, experiment: Experiment) -> pd.DataFrame | None:
  """The claims that apply to a sweep, from its report's claims.csv; None before its first report.

  Columns: those of claims.registry.judge, experiment, and reproduces (whether the experiment
  reproduces the claim's figure).
  """
  file = folder / experiment.name / 'report' / 'claims.csv'
  if not file.exists():
    return None
  table = registry.read(file)
  table = table[table['n'] > 0].assign(experiment=experiment.name)
  return table.assign(reproduces=table['figure'].isin([*experiment.figures, EXTENSION]))


def _entries(workdir: Path) -> tuple[list[str], list[str], list[str]]:
  """Findings, facts and figures of a sweep; all empty if it has not been started."""
  if not (workdir / 'sweep.json').exists():
    return _EMPTY
  sweep = sweeps.read_sweep(workdir)
  results = results_lib.load_workdir(workdir)
  table = lr_sensitivity.lr_sensitivity(results)
  sentences = (
      findings.on_lr_sensitivity(results, table),
      findings.on_best_loss(results, table),
  )
  counts = results.runs['status'].value_counts(sort=False).to_dict()
  about = [f'{count} {status}' for status, count in counts.items()]
  about += [findings.count(results.runs['seed'].nunique(), 'seed'), f'{sweep.scale} scale']
  about += [f'{field}={value}' for field, value in sweep.overrides.items()]
  return list(filter(None, sentences)), about, _figures(workdir / 'report')


def _figures(report: Path) -> list[str]:
  """The most important figures of a report: losses, then attention logits."""
  available = {path.stem for path in report.glob('*.svg')}
  numbers = sorted(name for name in available - {LOSS} if name.startswith('loss_by_'))
  preferred = [LOSS, *numbers, LOGITS] if LOSS in available else numbers
  return [name for name in preferred if name in available][:MAX_FIGURES]
