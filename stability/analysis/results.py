"""Loads results, a table with a row per run, from the files of a sweep."""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stability import config as config_lib
from stability.analysis import reserved
from stability.analysis import windows as windows_lib
from stability.config import SIZE_FIELDS
from stability.errors import BadInput
from stability.hyper import Runs
from stability.storage import results_csv, run_files, sweeps
from stability.storage.files import Json

LOGIT = 'block_0/attention_logit_max'  # the probe that figures and predictions use

INTERVAL = 0.9  # confidence level
SWEEP = 'sweep'  # the column with the names of the sweeps that a comparison has

LATE = 0.05  # the fraction of steps averaged as the end of a run; the last step alone is noisy

_NOT_INTERVENTIONS = ('optimizer.learning_rate', 'seed', 'init.checkpoint')


@dataclasses.dataclass(frozen=True)
class Results:
  """The runs of a sweep, and which of their columns define the size and the intervention.

  `runs` has a row per run, with the columns run, status, parameters, learning_rate, seed,
  initial_loss, final_loss (nats; NaN if unknown) and those of sizes and groups. Runs of a workdir
  also have steps, tokens, seconds, error and every other field of their config.
  """

  runs: pd.DataFrame
  groups: list[str]  # the columns that define the intervention
  sizes: list[str]  # the columns that define the shape; shapes can have equal parameter counts
  windows: windows_lib.Windows = ()  # windows of learning rates for LR sensitivity
  not_comparable: str | None = None  # the field that makes LR sensitivities incomparable
  notes: tuple[str, ...] = ()  # sentences on values of a CSV file that count as the same number
  interval: float = INTERVAL  # confidence level of the intervals of LR sensitivity
  sweeps: tuple[str, ...] = ()  # the values of the column SWEEP, of a comparison of several sweeps
  # Of a leaderboard: arm -> the part of the system that it changes, control -> its verdict.
  places: Mapping[str, str] = dataclasses.field(default_factory=dict)
  controls: Mapping[str, str] = dataclasses.field(default_factory=dict)


def split(runs: pd.DataFrame, columns: Sequence[str]) -> Iterator[tuple[tuple, pd.DataFrame]]:
  """Yields (values, rows) for each combination of values, in order of appearance."""
  if not columns:
    yield (), runs
  else:
    yield from runs.groupby(list(columns), sort=False, dropna=False)


def key(values: Iterable[Any]) -> tuple:
  """A tuple that is equal for equal values: integers and floats are, and so are missing values."""
  return tuple(map(_part_of_key, values))


def _part_of_key(value: Any) -> float | str | None:
  if value is None or value is pd.NA:
    return None
  if isinstance(value, Real) and not isinstance(value, bool):
    return None if np.isnan(value) else float(value)
  return str(value)


def load_workdir(workdir: Path) -> Results:
  """Loads the runs of a sweep in its order; every field of their configs is a column."""
  sweep = sweeps.read_sweep(workdir)
  runs = pd.DataFrame(results_csv.read_results(workdir))
  configs = pd.DataFrame([config_lib.flatten(config) for config in sweep.runs.values()])
  fields = [field for field in configs if field not in (*runs, 'optimizer.learning_rate')]
  try:
    report = windows_lib.check(sweep.report, Runs(sweep.fields, sweep.runs))
    runs = runs.astype({'parameters': 'Int64', 'initial_loss': float, 'final_loss': float})
  except (BadInput, OverflowError) as error:
    raise BadInput(f'{workdir / "sweep.json"}: damaged: {error}') from error
  runs = pd.concat([runs, configs[fields]], axis='columns')
  names = reserved.free_names(sweep.fields, runs.columns)
  runs = runs.rename(columns=names)
  groups, sizes = groups_and_sizes([names.get(field, field) for field in sweep.fields])
  columns = [*sizes, *groups, 'learning_rate', 'seed']
  if sweep.is_imported:  # the size is then known by its parameters
    columns.insert(0, 'parameters')
  for _, equal in split(runs[runs.duplicated(columns, keep=False)], columns):
    raise BadInput(
        f'{workdir / "sweep.json"}: damaged: the runs {equal["run"].iloc[0]} and'
        f' {equal["run"].iloc[1]} have the same {", ".join(columns)}'
    )
  return Results(
      runs,
      groups,
      sizes,
      report.get('windows', ()),
      report.get('not_comparable'),
      places=report.get('places', {}),
      controls=report.get('controls', {}),
  )


def steered(runs: pd.DataFrame) -> pd.Series:
  """Whether a person has acted on each run, so that its results do not follow from its config.

  Actions of a policy do not count, since the policy is part of the config.
  """
  by_policy = runs.get('control.on_alarm', pd.Series('', runs.index)) == 'policy'
  return (actions(runs) > 0) & ~by_policy


def actions(runs: pd.DataFrame) -> pd.Series:
  """How many actions, by a person or the policy, changed the course of each run."""
  return runs.get('actions', pd.Series(0, runs.index)).fillna(0)


