"""Puts runs and curves together: names, statuses and losses of the runs of a workdir."""

import dataclasses
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from stability.errors import BadInput
from stability.importing import arms as arms_lib
from stability.importing import columns as columns_lib
from stability.importing import runs as runs_lib
from stability.importing.arms import Arms
from stability.importing.curves import Curve, Curves, joined
from stability.importing.options import Options
from stability.importing.runs import Run
from stability.importing.tables import Table
from stability.storage.run_files import Result, final_status

LATE = 0.05  # the fraction of steps whose training losses are averaged as the final loss
MAX_NAME = 120  # characters of a run's folder
# States of W&B, MLflow, TensorBoard, SLURM and others -> statuses; None: the run has no result.
STATES: dict[str, str | None] = {
    **dict.fromkeys(('finished', 'done', 'completed', 'complete', 'success', 'succeeded'), 'done'),
    **dict.fromkeys(('diverged', 'nan'), 'diverged'),
    **dict.fromkeys(('crashed', 'failed', 'error', 'errored', 'failure'), 'failed'),
    **dict.fromkeys(('killed', 'stopped', 'cancelled', 'canceled', 'aborted'), 'stopped'),
    **dict.fromkeys(('interrupted', 'terminated', 'timeout'), 'stopped'),
    **dict.fromkeys(('running', 'preempted', 'preempting', 'pending', 'queued'), None),
    **dict.fromkeys(('scheduled', 'waiting', 'starting', 'missing', 'started'), None),
}


