"""Says at which learning rates larger sizes will be unstable, from a sweep of smaller ones.

  python -m launch.predict --workdir=DIR[,DIR2...] [--target=SIZE or parameters]

SIZE is a named one, say 4.8B; by default, the next two after the sweep's largest. Each sweep
predicts for itself. Where its largest size has at least four times the parameters of three others,
it is also predicted from those, and how right that was is said, over all the sweeps together.
Written to DIR/report/: predictions.csv, predictions_held_out.csv and the figures.
"""

import math
import sys
from pathlib import Path

import pandas as pd
from absl import flags
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launch.common import app
from stability import config as config_lib
from stability.errors import BadInput

FLAGS = flags.FlagValues()
_WORKDIR = flags.DEFINE_list(
    'workdir', None, 'folders of sweeps, separated by commas', flag_values=FLAGS
)
_TARGET = flags.DEFINE_string(
    'target', None, f'{", ".join(config_lib.SIZES)}, or parameters', flag_values=FLAGS
)
PIPED_WIDTH = 110  # columns that the tables want


def main() -> None:
  """Predicts, scores, prints and writes."""
  if not _WORKDIR.value:
    raise BadInput('--workdir: missing, must be a folder, or several separated by commas')
  target = None if _TARGET.value is None else parameters(_TARGET.value)
  from stability.analysis import results as results_lib
  from stability.analysis.prediction import observations, predict
  from stability.report import predictions as predictions_lib

  found = {}
  for workdir in map(Path, _WORKDIR.value):
    results = results_lib.load_workdir(workdir)
    curves = results_lib.load_curves(workdir, observations.PROBES)
    found[workdir] = predictions_lib.Predicted.of(results, curves, target)
    if found[workdir] is None:
      raise BadInput(f'--workdir={workdir}: no run has finished yet')
  console = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
  for workdir, predicted in found.items():
    predictions_lib.write(predicted, workdir / 'report')
    console.print(_table(str(workdir), predictions_lib.table(predicted)))
    for sentence in predictions_lib.sentences(predicted):
      console.print(sentence, highlight=False, markup=False)
    written = f'Written to {workdir / "report"}\n'
    console.print(written, soft_wrap=True, highlight=False, markup=False)
  scores = predict.score([predicted.held_out for predicted in found.values()])
  if (verdict := predictions_lib.verdict(scores)) is not None:
    console.print(_table('Size held out', predictions_lib.score_table(scores)))
    console.print(verdict, highlight=False)
  else:
    console.print('No size could be held out: that takes three of a quarter of it or less.')


def parameters(target: str) -> float:
  """What --target stands for."""
  if target in config_lib.SIZES:
    return float(config_lib.parameters(config_lib.unflatten(config_lib.size(target))))
  try:
    count = float(target)
  except ValueError:
    count = math.nan
  if not 1 <= count < math.inf:
    raise BadInput(
        f'--target={target}: must be one of {", ".join(config_lib.SIZES)}, or a number'
    )
  return count


def _table(title: str, text: pd.DataFrame) -> Table:
  shown = Table(title=Text(title), box=box.SIMPLE_HEAD, collapse_padding=True)
  for name in text:
    shown.add_column(Text(name), justify='right', overflow='fold')
  for row in text.itertuples(index=False):
    shown.add_row(*map(Text, row))  # Text, not str: brackets in a field's value are no markup
  return shown


if __name__ == '__main__':
  app.run(main, FLAGS)
