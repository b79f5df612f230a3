"""Puts runs and curves together, as the runs of a workdir."""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np

from stability.config import SIZE_FIELDS
from stability.errors import BadInput
from stability.importing import arms as arms_lib
from stability.importing import columns as columns_lib
from stability.importing import doubts, log_files, outcomes, seeds
from stability.importing import notes as notes_lib
from stability.importing import runs as runs_lib
from stability.importing.cleaning import Curve, joined, overlap
from stability.importing.curves import Curves
from stability.importing.options import Options
from stability.importing.outcomes import Rows
from stability.importing.runs import Caution, Run
from stability.importing.tables import Table, is_empty
from stability.storage.run_files import Result

CURVES = '--curves'  # the source of a table that is made of curves
MAX_NAME = 120  # characters of a run's folder


@dataclasses.dataclass(frozen=True)
class ImportedRun:
  """What is written of a run."""

  config: dict[str, Any]  # dotted field -> value
  parameters: int | None
  result: Result | None  # None: the run has not ended
  rows: Rows | None


@dataclasses.dataclass(frozen=True)
class Imported:
  """The runs of a workdir, and what is said about them."""

  fields: tuple[str, ...]  # arms and sizes that vary
  runs: dict[str, ImportedRun]  # by name
  notes: list[str]  # sentences on what was recognised
  left_out: frozenset[str]  # names that runs may have had before they were trained again
  is_numbered: bool = False  # whether the seeds are numbers given here; see seeds.numbered


def assemble(table: Table | None, curves: Curves | None, options: Options) -> Imported:
  """The runs of a table with their curves, or of curves alone; BadInput if they do not fit."""
  names_of_curves = list(curves.by_run) if curves else []
  if table is None:
    table = _table_of_curves(curves)
    names_of_curves = [(name,) for name in table.texts('run')]
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
  if table.damaged:
    notes.append(Caution(f'lines left out: {runs_lib.listed(table.damaged, 8)}'))
  runs_lib.check_fields(runs, notes)
  arms = arms_lib.choose(table, runs, found, options)
  notes += notes_lib.on_arms(arms, options)
  by_row = {run.row: i for i, run in enumerate(runs)}
  matched = _match(runs, curves, names_of_curves, notes) if curves else {}
  if curves:
    notes += notes_lib.on_curves(curves, matched)
    _check_losses(curves, matched, found)
  results, without, notes_on_losses = _results(runs, matched, found, options)
  notes += notes_on_losses + doubts.on_outcomes(runs, results, matched, options)
  ended = without | {row for row, r in results.items() if r and r.status in ('done', 'diverged')}
  is_numbered = 'seed' in found and seeds.numbered(runs, arms.values, ended)
  if is_numbered:
    notes.append('the seed differs in every run: the runs of a cell are numbered instead')
  configs = {
      run.row: _config(run, {name: v[by_row[run.row]] for name, v in arms.values.items()})
      for run in runs
  }
  sizes = [name for name in SIZE_FIELDS if name in runs[0].fields]
  every_run = runs
  runs = _without_attempts(table, found, runs, configs, results, ended, [*arms.values], notes)
  _refuse_single_points(runs, configs, list(arms.values), options)
  names = _names(runs, configs)
  dropped = [run for run in every_run if run.row not in names]
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
      frozenset(name for run in dropped for name in _possible_names(run, configs[run.row])),
      is_numbered,
  )


def _table_of_curves(curves: Curves) -> Table:
  """A table of the runs in curves: what stays the same in each, and the peak learning rate."""
  if not any('learning_rate' in curve.values for curve in curves.by_run.values()):
    raise BadInput(
        '--curves: has no learning rate of each run; give a table of the runs in --runs, or name'
        ' the column with --map=learning_rate=COLUMN'
    )
  cells: dict[str, list[Any]] = {'run': _own_names(curves)}
  cells['learning_rate'] = [
      float(np.nanmax(curve.values['learning_rate'])) if 'learning_rate' in curve.values else ''
      for curve in curves.by_run.values()
  ]
  for name in ('seed', 'parameters'):
    if all(name in curve.values for curve in curves.by_run.values()):
      cells[name] = [float(curve.values[name][0]) for curve in curves.by_run.values()]
  return Table(CURVES, cells, cells['run'], 'run')


def _own_names(curves: Curves) -> list[str]:
  """A name of each curve: its first one, or the shortest kind that tells the curves apart."""
  kinds = list(zip(*curves.by_run))  # files at other depths have more kinds
  apart = [kind for kind in kinds if len({*kind}) == len(kind)]
  if kinds[0] in apart or not apart:
    return list(kinds[0])
  return list(min(apart, key=lambda kind: len(''.join(kind))))


