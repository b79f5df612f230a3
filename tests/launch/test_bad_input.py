"""Bad input: each ends with one clear line on stderr, exit code 2 and nothing written."""

import os
import pathlib
import subprocess
import sys

import pytest
from helpers import made_up

from configs import base
from launch import control, predict, report, sweep, train, work
from launch.common import app
from stability import config as config_lib
from stability import hyper
from stability.storage import files

ROOT = pathlib.Path(__file__).parents[2]
BASE = f'--config={ROOT}/configs/base.py'
QUICKSTART = f'--config={ROOT}/configs/quickstart.py'

GET_CONFIG = "def get_config(scale='cpu'): return base.get_config(scale)"

# Arguments beside --workdir, and what the error must mention.
ARGUMENTS = {
    'no config': ([], ['--config: missing', 'FILE.py']),
    'empty config': (['--config='], ['--config: missing']),
    'no such file': (['--config=nowhere.py'], ['--config=nowhere.py: no such file']),
    'folder as config': (['--config=configs'], ['--config=configs: must be FILE.py']),
    'folder named .py': (['--config=folder.py'], ['--config=folder.py: no such file']),
    'config without .py': (['--config=bse:cpu'], ['--config=bse:cpu: must be FILE.py', 'is base']),
    'file of this package': (['--config=x/base.py'], ['no such file; --config=base is']),
    'junk after .py': (['--config=base.pyx'], ['--config=base.pyx: must be FILE.py']),
    'scale alone': (['--config=:cpu'], ['--config=:cpu: must be FILE.py']),
    'null byte': (['--config=a\0.py'], ['a\\x00.py', 'must not contain a NUL']),
    'not UTF-8': ([BASE, '--workdir=\udcff'], ['\\udcff', 'must be UTF-8']),
    'unknown scale': ([BASE + ':big'], ['base.py', "scale 'big'", 'cpu, night, gpu, paper']),
    'unknown scale of a sweep': ([QUICKSTART + ':big'], ["scale 'big'", 'cpu, night, gpu, paper']),
    'empty scale': ([BASE + ':'], ["scale ''", 'cpu, night, gpu, paper']),
    'no such parent': (
        [BASE, '--config.init.checkpoint=nowhere/runs/seed=0'],
        ["config.init.checkpoint='nowhere/runs/seed=0': there is no such run; train it first"],
    ),
    'parent on the web': (
        [BASE, '--config.init.checkpoint=gs://bucket/runs/seed=0'],
        ['init.checkpoint', 'not a URL'],
    ),
    'unknown flag': ([BASE, '--wrokdir=x'], ['--wrokdir: no such flag', 'nearest is --workdir']),
    'unknown flag, no value': ([BASE, '--wrokdir'], ['--wrokdir', 'nearest is --workdir']),
    'unknown field': (
        [BASE, '--config.model.widht=64'],
        ['--config.model.widht', 'nearest is --config.model.width'],
    ),
    'abbreviation': (
        [BASE, '--config.optimizer.lr=1'], ['nearest is --config.optimizer.learning_rate']
    ),
    'unknown section': ([BASE, '--config.modle.width=64'], ['nearest is --config.model.width']),
    'section as field': ([BASE, '--config.model=64'], ['--config.model: no such flag']),
    'flag without value': ([BASE, '--config.seed'], ['--config.seed', 'Missing value']),
    'positional': ([BASE, 'extra'], ["'extra': stray"]),
    'positional before flags': (['extra', BASE], ["'extra': stray"]),
    'dash alone': ([BASE, '-'], ["'-': stray"]),
    'empty argument': ([BASE, ''], ["'': stray"]),
    'terminal codes': ([BASE, 'a\x1b[31m\nb'], ['\\x1b[31m']),
    'no flag file': ([BASE, '--flagfile=nowhere'], ['nowhere']),
    'int: fraction': ([BASE, '--config.seed=3.5'], ['error: --config.seed=3.5: must be']),
    'int: word': ([BASE, '--config.model.width=wide'], ['--config.model.width=wide', 'an integer']),
    'int: bool': ([BASE, '--config.seed=True'], ['--config.seed=True', 'an integer']),
    'int: too large': ([BASE, '--config.seed=2147483648'], ['seed=2147483648', '2^31 - 1']),
    'int: endless': ([BASE, '--config.seed=' + '9' * 5000], ['--config.seed=9', '2^31 - 1']),
    'int: empty': ([BASE, '--config.seed='], ['--config.seed=: must be an integer']),
    'int: none': ([BASE, '--config.parallel.members=none'], ['members=none: must be an integer']),
    'float: junk': (
        [BASE, '--config.optimizer.learning_rate=1e-2x'],
        ['--config.optimizer.learning_rate=1e-2x: must be a number'],
    ),
    'float: empty': ([BASE, '--config.optimizer.learning_rate='], ['must be a number above 0']),
    'float: bool': ([BASE, '--config.objective.z_loss=false'], ['z_loss=false: must be a number']),
    'str: not a choice': ([BASE, '--config.model.qk_norm=on'], ['qk_norm=on', 'fixed, none']),
    'str: empty path': ([BASE, '--config.data.path='], ['--config.data.path=: must be a file']),
    'LR: 0': ([BASE, '--config.optimizer.learning_rate=0'], ['a number above 0']),
    'LR: negative': ([BASE, '--config.optimizer.learning_rate=-0.1'], ['a number above 0']),
    'LR: nan': ([BASE, '--config.optimizer.learning_rate=nan'], ['=nan: must be a number above 0']),
    'LR: inf': ([BASE, '--config.optimizer.learning_rate=inf'], ['=inf: must be a number above 0']),
    'LR: 0 in float32': ([BASE, '--config.optimizer.learning_rate=1e-60'], ['in float32']),
    'LR: inf in float32': ([BASE, '--config.optimizer.learning_rate=1e60'], ['in float32']),
    'beta: 1': ([BASE, '--config.optimizer.beta2=1'], ['beta2=1: must be', '0 or more, below 1']),
    'beta: 1 in float32': ([BASE, '--config.optimizer.beta2=0.9999999999'], ['0 or more, below 1']),
    'eps': ([BASE, '--config.optimizer.eps=9e-20'], ['eps=9e-20: must be', '1e-19 or more']),
    'weight decay': ([BASE, '--config.optimizer.weight_decay=-1'], ['=-1: must be', '0 or more']),
    'steps: 0': ([BASE, '--config.schedule.steps=0'], ['schedule.steps=0', 'an integer from 1']),
    'batch: 0': ([BASE, '--config.data.batch_size=0'], ['batch_size=0', 'an integer from 1']),
    'length: 0': ([BASE, '--config.data.sequence_length=0'], ['sequence_length=0', 'from 1']),
    'width: 0': ([BASE, '--config.model.width=0'], ['model.width=0', 'an integer from 1']),
    'depth: -1': ([BASE, '--config.model.depth=-1'], ['model.depth=-1', 'an integer from 0']),
    'head dim: 0': ([BASE, '--config.model.head_dim=0'], ['model.head_dim=0', 'an integer from 1']),
    'head dim: odd': (
        [BASE, '--config.model.width=15', '--config.model.head_dim=5'],
        ['config.model.head_dim=5: must be even', 'RoPE'],
    ),
    'width and head dim': (
        [BASE, '--config.model.width=40'],
        ['config.model.width=40', 'multiple of config.model.head_dim=16'],
    ),
    'lowest LR above LR': (
        [BASE, '--config.schedule.min_learning_rate=0.1'],
        ['config.schedule.min_learning_rate=0.1', 'above config.optimizer.learning_rate=0.01'],
    ),
    'warm-up too long': (
        [BASE, '--config.schedule.steps=10'],
        ['config.schedule.warmup_steps=25', 'above config.schedule.steps=10'],
    ),
    'path of a synthetic text': (
        [BASE, '--config.data.source=synthetic', '--config.data.path=x'],
        ['config.data.path', 'synthetic'],
    ),
    'override of a swept field': (
        [QUICKSTART, '--config.model.width=64'],
        ['config.model.width: must not be overridden, since the sweep varies it'],
    ),
}