@dataclasses.dataclass(frozen=True)
class ImportedRun:
  """What is written of a run."""

  config: dict[str, Any]  # dotted field -> value
  parameters: int | None
  result: Result | None  # None: the run goes on
  rows: 'Rows | None'


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows of metrics.jsonl."""

  curve: Curve
  step_unit: str  # steps or tokens

  def to_text(self) -> str:
    """The content of metrics.jsonl, column by column, since curves have millions of rows."""
    order = ('loss', 'learning_rate', 'gradient_norm')
    names = sorted(self.curve.values, key=lambda n: order.index(n) if n in order else len(order))
    steps = self.curve.steps.tolist()
    unit = ', "tokens": {0}' if self.step_unit == 'tokens' else ''
    columns = [list(map(('{{"step": {0}' + unit).format, steps))]
    for name in names:
      values, start = self.curve.values[name], f', {json.dumps(name)}: '
      is_null = np.isinf(values) | (self.is_diverged if name == 'loss' else False)
      cells = [start + repr(value) for value in values.tolist()]
      for row in np.flatnonzero(~np.isfinite(values)):
        cells[row] = f'{start}null' if is_null[row] else ''
      columns.append(cells)
    return ''.join(f'{"".join(cells)}}}\n' for cells in zip(*columns, strict=True))

  @property
  def is_diverged(self) -> np.ndarray:
    """The steps at which the loss is not a number because the run diverged.

    After the last number, a loss that is not one means that the run diverged, unless the row is an
    evaluation's. Before, the loss was not logged at this step.
    """
    loss = self.curve.values.get('loss')
    if loss is None:
      return np.zeros(len(self.curve.steps), bool)
    found = ~np.isfinite(loss)
    found[: _last_finite(loss) + 1] = False
    for name, values in self.curve.values.items():
      if columns_lib.key(name) in columns_lib.VALIDATION:
        found &= ~np.isfinite(values)
    return found


def _last_finite(values: np.ndarray | None) -> int:
  finite = np.flatnonzero(np.isfinite(values)) if values is not None else ()
  return int(finite[-1]) if len(finite) else -1


@dataclasses.dataclass(frozen=True)
class Imported:
  """The runs of a workdir, and what is said about them."""

  fields: tuple[str, ...]  # arms and sizes that vary
  runs: dict[str, ImportedRun]  # by name
  notes: list[str]  # sentences on what was recognised


def assemble(table: Table | None, curves: Curves | None, options: Options) -> Imported:
  """The runs of a table with their curves, or of curves alone; BadInput if they do not fit."""
  if table is None:
    table = _table_of_curves(curves, options)
  columns = {*table.columns, *(curves.seen if curves else ())}
  columns_lib.check_map(options.mapping, columns)
  found, notes = runs_lib.recognise(table, options)
  if 'final_loss' not in found and curves is None:
    raise BadInput(
        f'{table.source}: has no column final_loss;'
        f' {columns_lib.nearest("final_loss", table.columns)}; name it with'
        ' --map=final_loss=COLUMN, or give per-step logs in --curves'
    )
  runs, more = runs_lib.rows(table, found, options)
  notes = [f'{name} is the column {column}' for name, column in found.items()] + notes + more
  runs_lib.check_fields(runs, notes)
  arms = arms_lib.choose(table, runs, found, options)
  notes += _arm_notes(arms, options)
  by_row = {run.row: i for i, run in enumerate(runs)}
  matched = _match(runs, curves, notes) if curves else {}
  if curves:
    notes += _curve_notes(curves, matched)
  results = {
      run.row: _result(run, matched.get(run.row), options, 'status' in found) for run in runs
  }
  notes += _result_notes(runs, results, found, matched)
  configs = {
      run.row: _config(run, {name: v[by_row[run.row]] for name, v in arms.values.items()})
      for run in runs
  }
  sizes = [name for name in arms_lib.SIZE_FIELDS if name in runs[0].fields]
  runs = _without_attempts(table, found, runs, configs, results, [*arms.values], notes)
  _refuse_single_points(runs, configs, list(arms.values))
  names = _names(runs, configs)
  unit = options.step_unit or 'steps'
  return Imported(
      (*sizes, *arms.values, 'optimizer.learning_rate', 'seed'),
      {
          names[run.row]: ImportedRun(
              configs[run.row],
              run.parameters,
              results[run.row],
              Rows(matched[run.row], unit) if run.row in matched else None,
          )
          for run in runs
      },
      notes,
  )


def _table_of_curves(curves: Curves, options: Options) -> Table:
  """A table of the runs in curves: what stays the same in each, and the peak learning rate."""
  if not any('learning_rate' in curve.values for curve in curves.by_run.values()):
    raise BadInput(
        '--curves: has no learning rate of each run; give a table of the runs in --runs, or name'
        ' the column with --map=learning_rate=COLUMN'
    )
  cells: dict[str, list[Any]] = {'run': [names[0] for names in curves.by_run]}
  cells['learning_rate'] = [
      float(np.nanmax(curve.values['learning_rate'])) if 'learning_rate' in curve.values else ''
      for curve in curves.by_run.values()
  ]
  for name, column in ((n, n) for n in ('seed', 'parameters')):
    if all(column in curve.values for curve in curves.by_run.values()):
      cells[name] = [float(curve.values[column][0]) for curve in curves.by_run.values()]
  return Table('--curves', cells, range(1, len(curves.by_run) + 1), 'run')


# Which curve belongs to which run.


def _match(runs: Sequence[Run], curves: Curves, notes: list[str]) -> dict[int, Curve]:
  """The curve of each run that has one, by the run's row."""
  owners: dict[str, list[Run]] = {}
  for run in runs:
    for name in {run.name, run.id} - {''}:
      owners.setdefault(name, []).append(run)
  found: dict[int, Curve] = {}
  unknown = []
  if len(curves.by_run) == len(runs) == 1:
    return {runs[0].row: next(iter(curves.by_run.values()))}
  if not owners:
    raise BadInput(f'{runs[0].where}: has no run or id, which curves need; name the column with'
                   ' --map=run=COLUMN')
  for names, curve in curves.by_run.items():
    known = next((name for name in names if name in owners), None)
    if known is None:
      unknown.append(names[0])
    elif len(owners[known]) > 1:
      raise BadInput(
          f'{owners[known][0].where} and {owners[known][1].where}: are both named {known!r}, as is'
          ' a curve; give their ids, or other names'
      )
    else:
      row = owners[known][0].row
      found[row] = joined([found[row], curve]) if row in found else curve
  if not found:
    raise BadInput(
        f'--curves: no curve belongs to a run: {_listed(unknown)} are not among'
        f' {_listed(list(owners))}'
    )
  if unknown:
    notes.append(f'curves of no run, left out: {_listed(unknown)}')
  return found


# Losses and statuses.


def _result(run: Run, curve: Curve | None, options: Options, has_state: bool) -> Result | None:
  """The outcome of a run; None if it goes on."""
  state = re.sub('^status_', '', run.state.lower())
  if state and state not in STATES:
    allowed = ', '.join(STATES)
    raise BadInput(f'{run.where}: status={run.state!r}: must be one of {allowed}, or empty')
  status = STATES[state] if state else 'done'
  if status is None:
    return None
  initial, final = run.initial_loss, run.final_loss
  if initial is None and curve is not None:
    initial = _first_loss(curve)
  if final is None and curve is not None:
    final = _last_loss(curve)
  is_not_finite = final is not None and not math.isfinite(final)
  if status in ('failed', 'stopped') and is_not_finite:
    status = 'diverged'  # trainers often raise an error once the loss is not finite
  if status in ('done', 'diverged') and initial is None:
    raise BadInput(
        f'{run.where}: has no initial loss, which LR sensitivity needs; give a column, a curve from'
        ' step 0 or 1, or --initial_loss'
    )
  if status == 'done':
    status = final_status(initial, math.nan if final is None else final)
  return Result(
      status,
      initial_loss=initial,
      final_loss=final if final is not None and math.isfinite(final) else None,
      parameters=run.parameters,
      steps=run.steps if run.steps is not None or curve is None else _last_step(curve, options),
      tokens=run.tokens if run.tokens is not None or curve is None else _tokens(curve, options),
      seconds=run.seconds,
      error=f'{run.state} in {run.where}' if status == 'failed' else None,
  )