def _check_losses(
    curves: Curves, matched: Mapping[int, Curve], found: Mapping[str, str]
) -> None:
  """Raises BadInput if neither the table nor a curve has losses."""
  if 'final_loss' in found or any(
      'loss' in curve.values or outcomes.validation(curve) for curve in matched.values()
  ):
    return
  metrics = [column for column, _ in curves.notes.names]
  raise BadInput(
      '--curves: has neither a training nor a validation loss;'
      f' {columns_lib.nearest("loss", metrics)}; name it with --map=loss=COLUMN'
  )


def _results(
    runs: Sequence[Run],
    matched: Mapping[int, Curve],
    found: Mapping[str, str],
    options: Options,
) -> tuple[dict[int, Result | None], set[int], list[str]]:
  """Results by row, the rows of runs without an initial loss, and sentences.

  Raises BadInput if no run has an initial loss.
  """
  results: dict[int, Result | None] = {}
  without: dict[int, outcomes.NoInitialLoss] = {}
  for run in runs:
    curve = matched.get(run.row)
    try:
      results[run.row] = outcomes.result(
          run, curve, options, has_final_losses='final_loss' in found
      )
    except outcomes.NoInitialLoss as error:
      results[run.row], without[run.row] = None, error
  if without and all(r is None or r.initial_loss is None for r in results.values()):
    raise next(iter(without.values()))
  others = [run for run in runs if run.row not in without]
  notes = notes_lib.on_results(others, results, found, matched, options)
  lacking = [run.name or run.where for run in runs if run.row in without]
  if lacking:
    notes.append(
        Caution(
            'no result, as neither a column nor the curve at step 0 or 1 has the initial loss (give'
            f' --initial_loss for such runs): {runs_lib.listed(lacking, 8)}'
        )
    )
  given = [
      run.name or run.where
      for run in runs
      if results[run.row] and options.initial_loss is not None
      and outcomes.own_initial_loss(run, matched.get(run.row), options) is None
  ]
  if given and len(given) < len(runs):
    notes.append(
        f'initial_loss is {options.initial_loss:g}, as given, of runs that lack one:'
        f' {runs_lib.listed(given, 8)}'
    )
  return results, {*without}, notes


# Which curve belongs to which run.


def _match(
    runs: Sequence[Run],
    curves: Curves,
    names_of_curves: Sequence[tuple[str, ...]],
    notes: list[str],
) -> dict[int, Curve]:
  """The curve of each run that has one, by the run's row.

  Args:
    runs: the runs of a table.
    curves: the curves.
    names_of_curves: the names that each curve may have.
    notes: what is left out is added.

  Raises:
    BadInput: no curve belongs to a run, or it is unclear which run one belongs to.
  """
  owners: dict[str, list[Run]] = {}
  for run in runs:
    for name in {run.name, run.id} - {''}:
      owners.setdefault(name, []).append(run)
  found: dict[int, Curve] = {}
  places: dict[str, dict[str, Curve]] = {}  # of the curves with each name of a run
  unknown = []
  if len(curves.by_run) == len(runs) == 1:
    return {runs[0].row: next(iter(curves.by_run.values()))}
  if not owners:
    raise BadInput(f'{runs[0].where}: has no run or id, which curves need; name the column with'
                   ' --map=run=COLUMN')
  for names, curve in zip(names_of_curves, curves.by_run.values(), strict=True):
    path = log_files.place(names, names[0])  # says more than a name without folders
    known = next((name for name in (path, *names) if name in owners), None)
    if known is None:
      unknown.append(names[0])
    elif len(owners[known]) > 1:
      raise BadInput(
          f'{owners[known][0].where} and {owners[known][1].where}: are both named {known!r}, as is'
          ' a curve; give their ids, or other names'
      )
    else:
      row = owners[known][0].row
      place = log_files.place(names, known)
      for other, before in places.setdefault(known, {}).items():
        if other != place and overlap(before, curve):
          raise BadInput(
              f'--curves: {other} and {place} are both named {known!r}, as is the run of'
              f' {owners[known][0].where}; name each run by such a path, or import the folders into'
              ' separate workdirs'
          )
      places[known][place] = curve
      found[row] = joined([found[row], curve]) if row in found else curve
  if not found:
    raise BadInput(
        f'--curves: no curve belongs to a run: {runs_lib.listed(unknown)} are not among'
        f' {runs_lib.listed(list(owners))}'
    )
  if unknown:
    notes.append(Caution(f'curves of no run, left out: {runs_lib.listed(unknown)}'))
  return found


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
    ended: set[int],
    arms: list[str],
    notes: list[str],
) -> list[Run]:
  """The runs without failed attempts at a run that was trained again; BadInput for other equals.

  If no attempt has succeeded, the last one counts, or the last one that may still do so.
  """
  names = [*SIZE_FIELDS, *arms, 'optimizer.learning_rate', 'seed']
  cells = table.texts(found['seed']) if 'seed' in found else []
  groups: dict[tuple, list[Run]] = {}
  for run in runs:
    groups.setdefault(_key(run, configs[run.row], names), []).append(run)
  dropped: list[Run] = []
  for equal in groups.values():
    if len(equal) < 2:
      continue
    counted = [run for run in equal if run.row in ended]
    if len(counted) > 1:
      first, second = counted[:2]
      rows = [[table.text(column, run.row) for column in table.columns] for run in (first, second)]
      if rows[0] == rows[1]:
        raise BadInput(f'{first.where} and {second.where}: are equal; remove one of them')
      no_seed = [run.where for run in (first, second) if cells and is_empty(cells[run.row])]
      differing = [
          column
          for column in table.columns
          if column not in found.values()
          and not columns_lib.is_result(column)
          and table.text(column, first.row) != table.text(column, second.row)
      ]
      differing.sort(key=columns_lib.rank_as_setting)
      has_sizes = first.parameters is not None or any(name in first.fields for name in SIZE_FIELDS)
      give = '--runs' if table.source == CURVES else '--map=parameters=COLUMN'
      unknown = '' if has_sizes else f' sizes are unknown; give {give};'
      raise BadInput(
          f'{first.where} and {second.where}: have the same'
          f' {", ".join(["parameters", *arms, "learning_rate", "seed"])};'
          f'{unknown} name what tells them apart with --group_by or --map=seed=COLUMN'
          + (f' (they differ in {runs_lib.listed(differing, 6)})' if differing else '')
          + (f'; {found["seed"]} is empty in {" and ".join(no_seed)}: seed 0' if no_seed else '')
      )
    (kept,) = counted or [r for r in equal if results[r.row] is None][-1:] or equal[-1:]
    dropped += [run for run in equal if run is not kept]
  if dropped:
    attempts = runs_lib.listed([run.where for run in dropped])
    notes.append(Caution(f'left out, trained again: {attempts}'))
  return [run for run in runs if run not in dropped]