# The body of experiment.py after its two imports, and what the error must mention.
FILES = {
    'syntax': ('def get_config(:', ['experiment.py:3: SyntaxError: invalid syntax\n']),
    'not text': ('\0', ['experiment.py']),
    'import': ('import no_such_module', ['experiment.py:3: ModuleNotFoundError', 'no_such_module']),
    'name': ("def get_config(scale='cpu'):\n  return bass", ['experiment.py:4: NameError', 'bass']),
    'exit': ('raise SystemExit(0)', ['experiment.py:3: SystemExit']),
    'many lines': ("raise ValueError('one\\ntwo')", ['experiment.py:3: ValueError: one two']),
    'no get_config': ('config = base.get_config()', ["must define get_config(scale='cpu')"]),
    'get_config is a value': ('get_config = 3', ["must define get_config(scale='cpu')"]),
    'no scale': ('def get_config(): return base.get_config()', ['get_config must take a scale']),
    'scale without default': ('def get_config(scale): return 1', ['get_config must take a scale']),
    'dict': (
        "def get_config(scale='cpu'): return {}",
        ['get_config returns a dict, must be a ConfigDict'],
    ),
    'nothing returned': ("def get_config(scale='cpu'): pass", ['returns a NoneType']),
    'wrong type': (
        "def get_config(scale='cpu'):\n  c = base.get_config()\n  c.model.width = 'x'",
        ['experiment.py:5: TypeError', 'width'],
    ),
    'new field': (
        "def get_config(scale='cpu'):\n  c = base.get_config()\n  c.model.widht = 1\n  return c",
        ['experiment.py: config.model.widht: no such field', 'nearest is config.model.width'],
    ),
    'new empty section': (
        "def get_config(scale='cpu'):\n  c = base.get_config()\n  c.modle = {}\n  return c",
        ['experiment.py: config.modle: no such field'],
    ),
    'missing field': (
        "def get_config(scale='cpu'):\n  c = base.get_config()\n  del c.seed\n  return c",
        ['experiment.py: config.seed: missing'],
    ),
    'bad value': (
        "def get_config(scale='cpu'):\n  c = base.get_config()\n  c.seed = -1\n  return c",
        ['experiment.py: config.seed=-1: must be an integer from 0'],
    ),
    'computed value fails': (
        "def get_config(scale='cpu'):\n  c = base.get_config()\n"
        "  c.schedule.warmup_steps = c.schedule.get_ref('steps') // c.get_ref('seed')\n  return c",
        ['experiment.py', 'ZeroDivisionError'],
    ),
    'sweep raises': (
        f'{GET_CONFIG}\ndef get_sweep(scale):\n  yield {{}}\n  yield 1 // 0',
        ['experiment.py:6: ZeroDivisionError'],
    ),
    'sweep is a value': (f'{GET_CONFIG}\nget_sweep = 3', ['experiment.py: TypeError', 'callable']),
    'sweep returns nothing': (
        f'{GET_CONFIG}\ndef get_sweep(scale): pass',
        ['experiment.py: get_sweep returns a NoneType, must be a list of points'],
    ),
    'sweep of words': (
        f"{GET_CONFIG}\ndef get_sweep(scale): return ['seed']",
        ["get_sweep: yields 'seed', must be a dict"],
    ),
    'sweep of numbers': (
        f'{GET_CONFIG}\ndef get_sweep(scale): return [{{1: 2}}]',
        ['get_sweep: yields {1: 2}, must be a dict'],
    ),
    'empty sweep': (
        f"{GET_CONFIG}\ndef get_sweep(scale): return hyper.sweep('seed', [])",
        ['experiment.py: get_sweep: describes no runs'],
    ),
    'sweep of an unknown field': (
        f"{GET_CONFIG}\ndef get_sweep(scale): return hyper.sweep('model.widht', [1])",
        ['experiment.py: config.model.widht: no such field', 'nearest is config.model.width'],
    ),
    'sweep with a bad value': (
        f"{GET_CONFIG}\ndef get_sweep(scale): return hyper.sweep('model.width', [64, 65])",
        ['experiment.py: config.model.width=65', 'multiple of config.model.head_dim'],
    ),
    'sweep of the data': (
        f"{GET_CONFIG}\ndef get_sweep(scale): return hyper.sweep('data.path', ['a', 'b'])",
        ['config.data.path: must not be swept'],
    ),
    'duplicate runs': (
        f"{GET_CONFIG}\ndef get_sweep(scale): return hyper.sweep('seed', [1, 2, 1])",
        ['experiment.py: get_sweep: two runs are the same: seed=1'],
    ),
    'field swept twice': (
        f"{GET_CONFIG}\ndef get_sweep(scale):\n"
        "  return hyper.product([hyper.fixed('seed', 1), hyper.fixed('seed', 2)])",
        ['experiment.py:5: config.seed: swept twice'],
    ),
}

