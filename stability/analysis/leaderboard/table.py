"""The table of a leaderboard: a row per size and arm."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from stability.analysis import lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.leaderboard import curve as curve_lib
from stability.analysis.leaderboard import front, verdicts
from stability.analysis.results import Results

_EDGES = {curve_lib.BELOW: 'low', curve_lib.EXACT: '', curve_lib.ABOVE: 'high'}
# Arms of one size have the same width and depth; those with other matrices, such as experts, have
# another number of parameters.
_SHAPE = ('model.width', 'model.depth')
_NO_ROWS = pd.DataFrame(columns=['run', 'name', 'share'])


@dataclasses.dataclass(frozen=True)
class Arm:
  """The runs of an arm at one size."""

  name: str
  runs: pd.DataFrame
  losses: pd.DataFrame  # min(final, initial), nats: a row per learning rate, a column per seed


@dataclasses.dataclass(frozen=True)
class Size:
  """The arms of one size."""

  initial_loss: float  # that of the baseline, for all arms: another head may start lower
  arms: Mapping[str, Arm]  # the baseline first


def applies(results: Results) -> bool:
  """Whether there is a leaderboard: the points of the sweep carry the label `arm`."""
  return 'arm' in results.groups


def names(results: Results) -> pd.Series:
  """The name of each run's arm, with the other fields that the sweep varies, if there are any."""
  values = results.runs[results.groups].to_numpy(object)
  return pd.Series([', '.join(map(str, row)) for row in values], results.runs.index)


def sizes(results: Results) -> list[Size]:
  """The sizes, the smallest first.

  The baseline is the first arm of the sweep; of several sweeps, its namesake where that is missing.
  Sizes without one are left out: nothing can be compared.
  """
  parameters = results.runs['parameters'].astype(float)
  runs = results.runs.assign(name=names(results), parameters=parameters)
  first = runs.iloc[0]
  found = []
  for _, of_size in _split_by_size(runs, runs['arm'] == first['arm']):
    present = dict.fromkeys(of_size['name'][of_size['arm'] == first['arm']])
    if not present:
      continue
    baseline = first['name'] if first['name'] in present else next(iter(present))
    initial = of_size['initial_loss'].where(of_size['status'].isin(lr_sensitivity.COUNTED))
    of_baseline = initial[of_size['name'] == baseline]
    initial_loss = (of_baseline if of_baseline.notna().any() else initial).mean()
    loss = lr_sensitivity.counted_loss(of_size.assign(initial_loss=initial_loss))
    counted = of_size.assign(loss=loss)
    arms = {
        name: Arm(name, rows, lr_sensitivity.loss_table(rows))
        for name, rows in counted.groupby('name', sort=False)
    }
    arms = {baseline: arms[baseline], **arms}
    found.append((of_size['parameters'].min(), Size(initial_loss, arms)))
  return [size for _, size in sorted(found, key=lambda pair: pair[0])]


def _split_by_size(
    runs: pd.DataFrame, is_baseline: pd.Series
) -> Iterable[tuple[Any, pd.DataFrame]]:
  """(key, runs) of each size.

  Where width and depth are not known, an arm's size is the one whose baseline has the nearest
  number of parameters.
  """
  if shape := [field for field in _SHAPE if field in runs]:
    return results_lib.split(runs, shape)
  logs_N = np.log(runs['parameters'].to_numpy())
  of_baseline_S = np.unique(logs_N[is_baseline])
  nearest_N = np.abs(logs_N[:, None] - of_baseline_S).argmin(axis=1)
  return runs.groupby(nearest_N)


