"""Starts programs of this package whatever the current folder holds.

`python -m launch.NAME` puts the current folder first on sys.path, where a launch.py or a stability/
of the user's hides this project's packages. The console script and the processes that programs
start (workers, the jobs of a cluster) therefore come through here. The current folder is last on
their sys.path, so that a config file can still import the modules beside it.

  python -P launch/common/programs.py launch.NAME [--flag=value ...]
"""

import os
import runpy
import sys

ROOT = os.path.abspath(os.path.join(__file__, '../../..'))  # folder of the packages


def command(module: str) -> list[str]:
  """The command that runs a module of this package as a program, in any folder."""
  return [sys.executable, '-P', os.path.abspath(__file__), module]


def run(module: str) -> None:
  """Runs a module as the main program; sys.argv holds its arguments from index 1."""
  sys.path.append(os.path.abspath(''))
  runpy.run_module(module, run_name='__main__', alter_sys=True)


def _import_packages() -> None:
  """Imports the packages of this folder, even if others of their names come first on sys.path."""
  sys.path.insert(0, ROOT)
  try:
    import launch.common  # noqa: F401
    import stability  # noqa: F401
  finally:
    sys.path.remove(ROOT)


if __name__ == '__main__':
  _import_packages()
  del sys.argv[0]
  run(sys.argv[0])
