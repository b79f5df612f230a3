"""launch.common.start: what is prepared before workers start."""

import json
import shutil

import pytest

from launch import sweep as sweep_program
from launch.common import app, start
from stability import extensions
from stability.control import limits
from stability.control.limits import Limits
from stability.data import sources
from stability.errors import BadInput
from stability.storage import parents, results_csv, run_files, sweeps
from stability.trainer import parents as trainer_parents

pytestmark = pytest.mark.slow

EXPERIMENT = """
import flax.linen as nn
from configs import base
from stability import hyper
from stability.extensions import variant


class Wide(nn.Module):
  c: object

  @nn.compact
  def __call__(self, x, hparams):
    WIDE = self.param('wide', nn.initializers.ones, (x.shape[-1], 3))
    return x @ WIDE @ WIDE.T FAULT


def get_extensions():
  return [variant('model.mlp', 'wide', Wide)]


def get_config(scale='cpu'):
  c = base.get_config(scale)
  c.data.source = 'synthetic'
  c.model.depth = 2
  return c


def get_sweep(scale='cpu'):
  return hyper.sweep('model.mlp', ['gelu', 'wide'])
"""
PARAMETERS = {'gelu': 12 * 2 * 64**2, 'wide': 2 * (4 * 64**2 + 64 * 3)}


@pytest.fixture
def prepare(tmp_path):
  """A function that prepares a sweep with an MLP from outside."""

  def prepared(fault='', seeds=1, change=lambda text: text):
    (tmp_path / 'my.py').write_text(change(EXPERIMENT.replace('FAULT', fault)))
    sweep = app.load(str(tmp_path / 'my.py'), {}, seeds=seeds)
    start.prepare(sweep, tmp_path / 'dir', [])
    return tmp_path / 'dir'

  yield prepared
  extensions.reset()


def test_parameters(prepare):
  """sweep.json and results.csv have the count of each run; one that gains runs keeps counts."""
  workdir = prepare()
  counts = sweeps.read_sweep(workdir).parameters
  assert counts == {f'mlp={mlp},seed=0': count for mlp, count in PARAMETERS.items()}
  stored = json.loads((workdir / 'sweep.json').read_text())
  stored['parameters']['mlp=gelu,seed=0'] = 5
  (workdir / 'sweep.json').write_text(json.dumps(stored))
  workdir = prepare(seeds=2)
  rows = {row['run']: row['parameters'] for row in results_csv.read_results(workdir)}
  assert rows == {
      'mlp=gelu,seed=0': 5,
      'mlp=gelu,seed=1': PARAMETERS['gelu'],
      'mlp=wide,seed=0': PARAMETERS['wide'],
      'mlp=wide,seed=1': PARAMETERS['wide'],
  }


def test_parameters_of_old_workdir(prepare):
  workdir = prepare()
  stored = json.loads((workdir / 'sweep.json').read_text())
  del stored['parameters']
  (workdir / 'sweep.json').write_text(json.dumps(stored))
  assert {row['parameters'] for row in results_csv.read_results(workdir)} == {12 * 2 * 64**2}


@pytest.mark.parametrize('parameters', [[], {'seed=0': 1.5}, {'seed=0': -1}, {'seed=0': True}])
def test_damaged_parameters(prepare, parameters):
  workdir = prepare()
  stored = json.loads((workdir / 'sweep.json').read_text())
  (workdir / 'sweep.json').write_text(json.dumps(stored | {'parameters': parameters}))
  with pytest.raises(BadInput, match=r'sweep\.json: damaged: parameters must have'):
    sweeps.read_sweep(workdir)


def test_what_a_killed_start_has_left_is_removed(prepare):
  workdir = prepare()
  before = set(workdir.rglob('*'))
  (workdir / 'data' / f'.{"0" * 16}.{"a" * 32}').mkdir()
  for path in ('.sweep.json', 'runs/mlp=gelu,seed=0/.config.json'):
    (workdir / f'{path}.0123abcd.tmp').touch()
  prepare()
  assert set(workdir.rglob('*')) == before


