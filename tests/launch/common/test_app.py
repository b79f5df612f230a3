"""launch.common.app: flags, config files and exit codes."""

import errno
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from absl import flags

from launch.common import app
from stability.config import fields
from stability.errors import BadInput

ROOT = pathlib.Path(__file__).parents[3]
BASE = f'--config={ROOT}/configs/base.py'
QUICKSTART = f'--config={ROOT}/configs/quickstart.py'


def load(*arguments: str, single: bool = False) -> app.SweepRequest:
  """The sweep that a program loads with these arguments; fails unless its exit code is 0."""
  flag_values = flags.FlagValues()
  app.define_config(flag_values)
  loaded = []
  code = app.execute(
      lambda: loaded.append(app.load_sweep(flag_values, single=single)),
      flag_values,
      ['program', *arguments],
  )
  assert code == 0
  return loaded[0]


def only(sweep: app.SweepRequest) -> dict:
  """The config of a sweep's single run."""
  (config,) = sweep.runs.configs.values()
  return config


def write(tmp_path: pathlib.Path, body: str) -> str:
  """Writes a config file, this body after the usual imports; returns its --config argument."""
  path = tmp_path / 'experiment.py'
  path.write_text(f'from configs import base\nfrom stability import hyper\n{body}\n')
  return f'--config={path}'


def execute(main: app.Main, *arguments: str) -> int:
  return app.execute(main, flags.FlagValues(), ['program', *arguments])


def test_sweep_of_quickstart():
  sweep = load(QUICKSTART)
  assert sweep.config_file == f'{ROOT}/configs/quickstart.py'
  assert sweep.scale == 'cpu'
  assert sweep.overrides == {}
  assert len(sweep.runs.configs) == 42
  assert sweep.runs.fields == ('model.width', 'model.qk_norm', 'optimizer.learning_rate')


def test_scale_of_config_and_sweep():
  sweep = load(QUICKSTART + ':paper')
  assert sweep.scale == 'paper'
  assert sweep.config_file.endswith('quickstart.py')
  widths = {config['model']['width'] for config in sweep.runs.configs.values()}
  assert widths == {256, 512, 768}
  assert {c['schedule']['steps'] for c in sweep.runs.configs.values()} == {100_000}


def test_default_scale(tmp_path):
  config = write(tmp_path, "def get_config(scale='gpu'): return base.get_config(scale)")
  sweep = load(config)
  assert sweep.scale == 'gpu'
  assert only(sweep)['schedule']['steps'] == 5_000


def test_colons_elsewhere_in_the_path(tmp_path):
  (tmp_path / 'a.py:b').mkdir()
  config = write(tmp_path / 'a.py:b', "def get_config(scale='cpu'): return base.get_config(scale)")
  assert load(config + ':gpu').scale == 'gpu'


def test_overrides():
  sweep = load(
      '--config.seed=3',  # may stand before --config
      QUICKSTART,
      '--config.optimizer.eps=1',
      '--config.data.path=/some/text',
      '-config.parallel.members',
      '4',
  )
  expected = {'seed': 3, 'data.path': '/some/text', 'optimizer.eps': 1.0, 'parallel.members': 4}
  assert sweep.overrides == expected
  assert type(sweep.overrides['optimizer.eps']) is float
  assert len(sweep.runs.configs) == 42
  for config in sweep.runs.configs.values():
    assert config['seed'] == 3
    assert config['optimizer']['eps'] == 1.0
    assert config['data']['path'] == '/some/text'
    assert config['parallel']['members'] == 4


def test_last_override_wins():
  assert load(BASE, '--config.seed=1', '--config.seed=2').overrides == {'seed': 2}


def test_unset_fields_are_none():
  config = only(load(BASE))
  assert config['data']['path'] is None
  assert config['parallel']['members'] is None


def test_single_run():
  sweep = load(QUICKSTART, '--config.model.width=32', single=True)  # swept, but not here
  assert list(sweep.runs.configs) == ['seed=0']
  assert only(sweep)['model']['width'] == 32
  assert sweep.runs.fields == ()


def test_single_run_ignores_get_sweep(tmp_path):
  body = "def get_config(scale='cpu'): return base.get_config(scale)\nget_sweep = 'broken'"
  assert list(load(write(tmp_path, body), single=True).runs.configs) == ['seed=0']


def test_config_without_sweep():
  assert list(load(BASE).runs.configs) == ['seed=0']


def test_sweep_from_a_generator(tmp_path):
  body = """
def get_config(scale='cpu'): return base.get_config(scale)
def get_sweep(scale='cpu'):
  yield {'seed': 1}
  yield {'seed': 2}
"""
  assert list(load(write(tmp_path, body)).runs.configs) == ['seed=1', 'seed=2']


def test_override_of_a_referenced_field(tmp_path):
  body = """
def get_config(scale='cpu'):
  c = base.get_config(scale)
  c.schedule.warmup_steps = c.schedule.get_ref('steps') // 10
  return c
"""
  config = only(load(write(tmp_path, body), '--config.schedule.steps=70'))
  assert (config['schedule']['steps'], config['schedule']['warmup_steps']) == (70, 7)


