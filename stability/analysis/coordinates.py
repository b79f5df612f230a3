"""Coordinate check: how activations grow with the width, step by step (arXiv 2203.03466, app. D).

Under muP and its equals activations keep their size as the width grows, at the start and after
every update; under the standard parameterization with one learning rate they grow from the first
update on. Measured are activations themselves, not how far they moved from where they started: it
shows after few updates, where the learning rate is so high that the change exceeds the start, and
not in the embedding, which follows its initial size for long. The head's own growth begins with
the slope of its start: -1/2 under mup and mean_field, 0 else.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from stability import workdir as workdir_lib
from stability.analysis import tables

WIDTH = 'model.width'


def load_activations(workdir: Path) -> pd.DataFrame:
  """tables.load_curves of every activation_rms/ and output_rms probe that a run has logged."""
  probes: dict[str, None] = {}
  for name in workdir_lib.read_sweep(workdir)['runs']:
    for line in workdir_lib.read_metrics(workdir_lib.run_dir(workdir, name)):
      probes |= dict.fromkeys(filter(_is_activation, line))
  return tables.load_curves(workdir, probes)


def slopes(results: tables.Results, activations: pd.DataFrame) -> pd.DataFrame:
  """The power of the width with which the RMS of an activation goes, by least squares of its log.

  Args:
    results: of a sweep over model.width.
    activations: what load_activations gives.

  Returns:
    A row per intervention, probe and step, in the order of the runs, probes and steps. Columns:
    those of size other than the width, those of the intervention, probe, step, slope, and widths,
    on which it rests (runs that are not finite there do not count). Seeds are pooled. Steps with
    less than two widths are left out.
  """
  columns = [*(size for size in results.sizes if size != WIDTH), *results.groups]
  probes = [column for column in activations if _is_activation(column)]
  rows = activations.melt(['run', 'step'], probes, var_name='probe', value_name='rms')
  rows = rows[np.isfinite(rows['rms']) & (rows['rms'] > 0)]
  rows = rows.merge(results.runs[['run', WIDTH, *columns]], on='run')
  keys = [*columns, 'probe', 'step']
  found = [
      (*values, np.polyfit(np.log(of_step[WIDTH]), np.log(of_step['rms']), 1)[0], widths)
      for values, of_step in tables.split(rows, keys)
      if (widths := of_step[WIDTH].nunique()) > 1
  ]
  table = pd.DataFrame(found, columns=[*keys, 'slope', 'widths'])
  for column in reversed(keys):  # the order in which the values appeared, steps ascending
    order = sorted(table[column]) if column == 'step' else _appearance(results, probes, column)
    ranks = {value: rank for rank, value in enumerate(dict.fromkeys(order))}
    table = table.sort_values(column, key=lambda c, r=ranks: c.map(r), kind='stable')
  return table.reset_index(drop=True)


def _is_activation(probe: str) -> bool:
  return probe.startswith('activation_rms/') or probe.endswith('/output_rms')


def _appearance(results: tables.Results, probes: list[str], column: str) -> Iterable:
  return probes if column == 'probe' else results.runs[column]
