"""The list of all claims, and the table of their verdicts on a sweep."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from stability.analysis import results as results_lib
from stability.analysis.claims import (
  arms,
  attention,
  attention_variants,
  extensions,
  finetuning,
  gradients,
  output_logits,
  recipe,
  scaling,
)
from stability.analysis.claims.claim import EXTENSION, Claim, Verdict, applies, decide
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
    *arms.CLAIMS,
    *finetuning.CLAIMS,
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
    'variant',
)


def judge(results: Results, curves: pd.DataFrame | None = None) -> pd.DataFrame:
  """The verdicts on all claims, a row each, in the order of the paper's figures.

  Columns: figure, claim, verdict (holds, does not hold, undecided), effect, low and high (90 %
  interval over resampled seeds), threshold (text: `>= 1.1`), measure (what the effect is), n (runs
  used; 0 if the claim does not apply to the sweep), reason (why a claim is undecided), variant
  (`field=value` if another member of its family replaces the paper's value).

  Args:
    results: the runs of a sweep or of a CSV file.
    curves: see results.load_curves, with the columns of probes(results); None: there are none.
  """
  evidence = Evidence.from_results(results_lib.by_fields(results), curves)
  return table([(claim, decide(claim, evidence)) for claim in CLAIMS])


def read(path: Path) -> pd.DataFrame:
  """The table of judge from a report's claims.csv; raises BadInput if the file is damaged."""
  text = {'figure': str, 'reason': str, 'variant': str}
  try:
    found = pd.read_csv(path, dtype=text)
  except (OSError, ValueError) as error:  # ValueError includes the parser's errors
    raise BadInput(f'{path}: cannot be read: {error}') from error
  if 'variant' not in found:  # written by an older version
    found['variant'] = ''
  if list(found) != list(COLUMNS):
    raise BadInput(f'{path}: damaged: its columns are not those of a table of claims')
  return found.fillna({'reason': '', 'variant': ''})


def probes(results: Results) -> list[str]:
  """The probes read by the claims that apply to these results."""
  evidence = Evidence.from_results(results_lib.by_fields(results), None)
  patterns = [probe for claim in CLAIMS if applies(claim, evidence) for probe in claim.probes]
  depth = int(results.runs['model.depth'].max()) if 'model.depth' in results.runs else 0
  return list(dict.fromkeys(_with_block_numbers(patterns, depth)))


def _with_block_numbers(patterns: Iterable[str], depth: int) -> Iterable[str]:
  """Expands each pattern with a * to the probes of all blocks."""
  for probe in patterns:
    blocks = range(depth) if '*' in probe else range(1)
    yield from (probe.replace('*', str(block)) for block in blocks)


def table(verdicts: Sequence[tuple[Claim, Verdict]]) -> pd.DataFrame:
  """A table with a row per claim, by figure: 1 ... 13, C.1, E.1 ..., then the extensions."""
  rows = [
      {
          'figure': claim.figure,
          'claim': claim.statement,
          'verdict': verdict.verdict,
          'effect': verdict.effect,
          'low': verdict.low,
          'high': verdict.high,
          'threshold': str(claim.criterion),
          'measure': claim.measure,
          'n': verdict.n,
          'reason': verdict.reason,
          'variant': verdict.variant,
      }
      for claim, verdict in sorted(verdicts, key=lambda pair: _order(pair[0].figure))
  ]
  return pd.DataFrame(rows, columns=COLUMNS)


def _order(figure: str) -> tuple[bool, str, int]:
  """The key by which table() sorts figures."""
  letter, _, number = figure.rpartition('.')
  return figure == EXTENSION, letter, 0 if figure == EXTENSION else int(number)