def test_extension_that_fails_when_traced(prepare, tmp_path):
  message = r'my.py: its extensions fail: TypeError: .*incompatible'
  with pytest.raises(BadInput, match=message):
    prepare('@ WIDE')
  assert not (tmp_path / 'dir' / 'sweep.json').exists()


NUMBER = "__import__('stability').extensions.number('mine.x', 0.5, 'It.')"


@pytest.mark.parametrize(
    'entry, value, said',
    [
        ("variant('model.mlp', 'wide2', Wide)", 'wide2', 'config.model.mlp=wide2'),
        (NUMBER, 'wide', 'config.mine.x'),
    ],
)
def test_extension_that_gains_an_entry(prepare, tmp_path, entry, value, said):
  """Refused before anything is written, as the workdir's copy lacks it; an unused one is not."""
  before = (prepare() / 'sweep.json').read_bytes()

  def gain(text):
    text = text.replace('Wide)]', f'Wide), {entry}]')
    return text.replace("['gelu', 'wide']", f"['gelu', 'wide'] + ['{value}'] * {value != 'wide'}")

  with pytest.raises(BadInput, match=rf'before .*my\.py added {said}, .*choose a new folder'):
    prepare(change=gain)
  assert (tmp_path / 'dir/sweep.json').read_bytes() == before
  unused = "variant('model.mlp', 'unused', Wide)"
  prepare(change=lambda text: text.replace('Wide)]', f'Wide), {unused}]'))
  assert sweeps.read_sweep(tmp_path / 'dir').extensions['values'] == {'model.mlp': ['wide']}


def test_extensions_of_a_sweep_begun_without(prepare, tmp_path, capsys):
  def unused(text):
    return text.replace("['gelu', 'wide']", "['gelu']")

  def without(text):
    return unused(text).replace('get_extensions', 'later')

  before = (prepare(change=without) / 'sweep.json').read_bytes()
  with pytest.raises(BadInput, match=r'was begun without the extensions of .*my\.py; choose'):
    prepare(change=unused)
  program = ['sweep', f'--config={tmp_path}/my.py', f'--workdir={tmp_path}/dir', '--seeds=1']
  assert app.execute(sweep_program.main, sweep_program.FLAGS, [*program, '--dry_run']) == 2
  assert 'was begun without the extensions of' in capsys.readouterr().err
  assert (tmp_path / 'dir/sweep.json').read_bytes() == before
  prepare(change=without)


PROBE = '''
from configs import base
from stability import extensions as ext

get_config = base.get_config

def mine(inside):
  return {'x': inside.hparams['probe.gone']}

def get_extensions():
  return [ext.term('probes', 'mine', mine)]
'''


@pytest.mark.parametrize('arguments', [['--workdir=runs'], ['--dry_run']])
def test_probe_that_fails_when_traced(tmp_path, monkeypatch, capsys, arguments):
  """The line of the user's file, before any worker starts and anything is written."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'probe.py').write_text(PROBE)
  program = ['sweep', '--config=probe.py', '--config.model.width=16', *arguments]
  assert app.execute(sweep_program.main, sweep_program.FLAGS, program) == 2
  error = capsys.readouterr().err
  assert error == "error: probe.py:8: its extensions fail: KeyError: 'probe.gone'\n"
  assert {path.name for path in tmp_path.iterdir()} <= {'probe.py', '__pycache__'}


# Starts with other options.


@pytest.fixture
def begin(tmp_path, capsys):
  """A function that starts a sweep of two runs and returns what it prints to stderr."""
  (tmp_path / 'text').write_text('one two three four\n' * 500)
  (tmp_path / 'my.py').write_text("""
from configs import base
from stability import hyper

get_config = base.get_config


def get_sweep(scale='cpu'):
  return hyper.sweep('optimizer.learning_rate', [1e-3, 1e-2])
