"""Trains one run, the one of get_config, even if the config file also describes a sweep.

  python -m launch.train --config=configs/base.py[:SCALE] --workdir=DIR [--config.x.y=VALUE]

DIR has the layout of a sweep with one run. The same command continues an interrupted run.

To train a run on the devices of several hosts (parallel.layout=data_parallel or sharded), run the
command on each of them with a DIR that all see: under srun or on TPUs of GKE with --multihost=auto,
elsewhere with --coordinator_address=HOST:PORT --num_processes=N --process_id=I.
"""

# First, since launch.common may have to mend sys.path, and the other imports take a second.
from launch.common import preemption

if __name__ == '__main__':
  preemption.install()

import functools
from pathlib import Path

from absl import flags

from launch.backends import local
from launch.common import app, environment, start
from launch.workers import multihost
from stability.errors import BadInput

FLAGS = flags.FlagValues()
app.define_config(FLAGS)
_WORKDIR = app.define_workdir(FLAGS)
multihost.define_flags(FLAGS)


def main() -> int:
  """Trains the run."""
  sweep = app.load_sweep(FLAGS, single=True)
  group = multihost.find(FLAGS)
  ((name, config),) = sweep.runs.configs.items()
  on_alarm = config['control']['on_alarm']
  if group and on_alarm != 'none':  # only process 0 reads requests for actions
    raise BadInput(
        f'config.control.on_alarm={on_alarm}: must be none if several processes share a run'
    )
  if group and group.process_id:
    return multihost.contribute_devices(Path(_WORKDIR.value), name, group)
  if not group:  # the devices of a pod start only in all its processes together
    environment.check_workers()
  worker_flags = group.worker_flags() if group else ()
  train = functools.partial(local.train, workers=1, worker_flags=worker_flags)
  return start.start(sweep, Path(_WORKDIR.value), train)


if __name__ == '__main__':
  app.run(main, FLAGS)