# Cases of ARGUMENTS to run as processes.
PROCESSES = (
    'no config',
    'unknown scale',
    'unknown field',
    'positional',
    'LR: nan',
    'override of a swept field',
)

@pytest.fixture
def folder(tmp_path, monkeypatch):
  (tmp_path / 'folder.py').mkdir()
  monkeypatch.chdir(tmp_path)
  return tmp_path


def check(code: int, out: str, err: str, said: list[str]) -> None:
  """Checks for exit code 2, nothing on stdout, and one line on stderr that has these words."""
  assert (code, out) == (2, ''), err
  assert err.startswith('error: ') and err.count('\n') == 1 and err.endswith('\n'), err
  assert 'Traceback' not in err
  for words in said:
    assert words in err


def refuse(folder: pathlib.Path, arguments: list[str], said: list[str], capsys) -> None:
  """Checks that launch.sweep refuses these arguments and writes nothing."""
  before = sorted(folder.rglob('*'))
  code = app.execute(sweep.main, sweep.FLAGS, ['sweep', '--workdir=runs', *arguments])
  check(code, *capsys.readouterr(), said)
  assert sorted(folder.rglob('*')) == before


@pytest.mark.parametrize('case', ARGUMENTS)
def test_arguments(case, folder, capsys):
  refuse(folder, *ARGUMENTS[case], capsys)


