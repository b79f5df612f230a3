"""Sentences on what may be wrong with imported runs: their lengths, learning rates and losses."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from stability.config import SIZE_FIELDS
from stability.importing import divergence, outcomes
from stability.importing.cleaning import Curve
from stability.importing.options import Options
from stability.importing.runs import Caution, Run, count, listed
from stability.storage.run_files import Result

EARLY = 0.9  # of the longest curve: a shorter one may be of a run that was stopped
RATES = 0.01  # by which the learning rates of table and curve may differ
_MAX_INITIAL_LOSS = 20.0  # nats; the log of a vocabulary is below 13
_FAR_ABOVE = 1.5  # times the initial loss: diverged runs seldom end above it


def on_outcomes(
    runs: Sequence[Run],
    results: Mapping[int, Result | None],
    matched: Mapping[int, Curve],
    options: Options,
) -> list[str]:
  """The sentences; results and curves are by the run's row."""
  return [
      *_on_lengths(runs, results, matched),
      *_on_divergence(runs, results, matched, options),
      *_on_validation(runs, results, matched, options),
      *_on_rates(runs, results, matched),
      *_on_losses(runs, results),
  ]


def _is_done(run: Run, results: Mapping[int, Result | None]) -> bool:
  return (result := results[run.row]) is not None and result.status == 'done'


def _on_lengths(
    runs: Sequence[Run], results: Mapping[int, Result | None], matched: Mapping[int, Curve]
) -> list[str]:
  """Names runs that count as done and have a shorter curve than others of their size."""

  def size(run: Run) -> tuple:
    names = (*SIZE_FIELDS, 'schedule.steps')
    return (run.parameters, *(run.fields.get(name) for name in names))

  longest: dict[tuple, int] = {}
  for run in runs:
    if run.row in matched:
      longest[size(run)] = max(longest.get(size(run), 0), int(matched[run.row].steps[-1]))
  early = [
      f'{run.name or run.where} ({end} of {longest[size(run)]})'
      for run in runs
      if _is_done(run, results) and run.row in matched
      for end in [int(matched[run.row].steps[-1])]
      if end < EARLY * longest[size(run)]
  ]
  if not early:
    return []
  return [
      Caution(
          'status done, though the curve ends well before the longest one of the same size, in'
          f' {count(len(early))}: {listed(early, 8)}; for what was stopped or still runs, say so in'
          ' a column state (killed, crashed or running)'
      )
  ]


def _on_divergence(
    runs: Sequence[Run],
    results: Mapping[int, Result | None],
    matched: Mapping[int, Curve],
    options: Options,
) -> list[str]:
  """Names runs of which the status, the final loss and the end of the curve do not agree."""
  found: dict[str, list[str]] = {}
  for run in runs:
    curve, result = matched.get(run.row), results[run.row]
    if result is None:
      continue
    final, reasons = outcomes.own_final_loss(run, curve, options), []
    if curve is not None and divergence.seems_not_finite(curve).any():
      reasons.append('diverged, as no loss is logged at the end while other metrics are')
    if run.final_loss is not None and math.isfinite(run.final_loss) and not math.isfinite(final):
      reasons.append('diverged by the curve, though the table has a finite final loss')
    if result.final_loss is None and final is not None and math.isfinite(final):
      reasons.append('diverged by the state; a final loss below the initial one is not used')
    if curve is not None and _is_done(run, results) and divergence.may_not_be_finite(curve):
      reasons.append(
          'status done, though the last rows of the curve lack the loss, which may have been NaN'
          ' (if so, say diverged in a column state)'
      )
    for reason in reasons:
      found.setdefault(reason, []).append(run.name or run.where)
  return [
      Caution(f'{reason}, in {count(len(names))}: {listed(names, 8)}')
      for reason, names in found.items()
  ]


