"""The copy of a config file's extensions in a workdir, with which a begun sweep continues."""

import sys
from collections.abc import Sequence
from pathlib import Path

from launch.common import app
from stability import extensions
from stability.errors import BadInput
from stability.storage import files
from stability.storage.files import Json


def check(sweep: app.SweepRequest, workdir: Path, kept: Json) -> None:
  """Raises BadInput if the runs of a begun sweep need more than its recorded extensions, `kept`."""
  if not sweep.extensions:
    return
  if not kept:
    raise BadInput(
        f'--workdir={workdir}: was begun without the extensions of {sweep.config_file}; choose a'
        ' new folder'
    )
  if lacking := extensions.lacking(kept, sweep.extensions, sweep.runs.configs.values()):
    raise BadInput(
        f'--workdir={workdir}: was begun before {sweep.config_file} added {", ".join(lacking)},'
        ' and continues with its own copy of the extensions; choose a new folder'
    )


def prepare(sweep: app.SweepRequest, workdir: Path, kept: Json, probes: Sequence[str]) -> Json:
  """Copies the sources of the sweep's extensions to a new workdir; returns their record.

  An existing workdir keeps its copy, with a warning if the sources have changed.

  Args:
    sweep: the sweep.
    workdir: its folder.
    kept: the record in sweep.json; empty if there is none.
    probes: the names of what the probes of the extensions measure.
  """
  current = sweep.extensions.to_json() if sweep.extensions else {}
  if kept:
    if kept['sha256'] != current.get('sha256'):
      print(
          f'warning: {sweep.config_file}: its extensions have changed since --workdir={workdir} was'
          f' begun, which continues with its own copy, {workdir / kept["folder"]}',
          file=sys.stderr,
      )
    extensions.check(workdir, kept)
    return kept
  if sweep.extensions:
    for name, content in sweep.extensions.files.items():
      files.write_atomic(workdir / sweep.extensions.folder / name, content)
    current |= {extensions.PROBES: list(probes)}
  return current
