"""launch.options: the list of options."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from launch import options
from launch.common import app
from stability import config as config_lib
from stability.config import fields

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments: str) -> int:
  return app.execute(options.main, options.FLAGS, ['options', *arguments], words=True)


def listed(capsys, *arguments: str) -> dict[str, str]:
  """The options that the program prints into a pipe, with their defaults."""
  assert run(*arguments) == 0
  lines = capsys.readouterr().out.splitlines()
  return dict(line.split(' = ') for line in lines if ' = ' in line and line[0] != ' ')


def test_every_option(capsys):
  defaults = listed(capsys)
  assert defaults == {name: field.default_text for name, field in config_lib.FIELDS.items()}
  assert defaults['data.batch_size'] == '16 (cpu, night), 64 (gpu), 256 (paper)'


def test_description(capsys):
  assert run('parallel.members') == 0
  assert capsys.readouterr().out.startswith(
      'parallel.members = unset\n'
      '    Runs per device in a population; unset: as many as fit. Unit: runs. Allowed:\n'
      '    an integer from 1 to 2^31 - 1.\n'
  )


def test_lines_fit(capsys):
  assert run() == 0
  assert max(map(len, capsys.readouterr().out.splitlines())) <= options.PIPED_WIDTH


def test_defaults_of_a_config_file(capsys):
  defaults = listed(capsys, f'--config={ROOT}/configs/grid.py:paper')
  assert defaults.keys() == config_lib.FIELDS.keys()
  assert defaults['data.tokenizer'] == 'bpe'
  assert defaults['schedule.steps'] == '100000'


@pytest.mark.parametrize(
    'word, found',
    [
        ('mu_loss', ['objective.mu_loss']),
        ('KAPPA', ['model.logit_scale']),
        ('2502.02732', ['model.norm_position']),
        ('seconds', ['control.timeout_seconds']),
        ('adafactor', ['optimizer.name']),
    ],
)
def test_word(word, found, capsys):
  """A word is looked for in names, units, meanings, values and sources."""
  assert list(listed(capsys, word)) == found


EXTENSION = """from configs import base
from stability import extensions

def get_extensions():
  return [extensions.number('model.mine', 0.5, 'A number of an extension.')]

def get_config(scale='cpu'):
  c = base.get_config(scale)
  c.model.mine = 2
  return c
"""


def test_option_of_an_extension(capsys, tmp_path):
  """A config file's own option joins its section."""
  (tmp_path / 'experiment.py').write_text(EXTENSION)
  try:
    defaults = listed(capsys, f'--config={tmp_path}/experiment.py')
  finally:
    fields.unregister_all()
  names = list(defaults)
  assert defaults['model.mine'] == '2'
  assert names[names.index('model.mine') + 1] == 'objective.z_loss'


def test_table(capsys, monkeypatch):
  monkeypatch.setenv('FORCE_COLOR', '1')
  monkeypatch.setenv('COLUMNS', '80')
  assert run() == 0
  out = capsys.readouterr().out
  plain = re.sub('\x1b\\[[0-9;]*m', '', out)
  assert max(map(len, plain.splitlines())) <= 80
  for field in config_lib.FIELDS:
    section, _, name = field.rpartition('.')
    assert name in plain and f'{section}.' in plain


@pytest.mark.parametrize(
    'arguments, said',
    [
        (['nonsense'], "'nonsense': no option mentions it"),
        (['one', 'two'], "'two': stray argument"),
        (['--config=nowhere.py'], '--config=nowhere.py: no such file'),
        (['--config.seed=1'], '--config.seed: no such flag'),
    ],
)
def test_bad_input(arguments, said, capsys):
  assert run(*arguments) == 2
  out, err = capsys.readouterr()
  assert out == '' and err.startswith('error: ') and said in err


def test_reader_that_stops_early():
  process = subprocess.Popen(
      [sys.executable, '-m', 'launch.options'],
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
  )
  process.stdout.close()
  assert (process.stderr.read(), process.wait(timeout=60)) == (b'', 0)
  process.stderr.close()
