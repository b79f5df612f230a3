"""The tables that end a sweep."""

import pytest
from helpers import made_up
from rich.console import Console

from stability import hyper
from stability.analysis import lr_sensitivity, results
from stability.analysis.claims import registry
from stability.analysis.claims.claim import Verdict
from stability.report import terminal

RULE = '─'


@pytest.fixture
def table(tmp_path):
  made_up.write_sweep(tmp_path, leave_out=(83,))
  return lr_sensitivity.lr_sensitivity(results.load_workdir(tmp_path))


def printed(table, width=80):
  console = Console(width=width)
  with console.capture() as capture:
    console.print(terminal.terminal_table(table))
  return capture.get()


def test_a_line_per_size_and_intervention_within_80_columns(table):
  head, _, body = printed(table).partition(RULE)
  for word in ('parameters', 'qk_norm', 'sensitivity', 'interval', 'best loss', 'best LR'):
    assert word in head
  lines = [line.split() for line in body.replace(RULE, '').splitlines() if line.strip()]
  assert len(lines) == 6
  row = table.iloc[4]
  assert lines[4] == [
      '147K', 'layernorm', f'{row["lr_sensitivity"]:.3f}', f'{row["low"]:.3f}-{row["high"]:.3f}',
      f'{row["best_loss"]:.3f}', '1e-2', '0',
  ]  # fmt: skip
  assert lines[5][-1] == '1'  # missing


def test_columns_that_say_nothing_are_left_out(table):
  table = table.assign(missing=0, low=float('nan'), high=float('nan'))
  assert list(terminal.readable(table)) == [
      'parameters', 'qk_norm', 'LR sensitivity', 'best loss', 'best LR', 'LRs', 'seeds'
  ]  # fmt: skip


def test_nothing_measured_is_blank(tmp_path):
  made_up.write_sweep(tmp_path, widths=(16,), leave_out=tuple(range(28)))
  text = terminal.readable(lr_sensitivity.lr_sensitivity(results.load_workdir(tmp_path)))
  assert text.iloc[0].to_list() == ['9.2K', 'layernorm', '', '', '', '0', '0', '14']


def test_brackets_in_a_value_are_no_markup(table):
  table['model.qk_norm'] = '[bold]x[/nothing]'
  assert '[bold]x[/nothing]' in printed(table, width=200)


def test_interventions_of_a_sweep_without_sizes(tmp_path):
  made_up.write_sweep(
      tmp_path, widths=(16,), seeds=(0,), interventions=hyper.sweep('optimizer.eps', [1e-15, 1e-8])
  )
  text = terminal.readable(lr_sensitivity.lr_sensitivity(results.load_workdir(tmp_path)))
  assert list(text['eps']) == ['1e-15', '1e-8']


def claims_shown(width):
  console = Console(width=width)
  verdicts = [
      (registry.CLAIMS[0], Verdict('holds', 1.86, 1.82, 1.914, 42)),
      (registry.CLAIMS[1], Verdict('undecided', n=42, reason='3 of 42 runs [missing]')),
      (registry.CLAIMS[2], Verdict('undecided', reason='the sweep is about other things')),
  ]
  with console.capture() as capture:
    console.print(terminal.claims_table(registry.table(verdicts)))
  return capture.get()


def test_claims_are_readable_at_100_columns():
  shown = claims_shown(100)
  assert max(map(len, shown.splitlines())) <= 100
  for words in (
      'Without qk-layernorm, LR sensitivity is higher',
      'lowest ratio of LR sensitivity over sizes',
      'holds',
      '1.86',
      '1.82 to 1.91',
      '>= 1.1',
      'undecided',
      '3 of 42 runs [missing]',
      'One other is not about this sweep.',
  ):
    assert words in shown, words
  assert 'the sweep is about other things' not in shown


def test_without_a_claim_about_the_sweep_there_is_no_table():
  other = (registry.CLAIMS[0], Verdict('undecided', reason='the sweep is about other things'))
  assert terminal.claims_table(registry.table([other])) is None
