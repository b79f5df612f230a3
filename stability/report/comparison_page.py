"""The report that compares several sweeps on one page."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from stability.analysis import inert, lr_sensitivity, several_sweeps
from stability.analysis.results import Results
from stability.report import labels, leaderboard, page
from stability.report.options import Options
from stability.report.plots import selection
from stability.storage import files, schema, sweeps
from stability.storage.sweeps import Sweep


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Several sweeps, and how they differ."""

  workdirs: Mapping[str, Path]  # name -> folder of a sweep; the others are compared with the first
  sweeps: Mapping[str, Sweep]
  results: Results
  differing: str  # what their configs differ in, a sentence
  differences: several_sweeps.Differences


def compare(workdirs: Mapping[str, Path], options: Options) -> Comparison:
  """Loads sweeps, named as in Comparison; raises BadInput for damaged files."""
  contents = {name: sweeps.read_sweep(workdir) for name, workdir in workdirs.items()}
  for name, sweep in contents.items():
    if not sweep.is_imported:
      schema.check_data(workdirs[name] / 'sweep.json', sweep.data, schema.SHOWN)
  results = several_sweeps.load(workdirs)
  results = dataclasses.replace(results, interval=options.interval)
  return Comparison(
      workdirs,
      contents,
      results,
      differing(several_sweeps.differing(results, contents)),
      several_sweeps.differences(results),
  )


def write_comparison(compared: Comparison, output: Path, options: Options) -> Path:
  """Writes the report on several sweeps to a folder; returns the path of its index.html.

  Claims and predictions are left to the reports on the single sweeps.
  """
  results = compared.results
  table = lr_sensitivity.lr_sensitivity(results)
  curves = several_sweeps.load_curves(compared.workdirs, selection.probes(results))
  bigram = {sweep.data.get('bigram_loss') for sweep in compared.sweeps.values()}
  path = page.write_files(
      output,
      options,
      results,
      table,
      page.Content(
          shown=[
              *selection.loss_plots(results, table, bigram.pop() if len(bigram) == 1 else None),
              *selection.curve_plots(results, curves),
              *selection.probe_plots(results, curves),
          ],
          title=f'Training stability: {", ".join(compared.workdirs)}',
          differing=compared.differing,
          differences=compared.differences,
          board=leaderboard.section(results, _acted(compared), options.costs),
          facts={
              f'{heading} of {name}': entries
              for name, sweep in compared.sweeps.items()
              for heading, entries in page.facts(sweep).items()
          },
      ),
  )
  columns = ['run', 'sweep', 'status', 'parameters', 'learning_rate', 'seed']
  columns += [name for name in (*results.sizes, *results.groups) if name not in columns]
  columns += ['initial_loss', 'final_loss']
  files.write_atomic(output / 'results.csv', results.runs[columns].to_csv(index=False))
  return path


def _acted(compared: Comparison) -> pd.DataFrame:
  """How often interventions acted in the runs of all sweeps, see analysis/inert.py."""
  parts = []
  for name, workdir in compared.workdirs.items():
    acted = inert.load(workdir)
    parts.append(acted.assign(run=[f'{name}/{run}' for run in acted['run']]))
  return pd.concat(parts, ignore_index=True)


def differing(found: Mapping[str, list[list]]) -> str:
  """States what sweeps differ in: `... differ in: schedule.steps 400 / 1000`; empty: in nothing."""
  parts = [
      f'{field} {" / ".join(", ".join(map(labels.value, of_sweep)) for of_sweep in values)}'
      for field, values in found.items()
  ]
  return f'These sweeps differ in: {"; ".join(parts)}.' if parts else ''
