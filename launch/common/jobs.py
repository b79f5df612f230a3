"""Jobs of a cluster's scheduler, each of which runs launch.work on some runs of a sweep.

The runs of a job are listed in DIR/jobs/DIGEST.json. The content of such a file never changes, so a
queued job trains the runs that it was submitted for, whatever is submitted later.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from absl import flags

from launch.common import environment as environment_lib
from launch.common import preemption, programs
from launch.common.progress import Progress
from stability import settings
from stability.config import Config
from stability.devices import cost, placement, shapes
from stability.errors import BadInput
from stability.storage import files, run_files

POLL_SECONDS = 2.0  # between reads of the sweep's files
# By default, NFS may take this long to show a file that another machine has written.
LATE_SECONDS = 60.0
LOG_LINES = 20  # number of last lines to show of a log if runs are left unfinished
RECENT_SECONDS = 120.0  # a run counts as running for this long after its last row
FLAGS = ('jobs', 'job_cpus', 'job_gpus', 'job_memory_gb', 'job_minutes')
MOST_MEMORY_GB = 1_000_000  # of a job; more is a mistake
# Estimates of the states that a job saves when it is told to end.
BYTES_PER_PARAMETER = 16  # 12 with AdamW, and room for the embedding
GPU_BYTES = 40e9  # of all runs that share a GPU, at most: half of 80 GB, the rest is activations
# Environment variables of the user that jobs inherit, beside the settings that change numbers.
PLATFORMS = ('JAX_PLATFORMS', 'JAX_PLATFORM_NAME')
FOLDERS = ('JAX_COMPILATION_CACHE_DIR', 'XDG_CACHE_HOME')  # jobs start in another folder than this
INHERITED = (*PLATFORMS, *FOLDERS, 'XLA_FLAGS')
CLIENT = ('XLA_CLIENT_', 'XLA_PYTHON_CLIENT_')  # prefixes of jax's settings of a GPU's memory


@dataclasses.dataclass(frozen=True)
class Resources:
  """The number of jobs and the resources of each; None: the cluster's default."""

  jobs: int
  cpus: int | None
  gpus: int
  memory_gb: float | None  # 10^9 bytes
  minutes: int | None

  @property
  def memory_mib(self) -> int | None:
    """Memory in SLURM's unit, 2^20 bytes."""
    return None if self.memory_gb is None else math.ceil(self.memory_gb * 1e9 / 2**20)


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines the flags that `resources` reads."""
  flags.DEFINE_integer(
      'jobs',
      8,
      'maximum number of jobs; they have similar work, and most runs with the same executables'
      ' share a job',
      lower_bound=1,
      upper_bound=10_000,
      flag_values=flag_values,
  )
  flags.DEFINE_integer(
      'job_cpus',
      None,
      'CPU cores per job; without GPUs, also the number of its workers. Default: 1 with Ray,'
      " otherwise the scheduler's",
      lower_bound=1,
      flag_values=flag_values,
  )
  flags.DEFINE_integer('job_gpus', 0, 'GPUs per job', lower_bound=0, flag_values=flag_values)
  flags.DEFINE_float(
      'job_memory_gb', None, 'memory per job in 10^9 bytes', flag_values=flag_values
  )
  flags.DEFINE_integer(
      'job_minutes',
      None,
      'time limit of a job; another job continues its runs',
      lower_bound=1,
      flag_values=flag_values,
  )


def resources(flag_values: flags.FlagValues) -> Resources:
  """The resources that the flags specify."""
  memory_gb = flag_values['job_memory_gb'].value
  if memory_gb is not None and not 0 < memory_gb <= MOST_MEMORY_GB:
    raise BadInput(
        f'--job_memory_gb={memory_gb}: must be a number above 0, at most {MOST_MEMORY_GB:,}'
    )
  return Resources(
      jobs=flag_values['jobs'].value,
      cpus=flag_values['job_cpus'].value,
      gpus=flag_values['job_gpus'].value,
      memory_gb=memory_gb,
      minutes=flag_values['job_minutes'].value,
  )


def divide(
    workdir: Path, configs: Mapping[str, Config], resources: Resources
) -> dict[Path, list[str]]:
  """Divides runs into jobs; returns, for each job, the file of its list and the runs in it."""
  lists = {}
  for names in cost.shares(configs, resources.jobs):
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:16]
    lists[workdir / 'jobs' / f'{digest}.json'] = names
  return lists


def write_lists(lists: Mapping[Path, Sequence[str]]) -> None:
  """Writes the lists of jobs; must be called before the jobs are submitted."""
  for path, names in lists.items():
    files.write_json(path, names)


def read_list(path: Path) -> list[str]:
  """The names of the runs in a job's list; BadInput if the file is not such a list."""
  try:
    names = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError) as error:
    raise BadInput(f'{path}: cannot be read: {error}') from error
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise BadInput(f'{path}: must be a JSON list of run names')
  return names


