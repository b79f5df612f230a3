"""The runs of an experiment with their statistics and figures, for notebooks.

  import stability
  experiment = stability.load('runs/quickstart')
  experiment.lr_sensitivity()
  experiment.plot('loss_by_learning_rate', ax=ax)
"""

import dataclasses
import numbers
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stability import importing
from stability.analysis import instability, results_table
from stability.analysis import lr_sensitivity as lr_sensitivity_lib
from stability.analysis import results as results_lib
from stability.analysis import windows as windows_lib
from stability.analysis.claims import registry
from stability.analysis.prediction import observations
from stability.analysis.prediction import targets as targets_lib
from stability.analysis.prediction.predictor import InsufficientData
from stability.analysis.results import Results
from stability.config import paths
from stability.errors import BadInput
from stability.importing.options import Options, of_arguments
from stability.importing.runs import Caution
from stability.report import answers as answer_text
from stability.report import labels as labels_lib
from stability.report import predictions
from stability.report.plots import selection
from stability.storage import sweeps


def load(
    path: str | Path,
    *,
    group_by: str | Sequence[str] | None = None,
    initial_loss: float | None = None,
) -> 'Experiment':
  """Loads the runs of a sweep, finished or not, or the runs of any trainer from a CSV file.

  Args:
    path: a workdir, or a CSV file with a row per run. Required columns: learning_rate and
      final_loss (nats). Optional columns: parameters, seed, run, initial_loss (nats) and status. An
      empty final_loss without a status means that the run diverged.
    group_by: for a CSV file, the column or columns that define the intervention; by default, those
      with a dot in their name.
    initial_loss: for a CSV file, the initial loss of all runs (nats), instead of the column.

  Numbers of a CSV file that differ in the last digits only, such as 0.001 and its float32,
  0.0010000000474974513, count as the same number; a UserWarning says which.

  Raises:
    BadInput: `path` is neither a workdir nor a valid CSV file, or files of the workdir are damaged.
  """
  if isinstance(path, pd.DataFrame):
    raise BadInput('path: must be a workdir or a CSV file; stability.from_frames takes data frames')
  if isinstance(group_by, str):
    group_by = [group_by]
  try:
    path = Path(paths.local(str(path)))
  except BadInput as error:
    raise BadInput(f'{path}: {error}') from None
  if not path.is_dir():
    results = results_table.load_csv(
        path,
        group_by=None if group_by is None else list(group_by),
        initial_loss=initial_loss,
    )
    for note in results.notes:
      warnings.warn(note, stacklevel=2)
    return Experiment(path, results)
  if group_by is not None or initial_loss is not None:
    raise BadInput(f'{path}: is a workdir; group_by and initial_loss are for CSV files')
  if not (path / 'sweep.json').is_file():
    raise BadInput(f'{path}: holds no sweep (no sweep.json); must be a workdir or a CSV file')
  return Experiment(path, results_lib.load_workdir(path))


