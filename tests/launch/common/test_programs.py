import pathlib
import subprocess

from launch.common import programs

EXPERIMENT = """
from configs import base, mine
from stability import config
import beside

def get_config(scale='cpu'):
  c = base.get_config(scale)
  c.data.sequence_length = mine.LENGTH + beside.MORE
  return c
"""


def test_in_a_folder_with_packages_of_the_same_names(tmp_path):
  """The programs are those of this project; a config file sees its own folder."""
  for name in ('launch', 'stability', 'tokenize'):
    (tmp_path / f'{name}.py').write_text('raise SystemExit("the wrong file")')
  (tmp_path / 'configs').mkdir()
  (tmp_path / 'configs/mine.py').write_text('LENGTH = 40')
  (tmp_path / 'beside.py').write_text('MORE = 2')
  (tmp_path / 'experiment.py').write_text(EXPERIMENT)
  command = [*programs.command('launch.options'), '--config=experiment.py', 'sequence_length']
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert 'data.sequence_length = 42' in done.stdout


def test_root():
  assert pathlib.Path(programs.ROOT) == pathlib.Path(__file__).parents[3]