def load_curves(workdir: Path, probes: Iterable[str] = (LOGIT,)) -> pd.DataFrame:
  """Loads the training curves: a row per run and logged step.

  Columns: run, step, loss (training, nats) and the probes, each under its name. Values that are not
  finite are NaN, and so are probes at steps at which they were not measured. Where an imported run
  logged other metrics only, the loss is the one logged before.
  """
  columns = ['loss', *dict.fromkeys(probes)]
  names = list(sweeps.read_sweep(workdir).runs)
  steps, values = [], []  # an array per run: lists of numbers would take ten times the memory
  for name in names:
    run = run_files.run_dir(workdir, name)
    lines = run_files.read_metrics(run)
    try:
      steps.append(np.array([line['step'] for line in lines], int).reshape(len(lines)))
      rows = [[line.get(column) for column in columns] for line in _with_losses(lines)]
      values.append(np.array(rows, float).reshape(len(lines), len(columns)))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
      raise BadInput(f'{run}/metrics.jsonl: damaged: {error}') from error
  codes = np.repeat(np.arange(len(names)), [len(of_run) for of_run in steps])
  curves = pd.DataFrame(np.concatenate(values), columns=columns)
  curves.insert(0, 'step', np.concatenate(steps))
  curves.insert(0, 'run', pd.Categorical.from_codes(codes, names))
  return curves


def check_logged(workdir: Path, curves: pd.DataFrame, probes: Iterable[str]) -> None:
  """Raises BadInput if runs have logged rows, and none of them one of the probes of load_curves."""
  absent = [probe for probe in probes if curves[probe].isna().all()]
  if curves.empty or not absent:
    return
  runs = [run_files.run_dir(workdir, name) for name in curves['run'].cat.categories]
  logged = {key for run in runs for line in run_files.iterate_metrics(run) for key in line}
  for probe in absent:
    if probe not in logged:  # else its values are not finite
      nearest = sorted(logged - {'step'}, key=lambda key: (-_similarity(probe, key), key))
      raise BadInput(
          f'{workdir}: no run has logged {probe!r}; the nearest names are {", ".join(nearest[:5])}'
      )


def _similarity(first: str, second: str) -> float:
  """How alike two names are; one that contains the other is more so than any that does not."""
  return (first in second) + difflib.SequenceMatcher(None, first, second).ratio()


def _with_losses(lines: list[Json]) -> Iterator[Json]:
  """The rows of a run, each with a loss if any of them has one."""
  loss = next((line['loss'] for line in lines if 'loss' in line), None)
  for line in lines:
    loss = line.get('loss', loss)
    yield {**line, 'loss': loss} if 'loss' not in line else line


def at_end(curves: pd.DataFrame, probe: str) -> pd.Series:
  """The mean of a probe over the last fraction LATE of the steps; a row per run that logged it."""
  values = curves[['run', 'step', probe]].dropna()
  last = values.groupby('run', observed=True)['step'].transform('max')
  by_run = values[values['step'] > (1 - LATE) * last].groupby('run', observed=True)
  return by_run[probe].mean().rename(index=str)


def output_probe(runs: pd.DataFrame) -> str:
  """The output probe of block 2, as in the paper, or of the last block that all runs have."""
  return f'block_{min(2, int(runs["model.depth"].min()) - 1)}/output_rms'


def by_fields(results: Results) -> Results:
  """The runs with the fields that distinguish their arms as groups, instead of the label `arm`.

  Of arms that differ in the label alone, such as a control that is the baseline with other seeds,
  the first is kept. Runs of a CSV file without fields, and those without labels, stay as they are.
  """
  runs, sizes = results.runs, results.sizes
  known = {*sizes, *SIZE_FIELDS, *_NOT_INTERVENTIONS, 'arm'}
  varied = [
      name
      for name in runs
      if name in config_lib.FIELDS and name not in known and runs[name].nunique(dropna=False) > 1
  ]
  if 'arm' not in results.groups or not varied:
    return results
  is_constant = (runs.groupby('arm')[varied].nunique(dropna=False) == 1).all()
  of_arm = runs.drop_duplicates('arm').set_index('arm')[is_constant.index[is_constant]]
  told = {field: runs[field].map(_part_of_key) for field in varied}
  first_arm = runs.assign(**told).groupby(varied, dropna=False)['arm'].transform('first')
  runs = runs[runs['arm'] == first_arm]
  others = [name for name in results.groups if name not in ('arm', *varied)]
  windows = [
      entry | {'where': _fields_of_arm(entry['where'], of_arm)} for entry in results.windows
  ]
  not_comparable = results.not_comparable
  distinct = ['parameters', *sizes, *others, *varied, 'learning_rate', 'seed']
  return dataclasses.replace(
      results,
      runs=runs.drop_duplicates(distinct),
      groups=[*others, *varied],
      windows=windows,
      not_comparable=', '.join(varied) if not_comparable == 'arm' else not_comparable,
  )


def _fields_of_arm(where: Mapping[str, Any], of_arm: pd.DataFrame) -> dict[str, Any]:
  fields = dict(where)
  return (of_arm.loc[fields.pop('arm')].to_dict() if 'arm' in fields else {}) | fields


def groups_and_sizes(fields: Iterable[str]) -> tuple[list[str], list[str]]:
  """The swept fields that define the intervention, and those that define the size."""
  fields = [field for field in fields if field not in _NOT_INTERVENTIONS]
  groups = [field for field in fields if field not in SIZE_FIELDS]
  return groups, [field for field in fields if field in SIZE_FIELDS]
