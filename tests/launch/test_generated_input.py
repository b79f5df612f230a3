# ruff: noqa: E501 (lists of generated values)
"""Generated bad input gives one clear line and exit code 2, or a valid plan, and writes nothing.

More than 1,000 examples go through the entry that all programs share, some also as real processes.
They are the same in every run (derandomize); former findings are kept as @example.
"""

import contextlib
import functools
import hashlib
import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

import numpy as np
import pytest
from helpers import made_up
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from configs import base
from launch import control, predict, report, sweep, train
from launch.backends import local
from launch.common import app, start
from stability import config as config_lib
from stability.analysis import lr_sensitivity
from stability.analysis.claims import registry
from stability.data import tokens
from stability.report import findings, page
from stability.report import tables as tables_lib
from stability.storage import files, sweeps

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
BASE = f'--config={ROOT}/configs/base.py'
QUICKSTART = f'--config={ROOT}/configs/quickstart.py'
SECONDS = 60  # per example at most, on a busy machine


def generated(count):
  """Settings for this many examples, the same in every run."""
  return settings(
      max_examples=count,
      derandomize=True,
      database=None,
      deadline=SECONDS * 1000,
      phases=[Phase.explicit, Phase.generate],
      suppress_health_check=list(HealthCheck),
  )


@contextlib.contextmanager
def new_folder():
  """A new working directory, since each example needs its own."""
  before = os.getcwd()
  with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    try:
      yield pathlib.Path(folder)
    finally:
      os.chdir(before)


def contents(folder):
  return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob('*')}


