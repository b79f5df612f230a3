"""The SLURM backend: an array of jobs, submitted with sbatch and followed with squeue.

Options are passed on sbatch's command line, not in #SBATCH lines, so that only the shell's quoting
matters. DIR/slurm/ holds the scripts, a log per job, and jobs.jsonl, which names the lists of runs
of each array. An array's entry is written before the array is submitted, so that a later launcher
knows every job even if this launcher is killed in between.
"""

import hashlib
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from absl import flags

from launch.common import environment, jobs
from launch.common.jobs import Resources
from stability.config import Config
from stability.errors import BadInput
from stability.storage import files, run_files

FLAGS = ('slurm_partition', 'slurm_account', 'slurm_options')
MIN_MINUTES = 3  # minimum time limit: of three minutes, SLURM leaves one or two to train
MOST_GRACE = 1 / 3  # of a job's time limit
QUEUE_SECONDS = 15.0  # between calls of squeue, to spare the controller
# Options of sbatch that this module sets, and clusters: squeue would not show jobs of another one.
RESERVED = (
    'array', 'chdir', 'clusters', 'job-name', 'ntasks', 'open-mode', 'output', 'parsable', 'wrap'
)  # fmt: skip


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines the flags that `options` reads."""
  flags.DEFINE_string('slurm_partition', None, 'partition of the jobs', flag_values=flag_values)
  flags.DEFINE_string('slurm_account', None, 'account of the jobs', flag_values=flag_values)
  flags.DEFINE_multi_string(
      'slurm_options',
      [],
      'additional option of sbatch, such as --slurm_options=--constraint=a100; may be repeated',
      flag_values=flag_values,
  )


def options(flag_values: flags.FlagValues) -> list[str]:
  """The options of sbatch that the flags specify; BadInput if one is not allowed."""
  found = []
  minutes = flag_values['job_minutes'].value
  if minutes is not None and minutes < MIN_MINUTES:
    raise BadInput(
        f'--job_minutes={minutes}: must be at least {MIN_MINUTES}, so that a job trains before'
        ' SLURM tells it to save'
    )
  for name in ('partition', 'account'):
    value = flag_values[f'slurm_{name}'].value
    if value is not None:
      if not value or not value.isprintable():
        raise BadInput(f'--slurm_{name}={value!r}: must be a name')
      found.append(f'--{name}={value}')
  for option in flag_values['slurm_options'].value:
    parts = re.fullmatch(r'--([a-z][a-z-]*)(=.*)?', option)
    if not parts or not option.isprintable():
      raise BadInput(f'--slurm_options={option!r}: must be an option of sbatch, --NAME[=VALUE]')
    if parts[1] in RESERVED:
      raise BadInput(f'--slurm_options={option}: --{parts[1]} is set by the backend')
    found.append(option)
  return found


def check_installed() -> None:
  """Raises BadInput if there is no sbatch."""
  if not shutil.which('sbatch'):
    raise BadInput('--backend=slurm: there is no sbatch here; run this on a login node')


def script(workdir: Path, lists: Sequence[Path], resources: Resources) -> str:
  """The script of an array whose i-th task trains the runs of the i-th list."""
  templates = jinja2.Environment(
      loader=jinja2.FileSystemLoader(Path(__file__).parent),
      undefined=jinja2.StrictUndefined,
      keep_trailing_newline=True,
      autoescape=False,  # every value in the shell script goes through shlex.quote
  )
  templates.filters['quoted'] = lambda value: shlex.quote(str(value))
  return templates.get_template('slurm.sh.j2').render(
      lists=lists,
      command=jobs.command(workdir, resources),
      environment=jobs.environment(resources),
  )


def grace_seconds(
    configs: Mapping[str, Config], lists: Mapping[Path, Sequence[str]], resources: Resources
) -> int:
  """How long before a job's end SLURM signals it; warns if that may be too short to save runs."""
  needed = jobs.grace_seconds(configs, lists, resources)
  most = needed if resources.minutes is None else int(60 * resources.minutes * MOST_GRACE)
  if most < needed:
    print(
        f'warning: --job_minutes={resources.minutes}: a job may need {needed} s to save its runs,'
        f' and SLURM tells it {most} s before its end',
        file=sys.stderr,
    )
  return min(needed, most)


def sbatch(
    workdir: Path, name: str, count: int, grace: int, resources: Resources, options: Sequence[str]
) -> list[str]:
  """The command that submits an array, without the path of its script.

  Args:
    workdir: folder of the sweep.
    name: of the array.
    count: number of its tasks.
    grace: seconds before a task's end at which it is told to save its runs.
    resources: of each task.
    options: further options of sbatch.
  """
  requested = {
      'cpus-per-task': resources.cpus,
      'gpus-per-node': resources.gpus or None,
      'mem': None if resources.memory_mib is None else f'{resources.memory_mib}M',
      'time': resources.minutes,
  }
  return [
      *('sbatch', '--parsable', f'--job-name={name}', '--nodes=1', '--ntasks=1'),
      *(f'--array=0-{count - 1}', '--requeue', f'--signal=USR1@{grace}'),
      *(f'--chdir={workdir / "slurm"}', '--output=%A_%a.log', '--open-mode=append'),
      *(f'--{option}={value}' for option, value in requested.items() if value is not None),
      *options,
  ]


