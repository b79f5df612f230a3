"""An installed wheel, in a folder that holds packages of the same names."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip('setuptools')

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 300
MINE = """
from configs import base, mine
from stability import hyper

def get_config(scale='cpu'):
  c = base.get_config(scale)
  c.model.width, c.model.depth = 16, 1
  c.data.sequence_length, c.data.batch_size, c.data.validation_batches = 16, 2, 1
  c.schedule.steps, c.schedule.warmup_steps = mine.STEPS, 1
  return c

def get_sweep(scale='cpu'):
  return hyper.product([hyper.sweep('optimizer.learning_rate', [1e-3, 1e-2])])
"""

pytestmark = pytest.mark.slow


def check_output(*command, **options) -> str:
  words = list(map(str, command))
  done = subprocess.run(
      words, capture_output=True, text=True, timeout=SECONDS, check=False, **options
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> pathlib.Path:
  """The bin folder of an environment with the wheel, and with the dependencies of this one."""
  folder = tmp_path_factory.mktemp('wheel')
  source = folder / 'source'
  source.mkdir()
  for name in ('stability', 'launch', 'configs'):
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  pip = (sys.executable, '-m', 'pip', '--disable-pip-version-check')
  options = ('--no-deps', '--no-build-isolation', '--no-index', '--wheel-dir', folder)
  check_output(*pip, 'wheel', *options, source)
  check_output(sys.executable, '-m', 'venv', '--without-pip', folder / 'venv')
  (wheel,) = folder.glob('*.whl')
  python = folder / 'venv/bin/python'
  check_output(*pip, '--python', python, 'install', '--no-deps', '--no-index', wheel)
  (site_packages,) = folder.glob('venv/lib/*/site-packages')
  # Only this line of the folder's .pth files is read: its own .pth files, such as that of an
  # editable installation of this project, are not.
  (site_packages / 'dependencies.pth').write_text(str(pathlib.Path(np.__file__).parents[1]))
  where = check_output(python, '-P', '-c', 'import launch; print(launch.__file__)', cwd=folder)
  assert pathlib.Path(where).is_relative_to(site_packages)
  return folder / 'venv/bin'


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> pathlib.Path:
  """The folder of a user."""
  folder = tmp_path_factory.mktemp('user')
  for name in ('launch', 'stability', 'tokenize'):
    (folder / f'{name}.py').write_text('raise SystemExit("the wrong file")')
  (folder / 'configs').mkdir()
  (folder / 'configs/__init__.py').touch()
  (folder / 'configs/quickstart.py').write_text('raise SystemExit("the wrong file")')
  (folder / 'configs/mine.py').write_text('STEPS = 5')
  (folder / 'my_sweep.py').write_text(MINE)
  return folder


def environment(place: pathlib.Path) -> dict[str, str]:
  kept = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
  return kept | {'XDG_CACHE_HOME': str(place / 'cache')}


def test_shipped_experiment(installed, place):
  command = (installed / 'stability', 'sweep', '--config=quickstart', '--dry_run')
  text = check_output(*command, cwd=place, env=environment(place))
  assert 'quickstart at scale cpu' in text and '42 runs' in text


def test_sweep(installed, place):
  options = ('--config=my_sweep.py', f'--workdir={place / "mine"}')
  check_output(installed / 'stability', 'sweep', *options, cwd=place, env=environment(place))
  results = [json.loads(path.read_text()) for path in place.glob('mine/runs/*/result.json')]
  assert [result['steps'] for result in results] == [5, 5]
  assert (place / 'mine/report/index.html').exists()


def test_jobs(installed, place):
  """A job of a manifest trains in the user's folder too."""
  options = ('--config=my_sweep.py', f'--workdir={place / "jobs"}', '--backend=manifest')
  check_output(installed / 'stability', 'sweep', *options, cwd=place, env=environment(place))
  for line in map(json.loads, (place / 'jobs/manifest.jsonl').read_text().splitlines()):
    check_output(*line['command'], cwd=place, env=environment(place) | line['env'])
  assert len(list(place.glob('jobs/runs/*/result.json'))) == 2


def test_ray(installed, place):
  """A task does not import the launch.py of the user's folder, which Ray puts first on sys.path."""
  pytest.importorskip('ray')
  options = ('--config=my_sweep.py', f'--workdir={place / "ray"}', '--backend=ray', '--jobs=1')
  check_output(installed / 'stability', 'sweep', *options, cwd=place, env=environment(place))
  assert len(list(place.glob('ray/runs/*/result.json'))) == 2