def execute(program, arguments, *, words=False):
  """Runs a program in this process; returns exit code, stdout and stderr."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
    warnings.simplefilter('error')
    code = app.execute(program.main, program.FLAGS, ['program', *arguments], words=words)
  return code, out.getvalue(), err.getvalue()


def check(code, out, err, names=()):
  """Checks for a plan or one line of error with one of the names; returns whether it is an error."""
  assert code in (0, 2), (code, err)
  if code == 0:
    assert out and not err, err
    return False
  assert out == '' and err.startswith('error: ') and err.endswith('\n'), err
  assert err.count('\n') == 1 and len(err) < 2_000 and err[:-1].isprintable(), err
  assert 'Traceback' not in err and len(err) > len('error: x: y'), err
  assert not names or any(name in err for name in names), (names, err)
  return True


# Values of fields, flags and cells.
TEXT = st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=12)
NUMBERS = st.one_of(
    st.sampled_from(['nan', 'inf', '-inf', '-1', '0', '-0.0', '1e400', '1e-400', '1e38', '3e-39']),
    st.sampled_from(['1_000', '٣', '0x10', '1e', '--1', '9' * 400, '1' + '0' * 5_000, '1e-46']),
    st.integers(-10, 2**33).map(str),
    st.floats().map(repr),
)
HOSTILE = st.sampled_from([
    '', ' ', '..', '../../x', '/', '~', '\n', '\r\n', '\x1b[31m', '<script>', '"\'', '{{7*7}}',
    '[/red]', '%s%n', '${HOME}', '$x$', 'a' * 3_000, '\u202e', '\ud800', '\udcff', 'none', 'None',
    'True', '[1]', '{}', 'layernorm', 'fixed', '\N{PILE OF POO}', '=1+1', 'x\0y',
])  # fmt: skip
VALUES = st.one_of(NUMBERS, HOSTILE, TEXT)
FIELDS = st.sampled_from(list(config_lib.FIELDS))


def misspelt(name):
  """A name with a letter dropped, doubled, replaced or capitalised."""
  places = st.integers(0, len(name) - 1)
  return places.flatmap(
      lambda i: st.sampled_from([
          name[:i] + name[i + 1 :],
          name[:i] + name[i] + name[i:],
          name[:i] + 'x' + name[i + 1 :],
          name[:i].upper() + name[i:],
      ])
  )


NAMES = st.one_of(FIELDS, FIELDS.flatmap(misspelt), TEXT)
OVERRIDE = st.builds('--config.{}={}'.format, FIELDS, VALUES)
FLAG = st.one_of(
    OVERRIDE,
    st.builds('--config.{}={}'.format, NAMES, VALUES),
    st.builds('--{}={}'.format, st.sampled_from(list(sweep.FLAGS)), VALUES),
    st.builds('--{}'.format, NAMES),
    VALUES,
)
CONFIG = st.one_of(
    st.sampled_from([BASE, QUICKSTART, f'{BASE}:gpu', f'{QUICKSTART}:paper', '--dry_run']),
    st.builds('--config={}'.format, VALUES),
    st.builds(f'{BASE}:{{}}'.format, VALUES),
)
BENIGN = {'--help', '-h', '--helpfull', '--helpshort', '--helpxml', '--only_check_args'}


@generated(350)
@given(st.lists(FLAG, max_size=3), CONFIG)
@example(['--workdir=' + 'a/' * 3000], BASE)
@example(['--flagfile=/dev/null', '--undefok=x'], BASE)
@example(['--config.model.depth=2147483647', '--config.model.width=2147483632'], BASE)
def test_sweep_flags(arguments, config):
  if BENIGN.intersection(arguments) or any(a.startswith('--analyze') for a in arguments):
    return
  with new_folder() as folder:
    check(*execute(sweep, ['--dry_run', config, *arguments]))
    assert not contents(folder)


@generated(150)
@given(FIELDS, VALUES)
def test_one_override(field, value):
  with new_folder() as folder:
    outcome = execute(sweep, ['--dry_run', BASE, f'--config.{field}={value}'])
    check(*outcome, names=['config.', 'must be UTF-8', 'must not contain a NUL'])
    assert not contents(folder)


@generated(60)
@given(st.lists(st.one_of(FLAG, st.builds('--workdir={}'.format, VALUES)), max_size=3))
def test_flags_of_other_programs(arguments):
  if BENIGN.intersection(arguments):
    return
  with new_folder() as folder, pytest.MonkeyPatch.context() as patch:
    patch.setattr(start, 'start', lambda *_, **__: print('trains') or 0)
    check(*execute(train, [BASE, *arguments, '--workdir=x']))
    for program in (report, predict, control):
      code, *said = execute(program, arguments)
      assert check(code, *said)
    assert not contents(folder)


# Config files.

# Right-hand sides of `c.FIELD = `.
EXPRESSION = st.one_of(
    st.sampled_from([
        'None', 'True', '[]', '{}', '()', "''", 'object()', 'lambda: 1', "float('nan')", '1e999',
        '-1', '0', '10**400', '10**5000', "b'x'", '1j', '[1, 2]', '{1: 2}', "{'a': {'b': 1}}", '...',
        'base', 'Evil()', "'\\ud800'", "'\\x00'", "'<b>' * 99", 'range(3)', 'Ellipsis', '3.0', '64',
        "__import__('fractions').Fraction(1, 3)", "__import__('decimal').Decimal(1)",
        "__import__('numpy').float32(0.1)", "__import__('numpy').array([1])",
    ]),
    st.integers(-5, 2**31).map(repr),
    st.floats().map('float("{!r}")'.format),
)  # fmt: skip
STATEMENTS = [
    'raise Evil()', 'raise SystemExit(3)', 'raise GeneratorExit', 'raise EndOfAll()', '1 / 0',
    'del c.model', 'c.model = 3', 'c = None', 'return', 'return c, c', 'c.x.y.z = 1', 'c["a.b"] = 1',
    'f = lambda: f(); f()', 'assert 0', 'raise ValueError("one\\ntwo\\x1b[31m")', 'open("/nowhere")',
    'raise KeyError(c)', 'raise UnicodeDecodeError("utf-8", b"x", 0, 1, "y")', 'c.lock()',
    'raise Exception("x" * 10**6)', 'c.new = c', 'raise StopIteration', 'import nowhere',
]  # fmt: skip
STATEMENT = st.one_of(
    st.builds('c.{} = {}'.format, FIELDS, EXPRESSION),
    st.builds('c.{} = {}'.format, FIELDS.flatmap(misspelt).filter(str.isascii), EXPRESSION),
    st.builds('del c.{}'.format, FIELDS),
    st.sampled_from(STATEMENTS),
)
SWEEPS = [
    'return []', 'return None', 'return 3', "return 'seed'", "return [{'seed': 1}, {'seed': 1}]",
    'return [[]]', 'return [{}]', 'return [{1: 2}]', 'return {}', 'yield', 'raise Evil()',
    "while True: yield {'seed': 0}", "return hyper.sweep('seed', __import__('itertools').count())",
    "return hyper.sweep('seed', range(10**12))", "return hyper.product([[{}] * 10**5] * 9)",
    "return hyper.zipit([hyper.sweep('seed', [1]), []])", 'return hyper.chain(3)',
    "return hyper.sweep('seed', range(2_000))", 'return hyper.product([])', 'return hyper.zipit([])',
    "return hyper.sweep('seed', [0, 0.0, False])", "return [{'seed': Evil()}]", 'return [Evil()]',
]  # fmt: skip
POINTS = st.one_of(
    st.builds(
        'return hyper.sweep({!r}, [{}])'.format,
        NAMES,
        st.lists(EXPRESSION, max_size=3).map(', '.join),
    ),
    st.builds('return hyper.fixed({!r}, {})'.format, NAMES, EXPRESSION),
    st.builds(
        'return hyper.product([hyper.sweep({!r}, [{}]), hyper.sweep({!r}, range(3))])'.format,
        FIELDS, EXPRESSION, FIELDS,
    ),
    st.sampled_from(SWEEPS),
)  # fmt: skip
JUDGED = [
    "{'windows': 3}", "{'windows': [{}]}", "{'x': 1}", '3', 'None', "{'not_comparable': 'seed'}", '{}',
    "{'windows': [{'where': {}, 'windows': [[1, float('nan')]]}]}", "{'not_comparable': []}",
    "{'windows': [{'where': {'seed': []}, 'windows': []}]}",
]  # fmt: skip
HEADER = """from configs import base
from stability import hyper
class Evil(Exception):
  def __str__(self): raise ValueError
  __repr__ = __str__