def from_frames(
    runs: pd.DataFrame,
    curves: pd.DataFrame | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    group_by: str | Sequence[str] | None = None,
    initial_loss: float | None = None,
    loss_unit: str | None = None,
    step_unit: str | None = None,
    workdir: str | Path | None = None,
) -> 'Experiment':
  """The runs of any trainer in data frames, as launch.import_runs reads them from files.

  Named levels of an index are columns too. A UserWarning says which rows, columns and curves are
  left out, and what may be wrong; `notes` of the result also has the arms and what each column was
  taken for.

  Args:
    runs: a row per run. Columns are recognised by their names: learning_rate, final_loss and, where
      there are any, initial_loss, parameters, seed, run, status and settings that vary.
    curves: a row per run and logged step, with the columns run, step, loss and probes; a column per
      metric. NaN: not logged at this step; a loss that is missing at the end, for three of its
      intervals at which other metrics are not, means that the run diverged.
    columns: the column of each quantity, name -> column, where it is not recognised.
    group_by: the column or columns that define the intervention; None: the settings that vary on
      their own.
    initial_loss: the initial loss of runs for which neither a column nor the curve has one, in the
      unit of the losses.
    loss_unit: nats (the default) or bits.
    step_unit: what `step` counts: steps (the default) or tokens.
    workdir: a folder to keep the runs in, for the programs; None: a temporary one, which is removed
      with the result.

  Raises:
    BadInput: a column is missing, a cell is not allowed, or the folder holds other runs.
  """
  if isinstance(group_by, str):
    group_by = [group_by]
  with of_arguments():
    options = Options(
        mapping=dict(columns or {}),
        initial_loss=initial_loss,
        group_by=None if group_by is None else tuple(group_by),
        loss_unit=loss_unit,
        step_unit=step_unit,
    )
  folder = Path(tempfile.mkdtemp(prefix='stability-') if workdir is None else workdir)
  try:
    notes = importing.import_frames(runs, curves, folder, options).notes
    results = dataclasses.replace(load(folder)._results, notes=tuple(notes))
  except BaseException:
    if workdir is None:
      shutil.rmtree(folder)
    raise
  found = Experiment(folder, results)
  if workdir is None:
    weakref.finalize(found, shutil.rmtree, folder)
  for note in notes:
    if isinstance(note, Caution):
      warnings.warn(note, stacklevel=2)
  return found