def _validation(curve: Curve) -> str | None:
  by_key = {columns_lib.key(name): name for name in curve.values}
  return next((by_key[alias] for alias in columns_lib.VALIDATION if alias in by_key), None)


def _first_loss(curve: Curve) -> float | None:
  """The loss before training: at step 0 or 1."""
  for name in filter(None, (_validation(curve), 'loss')):
    values = curve.values.get(name)
    if values is not None:
      for step, value in zip(curve.steps[:2], values[:2], strict=True):
        if step <= 1 and math.isfinite(value):
          return float(value)
  return None


def _last_loss(curve: Curve) -> float | None:
  """The last validation loss, or the mean training loss of the last steps; NaN if it diverged."""
  if Rows(curve, 'steps').is_diverged[-1]:
    return math.nan
  if (name := _validation(curve)) is not None:
    return float(curve.values[name][_last_finite(curve.values[name])])
  loss = curve.values.get('loss')
  if loss is None or not np.isfinite(loss).any():
    return None
  late = curve.steps > (1 - LATE) * curve.steps[-1]
  late[_last_finite(loss)] = True
  return float(loss[late & np.isfinite(loss)].mean())


def _last_step(curve: Curve, options: Options) -> int | None:
  return None if options.step_unit == 'tokens' else int(curve.steps[-1])


def _tokens(curve: Curve, options: Options) -> int | None:
  if options.step_unit == 'tokens':
    return int(curve.steps[-1])
  tokens = curve.values.get('tokens')
  return None if tokens is None or not np.isfinite(tokens).any() else int(np.nanmax(tokens))


# Runs that are the same.


def _config(run: Run, arms: Mapping[str, Any]) -> dict[str, Any]:
  return {**run.fields, **arms, 'optimizer.learning_rate': run.learning_rate, 'seed': run.seed}


def _key(run: Run, config: Mapping[str, Any], names: Iterable[str]) -> tuple:
  return (run.parameters, *(config.get(name) for name in names))


def _without_attempts(
    table: Table,
    found: Mapping[str, str],
    runs: list[Run],
    configs: Mapping[int, dict[str, Any]],
    results: Mapping[int, Result | None],
    arms: list[str],
    notes: list[str],
) -> list[Run]:
  """The runs without failed attempts at a run that was trained again; BadInput for other equals."""
  names = [*arms_lib.SIZE_FIELDS, *arms, 'optimizer.learning_rate', 'seed']
  groups: dict[tuple, list[Run]] = {}
  for run in runs:
    groups.setdefault(_key(run, configs[run.row], names), []).append(run)
  dropped: list[Run] = []
  for equal in groups.values():
    if len(equal) < 2:
      continue
    counted = [r for r in equal if (s := results[r.row]) and s.status in ('done', 'diverged')]
    if len(counted) != 1:
      first, second = (counted or equal)[:2]
      differing = [
          column
          for column in table.columns
          if column not in found.values()
          and not columns_lib.is_result(column)
          and not columns_lib.is_about(column)
          and table.text(column, first.row) != table.text(column, second.row)
      ]
      raise BadInput(
          f'{first.where} and {second.where}: have the same'
          f' {", ".join(["parameters", *arms, "learning_rate", "seed"])}; name what tells them'
          ' apart with --group_by or --map=seed=COLUMN'
          + (f' (they differ in {_listed(differing, 6)})' if differing else '')
      )
    dropped += [run for run in equal if run is not counted[0]]
  if dropped:
    notes.append(f'left out, trained again: {_listed([run.where for run in dropped])}')
  return [run for run in runs if run not in dropped]


