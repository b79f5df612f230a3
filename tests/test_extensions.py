"""Entries that a config file adds: which are refused, and a sweep that uses all of them."""

import importlib
import json
import py_compile
import re
import shutil
import subprocess
import sys
import types
from importlib import machinery

import jax
import numpy as np
import pytest
from helpers.processes import ROOT, run

from configs import base
from launch.common import app, extension_trace
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
    '--config.objective.logit_norm=1e-4',
]


@pytest.fixture(autouse=True)
def nothing_installed():
  yield
  extensions.reset()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with the README's example: one learning rate, and a weight in a `configs` beside."""
  folder = tmp_path_factory.mktemp('place')
  text = EXAMPLE
  for old, new in (
      ('[1e-3, 1e-2, 1e-1]', '[1e-2]'),
      ('import quickstart', 'import quickstart, weights'),
      ('* jnp.mean', '* weights.LOGITS * jnp.mean'),
  ):
    assert old in text
    text = text.replace(old, new)
  (folder / 'mine.py').write_text(text)
  (folder / 'configs').mkdir()
  (folder / 'configs/weights.py').write_text('LOGITS = 1.0\n')
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
  options = [option['name'] for option in sweep['extensions']['options']]
  assert options == ['optimizer.momentum', 'objective.logit_norm']
  assert sweep['extensions']['probes'] == ['update_norm']
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
  (place / 'configs/weights.py').write_text('LOGITS = 1e3\n')
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
        ('  return [ext.term("objective", "x", len, when="optimizer.eps")]', 'switch or a choice'),
        ('  return [ext.term("objective", "x", len, reads=["eps"])]', 'must be an option'),
        ('  return [ext.variant("optimizer.name", "x", len, reads=["eps"])]', "reads='eps'"),
        ('  return [ext.term("objective", "z_loss", len)]', 'the package has a term of this name'),
        ('  return [ext.term("probes", "x", len)] * 2', 'added twice'),
        ('  return [ext.number("seed", 0.0, "It.")]', 'seed'),
    ],
)
def test_refused(tmp_path, body, said):
  with pytest.raises(BadInput, match=re.escape(said)) as error:
    load(tmp_path, body)
  assert 'own.py' in str(error.value)


PROBED = '''
  def norms(inside):
    return {'norms/b': inside.params['final_norm']['scale'].sum(), 'norms/a': 0.0}
  return [
      ext.switch('own.on', 0.0, 'It.'),
      ext.term('probes', 'norms', norms),
      ext.term('probes', 'off', lambda inside: {'off': 0.0}, when='own.on'),
      ext.term('objective', 'term', lambda forward: 0.0),
      ext.term('probes', 'last', lambda inside: {LAST: inside.hparams['seed']}),
  ]
'''


def test_names_of_probes(tmp_path):
  """Names of active probes of the file alone; a name that a row already holds is refused."""
  found = load(tmp_path, PROBED.replace('LAST', '"last"'))
  configs = found.runs.configs
  assert set(extension_trace.check('own.py', configs)) == {'norms/a', 'norms/b', 'last'}
  (config,) = configs.values()
  config['own']['on'] = 1.0
  assert 'off' in extension_trace.check('own.py', configs)
  config['probe']['every_steps'] = 0
  assert extension_trace.check('own.py', configs) == []
  found = load(tmp_path, PROBED.replace('LAST', '"tokens"'))
  with pytest.raises(BadInput, match='tokens is what rows hold already'):
    extension_trace.check('own.py', found.runs.configs)


@pytest.mark.parametrize(
    ('optimizer', 'is_refused'),
    [
        ('optax.adam(1.0)', True),
        ('optax.sgd(0.1)', True),
        ('optax.scale_by_adam()', False),
        ('optax.scale_by_lion()', False),
        ('optax.contrib.scale_by_adopt(0.9, 0.99)', False),  # whose first update is 0
        ('optax.identity()', False),
    ],
)
def test_optimizer_that_trains_uphill(tmp_path, optimizer, is_refused):
  variant = f'ext.variant("optimizer.name", "own", lambda hparams: {optimizer})'
  found = load(tmp_path, f'  import optax, optax.contrib\n  return [{variant}]')
  (config,) = found.runs.configs.values()
  config['optimizer']['name'] = 'own'
  if is_refused:
    with pytest.raises(BadInput, match='=own: its updates point down'):
      extension_trace.check('own.py', found.runs.configs)
  else:
    extension_trace.check('own.py', found.runs.configs)


@pytest.mark.parametrize('probes', [{}, 'x', [1]])
def test_damaged_names_of_probes(tmp_path, probes):
  record = load(tmp_path, '  return []').extensions.to_json()
  extensions.register_stored(record | {'probes': ['x']})
  with pytest.raises(BadInput, match='probes is of a wrong type'):
    extensions.register_stored(record | {'probes': probes})


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
  assert set(found.extensions.files) == {*OWN, 'own_rules.py', 'own_maths.py'}
  digest = found.extensions.sha256
  (tmp_path / 'own_maths.py').write_text('x = 1\n')
  assert load(tmp_path, '  import own_rules\n  return []').extensions.sha256 != digest


