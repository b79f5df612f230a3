"""Writes the tables of results in configs/README.md from the CSV files under configs/results/.

  python -m launch.tables [--results=configs/results] [--output=configs/README.md]

Each folder of --results has files of a finished sweep: about.json (title, command, machine, commit,
date, seeds), and of claims.csv, lr_sensitivity.csv and regimes.csv from its report those there are.
The tables are written between the lines `<!-- tables -->` and `<!-- end of tables -->` of --output;
the rest of that file stays as it is.
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, path_flags

# isort: split
from pathlib import Path

import pandas as pd
from absl import flags

from stability.analysis.claims import regime_verdicts
from stability.errors import BadInput
from stability.report import findings, labels, tables
from stability.storage import files

FLAGS = flags.FlagValues()
_RESULTS = path_flags.define('results', 'configs/results', 'folder of the CSV files', FLAGS)
_OUTPUT = path_flags.define(
    'output', 'configs/README.md', 'Markdown file to write the tables to', FLAGS
)

BEGIN, END = '<!-- tables -->', '<!-- end of tables -->'
ABOUT = ('title', 'command', 'machine', 'commit', 'date', 'seeds')
# Columns of lr_sensitivity.csv that are not interventions.
NUMBERS = ('lr_sensitivity', 'low', 'high', 'best_loss', 'best_learning_rate')
NOT_SHOWN = ('learning_rates', 'seeds', 'missing', 'window_low', 'window_high')


def main() -> None:
  """Writes the tables."""
  folder, output = Path(_RESULTS.value), Path(_OUTPUT.value)
  if not folder.is_dir():
    raise BadInput(f'--results={folder}: is not a folder')
  try:
    text = output.read_text()
  except OSError as error:
    raise BadInput(f'--output={output}: cannot be read: {error.strerror}') from error
  if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
    raise BadInput(f'--output={output}: must have the lines {BEGIN} and {END}, in this order')
  before, after = text.split(BEGIN)[0], text.split(END)[1]
  files.write_atomic(output, f'{before}{BEGIN}\n\n{render(folder)}\n{END}{after}')


def render(folder: Path) -> str:
  """The Markdown tables of all folders of results, in order of their names."""
  return '\n'.join(map(_section, sorted(path.parent for path in folder.glob('*/about.json'))))


def _section(folder: Path) -> str:
  about = files.read_json(folder / 'about.json')
  for key in ABOUT:
    if key not in about:
      raise BadInput(f'{folder / "about.json"}: {key} is missing')
  seeds = f'{about["seeds"]} seed{"" if about["seeds"] == 1 else "s"}'
  parts = [
      f'### {about["title"]}\n',
      f'`{about["command"]}`, {seeds}, {about["machine"]}, {about["date"]}, commit'
      f' {about["commit"]}.\n',
  ]
  if (folder / 'lr_sensitivity.csv').exists():
    parts.append(_sensitivity(_read(folder / 'lr_sensitivity.csv')))
  if (folder / 'claims.csv').exists():
    parts.append(_claims(_read(folder / 'claims.csv')))
  if (folder / 'regimes.csv').exists():
    parts.append(_regimes(_read(folder / 'regimes.csv')))
  return '\n'.join(parts)


def _read(path: Path) -> pd.DataFrame:
  try:
    return pd.read_csv(path, dtype=str, keep_default_na=False)
  except (OSError, ValueError) as error:
    raise BadInput(f'{path}: cannot be read: {error}') from error


def _sensitivity(table: pd.DataFrame) -> str:
  one_window = 'window' in table and table['window'].nunique() == 1  # which says nothing
  hidden = ('parameters', *NUMBERS, *NOT_SHOWN, *(['window'] if one_window else []))
  interventions = [c for c in table if c not in hidden]
  rows = [
      [
          labels.parameters(float(row['parameters'])),
          *(row[column] for column in interventions),
          _with_interval(row['lr_sensitivity'], row['low'], row['high']),
          _short(row['best_loss']),
          _short(row['best_learning_rate']),
      ]
      for _, row in table.iterrows()
  ]
  names = [column.rpartition('.')[2] for column in interventions]
  header = ['parameters', *names, 'LR sensitivity', 'best loss', 'best LR']
  return _markdown(header, rows, right=('parameters', 'LR sensitivity', 'best loss', 'best LR'))


def _claims(table: pd.DataFrame) -> str:
  """The table of the claims that apply, with their effects and verdicts."""
  if 'n' in table:
    table = table[table['n'] != '0']
  extra = [c for c in ('seeds', 'machine') if c in table]
  rows = [
      [
          row['figure'],
          row['claim'],
          _with_interval(row['effect'], row['low'], row['high']),
          row['threshold'],
          row['verdict'],
          *(row[c] for c in extra),
      ]
      for _, row in table.iterrows()
  ]
  header = ['figure', 'claim', 'effect', 'needed', 'verdict', *extra]
  counts = f'{findings.count(len(table), "claim")}: {tables.count_verdicts(table["verdict"])}.'
  return f'{counts}\n\n' + _markdown(header, rows)


def _regimes(table: pd.DataFrame) -> str:
  """The table of the run length and size from which on each claim holds."""
  judged = table.astype({'steps': float, 'parameters': float})
  text = tables.first_regimes(regime_verdicts.first(judged))
  return _markdown(list(text), text.to_numpy().tolist())


def _with_interval(value: str, low: str, high: str) -> str:
  return f'{_short(value)} ({_short(low)} to {_short(high)})' if low and high else _short(value)


def _short(value: str) -> str:
  """A number with three significant digits; empty if there is none."""
  return f'{float(value):.3g}' if value else ''


def _markdown(header: list[str], rows: list[list[str]], right: tuple[str, ...] = ()) -> str:
  def line(cells: list[str]) -> str:
    return f'| {" | ".join(cell.replace("|", "/") for cell in cells)} |'

  rule = ['---:' if name in right else '---' for name in header]
  return '\n'.join([line(header), line(rule), *map(line, rows)]) + '\n'


if __name__ == '__main__':
  app.run(main, FLAGS)
