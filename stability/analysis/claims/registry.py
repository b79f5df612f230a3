"""All claims, the paper's and those beyond it, judged on a sweep."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from stability.analysis import results as results_lib
from stability.analysis.claims import (
  attention,
  attention_variants,
  extensions,
  gradients,
  output_logits,
  recipe,
  scaling,
)
from stability.analysis.claims.claim import BEYOND, Claim, Verdict, decide, is_about
from stability.analysis.claims.evidence import Evidence
from stability.analysis.results import Results
from stability.errors import BadInput

CLAIMS: tuple[Claim, ...] = (
    *attention.CLAIMS,
    *attention_variants.CLAIMS,
    *output_logits.CLAIMS,
    *recipe.CLAIMS,
    *scaling.CLAIMS,
    *gradients.CLAIMS,
    *extensions.CLAIMS,
)


COLUMNS = (
    'figure',
    'claim',
    'verdict',
    'effect',
    'low',
    'high',
    'threshold',
    'measure',
    'n',
    'reason',
)


def judge(workdir: Path) -> pd.DataFrame:
  """Every claim on the sweep in `workdir`, finished or not: see judge_results.

  The tables of several sweeps go one under the other: pd.concat, with a column that says whose.
  """
  results = results_lib.load_workdir(workdir)
  return judge_results(results, results_lib.load_curves(workdir, probes(results)))


def judge_results(results: Results, curves: pd.DataFrame | None = None) -> pd.DataFrame:
  """Every claim, in the order of figures.

  Columns: figure, claim, verdict (holds, does not hold, undecided), effect, low, high (90 % over
  resampled seeds), threshold (text: `>= 1.1`), measure (what the effect is), n (runs read; 0 where
  the claim is not about this sweep), reason (of an undecided one).

  Args:
    results: of a sweep, or of anybody's file.
    curves: with the columns of probes(results), see tables.load_curves; None: there are none.
  """
  evidence = Evidence.of(results, curves)
  return table([(claim, decide(claim, evidence)) for claim in CLAIMS])


def read(path: Path) -> pd.DataFrame:
  """The table of judge, from the claims.csv of a report; BadInput where that is damaged."""
  try:
    found = pd.read_csv(path, dtype={'figure': str, 'reason': str}).fillna({'reason': ''})
  except (OSError, ValueError) as error:  # the parser's are of the latter
    raise BadInput(f'{path}: cannot be read: {error}') from error
  if list(found) != list(COLUMNS):
    raise BadInput(f'{path}: damaged: it has not the columns of a table of claims')
  return found


def probes(results: Results) -> list[str]:
  """The probes that the claims about these results read."""
  evidence = Evidence.of(results, None)
  wanted = [probe for claim in CLAIMS if is_about(claim, evidence) for probe in claim.probes]
  depth = int(results.runs['model.depth'].max()) if 'model.depth' in results.runs else 0
  return list(dict.fromkeys(_blocks(wanted, depth)))


def _blocks(wanted: Iterable[str], depth: int) -> Iterable[str]:
  for probe in wanted:
    blocks = range(depth) if '*' in probe else range(1)
    yield from (probe.replace('*', str(block)) for block in blocks)


def table(verdicts: Sequence[tuple[Claim, Verdict]]) -> pd.DataFrame:
  """A row per claim, by figure: 1 ... 13, C.1, E.1 ..., then those beyond the paper."""
  rows = [
      {
          'figure': claim.figure,
          'claim': claim.statement,
          'verdict': verdict.verdict,
          'effect': verdict.effect,
          'low': verdict.low,
          'high': verdict.high,
          'threshold': str(claim.holds),
          'measure': claim.measure,
          'n': verdict.n,
          'reason': verdict.reason,
      }
      for claim, verdict in sorted(verdicts, key=lambda pair: _order(pair[0].figure))
  ]
  return pd.DataFrame(rows, columns=COLUMNS)


def _order(figure: str) -> tuple[bool, str, int]:
  letter, _, number = figure.rpartition('.')
  return figure == BEYOND, letter, 0 if figure == BEYOND else int(number)
