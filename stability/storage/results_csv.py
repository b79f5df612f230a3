"""DIR/results.csv: a row per run of a sweep, with forks last.

The column `actions` counts the actions that changed the course of a run (run_files.COURSE_ACTIONS).
A run with such actions was not trained as its config says. `forked_from` names the run that a fork
was started from, and is empty for the runs of the sweep.
"""

import csv
import io
from pathlib import Path

from stability import config as config_lib
from stability.config import Config
from stability.errors import BadInput
from stability.storage import files, run_files, sweeps
from stability.storage.files import Json

_RESULT_COLUMNS = ('initial_loss', 'final_loss', 'steps', 'tokens', 'seconds', 'error')


def read_results(workdir: Path) -> list[Json]:
  """The rows of the sweep's runs, in order; the status of a run without a result is 'missing'."""
  sweep = sweeps.read_sweep(workdir)
  return [_row(workdir, sweep, name, name, config) for name, config in sweep.runs.items()]


def read_fork_results(workdir: Path) -> list[Json]:
  """The rows of the forks, which are excluded from the comparisons of the sweep.

  Swept fields have their values after the changes of the fork.
  """
  rows, forks = [], sweeps.read_forks(workdir)
  if not forks:
    return []
  sweep = sweeps.read_sweep(workdir)
  for name, fork in forks.items():
    config = run_files.read_config(run_files.run_dir(workdir, name))
    changed = config_lib.unflatten(config_lib.flatten(config) | fork.changes)
    row = _row(workdir, sweep, name, sweeps.origin(name, forks), changed)
    rows.append({**row, 'forked_from': fork.run})
  return rows


def write_results(workdir: Path, output: Path | None = None) -> Path:
  """Writes results.csv to the folder `output`, by default the workdir; returns its path."""
  folder = output or workdir
  files.refuse_links(folder)
  rows = [{**row, 'forked_from': ''} for row in read_results(workdir)]
  rows += read_fork_results(workdir)
  buffer = io.StringIO()
  writer = csv.DictWriter(buffer, rows[0].keys(), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  path = folder / 'results.csv'
  files.write_atomic(path, buffer.getvalue())
  return path


def _row(workdir: Path, sweep: sweeps.Sweep, name: str, origin: str, config: Config) -> Json:
  """The row of a run; the sweep's run `origin` has the same architecture."""
  run = run_files.run_dir(workdir, name)
  result = run_files.read_result(run)
  try:
    flat = config_lib.flatten(config)
    return {
        'run': name,
        'status': 'missing' if result is None else result.status,
        'parameters': _parameters(sweep, origin, config),
        'learning_rate': flat['optimizer.learning_rate'],
        'seed': flat['seed'],
        **{field: flat[field] for field in sweep.fields if field != 'seed'},
        **{key: getattr(result, key, None) for key in _RESULT_COLUMNS},
        'actions': run_files.count_course_actions(run),
    }
  except (KeyError, TypeError, AttributeError) as error:
    raise BadInput(f'{workdir}: the config of run {name!r} is damaged: {error}') from error


def _parameters(sweep: sweeps.Sweep, origin: str, config: Config) -> int | None:
  """The number of parameters of a run; None if those of an imported run are unknown."""
  if origin in sweep.parameters or sweep.is_imported:
    return sweep.parameters.get(origin)
  return config_lib.parameters(config)
