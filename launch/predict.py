"""Predicts from a sweep of smaller sizes at which learning rates a larger one trains.

  python -m launch.predict --workdir=DIR[,DIR2...] [--target=7B[,SIZE...]] [--risk=0.05]
  python -m launch.predict --workdir=DIR --fit_up_to=147K [--target=...]

It answers for each arm: the best learning rate, the highest one at which the probability of being
unstable is at most --risk, and the critical one, each with a 90 % interval; what attention logits
and gradients to expect; and which arm of the sweep helps. A target is a named size such as 4.8B, or
a number of parameters. Targets are kept in DIR/targets.json: they are the default of the next time,
and the report answers for them from then on. The default before is the next two named sizes.

Each sweep is used separately, as learning rates are comparable only at equal length and batch. As
a test, the largest size of each sweep is also predicted from the sizes with at most a quarter of
its parameters, if there are at least three of them; the scores are over all sweeps together. The
tables answers.csv, predictions.csv and predictions_held_out.csv and the page are written to
DIR/report/.

With --fit_up_to it only tests: every larger size is predicted from the sizes up to this one, and
each predictor is scored at each distance. The predictions, with what was measured, are written to
DIR/report/forecast_test.csv, a figure of the critical rates to forecast_test.svg, and the scores to
forecast_scores.csv. Targets need not be trained: their predictions are then on record before they
are.
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, display, path_flags

# isort: split
import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from absl import flags
from rich.table import Table

from stability import config as config_lib
from stability.analysis.prediction import targets as targets_lib
from stability.analysis.prediction.targets import Target
from stability.errors import BadInput
from stability.storage import files

if TYPE_CHECKING:
  from stability.analysis import results as results_lib
  from stability.report import predictions as predictions_lib

FLAGS = flags.FlagValues()
_WORKDIR = path_flags.define_list('workdir', 'folders of sweeps, separated by commas', FLAGS)
_TARGET = flags.DEFINE_list(
    'target',
    None,
    f'sizes to predict, separated by commas: each one of {", ".join(config_lib.SIZES)}, or a number'
    ' of parameters such as 7B',
    flag_values=FLAGS,
)
_RISK = flags.DEFINE_float(
    'risk',
    None,
    'accepted probability of being unstable, 0.01 to 0.5; default: 0.05, or that of a kept target',
    flag_values=FLAGS,
)
_FIT_UP_TO = flags.DEFINE_string(
    'fit_up_to',
    None,
    'test: predict all larger sizes from those up to this one, such as 147K',
    flag_values=FLAGS,
)
PIPED_WIDTH = 110  # characters per line if stdout is not a terminal; the tables fit
WIDE = 100  # characters per line that the column of gradients and the table of scores need
HEADER_WIDTH = 11


def main() -> None:
  """Makes the predictions and scores, prints them and writes the files."""
  if not _WORKDIR.value:
    raise BadInput('--workdir: missing, must be a folder, or several separated by commas')
  from stability.analysis.prediction import predict
  from stability.report import answers, page
  from stability.report import predictions as predictions_lib

  asked = _asked()
  if _FIT_UP_TO.value is not None:
    fit_up_to = targets_lib.parse(_FIT_UP_TO.value, '--fit_up_to')
    for workdir in dict.fromkeys(map(Path, _WORKDIR.value)):
      _test(workdir, fit_up_to, asked)
    return
  found = {}
  for workdir in dict.fromkeys(map(Path, _WORKDIR.value)):
    kept = targets_lib.load(workdir)
    wanted = _with_kept_risk(asked, kept) or _with_risk(kept)
    found[workdir] = wanted, _predictions(workdir, targets_lib.merged(kept, wanted), asked)
  console = display.console(PIPED_WIDTH)
  for workdir, (wanted, predictions) in found.items():
    if wanted:
      targets_lib.keep(workdir, predictions.targets)
    shown = [each for each in predictions.answers if not wanted or each.target in wanted]
    if len(found) > 1:
      display.line(console, f'{workdir}:')
    for sentence in predictions.sentences(shown):
      console.print(f'{sentence}\n', highlight=False, markup=False)
    text = answers.table(predictions.results, shown)
    if console.width < WIDE:
      text = text.drop(columns=answers.GRADIENT_COLUMN, errors='ignore')
    if len(text):
      console.print(_table(text))
    path = page.write_report(workdir, predicted=predictions)
    display.line(console, f'Report: {path}\n')
  scores = predict.score([predictions.held_out for _, predictions in found.values()])
  if not scores.empty and console.width >= WIDE:
    console.print(_table(predictions_lib.score_table(scores), 'Test on the held-out size'))
  console.print(predictions_lib.accuracy_sentence(scores), highlight=False)


def _asked() -> list[Target]:
  """The targets of the flags; empty without --target."""
  if _RISK.value is not None:
    targets_lib.check_risk(_RISK.value, '--risk')
  texts = [] if _TARGET.value is None else _TARGET.value or ['']
  return _with_risk([Target(targets_lib.parse(text, '--target')) for text in texts])


def _test(workdir: Path, fit_up_to: float, asked: Sequence[Target]) -> None:
  """Tests the predictors on the sizes above this one, prints the scores and writes the files."""
  from stability.analysis.prediction import observations
  from stability.analysis.prediction.predictor import InsufficientData
  from stability.report import predictions as predictions_lib

  results, curves = _load(workdir)
  by_arm = observations.by_arm(results, curves)
  targets = [target.parameters for target in asked]
  folder = workdir / 'report'
  try:
    scores = predictions_lib.write_test(results, by_arm, fit_up_to, targets, folder)
  except InsufficientData as error:
    raise BadInput(f'--fit_up_to={_FIT_UP_TO.value}: {workdir}: {error}') from None
  console = display.console(PIPED_WIDTH)
  if len(scores):
    console.print(_table(predictions_lib.by_size_table(scores), 'Test on the larger sizes'))
  display.line(console, f'Predictions: {folder / "forecast_test.csv"}')


def _with_risk(targets: Sequence[Target]) -> list[Target]:
  """The targets with the risk of the flag, if it is given."""
  if _RISK.value is None:
    return list(targets)
  return [dataclasses.replace(target, risk=_RISK.value) for target in targets]


def _with_kept_risk(asked: Sequence[Target], kept: Sequence[Target]) -> list[Target]:
  """The targets that are asked for; without the flag, one that is kept has its risk."""
  if _RISK.value is not None:
    return list(asked)
  of_kept = {target.parameters: target for target in kept}
  return [of_kept.get(target.parameters, target) for target in asked]


def _predictions(
    workdir: Path, targets: Sequence[Target], asked: Sequence[Target]
) -> 'predictions_lib.Predictions':
  """The predictions for the targets or, if there are none, for the next sizes.

  Args:
    workdir: of the sweep.
    targets: those that are kept with it and those of the flag.
    asked: those of the flag.
  """
  from stability.analysis.prediction.predictor import InsufficientData
  from stability.report import predictions as predictions_lib

  results, curves = _load(workdir)
  for target in asked:
    targets_lib.check_size(target, results.runs['parameters'].min(), '--target')
  risk = targets_lib.RISK if _RISK.value is None else _RISK.value
  try:
    return predictions_lib.Predictions.make(results, curves, targets, risk)
  except InsufficientData as error:
    raise BadInput(f'--workdir={workdir}: {error}') from None


def _load(workdir: Path) -> 'tuple[results_lib.Results, pd.DataFrame]':
  from stability.analysis import results as results_lib
  from stability.analysis.prediction import observations

  files.refuse_links(workdir)
  results = results_lib.load_workdir(workdir)
  return results, results_lib.load_curves(workdir, observations.PROBES)


def _table(text: pd.DataFrame, title: str | None = None) -> Table:
  names = []
  for name in text:
    words, bracket, rest = name.partition(' (')
    lines = [*textwrap.wrap(words, HEADER_WIDTH), *([f'({rest}'] if bracket else [])]
    names.append('\n'.join(lines))
  table = display.table(names)
  table.title, table.collapse_padding = title, True
  display.add_rows(table, text.itertuples(index=False))
  return table


if __name__ == '__main__':
  app.run(main, FLAGS)
