"""The Ray backend: each job is a task of a Ray cluster, this machine's own or one by address.

A task starts launch.work as a process of its own, which ends when the task does. A task whose
worker or node is lost is started again by Ray, and goes on from the checkpoints.
"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from launch.common import jobs, preemption
from launch.common.jobs import Needs
from stability.config import Config
from stability.errors import BadInput

FLAGS = ('ray_address',)
RETRIES = 10  # of a task, after as many workers, nodes or preemptions


class Preempted(Exception):
  """launch.work was told to leave."""


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines --ray_address."""
  flags.DEFINE_string(
      'ray_address',
      'local',
      'HOST:PORT of a Ray cluster, or auto; local: a new one on this machine',
      flag_values=flag_values,
  )


def check() -> None:
  """BadInput where there is no Ray."""
  if importlib.util.find_spec('ray') is None:
    raise BadInput("--backend=ray: Ray is not installed: pip install 'stability[ray]'")


def train(workdir: Path, waiting: Mapping[str, Config], needs: Needs, address: str) -> None:
  """Has a Ray cluster train the runs, and shows their progress."""
  os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')  # a sweep tells nobody of itself
  import ray

  workdir = workdir.absolute()
  divided = jobs.lists(workdir, waiting, needs)
  jobs.write_lists(divided)
  logs = workdir / 'ray'
  logs.mkdir(exist_ok=True)
  try:
    ray.init(
        address=address,
        log_to_driver=False,
        logging_level='ERROR',
        runtime_env={'env_vars': jobs.environment()},
        **({'include_dashboard': False} if address == 'local' else {}),
    )
  except Exception as error:  # Ray's own have no kind in common
    raise BadInput(f'--ray_address={address}: {error}') from error
  asked = {'CPU': needs.cpus or 1, 'GPU': needs.gpus, 'memory': int((needs.memory_gb or 0) * 1e9)}
  try:
    if not any(_has(node, asked) for node in ray.nodes()):
      print(
          f'no node of this Ray has {asked["CPU"]} CPUs, {asked["GPU"]} GPUs and'
          f' {asked["memory"] / 1e9:g} GB of memory for a job; the jobs wait for one',
          file=sys.stderr,
      )
    task = ray.remote(work).options(
        num_cpus=asked['CPU'],
        num_gpus=asked['GPU'],
        memory=asked['memory'] or None,
        max_retries=RETRIES,
        retry_exceptions=[Preempted],
    )
    command = jobs.command(workdir, needs)
    tasks = [
        task.remote([*command, f'--runs={path}', '--attached'], logs / f'{path.stem}.log')
        for path in divided
    ]

    def is_anybody_there() -> bool:
      return bool(ray.wait(tasks, num_returns=len(tasks), timeout=0)[1])

    jobs.watch(workdir, waiting, is_anybody_there, logs)
    for ended in ray.wait(tasks, num_returns=len(tasks), timeout=0)[0]:
      try:
        ray.get(ended)
      except Exception as error:  # of Ray's, or of a node that does not see the workdir
        print(f'a task of Ray failed: {error}', file=sys.stderr)
  finally:
    ray.shutdown()


def _has(node: Mapping[str, Any], asked: Mapping[str, int]) -> bool:
  """Whether a node could take a job if it had nothing else to do."""
  return node['Alive'] and all(node['Resources'].get(k, 0) >= v for k, v in asked.items())


def work(command: Sequence[str], log: Path) -> int:
  """What a task does: the exit code of a process that does not outlive it."""
  with log.open('ab') as output:
    process = subprocess.Popen(
        [sys.executable, *command[1:]],  # this node's
        stdin=subprocess.PIPE,  # closes with this process, however it ends
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    code = process.wait()
  if code == preemption.EXIT_CODE:
    raise Preempted
  return code
