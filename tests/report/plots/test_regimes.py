"""The figure of verdicts by run length and size."""

import itertools

import pandas as pd

from stability.analysis.claims.claim import DOES_NOT_HOLD, HOLDS, UNDECIDED
from stability.report import tables
from stability.report.plots import regimes

VERDICTS = itertools.cycle([HOLDS, DOES_NOT_HOLD, UNDECIDED, HOLDS])
JUDGED = pd.DataFrame([
    {'figure': str(n), 'claim': f'Claim number {n}.', 'steps': s, 'parameters': p, 'verdict': v}
    for (n, s, p), v in zip(
        itertools.product((1, 2, 3), (400, 1_000), (9_216, 36_864)), VERDICTS, strict=False
    )
])


def test_every_verdict_is_a_mark():
  figure = regimes.verdicts(JUDGED)
  first, second = figure.axes
  assert first.get_title() == 'sizes up to 9.2K' and second.get_title() == 'sizes up to 37K'
  assert [text.get_text() for text in first.get_xticklabels()] == ['400', '1,000']
  claims = [text.get_text() for text in first.get_yticklabels()]
  assert claims == [f'{n}: Claim number {n}.' for n in (1, 2, 3)]
  found = set()
  for axis, size in ((first, 9_216), (second, 36_864)):
    for line, verdict in zip(axis.lines, (HOLDS, DOES_NOT_HOLD, UNDECIDED), strict=True):
      for x, y in zip(*line.get_data(), strict=True):
        found.add((str(4 - int(y)), (400, 1_000)[int(x)], size, verdict))
  expected = zip(JUDGED.figure, JUDGED.steps, JUDGED.parameters, JUDGED.verdict, strict=True)
  assert found == set(expected)


def test_table():
  found = pd.DataFrame({
      'figure': ['1', '2'],
      'claim': ['a', 'b'],
      'steps': [1_000, float('nan')],
      'parameters': [9_216, float('nan')],
      'holds': [3, 0],
      'decided': [4, 4],
      'last': [True, False],
  })
  first, second = tables.first_regimes(found).to_dict('records')
  assert list(first.values()) == ['1', 'a', '1,000', '9.2K', '3 of 4', 'the last regime']
  assert list(second.values()) == ['2', 'b', 'nowhere', '', '0 of 4', '']