@pytest.mark.parametrize('case', FILES)
def test_config_file(case, folder, capsys):
  body, said = FILES[case]
  (folder / 'experiment.py').write_text(
      f'from configs import base\nfrom stability import hyper\n{body}\n'
  )
  refuse(folder, ['--config=experiment.py'], said, capsys)


# Text and workdir: files to write first (name -> content), arguments, what the error must mention.
PLACES = {
    'no such path': ({}, ['--config.data.path=gone'], ['config.data.path', 'gone', 'no such file']),
    'empty text': ({'text': b''}, ['--config.data.path=text'], ['config.data.path', 'no text']),
    'folder without text': (
        {'texts/image.png': b'\x89PNG\0\0'},
        ['--config.data.path=texts'],
        ['config.data.path', 'holds no text'],
    ),
    'short text': (
        {'text': b'\n'.join(b'line %d' % i for i in range(60))},
        ['--config.data.path=text'],
        ['config.data.sequence_length=64', 'needs at least 65'],
    ),
    'text that yields no such vocabulary': (
        {'text': b'\n'.join(b'line %d' % i for i in range(60))},
        ['--config.data.path=text', '--config.data.tokenizer=bpe'],
        ['config.data.vocabulary_size=4096', 'must be at most'],
    ),
    'damaged token files': (
        {'tokens/meta.json': b'{}', 'tokens/train.bin': b'a', 'tokens/validation.bin': b'b'},
        ['--config.data.path=tokens'],
        ['tokens/meta.json', 'missing or of the wrong type'],
    ),
    'other things in the workdir': (
        {'runs/thesis.tex': b'x'},
        [],
        ['--workdir=runs', 'not empty and holds no sweep'],
    ),
    'workdir is a file': ({'runs': b'x'}, [], ['--workdir=runs', 'not a folder']),
    'damaged sweep': ({'runs/sweep.json': b'{'}, [], ['sweep.json: cannot be read']),
}


@pytest.mark.parametrize('case', PLACES)
def test_text_and_workdir(case, folder, capsys):
  files, arguments, said = PLACES[case]
  for name, content in files.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
  refuse(folder, [BASE, *arguments], said, capsys)


def test_workdir_of_another_sweep(folder, capsys):
  made_up.write_sweep(folder / 'runs')
  refuse(folder, [BASE], ['--workdir=runs: holds another sweep'], capsys)