class EndOfAll(BaseException): pass
"""


def written(statements, points, judged):
  """The text of a config file."""
  lines = ["def get_config(scale='cpu'):", '  c = base.get_config(scale)']
  lines += [f'  {statement}' for statement in statements] + ['  return c']
  if points is not None:
    lines += ['def get_sweep(scale):', f'  {points}']
  if judged is not None:
    lines += ['def get_report(scale):', f'  return {judged}']
  return HEADER + '\n'.join(lines) + '\n'


FILE = st.builds(
    written, st.lists(STATEMENT, max_size=3), st.none() | POINTS, st.none() | st.sampled_from(JUDGED)
)


def each(texts):
  """Adds each text as an explicit example."""
  return lambda test: functools.reduce(lambda test, text: example(text)(test), texts, test)


@generated(300)
@given(FILE)
@each(written([statement], None, None) for statement in STATEMENTS)
@each(written([], points, None) for points in SWEEPS)
@each(written([], None, judged) for judged in JUDGED)
def test_config_files(text):
  with new_folder() as folder:
    (folder / 'experiment.py').write_text(text)
    before = contents(folder)
    check(*execute(sweep, ['--dry_run', '--config=experiment.py']), names=['experiment.py'])
    assert contents(folder) == before


@generated(60)
@given(st.binary(max_size=60))
def test_files_that_are_not_python(content):
  with new_folder() as folder:
    (folder / 'experiment.py').write_bytes(content)
    assert check(*execute(sweep, ['--dry_run', '--config=experiment.py']), names=['experiment.py'])


# CSV files of results.

COLUMN = st.one_of(
    st.sampled_from([
        'learning_rate', 'final_loss', 'initial_loss', 'parameters', 'seed', 'status', 'run', 'a.b',
        'model.width', 'model.qk_norm', 'method', '', ' final_loss ', 'optimizer.learning_rate',
    ]),
    VALUES,
)  # fmt: skip
CELL = st.one_of(
    st.sampled_from(['1e-3', '1e-2', '0.1', '3', '5.5', '', 'done', 'diverged', 'failed', '256', '0']),
    VALUES,
)
USUAL = st.tuples(st.just('learning_rate'), st.just('final_loss'), st.just('initial_loss'))


@st.composite
def tables(draw):
  """The bytes of a CSV file, possibly malformed."""
  header = [*draw(USUAL | st.just(())), *draw(st.lists(COLUMN, max_size=3))]
  rows = draw(st.lists(st.lists(CELL, min_size=len(header), max_size=len(header)), max_size=4))
  for row in rows:
    if header[:1] == ['learning_rate'] and draw(st.integers(0, 3)):
      row[:3] = [draw(st.sampled_from(['1e-3', '1e-2'])), '3.1', '5.5']
  if draw(st.integers(0, 9)) == 0:
    rows.append(draw(st.lists(CELL, max_size=5)))
  comma, quoted = draw(st.sampled_from([',', ',', ',', ';', '\t'])), draw(st.booleans())

  def line(cells):
    if quoted:
      cells = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    return comma.join(cells)

  text = '\n'.join(map(line, [header, *rows]))
  encoding = draw(st.sampled_from(['utf-8', 'utf-8', 'utf-8', 'utf-8-sig', 'utf-16', 'latin-1']))
  content = text.encode(encoding, errors='replace')
  return content + draw(st.sampled_from([b'', b'', b'\n', b'\r\n', b'\n\n', b'"', b'\0', b'\xff']))


ARGUMENTS = st.lists(
    st.one_of(
        st.builds('--group_by={}'.format, COLUMN),
        st.builds('--initial_loss={}'.format, NUMBERS),
        st.builds('--window={},{}'.format, NUMBERS, NUMBERS),
        st.builds('--window_where={}={}'.format, COLUMN, CELL),
        st.builds('--not_comparable={}'.format, COLUMN),
    ),
    max_size=2,
)


def report_without_figures(results, output, options):
  """The computations of a report without its figures, which take a second."""
  output.mkdir()
  files.write_atomic(output / 'claims.csv', registry.judge(results).to_csv(index=False))
  table = lr_sensitivity.lr_sensitivity(results)
  for text in (findings.description, tables_lib.runs, page._windows):
    text(results)
  for text in (findings.on_lr_sensitivity, tables_lib.sensitivities):
    text(results, table)
  return output / 'index.html'


@generated(250)
@given(st.one_of(tables(), tables(), tables(), st.binary(max_size=80)), ARGUMENTS)
def test_results_csv(content, arguments):
  with new_folder() as folder, pytest.MonkeyPatch.context() as patch:
    patch.setattr(page, 'write_results_report', report_without_figures)
    (folder / 'theirs.csv').write_bytes(content)
    before = contents(folder)
    code, *said = execute(report, ['--results=theirs.csv', '--output=report', *arguments])
    if check(code, *said):
      assert contents(folder) == before


# Token files.

META = {
    'tokenizer': 'theirs', 'vocabulary_size': 40, 'end_of_document': None, 'dtype': 'uint16',
    'train_tokens': 500, 'validation_tokens': 200, 'documents': {'train': [], 'validation': []},
    'bigram_loss': 2.0, 'unigram_loss': 3.0, 'bigram_tokens': 499, 'entropy_rate': None,
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=4,
)
FAULT = st.one_of(
    st.tuples(st.just('meta'), st.sampled_from([*META, 'sha256', 'more']), JSON),
    st.tuples(st.just('meta'), st.sampled_from([*META, 'sha256']), st.just(KeyError)),
    st.tuples(st.sampled_from(['train', 'validation']), st.just('cut'), st.integers(0, 999)),
    st.tuples(st.sampled_from(['train', 'validation']), st.just('flip'), st.integers(0, 399)),
    st.tuples(st.sampled_from(['train', 'validation']), st.just('more'), st.binary(max_size=9)),
    st.tuples(st.just('train'), st.just('token'), st.integers(0, 65_535)),
    st.tuples(st.just('text'), st.none(), st.binary(max_size=40)),
    st.tuples(st.just('dtype'), st.none(), st.sampled_from(['uint8', 'uint32', 'int8', 'float64'])),
)


def write_tokens(folder, faults):
  """Writes a token folder with faults."""
  rng = np.random.default_rng(0)
  sides = {'train': rng.integers(0, 40, 500), 'validation': rng.integers(0, 40, 200)}
  meta = dict(META)
  for kind, what, value in faults:
    if what == 'token':  # out of range, with a correct checksum
      sides['train'][7] = value
    elif kind == 'dtype':
      meta['dtype'] = value
  content = {side: values.astype('<u2').tobytes() for side, values in sides.items()}
  meta['sha256'] = {side: hashlib.sha256(data).hexdigest() for side, data in content.items()}
  for kind, what, value in faults:
    if kind == 'meta' and value is KeyError:
      meta.pop(what, None)
    elif kind == 'meta':
      meta[what] = value
    elif what == 'cut':
      content[kind] = content[kind][:value]
    elif what == 'flip':
      flipped = bytearray(content[kind])
      flipped[value : value + 1] = bytes(b ^ 1 for b in flipped[value : value + 1])
      content[kind] = bytes(flipped)
    elif what == 'more':
      content[kind] += value
  folder.mkdir()
  for side, data in content.items():
    (folder / f'{side}.bin').write_bytes(data)
  text = [value for kind, _, value in faults if kind == 'text']
  (folder / 'meta.json').write_bytes(text[0] if text else json.dumps(meta).encode())


def must_be_refused(fault):
  """Whether this fault alone invalidates the token files."""
  kind, what, value = fault
  size = {'train': 1_000, 'validation': 400}.get(kind)
  return {
      'token': what == 'token' and value >= META['vocabulary_size'],
      'cut': what == 'cut' and value < (size or 0),
      'flip': what == 'flip',
      'more': kind in ('train', 'validation') and value != b'',
  }.get(what, False)


@generated(200)
@given(st.lists(FAULT, min_size=1, max_size=2))
def test_token_files(faults):
  with new_folder() as folder:
    write_tokens(folder / 'theirs', faults)
    before = contents(folder)
    arguments = [BASE, '--config.data.path=theirs', '--config.data.sequence_length=16']
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(local, 'train', lambda *_, **__: None)
      patch.setattr(start, '_report', lambda *_: print('a report') or 0)
      refused = check(*execute(sweep, [*arguments, '--workdir=runs']), names=['theirs', 'data.path'])
    if refused:
      assert contents(folder) == before
    else:
      assert not any(map(must_be_refused, faults)) or len(faults) > 1
      written = sweeps.read_sweep(folder / 'runs')
      opened = tokens.open_tokens(folder / 'theirs')
      assert opened.meta.items() <= written.data.items()
    check(*execute(sweep, [*arguments, '--dry_run']))


# Damaged files of a sweep.


@pytest.fixture(scope='module')
def small_sweep(tmp_path_factory):
  """The contents of the files of a sweep of four runs, by relative path."""
  folder = tmp_path_factory.mktemp('small')
  made_up.write_sweep(folder, widths=(16,), rates=(1e-2, 1e-1), seeds=(0,))
  return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*.json*')}


@generated(50)
@given(data=st.data())
def test_damaged_sweeps(request, data):
  """launch.report names the file, or writes its report."""
  small_sweep = request.getfixturevalue('small_sweep')
  names = [*sorted(small_sweep), *[pathlib.Path('sweep.json')] * 6]  # it has most of the content
  name = data.draw(st.sampled_from(names))
  content = small_sweep[name]
  how = data.draw(st.sampled_from(['cut', 'junk', 'line', 'value', 'value inside']))
  if how == 'cut':
    content = content[: data.draw(st.integers(0, len(content)))]
  elif how == 'junk':
    content = data.draw(st.binary(max_size=30)) + data.draw(st.sampled_from([b'', b'\n']))
  elif how == 'line':
    content += json.dumps(data.draw(JSON)).encode() + b'\n'
  else:
    found = json.loads(content.split(b'\n')[0] if name.suffix == '.jsonl' else content)
    inside = found
    key = data.draw(st.sampled_from(sorted(inside)))
    while how == 'value inside' and isinstance(inside[key], dict) and inside[key]:
      inside = inside[key]
      key = data.draw(st.sampled_from(sorted(inside)))
    inside[key] = data.draw(JSON | st.integers(0, 2**31 - 1))
    content = json.dumps(found).encode() + b'\n'
  with new_folder() as folder, pytest.MonkeyPatch.context() as patch:
    patch.setattr(page, 'write_report', functools.partial(_report_of_files, folder))
    for path, before in small_sweep.items():
      (folder / path).parent.mkdir(parents=True, exist_ok=True)
      (folder / path).write_bytes(content if path == name else before)
    check(*execute(report, [f'--workdir={folder}']), names=[str(name), 'sweep.json', 'the config'])


def _report_of_files(folder, workdir, output, options):
  from stability.analysis import results as results_lib
  from stability.analysis import timeline

  results, _ = results_lib.load_workdir(workdir), timeline.load(workdir)
  results_lib.load_curves(workdir)
  (folder / 'report').mkdir(exist_ok=True)
  files.write_atomic(
      folder / 'report' / 'claims.csv', registry.judge(results).to_csv(index=False)
  )
  return folder / 'report' / 'index.html'


# Real processes.

PROCESSES = 36


def test_real_processes():
  """Starts a sample of the above as a user would."""
  cases = []

  @generated(PROCESSES)
  @given(st.lists(st.one_of(OVERRIDE, FLAG), max_size=2), FILE, st.booleans())
  def collect(arguments, text, flags):
    given_ = [BASE, *arguments] if flags else ['--config=experiment.py']
    with contextlib.suppress(UnicodeEncodeError):
      given_ = [os.fsencode(argument) for argument in given_]
      if not any(b'\0' in argument for argument in given_) and not BENIGN & set(arguments):
        cases.append((given_, text))

  collect()
  assert len(cases) >= 30
  for arguments, text in cases:
    with new_folder() as folder:
      (folder / 'experiment.py').write_text(text)
      before = contents(folder)
      process = subprocess.run(
          [sys.executable, '-m', 'launch.sweep', '--dry_run', *arguments],
          env=os.environ | {'PYTHONPATH': str(ROOT)},
          capture_output=True,
          timeout=120,
          check=False,
      )
      check(process.returncode, process.stdout.decode(), process.stderr.decode())
      assert contents(folder) == before


def test_base_has_all_fields():
  assert config_lib.flatten(base.get_config().to_dict()).keys() == config_lib.FIELDS.keys()
