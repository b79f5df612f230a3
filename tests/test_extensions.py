"""Entries that a config file adds: which are refused, and a sweep that uses all of them."""

import importlib
import json
import re
import shutil
import sys
import types

import jax
import numpy as np
import pytest
from helpers.processes import ROOT, run

from configs import base
from launch.common import app
from stability import config as config_lib
from stability import extensions, variants
from stability.errors import BadInput
from stability.step import train_step

EXAMPLE = re.search(
    r'## Add an intervention.*?```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL
)[1]
TINY = [
    '--config.data.source=synthetic',
    *('--config.data.batch_size=4', '--config.data.sequence_length=16'),
    *('--config.model.depth=1', '--config.model.width=16', '--config.model.head_dim=8'),
    *('--config.schedule.steps=12', '--config.schedule.warmup_steps=2'),
    *('--config.log.every_steps=4', '--config.probe.every_steps=4'),
    '--config.checkpoint.every_steps=4',
    *('--config.optimizer.name=sgd', '--config.schedule.shape=line'),
]


@pytest.fixture(autouse=True)
def nothing_installed():
  yield
  extensions.reset()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with the README's example, its grid cut to one learning rate."""
  folder = tmp_path_factory.mktemp('place')
  (folder / 'mine.py').write_text(EXAMPLE.replace('[1e-3, 1e-2, 1e-1]', '[1e-2]'))
  return folder


@pytest.fixture(scope='module')
def place(folder):
  """The folder with a sweep of the example."""
  done = run(folder, 'sweep', '--config=mine.py', '--workdir=sweep', *TINY)
  assert done.returncode == 0, done.stderr
  return folder


def rows(workdir):
  found = {}
  for path in sorted(workdir.glob('runs/*/metrics.jsonl')):
    lines = map(json.loads, path.read_text().splitlines())
    clock = ('seconds', 'tokens_per_second')
    found[path.parent.name] = [{k: v for k, v in row.items() if k not in clock} for row in lines]
  return found


@pytest.mark.slow
def test_sweep(place):
  """All entries act: two kinds of attention, a parameter, a term, a probe, an option."""
  sweep = json.loads((place / 'sweep/sweep.json').read_text())
  assert [option['name'] for option in sweep['extensions']['options']] == ['optimizer.momentum']
  found = rows(place / 'sweep')
  assert len(found) == 2
  sink = found['attention=sink,learning_rate=0.01,seed=0']
  softmax = found['attention=softmax,learning_rate=0.01,seed=0']
  assert 'parameter_rms/block_0/attention/sink' in sink[0]
  assert 'parameter_rms/block_0/attention/sink' not in softmax[0]
  for row in (*sink, *softmax):
    assert row['update_norm'] > 0 and row['logit_norm'] > 0
  assert [row['learning_rate'] for row in sink] == pytest.approx(
      [1e-2 + (1e-5 - 1e-2) * step / 12 for step in (4, 8, 12)], rel=1e-4
  )


@pytest.mark.slow
def test_option_in_help_and_override(folder):
  shown = run(folder, 'sweep', '--config=mine.py', '--help')
  assert '--config.optimizer.momentum' in shown.stdout and 'Decay of the velocity' in shown.stdout
  refused = run(folder, 'sweep', '--config=mine.py', '--config.optimizer.momentum=1', '--dry_run')
  assert refused.returncode == 2
  assert 'config.optimizer.momentum' in refused.stderr and refused.stderr.count('\n') == 1
  listed = run(folder, 'options', '--config=mine.py', 'momentum')
  assert 'Decay of the velocity' in listed.stdout


@pytest.mark.slow
def test_resume_uses_the_copy(place, tmp_path):
  """A changed source is named in a warning; the numbers are those of the copy."""
  shutil.copytree(place, tmp_path / 'place')
  place = tmp_path / 'place'
  before = rows(place / 'sweep')
  (run_dir,) = (place / 'sweep/runs').glob('*sink*')
  (run_dir / 'result.json').unlink()
  text = (place / 'mine.py').read_text()
  (place / 'mine.py').write_text(text.replace('1e-4 * jnp.mean', '1e-1 * jnp.mean'))
  shutil.rmtree(run_dir / 'checkpoints' / '8', ignore_errors=True)
  done = run(place, 'sweep', '--config=mine.py', '--workdir=sweep', *TINY)
  assert done.returncode == 0, done.stderr
  assert 'warning: mine.py: its extensions have changed' in done.stderr
  assert rows(place / 'sweep') == before