def leaderboard(
    results: Results, acted: pd.DataFrame = _NO_ROWS, costs: pd.DataFrame | None = None
) -> pd.DataFrame:
  """The table: a row per size and arm, the smallest size first, in the order of the sweep.

  Columns:
    arm; place and control (the verdict that a control must have), from the config file; is_baseline
    those of results.sizes, and parameters
    those of curve.COLUMNS: losses and regret in nats, widths in decades; NaN: not known
    the same with _low and _high, if any arm has several seeds: the interval of level
      results.interval over seeds, see lr_sensitivity.interval; NaN if it ends beyond the grid
    seconds_ratio, bytes_ratio: time and memory of a step over those of the baseline
    inert: whether the arm changed nothing that the baseline does not
    front, distance: whether the arm is on the front of its size, and how far from it (front.py);
      controls, inert arms and arms that lack runs do not count
    loss_verdict, headroom_verdict: better, worse, tie or undecided; empty for the baseline and
      without several seeds
    loss_difference, headroom_ratio and their _low and _high: from the baseline, what verdicts rest
      on, with intervals of level verdicts.LEVEL
    edge: low or high if the loss is lowest at that end of the grid
    censored: names of the columns that are bounds, each with >= or <=
    seeds, missing: how many seeds count, and how many runs do not

  Args:
    results: the runs of a sweep to which the leaderboard applies.
    acted: how often interventions acted, see inert.load.
    costs: measured ratios of cost, with the columns arm, width, seconds and bytes; without them,
      the seconds are those of the runs, which other work on the machine disturbs.
  """
  has_seeds = results.runs['seed'].nunique() > 1
  rows, reference = [], {}  # reference: arm -> its best rate of the grid at the smallest size
  for size in sizes(results):
    parts = [
        _row(arm, size, reference.get(name, np.nan), results, has_seeds)
        for name, arm in size.arms.items()
    ]
    for row in parts:
      reference.setdefault(row['arm'], row.pop('grid_rate'))
    base = next(iter(size.arms.values()))
    shares = {name: _shares(arm, acted) for name, arm in size.arms.items()}
    for row, arm in zip(parts, size.arms.values(), strict=True):
      critical = np.fmax(row['critical_learning_rate'], parts[0]['critical_learning_rate'])
      row['inert'] = arm is not base and _is_inert(arm, base, shares, critical)
      row['seconds_ratio'], row['bytes_ratio'] = _costs(arm, base, costs)
      row['is_baseline'] = arm is base
    of_size = pd.DataFrame(parts)
    may_be = (of_size['control'] == '') & ~of_size['inert'] & (of_size['missing'] == 0)
    on_front, distance = front.place(
        of_size['best_loss'].where(may_be).to_numpy(float), of_size['headroom'].to_numpy(float)
    )
    rows.append(of_size.assign(front=on_front, distance=distance, **_verdicts(of_size, size)))
  table = pd.concat(rows, ignore_index=True)
  return table[_columns(results, has_seeds)].astype({'parameters': 'Int64'})


def _columns(results: Results, has_seeds: bool) -> list[str]:
  ends = ('', '_low', '_high') if has_seeds else ('',)
  return [
      *('arm', 'place', 'control', 'is_baseline', *results.sizes, 'parameters'),
      *(f'{name}{end}' for name in curve_lib.COLUMNS for end in ends),
      *('seconds_ratio', 'bytes_ratio', 'inert', 'front', 'distance'),
      *('loss_verdict', 'headroom_verdict'),
      *(f'{name}{end}' for name in ('loss_difference', 'headroom_ratio') for end in ends),
      *('edge', 'censored', 'seeds', 'missing'),
  ]


def _row(
    arm: Arm, size: Size, reference_rate: float, results: Results, has_seeds: bool
) -> dict[str, Any]:
  """The cells of an arm that need no other arm."""
  first = arm.runs.iloc[0]
  row = {'arm': arm.name, 'parameters': first['parameters']}
  row |= {name: first[name] for name in results.sizes}
  row['place'] = results.places.get(first['arm'], '')
  row['control'] = results.controls.get(first['arm'], '')
  losses = lr_sensitivity.paired(arm.losses)
  row |= {'seeds': losses.shape[1], 'missing': int(arm.runs['loss'].isna().sum())}
  curves_DxL, draw_D = np.unique(
      lr_sensitivity.mean_curves(losses).T, axis=0, return_inverse=True
  )
  rates = losses.index.to_numpy(float)
  by_curve = [
      curve_lib.statistics(rates, curve_L, size.initial_loss, reference_rate)
      for curve_L in curves_DxL
  ]
  found = by_curve[draw_D.ravel()[0]]
  row |= found.values
  row |= {'edge': _EDGES[found.edge], 'grid_rate': found.grid_rate}
  signs = {curve_lib.ABOVE: '>=', curve_lib.BELOW: '<='}
  row['censored'] = ' '.join(f'{name}{signs[side]}' for name, side in found.censored.items())
  if has_seeds:
    values = pd.DataFrame([each.values for each in by_curve]).iloc[draw_D.ravel()]
    row |= _intervals(values, losses.shape[1], results.interval)
    for name, side in {bound for each in by_curve for bound in each.censored.items()}:
      row[f'{name}_high' if side == curve_lib.ABOVE else f'{name}_low'] = np.nan
  return row


