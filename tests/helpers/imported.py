"""Imported runs of data frames."""

import pandas as pd

from stability.importing import assemble, curves, tables
from stability.importing.options import Options


def assembled(runs, logs=None, **options):
  """The runs of a table, given as columns or as a frame, with their curves."""
  options = Options(**options)
  table = None if runs is None else tables.of_frame(pd.DataFrame(runs), 'runs')
  if logs is not None:
    logs = curves.of_table(tables.of_frame(pd.DataFrame(logs), 'curves'), options)
  return assemble.assemble(table, logs, options)


def statuses(imported):
  """The status of each run, None without a result."""
  return [run.result.status if run.result else None for run in imported.runs.values()]