def _refuse_single_points(
    runs: Sequence[Run], configs: Mapping[int, dict[str, Any]], arms: list[str]
) -> None:
  """Raises BadInput if the arms leave one learning rate to every size and arm."""
  rates: dict[tuple, set[float]] = {}
  for run in runs:
    key = _key(run, configs[run.row], [*arms_lib.SIZE_FIELDS, *arms])
    rates.setdefault(key, set()).add(run.learning_rate)
  if arms and len({run.learning_rate for run in runs}) > 1 and all(
      len(of_arm) == 1 for of_arm in rates.values()
  ):
    raise BadInput(
        f'--group_by: with {", ".join(arms)} as arms, every arm has a single learning rate at each'
        ' size, so there is no curve; name fewer columns'
    )


# Names of folders.


def _names(runs: Sequence[Run], configs: Mapping[int, dict[str, Any]]) -> dict[int, str]:
  """The name of each run's folder, by row: its name, its id, or its values."""
  given = Counter(run.name for run in runs)
  found: dict[int, str] = {}
  for run in runs:
    name = run.name if given[run.name] == 1 else ','.join(filter(None, (run.name, run.id)))
    if not name or (given[run.name] > 1 and not run.id):
      values = {'parameters': run.parameters, **configs[run.row]}
      values.pop('schedule.steps', None)
      name = ','.join(f'{key.split(".")[-1]}={value}' for key, value in values.items())
    found[run.row] = _quoted(name)
  repeated = [name for name, count in Counter(found.values()).items() if count > 1]
  if repeated:
    raise BadInput(f'{runs[0].where}: two runs would be named {repeated[0]!r}; give them ids')
  return found


def _quoted(name: str) -> str:
  quoted = quote(name, safe='+=,').replace('~', '%7E')
  if quoted.startswith('.'):
    quoted = '%2E' + quoted[1:]
  if len(quoted) > MAX_NAME:
    digest = hashlib.sha256(name.encode(errors='backslashreplace')).hexdigest()
    quoted = f'{quoted[: MAX_NAME - 9]}-{digest[:8]}'
  return quoted


# Sentences.


def _listed(items: Sequence[str], shown: int = 3) -> str:
  more = f' and {len(items) - shown} more' if len(items) > shown else ''
  return ', '.join(items[:shown]) + more


def _count(number: int) -> str:
  return f'{number} run' if number == 1 else f'{number} runs'


def _arm_notes(arms: Arms, options: Options) -> list[str]:
  chosen = ', '.join(arms.columns.values()) or 'nothing'
  notes = [f'arms: {chosen}' + ('' if options.group_by is not None else ' (or give --group_by)')]
  by_reason: dict[str, list[str]] = {}
  for column, reason in arms.rejected.items():
    by_reason.setdefault(reason, []).append(column)
  for reason, columns in by_reason.items():
    notes.append(f'no arm: {_listed(columns, 8)} ({reason})')
  return notes


def _curve_notes(curves: Curves, matched: Mapping[int, Curve]) -> list[str]:
  notes = [f'curves: {_count(len(matched))}, {sum(len(c.steps) for c in matched.values()):,} rows']
  mapped = [f'{name} is {column}' for column, name in curves.columns.items() if name != column]
  if mapped:
    notes.append(f'of the curves, {_listed(mapped, 20)}')
  kept = [name for column, name in curves.columns.items() if name == column]
  if kept:
    notes.append(f'kept under their own names: {_listed(kept, 20)}')
  if curves.left_out:
    notes.append(f'columns of text, left out: {_listed(curves.left_out, 8)}')
  if restarted := [curve for curve in matched.values() if curve.repeated]:
    rows = sum(curve.repeated for curve in restarted)
    notes.append(f'{_count(len(restarted))} restarted; {rows:,} rows are replaced by later ones')
  return notes


def _result_notes(
    runs: Sequence[Run],
    results: Mapping[int, Result | None],
    found: Mapping[str, str],
    matched: Mapping[int, Curve],
) -> list[str]:
  statuses = Counter(
      (run.state or 'no state', result.status if result else 'missing, it goes on')
      for run in runs
      for result in [results[run.row]]
  )
  notes = [f'status: {_count(n)} {state} -> {status}' for (state, status), n in statuses.items()]
  if 'final_loss' not in found and matched:
    name = next(filter(None, map(_validation, matched.values())), None)
    late = f'the mean training loss of the last {LATE:.0%} of steps'
    notes.append(f'final_loss is {f"the last {name}" if name else late} of each curve')
  if 'initial_loss' not in found and any(run.initial_loss is None for run in runs) and matched:
    notes.append('initial_loss is the loss at step 0 or 1 of each curve')
  empty = sum(
      1 for r in runs if r.final_loss is None and results[r.row] and r.row not in matched
      and results[r.row].status == 'diverged'
  )
  if empty:
    notes.append(f'{_count(empty)} ended without a final loss: diverged')
  return notes