# Of a config file that imports configs.base.
OWN = {'own.py', 'configs/__init__.py', 'configs/base.py'}


@pytest.fixture
def project(tmp_path, monkeypatch):
  """The current folder is a project of the user's, with modules in folders of all kinds."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend('')
  modules = dict(sys.modules)
  path = list(sys.modules['configs'].__path__) if 'configs' in sys.modules else None
  for name in [name for name in sys.modules if name.partition('.')[0] == 'configs']:
    monkeypatch.delitem(sys.modules, name)
  for name, text in {
      'plain/rules.py': 'from plain.deep import maths\nfrom . import near\n',
      'plain/near.py': '',
      'plain/unused.py': '',
      'plain/deep/maths.py': 'VALUE = "copied"\n',
      'whole/__init__.py': '',
      'whole/by_name.py': '',
      'configs/mine.py': 'from . import deeper\nVALUE = deeper.VALUE\n',
      'configs/deeper.py': 'VALUE = "copied"\n',
      'configs/unused.py': '',
      'called.py': '',
  }.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
  yield tmp_path
  for name in sys.modules.keys() - modules.keys():
    if name.partition('.')[0] in ('plain', 'whole', 'called', 'configs'):
      del sys.modules[name]
  if path is not None:
    modules['configs'].__path__ = path


IMPORTS = """  import importlib, plain.rules, whole
  from configs import mine
  importlib.import_module('called')
  return [ext.number('own.' + mine.VALUE + '_' + plain.rules.maths.VALUE, 0.5, 'It.')]"""
COPIED = {
    *(*OWN, 'configs/mine.py', 'configs/deeper.py', 'called.py'),
    *('plain/rules.py', 'plain/near.py', 'plain/deep/maths.py'),
    *('whole/__init__.py', 'whole/by_name.py'),
}


def test_modules_of_folders_and_of_configs_are_part_of_the_sources(project):
  """Of a folder without __init__.py and of configs, those that are imported; all of a package."""
  found = load(project, IMPORTS).extensions
  assert set(found.files) == COPIED
  assert found.files['configs/base.py'] == (ROOT / 'configs/base.py').read_bytes()
  digests = {found.sha256}
  for name in ('configs/deeper.py', 'plain/deep/maths.py', 'whole/by_name.py'):
    with (project / name).open('a') as file:
      file.write('# edited\n')
    digests.add(load(project, IMPORTS).extensions.sha256)
  (project / 'plain/unused.py').write_text('# edited\n')
  digests.add(load(project, IMPORTS).extensions.sha256)
  assert len(digests) == 4


LOADED = """
import json, pathlib, sys
sys.path.append('')  # as for workers, see launch/common/programs.py
from stability import config, extensions
extensions.load(pathlib.Path('sweep'), json.loads(sys.argv[1]))
print([name for name in config.FIELDS if name.startswith('own.')])
"""


@pytest.mark.parametrize('kind', ['folder', 'package', 'module'])
def test_workers_import_the_copies(project, kind):
  """Whatever the user's configs is, and also once its files are changed."""
  if kind == 'package':
    (project / 'configs/__init__.py').write_text('KIND = "package"\n')
  elif kind == 'module':
    (project / 'configs.py').write_text('KIND = "module"\n')
    (project / 'configs').rename(project / 'elsewhere')
  body = IMPORTS
  if kind != 'folder':
    body = '  import configs\n' + body.replace('mine.VALUE', 'configs.KIND')
  if kind == 'module':
    body = body.replace(' import mine', ' import base')
  found = load(project, body).extensions
  for name, content in found.files.items():
    path = project / 'sweep' / found.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  for path in [*project.glob('*.py'), *project.glob('*/*.py'), *project.glob('plain/*/*.py')]:
    path.write_text('raise RuntimeError("the live file is imported")\n')
  done = subprocess.run(
      [sys.executable, '-P', '-c', LOADED, json.dumps(found.to_json())],
      capture_output=True,
      text=True,
      check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == f"['own.{'copied' if kind == 'folder' else kind}_copied']\n"


def test_modules_that_cannot_be_copied(project):
  """Compiled ones, and those whose copy would replace another."""
  (project / 'compiled.pyc').write_bytes(b'')
  py_compile.compile(str(project / 'called.py'), cfile=str(project / 'compiled.pyc'))
  with pytest.raises(BadInput, match=r'own.py: imports compiled: .*compiled.pyc is no file'):
    load(project, '  import compiled\n  return []')
  suffix = machinery.EXTENSION_SUFFIXES[0]
  (project / f'whole/fast{suffix}').write_bytes(b'')
  with pytest.raises(BadInput, match=rf'imports whole: .*whole/fast{suffix} is no file of Python'):
    load(project, '  import whole\n  return []')
  (project / 'own.py').write_text('')
  folder = project / 'experiments'
  folder.mkdir()
  with pytest.raises(BadInput, match=r'imports own, whose file .*own.py has the name of'):
    load(folder, '  import own\n  return []')


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