def _intervals(values: pd.DataFrame, seeds: int, interval: float) -> dict[str, float]:
  """The ends of the intervals over seeds of the numbers of all draws; NaN with one seed."""
  ends = {}
  for name in curve_lib.COLUMNS:
    of_draws = values[name].to_numpy(float)
    if name == 'lr_sensitivity':
      low, high = lr_sensitivity.interval_of_sensitivity(of_draws, seeds, interval)
    else:
      low, high = lr_sensitivity.interval(
          of_draws, seeds, interval, of_ratio=name in curve_lib.RATIOS
      )
    ends |= {f'{name}_low': low, f'{name}_high': high}
  return ends


def _verdicts(of_size: pd.DataFrame, size: Size) -> dict[str, Any]:
  """The columns of verdicts and differences."""
  arms = list(size.arms)
  by_seed = dict(_by_seed(size))
  best = pd.DataFrame({arm: by_seed[arm]['best_loss'] for arm in arms}).T
  room = pd.DataFrame({arm: by_seed[arm]['log_headroom'] for arm in arms}).T
  controls = list(of_size['arm'][of_size['control'] != ''])
  missing = set(of_size['arm'][of_size['missing'] > 0])
  is_whole = (of_size['control'] == '') & ~of_size['inert'] & (of_size['missing'] == 0)
  pooled = list(of_size['arm'][is_whole])
  columns = {}
  for values, name, band, higher_is_better in (
      (best, 'loss', front.LOSS_BAND, False),
      (room, 'headroom', front.HEADROOM_BAND, True),
  ):
    is_bound = {arm: bool(by_seed[arm][f'{name}_bound'].any()) for arm in arms}
    exact = [arm for arm in pooled if not is_bound[arm]]  # where a grid ends varies less
    if len(exact) < 2:  # such as finals without finalists: controls tell the noise as well
      exact = pooled if len(pooled) > 1 else [arm for arm in arms if not _is_copy(of_size, arm)]
    found = verdicts.differences(values, arms[0], exact)
    if best.notna().sum(axis='columns').max() < 2:  # a screening
      verdict = pd.Series('', arms)
    else:
      # Without a seed, the loss may be lowest at an end of the grid: there is no headroom.
      unknown = values.index[(best.notna() & values.isna()).any(axis='columns')]
      lacking = missing.union(unknown)
      # An arm that lacks runs is one of many all the same, but can pass no test yet.
      tested = found.assign(p=found['p'].mask(found.index.isin(list(lacking)), 1.0))
      verdict = verdicts.verdicts(
          tested, band=band, higher_is_better=higher_is_better, alone=controls
      )
      verdict = _of_bounds(verdict, is_bound)
      verdict[arms if arms[0] in lacking else list(lacking)] = verdicts.UNDECIDED
      verdict[arms[0]] = ''
    columns[f'{name}_verdict'] = verdict.to_numpy()
    found = found if name == 'loss' else 10**found
    what = 'loss_difference' if name == 'loss' else 'headroom_ratio'
    for column, end in (('difference', ''), ('low', '_low'), ('high', '_high')):
      columns[f'{what}{end}'] = found[column].to_numpy()
  return columns


def _is_copy(of_size: pd.DataFrame, arm: str) -> bool:
  """Whether an arm is a control that equals the baseline, and so says nothing about variance."""
  return bool(of_size['control'][of_size['arm'] == arm].isin([verdicts.TIE, 'inert']).any())


def _by_seed(size: Size) -> Iterator[tuple[str, pd.DataFrame]]:
  """(arm, a table by seed: best_loss, log_headroom, and whether each is a bound).

  The number of a seed is the jackknife's: that of the mean curve, plus (n - 1) times what the curve
  without the seed falls short of the mean of such curves. So the mean of the seeds is the number of
  the mean curve, and their scatter tells its error. The seed's own curve would say less. Its lowest
  loss is lower by chance, the more so for an arm that is good at several rates: where three rates
  are equally good, 65 % of its 90 % intervals over five seeds hold a difference of 0, and 87 % of
  these. And its best rate jumps from one rate of the grid to the next: in simulated finals, the
  ratio of headroom to the baseline's is 0.04 to 0.06 decades too low, and at most 0.015 here.
  """
  for name, arm in size.arms.items():
    losses = lr_sensitivity.paired(arm.losses)
    whole = _of_mean(losses, size.initial_loss)
    without = [_of_mean(losses.drop(columns=seed), size.initial_loss) for seed in losses]
    if len(without) == 1:
      without = [whole]
    table = pd.DataFrame(map(_numbers, without), list(losses), list(_numbers(whole)), float)
    table = (len(table) - 1) * (table.mean(skipna=False) - table) + pd.Series(_numbers(whole))
    censored = {column for found in (whole, *without) for column in found.censored}
    table['loss_bound'] = 'best_loss' in censored
    table['headroom_bound'] = 'headroom' in censored
    yield name, table


