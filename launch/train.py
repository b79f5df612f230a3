"""Trains one run: get_config of a config file, whether or not the file also describes a sweep.

  python -m launch.train --config=configs/base.py[:SCALE] --workdir=DIR [--config.x.y=VALUE]

DIR has a sweep's layout, with one run in it. Started again, it continues from its checkpoint.

A run on the devices of several hosts (parallel.layout=data_parallel or sharded) is this command on
each of them, with DIR where all see it: under srun or on a TPU pod with --multihost=auto, elsewhere
with --coordinator_address=HOST:PORT --num_processes=N --process_id=I.
"""

import functools
from pathlib import Path

from absl import flags

from launch.backends import local
from launch.common import app, multihost, preemption, start
from stability.errors import BadInput

FLAGS = flags.FlagValues()
app.define_config(FLAGS)
_WORKDIR = app.define_workdir(FLAGS)
multihost.define_flags(FLAGS)


def main() -> int:
  """Trains the run."""
  sweep = app.load_sweep(FLAGS, single=True)
  shared = multihost.find(FLAGS)
  (config,) = sweep.runs.configs.values()
  on_alarm = config['control']['on_alarm']
  if shared and on_alarm != 'none':  # only one process sees what is asked for
    raise BadInput(
        f'config.control.on_alarm={on_alarm}: must be none where several processes share a run'
    )
  if shared and shared.process_id:
    return multihost.follow(Path(_WORKDIR.value), next(iter(sweep.runs.configs)), shared)
  worker_flags = shared.worker_flags() if shared else ()
  train = functools.partial(local.train, workers=1, worker_flags=worker_flags)
  return start.start(sweep, Path(_WORKDIR.value), train)


if __name__ == '__main__':
  preemption.install()
  app.run(main, FLAGS)
