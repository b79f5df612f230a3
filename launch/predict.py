"""Predicts at which learning rates larger sizes are unstable, from a sweep of smaller sizes.

  python -m launch.predict --workdir=DIR[,DIR2...] [--target=SIZE or PARAMETERS]

SIZE is a named size such as 4.8B; the default is the next two named sizes after the sweep's
largest. Each sweep is used separately. As a test, the largest size of each sweep is also predicted
from the sizes with at most a quarter of its parameters, if there are at least three of them; the
scores are over all sweeps together. The tables predictions.csv and predictions_held_out.csv and the
figures are written to DIR/report/.
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, path_flags

# isort: split
import sys
from pathlib import Path

import pandas as pd
from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stability import config as config_lib
from stability.errors import BadInput

FLAGS = flags.FlagValues()
_WORKDIR = path_flags.define_list('workdir', 'folders of sweeps, separated by commas', FLAGS)
_TARGET = flags.DEFINE_string(
    'target',
    None,
    f'size to predict: one of {", ".join(config_lib.SIZES)}, or a number of parameters',
    flag_values=FLAGS,
)
PIPED_WIDTH = 110  # characters per line if stdout is not a terminal; the tables fit


def main() -> None:
  """Makes the predictions and scores, prints them and writes the files."""
  if not _WORKDIR.value:
    raise BadInput('--workdir: missing, must be a folder, or several separated by commas')
  from stability.analysis import results as results_lib
  from stability.analysis.prediction import observations, predict
  from stability.report import predictions as predictions_lib

  target = None
  if _TARGET.value is not None:
    try:
      target = predictions_lib.target_parameters(_TARGET.value)
    except BadInput as error:
      raise BadInput(f'--{error}') from None
  by_workdir = {}
  for workdir in map(Path, _WORKDIR.value):
    results = results_lib.load_workdir(workdir)
    if results.runs['parameters'].isna().any():
      raise BadInput(f'--workdir={workdir}: predictions need the parameters of every run')
    curves = results_lib.load_curves(workdir, observations.PROBES)
    by_workdir[workdir] = predictions_lib.Predictions.make(results, curves, target)
    if by_workdir[workdir] is None:
      raise BadInput(f'--workdir={workdir}: no run has finished yet')
  console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
  for workdir, predictions in by_workdir.items():
    predictions_lib.write(predictions, workdir / 'report')
    console.print(_table(str(workdir), predictions_lib.table(predictions)))
    for sentence in predictions_lib.sentences(predictions):
      console.print(sentence, highlight=False, markup=False)
    written = f'Tables and figures: {workdir / "report"}\n'
    console.print(written, soft_wrap=True, highlight=False, markup=False)
  scores = predict.score([predictions.held_out for predictions in by_workdir.values()])
  if (accuracy := predictions_lib.accuracy_sentence(scores)) is not None:
    console.print(_table('Test on the held-out size', predictions_lib.score_table(scores)))
    console.print(accuracy, highlight=False)
  else:
    console.print(
        'No size could be held out as a test: that takes three sizes with at most a quarter of the'
        " largest one's parameters."
    )


def _table(title: str, text: pd.DataFrame) -> Table:
  table = Table(title=Text(title), box=box.SIMPLE_HEAD, collapse_padding=True)
  for name in text:
    table.add_column(Text(name), justify='right', overflow='fold')
  for row in text.itertuples(index=False):
    table.add_row(*map(Text, row))  # not str: brackets in a field's value would be markup
  return table


if __name__ == '__main__':
  app.run(main, FLAGS)
