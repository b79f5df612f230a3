"""Packs wheels for a machine that has jax but no network, to run launch.benchmark there.

  python -m launch.benchmarks.wheels FOLDER [--python=3.12] [PACKAGE ...]

and on that machine, in the checkout:

  python -m pip install --no-index --no-deps FOLDER/*.whl
  python -m launch.benchmark --suite=gpu --output=gpu.json

Without names, it packs what such machines usually lack; the versions are those of this environment.
"""

import argparse
import importlib.metadata
import subprocess
import sys

PACKAGES = ('ml_collections', 'tensorboardX', 'crc32c')
PLATFORM = 'manylinux2014_x86_64'


def main() -> None:
  """Downloads the wheels."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('folder')
  parser.add_argument('packages', nargs='*', default=PACKAGES)
  parser.add_argument('--python', default='3.12', help='version of Python on that machine')
  arguments = parser.parse_args()
  wanted = [f'{name}=={importlib.metadata.version(name)}' for name in arguments.packages]
  pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--only-binary=:all:']
  target = [f'--python-version={arguments.python}', f'--platform={PLATFORM}']
  sys.exit(subprocess.call([*pip, *target, f'--dest={arguments.folder}', *wanted]))


if __name__ == '__main__':
  main()
