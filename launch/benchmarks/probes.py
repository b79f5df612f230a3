"""Scores probes as alarms and as predictors on held-out sweeps, as a CSV file.

  python -m launch.benchmarks.probes FILE.csv CALIBRATION HELD_OUT [HELD_OUT ...]

CALIBRATION and HELD_OUT are workdirs of sweeps with probe.stable_rank=power_iteration and
probe.qk_spectral_entropy=svd. The criteria, fixed before any run was looked at:

  Alarm      the limit is chosen on CALIBRATION, as by launch.alarms --calibrate. On every HELD_OUT,
             the probe together with the rules as shipped must catch more unstable runs than the
             rules alone, or as many with a median lead that is 0.05 lower; and it must not raise
             the share of stable runs that fire by more than 0.02.
  Predictor  the highest value of a run tells which runs of the next size, with all other options
             equal, are unstable. On every HELD_OUT, its AUC must be 0.02 above that of the
             attention logit and that of the learning rate.

Columns:

  sweep, probe
  limit                            chosen on CALIBRATION
  runs, unstable
  recall, false_alarm_rate, lead   of the probe alone; see stability/analysis/alarm_scores.py
  any_recall, any_false_alarm_rate, any_lead
                                   with the rules as shipped; the row `rules as shipped` has theirs
  pairs, auc                       runs with a next size; area under the ROC curve, 1/2 is chance
"""

import csv
import dataclasses
import io
import itertools
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from stability.analysis import alarm_calibration, alarm_scores
from stability.analysis import results as results_lib
from stability.control.rows import Row
from stability.control.rules import RULES
from stability.storage import files, run_files
from stability.storage.run_files import highest

SHIPPED = 'rules as shipped'
COLUMNS = (
    'sweep',
    'probe',
    'limit',
    'runs',
    'unstable',
    'recall',
    'false_alarm_rate',
    'lead',
    'any_recall',
    'any_false_alarm_rate',
    'any_lead',
    'pairs',
    'auc',
)


def _values(row: Row, start: str, end: str = '') -> dict[str, float]:
  """The finite values of a row under keys with this start and end."""
  return {
      key: value
      for key, value in row.items()
      if key.startswith(start) and key.endswith(end) and value is not None and math.isfinite(value)
  }


def _fall(start: str, end: str = '') -> Callable[[Row, Row], float]:
  """How many times a value has become smaller since the first row: that of the largest fall."""

  def measure(first: Row, row: Row) -> float:
    before = _values(first, start, end)
    falls = [
        before[key] / max(value, 1e-30)
        for key, value in _values(row, start, end).items()
        if before.get(key, 0) > 0
    ]
    return max(falls, default=math.nan)

  return measure


# Name -> a function of the first row with probes and of a later one; larger values are worse.
PROBES: Mapping[str, Callable[[Row, Row], float]] = {
    'learning rate': lambda first, row: row['learning_rate'],
    'attention logit': lambda first, row: highest(row, 'attention_logit_max'),
    'effective learning rate': lambda first, row: max(
        _values(row, 'effective_learning_rate/').values(), default=math.nan
    ),
    'fall of stable rank': _fall('stable_rank/'),
    'fall of stable rank, queries and keys': lambda first, row: np.nanmax([
        _fall('stable_rank/', end)(first, row) for end in ('/query', '/key')
    ]),
    'fall of spectral entropy': _fall('block_', '/qk_spectral_entropy_min'),
}


def main() -> None:
  """Writes the file."""
  output, *workdirs = map(Path, sys.argv[1:])
  calibration, *held_out = workdirs
  limits = _limits(calibration)
  rows = [row for workdir in held_out for row in measure(workdir, limits)]
  text = io.StringIO()
  writer = csv.DictWriter(text, COLUMNS, restval='')
  writer.writeheader()
  writer.writerows(rows)
  files.write_atomic(output, text.getvalue())


