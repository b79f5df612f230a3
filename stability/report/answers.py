"""Sentences and tables of the answers for target sizes: analysis/prediction/answers.py as text."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from stability.analysis import regimes
from stability.analysis.prediction.answers import Answer, Estimate, PredictedProbe
from stability.analysis.prediction.helps import Help
from stability.analysis.results import Results
from stability.report import labels

LOGIT_COLUMN = 'attention logit (90 % interval)'  # columns of the table
GRADIENT_COLUMN = 'gradient RMS (90 % interval)'


def sentences(
    results: Results, answers: Sequence[Answer], helps: Sequence[Help]
) -> list[str]:
  """A paragraph per answer, what helps, for which runs, and a warning if a target is far away."""
  found = [_answer(results, answer) for answer in answers]
  found.extend(_help(results, help_, answers) for help_ in helps)
  predicted = [answer for answer in answers if any(map(answer.is_reliable, answer.estimates))]
  if predicted and (lengths := _lengths(results.runs)):
    found.append(f'All of this is for runs like the trained ones, {lengths}.')
  if any(answer.times > regimes.MAX_DISTANCE for answer in predicted):
    found.append(regimes.TOO_FAR)
  return found


def _lengths(runs: pd.DataFrame) -> str:
  """How long the runs that count were trained, in words; empty if it is unknown."""
  parts = []
  for name in ('steps', 'tokens'):
    known = runs[name][runs['status'] == 'done'].dropna() if name in runs else ()
    if len(known):
      ends = dict.fromkeys(labels.parameters(end) for end in (known.min(), known.max()))
      parts.append(f'{" to ".join(ends)} {name}')
  return f'of {" and ".join(parts)}' if parts else ''


def answers_csv(results: Results, answers: Sequence[Answer]) -> pd.DataFrame:
  """A row per answer, the table of answers.csv.

  Columns: those of results.groups; parameters (of the target); times (parameters over those of the
  arm's largest trained size); risk; best_learning_rate, safe_learning_rate and
  critical_learning_rate, each with _low and _high (its 90 % interval); usable; reason (why it is
  not, and what to train next). NaN for what cannot be predicted.
  """
  rows = []
  for answer in answers:
    row = dict(zip(results.groups, answer.arm, strict=True))
    row |= {'parameters': answer.target.parameters, 'times': answer.times}
    row['risk'] = answer.target.risk
    for name, known in answer.estimates.items():
      estimate = known or Estimate(np.nan, np.nan, np.nan)
      row[f'{name}_learning_rate'] = estimate.value
      row[f'{name}_learning_rate_low'] = estimate.low
      row[f'{name}_learning_rate_high'] = estimate.high
    reason = '' if answer.usable else f'{_reason(answer)}; {_train_next(answer)}'
    rows.append(row | {'usable': answer.usable, 'reason': reason})
  return pd.DataFrame(rows)


def table(results: Results, answers: Sequence[Answer]) -> pd.DataFrame:
  """The predictions at the trained learning rates as text: a row per answer and learning rate.

  Rows and columns without a prediction are left out.
  """
  parts = []
  for answer in answers:
    cells = answer.cells
    arm = dict(zip(results.groups, map(labels.value, answer.arm), strict=True))
    text = pd.DataFrame(arm, cells.index)
    text['parameters'] = labels.parameters(answer.target.parameters)
    text['learning rate'] = cells['learning_rate'].map(labels.rounded)
    text['unstable'] = cells['probability'].map('{:.0%}'.format).replace('nan%', '')
    text[LOGIT_COLUMN] = _estimates(cells, 'attention_logit')
    text['read at step'] = cells['read_at_step'].map('{:.0f}'.format).replace('nan', '')
    text[GRADIENT_COLUMN] = _estimates(cells, 'gradient_rms')
    parts.append(text)
  text = pd.concat(parts, ignore_index=True).rename(columns=labels.fields(results.groups))
  is_predicted = (text[['unstable', LOGIT_COLUMN, GRADIENT_COLUMN]] != '').any(axis='columns')
  return text[is_predicted].loc[:, (text[is_predicted] != '').any()]


def _estimates(cells: pd.DataFrame, name: str) -> list[str]:
  numbers = cells[[name, f'{name}_low', f'{name}_high']].itertuples(index=False)
  return [estimate_text(Estimate(*of_cell)) for of_cell in numbers]


def _answer(results: Results, answer: Answer) -> str:
  what = f'{labels.parameters(answer.target.parameters)} parameters'
  if arm := labels.pairs(results.groups, answer.arm):
    what += f' with {arm}'
  if answer.usable:
    rate = f'a learning rate of {labels.rounded(answer.recommended, 2)}'
    is_far = answer.times > regimes.MAX_DISTANCE
    says = f'{rate}, by extrapolation beyond the tested range' if is_far else f'train at {rate}'
    parts = [f'{what}: {says}.']
  else:
    reason, next_ = _reason(answer), _train_next(answer)
    parts = [f'{what}: no usable prediction. {_capital(reason)}. {_capital(next_)}.']
  risk = f'{100 * answer.target.risk:g} %'
  names = {
      'best': 'best',
      'safe': f'at most {risk} risk of instability up to',
      'critical': 'critical',
  }
  known = [
      f'{name} {estimate_text(answer.estimates[key])}'
      for key, name in names.items()
      if answer.is_reliable(key)
  ]
  if known:
    parts.append(f'Learning rates, with 90 % intervals: {"; ".join(known)}.')
  if answer.is_reliable('safe'):
    parts.extend(_probes(answer))
  parts.append(_distance(answer))
  return ' '.join(parts)


def _distance(answer: Answer) -> str:
  """How far the target is from the trained sizes, in a sentence."""
  if answer.times == 1:
    return 'This is the largest trained size.'
  largest = labels.parameters(answer.largest)
  return f'This is {factor(answer.times)} times the largest trained size, {largest}.'


def _reason(answer: Answer) -> str:
  """Why the prediction is not usable."""
  parts = list(answer.insufficient)
  if wide := answer.too_wide:
    noun, verb = ('interval', 'spans') if len(wide) == 1 else ('intervals', 'span')
    names = labels.joined(wide)
    spans = labels.joined([f'{found.decades:.1f}' for found in wide.values()])
    parts.append(f'the 90 % {noun} of the {names} learning rate {verb} {spans} decades')
  if (failed := answer.failed_test) is not None:
    bound = {1: 'above ', -1: 'below ', 0: ''}[failed.censored]
    parts.append(
        f'as a test, the critical learning rate of {labels.parameters(failed.parameters)} was'
        f' predicted from smaller sizes as {estimate_text(failed.predicted)}, but it is'
        f' {bound}{labels.rounded(failed.measured, 2)}'
    )
  return '; '.join(parts)


def _train_next(answer: Answer) -> str:
  found = answer.train_next
  size = 'every size'
  if found.parameters is not None:
    size = f'{labels.parameters(found.parameters)} parameters'
  if found.learning_rates is None:
    return f'train next: {size} with another seed'
  low, high = (labels.rounded(rate, 2) for rate in found.learning_rates)
  return f'train next: {size} at learning rates from {low} to {high}'


def _probes(answer: Answer) -> list[str]:
  """The probes at the recommended learning rate, in a sentence."""
  texts = []
  rate = None
  for name, predicted, limit in (
      ('the highest attention logit', answer.attention_logit, '{}'),
      ('the gradient RMS at the end', answer.gradient_rms, 'eps ({})'),
  ):
    if predicted is not None:
      rate = predicted.learning_rate
      against = limit.format(labels.number(predicted.limit))
      texts.append(
          f'{name} is {estimate_text(predicted.estimate)}, {_compared(predicted)} {against}'
      )
  if not texts:
    return []
  at = f'At {labels.rounded(rate, 2)}'
  if not np.isclose(rate, answer.recommended):
    at += ', the nearest trained learning rate'
  return [f'{at}, {", and ".join(texts)}.']


def _compared(predicted: PredictedProbe) -> str:
  found, limit = predicted.estimate, predicted.limit
  side = 'below' if found.value < limit else 'above'
  return f'probably {side}' if found.low < limit < found.high else side


def _help(results: Results, found: Help, answers: Sequence[Answer]) -> str:
  arm, helper = (labels.pairs(results.groups, values) for values in (found.arm, found.helper))
  what = 'headroom (critical over best learning rate)' if found.of_headroom else (
      'critical learning rate'
  )  # fmt: skip
  at_least = 'more than ' if found.at_least else ''
  text = (
      f'{helper} helps: at {labels.parameters(found.parameters)}, its {what} is'
      f' {at_least}{factor(found.factor)} times that of {arm} (measured)'
  )
  if not found.of_headroom:
    critical = {
        (answer.arm, answer.target.parameters): answer.critical.value
        for answer in answers
        if answer.usable
    }
    for target in dict.fromkeys(answer.target.parameters for answer in answers):
      rates = [critical.get((values, target)) for values in (found.helper, found.arm)]
      if None not in rates:
        ratio = factor(rates[0] / rates[1])
        text += f'; at {labels.parameters(target)}, {ratio} times (predicted)'
  return f'{text}.'


def estimate_text(found: Estimate) -> str:
  """A number with its interval, such as `1.2e-3 (4e-4 to 3e-3)`; empty if it is unknown."""
  if np.isnan(found.value):
    return ''
  value, low, high = (labels.rounded(each, 2) for each in (found.value, found.low, found.high))
  return f'{value} ({low} to {high})'


def factor(value: float) -> str:
  """A factor with two significant digits below 100, else whole: 2.3, 64, 8,192."""
  return f'{value:.2g}' if value < 99.5 else f'{value:,.0f}'


def _capital(text: str) -> str:
  return text[:1].upper() + text[1:]