def test_override_takes_the_type_of_the_record(tmp_path):
  body = """
def get_config(scale='cpu'):
  c = base.get_config(scale)
  del c.optimizer.learning_rate, c.data.path
  c.optimizer.learning_rate = 1  # an integer
  c.data.path = None  # no placeholder
  return c
"""
  config = write(tmp_path, body)
  assert type(only(load(config))['optimizer']['learning_rate']) is float
  overridden = only(load(config, '--config.optimizer.learning_rate=0.5', '--config.data.path=x'))
  assert overridden['optimizer']['learning_rate'] == 0.5
  assert overridden['data']['path'] == 'x'


def test_config_file_is_not_compiled(tmp_path):
  config = write(tmp_path, "def get_config(scale='cpu'): return base.get_config(scale)")
  load(config)
  assert [path.name for path in tmp_path.iterdir()] == ['experiment.py']


@pytest.mark.parametrize('returned, code', [(None, 0), (0, 0), (1, 1), (75, 75)])
def test_exit_code_of_main(returned, code, capsys):
  assert execute(lambda: returned) == code
  assert capsys.readouterr() == ('', '')


def test_bad_input_in_main(capsys):
  def main():
    raise BadInput('first\n  second \x1b[31mred \udc80')

  assert execute(main) == 2
  assert capsys.readouterr() == ('', 'error: first second \\x1b[31mred \\udc80\n')


def test_path_below_a_closed_folder(capsys):
  def main():
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), '/closed/sweep.json')

  assert execute(main) == 2
  assert capsys.readouterr() == ('', 'error: /closed/sweep.json: Permission denied\n')


def test_interrupt(capsys):
  def main():
    raise KeyboardInterrupt

  assert execute(main) == 130
  assert capsys.readouterr() == ('', 'interrupted\n')


def test_bugs_propagate():
  with pytest.raises(ZeroDivisionError):
    execute(lambda: 1 // 0)


@pytest.mark.parametrize('flag', ['--help', '-h'])
def test_help(flag, capsys):
  flag_values = flags.FlagValues()
  app.define_config(flag_values)
  app.define_workdir(flag_values)
  flags.DEFINE_integer('workers', 2, 'processes', flag_values=flag_values)

  def main():
    pytest.fail('main was called')

  # Help comes first, although required flags are missing and one is unknown.
  assert app.execute(main, flag_values, ['program', '--unknown', flag]) == 0
  out, err = capsys.readouterr()
  assert err == ''
  assert out.startswith(__doc__)
  for shown in ('--config:', '--workdir:', '--workers:', '\nconfigs.base:', '--config.seed:'):
    assert shown in out
  words = ' '.join(out.split())
  for field in fields.FIELDS.values():
    assert f'--config.{field.name}: {field.help}' in words


def test_flags_are_reset():
  before = sorted(flags.FLAGS)
  flag_values = flags.FlagValues()
  app.define_config(flag_values)
  workdir = app.define_workdir(flag_values, required=False)
  seen = []

  def main():
    seen.append((workdir.value, app.load_sweep(flag_values).overrides))

  argv = ['program', BASE, '--workdir=here', '--config.seed=1']
  assert app.execute(main, flag_values, argv) == 0
  assert app.execute(main, flag_values, ['program', BASE]) == 0
  assert app.execute(main, flag_values, ['program']) == 2  # --config is not remembered either
  assert seen == [('here', {'seed': 1}), (None, {})]
  assert sorted(flags.FLAGS) == before


PROGRAM = '''"""A program."""
import os
import sys
import time
from absl import flags
from launch.common import app
FLAGS = flags.FlagValues()
app.define_config(FLAGS)
def main():
  {body}
if __name__ == '__main__':
  app.run(main, FLAGS)
'''


def start(tmp_path: pathlib.Path, body: str, *arguments: str) -> subprocess.Popen:
  program = tmp_path / 'program.py'
  program.write_text(PROGRAM.format(body=body))
  return subprocess.Popen(
      [sys.executable, program, *arguments],
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
  )


def test_process_loads_a_sweep(tmp_path):
  body = """sweep = app.load_sweep(FLAGS)
  print(len(sweep.runs.configs), 'jax' in sys.modules, time.process_time())
  return 75"""
  process = start(tmp_path, body, QUICKSTART)
  out, err = process.communicate()
  assert (process.returncode, err) == (75, '')
  runs, jax_imported, seconds = out.split()
  assert (runs, jax_imported) == ('42', 'False')
  assert float(seconds) < 2


def test_process_with_a_bug(tmp_path):
  process = start(tmp_path, "raise RuntimeError('ours')", BASE)
  _, err = process.communicate()
  assert process.returncode == 1
  assert err.startswith('Traceback') and 'RuntimeError: ours' in err


def test_interrupted_process(tmp_path):
  process = start(tmp_path, "print('ready', flush=True)\n  time.sleep(60)", BASE)
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(signal.SIGINT)
  _, err = process.communicate(timeout=30)
  assert (process.returncode, err) == (130, 'interrupted\n')
