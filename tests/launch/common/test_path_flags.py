"""Every flag that holds a path expands `~` and refuses URLs; programs started as files."""

import importlib
import pathlib
import subprocess
import sys

import pytest

from launch.common import app, path_flags
from stability.errors import BadInput

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[3]
PROGRAMS = {  # program -> its flags of paths
    'benchmark': ['output'],
    'control': ['workdir', 'run'],
    'options': ['config'],
    'predict': ['workdir'],
    'report': ['workdir', 'results', 'output'],
    'reproduce': ['workdir', 'config.data.path'],
    'sweep': ['config', 'workdir', 'reuse', 'config.data.path'],
    'tables': ['results', 'output'],
    'tokenize': ['input', 'output', 'tokenizer'],
    'train': ['config', 'workdir', 'config.data.path'],
    'work': ['workdir', 'runs'],
}
FLAGS = [(program, flag) for program, names in PROGRAMS.items() for flag in names]


def parsed(program: str, flag: str, value: str) -> tuple[int, object]:
  """The exit code of a program that only parses its flags, and the value of the flag."""
  flag_values = importlib.import_module(f'launch.{program}').FLAGS
  others = {'config', 'workdir'}.intersection(flag_values) - {flag}
  arguments = [program, *(f'--{name}=x' for name in others), f'--{flag}={value}']
  code = app.execute(lambda: None, flag_values, arguments)
  return code, flag_values[flag].value


@pytest.mark.parametrize('program, flag', FLAGS)
def test_home_is_expanded(program, flag, monkeypatch):
  monkeypatch.setenv('HOME', '/h')
  code, value = parsed(program, flag, '~/a')
  assert code == 0 and value in ('/h/a', ['/h/a'])


@pytest.mark.parametrize('program, flag', FLAGS)
def test_urls_are_refused(program, flag, capsys):
  code, _ = parsed(program, flag, 'gs://bucket/a')
  error = capsys.readouterr().err
  assert code == 2 and error.count('\n') == 1
  assert error.startswith(f'error: --{flag}=') and 'gs://bucket/a: must be a path' in error


def test_datasets_are_not_urls(monkeypatch, capsys):
  monkeypatch.setenv('HOME', '/h')
  for given, value in (('hf:a/b:en', 'hf:a/b:en'), ('hf:~/set', 'hf:/h/set'), ('hf:/s', 'hf:/s')):
    assert parsed('tokenize', 'input', given) == (0, [value])
  assert parsed('tokenize', 'input', 'hf://datasets/a')[0] == 2
  assert 'not a URL' in capsys.readouterr().err


def test_environment(monkeypatch):
  monkeypatch.setenv('HOME', '/h')
  bucket = {'JAX_COMPILATION_CACHE_DIR': 'gs://b/cache'}
  environment = {'XDG_CACHE_HOME': '~/c', 'JAX_COMPILATION_CACHE_DIR': '~/j'}
  path_flags.check_environment(environment)
  assert environment == {'XDG_CACHE_HOME': '/h/c', 'JAX_COMPILATION_CACHE_DIR': '/h/j'}
  path_flags.check_environment(bucket)
  assert bucket == {'JAX_COMPILATION_CACHE_DIR': 'gs://b/cache'}
  for name, value in (('XDG_CACHE_HOME', 'gs://b'), ('JAX_COMPILATION_CACHE_DIR', 'file:///c')):
    with pytest.raises(BadInput, match=f'{name}={value}: must be a path'):
      path_flags.check_environment({name: value})


@pytest.mark.parametrize('program', ['tokenize', 'report'])
@pytest.mark.parametrize('folder', ['launch', 'elsewhere'])
@pytest.mark.parametrize('start', ['file', 'module'])
def test_program_in_any_folder(program, folder, start, tmp_path):
  """The folder of the programs hides the standard library's tokenize."""
  cwd = ROOT / 'launch' if folder == 'launch' else tmp_path
  how = [f'{ROOT}/launch/{program}.py'] if start == 'file' else ['-m', f'launch.{program}']
  done = subprocess.run(
      [sys.executable, *how, '--help'], cwd=cwd, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0 and f'python -m launch.{program}' in done.stdout, done.stderr


def test_packages_without_a_file(tmp_path):
  """An editable install and a folder `launch` or `configs` without __init__.py make them so."""
  code = f'''
import sys, types
for name in ('launch', 'configs'):
  sys.modules[name] = types.ModuleType(name)
  sys.modules[name].__path__ = ['{ROOT}/' + name]
from launch import reproduce
from launch.common import programs
assert programs.ROOT == '{ROOT}' and str(reproduce.FOLDER) == '{ROOT}/configs'
'''
  subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True)


def test_file_imports_from_its_folder_like_a_module(tmp_path):
  (tmp_path / 'mine.py').write_text('from configs import base\nget_config = base.get_config')
  (tmp_path / 'my_config.py').write_text('from mine import get_config')
  command = [sys.executable, f'{ROOT}/launch/options.py', '--config=my_config.py', 'warmup_steps']
  done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