def _of_mean(losses: pd.DataFrame, initial_loss: float) -> curve_lib.Statistics:
  """The statistics of the mean curve of seeds."""
  losses = losses.dropna(how='all')
  rates = losses.index.to_numpy(float)
  return curve_lib.statistics(rates, lr_sensitivity.mean_curve(losses), initial_loss)


def _numbers(found: curve_lib.Statistics) -> dict[str, float]:
  """The numbers that verdicts compare."""
  best_loss, headroom = found.values['best_loss'], found.values['headroom']
  return {'best_loss': best_loss, 'log_headroom': float(np.log10(headroom))}


def _of_bounds(verdict: pd.Series, is_bound: Mapping[str, bool]) -> pd.Series:
  """The verdicts that stand although some arms are at least as good as their numbers say."""
  base = next(iter(is_bound))
  stands = {
      (False, False): (verdicts.BETTER, verdicts.WORSE, verdicts.TIE),
      (True, False): (verdicts.BETTER,),
      (False, True): (verdicts.WORSE,),
      (True, True): (),
  }
  kept = [
      found if found in stands[is_bound[arm], is_bound[base]] else verdicts.UNDECIDED
      for arm, found in verdict.items()
  ]
  return pd.Series(kept, verdict.index)


def _shares(arm: Arm, acted: pd.DataFrame) -> dict[str, float]:
  """Name of an intervention -> the share of measured steps in which it acted."""
  of_arm = acted[acted['run'].isin(arm.runs['run'])]
  return of_arm.groupby('name')['share'].mean().to_dict()


def _is_inert(
    arm: Arm, base: Arm, shares: Mapping[str, Mapping[str, float]], highest_rate: float
) -> bool:
  """Whether an arm has no effect.

  Either all losses are equal; or what only one of arm and baseline has never acted in a measured
  step, and the losses agree at the rates and seeds of both, since not all steps are measured. They
  need not agree above `highest_rate`, where both are unstable and amplify a difference in the last
  bit.
  """
  ours, of_base = shares[arm.name], shares[base.name]
  differing = ours.keys() ^ of_base.keys()
  if differing and not any((ours | of_base)[name] for name in differing):
    distances = (arm.losses - base.losses).abs().mean(axis='columns').dropna()
    # A rate of the grid may be the critical one, which is computed from its logarithm and rounded.
    distances = distances[~(distances.index > highest_rate * (1 + 1e-6))]
    return len(distances) > 0 and bool((distances <= front.LOSS_BAND).all())
  columns = ['learning_rate', 'seed', 'status', 'final_loss']
  pairs = arm.runs[columns].merge(base.runs[columns], on=columns[:2], suffixes=('', '_base'))
  pairs = pairs[pairs['status'].isin(lr_sensitivity.COUNTED)]
  if not (pairs[['status', 'status_base']] == 'done').all(axis='columns').any():
    return False
  same = (pairs['final_loss'] == pairs['final_loss_base']) | (
      pairs[['final_loss', 'final_loss_base']].isna().all(axis='columns')
  )
  return bool(same.all() and (pairs['status'] == pairs['status_base']).all())


def _costs(arm: Arm, base: Arm, costs: pd.DataFrame | None) -> tuple[float, float]:
  """Seconds and bytes over those of the baseline; NaN where unknown."""
  if arm is base:
    return 1.0, 1.0
  if costs is not None:
    first = arm.runs.iloc[0]
    known = costs[(costs['arm'] == first['arm']) & (costs['width'] == first.get('model.width'))]
    return (known['seconds'].mean(), known['bytes'].mean())  # NaN without an entry
  return _seconds(arm) / _seconds(base), np.nan


def _seconds(arm: Arm) -> float:
  """The median of the seconds per step of the runs that ended; NaN if they are not known."""
  if 'seconds' not in arm.runs:
    return np.nan
  done = arm.runs[arm.runs['status'] == 'done']
  return (done['seconds'].astype(float) / done['steps'].astype(float)).median()