""")

  def begun(**overrides):
    overrides = {field.replace('__', '.'): value for field, value in overrides.items()}
    overrides = {'data.path': str(tmp_path / 'text')} | overrides
    start.prepare(app.load(str(tmp_path / 'my.py'), overrides), tmp_path / 'dir', [])
    return capsys.readouterr().err

  return begun


def logged(workdir):
  """log.every_steps of each run, in sweep.json and in its config.json."""
  return {
      name: (config['log']['every_steps'], run_files.read_config(folder)['log']['every_steps'])
      for name, config in sweeps.read_sweep(workdir).runs.items()
      for folder in [workdir / 'runs' / name]
  }


def test_options_that_change_no_number(begin, tmp_path):
  """Runs that are left to train take them; config.json and runs that have ended keep theirs."""
  assert not begin()
  first, second = sweeps.read_sweep(tmp_path / 'dir').runs
  run_files.write_result(tmp_path / 'dir' / 'runs' / first, run_files.Result('done'))
  (tmp_path / 'text').rename(tmp_path / 'moved')
  said = begin(log__every_steps=3, data__path=str(tmp_path / 'moved'))
  assert said.count('\n') == 1 and 'warning' not in said
  assert 'config.log.every_steps 10 -> 3' in said and f'-> {tmp_path / "moved"},' in said
  assert logged(tmp_path / 'dir') == {first: (10, 10), second: (3, 10)}
  assert not begin(log__every_steps=3, data__path=str(tmp_path / 'moved'))


def test_adapter_of_random_weights(begin, tmp_path):
  with pytest.raises(BadInput, match=r"config.init.adapter='x': must be unset without config.init"):
    begin(adapter__kind='lora', init__adapter='x')
  said = 'warning: config.adapter.kind=lora without config.init.checkpoint: the frozen weights are'
  assert said in begin(adapter__kind='lora')


def test_parent_that_an_interrupted_start_has_left(begin, tmp_path, monkeypatch):
  """A record is binding only if sweep.json has the run."""
  left, made = ({'checkpoint': {'sha256': digest}} for digest in ('left', 'made'))
  given = []

  class Checker:
    warnings = ()

    def __init__(self, tokenizer):
      pass

    def record(self, config, old):
      given.append(old)
      return made

  monkeypatch.setattr(trainer_parents, 'Checker', Checker)
  monkeypatch.setattr(trainer_parents, 'check_tokenizer', lambda *_: None)
  run = tmp_path / 'dir/runs/learning_rate=0.001,seed=0'
  parents.write(run, left)
  begin(init__checkpoint='x')
  assert given == [{}, {}] and parents.read(run) == made
  begin(init__checkpoint='x')
  assert given[2:] == [made, made]
  shutil.rmtree(tmp_path / 'dir')
  parents.write(run, left)
  begin()
  assert parents.read(run) == {}


def test_options_that_change_rounding(begin, tmp_path):
  begin()
  said = begin(parallel__microbatches=2, probe__every_steps=5)
  assert said.count('\n') == 1 and said.startswith(f'warning: --workdir={tmp_path / "dir"}: ')
  assert 'config.parallel.microbatches None -> 2, config.probe.every_steps 20 -> 5;' in said
  runs = sweeps.read_sweep(tmp_path / 'dir').runs.values()
  assert {config['parallel']['microbatches'] for config in runs} == {2}


def test_workdir_in_its_own_text(begin, tmp_path):
  with pytest.raises(BadInput) as error:
    begin(data__path=str(tmp_path))
  assert str(error.value) == (
      f'--workdir={tmp_path / "dir"}: lies in config.data.path={str(tmp_path)!r}; name a folder'
      ' outside it'
  )
  assert not (tmp_path / 'dir').exists()
  begin()
  for file in (tmp_path / 'dir/data').glob('*/*'):
    shutil.copy(file, tmp_path)
  shutil.rmtree(tmp_path / 'dir')
  begin(data__path=str(tmp_path))  # of a token folder, only the token files are read


def test_moved_path_to_other_text(begin, tmp_path):
  begin()
  (tmp_path / 'other').write_text('five six seven eight\n' * 500)
  with pytest.raises(BadInput, match='trained on other text'):
    begin(data__path=str(tmp_path / 'other'))


def test_embedded_text_of_another_python(begin, tmp_path, monkeypatch):
  """A sweep continues with its own token files, but not without them, nor if it had other text."""

  def install(text):
    (tmp_path / 'library.py').write_text(text * 500)
    files = {'library.py': tmp_path / 'library.py'}
    monkeypatch.setattr(sources, '_library_files', lambda _: files)

  install('one two three four\n')
  begin(data__path=None)
  before = sweeps.read_sweep(tmp_path / 'dir').data
  install('five six seven eight\n')
  begin(data__path=None)
  assert sweeps.read_sweep(tmp_path / 'dir').data == before
  shutil.rmtree(tmp_path / 'dir' / before['path'])
  with pytest.raises(BadInput, match='trained on other text'):
    begin(data__path=None)
  shutil.rmtree(tmp_path / 'dir')
  begin()
  with pytest.raises(BadInput, match='trained on other text'):
    begin(data__path=None)


@pytest.fixture
def token_folder(begin, tmp_path):
  """A token folder of bytes."""
  begin()
  (folder,) = {path.parent for path in (tmp_path / 'dir/data').glob('*/meta.json')}
  folder.rename(tmp_path / 'tokens')
  shutil.rmtree(tmp_path / 'dir')
  return tmp_path / 'tokens'


@pytest.mark.parametrize(
    'option, value, found',
    [('data.tokenizer', 'bpe', 'tokenizer=bytes'), ('data.vocabulary_size', 300, 'size=256')],
)
def test_tokenizer_given_for_a_token_folder(
    begin, token_folder, tmp_path, monkeypatch, option, value, found
):
  path = {'data__path': str(token_folder)}
  with pytest.raises(BadInput, match=rf'^--config.{option}={value}: must be left out.*{found}$'):
    begin(**path, **{option.replace('.', '__'): value})
  assert not (tmp_path / 'dir').exists()
  with monkeypatch.context() as patch:
    patch.setattr(start, '_check_tokenizer', lambda *_: None)
    begin(**path, **{option.replace('.', '__'): value})
  begin(**path, **{option.replace('.', '__'): value})  # a workdir from before it was refused
  shutil.rmtree(tmp_path / 'dir')
  begin(**path, data__tokenizer='bytes')


def test_tokenizer_of_a_config_file_and_a_token_folder(begin, token_folder, tmp_path, capsys):
  """As at the scale `paper`, whose path is given; a line says what is used."""
  path = tmp_path / 'paper.py'
  path.write_text("""
