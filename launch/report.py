"""Writes the report of a sweep, finished or not, or of anybody's results.

  python -m launch.report --workdir=DIR
  python -m launch.report --results=FILE.csv --output=DIR [--group_by=a,b] [--initial_loss=X]

FILE.csv has a row per run: learning_rate and final_loss, and initial_loss if the flag is not
given; parameters, seed and status if there are any. An empty final_loss without a status means
diverged. Runs are compared per value of the columns that --group_by names; by default, of those
with a dot in their name.
"""

from pathlib import Path

from absl import flags
from rich.console import Console

from launch import app
from stability import workdir as workdir_lib
from stability.errors import BadInput

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


def main() -> None:
  """Writes the report and prints its table."""
  if bool(_WORKDIR.value) == bool(_RESULTS.value):
    raise BadInput('--workdir, --results: one of them must be given, and not both')
  from stability.analysis import sensitivity, tables
  from stability.report import page, terminal

  if _RESULTS.value:
    if not _OUTPUT.value:
      raise BadInput('--output: missing, must be a folder for the report of --results')
    results = tables.load_csv(
        Path(_RESULTS.value), group_by=_GROUP_BY.value, initial_loss=_INITIAL_LOSS.value
    )
    path = page.write_results_report(results, Path(_OUTPUT.value))
  else:
    for name in ('output', 'group_by', 'initial_loss'):
      if FLAGS[name].present:
        raise BadInput(f'--{name}: goes with --results only')
    workdir = Path(_WORKDIR.value)
    workdir_lib.write_results(workdir)
    results = tables.load_workdir(workdir)
    path = page.write_report(workdir)
  console = Console()
  console.print(terminal.terminal_table(sensitivity.lr_sensitivity(results)))
  console.print(f'Report: {path}', soft_wrap=True, highlight=False)


if __name__ == '__main__':
  app.run(main, FLAGS)
