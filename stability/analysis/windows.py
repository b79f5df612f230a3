"""How a report compares runs: windows of learning rates, and what a leaderboard says of its arms.

A config file sets it in get_report(scale), which returns a dict with any of:

  'windows': [{'where': {field: value}, 'windows': [[low, high], ...]}, ...]
      An entry applies to interventions whose fields have these values; `'where': {}` applies to
      all. If several entries apply, the first one is used. LR sensitivity is computed within each
      window of learning rates, ends included, and the lowest one is reported. If no entry applies,
      it is computed over all learning rates.
  'not_comparable': field
      A field that changes what a learning rate means, so that no LR sensitivity is computed
      (appendix B).
  'places': {arm: place}
      The part of the system that an arm changes, such as optimizer.
  'controls': {arm: verdict}
      Arms whose verdict against the baseline is known: better, worse, tie or inert.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stability import config as config_lib
from stability.errors import BadInput
from stability.hyper import Runs
from stability.same_number import TOLERANCE

Window = tuple[float, float]  # the lowest and the highest learning rate
Windows = Sequence[Mapping[str, Any]]  # entries with `where` and `windows`

VERDICTS = ('better', 'worse', 'tie', 'inert')  # that a control can have
_KEYS = ('windows', 'not_comparable', 'places', 'controls')


def inside(learning_rate: float, window: Window) -> bool:
  """Whether a learning rate lies in a window, ends included."""
  low, high = window
  return low * (1 - TOLERANCE) <= learning_rate <= high * (1 + TOLERANCE)


def find(windows: Windows, values: Mapping[str, Any]) -> list[Window] | None:
  """The windows that apply to an intervention with these field values; None if no entry does."""
  for entry in windows:
    if all(values.get(field) == value for field, value in entry['where'].items()):
      return [(low, high) for low, high in entry['windows']]
  return None


def check(report: Any, runs: Runs) -> dict[str, Any]:
  """Validates what get_report returned against the runs of the sweep.

  Returns:
    The report, in which the values of `where` are converted as those of configs are.
  """
  if not isinstance(report, Mapping):
    raise BadInput(f'get_report returns a {type(report).__name__}, must be a dict')
  for key in report:
    if key not in _KEYS:
      raise BadInput(f'get_report: {key!r}: must be one of {", ".join(_KEYS)}')
  for key in ('places', 'controls'):
    _check_texts(report.get(key, {}), f'get_report: {key}', VERDICTS if key == 'controls' else None)
  if 'not_comparable' in report:
    _check_swept(report['not_comparable'], 'not_comparable', runs)
  entries = report.get('windows', [])
  if not isinstance(entries, list):
    raise BadInput(f'get_report: windows={entries!r}: must be a list')
  flat = [config_lib.flatten(config) for config in runs.configs.values()]
  checked = [
      _check_entry(entry, f'windows[{i}]', flat, runs) for i, entry in enumerate(entries)
  ]
  return dict(report) | ({'windows': checked} if checked else {})


def _check_texts(entries: Any, name: str, allowed: Sequence[str] | None) -> None:
  if not isinstance(entries, Mapping):
    raise BadInput(f'{name}={entries!r}: must be a dict of arm -> text')
  for arm, text in entries.items():
    is_text = isinstance(arm, str) and isinstance(text, str)
    if not is_text or (allowed and text not in allowed):
      what = f'one of {", ".join(allowed)}' if allowed else 'a text'
      raise BadInput(f'{name}: {arm!r}: {text!r}: must be {what}')


def _check_entry(
    entry: Any, name: str, flat: list[dict[str, Any]], runs: Runs
) -> dict[str, Any]:
  if not isinstance(entry, Mapping) or set(entry) != {'where', 'windows'}:
    raise BadInput(f'get_report: {name}={entry!r}: must be a dict of where and windows')
  where, windows = entry['where'], entry['windows']
  if not isinstance(where, Mapping):
    raise BadInput(f'get_report: {name}: where={where!r}: must be a dict of field -> value')
  for field in where:
    _check_swept(field, f'{name}: where', runs)
  try:
    known = config_lib.convert({f: value for f, value in where.items() if f in config_lib.FIELDS})
  except BadInput as error:
    raise BadInput(f'get_report: {name}: where: {error}') from None
  where = {**where, **known}
  matching = [run for run in flat if all(run[field] == value for field, value in where.items())]
  if not matching:
    raise BadInput(f'get_report: {name}: where={where!r}: no run of the sweep has these values')
  if not isinstance(windows, list) or not windows:
    raise BadInput(f'get_report: {name}: windows={windows!r}: must be a list of [low, high]')
  rates = {run['optimizer.learning_rate'] for run in matching}
  for window in windows:
    check_window(window, f'get_report: {name}: {window!r}')
    if sum(inside(rate, window) for rate in rates) < 2:
      raise BadInput(
          f'get_report: {name}: {window!r}: holds fewer than two learning rates of these runs'
      )
  return {'where': where, 'windows': windows}


def _check_swept(field: Any, name: str, runs: Runs) -> None:
  allowed = [f for f in runs.fields if f not in ('optimizer.learning_rate', 'seed')]
  if field not in allowed:
    raise BadInput(
        f'get_report: {name}: {field!r}: must be a field that the sweep varies, other than learning'
        f' rate and seed: {", ".join(allowed) or "there is none"}'
    )


def check_window(window: Any, name: str) -> None:
  """Raises BadInput unless the window is a pair of learning rates, the lower one first."""
  is_pair = (
      isinstance(window, list | tuple)
      and len(window) == 2
      and all(isinstance(end, int | float) and not isinstance(end, bool) for end in window)
  )
  if not is_pair or not 0 < window[0] < window[1] < math.inf:
    raise BadInput(f'{name}: must be two learning rates, the lower one first')
