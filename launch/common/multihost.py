"""One run on the devices of several processes, a host or more: launch.train started on each.

The processes find each other by flags, or, asked by --multihost=auto, by what SLURM's srun or a TPU
pod says in the environment. The first prepares the data, writes the run's files and reports; the
others lend their devices. All see one workdir. Workers wait for each other before they read it.
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
from launch.workers.worker_process import WorkerProcess
from stability.errors import BadInput
from stability.storage import files, run_files

NAMES = ('coordinator_address', 'num_processes', 'process_id')
POLL_SECONDS = 0.2
RESULT_SECONDS = 60  # that a result may take to be seen on a shared file system


@dataclasses.dataclass(frozen=True)
class Processes:
  """Which of the processes that share a run this is."""

  process_id: int
  arguments: Mapping[str, Any]  # of jax.distributed.initialize; what is left out jax finds itself

  def worker_flags(self) -> list[str]:
    """The flags of launch.workers.worker that let it join the others."""
    return [f'--distributed={json.dumps(self.arguments)}']


def define_flags(flag_values: flags.FlagValues) -> None:
  """Defines the flags that `find` reads."""
  address, count, number = NAMES
  flags.DEFINE_string(
      address,
      None,
      'HOST:PORT of process 0, where one run takes the devices of several processes',
      flag_values=flag_values,
  )
  flags.DEFINE_integer(
      count, None, 'processes that share the run', lower_bound=1, flag_values=flag_values
  )
  flags.DEFINE_integer(
      number, None, 'which of them this is, from 0', lower_bound=0, flag_values=flag_values
  )
  flags.DEFINE_enum(
      'multihost',
      None,
      ('auto', 'none'),
      'auto: share the run with the other tasks of srun or hosts of the TPU pod; none: train alone',
      flag_values=flag_values,
  )


def find(flag_values: flags.FlagValues) -> Processes | None:
  """By the flags, which may ask the environment; None: this process is the only one.

  The environment alone does not decide: a shell of srun's has its variables too, and a process in
  it that waits for others waits in vain.
  """
  given = {name: flag_values[name].value for name in NAMES}
  missing = [name for name in NAMES if given[name] is None]
  asked = flag_values['multihost'].value
  if len(missing) == len(NAMES):
    found = _from_environment(os.environ) if asked != 'none' else None
    if found and not asked:
      raise BadInput(
          '--multihost: missing; SLURM or a TPU pod has started several processes: auto, if they'
          ' are to share the run, or none'
      )
    if asked == 'auto' and not found:
      raise BadInput('--multihost=auto: neither SLURM nor a TPU pod has started several processes')
    return found
  if asked:
    raise BadInput(f'--multihost={asked}: must not be given with --{next(iter(NAMES))}')
  if missing:
    raise BadInput(f'--{missing[0]}: missing, the flags {", ".join(NAMES)} go together')
  if given['process_id'] >= given['num_processes']:
    raise BadInput(
        f'--process_id={given["process_id"]}: must be below'
        f' --num_processes={given["num_processes"]}'
    )
  return Processes(given['process_id'], given)


def _from_environment(variables: Mapping[str, str]) -> Processes | None:
  # What jax itself looks for: a step started by srun, not the script of a batch job.
  slurm = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID')
  if all(name in variables for name in slurm) and int(variables['SLURM_NTASKS']) > 1:
    return Processes(int(variables['SLURM_PROCID']), {})
  if ',' in variables.get('TPU_WORKER_HOSTNAMES', '') and 'TPU_WORKER_ID' in variables:
    return Processes(int(variables['TPU_WORKER_ID']), {})
  return None


def follow(workdir: Path, name: str, processes: Processes) -> int:
  """Lends this process's devices to a run that process 0 looks after; returns the exit code.

  A notice that any of the processes is to end is acted upon by all of their workers together.
  """
  result = run_files.read_result(run_files.run_dir(workdir, name))
  if result is not None and result.status != 'failed':
    return 0
  with preemption.patient() as is_told:
    worker = WorkerProcess(workdir, environment.cores(), processes.worker_flags())
    lending = threading.Thread(target=_lend, args=(worker, name), daemon=True)
    lending.start()
    threading.Thread(target=_show, args=(worker,), daemon=True).start()
    try:
      ends = math.inf
      while lending.is_alive() and time.monotonic() < ends:
        lending.join(POLL_SECONDS)
        if is_told() and ends == math.inf:
          worker.tell({'stop': True})
          ends = time.monotonic() + preemption.GRACE_SECONDS
      if is_told() or worker.has_saved():
        return preemption.EXIT_CODE
      result = _awaited_result(run_files.run_dir(workdir, name))
    finally:
      worker.kill()
      worker.wait()
  return 0 if result is not None and result.status != 'failed' else 1


def _lend(worker: WorkerProcess, name: str) -> None:
  """Gives the run to the worker; returns when its part is done."""
  given = False
  for _ in worker.requests():
    if given:
      return
    worker.tell({'run': name})
    given = True
  worker.wait()


def _show(worker: WorkerProcess) -> None:
  for line in worker.output():
    print(line, file=sys.stderr, flush=True)


def _awaited_result(run: Path) -> files.Json | None:
  """What process 0 writes when its part is done."""
  for _ in range(RESULT_SECONDS):
    if (result := run_files.read_result(run)) is not None:
      return result
    time.sleep(1)
  return None
