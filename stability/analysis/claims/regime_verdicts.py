"""How short and how small a proxy may be: from which run length and size on each claim holds.

A regime is a run length with the sizes up to one: its runs have this number of steps and at most
this number of parameters.
"""

import dataclasses

import numpy as np
import pandas as pd

from stability.analysis.claims import registry
from stability.analysis.claims.claim import HOLDS, UNDECIDED
from stability.analysis.instability import STEPS
from stability.analysis.results import Results

_OF_LENGTH = (STEPS, 'schedule.warmup_steps', 'schedule.decay_steps')  # vary together

COLUMNS = ('figure', 'claim', 'steps', 'parameters', 'verdict', 'effect', 'threshold', 'n')
FIRST_COLUMNS = ('figure', 'claim', 'steps', 'parameters', 'holds', 'decided', 'last')


def applies(results: Results) -> bool:
  """Whether a sweep varies the run length."""
  return STEPS in results.groups and results.runs[STEPS].nunique() > 1


def probes(results: Results) -> list[str]:
  """The probes read by the claims that apply in a regime; none if the runs have one length."""
  if not applies(results):
    return []
  longest = results.runs[results.runs[STEPS] == results.runs[STEPS].max()]
  return registry.probes(_regime(results, longest))


def _regime(results: Results, runs: pd.DataFrame) -> Results:
  """A sweep of the runs of one length."""
  groups = [name for name in results.groups if name not in _OF_LENGTH]
  return dataclasses.replace(results, runs=runs, groups=groups)


def judge(results: Results, curves: pd.DataFrame | None) -> pd.DataFrame:
  """The verdicts in each regime of a sweep that varies the run length.

  Args:
    results: the runs.
    curves: see results.load_curves, with the columns of probes(results); None: there are none.

  Returns:
    A row for each regime and claim that applies in it: figure, claim, steps, parameters (the
    largest size), verdict, effect, threshold and n (runs used).
  """
  parts = []
  for steps in sorted(results.runs[STEPS].unique()):
    of_length = results.runs[results.runs[STEPS] == steps]
    for largest in sorted(of_length['parameters'].dropna().unique()):
      runs = of_length[of_length['parameters'] <= largest]
      of_runs = None if curves is None else curves[curves['run'].isin(runs['run'])]
      judged = registry.judge(_regime(results, runs), of_runs)
      parts.append(judged[judged['n'] > 0].assign(steps=steps, parameters=largest))
  return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def first(judged: pd.DataFrame) -> pd.DataFrame:
  """The cheapest regime from which on each claim holds.

  It holds there and in every regime that is at least as long and as large and in which the claim is
  decided.

  Args:
    judged: the result of `judge`.

  Returns:
    A row per claim: figure, claim, steps and parameters of the regime of the fewest steps times
    parameters (NaN if there is none), holds and decided (in how many regimes), and last (whether
    no longer or larger regime confirms it).
  """
  rows = []
  for (figure, claim), of_claim in judged.groupby(['figure', 'claim'], sort=False):
    decided = of_claim[of_claim['verdict'] != UNDECIDED]
    lasting = [row for row in decided.itertuples() if (_beyond(decided, row) == HOLDS).all()]
    found = min(lasting, key=lambda row: row.steps * row.parameters, default=None)
    rows.append({
        'figure': figure,
        'claim': claim,
        'steps': found.steps if found else np.nan,
        'parameters': found.parameters if found else np.nan,
        'holds': (decided['verdict'] == HOLDS).sum(),
        'decided': len(decided),
        'last': bool(found) and len(_beyond(decided, found)) == 1,
    })
  return pd.DataFrame(rows, columns=FIRST_COLUMNS)


def _beyond(decided: pd.DataFrame, row) -> pd.Series:
  """The verdicts in a regime and in those that are at least as long and as large."""
  is_beyond = (decided['steps'] >= row.steps) & (decided['parameters'] >= row.parameters)
  return decided['verdict'][is_beyond]
