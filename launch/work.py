"""Trains unfinished runs of a sweep from its workdir alone, as the jobs of a cluster do.

  python -m launch.work --workdir=DIR [--runs=FILE.json | --share=I/N] [--workers=N]

DIR was created by launch.sweep, with any backend. FILE.json lists the runs to train. --share=0/4 to
--share=3/4, on four machines that see DIR, together train all runs. No report is written; to write
one, use launch.report, or launch.sweep once all runs are finished.

Exit codes are those of launch.sweep: 0 done, 1 some runs failed, 2 bad input, 75 preempted by
SIGTERM, SIGUSR1 or SIGHUP, in which case the same command continues from the checkpoints.
"""

# First, since launch.common may have to mend sys.path, and the other imports take a second.
from launch.common import preemption

if __name__ == '__main__':
  preemption.install()

import re
from collections.abc import Mapping
from pathlib import Path

from absl import flags

from launch.backends import local
from launch.common import app, environment, jobs, path_flags, start
from stability.config import Config
from stability.devices import cost
from stability.errors import BadInput
from stability.storage import run_files, sweeps

FLAGS = flags.FlagValues()
_WORKDIR = app.define_workdir(FLAGS)
_WORKERS = start.define_workers(FLAGS)
_ATTACHED = start.define_attached(FLAGS)
_RUNS = path_flags.define('runs', None, 'JSON file with the list of runs to train', FLAGS)
_SHARE = flags.DEFINE_string(
    'share', None, 'I/N: train the I-th (from 0) of N shares of all runs', flag_values=FLAGS
)


def main() -> int:
  """Trains the selected runs."""
  if _ATTACHED.value:
    preemption.end_with_stdin()
  workdir = Path(_WORKDIR.value)
  if _RUNS.value and _SHARE.value:
    raise BadInput('--runs, --share: must not be given together')
  environment.check()
  local.check(_WORKERS.value)
  sweeps.refuse_imported(workdir)
  sweep = sweeps.read_sweep(workdir)
  selected = _select(workdir, sweep.runs)
  sweeps.check_data(workdir, sweep)
  for name, config in selected.items():
    sweeps.check_run(workdir, name, config)
  unfinished = sweeps.runs_to_train(workdir, selected)
  if unfinished:
    start.warn_of_versions(workdir, sweep.versions)
    local.train(workdir, unfinished, _WORKERS.value, owned=selected)
  results = [run_files.read_result(run_files.run_dir(workdir, name)) for name in selected]
  return 1 if any(result is None or result.status == 'failed' for result in results) else 0


def _select(workdir: Path, configs: Mapping[str, Config]) -> dict[str, Config]:
  """The runs that the flags select, and their forks; a list may name forks, too."""
  fork_configs = sweeps.fork_configs(workdir)
  selected = dict(configs)
  if _RUNS.value:
    selected = _listed(Path(_RUNS.value), {**configs, **fork_configs})
  if _SHARE.value:
    selected = {name: configs[name] for name in _share(_SHARE.value, configs)}
  forks = sweeps.read_forks(workdir)
  added = {n: c for n, c in fork_configs.items() if sweeps.descends(n, forks, selected)}
  return selected | added


def _listed(path: Path, configs: Mapping[str, Config]) -> dict[str, Config]:
  names = jobs.read_list(path)
  for name in names:
    if name not in configs:
      raise BadInput(f'--runs={path}: {name!r} is not a run of the sweep')
  return {name: configs[name] for name in names}


def _share(share: str, configs: Mapping[str, Config]) -> list[str]:
  parts = re.fullmatch(r'([0-9]{1,6})/([0-9]{1,6})', share)
  index, count = map(int, parts.groups()) if parts else (0, 0)
  if index >= count:
    raise BadInput(f'--share={share}: must be I/N with I from 0 to N - 1')
  shares = cost.shares(configs, count)
  return shares[index] if index < len(shares) else []


if __name__ == '__main__':
  app.run(main, FLAGS)