def test_workdir_with_other_text(folder, capsys):
  (folder / 'text').write_text('one two three four\n' * 500)
  config = config_lib.unflatten(
      config_lib.flatten(base.get_config().to_dict()) | {'data.path': 'text'}
  )
  data = {'path': 'data/before', 'sha256': {'train': '1', 'validation': '2'}}
  made_up.write_runs(folder / 'runs', hyper.expand(config, [{}]), data)
  (folder / 'runs' / 'data').mkdir()
  before = sorted(folder.rglob('*'))
  code = app.execute(
      sweep.main, sweep.FLAGS, ['sweep', '--workdir=runs', BASE, '--config.data.path=text']
  )
  check(code, *capsys.readouterr(), ['--workdir=runs', 'trained on other text'])
  assert sorted(folder.rglob('*')) == before


@pytest.mark.parametrize('program', [sweep, train])
@pytest.mark.parametrize('arguments', [[], ['--workdir=']])
def test_no_workdir(program, arguments, folder, capsys):
  code = app.execute(program.main, program.FLAGS, ['program', BASE, *arguments])
  check(code, *capsys.readouterr(), ['--workdir: missing'])


RATE = 'optimizer.learning_rate'
# Changes of sweep.json, which stays valid JSON: a dotted place in it, where * is any run; the new
# value, or None to remove the place; what the error must mention.
CONTRADICTIONS = {
    'no runs': ('runs', {}, ['it has no runs']),
    'a run that is no config': ('runs.*', 7, ['its run', 'has no fields']),
    'a config that cannot be built': (
        'runs.*.model.head_dim',
        24,
        ['its run', 'width=16', 'must be a multiple of config.model.head_dim=24'],
    ),
    'a value of another kind': ('runs.*.seed', 0.5, ['config.seed=0.5: must be an integer']),
    'a number of another kind': ('runs.*.optimizer.learning_rate', 1, ['rate=1: must be a number']),
    'a value not allowed': ('runs.*.model.qk_norm', 'on', ["qk_norm='on': must be one of"]),
    'a section that is a field': ('runs.*.model', 3, ['config.model.width: missing']),
    'a section of optional fields': ('runs.*.data', 3, ['are mixed up']),
    'a field beside its section': ('runs.*', {'model.width': 4}, ['are mixed up']),
    'no such section': ('runs.*.schedule', None, ['config.schedule.steps: missing']),
    'a field that is not there': ('fields', [RATE, 'model.wdth'], ["'model.wdth', which its run"]),
    'a field twice': ('fields', [RATE, RATE], ['lists a field twice']),
    'a field that is no name': ('fields', [[]], ['fields lists []']),
    'no config file': ('config_file', None, ['config_file is missing']),
    'data of another kind': ('data.train_tokens', 'many', ['train_tokens is missing or of']),
}
PROGRAMS = {
    'report': (report, []),
    'predict': (predict, []),
    'control': (control, []),
    'work': (work, []),
    'sweep': (sweep, [BASE]),
}


def put(sweep_json, place, value):
  """Changes a place in sweep.json as an entry of CONTRADICTIONS says."""
  *way, last = place.split('.')
  inside = sweep_json
  for key in way:
    inside = inside[key if key != '*' else next(iter(inside))]
  last = last if last != '*' else next(iter(inside))
  if value is None:
    del inside[last]
  elif isinstance(value, dict) and value and isinstance(inside[last], dict):
    inside[last] |= value
  else:
    inside[last] = value


def refuse_changed(folder, place, value, program, said, capsys):
  """Checks that a program refuses a sweep after this change of its sweep.json."""
  made_up.write_sweep(folder / 'runs', widths=(16,), rates=(1e-2, 1e-1), seeds=(0,))
  sweep_json = files.read_json(folder / 'runs' / 'sweep.json')
  put(sweep_json, place, value)
  files.write_json(folder / 'runs' / 'sweep.json', sweep_json)
  module, arguments = PROGRAMS[program]
  code = app.execute(module.main, module.FLAGS, [program, '--workdir=runs', *arguments])
  check(code, *capsys.readouterr(), ['runs/sweep.json', *said])