def _on_validation(
    runs: Sequence[Run],
    results: Mapping[int, Result | None],
    matched: Mapping[int, Curve],
    options: Options,
) -> list[str]:
  """Names runs whose validation losses are at odd steps.

  That is, those that count as done and whose last one is of an early step, and those whose only one
  is at step 0 and seems to be a final one.
  """
  early, without_step = [], []
  for run in runs:
    if run.initial_loss is None and run.row in matched and results[run.row]:
      metric = outcomes.loss_without_step(matched[run.row], options)
      if metric and (run.final_loss is None or not outcomes.is_of_trained_model(metric)):
        without_step.append(f'{run.name or run.where} ({metric})')
    if run.final_loss is None and run.row in matched and _is_done(run, results):
      curve = matched[run.row]
      final, end = outcomes.final_loss(curve, options), _end_of_losses(curve)
      if final.step < EARLY * end:
        early.append(f'{run.name or run.where} ({final.step} of {end})')
  notes: list[str] = []
  if early:
    notes.append(
        Caution(
            'final_loss is of a validation well before the end of the curve, in'
            f' {count(len(early))}: {listed(early, 8)}; give later ones in a column final_loss'
        )
    )
  if without_step:
    notes.append(
        Caution(
            'the only validation loss is at step 0 and unlike the training loss there, so that it'
            f' is no initial loss, in {count(len(without_step))}: {listed(without_step, 8)}; if it'
            ' is a final one, give it in a column final_loss'
        )
    )
  return notes


def _end_of_losses(curve: Curve) -> int:
  """The last step with a training loss; after it may be summaries."""
  loss = curve.values.get('loss')
  return 0 if loss is None else int(curve.steps[np.isfinite(loss)].max(initial=0))


def _on_rates(
    runs: Sequence[Run], results: Mapping[int, Result | None], matched: Mapping[int, Curve]
) -> list[str]:
  """Names runs whose curve has another peak learning rate than the table."""
  differing = {}
  for run in runs:
    curve = matched.get(run.row)
    rates = np.array([]) if curve is None else curve.values.get('learning_rate', np.array([]))
    peak = rates[np.isfinite(rates)].max(initial=0.0)
    # A run that ended early may not have reached its peak.
    is_lower = 0 < peak < (1 - RATES) * run.learning_rate and _is_done(run, results)
    if is_lower or peak > (1 + RATES) * run.learning_rate:
      differing[run.name or run.where] = (run.learning_rate, float(peak))
  if not differing:
    return []
  name, (rate, peak) = next(iter(differing.items()))
  return [
      Caution(
          f'the learning rate of the table differs from the peak of the curve in'
          f' {count(len(differing))}: {listed([*differing], 8)} ({name}: {rate:.4g} in the table,'
          f' {peak:.4g} in the curve)'
      )
  ]


def _on_losses(runs: Sequence[Run], results: Mapping[int, Result | None]) -> list[str]:
  """Asks for the unit of losses that are higher than one expects in nats."""
  both = [
      (run, result.initial_loss, result.final_loss)
      for run in runs
      if (result := results[run.row]) and result.status in ('done', 'diverged')
      if None not in (result.initial_loss, result.final_loss)
  ]
  notes: list[str] = []
  above = [(run, initial, final) for run, initial, final in both if final > initial]
  if above:
    run, initial, final = max(above, key=lambda item: item[2] - item[1])
    text = (
        f'the final loss is above the initial loss in {count(len(above))} (e.g.'
        f' {run.name or run.where}: {final:.4g} against {initial:.4g}), which diverged; are both in'
        ' nats?'
    )
    is_odd = 2 * len(above) > len(both) or final > _FAR_ABOVE * initial
    notes.append(Caution(text) if is_odd else text)
  high = [
      (run, result.initial_loss)
      for run in runs
      if (result := results[run.row]) and (result.initial_loss or -math.inf) > _MAX_INITIAL_LOSS
  ]
  if high:
    run, initial = high[0]
    notes.append(
        Caution(
            f'the initial loss is above {_MAX_INITIAL_LOSS:g} nats in {count(len(high))} (e.g.'
            f' {run.name or run.where}: {initial:.4g}); is it a mean loss in nats, not a perplexity'
            ' or a sum?'
        )
    )
  return notes
