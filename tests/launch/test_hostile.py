"""Adversarial names, paths and text are escaped or refused; no pickle is loaded."""

import ast
import csv
import html.parser
import io
import json
import os
import pathlib
import pickle
import sys
import types

import numpy as np
import pytest
from helpers import made_up
from matplotlib.figure import Figure

from launch import control, report
from launch.common import app
from stability.control import records
from stability.control.run_control import RunControl
from stability.data import prepare, tokens
from stability.errors import BadInput
from stability.report import overview, page
from stability.report.plots import style
from stability.storage import checkpoints, files, run_files, sweeps

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
EVIL = (
    '<script>alert(1)</script>',
    '"><img src=x onerror=alert(1)>',
    "'/><svg onload=alert(1)>",
    '{{ 7 * 7 }}{% raw %}',
    '[/red][bold]',
    '$\\frac{$ $x_{$ \\N{BULLET}',
    '../../../../escaped',
    'two\nlines\x1b[31m\x07',
    'n' * 2_000,
    '\N{RIGHT-TO-LEFT OVERRIDE}\ufeff\x01',
)


class Elements(html.parser.HTMLParser):
  """The elements, attributes and text of a page."""

  def __init__(self, path):
    super().__init__()
    self.tags, self.attributes, self.text, self.scripts = set(), set(), '', 0
    self.feed(path.read_text())

  def handle_starttag(self, tag, attributes):
    self.tags.add(tag)
    self.scripts += tag == 'script'
    self.attributes |= {name for name, _ in attributes}

  def handle_data(self, data):
    self.text += data


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A working directory inside a folder whose other contents must not change."""
  (tmp_path / 'outside').write_text('as it was')
  inner = tmp_path / 'a' / 'b' / 'c'
  inner.mkdir(parents=True)
  monkeypatch.chdir(inner)
  yield inner
  assert sorted(os.listdir(tmp_path)) == ['a', 'outside']
  assert os.listdir(tmp_path / 'a') == ['b'] and os.listdir(tmp_path / 'a' / 'b') == ['c']
  assert (tmp_path / 'outside').read_text() == 'as it was'


def assert_clean(index, like):
  """Checks that a page has only elements and attributes that a harmless page also has.

  A page of a sweep has one script, which sorts tables.
  """
  found, known = Elements(index), Elements(like)
  assert found.tags <= known.tags and found.scripts == known.scripts <= 1
  assert found.attributes <= known.attributes
  assert not [name for name in found.attributes if name.startswith('on')]
  return found


def write_csv(path, column, values):
  rows = ['learning_rate,final_loss,initial_loss,run,"' + column.replace('"', '""') + '"']
  for value in values:
    cell = '"' + value.replace('"', '""') + '"'
    rows += [f'{rate},3.{n},5.5,{cell},{cell}' for n, rate in enumerate(('1e-3', '1e-2'))]
  path.write_text('\n'.join(rows))


def test_results_are_escaped(folder, capsys):
  write_csv(folder / 'plain.csv', 'method', ['a', 'b'])
  write_csv(folder / 'evil.csv', EVIL[1] + '.x', EVIL)
  for name in ('plain', 'evil'):
    arguments = [f'--results={name}.csv', f'--output={name}']
    if name == 'plain':
      arguments.append('--group_by=method')
    assert app.execute(report.main, report.FLAGS, ['report', *arguments]) == 0
    capsys.readouterr()
  found = assert_clean(folder / 'evil' / 'index.html', folder / 'plain' / 'index.html')
  assert EVIL[0] in found.text and EVIL[3] in found.text
  assert sorted(os.listdir(folder)) == ['evil', 'evil.csv', 'plain', 'plain.csv']


# Columns that get a figure each. With a column `run`, its whole name is that of the figure.
COLUMNS = (
    'x/../../../escaped.run',
    'a.b" onload="alert(1)"><script>alert(1)</script>',
    'a.\\g<9>',
    'a.' + 'n' * 300,
    'a.learning_rate',
)


def test_columns_name_no_files_or_ids(folder, monkeypatch):
  monkeypatch.setattr(style, 'save', lambda figure, kind: b'<svg id="a" href="#a"></svg>')
  monkeypatch.setattr(page.selection.lr_curves, 'loss_by_learning_rate', lambda *_: Figure())
  monkeypatch.setattr(page.selection.probe_plots_lib, 'loss_by_number', lambda *_: Figure())
  for name, columns in (('plain', ('a.b', 'a.c', 'a.d', 'a.e', 'a.f')), ('evil', COLUMNS)):
    rows = [['learning_rate', 'final_loss', 'initial_loss', *columns]]
    for number in range(15):  # three values of one column, one of the others
      value, column = divmod(number, 5)
      settings = [value + 1 if i == column else 0 for i in range(5)]
      rows += [[rate, 3, 5.5, *settings] for rate in (1e-3, 1e-2)]
    with (folder / f'{name}.csv').open('w', newline='') as file:
      csv.writer(file).writerows(rows)
    arguments = ['report', f'--results={name}.csv', f'--output={name}']
    assert app.execute(report.main, report.FLAGS, arguments) == 0
  assert_clean(folder / 'evil' / 'index.html', folder / 'plain' / 'index.html')
  made = sorted(path.stem for path in (folder / 'evil').rglob('*.svg'))
  assert made == [*(f'loss_by_column-{n}' for n in range(1, 6)), 'loss_by_learning_rate']
  assert (folder / 'plain' / 'loss_by_b.svg').is_file()
  assert sorted(os.listdir(folder)) == ['evil', 'evil.csv', 'plain', 'plain.csv']


def test_long_text_is_truncated(folder):
  for text in ('x' * 100_000, 'x ' * 50_000):
    assert len(style.handle(text).get_label()) < 200
    figure, axes = style.grid([text], height=3)
    style.finish(figure, text, 'y', [], '')
    assert len(axes[0, 0].get_title()) < 250 and len(figure.get_supxlabel()) < 200
  assert style.handle('z_loss=1e-4').get_label() == 'z_loss=1e-4'


def test_too_many_panels(folder, capsys):
  write_csv(folder / 'many.csv', 'method', [f'm{n}' for n in range(100)])
  arguments = ['--results=many.csv', '--output=many', '--group_by=method']
  assert app.execute(report.main, report.FLAGS, ['report', *arguments]) == 0
  found = Elements(folder / 'many' / 'index.html').text
  assert 'Not drawn: it would have 100 panels, more than 40.' in found and 'm99' in found
  assert not list((folder / 'many').glob('*.svg'))


@pytest.fixture
def sweep(folder):
  """The folders of the runs of a small sweep."""
  names = made_up.write_sweep(folder / 'sweep', widths=(16,), rates=(1e-2, 1e-1), seeds=(0,))
  return [run_files.run_dir(folder / 'sweep', name) for name in names]


def test_records_are_escaped(folder, sweep, monkeypatch):
  for name in ('loss_plots', 'curve_plots', 'probe_plots'):  # slow, and show no texts
    monkeypatch.setattr(page.selection, name, lambda *_: [])
  monkeypatch.setattr(page.predictions, 'wanted', lambda *_: None)
  like = folder / 'like.html'
  record = {'step': 10, 'by': 'ann', 'why': 'x', 'action': 'pause'}
  alarm = {'step': 10, 'rule': 'loss_spike', 'seen': 'x', 'actions': 0}
  for evil in (None, '\n'.join(EVIL).replace('\n', ' ') + '\ud800'):
    text = evil or 'x'
    files.write_lines(sweep[0] / 'actions.jsonl', [record | {'why': text, 'by': text}])
    files.write_lines(sweep[0] / 'alarms.jsonl', [alarm | {'rule': text, 'seen': text}])
    run_files.write_failure(sweep[1], text)
    index = page.write_report(folder / 'sweep')
    if evil is None:
      like.write_bytes(index.read_bytes())
  found = assert_clean(index, like)
  assert found.text.count(EVIL[0]) >= 3


def test_experiments_are_escaped(folder):
  for name, question in (('like', 'Does it?'), ('evil', ' '.join(EVIL))):
    experiment = overview.Experiment(name, question, ['1'], question)
    index = overview.write_overview(folder / name, [experiment])
    (folder / f'{name}.html').write_bytes(index.read_bytes())
  assert EVIL[0] in assert_clean(folder / 'evil.html', folder / 'like.html').text


@pytest.mark.parametrize('name', ['../../../outside', '..', '.', '', 'a/b', '/tmp', 'x\0y'])
def test_run_names(folder, sweep, name, capsys):
  with pytest.raises(BadInput, match='must be the name of a folder'):
    run_files.run_dir(folder, name)
  path = folder / 'sweep' / 'sweep.json'
  found = json.loads(path.read_text())
  path.write_text(json.dumps(found | {'runs': {name: next(iter(found['runs'].values()))}}))
  assert app.execute(report.main, report.FLAGS, ['report', '--workdir=sweep']) == 2
  assert capsys.readouterr().err.count('\n') == 1


@pytest.mark.parametrize('key', ['cut', 'name'])
@pytest.mark.parametrize('value', ['../../../outside', '/tmp/x', '..', '', 3, None])
def test_names_in_actions(folder, sweep, key, value):
  kind = 'rewind' if key == 'cut' else 'fork'
  record = {'step': 10, 'by': '', 'why': '', 'action': kind, 'to': 0, 'changes': {}, key: value}
  files.write_lines(sweep[0] / 'actions.jsonl', [record])
  with pytest.raises(BadInput, match=rf'actions.jsonl, line 1: damaged: {key} must be the name'):
    records.read_records(sweep[0])


def test_run_folders(folder, sweep, capsys):
  (folder / 'sweep' / 'config.json').write_text('{}')
  for run in (sweep[0] / '..', folder / 'sweep' / 'runs' / '..', folder / 'sweep' / 'runs'):
    code = app.execute(control.main, control.FLAGS, ['c', f'--run={run}', 'pause'], words=True)
    assert code == 2 and 'must be the folder of a run' in capsys.readouterr().err
  assert not list(folder.rglob('requests'))


def moved_out(path, folder):
  """Moves a path to a folder elsewhere, leaves a link in its place, and returns the folder."""
  victim = folder / 'victim'
  if path.exists():
    path.rename(victim)
  else:
    victim.mkdir()
  path.symlink_to(victim)
  return victim


@pytest.mark.parametrize('name', ['report', 'runs', 'results.csv', 'data'])
def test_links_in_a_workdir(folder, sweep, name, capsys):
  victim = moved_out(folder / 'sweep' / name, folder)
  before = contents(victim)
  runs = types.SimpleNamespace(configs={})
  with pytest.raises(BadInput, match=f'{name}: must not be a link'):
    sweeps.check_workdir(folder / 'sweep', runs)
  assert app.execute(report.main, report.FLAGS, ['report', '--workdir=sweep']) == 2
  assert f'sweep/{name}: must not be a link' in capsys.readouterr().err
  assert contents(victim) == before


@pytest.mark.parametrize('name', ['', 'requests', 'metrics.jsonl', 'checkpoints'])
def test_links_in_a_run(folder, sweep, name, capsys):
  victim = moved_out(sweep[0] / name, folder)
  before = contents(victim)
  with pytest.raises(BadInput, match='must not be a link'):
    sweeps.runs_to_train(folder / 'sweep', {run.name: {} for run in sweep})
  if name:
    (sweep[0] / 'result.json').unlink()
    code = app.execute(control.main, control.FLAGS, ['c', f'--run={sweep[0]}', 'stop'], words=True)
    assert code == 2 and 'must not be a link' in capsys.readouterr().err
  assert contents(victim) == before


def contents(path):
  if path.is_file():
    return path.read_bytes()
  return {each: each.read_bytes() for each in path.rglob('*') if each.is_file()}


@pytest.mark.parametrize('name', ['metrics.jsonl', 'actions.jsonl', 'result.json'])
def test_folder_instead_of_a_file(folder, sweep, name, capsys):
  (sweep[0] / name).unlink(missing_ok=True)
  (sweep[0] / name).mkdir()
  assert app.execute(report.main, report.FLAGS, ['report', '--workdir=sweep']) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and f'{name}: ' in error


def test_folder_instead_of_an_output(folder, sweep, capsys):
  (folder / 'sweep' / 'results.csv').unlink(missing_ok=True)
  (folder / 'sweep' / 'results.csv').mkdir()
  assert app.execute(report.main, report.FLAGS, ['report', '--workdir=sweep']) == 2
  assert capsys.readouterr().err == 'error: sweep/results.csv: Is a directory\n'


def test_hostile_requests(folder, sweep):
  requests = sweep[0] / 'requests'
  requests.mkdir()
  (requests / '1.json').write_text('[' * 100_000)
  (requests / '2.json').write_bytes(b'\x80\x04\xff')
  (requests / '3.json').mkdir()
  os.mkfifo(requests / '4.json')
  (requests / '5.json').symlink_to('nowhere')
  (requests / '6.json').write_text('{"action": "set", "why": 3}')
  changes = '{"optimizer.learning_rate": 1e999}'
  (requests / '7.json').write_text(f'{{"action": "set", "changes": {changes}}}')
  (requests / '8.json').write_text('{"step": "x", "action": [], "refused": 1, "request": "../x"}')
  run = RunControl(sweep[0], run_files.read_config(sweep[0]), 20, 0, lambda: [])
  assert run.next(20, False) is None
  assert sorted(os.listdir(requests)) == ['3.json', '4.json', '5.json']
  answers = records.read_records(sweep[0])  # they can be read again
  assert [record.request for record in answers] == [f'{n}.json' for n in (1, 2, 6, 7, 8)]
  assert all(record.step == 20 and record.refused for record in answers)


# Pickles.


class Bomb:
  """An object that creates a file when it is unpickled."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self._path,)