from configs import base

def get_config(scale='cpu'):
  c = base.get_config(scale)
  c.data.tokenizer, c.data.vocabulary_size = 'bpe', 32_101
  return c
""")
  start.prepare(app.load(str(path), {'data.path': str(token_folder)}), tmp_path / 'paper', [])
  assert capsys.readouterr().out == (
      f'text: {token_folder} is a token folder: its tokenizer=bytes and vocabulary_size=256 are'
      ' used, not config.data.tokenizer=bpe, config.data.vocabulary_size=32101\n'
  )
  overrides = {'data.path': str(tmp_path / 'text'), 'data.vocabulary_size': 260}
  start.prepare(app.load(str(path), overrides), tmp_path / 'other', [])
  assert 'token folder' not in capsys.readouterr().out


def test_limits_of_alarms(begin, tmp_path):
  """Each run has a copy; the file may go, but not change, while runs are unfinished."""
  path, moved = tmp_path / 'mine.json', tmp_path / 'moved.json'
  made = Limits({'attention_logit': {'limit': 50.0, 'odds': 2.0}}, {'digests': []})
  limits.write(path, made)
  begin(control__limits=str(path))
  copies = list((tmp_path / 'dir/runs').glob('*/limits.json'))
  assert len(copies) == 2 and all(limits.read(copy) == made for copy in copies)
  path.rename(moved)
  begin(control__limits=str(path))  # the copies do
  limits.write(path, Limits({}, {'digests': []}))
  with pytest.raises(BadInput, match=r'has other limits than learning_rate=.* was begun with'):
    begin(control__limits=str(path))
  with pytest.raises(BadInput, match=r'config.control.limits=.*, this one None'):
    begin()


def test_bad_limits(begin, tmp_path):
  (tmp_path / 'mine.json').write_text('{"limits": {"x": {}}, "made_from": {}}')
  for name, said in (('gone.json', 'gone.json'), ('mine.json', 'x: is no rule')):
    with pytest.raises(BadInput, match=f'^config.control.limits: .*{said}'):
      begin(control__limits=str(tmp_path / name))
  assert not (tmp_path / 'dir').exists()