class Experiment:
  """Runs that differ in size, learning rate, seed and intervention, as returned by stability.load.

  Methods write no files. Training curves are read again at every call, so those of a running sweep
  are up to date; `runs` stays as it was when the experiment was loaded.
  """

  def __init__(self, path: Path, results: Results):
    self._path = path
    self._results = results

  def __repr__(self) -> str:
    runs = self._results.runs
    statuses = ', '.join(f'{n} {status}' for status, n in runs['status'].value_counts().items())
    return f'<Experiment {str(self._path)!r}: {len(runs)} runs ({statuses})>'

  @property
  def runs(self) -> pd.DataFrame:
    """A table with a row per run.

    Columns:
      run (str): the name of the run
      status (str): done, diverged, failed, stopped or missing
      parameters (Int64): the number of weights in the blocks' matrices; NA if unknown
      learning_rate (float): the peak learning rate
      seed (int)
      initial_loss, final_loss (float): validation loss before and after training, nats; NaN if
        unknown or not finite
    Settings of imported runs whose names other tables use, such as eps, are under config.eps.
    For a workdir also steps, tokens, seconds (of training), error (str) and every field of the
    config under its dotted name, such as model.width. For a CSV file also the columns with a dot in
    their name and those of group_by.
    """
    return self._results.runs.copy()

  @property
  def notes(self) -> tuple[str, ...]:
    """Sentences on how a CSV file or data frames were read; none for a workdir."""
    return self._results.notes

  def curves(self, probes: str | Iterable[str] = ()) -> pd.DataFrame:
    """The training curves of a workdir, a row per run and logged step.

    Args:
      probes: names of logged values to add, such as 'gradient_norm' or
        'block_0/attention_logit_max'.

    Returns:
      Columns: run (categorical), step (int, from 1), loss (float: training loss of the step's
      batch, nats) and each probe (float). NaN where a value is not finite or was not logged.

    Raises:
      BadInput: the runs are from a CSV file, the files of the workdir are damaged, or no run has
        logged a probe.
    """
    if not self._path.is_dir():
      raise BadInput(f'{self._path}: a CSV file has no training curves')
    probes = [probes] if isinstance(probes, str) else [*probes]
    curves = results_lib.load_curves(self._path, probes)
    results_lib.check_logged(self._path, curves, probes)
    return curves

  def lr_sensitivity(
      self,
      windows: Sequence[tuple[float, float]] | None = None,
      interval: float = results_lib.INTERVAL,
  ) -> pd.DataFrame:
    """The LR sensitivity of each size and intervention, a row each, the smallest size first.

    Args:
      windows: windows of learning rates (lowest, highest), ends included. LR sensitivity is
        computed within each window, and the lowest one is reported. The default is the windows
        that the config file sets, if any.
      interval: the confidence level of the intervals.

    Returns:
      A table with the columns:
        the swept fields other than learning rate and seed, and parameters
        lr_sensitivity: the mean over learning rates of min(final, initial) loss, averaged over
          seeds, minus the lowest; nats; NaN with one learning rate
        low, high: interval over seeds, nats; NaN with one seed
        best_loss (nats), best_learning_rate (NaN if no run ends below its initial loss)
        learning_rates, seeds: how many were used
        missing: how many runs failed, were stopped or are missing
        window: the learning rates that lr_sensitivity refers to, `all`, or `not comparable` if a
          swept field changes what a learning rate means
    """
    if not isinstance(interval, numbers.Real) or not 0 < interval < 1:
      raise BadInput(f'interval: {interval!r}: must be a number between 0 and 1, such as 0.95')
    results = dataclasses.replace(self._results, interval=interval)
    if windows:
      for window in windows:
        windows_lib.check_window(window, f'windows: {window!r}')
      results = dataclasses.replace(results, windows=[{'where': {}, 'windows': windows}])
    return lr_sensitivity_lib.lr_sensitivity(results)

  def unstable(self) -> pd.Series:
    """Whether each run is unstable: a boolean Series with the index of `runs`.

    A run is unstable if it diverged, or if its learning rate is above the best one of its size,
    intervention and run length and its min(final, initial) loss exceeds the best by more than 5 %
    of (initial - best). A run at the only learning rate of these is compared with smaller sizes or,
    without any, with all interventions of its size. NA for failed, stopped and missing runs.
    `experiment.runs[experiment.unstable()]` selects the unstable runs.
    """
    return instability.unstable(self._results)

  def claims(self) -> pd.DataFrame:
    """The verdicts on the paper's claims and on others for these runs, a row per claim.

    Columns:
      figure (str): the paper's figure, or `beyond` for a claim that is not from the paper
      claim (str)
      verdict (str): holds, does not hold or undecided
      effect, low, high (float): the statistic and its 90 % interval over seeds
      threshold (str): the effects for which the claim holds, such as `>= 1.1`
      measure (str): what the effect is, with its unit
      n (int): the number of runs used; 0 if the claim does not apply
      reason (str): why the claim is undecided
      variant (str): the variant that was judged, if it is not the paper's
    """
    curves = None
    if self._path.is_dir():
      curves = results_lib.load_curves(self._path, registry.probes(self._results))
    return registry.judge(self._results, curves)

  def predict(
      self, target: str | float | None = None, risk: float = targets_lib.RISK
  ) -> pd.DataFrame:
    """Predicts which learning rates a larger size trains at; needs three trained sizes.

    Args:
      target: a named size such as '4.8B', or a number of parameters, such as '7B' or 7e9; None: the
        next two named sizes after the largest trained one (if none is larger, 4 times that one).
      risk: the accepted probability of being unstable, 0.01 to 0.5.

    Returns:
      A table with a row for each target and intervention (the columns of the swept fields). Other
      columns: parameters (of the target), times (relative to the largest trained size), risk,
      best_learning_rate, safe_learning_rate (the highest one at that risk) and
      critical_learning_rate, each with _low and _high (90 % interval), usable (bool), and reason:
      why the prediction is not usable, and what to train next. NaN: cannot be predicted.

    Raises:
      BadInput: `target` or `risk` is invalid, `target` is below the smallest size, no run has
        finished, or the parameters of a finished run are unknown.
    """
    found = self._predictions(target, risk)
    return answer_text.answers_csv(self._results, found.answers)

  def forecasts(self, target: str | float | None = None) -> pd.DataFrame:
    """What every predictor says of every learning rate at larger sizes.

    Args:
      target: see predict.

    Returns:
      A table with a row for each intervention (the columns of the swept fields), predictor, size
      and learning rate. Other columns: predictor, chosen (bool: whether the predictor was the best
      at predicting the larger of the trained sizes), event, times (parameters relative to the
      largest trained size), parameters, learning_rate, probability (of the event), quantity (what
      value measures), value, low and high (90 % interval; NaN if none), note. A predictor without
      enough data has one row, with the reason in note and NaN elsewhere.

    Raises:
      BadInput: see predict.
    """
    return self._predictions(target).forecasts

  def plot(
      self, name: str, ax: Axes | None = None, labels: Mapping[str, str] | None = None
  ) -> Figure:
    """Draws a figure of the report.

    With `ax`, it follows your own settings of Matplotlib, such as the size of text.

    Available names, if the runs have the data:
      loss_by_learning_rate              final loss against learning rate
      lr_sensitivity                     LR sensitivity against parameters
      loss_by_FIELD                      final loss against a swept number, such as loss_by_eps
      attention_logits_by_learning_rate  highest attention logit against learning rate
      attention_logits_by_parameters     the same against parameters
      training_curves                    loss and attention logits of the largest size over steps
      gradients                          gradient and update RMS at the end of training
      block_outputs                      RMS of a block's output against parameters
      query_key_norms                    norms of queries and keys of the largest size over steps
      probe_N_NAME                       a probe of the config file against learning rate
      critical_learning_rate             critical learning rate, extrapolated to larger sizes
      predicted_against_measured         the largest size, predicted from smaller ones

    Args:
      name: one of these names.
      ax: axes to draw in, for figures with a single panel.
      labels: labels to use instead: of fields ('model.qk_norm' or 'qk_norm'), values ('none'),
        fields with their value ('qk_norm=none'), arms ('qk_norm=none, eps=1e-8') or texts of axes
        and legends ('learning rate').

    Returns:
      The figure to which `ax` belongs, or a new one.

    Raises:
      BadInput: there is no such figure, the runs lack the data for it, or labels are equal.
    """
    is_prediction = name in predictions.FIGURES
    available = predictions.figures(self._predictions()) if is_prediction else self._plots()
    plots = {plot.name: plot for plot in available}
    if name not in plots and is_prediction:
      raise BadInput(f'plot {name!r}: there are too few sizes')
    if name not in plots:
      names = [plot.name for plot in available if plot.draw is not None]
      listed = f'must be one of {", ".join(names)}' if names else 'there is nothing to draw yet'
      also = ', '.join(predictions.FIGURES)  # to find out whether they can be drawn takes long
      raise BadInput(f'plot {name!r}: {listed}; with enough sizes also {also}')
    if plots[name].draw is None:
      raise BadInput(f'plot {name!r}: {plots[name].absent}')
    with labels_lib.replaced(labels or {}):
      return plots[name].draw(ax=ax)

  def _plots(self) -> list[selection.Plot]:
    """The figures of the report, without those of predictions."""
    table = self.lr_sensitivity()
    if not self._path.is_dir():
      return selection.loss_plots(self._results, table, bigram_loss=None)
    sweep = sweeps.read_sweep(self._path)
    bigram_loss = sweep.data.get('bigram_loss')
    probes = [*selection.probes(self._results), *sweep.own_probes]
    curves = results_lib.load_curves(self._path, probes)
    return [
        *selection.loss_plots(self._results, table, bigram_loss),
        *selection.curve_plots(self._results, curves),
        *selection.probe_plots(self._results, curves),
        *selection.extension_plots(self._results, curves, sweep.own_probes),
    ]

  def _predictions(
      self, target: str | float | None = None, risk: float = targets_lib.RISK
  ) -> predictions.Predictions:
    targets_lib.check_risk(risk)
    found = [] if target is None else [targets_lib.Target(targets_lib.parse(target), risk)]
    for each in found:
      targets_lib.check_size(each, self._results.runs['parameters'].min())
    probes = observations.PROBES
    if self._path.is_dir():
      curves = results_lib.load_curves(self._path, probes)
    else:
      curves = pd.DataFrame(columns=['run', 'step', 'loss', *probes], dtype=float)
    try:
      return predictions.Predictions.make(self._results, curves, found, risk)
    except InsufficientData as error:
      raise BadInput(f'{self._path}: {error}') from None
