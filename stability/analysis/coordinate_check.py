"""Coordinate check: how activations grow with the width, step by step (arXiv 2203.03466, app. D).

Under muP and its equals activations keep their size as the width grows, at the start and after
every update; under the standard parameterization with one learning rate they grow from the first
update on. Measured are activations themselves, not how far they moved from where they started: it
shows after few updates, where the learning rate is so high that the change exceeds the start, and
not in the embedding, which keeps its initial size for long. Logits start with a slope of -1/2 where
the head's std falls as 1/width: under mup, mean_field, muparam_intermediate and _full.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from stability.analysis import results as results_lib
from stability.storage import run_files, sweeps

WIDTH = 'model.width'


def load_activations(workdir: Path) -> pd.DataFrame:
  """tables.load_curves of every activation_rms/ and output_rms probe that a run has logged."""
  probes: dict[str, None] = {}
  for name in sweeps.read_sweep(workdir).runs:
    for line in run_files.read_metrics(run_files.run_dir(workdir, name)):
      probes |= dict.fromkeys(filter(_is_activation, line))
  return results_lib.load_curves(workdir, probes)


def slopes(results: results_lib.Results, activations: pd.DataFrame) -> pd.DataFrame:
  """The power of the width with which the RMS of an activation goes, by least squares of its log.

  Args:
    results: of a sweep over model.width.
    activations: what load_activations gives.

  Returns:
    A row per probe, intervention and step. Columns: probe, those of the intervention and of the
    size but for the width, step, slope, and widths, on how many it rests: runs that are not finite
    there do not count, nor do steps with less than two widths. Seeds are pooled.
  """
  columns = [*results.groups, *(size for size in results.sizes if size != WIDTH)]
  probes = [column for column in activations if _is_activation(column)]
  rows = activations.melt(['run', 'step'], probes, var_name='probe', value_name='rms')
  rows = rows[np.isfinite(rows['rms']) & (rows['rms'] > 0)]
  rows = rows.merge(results.runs[['run', WIDTH, *columns]], on='run')
  keys = ['probe', *columns, 'step']
  found = [
      (*values, _slope(of_step), widths)
      for values, of_step in results_lib.split(rows, keys)
      if (widths := of_step[WIDTH].nunique()) > 1
  ]
  return pd.DataFrame(found, columns=[*keys, 'slope', 'widths'])


def _slope(rows: pd.DataFrame) -> float:
  return np.polyfit(np.log(rows[WIDTH]), np.log(rows['rms']), 1)[0]


def _is_activation(probe: str) -> bool:
  return probe.startswith('activation_rms/') or probe.endswith('/output_rms')
