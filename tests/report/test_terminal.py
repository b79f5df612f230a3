"""The summary of a sweep in a terminal."""

import json

import pytest
from helpers import made_up
from rich.console import Console

from stability.analysis import lr_sensitivity, results_table
from stability.analysis import results as results_lib
from stability.analysis.claims import registry
from stability.analysis.claims.claim import Verdict
from stability.report import page, terminal
from stability.storage import run_files, sweeps

pytestmark = pytest.mark.usefixtures('module_without_figures')
RULE = '─'


def raise_alarms(workdir, *rules_of_runs):
  """Writes the alarms of the first runs of a sweep."""
  for name, rules in zip(sweeps.read_sweep(workdir).runs, rules_of_runs):
    alarms = [{'step': 20, 'rule': rule, 'seen': f'saw {rule}', 'actions': 0} for rule in rules]
    path = run_files.run_dir(workdir, name) / 'alarms.jsonl'
    path.write_text(''.join(json.dumps(alarm) + '\n' for alarm in alarms))


def summary(workdir, report, width=80):
  console = Console(width=width)
  with console.capture() as capture:
    terminal.print_summary(console, workdir, report)
  return capture.get()


@pytest.fixture(scope='module', params=[(0,), (0, 1)], ids=['one seed', 'two seeds'])
def printed(request, tmp_path_factory, module_without_figures):
  """The summary of a sweep like configs/quickstart.py."""
  workdir = tmp_path_factory.mktemp('sweep')
  made_up.write_sweep(workdir, seeds=request.param)
  raise_alarms(workdir, ['attention_logit', 'loss_spike'], [], ['attention_logit'])
  return summary(workdir, page.write_report(workdir))


@pytest.mark.slow
def test_summary_fits_a_terminal(printed):
  lines = printed.splitlines()
  assert max(map(len, lines[:-1])) <= 80 and len(lines) <= 23  # the prompt has the last line


@pytest.mark.slow
def test_summary_order(printed):
  claims, alarms, *table, report = printed.splitlines()
  assert claims.startswith('Claims: ') and 'hold' in claims and claims.endswith('see the report.')
  assert alarms.startswith('Alarms: raised in 2 of ')
  assert alarms.endswith(' runs (attention_logit 2, loss_spike 1).')
  assert 'LR sensitivity (mean loss above the best, nats)' in '\n'.join(table)
  assert report.startswith('Report: ') and report.endswith('report/index.html')


@pytest.mark.slow
def test_table_of_the_summary(printed):
  head, _, body = printed.partition(RULE)
  for word in ('size', 'qk_norm', 'sensitivity', 'ratio to', 'best'):
    assert word in head
  rows = [line.split() for line in body.splitlines() if ' layernorm ' in line or ' none ' in line]
  assert [row[:2] for row in rows] == [
      ['9.2K', 'layernorm'], ['9.2K', 'none'], ['37K', 'layernorm'], ['37K', 'none'],
      ['147K', 'layernorm'], ['147K', 'none'],
  ]  # fmt: skip
  assert all('baseline' in row for row in rows[::2])
  assert not any('baseline' in row for row in rows[1::2])


def test_long_path_is_not_wrapped(tmp_path):
  workdir = tmp_path / ('long' * 30)
  made_up.write_sweep(workdir, widths=(16,), seeds=(0,))
  report = page.write_report(workdir)
  assert summary(workdir, report).splitlines()[-1] == f'Report: {report}'


def test_summary_of_other_results(tmp_path):
  path = tmp_path / 'other.csv'
  path.write_text(
      'learning_rate,final_loss,method\n0.1,3,a\n0.3,4,a\n1,5,a\n0.1,3,b\n0.3,3.5,b\n1,4,b\n'
  )
  results = results_table.load_csv(path, group_by=['method'], initial_loss=10.0)
  console = Console(width=80)
  with console.capture() as capture:
    report = page.write_results_report(results, tmp_path / 'report')
    terminal.print_results_summary(console, results, report)
  claims, *rest = capture.get().splitlines()
  assert claims == 'Claims: none applies to this sweep.'
  assert 'Alarms' not in capture.get() and rest[-1].startswith('Report: ')
  rows = [line.split() for line in rest]
  assert ['?', 'a', '1.000', 'baseline', '3.000', '1e-1'] in rows
  assert ['?', 'b', '0.500', '0.50', '3.000', '1e-1'] in rows


def test_merged_numbers_are_named(tmp_path):
  """In the terminal in one line, and on the page; the name of a column may be hostile."""
  path = tmp_path / 'results.csv'
  path.write_text(
      'learning_rate,final_loss,initial_loss,seed,"\x1b[31m<b>"\n'
      '0.1,3,10,0,0.5\n0.10000000149011612,3,10,1,0.50000001\n0.2,3,10,0,0.5\n'
  )
  results = results_table.load_csv(path, group_by=['\x1b[31m<b>'])
  console = Console(width=80)
  with console.capture() as capture:
    report = page.write_results_report(results, tmp_path / 'report')
    terminal.print_results_summary(console, results, report)
  rate, hostile, *_ = capture.get().splitlines()
  assert rate == (
      'learning_rate: numbers that differ in the last digits only are taken as one:'
      ' 0.1 = 0.10000000149011612'
  )
  assert hostile.startswith(r"'\x1b[31m<b>': numbers") and hostile.endswith('0.5 = 0.50000001')
  assert rate in report.read_text() and '31m&lt;b&gt;&#39;: numbers' in report.read_text()


def test_claims_line():
  def verdicts(*pairs):
    return registry.table([(registry.CLAIMS[0], Verdict(name, n=n)) for name, n in pairs])

  several = [('holds', 1), ('holds', 2), ('does not hold', 3), ('undecided', 4), ('undecided', 0)]
  assert terminal.claims_line(verdicts(*several)) == (
      'Claims: 2 hold, 1 does not hold, 1 undecided; see the report.'
  )
  assert terminal.claims_line(verdicts(('undecided', 0))) == 'Claims: none applies to this sweep.'


def test_no_alarms(tmp_path):
  made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,))
  printed = summary(tmp_path, page.write_report(tmp_path))
  assert 'Alarms: none raised in 14 runs.' in printed


def test_brackets_are_not_markup(tmp_path):
  made_up.write_sweep(tmp_path, widths=(16,), seeds=(0,))
  results = results_lib.load_workdir(tmp_path)
  results.runs['model.qk_norm'] = results.runs['model.qk_norm'].replace('none', '[bold]x[/nothing]')
  console = Console(width=200)
  with console.capture() as capture:
    console.print(terminal.sensitivity_table(results, lr_sensitivity.lr_sensitivity(results)))
  assert '[bold]x[/nothing]' in capture.get()
