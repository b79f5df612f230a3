"""The report over several sweeps: what each found, its figures, and a link to its own report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jinja2
import pandas as pd

from stability import workdir as workdir_lib
from stability.analysis import sensitivity, tables
from stability.report import page

FIGURES = ('loss_by_learning_rate', 'attention_logits_by_learning_rate')  # shown of each sweep


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A sweep of the report; its folder has its name."""

  name: str
  question: str
  figures: Sequence[str]  # of the paper: 1 ... 13, C.1, E.1 ...
  problem: str | None  # what went wrong, if anything did


def write_overview(folder: Path, experiments: Sequence[Experiment]) -> Path:
  """Writes folder/report/index.html over the sweeps in folder/NAME, finished or not; its path."""
  output = folder / 'report'
  claims = read_claims(folder, [experiment.name for experiment in experiments])
  if claims is not None:
    workdir_lib.write_whole(output / 'claims.csv', claims.to_csv(index=False))
  template = jinja2.Environment(
      loader=jinja2.FileSystemLoader(Path(__file__).parent),
      autoescape=True,
      undefined=jinja2.StrictUndefined,
      trim_blocks=True,
      lstrip_blocks=True,
  ).get_template('overview.html.j2')
  text = template.render(
      experiments=[(each, *_found(folder / each.name)) for each in experiments],
      problems=[each for each in experiments if each.problem],
      claims=claims,
  )
  workdir_lib.write_whole(output / 'index.html', text)
  return output / 'index.html'


def read_claims(folder: Path, names: Sequence[str]) -> pd.DataFrame | None:
  """The claims about the sweeps, from their reports' claims.csv, as text; None where there is none.

  Those with n = 0 are about other sweeps.
  """
  found = []
  for name in names:
    file = folder / name / 'report' / 'claims.csv'
    if file.exists():
      claims = pd.read_csv(file, dtype=str, keep_default_na=False)
      found.append(claims[claims['n'].astype(int) > 0].assign(experiment=name))
  return pd.concat(found, ignore_index=True) if found else None


def _found(workdir: Path) -> tuple[list[str], dict[str, int], list[str]]:
  """Findings, runs by status, and figures of a sweep; nothing where it has not begun."""
  if not (workdir / 'sweep.json').exists():
    return [], {}, []
  results = tables.load_workdir(workdir)
  table = sensitivity.lr_sensitivity(results)
  findings = list(filter(None, (page.finding(results, table), page.best(results, table))))
  counts = results.runs['status'].value_counts(sort=False).to_dict()
  figures = [name for name in FIGURES if (workdir / 'report' / f'{name}.svg').exists()]
  return findings, counts, figures