def measure(workdir: Path, limits: Mapping[str, float]) -> Iterator[dict[str, object]]:
  """The rows of a held-out sweep."""
  labels = alarm_scores.label_runs(workdir)
  courses = {run: course(workdir, run) for run in labels.index}
  shipped = _score(labels)
  common = {'sweep': workdir.name, 'runs': len(labels), 'unstable': int(labels['unstable'].sum())}
  yield common | {'probe': SHIPPED} | {f'any_{name}': f'{v:.3f}' for name, v in shipped.items()}
  pairs = next_sizes(results_lib.load_workdir(workdir), labels['unstable'])
  for probe, limit in limits.items():
    alone = labels[['unstable', 'onset']].assign(**{
        probe: [
            next((step for step, value in courses[run][probe] if value > limit), math.nan)
            for run in labels.index
        ]
    })
    together = alone.assign(any=labels[alarm_scores.ANY].to_frame().join(alone[probe]).min(axis=1))
    largest = [courses[run][probe][-1][1] if courses[run][probe] else math.nan for run, _ in pairs]
    yield (
        common
        | {'probe': probe, 'limit': f'{limit:.3g}', 'pairs': len(pairs)}
        | {name: f'{value:.3f}' for name, value in _score(alone).items()}
        | {f'any_{name}': f'{value:.3f}' for name, value in _score(together).items()}
        | {'auc': f'{auc(np.array(largest), np.array([label for _, label in pairs])):.3f}'}
    )


def course(workdir: Path, run: str) -> alarm_calibration.Course:
  """The values of each probe in a run that are above all earlier ones."""
  found: dict[str, list[tuple[int, float]]] = {name: [] for name in PROBES}
  rows = run_files.read_metrics(run_files.run_dir(workdir, run))
  probed = [row for row in rows if _values(row, 'stable_rank/')]
  for row in probed:
    for name, measure_of in PROBES.items():
      value = measure_of(probed[0], row)
      if value > (found[name][-1][1] if found[name] else -math.inf):
        found[name].append((row['step'], value))
  return found


def _limits(workdir: Path) -> dict[str, float]:
  """The limit of each probe, each by itself."""
  outcomes = alarm_scores.outcomes(workdir)
  courses = {run: course(workdir, run) for run in outcomes.index}
  unstable = outcomes['unstable'].to_dict()
  limits = {}
  for probe in PROBES:
    rule = dataclasses.replace(RULES[0], measure=_named(probe), limit=1.0)
    (chosen,) = alarm_calibration.choose(courses, unstable, [rule])
    limits[probe] = chosen.limit
  return limits


def _named(name: str) -> Callable[[object], float]:
  """A measure that stands for a course which is known already."""

  def measure_of(history: object) -> float:
    raise AssertionError(f'{name}: its course is known')

  measure_of.__name__ = name
  return measure_of


def _score(labels: pd.DataFrame) -> dict[str, float]:
  last = alarm_scores.score(labels).iloc[-1]
  return {name: last[name] for name in ('recall', 'false_alarm_rate', 'lead')}


def next_sizes(results: results_lib.Results, unstable: pd.Series) -> list[tuple[str, bool]]:
  """Runs, each with whether the one of the next size with all other options equal is unstable."""
  runs = results.runs[results.runs['run'].isin(unstable.index)]
  others = [*results.groups, 'learning_rate', 'seed']
  pairs = []
  for _, alike in results_lib.split(runs, others):
    names = alike.sort_values('parameters')['run'].tolist()
    pairs += [(run, bool(unstable[after])) for run, after in itertools.pairwise(names)]
  return pairs


def auc(values: np.ndarray, labels: np.ndarray) -> float:
  """The share of pairs, one labelled and one not, in which the labelled value is the larger one.

  Ties count by half, as do pairs with a NaN.
  """
  above = values[labels][:, None] - values[~labels]
  wins = np.where(np.isnan(above), 0.5, (above > 0) + 0.5 * (above == 0))
  return float(wins.mean()) if wins.size else math.nan


if __name__ == '__main__':
  main()
