"""Imports the runs of other trainers, so that a workdir holds them like a sweep trained here.

  tables.py      CSV files, JSON and data frames as columns of cells
  columns.py     recognises columns by the names that W&B, MLflow, TensorBoard and others use
  runs.py        a row per run: learning rate, size, seed, status and losses
  arms.py        chooses the columns that define interventions
  seeds.py       numbers the runs if every one has a seed of its own
  curves.py      per-step logs: a curve per run
  cleaning.py    restarts, repeated steps and NaN in a curve
  log_files.py   which files of a folder are per-step logs, and of which run
  events.py      per-step logs in TensorBoard's event files
  divergence.py  which curves are those of runs that diverged
  outcomes.py    statuses and losses
  doubts.py      sentences on what may be wrong
  assemble.py    runs and curves together, with their names
  notes.py       sentences on what was recognised
  workdir.py     writes the workdir

The package imports no jax.
"""

import dataclasses
from pathlib import Path

import pandas as pd

from stability.importing import assemble, curves, tables, workdir
from stability.importing.assemble import Imported
from stability.importing.options import Options, as_arguments, of_arguments


def import_files(
    runs: Path | None, logs: Path | None, folder: Path, options: Options
) -> Imported:
  """Imports a table of runs, per-step logs or both into a workdir; see launch/import_runs.py."""
  table = None if runs is None else tables.read(runs)
  found = None if logs is None else curves.read(logs, options)
  imported = assemble.assemble(table, found, options)
  paths = [*([] if runs is None else [runs]), *(found.files if found else ())]
  workdir.write(folder, imported, (runs or logs).name, paths, options)
  return imported


def import_frames(
    runs: pd.DataFrame, logs: pd.DataFrame | None, folder: Path, options: Options
) -> Imported:
  """Imports data frames into a workdir; messages name arguments of stability.from_frames."""
  with of_arguments():
    table = tables.of_frame(runs, 'runs')
    found = None if logs is None else curves.of_table(tables.of_frame(logs, 'curves'), options)
    imported = assemble.assemble(table, found, options)
    workdir.write(folder, imported, 'runs', [], options)
  notes = [type(note)(as_arguments(note)) for note in imported.notes]
  return dataclasses.replace(imported, notes=notes)
