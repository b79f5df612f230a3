"""A SLURM cluster of one node: slurmctld and slurmd on loopback, in a temporary folder."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS = 60  # timeout until the node is ready
PROGRAMS = ('slurmctld', 'slurmd', 'sbatch', 'srun', 'squeue', 'scontrol', 'scancel', 'sinfo')

# No munge, no accounting, no systemd. A requeued job waits for its old credential to expire, by
# default two minutes.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=8000 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE GraceTime=60 State=UP
PartitionName=urgent Nodes={host} PriorityTier=2 MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
  """Why SLURM cannot run here; None if it can."""
  path = f'{os.environ.get("PATH", "")}:/usr/sbin'
  absent = [program for program in PROGRAMS if not shutil.which(program, path=path)]
  return f'SLURM is not installed: no {absent[0]} (apt-get install slurm-wlm)' if absent else None


@contextlib.contextmanager
def cluster(folder: Path, cpus: int = 2) -> Iterator[Path]:
  """Runs a cluster and ends it with all its jobs; yields slurm.conf, for SLURM_CONF."""
  for name in ('state', 'spool'):
    (folder / name).mkdir()
  conf = folder / 'slurm.conf'
  # Fake GPUs.
  (folder / 'gres.conf').write_text('Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n')
  user = subprocess.run(['id', '-un'], capture_output=True, text=True, check=True).stdout.strip()
  host = socket.gethostname()
  conf.write_text(CONF.format(folder=folder, host=host, user=user, cpus=cpus, ports=_ports(2)))
  variables = os.environ | {
      'SLURM_CONF': str(conf),
      'PATH': f'{os.environ.get("PATH", "")}:/usr/sbin',
  }
  with (folder / 'daemons.log').open('wb') as log:
    daemons = [
        subprocess.Popen([name, '-D', '-f', conf], env=variables, stdout=log, stderr=log)
        for name in ('slurmctld', 'slurmd')
    ]
    try:
      _wait_for_node(folder, daemons, variables)
      yield conf
    finally:
      _end(daemons, variables)


def _ports(count: int) -> list[int]:
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for one in sockets:
      one.bind(('127.0.0.1', 0))
    return [one.getsockname()[1] for one in sockets]


def _wait_for_node(folder: Path, daemons: list[subprocess.Popen], variables: dict) -> None:
  command = ['sinfo', '--noheader', '--format=%T']
  for _ in range(5 * SECONDS):
    state = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if state.stdout.strip() == 'idle':
      return
    if any(daemon.poll() is not None for daemon in daemons):
      break
    time.sleep(0.2)
  logs = [path.read_text(errors='replace')[-2000:] for path in sorted(folder.glob('*.log'))]
  raise RuntimeError('\n'.join([f'SLURM does not start: {state.stdout}{state.stderr}', *logs]))


def _end(daemons: list[subprocess.Popen], variables: dict) -> None:
  command = ['squeue', '--noheader', '--format=%A']
  with contextlib.suppress(subprocess.TimeoutExpired):
    for _ in range(40):
      jobs = subprocess.run(
          command, env=variables, capture_output=True, text=True, check=False, timeout=10
      ).stdout.split()
      if not jobs:
        break
      subprocess.run(['scancel', *jobs], env=variables, check=False, timeout=10)
      time.sleep(0.5)
  for daemon in reversed(daemons):
    daemon.terminate()
    try:
      daemon.wait(10)
    except subprocess.TimeoutExpired:
      daemon.kill()
      daemon.wait()