def pickles(path):
  """Files that contain a pickle, by name."""
  bomb, written = Bomb(path), {}
  for protocol in (0, 4):
    written[f'{protocol}.pkl'] = pickle.dumps([bomb] * 50, protocol)
  for name, save in (('a.npy', np.save), ('a.npz', np.savez)):
    buffer = io.BytesIO()
    save(buffer, np.array([bomb], object), allow_pickle=True)
    written[name] = buffer.getvalue()
  return written


UNPICKLED = []
sys.addaudithook(
    lambda event, arguments: UNPICKLED.append(arguments) if event == 'pickle.find_class' else None
)


def test_pickles_as_data(folder):
  sentinel = folder / 'sentinel'
  for name, content in pickles(sentinel).items():
    UNPICKLED.clear()
    (folder / name).write_bytes(content)
    text = types.SimpleNamespace(
        source='text',
        path=str(folder / name),
        tokenizer='bytes',
        vocabulary_size=300,
        labels='none',
    )
    try:
      opened = tokens.open_tokens(prepare.prepare(text, folder / 'data', 16))
    except BadInput as error:
      assert 'config.data.path' in str(error)
    else:
      assert opened.meta['tokenizer'] == 'bytes'
    theirs = folder / f'tokens-{name}'
    theirs.mkdir()
    for file in ('train.bin', 'validation.bin', 'meta.json'):
      (theirs / file).write_bytes(content)
    with pytest.raises(BadInput, match=r'meta\.json: cannot be read'):
      data = types.SimpleNamespace(source='text', path=str(theirs), labels='none')
      prepare.prepare(data, folder / 'data', 16)
    assert not UNPICKLED and not sentinel.exists()
  pickle.loads(pickles(sentinel)['4.pkl'])
  assert UNPICKLED and sentinel.exists()  # the detector works