def grace_seconds(
    configs: Mapping[str, Config], lists: Mapping[Path, Sequence[str]], resources: Resources
) -> int:
  """How long a job may take to save the runs that it trains at once, if it is told to end."""
  shapes.trace_on_cpu()
  return max(
      preemption.grace_seconds(_saved_together([configs[name] for name in names], resources))
      for names in lists.values()
  )


def _saved_together(configs: Sequence[Config], resources: Resources) -> list[float]:
  """The bytes of the largest states that a job may hold at once."""
  sizes = sorted((BYTES_PER_PARAMETER * shapes.parameters(c) for c in configs), reverse=True)
  if not resources.gpus:
    return sizes[: resources.cpus or 1]  # one run per worker
  fit = sum(total <= GPU_BYTES * resources.gpus for total in itertools.accumulate(sizes))
  return sizes[: max(1, min(fit, placement.MOST_MEMBERS * resources.gpus))]


def command(workdir: Path, resources: Resources) -> list[str]:
  """The command of a job, without --runs=FILE."""
  workers = [f'--workers={resources.cpus}'] if resources.cpus and not resources.gpus else []
  return [*programs.command('launch.work'), f'--workdir={workdir}', *workers]


def environment(resources: Resources) -> dict[str, str]:
  """The environment variables that a job needs wherever it runs."""
  given = environment_lib.of_user()  # not what is right on this machine alone
  folders = [programs.ROOT, *filter(None, given.get('PYTHONPATH', '').split(os.pathsep))]
  path = os.pathsep.join(dict.fromkeys(map(os.path.abspath, folders)))
  client = [name for name in given if name.startswith(CLIENT)]
  names = dict.fromkeys((*INHERITED, *client, *settings.recorded(given)))
  inherited = {name: given[name] for name in names if name in given}
  for name in inherited.keys() & set(FOLDERS):
    if '://' not in inherited[name]:  # a URL of a store
      inherited[name] = os.path.abspath(inherited[name])
  if resources.gpus and not given.keys() & set(PLATFORMS):
    inherited['JAX_PLATFORMS'] = 'cuda'  # a node without a GPU must not train on its CPU
  return {'PYTHONPATH': path, **inherited}


def show_progress(
    workdir: Path, configs: Mapping[str, Config], has_jobs: Callable[[], bool], logs: Path
) -> None:
  """Shows the progress of runs that jobs train, until all are finished or no job is left.

  Results may appear up to LATE_SECONDS after the last job.

  Args:
    workdir: folder of the sweep; everything shown is read from its files.
    configs: the unfinished runs, by name.
    has_jobs: returns whether any jobs are pending or running.
    logs: folder with the output of jobs, *.log. If runs are left unfinished, the end of the newest
      log is shown.
  """
  unfinished = dict.fromkeys(configs)
  last_active = time.monotonic()
  with Progress(workdir, configs) as progress:
    while True:
      if has_jobs():  # called before the files are read, so that no result is missed
        last_active = time.monotonic()
      finished = [
          name
          for name in unfinished
          if (run_files.run_dir(workdir, name) / 'result.json').exists()
      ]
      for name in finished:
        del unfinished[name]
      progress.update(_running(workdir, unfinished), finished)
      if progress.is_finished():
        return
      if time.monotonic() - last_active > LATE_SECONDS:
        break
      time.sleep(POLL_SECONDS)
  print('no job is left, but some runs are unfinished', file=sys.stderr)
  try:
    written = [path for path in logs.glob('*.log') if path.is_file()]
    newest = max(written, key=lambda path: path.stat().st_mtime, default=None)
    if newest is not None:
      lines = newest.read_text(errors='replace').splitlines()[-LOG_LINES:]
      print(f'{newest} ends with:', *lines, sep='\n', file=sys.stderr)
  except OSError as error:  # of another user, or on a node that is gone
    print(f'warning: the logs of jobs cannot be read: {error}', file=sys.stderr)


def _running(workdir: Path, names: Iterable[str]) -> list[str]:
  """The runs that have logged a row recently."""
  found = []
  for name in names:
    with contextlib.suppress(FileNotFoundError):
      logged = (run_files.run_dir(workdir, name) / 'metrics.jsonl').stat().st_mtime
      if time.time() - logged < RECENT_SECONDS:
        found.append(name)
  return found
