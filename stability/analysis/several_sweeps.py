"""Several sweeps as one: their runs, what their configs differ in, and differences over pairs.

Suffixes of arrays: L learning rates, D draws of the seeds.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stability import config as config_lib
from stability import same_number
from stability.analysis import comparison, lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis import windows as windows_lib
from stability.analysis.results import SWEEP, Results
from stability.config import SIZE_FIELDS
from stability.errors import BadInput
from stability.storage.sweeps import Sweep

_DATA = ('data.path', 'data.tokenizer')  # fields that may differ where the tokens are the same


def load(workdirs: Mapping[str, Path]) -> Results:
  """The runs of several sweeps, whose names are an intervention in the column SWEEP.

  The runs are named SWEEP/RUN. The first sweep is the one that the others are compared with.
  Learning rates and swept numbers that different trainers round differently become equal, as
  within one table (see same_number.representatives).

  Args:
    workdirs: name -> folder of a sweep.

  Raises:
    BadInput: files are damaged, or no run of a sweep has finished.
  """
  parts = {name: results_lib.load_workdir(workdir) for name, workdir in workdirs.items()}
  for name, part in parts.items():
    if lr_sensitivity.counted_loss(part.runs).isna().all():
      raise BadInput(f'--workdir={workdirs[name]}: none of its runs has finished; leave it out')
  frames = [
      part.runs.assign(**{SWEEP: name, 'run': [f'{name}/{run}' for run in part.runs['run']]})
      for name, part in parts.items()
  ]
  runs = pd.concat(frames, ignore_index=True)
  groups = _union(part.groups for part in parts.values())
  sizes = _union(part.sizes for part in parts.values())
  sizes += [f for f in SIZE_FIELDS if f not in sizes and f in runs and runs[f].nunique() > 1]
  for name in ('learning_rate', *groups):
    runs[name] = _same_numbers(runs[name], runs[SWEEP])
  # Imported runs may lack the shape; their size is then known by its parameters.
  known = [field for field in sizes if runs[field].notna().all()]
  if not runs.duplicated(['parameters', *known, SWEEP, *groups, 'learning_rate', 'seed']).any():
    sizes = known
  windows = [
      {**entry, 'where': {**entry['where'], SWEEP: name}}
      for name, part in parts.items()
      for entry in part.windows
  ]
  places, controls = (
      {arm: value for part in reversed(parts.values()) for arm, value in getattr(part, of).items()}
      for of in ('places', 'controls')
  )
  not_comparable = next(filter(None, (part.not_comparable for part in parts.values())), None)
  return Results(
      runs,
      [SWEEP, *groups],
      sizes,
      windows,
      not_comparable,
      sweeps=tuple(workdirs),
      places=places,
      controls=controls,
  )


def load_curves(workdirs: Mapping[str, Path], probes: Iterable[str]) -> pd.DataFrame:
  """The training curves of several sweeps, see results.load_curves; runs are named SWEEP/RUN."""
  parts = []
  for name, workdir in workdirs.items():
    curves = results_lib.load_curves(workdir, probes)
    parts.append(curves.assign(run=curves['run'].cat.rename_categories(f'{name}/{{}}'.format)))
  runs = pd.api.types.union_categoricals([part['run'] for part in parts])
  return pd.concat([part.drop(columns='run') for part in parts], ignore_index=True).assign(run=runs)


def _same_numbers(values: pd.Series, sweep: pd.Series) -> pd.Series:
  """The values, with the same one for the same number, unless that joins numbers of one sweep."""
  if not pd.api.types.is_float_dtype(values):
    return values
  merged = values.map(same_number.representatives(values.dropna()))
  counts = [column.groupby(sweep).nunique() for column in (values, merged)]
  return merged if counts[0].equals(counts[1]) else values


def _union(lists: Iterable[Iterable[str]]) -> list[str]:
  return list(dict.fromkeys(field for entries in lists for field in entries))


# What the configs differ in.


def differing(results: Results, sweeps: Mapping[str, Sweep]) -> dict[str, list[list[Any]]]:
  """The fields, other than swept ones, in which sweeps differ, and their data.

  Fields that the configs of an imported sweep do not have are left out.

  Args:
    results: the result of `load`.
    sweeps: their names, in the same order, and contents.

  Returns:
    Field -> the values of each sweep. The data are given by the start of their SHA-256.
  """
  swept = {*results.groups, *results.sizes, *SIZE_FIELDS, 'optimizer.learning_rate', 'seed'}
  swept = swept.union(*(sweep.fields for sweep in sweeps.values()))
  flat = [
      pd.DataFrame([config_lib.flatten(config) for config in sweep.runs.values()], dtype=object)
      for sweep in sweeps.values()
  ]
  found = {}
  for field in flat[0]:
    if field not in swept and all(field in of_sweep for of_sweep in flat):
      values = [{results_lib.key([v]): v for v in of_sweep[field]} for of_sweep in flat]
      if any(set(of_sweep) != set(values[0]) for of_sweep in values):
        found[field] = [list(of_sweep.values()) for of_sweep in values]
  hashes = [sweep.data.get('sha256') for sweep in sweeps.values()]
  if all(hashes):
    found = {field: values for field, values in found.items() if field not in _DATA}
    for part in ('train', 'validation'):
      starts = [str(of_sweep.get(part))[:8] for of_sweep in hashes]
      if len(set(starts)) > 1:
        found[f'{part} tokens, SHA-256'] = [[start] for start in starts]
  return found


# Differences over pairs of runs.


@dataclasses.dataclass(frozen=True)
class Differences:
  """Differences of the arms of the later sweeps from those of the first, over pairs of runs.

  The runs of a pair have the same size, learning rate and seed, and both count.
  """

  # A row per size and arm that has pairs, the smallest size first. Columns: those of size and
  # intervention, parameters; reference (the values of results.groups of the arm that it is compared
  # with); learning_rates, seeds, pairs (how many); and, in nats, mean_loss, best_loss and
  # lr_sensitivity, each with its interval over resampled seeds, such as mean_loss_low and
  # mean_loss_high (NaN with one seed, and where seeds lack learning rates).
  table: pd.DataFrame
  # Sweep without pairs -> what it does not share with the first: size, learning rate, seed or, if
  # it shares all of them, `finished run`.
  unpaired: dict[str, str]


NUMBERS = ('mean_loss', 'best_loss', 'lr_sensitivity')  # of Differences.table


def differences(results: Results) -> Differences:
  """Compares each arm of the later sweeps with an arm of the first.

  It is the arm with the same values of the other swept fields or, if the first sweep has none, the
  baseline (see comparison.baseline). mean_loss and best_loss are the mean and the lowest of the
  losses at the paired learning rates, averaged over seeds. LR sensitivity is over these learning
  rates too or, in a sweep with windows, over those.
  """
  first, size = results.sweeps[0], ['parameters', *results.sizes]
  others = [name for name in results.groups if name != SWEEP]
  runs = results.runs.assign(loss=lr_sensitivity.counted_loss(results.runs))
  cells = {}
  for values, of_cell in results_lib.split(runs, [SWEEP, *size, *others]):
    sweep, *rest = values
    keys = results_lib.key(rest)
    cells[sweep, keys[: len(size)], keys[len(size) :]] = of_cell
  of_first = {arm for sweep, _, arm in cells if sweep == first}
  baseline = results_lib.key(comparison.baseline(results)[others].iloc[0])
  rows = []
  for (sweep, of_size, arm), cell in cells.items():
    partner = cells.get((first, of_size, arm if arm in of_first else baseline))
    if sweep != first and partner is not None and (row := _differences(cell, partner, results)):
      rows.append(row)
  table = pd.DataFrame(rows)
  if rows:
    table = table.sort_values('parameters', kind='stable', ignore_index=True)
  paired = set(table[SWEEP]) if rows else set()
  unpaired = [sweep for sweep in results.sweeps[1:] if sweep not in paired]
  return Differences(table, {sweep: _reason(runs, first, sweep, size) for sweep in unpaired})


def _differences(
    runs: pd.DataFrame, partners: pd.DataFrame, results: Results
) -> dict[str, Any] | None:
  """A row of Differences.table; None without pairs."""
  both = [lr_sensitivity.loss_table(of_arm) for of_arm in (runs, partners)]
  is_paired = both[0].notna() & both[1].notna()  # False where one of them has no such cell
  is_paired = lr_sensitivity.paired(is_paired.where(is_paired)).notna()
  if is_paired.empty:
    return None
  seeds = is_paired.shape[1]
  means, bests, sensitivities = [], [], []
  for of_arm, losses in zip((runs, partners), both, strict=True):
    paired = losses.reindex_like(is_paired).where(is_paired)
    mean_LxD = lr_sensitivity.mean_curves(paired)
    means.append(mean_LxD.mean(axis=0))
    bests.append(mean_LxD.min(axis=0))
    limits = windows_lib.find(results.windows, of_arm.iloc[0])
    if limits is not None:
      paired = losses[is_paired.columns].dropna(how='all')
      mean_LxD = lr_sensitivity.mean_curves(paired)
    values_WxD = lr_sensitivity.sensitivities(paired.index, mean_LxD, limits)
    sensitivities.append(np.fmin.reduce(values_WxD))
  names = ['parameters', *results.sizes, *results.groups]
  row = {name: runs[name].iloc[0] for name in names}
  row['reference'] = tuple(partners[results.groups].iloc[0])
  row |= {'learning_rates': len(is_paired), 'seeds': seeds}
  row['pairs'] = int(is_paired.to_numpy().sum())
  for name, (of_runs, of_partners) in zip(NUMBERS, (means, bests, sensitivities), strict=True):
    draws = min(len(of_runs), len(of_partners))  # 1 where seeds lack learning rates
    found_D = of_runs[:draws] - of_partners[:draws]
    if name == 'lr_sensitivity' and results.not_comparable is not None:
      found_D = np.full_like(found_D, np.nan)
    low, high = lr_sensitivity.interval(found_D, seeds, results.interval)
    if name == 'lr_sensitivity':  # biased upwards, and more so in resamples
      reach = max(found_D[0] - low, high - found_D[0])
      low, high = found_D[0] - reach, found_D[0] + reach
    row |= {name: found_D[0], f'{name}_low': low, f'{name}_high': high}
  return row


def _reason(runs: pd.DataFrame, first: str, sweep: str, size: list[str]) -> str:
  """What a sweep without pairs does not share with the first one."""
  def values(of: str, columns: list[str]) -> set[tuple]:
    return set(map(results_lib.key, runs[runs[SWEEP] == of][columns].to_numpy(object)))

  for columns, what in ((size, 'size'), (['learning_rate'], 'learning rate'), (['seed'], 'seed')):
    if not values(first, columns) & values(sweep, columns):
      return what
  return 'finished run'
