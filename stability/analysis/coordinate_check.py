"""Coordinate check: how activations scale with the width, step by step (arXiv 2203.03466, app. D).

Under muP and equivalent parameterizations, the size of activations is independent of the width, at
initialisation and after every update. Under the standard parameterization with one learning rate
it grows with the width from the first update on. The check uses the activations themselves, not
their change since initialisation. It therefore needs a learning rate at which a few updates change
them by more than their initial size, and says little about the embedding, whose size stays close to
its initial value for many steps. The slope of the logits starts at -1/2 if the head is initialised
with a standard deviation proportional to 1/width: under mup, mean_field, muparam_intermediate and
muparam_full.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from stability.analysis import results as results_lib
from stability.storage import run_files, sweeps

WIDTH = 'model.width'


def load_activations(workdir: Path) -> pd.DataFrame:
  """Loads every activation_rms/ and output_rms probe that any run logged; see load_curves."""
  probes: dict[str, None] = {}
  for name in sweeps.read_sweep(workdir).runs:
    for line in run_files.read_metrics(run_files.run_dir(workdir, name)):
      probes |= dict.fromkeys(filter(_is_activation, line))
  return results_lib.load_curves(workdir, probes)


def slopes(results: results_lib.Results, activations: pd.DataFrame) -> pd.DataFrame:
  """The exponents of power laws in the width, fitted to the RMS of each activation.

  The fit is by least squares in log RMS, over runs with a finite RMS; seeds are pooled.

  Args:
    results: the runs of a sweep over model.width.
    activations: see load_activations.

  Returns:
    A row per probe, intervention, size apart from its width, and step, if there are at least two
    widths. Columns: probe, those of the intervention, those of the size other than the width, step,
    slope (the exponent).
  """
  columns = [*results.groups, *(size for size in results.sizes if size != WIDTH)]
  probes = [column for column in activations if _is_activation(column)]
  rows = activations.melt(['run', 'step'], probes, var_name='probe', value_name='rms')
  rows = rows[np.isfinite(rows['rms']) & (rows['rms'] > 0)]
  rows = rows.merge(results.runs[['run', WIDTH, *columns]], on='run')
  keys = ['probe', *columns, 'step']
  fitted = [
      (*values, _slope(of_step))
      for values, of_step in results_lib.split(rows, keys)
      if of_step[WIDTH].nunique() > 1
  ]
  return pd.DataFrame(fitted, columns=[*keys, 'slope'])


def _slope(rows: pd.DataFrame) -> float:
  return np.polyfit(np.log(rows[WIDTH]), np.log(rows['rms']), 1)[0]


def _is_activation(probe: str) -> bool:
  return probe.startswith('activation_rms/') or probe.endswith('/output_rms')
