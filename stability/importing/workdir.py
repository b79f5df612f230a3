"""Writes imported runs as a workdir, or updates one."""

import dataclasses
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stability import config as config_lib
from stability.errors import BadInput
from stability.importing.assemble import Imported, ImportedRun
from stability.importing.options import Options
from stability.importing.tables import parse_number
from stability.storage import files, run_files, sweeps
from stability.storage.files import Json

_WRITTEN = {'config.json', 'metrics.jsonl', 'result.json'}


def write(
    workdir: Path,
    imported: Imported,
    source: str,
    paths: Iterable[Path],
    options: Options,
) -> None:
  """Writes the files of a workdir; sweep.json last, so that an interrupted import leaves none.

  Args:
    workdir: a new or empty folder, or one with runs that were imported before. Those must still be
      among the runs, with the same learning rate, seed and size; their results may change. A run
      that was trained again is removed.
    imported: the runs.
    source: what the runs were read from, for the title of the report.
    paths: the files that were read.
    options: the user's.

  Raises:
    BadInput: the folder holds anything else.
  """
  stored = check(workdir, imported)
  sources = {'files': {str(path): files.sha256(path) for path in paths}, **_used(options)}
  for name, run in imported.runs.items():
    _write_run(run_files.run_dir(workdir, name), run)
  sweep = sweeps.Sweep(
      imported.fields,
      {name: config_lib.unflatten(run.config) for name, run in imported.runs.items()},
      config_file=source,
      scale='',
      overrides={},
      data={},
      versions={},
      report=stored.report if stored else {},
      parameters={n: r.parameters for n, r in imported.runs.items() if r.parameters is not None},
      origin=sweeps.IMPORTED,
      sources=sources,
  )
  files.write_json(workdir / 'sweep.json', sweep.to_json())
  for name in {*stored.runs} - {*imported.runs} if stored else ():
    if (run := run_files.run_dir(workdir, name)).exists():
      shutil.rmtree(run)


def check(workdir: Path, imported: Imported) -> sweeps.Sweep | None:
  """Raises BadInput unless the runs can be written; returns the sweep that is there, if any."""
  for name, run in imported.runs.items():
    if config_lib.flatten(config_lib.unflatten(_without_conflicts(run.config))) != run.config:
      raise BadInput(
          f'{name}: one of its arms has the name of a section of another; give it another with'
          ' --map=NAME=COLUMN'
      )
  sweeps.check_writable(workdir)
  files.refuse_links(workdir)
  files.refuse_links(workdir / 'runs')
  if not (workdir / 'sweep.json').exists():
    found = {path.name for path in workdir.glob('*')} | {
        path.name for path in workdir.glob('runs/*/*') if not path.name.startswith('.')
    }
    if found - {'runs', *_WRITTEN}:
      raise BadInput(f'--workdir={workdir}: is not empty and holds no runs; name a new folder')
    return None
  stored = sweeps.read_sweep(workdir)
  if stored.origin != sweeps.IMPORTED:
    raise BadInput(f'--workdir={workdir}: holds a sweep that was trained here; name a new folder')
  for name, config in stored.runs.items():
    if name not in imported.runs and name in imported.left_out:
      files.refuse_links(run_files.run_dir(workdir, name))
      continue
    if name not in imported.runs:
      raise BadInput(
          f'--workdir={workdir}: holds other runs: {name} is no longer among them; name a new'
          ' folder'
      )
    new = imported.runs[name]
    old = config_lib.flatten(config) | {'parameters': stored.parameters.get(name)}
    for field, value in {**new.config, 'parameters': new.parameters}.items():
      if field == 'seed' and imported.is_numbered:
        continue  # a further run of the cell may have got its number
      if field in old and not _is_same(old[field], value):
        raise BadInput(
            f'--workdir={workdir}: holds other runs: {name} had {field}={old[field]!r}, now'
            f' {value!r}; name a new folder'
        )
  return stored


def _is_same(old: Any, new: Any) -> bool:
  """Whether values are equal; the numbers of a column are text once any of its cells is."""
  if isinstance(old, str) != isinstance(new, str):
    return parse_number(old) == parse_number(new) is not None
  return old == new


def _without_conflicts(config: dict[str, Any]) -> dict[str, Any]:
  """The config without the fields that are a section of another field."""
  return {
      field: value
      for field, value in config.items()
      if not any(other.startswith(f'{field}.') for other in config)
  }


def _write_run(run: Path, imported: ImportedRun) -> None:
  files.refuse_links(run)
  files.write_json(run / 'config.json', config_lib.unflatten(imported.config))
  if imported.rows is not None:
    metrics, text = run / 'metrics.jsonl', imported.rows.to_text()
    if not metrics.exists() or metrics.read_bytes() != text.encode():
      (run / 'alarms.jsonl').unlink(missing_ok=True)  # those of other rows
      files.write_atomic(metrics, text)
  if imported.result is not None:
    run_files.write_result(run, imported.result)
  elif (run / 'result.json').exists():  # it is running again
    (run / 'result.json').unlink()


def _used(options: Options) -> Json:
  """The options that were given."""
  return {name: v for name, v in dataclasses.asdict(options).items() if v not in (None, {})}
