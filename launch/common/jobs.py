"""The jobs that the backends of a cluster place: each is launch.work over some runs of a sweep.

A job's runs are a list in DIR/jobs/DIGEST.json. A list never changes under its name, so that a job
which waits in a queue trains what it was submitted for, whatever is submitted after it.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from absl import flags

import launch
from launch.common.progress import Progress
from stability.config import Config
from stability.devices import cost
from stability.errors import BadInput
from stability.storage import files, run_files

POLL_SECONDS = 2.0  # between looks at the files of a sweep that others train
LAST_LINES = 20  # of a log
LOGGED_SECONDS = 120.0  # since its last line, for a run to count as running
FLAGS = ('jobs', 'job_cpus', 'job_gpus', 'job_memory_gb', 'job_minutes')
ROOT = Path(launch.__file__).absolute().parents[1]  # where python -m launch.work finds itself
USERS = ('JAX_PLATFORMS', 'XLA_FLAGS', 'XDG_CACHE_HOME')  # what of the user's a job needs to agree


@dataclasses.dataclass(frozen=True)
class Needs:
  """How many jobs, and what each of them asks for; None: what the cluster gives by default."""

  jobs: int
  cpus: int | None
  gpus: int
  memory_gb: float | None  # 10^9 bytes
  minutes: int | None

  @property
  def memory_mib(self) -> int | None:
    """As SLURM counts."""
    return None if self.memory_gb is None else math.ceil(self.memory_gb * 1e9 / 2**20)


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines what `needs` reads."""
  flags.DEFINE_integer(
      'jobs',
      8,
      'jobs that the runs are divided into, at most; like work each, the same executables together',
      lower_bound=1,
      upper_bound=10_000,
      flag_values=flag_values,
  )
  flags.DEFINE_integer(
      'job_cpus',
      None,
      'CPU cores of a job, and its workers where it asks for no GPUs',
      lower_bound=1,
      flag_values=flag_values,
  )
  flags.DEFINE_integer('job_gpus', 0, 'GPUs of a job', lower_bound=0, flag_values=flag_values)
  flags.DEFINE_float('job_memory_gb', None, '10^9 bytes of memory', flag_values=flag_values)
  flags.DEFINE_integer(
      'job_minutes',
      None,
      'after which the cluster may end a job; it goes on in another',
      lower_bound=1,
      flag_values=flag_values,
  )


def needs(flag_values: flags.FlagValues) -> Needs:
  """What the flags say; BadInput where they say nothing sensible."""
  memory_gb = flag_values['job_memory_gb'].value
  if memory_gb is not None and not 0 < memory_gb < math.inf:
    raise BadInput(f'--job_memory_gb={memory_gb}: must be a number above 0')
  return Needs(
      jobs=flag_values['jobs'].value,
      cpus=flag_values['job_cpus'].value,
      gpus=flag_values['job_gpus'].value,
      memory_gb=memory_gb,
      minutes=flag_values['job_minutes'].value,
  )


def lists(workdir: Path, configs: Mapping[str, Config], needs: Needs) -> dict[Path, list[str]]:
  """The runs divided into jobs: file -> the runs that it is to list."""
  found = {}
  for share in cost.shares(configs, needs.jobs):
    digest = hashlib.sha256(json.dumps(share).encode()).hexdigest()[:16]
    found[workdir / 'jobs' / f'{digest}.json'] = share
  return found


def write_lists(divided: Mapping[Path, Sequence[str]]) -> None:
  """Writes the lists, before the jobs that read them are placed."""
  for path, share in divided.items():
    files.write_json(path, share)


def listed(path: Path) -> list[str]:
  """The runs of a list."""
  try:
    names = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise BadInput(f'{path}: cannot be read: {error}') from error
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise BadInput(f'{path}: must be a JSON list of runs')
  return names


def command(workdir: Path, needs: Needs) -> list[str]:
  """Of a job, but for its --runs=FILE."""
  workers = [f'--workers={needs.cpus}'] if needs.cpus and not needs.gpus else []
  return [sys.executable, '-m', 'launch.work', f'--workdir={workdir}', *workers]


def environment() -> dict[str, str]:
  """The variables that a job needs wherever it runs."""
  folders = [str(ROOT), *os.environ.get('PYTHONPATH', '').split(os.pathsep)]
  path = os.pathsep.join(dict.fromkeys(filter(None, folders)))
  users = {name: os.environ[name] for name in USERS if name in os.environ}
  return {'PYTHONPATH': path, **users}


def watch(
    workdir: Path,
    configs: Mapping[str, Config],
    is_anybody_there: Callable[[], bool],
    logs: Path,
) -> None:
  """Shows the progress of runs that others train, until all are over or nobody is left.

  Args:
    workdir: of the sweep; all that is shown is read from it.
    configs: the runs that are not over.
    is_anybody_there: whether there are jobs, waiting or running.
    logs: folder of what the jobs print, *.log; the last words are shown of one that left its runs.
  """
  left = dict.fromkeys(configs)
  with Progress(workdir, configs) as progress:
    while True:
      there = is_anybody_there()  # asked first: what a job wrote before its end is seen below
      over = [n for n in left if (run_files.run_dir(workdir, n) / 'result.json').exists()]
      for name in over:
        del left[name]
      progress.show(_running(workdir, left), over)
      if progress.is_over():
        return
      if not there:
        break
      time.sleep(POLL_SECONDS)
  print('no job is left, and some runs are not over', file=sys.stderr)
  written = [path for path in logs.glob('*.log') if path.is_file()]
  newest = max(written, key=lambda path: path.stat().st_mtime, default=None)
  if newest is not None:
    words = newest.read_text(errors='replace').splitlines()[-LAST_LINES:]
    print(f'{newest} ends with:', *words, sep='\n', file=sys.stderr)


def _running(workdir: Path, names: Iterable[str]) -> list[str]:
  """Those of some runs that logged something not long ago."""
  found = []
  for name in names:
    with contextlib.suppress(FileNotFoundError):
      logged = (run_files.run_dir(workdir, name) / 'metrics.jsonl').stat().st_mtime
      if time.time() - logged < LOGGED_SECONDS:
        found.append(name)
  return found
