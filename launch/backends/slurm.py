"""The SLURM backend: an array of jobs, submitted by sbatch and followed by squeue.

What sbatch is to know goes by its command line, not by #SBATCH lines, so that no quoting but the
shell's matters. DIR/slurm/ holds the scripts, a log a job, and which lists the array of each name
is given: written before it is submitted, so that no job is unknown to the next launcher, wherever
this one is killed.
"""

import hashlib
import os
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

from launch.common import jobs
from launch.common.jobs import Needs
from stability.config import Config
from stability.errors import BadInput
from stability.storage import files

FLAGS = ('slurm_partition', 'slurm_account', 'slurm_options')
LEAST_MINUTES = 3  # of a job, which USR1@60 may reach two minutes before its end
QUEUE_SECONDS = 15.0  # between questions to the queue, which the cluster's users share
# Options that this module sets and relies on.
OURS = ('array', 'chdir', 'job-name', 'ntasks', 'open-mode', 'output', 'parsable', 'wrap')


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines what `options` reads."""
  flags.DEFINE_string('slurm_partition', None, 'partition of the jobs', flag_values=flag_values)
  flags.DEFINE_string('slurm_account', None, 'account of the jobs', flag_values=flag_values)
  flags.DEFINE_multi_string(
      'slurm_options',
      [],
      'one more option of sbatch, as in --slurm_options=--constraint=a100; may be repeated',
      flag_values=flag_values,
  )


def options(flag_values: flags.FlagValues) -> list[str]:
  """The user's options of sbatch."""
  found = []
  minutes = flag_values['job_minutes'].value
  if minutes is not None and minutes < LEAST_MINUTES:
    raise BadInput(
        f'--job_minutes={minutes}: must be {LEAST_MINUTES} or more; SLURM tells a job up to two'
        ' minutes before its end'
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
    if parts[1] in OURS:
      raise BadInput(f'--slurm_options={option}: --{parts[1]} is set by the backend')
    found.append(option)
  return found


def check() -> None:
  """BadInput where there is no SLURM."""
  if not shutil.which('sbatch'):
    raise BadInput('--backend=slurm: there is no sbatch here, start on a machine that submits jobs')


def script(lists: Sequence[Path], command: Sequence[str]) -> str:
  """The script of an array whose i-th task trains the i-th list."""
  environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(Path(__file__).parent),
      undefined=jinja2.StrictUndefined,
      keep_trailing_newline=True,
      autoescape=False,  # a shell script: every value goes through shlex.quote
  )
  environment.filters['quoted'] = lambda value: shlex.quote(str(value))
  return environment.get_template('slurm.sh.j2').render(
      lists=lists, command=command, environment=jobs.environment()
  )


def sbatch(
    workdir: Path, name: str, count: int, needs: Needs, options: Sequence[str]
) -> list[str]:
  """The command that submits the script that follows it."""
  asked = {
      'cpus-per-task': needs.cpus,
      'gpus-per-node': needs.gpus or None,
      'mem': None if needs.memory_mib is None else f'{needs.memory_mib}M',
      'time': needs.minutes,
  }
  return [
      *('sbatch', '--parsable', f'--job-name={name}', '--nodes=1', '--ntasks=1'),
      *(f'--array=0-{count - 1}', '--requeue', '--signal=USR1@60'),
      *(f'--chdir={workdir / "slurm"}', '--output=%A_%a.log', '--open-mode=append'),
      *(f'--{name}={value}' for name, value in asked.items() if value is not None),
      *options,
  ]


def show(
    workdir: Path, configs: Mapping[str, Config], needs: Needs, options: Sequence[str]
) -> None:
  """Prints what would be submitted for a sweep that is new."""
  divided = jobs.lists(workdir, configs, needs)
  text = script(list(divided), jobs.command(workdir, needs))
  command = sbatch(workdir, _name(text), len(divided), needs, options)
  print('\n' + shlex.join([*command, 'SCRIPT']))
  print('\nwith this SCRIPT:\n')
  print(text, end='')


def train(
    workdir: Path, waiting: Mapping[str, Config], needs: Needs, options: Sequence[str]
) -> None:
  """Submits the runs that are in no job's hands, and shows the progress of all."""
  workdir = workdir.absolute()
  queued = _queued(workdir)
  if queued is None:
    raise BadInput('--backend=slurm: squeue fails here, which runs have jobs cannot be told')
  in_hands = {name for path in queued for name in jobs.listed(path)}
  left = {name: config for name, config in waiting.items() if name not in in_hands}
  if left:
    _submit(workdir, left, needs, options)
  else:
    print(f'{len(queued)} jobs of before train what is left', file=sys.stderr)
  asked, there = time.monotonic(), True

  def is_anybody_there() -> bool:
    nonlocal asked, there
    if time.monotonic() - asked > QUEUE_SECONDS:
      there = _queued(workdir) != []  # a controller that does not answer says nothing
      asked = time.monotonic()
    return there

  try:
    jobs.watch(workdir, waiting, is_anybody_there, workdir / 'slurm')
  except KeyboardInterrupt:
    names = ','.join(entry['name'] for entry in _submitted(workdir))
    print(f'the jobs go on; scancel --name={names} ends them', file=sys.stderr)
    raise


def _submit(
    workdir: Path, left: Mapping[str, Config], needs: Needs, options: Sequence[str]
) -> None:
  divided = jobs.lists(workdir, left, needs)
  jobs.write_lists(divided)
  text = script(list(divided), jobs.command(workdir, needs))
  name = _name(text)
  path = workdir / 'slurm' / f'{name}.sh'
  files.write_atomic(path, text)
  entry = {'name': name, 'lists': [path.name for path in divided]}
  others = [other for other in _submitted(workdir) if other['name'] != name]
  files.write_lines(workdir / 'slurm' / 'jobs.jsonl', [*others, entry])
  # Those of a job that launch.sweep itself may be in are not the new jobs'.
  ours = {k: v for k, v in os.environ.items() if not k.startswith('SLURM_') or k == 'SLURM_CONF'}
  done = subprocess.run(
      [*sbatch(workdir, name, len(divided), needs, options), str(path)],
      env=ours,
      capture_output=True,
      text=True,
      check=False,
  )
  if done.returncode:
    raise BadInput(f'--backend=slurm: sbatch refuses: {done.stderr.strip()}')
  job = done.stdout.strip().split(';')[0]  # a cluster's name may follow
  logs = f'{workdir / "slurm" / job}_*.log'
  print(f'job {job}: {len(divided)} tasks for {len(left)} runs; logs: {logs}', file=sys.stderr)


def _name(text: str) -> str:
  """The name of the array with this script: no other workdir's, as the script has the lists."""
  return f'stability-{hashlib.sha256(text.encode()).hexdigest()[:16]}'


def _submitted(workdir: Path) -> list[files.Json]:
  return files.read_lines(workdir / 'slurm' / 'jobs.jsonl')


def _queued(workdir: Path) -> list[Path] | None:
  """The lists of the sweep's jobs that wait or run; None where SLURM does not tell."""
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
