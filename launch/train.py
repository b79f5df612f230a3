"""Trains one run: get_config of a config file, whether or not the file also describes a sweep.

  python -m launch.train --config=configs/base.py[:SCALE] --workdir=DIR [--config.x.y=VALUE]

DIR has a sweep's layout, with one run in it. Started again, it continues from its checkpoint.
"""

from pathlib import Path

from absl import flags

from launch import app, start

FLAGS = flags.FlagValues()
app.define_config(FLAGS)
_WORKDIR = app.define_workdir(FLAGS)


def main() -> int:
  """Trains the run."""
  sweep = app.load_sweep(FLAGS, single=True)
  return start.start(sweep, Path(_WORKDIR.value), workers=1)


if __name__ == '__main__':
  app.run(main, FLAGS)