@pytest.mark.parametrize('program', PROGRAMS)
@pytest.mark.parametrize('case', CONTRADICTIONS)
def test_inconsistent_sweep(case, program, folder, capsys):
  place, value, said = CONTRADICTIONS[case]
  refuse_changed(folder, place, value, program, said, capsys)
  assert {path.name for path in folder.glob('runs/*')} == {'runs', 'sweep.json'}


HUGE = {'width': 2**31 - 16, 'depth': 2**31 - 1, 'head_dim': 16}


@pytest.mark.parametrize(
    ('place', 'value', 'program', 'said'),
    [
        ('data.path', 'data/gone', 'work', ['its data, data/gone, is missing']),
        ('data.path', None, 'work', ['data: path is missing']),
        ('data.bigram_loss', None, 'report', ['data: bigram_loss is missing']),
        ('report', {'windows': 3}, 'report', ['windows=3: must be a list']),
        ('report', {'not_comparable': 'model.depth'}, 'predict', ["'model.depth': must be"]),
        ('runs.*.model', HUGE, 'report', ['too large']),
    ],
)
def test_sweep_without_what_a_program_needs(place, value, program, said, folder, capsys):
  refuse_changed(folder, place, value, program, said, capsys)


REPORTS = {
    'nothing': ([], ['--workdir, --results: exactly one of them']),
    'both': (['--workdir=runs', '--results=a.csv'], ['--workdir, --results: exactly one of them']),
    'no output': (['--results=a.csv'], ['--output: missing']),
    'no sweep': (['--workdir=runs'], ['--workdir=runs: holds no sweep']),
    'no sweep in one of two': (
        ['--workdir=empty,runs', '--output=x'],
        ['--workdir=empty: holds no sweep'],
    ),
    'no such results': (['--results=a.csv', '--output=x'], ['a.csv']),
}


@pytest.mark.parametrize('case', REPORTS)
def test_report(case, folder, capsys):
  arguments, said = REPORTS[case]
  before = sorted(folder.rglob('*'))
  check(app.execute(report.main, report.FLAGS, ['report', *arguments]), *capsys.readouterr(), said)
  assert sorted(folder.rglob('*')) == before


PREDICTIONS = {
    'nothing': ([], ['--workdir: missing']),
    'no sweep': (['--workdir=runs'], ['--workdir=runs: holds no sweep']),
    'target': (['--workdir=runs', '--target=big'], ['--target=big: must be one of 9.2K', '4.8B']),
    'no target': (['--workdir=runs', '--target='], ['--target=: must be']),
    'none of it': (['--workdir=runs', '--target=0'], ['--target=0: must be']),
    'endless': (['--workdir=runs', '--target=inf'], ['--target=inf: must be']),
    'one of two': (['--workdir=runs', '--target=7B,big'], ['--target=big: must be', 'such as 7B']),
    'risk': (['--workdir=runs', '--target=7B', '--risk=0'], ['--risk=0: must be from 0.01 to 0.5']),
    'fit up to': (['--workdir=runs', '--fit_up_to=big'], ['--fit_up_to=big: must be one of 9.2K']),
}


@pytest.mark.parametrize('case', PREDICTIONS)
def test_predict(case, folder, capsys):
  arguments, said = PREDICTIONS[case]
  before = sorted(folder.rglob('*'))
  code = app.execute(predict.main, predict.FLAGS, ['predict', *arguments])
  check(code, *capsys.readouterr(), said)
  assert sorted(folder.rglob('*')) == before


@pytest.mark.parametrize(
    ('program', 'case'),
    [
        ('sweep', PROCESSES[0]),
        *(pytest.param('sweep', case, marks=pytest.mark.slow) for case in PROCESSES[1:]),
        *(pytest.param('train', case, marks=pytest.mark.slow) for case in PROCESSES[:-1]),
    ],
)
def test_process(program, case, folder):
  arguments, said = ARGUMENTS[case]
  before = sorted(folder.rglob('*'))
  process = subprocess.run(
      [sys.executable, '-m', f'launch.{program}', '--workdir=runs', *arguments],
      env=os.environ | {'PYTHONPATH': str(ROOT)},
      capture_output=True,
      text=True,
      check=False,
  )
  check(process.returncode, process.stdout, process.stderr, said)
  assert sorted(folder.rglob('*')) == before
