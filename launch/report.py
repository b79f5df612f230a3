"""Writes the report of a sweep, finished or not, or of anybody's results.

  python -m launch.report --workdir=DIR
  python -m launch.report --results=FILE.csv --output=DIR [--group_by=a,b] [--initial_loss=X]
      [--window=LOW,HIGH ...] [--window_where=COLUMN=VALUE ...] [--not_comparable=COLUMN]

FILE.csv has a row per run: learning_rate and final_loss, and initial_loss if the flag is not
given; parameters, seed and status if there are any. An empty final_loss without a status means
diverged. Runs are compared per value of the columns that --group_by names; by default, of those
with a dot in their name.

With --window, LR sensitivity is the lowest of those within each of the windows of learning rates,
ends included; with --window_where, only of the rows in which these columns have these values.
--not_comparable names a column that changes what a learning rate means: there is no LR sensitivity
then. A config file says the same of its sweep in get_report (stability/analysis/windows.py).
"""

from pathlib import Path

from absl import flags
from rich.console import Console

from launch.common import app
from stability.analysis import windows
from stability.errors import BadInput
from stability.storage import results_csv

FLAGS = flags.FlagValues()
_WORKDIR = app.define_workdir(FLAGS, required=False)
_RESULTS = flags.DEFINE_string('results', None, 'CSV file of results', flag_values=FLAGS)
_OUTPUT = flags.DEFINE_string(
    'output', None, 'folder for the report of --results', flag_values=FLAGS
)
_GROUP_BY = flags.DEFINE_list(
    'group_by', None, 'columns of --results that tell interventions apart', flag_values=FLAGS
)
_INITIAL_LOSS = flags.DEFINE_float(
    'initial_loss', None, 'of every run in --results', flag_values=FLAGS
)
_WINDOW = flags.DEFINE_multi_string(
    'window', None, 'LOW,HIGH: learning rates of LR sensitivity; repeatable', flag_values=FLAGS
)
_WINDOW_WHERE = flags.DEFINE_multi_string(
    'window_where', None, 'COLUMN=VALUE: rows that --window is for; repeatable', flag_values=FLAGS
)
_NOT_COMPARABLE = flags.DEFINE_string(
    'not_comparable', None, 'column that changes what a learning rate means', flag_values=FLAGS
)


ONLY_WITH_RESULTS = (
    'output', 'group_by', 'initial_loss', 'window', 'window_where', 'not_comparable'
)  # fmt: skip


def main() -> None:
  """Writes the report and prints its table."""
  if bool(_WORKDIR.value) == bool(_RESULTS.value):
    raise BadInput('--workdir, --results: one of them must be given, and not both')
  from stability.analysis import results as results_lib
  from stability.analysis.claims import registry
  from stability.report import page, terminal

  if _RESULTS.value:
    if not _OUTPUT.value:
      raise BadInput('--output: missing, must be a folder for the report of --results')
    results = results_lib.load_csv(
        Path(_RESULTS.value),
        group_by=_GROUP_BY.value,
        initial_loss=_INITIAL_LOSS.value,
        windows=_windows(),
        window_where=_window_where(),
        not_comparable=_NOT_COMPARABLE.value,
    )
    path = page.write_results_report(results, Path(_OUTPUT.value))
  else:
    for name in ONLY_WITH_RESULTS:
      if FLAGS[name].present:
        raise BadInput(f'--{name}: goes with --results only')
    workdir = Path(_WORKDIR.value)
    results_csv.write_results(workdir)
    results = results_lib.load_workdir(workdir)
    path = page.write_report(workdir)
  console = Console()
  for table in terminal.summary(results, registry.read(path.parent / 'claims.csv')):
    console.print(table)
  console.print(f'Report: {path}', soft_wrap=True, highlight=False, markup=False)


def _windows() -> list[tuple[float, float]]:
  found = []
  for text in _WINDOW.value or []:
    try:
      low, high = map(float, text.split(','))
    except ValueError:
      raise BadInput(f'--window={text}: must be LOW,HIGH, two learning rates') from None
    windows.check_window((low, high), f'--window={text}')
    found.append((low, high))
  return found


def _window_where() -> dict[str, str]:
  if _WINDOW_WHERE.value and not _WINDOW.value:
    raise BadInput('--window_where: goes with --window only')
  found = {}
  for text in _WINDOW_WHERE.value or []:
    column, equals, value = text.partition('=')
    if not equals:
      raise BadInput(f'--window_where={text}: must be COLUMN=VALUE')
    found[column] = value
  return found


if __name__ == '__main__':
  app.run(main, FLAGS)