def show(
    workdir: Path, configs: Mapping[str, Config], resources: Resources, options: Sequence[str]
) -> None:
  """Prints what would be submitted for a new sweep."""
  lists = jobs.divide(workdir, configs, resources)
  text = script(workdir, list(lists), resources)
  grace = grace_seconds(configs, lists, resources)
  command = sbatch(workdir, _name(text), len(lists), grace, resources, options)
  print('\n' + shlex.join([*command, 'SCRIPT']))
  print('\nwith this SCRIPT:\n')
  print(text, end='')


def not_retried(workdir: Path) -> list[str]:
  """The failed runs that a pending or running job still has in its list; prints their names."""
  found = {name: run_files.read_result(run_files.run_dir(workdir, name)) for name in _runs(workdir)}
  failed = sorted(name for name, result in found.items() if result and result.status == 'failed')
  if failed:
    print(
        f'failed: {", ".join(failed)}; once the jobs that have them in their lists have ended, the'
        ' same command tries them again',
        file=sys.stderr,
    )
  return failed


def _runs(workdir: Path) -> set[str]:
  """The runs in the lists of pending and running jobs; BadInput if these are not known."""
  queued = _queued(workdir)
  if queued is None:
    raise BadInput('--backend=slurm: squeue failed, so it is unknown which runs already have jobs')
  return {name for path in queued for name in jobs.read_list(path)}


def train(
    workdir: Path, configs: Mapping[str, Config], resources: Resources, options: Sequence[str]
) -> None:
  """Submits jobs for the runs that have none yet, and shows the progress of all runs."""
  workdir = workdir.absolute()
  earlier = _runs(workdir)
  left = {name: config for name, config in configs.items() if name not in earlier}
  if left:
    _submit(workdir, left, resources, options)
  else:
    print('earlier jobs train the remaining runs', file=sys.stderr)
  last_call, is_active = time.monotonic(), True

  def has_jobs() -> bool:
    nonlocal last_call, is_active
    if time.monotonic() - last_call > QUEUE_SECONDS:
      is_active = _queued(workdir) != []  # if squeue fails, assume that there are jobs
      last_call = time.monotonic()
    return is_active

  try:
    jobs.show_progress(workdir, configs, has_jobs, workdir / 'slurm')
  except KeyboardInterrupt:
    names = ','.join(entry['name'] for entry in _submitted(workdir))
    print(f'the jobs continue; to end them: scancel --name={names}', file=sys.stderr)
    raise


def _submit(
    workdir: Path, configs: Mapping[str, Config], resources: Resources, options: Sequence[str]
) -> None:
  lists = jobs.divide(workdir, configs, resources)
  jobs.write_lists(lists)
  grace = grace_seconds(configs, lists, resources)
  text = script(workdir, list(lists), resources)
  name = _name(text)
  path = workdir / 'slurm' / f'{name}.sh'
  files.write_atomic(path, text)
  entry = {'name': name, 'lists': [path.name for path in lists]}
  others = [other for other in _submitted(workdir) if other['name'] != name]
  files.write_lines(workdir / 'slurm' / 'jobs.jsonl', [*others, entry])
  # If launch.sweep itself runs in a job, that job's variables must not reach the new jobs.
  variables = {
      key: value
      for key, value in environment.of_user().items()
      if not key.startswith('SLURM_') or key == 'SLURM_CONF'
  }
  done = subprocess.run(
      [*sbatch(workdir, name, len(lists), grace, resources, options), str(path)],
      env=variables,
      capture_output=True,
      text=True,
      check=False,
  )
  if done.returncode:
    raise BadInput(f'--backend=slurm: sbatch failed: {done.stderr.strip()}')
  job = done.stdout.strip().split(';')[0]  # `;CLUSTER` may follow the job ID
  logs = f'{workdir / "slurm" / job}_*.log'
  print(f'job {job}: {len(lists)} tasks for {len(configs)} runs; logs: {logs}', file=sys.stderr)


def _name(text: str) -> str:
  """The name of the array with this script; unique, as the script contains paths of the workdir."""
  return f'stability-{hashlib.sha256(text.encode()).hexdigest()[:16]}'


def _submitted(workdir: Path) -> list[files.Json]:
  return files.read_lines(workdir / 'slurm' / 'jobs.jsonl')


def _queued(workdir: Path) -> list[Path] | None:
  """The lists of runs of the sweep's pending and running jobs; None if squeue fails."""
  lists = {
      f'{entry["name"]}_{index}': workdir / 'jobs' / name
      for entry in _submitted(workdir)
      for index, name in enumerate(entry['lists'])
  }
  if not lists:
    return []
  command = ['squeue', '--me', '--noheader', '--array', '--format=%j_%K']
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    return None
  return [lists[task] for task in done.stdout.split() if task in lists]