@pytest.mark.slow
def test_copy_that_is_missing_or_changed(place, tmp_path):
  """One line that names it, exit code 2, and no run is tried; readers run none of it."""
  shutil.copytree(place, tmp_path / 'place')
  place = tmp_path / 'place'
  (copy,) = (place / 'sweep/extensions').glob('*/mine.py')
  for result in (place / 'sweep/runs').glob('*/result.json'):
    result.unlink()
  copy.write_text('raise RuntimeError("it was run")\n')
  for what in ('have been changed', 'cannot be read'):
    done = run(place, 'sweep', '--config=mine.py', '--workdir=sweep', *TINY)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith('error')]
    assert 'mine.py: the extensions of this sweep' in line and what in line
    reported = run(place, 'report', '--workdir=sweep')
    assert reported.returncode == 0, reported.stderr
    copy.unlink(missing_ok=True)
  assert not list((place / 'sweep/runs').glob('*/result.json'))


def load(tmp_path, body):
  path = tmp_path / 'own.py'
  path.write_text(
      'from configs import base\n'
      'from stability import extensions as ext\n'
      'def get_config(scale="cpu"):\n'
      '  return base.get_config(scale)\n'
      f'def get_extensions():\n{body}\n'
  )
  return app.load(str(path), {})


@pytest.mark.parametrize(
    ('body', 'said'),
    [
        ('  return 3', 'get_extensions: must return a list'),
        ('  return [3]', 'get_extensions: returns a int'),
        ('  raise OSError("no")', 'OSError: no'),
        ('  return [ext.variant("optimizer.nam", "x", len)]', 'optimizer.nam is not a choice'),
        ('  return [ext.variant("optimizer.name", "adamw", len)]', 'already has this value'),
        ('  return [ext.variant("optimizer.name", "x", len)] * 2', "'x'"),
        ('  return [ext.term("loss", "x", len)]', 'place must be one of'),
        ('  return [ext.term("objective", "x", len, when="optimizer.eps")]', 'switch or choice'),
        ('  return [ext.term("objective", "z_loss", len)]', 'the package has a term of this name'),
        ('  return [ext.term("probes", "x", len)] * 2', 'added twice'),
        ('  return [ext.number("seed", 0.0, "It.")]', 'seed'),
    ],
)
def test_refused(tmp_path, body, said):
  with pytest.raises(BadInput, match=re.escape(said)) as error:
    load(tmp_path, body)
  assert 'own.py' in str(error.value)


def test_entries_are_those_of_the_last_config_file(tmp_path):
  body = '  return [ext.variant("optimizer.name", "x", len), ext.number("a.b", 0.5, "It.")]'
  found = load(tmp_path, body)
  assert variants.added('optimizer.name') == ('x',)
  (config,) = found.runs.configs.values()
  assert config['a']['b'] == 0.5 and config_lib.FIELDS['optimizer.name'].check('x')
  app.load(str(ROOT / 'configs/base.py'), {})
  assert variants.added('optimizer.name') == () and 'a.b' not in config_lib.FIELDS


def test_local_modules_are_part_of_the_sources(tmp_path, monkeypatch):
  """Modules that a local module imports count too, but installed ones do not."""
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / 'own_rules.py').write_text('import own_maths, numpy\n')
  (tmp_path / 'own_maths.py').write_text('')
  found = load(tmp_path, '  import own_rules\n  return []')
  assert set(found.extensions.files) == {'own.py', 'own_rules.py', 'own_maths.py'}
  digest = found.extensions.sha256
  (tmp_path / 'own_maths.py').write_text('x = 1\n')
  assert load(tmp_path, '  import own_rules\n  return []').extensions.sha256 != digest


def test_configs_are_found_behind_others_of_that_name(tmp_path, monkeypatch):
  (tmp_path / 'base.py').write_text('')
  (tmp_path / 'mine.py').write_text('')
  theirs = types.ModuleType('configs')
  for path in ([str(tmp_path)], None):
    for name in [name for name in sys.modules if name.startswith('configs.')]:
      monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'configs', theirs)
    if path:
      theirs.__path__ = path
    else:
      del theirs.__path__
    extensions.find_configs()
    assert importlib.import_module('configs.base').__file__ == f'{ROOT}/configs/base.py'
    if path:
      assert importlib.import_module('configs.mine').__file__ == f'{tmp_path}/mine.py'


@pytest.mark.parametrize(
    'place, make, taken',
    [
        ('objective', lambda forward: 0.0, 'loss'),
        ('objective', lambda forward: 0.0, 'log_z'),
        ('objective', lambda forward: 0.0, 'learning_rate'),
        ('probes', lambda inside: {'gradient_norm': 0.0}, 'gradient_norm'),
    ],
)
def test_names_of_rows_that_are_taken(place, make, taken):
  """The package's number would be replaced without a word."""
  static, hparams = config_lib.split(base.get_config().to_dict())
  variants.add_term(place, variants.Term(taken, make, 'here'))
  try:
    programs = train_step.programs(static, 64)
    state = jax.eval_shape(programs.init, train_step.arrays(hparams))
    text = {'text': jax.ShapeDtypeStruct((4096,), np.uint8)}
    with pytest.raises(BadInput, match=f'{taken} is measured already'):
      jax.eval_shape(programs.steps['probed'], text, state)
  finally:
    variants.remove_added()
