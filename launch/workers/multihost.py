"""Training of one run on the devices of several processes, each of which runs launch.train.

The processes, on one or more hosts, find each other by flags or, with --multihost=auto, by the
environment variables that SLURM's srun or GKE sets. Process 0 prepares the data, writes the
run's files and the report; the others only contribute their devices. All must see the same
workdir. The workers of all processes wait for each other before they read the workdir.
"""

import dataclasses
import json
import math
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

from launch.common import environment, preemption
from launch.workers import shares
from launch.workers.worker_process import WorkerProcess
from stability.errors import BadInput
from stability.storage import run_files

FLAGS = ('coordinator_address', 'num_processes', 'process_id')
POLL_SECONDS = 0.2
RESULT_SECONDS = 60  # how long to wait for a result on a shared file system
# The variables by which jax recognises a task that srun has started.
_SRUN = {'SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'}


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
  """The processes that share a run, seen from one of them."""

  process_id: int  # index of this process
  arguments: Mapping[str, Any]  # of jax.distributed.initialize; jax finds missing ones

  def worker_flags(self) -> list[str]:
    """The flags with which a worker joins the group."""
    return [f'--distributed={json.dumps(self.arguments)}']


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines the flags that `find` reads."""
  address, count, number = FLAGS
  flags.DEFINE_string(
      address,
      None,
      'HOST:PORT of process 0, if one run uses the devices of several processes',
      flag_values=flag_values,
  )
  flags.DEFINE_integer(
      count, None, 'number of processes that share the run', lower_bound=1, flag_values=flag_values
  )
  flags.DEFINE_integer(
      number, None, 'index of this process, from 0', lower_bound=0, flag_values=flag_values
  )
  flags.DEFINE_enum(
      'multihost',
      None,
      ('auto', 'none'),
      'auto: share the run with the other tasks of srun or TPU hosts of a job of GKE; none: train'
      ' alone',
      flag_values=flag_values,
  )


def find(flag_values: flags.FlagValues) -> ProcessGroup | None:
  """The process group given by flags or environment; None if this process trains alone.

  The environment is used only on request: its variables are also set in an interactive shell of
  srun, where a process would wait forever for others.
  """
  given = {name: flag_values[name].value for name in FLAGS}
  missing = [name for name in FLAGS if given[name] is None]
  mode = flag_values['multihost'].value
  if len(missing) == len(FLAGS):
    group = _from_environment(os.environ) if mode != 'none' else None
    if group and not mode:
      raise BadInput(
          '--multihost: missing; SLURM or GKE has started several processes: must be auto if'
          ' they share the run, otherwise none'
      )
    if mode == 'auto' and not group:
      raise BadInput(
          '--multihost=auto: neither srun nor GKE (TPU_WORKER_HOSTNAMES) has started several'
          f' processes here; elsewhere, give --{", --".join(FLAGS)}'
      )
    return group
  if mode:
    raise BadInput(f'--multihost={mode}: must not be given with --{FLAGS[0]}')
  if missing:
    raise BadInput(f'--{missing[0]}: missing; {", ".join(FLAGS)} must be given together')
  if given['process_id'] >= given['num_processes']:
    raise BadInput(
        f'--process_id={given["process_id"]}: must be below'
        f' --num_processes={given["num_processes"]}'
    )
  host, _, port = given['coordinator_address'].rpartition(':')
  if not host or not (port.isdecimal() and 1 <= int(port) <= 65535):
    raise BadInput(
        f'--coordinator_address={given["coordinator_address"]}: must be HOST:PORT, with a port from'
        ' 1 to 65535'
    )
  return ProcessGroup(given['process_id'], given | _local_gpus(os.environ))


def _from_environment(variables: Mapping[str, str]) -> ProcessGroup | None:
  # As jax does, this recognises a step started by srun, but not the script of a batch job.
  if variables.keys() >= _SRUN and int(variables['SLURM_NTASKS']) > 1:
    return ProcessGroup(int(variables['SLURM_PROCID']), _local_gpus(variables))
  # Of a pod of TPUs, GKE says the hosts of a slice, and of several slices their number and its own.
  hosts = variables.get('TPU_PROCESS_ADDRESSES') or variables.get('TPU_WORKER_HOSTNAMES', '')
  per_slice, slices = hosts.count(',') + 1, int(variables.get('MEGASCALE_NUM_SLICES') or 1)
  if hosts and per_slice * slices > 1 and 'TPU_WORKER_ID' in variables:
    number = int(variables.get('MEGASCALE_SLICE_ID') or 0) * per_slice
    return ProcessGroup(number + int(variables['TPU_WORKER_ID']), {})
  return None


def _local_gpus(variables: Mapping[str, str]) -> dict[str, list[int]]:
  """The GPUs of a task of srun, by the name that jax.distributed gives them.

  Empty where jax is right: it takes one GPU per task, the one with the task's number on its node.
  """
  if not variables.keys() >= _SRUN or environment.accelerator() not in ('cuda', 'gpu'):
    return {}
  tasks, gpus = _tasks_here(variables), len(environment.gpus())
  if tasks == 1 or gpus == 1 or 'SLURM_GPUS_PER_TASK' in variables:
    return {'local_device_ids': list(range(gpus))}
  if tasks != gpus:
    raise BadInput(
        f'srun: {tasks} tasks on a node, each of which sees {gpus} GPUs: must be one task per'
        ' node, one per GPU, or tasks with --gpus-per-task'
    )
  return {}


def _tasks_here(variables: Mapping[str, str]) -> int:
  """The number of tasks on this node; that of each node is given as, for example, 8(x2),1."""
  counts: list[int] = []
  for part in variables['SLURM_STEP_TASKS_PER_NODE'].split(','):
    count, _, times = part.rstrip(')').partition('(x')
    counts += [int(count)] * int(times or 1)
  return counts[int(variables['SLURM_NODEID'])]


def contribute_devices(workdir: Path, name: str, group: ProcessGroup) -> int:
  """Trains a run in a process other than process 0; returns the exit code.

  If any process of the group is told to end, all workers save the run and end together.
  """
  environment.check()
  run = run_files.run_dir(workdir, name)
  result = run_files.read_result(run)
  if result is not None and result.status != 'failed':
    return 0
  with preemption.deferred() as is_preempted:
    (share,) = shares.divide(1)
    worker = WorkerProcess(workdir, share, group.worker_flags())
    refusals: list[str] = []
    serving = threading.Thread(target=_serve, args=(worker, name, refusals), daemon=True)
    serving.start()
    threading.Thread(target=_print_output, args=(worker,), daemon=True).start()
    try:
      told = math.inf
      while serving.is_alive():
        if time.monotonic() - told > preemption.grace_seconds(worker.saving):
          break
        serving.join(POLL_SECONDS)
        if is_preempted() and told == math.inf:
          worker.send({'stop': True})
          told = time.monotonic()
      if is_preempted() or worker.has_saved():
        return preemption.EXIT_CODE
      if refusals:
        raise BadInput(refusals[0])
      result = _await_result(run)
    finally:
      worker.kill()
      worker.wait()
  return 0 if result is not None and result.status != 'failed' else 1


def _serve(worker: WorkerProcess, name: str, refusals: list[str]) -> None:
  """Answers the worker's first request with the run; returns when the worker is done with it.

  Input that the worker cannot use is added to `refusals`.
  """
  is_assigned = False
  for request in worker.requests():
    if 'bad_input' in request:
      refusals.append(request['bad_input'])
    if is_assigned or refusals:
      return
    worker.send({'run': name})
    is_assigned = True
  worker.wait()


def _print_output(worker: WorkerProcess) -> None:
  for line in worker.output():
    print(line, file=sys.stderr, flush=True)


def _await_result(run: Path) -> run_files.Result | None:
  """The result that process 0 writes; None if it does not appear in RESULT_SECONDS."""
  for _ in range(RESULT_SECONDS):
    if (result := run_files.read_result(run)) is not None:
      return result
    time.sleep(1)
  return None
