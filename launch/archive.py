"""Writes one file with what a report on a sweep needs, to keep or to send.

  python -m launch.archive --workdir=DIR --output=FILE.tar.gz

FILE has the configs, the logged rows, results, alarms and actions of all runs, the copied sources
of extensions, results.csv, targets.json and the report, but not the text, the checkpoints and
TensorBoard's files. The sweep may still be running. To open it, where this package is installed:

  tar -xzf FILE.tar.gz && python -m launch.report --workdir=NAME

NAME is the name of DIR. An existing FILE is replaced.
"""

# First, since launch.common may have to mend sys.path.
from launch.common import app, path_flags

# isort: split
from pathlib import Path

from absl import flags

from stability.errors import BadInput
from stability.storage import archive

FLAGS = flags.FlagValues()
_WORKDIR = app.define_workdir(FLAGS)
_OUTPUT = path_flags.define('output', None, 'the file to write, FILE.tar.gz', FLAGS)


def main() -> None:
  """Writes the archive."""
  if not _OUTPUT.value:
    raise BadInput('--output: missing, must be FILE.tar.gz')
  output = Path(_OUTPUT.value)
  count = archive.write(Path(_WORKDIR.value), output)
  print(f'{output}: {count:,} files, {output.stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
  app.run(main, FLAGS)