def _refuse_single_points(
    runs: Sequence[Run],
    configs: Mapping[int, dict[str, Any]],
    arms: list[str],
    options: Options,
) -> None:
  """Raises BadInput if every size and arm has a single learning rate.

  If the user did not name the arms, it is enough that most have: a column may then be a measurement
  instead of a setting.
  """
  rates: dict[tuple, set[float]] = {}
  for run in runs:
    key = _key(run, configs[run.row], [*SIZE_FIELDS, *arms])
    rates.setdefault(key, set()).add(run.learning_rate)
  single = sum(len(of_arm) == 1 for of_arm in rates.values())
  is_refused = single == len(rates) or (options.group_by is None and 2 * single > len(rates))
  if arms and len({run.learning_rate for run in runs}) > 1 and is_refused:
    raise BadInput(
        f'--group_by: with {", ".join(arms)} as arms,'
        f' {"every arm has" if single == len(rates) else "most arms have"} a single learning rate'
        ' at each size, so there is no curve; name the columns that are interventions'
    )


# Names of folders.


def _names(runs: Sequence[Run], configs: Mapping[int, dict[str, Any]]) -> dict[int, str]:
  """The name of each run's folder, by row: its name, its id, or its values."""
  given = Counter(run.name for run in runs)
  found: dict[int, str] = {}
  for run in runs:
    name = run.name if given[run.name] == 1 else ','.join(filter(None, (run.name, run.id)))
    if not name or (given[run.name] > 1 and not run.id):
      name = _name_of_values(run, configs[run.row])
    found[run.row] = _quoted(name)
  repeated = [name for name, count in Counter(found.values()).items() if count > 1]
  if repeated:
    raise BadInput(f'{runs[0].where}: two runs would be named {repeated[0]!r}; give them ids')
  return found


def _name_of_values(run: Run, config: Mapping[str, Any]) -> str:
  values = {'parameters': run.parameters, **config}
  known = {key.split('.')[-1]: value for key, value in values.items() if value is not None}
  return ','.join(f'{key}={value}' for key, value in known.items())


def _possible_names(run: Run, config: Mapping[str, Any]) -> set[str]:
  """The names that a run has among other runs, see _names."""
  names = {run.name, ','.join(filter(None, (run.name, run.id))), _name_of_values(run, config)}
  return {_quoted(name) for name in names if name}


def _quoted(name: str) -> str:
  quoted = quote(name, safe='+=,').replace('~', '%7E')
  if quoted.startswith('.'):
    quoted = '%2E' + quoted[1:]
  if len(quoted) > MAX_NAME:
    digest = hashlib.sha256(name.encode(errors='backslashreplace')).hexdigest()
    quoted = f'{quoted[: MAX_NAME - 9]}-{digest[:8]}'
  return quoted
