"""The runs that a sweep would reuse from other sweeps if it were started here, for a dry run."""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.common import app, start
from stability.config import Config
from stability.storage import reuse, run_files


def find(
    sweep: app.SweepRequest,
    waiting: Mapping[str, Config],
    workdir: Path | None,
    others: Sequence[Path],
    device: Mapping[str, str] | None,
) -> tuple[list[str], str]:
  """The names of these runs, and a line on them.

  The sweep is prepared in a temporary folder, since text, parents and limits must be equal, too.

  Args:
    sweep: the sweep.
    waiting: configs, by name, of its runs without a result.
    workdir: its folder, where some of these may have begun; None: it has none.
    others: workdirs of other sweeps.
    device: that the runs must have been trained on; see start.start.
  """
  runs = dataclasses.replace(sweep.runs, configs=dict(waiting))
  with tempfile.TemporaryDirectory() as folder:
    new = Path(folder) / 'DIR'
    prepared = start.prepare(dataclasses.replace(sweep, runs=runs), new)
    names = [name for name, *_ in reuse.reusable(new, prepared, others, device)]
    why = '' if names else f': {reuse.why_none(new, prepared, others, device)}'
  if workdir is not None:  # a run that has begun there is not replaced
    rows = {name: run_files.run_dir(workdir, name) / 'metrics.jsonl' for name in names}
    names = [name for name in names if not rows[name].exists()]
  return names, f'started here, it reuses {len(names):,} runs from other sweeps{why}'
