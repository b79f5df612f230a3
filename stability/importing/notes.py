"""Sentences on what was recognised in the files of other trainers."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from stability.importing import columns as columns_lib
from stability.importing import log_files, outcomes
from stability.importing.arms import Arms
from stability.importing.cleaning import Curve
from stability.importing.curves import Curves
from stability.importing.options import Options
from stability.importing.runs import Caution, Run, count, listed
from stability.storage.run_files import Result

_SHOWN = 8  # files, lines or runs of a kind that are named
_LIKE_LOGITS = re.compile('attn|attention|qk')  # in the name of a metric


def on_arms(arms: Arms, options: Options) -> list[str]:
  """Sentences on the columns that define interventions, and on why others do not."""
  if arms.columns:
    others = '' if options.group_by is not None else '; --group_by names others'
    notes = [f'arms: {", ".join(arms.columns.values())}{others}']
  else:
    notes = ['arms: none found; --group_by names columns that define them']
  by_reason: dict[str, list[str]] = {}
  for column, reason in arms.rejected.items():
    by_reason.setdefault(reason, []).append(column)
  for reason, columns in by_reason.items():
    notes.append(f'not an intervention: {listed(columns, 8)} ({reason})')
  return notes


def on_curves(curves: Curves, matched: Mapping[int, Curve]) -> list[str]:
  """Which metrics the curves have, and what was left out; `matched` are the curves by row."""
  notes = [f'curves: {count(len(matched))}, {sum(len(c.steps) for c in matched.values()):,} rows']
  of_files = curves.notes
  if of_files.step_columns:
    others = f', not {listed([*of_files.other_steps], 8)}' if of_files.other_steps else ''
    notes.append(f'steps are the column {listed([*of_files.step_columns])}{others}')
  for column, rows in of_files.without_step.items():
    first = of_files.first_without_step[column]
    what = f'{rows:,} rows' if rows > 1 else '1 row'
    notes.append(Caution(f'{what} without {column}, left out: {"from " * (rows > 1)}{first}'))
  if of_files.damaged:
    notes.append(Caution(f'lines left out: {listed(of_files.damaged, 8)}'))
  notes += [Caution(f'file left out: {reason}') for reason in of_files.unusable[:_SHOWN]]
  if (more := len(of_files.unusable) - _SHOWN) > 0:
    notes.append(Caution(f'{more} more files left out'))
  mapped = [f'{name} is {column}' for column, name in of_files.names if name != column]
  if mapped:
    notes.append(f'of the curves, {listed(mapped, 20)}')
  notes += [f'of the curves, {name} is {c}, not {other}' for name, c, other in of_files.second]
  kept = [name for column, name in of_files.names if name == column]
  if kept:
    notes.append(f'kept under their own names: {listed(kept, 20)}')
  if not any(name.endswith('/attention_logit_max') for _, name in of_files.names):
    likely = next((name for name in kept if _LIKE_LOGITS.search(columns_lib.key(name))), 'COLUMN')
    notes.append(
        'no metric is recognised as the highest attention logit; name one with'
        f' --map=block_0/attention_logit_max={likely}'
    )
  if of_files.left_out:
    notes.append(Caution(f'columns of the curves, left out: {listed([*of_files.left_out], 8)}'))
  if of_files.ignored:
    kinds = ', '.join(log_files.ENDINGS)
    names = listed([path.name for path in of_files.ignored])
    notes.append(f'files that are not {kinds} (or these with .gz), ignored: {names}')
  if restarted := [curve for curve in matched.values() if curve.repeated]:
    rows = sum(curve.repeated for curve in restarted)
    notes.append(f'{count(len(restarted))} restarted; {rows:,} rows are replaced by later ones')
  if unordered := [curve for curve in matched.values() if curve.unordered]:
    rows = sum(curve.unordered for curve in unordered)
    notes.append(
        Caution(
            f'rows of {count(len(unordered))} are not in order; of equal steps, the last row counts'
            f' ({rows:,} left out)'
        )
    )
  return notes


def on_results(
    runs: Sequence[Run],
    results: Mapping[int, Result | None],
    found: Mapping[str, str],
    matched: Mapping[int, Curve],
    options: Options,
) -> list[str]:
  """How states became statuses, and where losses come from; results and curves are by row."""
  statuses = Counter(
      (run.state or 'no state', result.status if result else 'no result yet')
      for run in runs
      for result in [results[run.row]]
  )
  notes = [f'status: {count(n)} {state} -> {status}' for (state, status), n in statuses.items()]
  notes += _on_sources(runs, results, found, matched, options)
  if 'initial_loss' not in found and any(run.initial_loss is None for run in runs) and matched:
    at = 'at step 0 or 1'
    if options.step_unit == 'tokens':
      tokens = max(outcomes.first_update(curve, options) for curve in matched.values())
      at = f'at 0 tokens or after the first update (up to {tokens:,} tokens)'
    notes.append(f'initial_loss is the loss {at} of each curve')
  lacking = [
      run.name or run.where
      for run in runs
      if results[run.row] is None and outcomes.status_of(run) is not None
  ]
  if lacking:
    notes.append(f'no result yet, as neither a final loss nor a curve has one: {listed(lacking)}')
  empty = sum(
      1 for r in runs if r.final_loss is None and results[r.row] and r.row not in matched
      and results[r.row].status == 'diverged'
  )
  if empty:
    notes.append(f'{count(empty)} ended without a final loss: diverged')
  return notes


def _on_sources(
    runs: Sequence[Run],
    results: Mapping[int, Result | None],
    found: Mapping[str, str],
    matched: Mapping[int, Curve],
    options: Options,
) -> list[str]:
  """Which final losses are those of curves, and of which metric."""
  late = f'the mean training loss of the last {outcomes.LATE:.0%} of steps'
  names: dict[str, list[str]] = {}
  spelling: dict[str, str] = {}
  of_done = []  # the sources of runs that are done
  for run in runs:
    result = results[run.row]
    if run.final_loss is None and run.row in matched and result and result.final_loss is not None:
      metric = outcomes.final_loss(matched[run.row], options).metric
      source = late
      if metric is not None:
        source = f'the last {spelling.setdefault(columns_lib.key(metric), metric)}'
      names.setdefault(source, []).append(run.name or run.where)
      of_done += [source] if result.status == 'done' else []
  if len(names) == 1 and 'final_loss' not in found:
    return [f'final_loss is {next(iter(names))} of each curve']
  notes = []
  for source, of_source in names.items():
    text = f'final_loss is {source} of the curve in {count(len(of_source))}: {listed(of_source, 8)}'
    is_unlike = source == late and late in of_done  # others are validation losses
    notes.append(Caution(text) if is_unlike else text)
  return notes