def test_pickle_in_a_checkpoint(folder):
  sentinel = folder / 'sentinel'
  planted = pickles(sentinel)['4.pkl']
  checkpoints.save(folder / 'run', 10, {'params/a': np.ones(3, np.float32)}, {}, keep=1)
  good = folder / 'run' / 'checkpoints' / '10'
  before = {path: path.read_bytes() for path in good.rglob('*') if path.is_file()}
  UNPICKLED.clear()
  for path, content in before.items():
    if path.name == checkpoints.CHECKSUMS:
      continue
    path.write_bytes(planted)
    files.write_json(good / checkpoints.CHECKSUMS, checkpoints._checksums(good))
    try:
      found = checkpoints.restore(folder / 'run')
    except Exception as error:  # any error will do, as long as no code runs
      assert str(error)
    else:
      assert np.array_equal(found[1]['params/a'], np.ones(3))
    path.write_bytes(content)
  assert not UNPICKLED and not sentinel.exists()


def test_no_code_loads_pickles():
  """No module imports an unpickler or calls a reader of arrays or tables that unpickles."""
  refused = {'pickle', 'cPickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal'}
  calls = {'read_pickle', 'load'}
  for folder in ('stability', 'launch', 'configs'):
    for path in (ROOT / folder).rglob('*.py'):
      for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in getattr(node, 'names', []) if isinstance(alias, ast.alias)]
        names.append(getattr(node, 'module', None) or '')
        assert not {name.split('.')[0] for name in names} & refused, path
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
          of = getattr(node.func.value, 'id', '')
          assert not (of in ('np', 'numpy', 'torch', 'pd') and node.func.attr in calls), path
