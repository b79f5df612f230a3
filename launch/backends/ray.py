"""The Ray backend: each job is a task of a Ray cluster, existing or started on this machine.

A task runs launch.work in a separate process, which saves its runs and ends when the task does. Ray
restarts a task that has lost its worker or node, and the task continues from the checkpoints. The
tasks end with the launcher, which cancels them and waits until they have saved their runs.
"""

import dataclasses
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch.common import jobs, preemption
from launch.common.jobs import Resources
from stability.config import Config
from stability.errors import BadInput

FLAGS = ('ray_address',)
_PREEMPTED = preemption.EXIT_CODE  # a number, since a task must not need this package
POLL_SECONDS = 0.2
RETRIES = 10  # maximum restarts of a task, after lost workers, lost nodes and preemptions


class Preempted(Exception):
  """launch.work was preempted and must be started again."""


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines --ray_address."""
  flags.DEFINE_string(
      'ray_address',
      'local',
      'HOST:PORT of a Ray cluster, or auto; local: a new cluster on this machine',
      flag_values=flag_values,
  )


def check_installed() -> None:
  """Raises BadInput if Ray is not installed."""
  if importlib.util.find_spec('ray') is None:
    raise BadInput("--backend=ray: Ray is not installed: pip install -e '.[ray]'")


def train(
    workdir: Path, configs: Mapping[str, Config], resources: Resources, address: str
) -> None:
  """Trains runs on a Ray cluster, and shows the progress."""
  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # no telemetry
  import ray

  workdir = workdir.absolute()
  resources = dataclasses.replace(resources, cpus=resources.cpus or 1)  # Ray's default
  lists = jobs.divide(workdir, configs, resources)
  jobs.write_lists(lists)
  grace = jobs.grace_seconds(configs, lists, resources)
  logs = workdir / 'ray'
  logs.mkdir(exist_ok=True)
  try:
    ray.init(
        address=address,
        log_to_driver=False,
        logging_level='ERROR',
        runtime_env={'env_vars': jobs.environment(resources)},
        **({'include_dashboard': False} if address == 'local' else {}),
    )
  except Exception as error:  # Ray's exceptions have no common base class
    raise BadInput(f'--ray_address={address}: {error}') from error
  preemption.install()  # Ray has replaced the handlers
  tasks = []
  memory = int((resources.memory_gb or 0) * 1e9)
  requested = {'CPU': resources.cpus, 'GPU': resources.gpus, 'memory': memory}
  try:
    if not any(_has(node, requested) for node in ray.nodes()):
      print(
          f'no node of this Ray cluster has {requested["CPU"]} CPUs, {requested["GPU"]} GPUs and'
          f' {memory / 1e9:g} GB of memory for a job; the jobs wait for one',
          file=sys.stderr,
      )
    # By value: a worker that imports this module may find another `launch` in the current folder.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    task = ray.remote(run_job).options(
        num_cpus=requested['CPU'],
        num_gpus=requested['GPU'],
        memory=memory or None,
        max_retries=RETRIES,
        retry_exceptions=[Preempted],
    )
    command = jobs.command(workdir, resources)
    tasks = [
        task.remote([*command, f'--runs={path}', '--attached'], logs / f'{path.stem}.log')
        for path in lists
    ]

    def has_jobs() -> bool:
      return bool(ray.wait(tasks, num_returns=len(tasks), timeout=0)[1])

    jobs.show_progress(workdir, configs, has_jobs, logs)
    for ended in ray.wait(tasks, num_returns=len(tasks), timeout=0)[0]:
      try:
        ray.get(ended)
      except Exception as error:  # of Ray, or an OSError of a node that cannot see the workdir
        print(f'a Ray task failed: {error}', file=sys.stderr)
  except (KeyboardInterrupt, preemption.Preempted):
    for waiting in tasks:
      ray.cancel(waiting)
    if tasks:
      ray.wait(tasks, num_returns=len(tasks), timeout=grace)
    raise
  finally:
    ray.shutdown()


def _has(node: Mapping[str, Any], requested: Mapping[str, int]) -> bool:
  """Whether a node, when idle, has the resources for a job."""
  return node['Alive'] and all(node['Resources'].get(k, 0) >= v for k, v in requested.items())


def run_job(command: Sequence[str], log: Path) -> int:
  """The body of a task: runs a job and returns its exit code; raises Preempted for code 75."""
  with log.open('ab') as output:
    process = subprocess.Popen(
        [sys.executable, *command[1:]],  # the interpreter of this node
        stdin=subprocess.PIPE,  # when it closes, as when this process ends, the job ends
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    try:
      while process.poll() is None:
        time.sleep(POLL_SECONDS)  # ray.cancel does not interrupt process.wait
    finally:
      process.stdin.close()
      code = process.wait()
  if code == _PREEMPTED:
    raise Preempted
  return code
