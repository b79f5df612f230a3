"""Trains what of a sweep is not trained yet, from its folder alone: what a job of a cluster does.

  python -m launch.work --workdir=DIR [--runs=FILE.json | --share=I/N] [--workers=N]

launch.sweep, with any backend, has made DIR. FILE.json lists the runs to train; --share=0/4 ...
--share=3/4, one each on four machines that see DIR, train all of them. No report is written:
launch.report does that, and launch.sweep when all runs are over.

Exit codes are those of launch.sweep: 0 done, 1 some runs failed, 2 bad input, and 75 where SIGTERM
or SIGUSR1 told it to leave: the same command goes on from the checkpoints.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from absl import flags

from launch.backends import local
from launch.common import app, jobs, preemption, start
from stability import config as config_lib
from stability.config import Config
from stability.devices import cost
from stability.errors import BadInput
from stability.storage import files, run_files, schema, sweeps

FLAGS = flags.FlagValues()
_WORKDIR = app.define_workdir(FLAGS)
_WORKERS = start.define_workers(FLAGS)
_RUNS = flags.DEFINE_string('runs', None, 'JSON file, a list of runs', flag_values=FLAGS)
_SHARE = flags.DEFINE_string(
    'share', None, 'I/N: the I-th, from 0, of N shares of all runs', flag_values=FLAGS
)
_ATTACHED = flags.DEFINE_boolean(
    'attached', False, 'end when standard input closes: with whoever started it', flag_values=FLAGS
)


def main() -> int:
  """Trains its share."""
  workdir = Path(_WORKDIR.value)
  if _RUNS.value and _SHARE.value:
    raise BadInput('--runs, --share: must not be given together')
  sweep = sweeps.read_sweep(workdir)
  mine = _mine(workdir, sweep.runs)
  _check(workdir, sweep.data, mine)
  if _ATTACHED.value:
    preemption.end_with_input()
  waiting = sweeps.runs_to_train(workdir, mine)
  if waiting:
    start.warn_of_versions(workdir, sweep.versions)
    local.train(workdir, waiting, _WORKERS.value)
  results = [run_files.read_result(run_files.run_dir(workdir, name)) for name in mine]
  return 1 if any(result is None or result.status == 'failed' for result in results) else 0


def _check(workdir: Path, data: files.Json, mine: Mapping[str, Config]) -> None:
  """Refuses what no worker could train: nothing has made the folder anew, as launch.sweep does."""
  path = workdir / 'sweep.json'
  schema.check_data(path, data, ['path'])
  if not (workdir / data['path'] / 'meta.json').is_file():
    raise BadInput(f'{path}: its data, {data["path"]}, is not there; launch.sweep makes it')
  for name, config in mine.items():
    if not (run_files.run_dir(workdir, name) / 'config.json').is_file():
      raise BadInput(f'{path}: its run {name!r} has no folder; launch.sweep makes it')
    try:
      config_lib.resolve(config_lib.flatten(config))
    except BadInput as error:
      raise BadInput(f'{path}: its run {name!r}: {error}') from None


def _mine(workdir: Path, configs: Mapping[str, Config]) -> dict[str, Config]:
  """The runs to train: those listed, or of the share, and their forks."""
  names = list(configs)
  if _RUNS.value:
    names = _listed(Path(_RUNS.value), configs)
  if _SHARE.value:
    names = _shared(_SHARE.value, configs)
  mine = {name: configs[name] for name in names}
  forks = sweeps.read_forks(workdir)
  for name, config in sweeps.fork_configs(workdir).items():
    origin = name
    for _ in forks:  # no more often: files that somebody changed may name each other
      origin = forks[origin].run if origin in forks else origin
    if origin in mine:
      mine[name] = config
  return mine


def _listed(path: Path, configs: Mapping[str, Config]) -> list[str]:
  names = jobs.listed(path)
  for name in names:
    if name not in configs:
      raise BadInput(f'--runs={path}: {name!r} is no run of the sweep')
  return names


def _shared(share: str, configs: Mapping[str, Config]) -> list[str]:
  parts = re.fullmatch(r'([0-9]{1,6})/([0-9]{1,6})', share)
  index, count = map(int, parts.groups()) if parts else (0, 0)
  if index >= count:
    raise BadInput(f'--share={share}: must be I/N with I from 0 to N - 1')
  shares = cost.shares(configs, count)
  return shares[index] if index < len(shares) else []


if __name__ == '__main__':
  preemption.install()
  app.run(main, FLAGS)
