"""The summary of a sweep in a terminal."""

import collections
import dataclasses
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stability.analysis import alarm_log, lr_sensitivity
from stability.analysis import results as results_lib
from stability.analysis.claims import registry
from stability.analysis.results import Results
from stability.report import comparison_page, findings, page, tables
from stability.report.options import Options

# Short headers, some in two lines, so that the table fits into 80 columns.
_HEADERS = {
    'parameters': 'size',
    'best loss': 'best\nloss',
    'best mean loss': 'best\nmean\nloss',
    'best LR': 'best\nLR',
    'acted on': 'acted\non',
}


def print_summary(
    console: Console, workdir: Path, report: Path, options: Options = page.DEFAULTS
) -> None:
  """Prints claims, alarms, LR sensitivity and the report's path at the end of a sweep.

  Args:
    console: where to print.
    workdir: the sweep's folder.
    report: the path of the page that was written for the sweep.
    options: those with which it was written.
  """
  results = results_lib.load_workdir(workdir)
  if alarm_log.are_pending(workdir):
    alarms = f'Alarms: not looked for yet; python -m launch.alarms --workdir={workdir} does.'
  else:
    alarms = alarms_line(alarm_log.load(workdir), list(results.runs['run']))
  _print(console, results, report, [alarms], options)


def print_results_summary(
    console: Console, results: Results, report: Path, options: Options = page.DEFAULTS
) -> None:
  """Prints the same summary for the results of another trainer, which have no alarms."""
  _print(console, results, report, [], options)


def print_comparison(
    console: Console, compared: comparison_page.Comparison, report: Path
) -> None:
  """Prints what several sweeps differ in, how their results differ, and LR sensitivity."""
  found = findings.on_differences(compared.results, compared.differences)
  for line in filter(None, [compared.differing, *found]):
    console.print(line, markup=False, highlight=False)
  _print_table(console, compared.results, report)


def _print(
    console: Console, results: Results, report: Path, alarms: list[str], options: Options
) -> None:
  results = dataclasses.replace(results, interval=options.interval)
  judged = registry.read(report.parent / 'claims.csv')
  rescued = tables.rescue_sentence(results)
  for note in results.notes:
    console.print(note, markup=False, highlight=False, soft_wrap=True)
  for line in (claims_line(judged), *alarms, *([rescued] if rescued else [])):
    console.print(line, markup=False, highlight=False)
  _print_table(console, results, report)


def _print_table(console: Console, results: Results, report: Path) -> None:
  console.print(sensitivity_table(results, lr_sensitivity.lr_sensitivity(results)))
  console.print(f'Report: {report}', soft_wrap=True, highlight=False, markup=False)


def claims_line(judged: pd.DataFrame) -> str:
  """States how many of the claims that apply to the sweep have each verdict."""
  applicable = judged[judged['n'] > 0]
  if applicable.empty:
    return 'Claims: none applies to this sweep.'
  return f'Claims: {tables.count_verdicts(applicable["verdict"])}; see the report.'


def alarms_line(alarms: pd.DataFrame, runs: list[str]) -> str:
  """States in how many runs an alarm was raised, and by which rules, the most frequent first."""
  raised = alarms[alarms['run'].isin(runs)].drop_duplicates(['run', 'rule'])
  count = raised['run'].nunique()
  if not count:
    return f'Alarms: none raised in {len(runs)} runs.'
  by_rule = collections.Counter(raised['rule']).most_common()
  rules = ', '.join(f'{rule} {number}' for rule, number in by_rule)
  return f'Alarms: raised in {count} of {len(runs)} runs ({rules}).'


def sensitivity_table(results: Results, table: pd.DataFrame) -> Table:
  """LR sensitivity and best loss of each size and intervention, with a gap between sizes."""
  shown = Table(
      title='LR sensitivity (mean loss above the best, nats)',
      box=box.SIMPLE_HEAD,
      collapse_padding=True,
      pad_edge=False,
  )
  text = tables.sensitivities(results, table).drop(columns=['LRs', 'seeds'])
  headers = dict(_HEADERS)
  if (name := tables.interval(results)) in text:
    text['LR sensitivity'] += text.pop(name).map(lambda interval: interval and f' ({interval})')
    headers |= {column: f'{column}\n({name})' for column in ('LR sensitivity', tables.RATIO)}
  for name in text:
    shown.add_column(Text(headers.get(name, name)), justify='right', overflow='fold')
  last_of_size = text['parameters'] != text['parameters'].shift(-1)
  for row, is_last in zip(text.itertuples(index=False), last_of_size, strict=True):
    # Text rather than str, since a field's value may have brackets, which rich takes for markup.
    cells = [Text(cell.replace(', no difference', '\nno difference')) for cell in row]
    shown.add_row(*cells, end_section=is_last)
  return shown
