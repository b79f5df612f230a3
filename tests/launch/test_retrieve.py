"""launch.retrieve: datastores beside finished runs, from the command line to files and page."""

import dataclasses
import json
import shutil
import types

import pytest
from helpers.retrieval import FIELDS, sentences, write_text, write_workdir
from rich.console import Console

from launch import retrieve
from launch.common import app, display, environment
from stability.report import page
from stability.retrieval import continuation, knn, measure, overlap
from stability.storage import files, leases, parameters, parents, retrieval_csv

write_report = page.write_report  # the fixture `place` replaces it, as it takes long
RATES = [{'optimizer.learning_rate': rate} for rate in (1e-2, 1e-1)]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A workdir of two runs; one of them starts from another seed."""
  place = tmp_path_factory.mktemp('retrieve')
  points = [{**RATES[0], 'seed': 0}, {**RATES[1], 'seed': 0}]
  write_workdir(place / 'runs', write_text(place / 'text'), points)
  return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
  """A copy of it, as the current folder."""
  shutil.copytree(made, tmp_path, dirs_exist_ok=True)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(environment, 'worker_environment', dict)  # of this process
  monkeypatch.setattr(page, 'write_report', lambda workdir: workdir / 'report/index.html')
  return tmp_path


def run(capsys, *arguments):
  argv = ['retrieve', '--workdir=runs', *arguments]
  code = app.execute(retrieve.main, retrieve.FLAGS, argv)
  return code, *capsys.readouterr()


def leftovers(place):
  return list(place.rglob('.datastore*'))


@pytest.mark.slow
def test_measurements(place, capsys):
  code, output, error = run(capsys)
  assert code == 0, error
  rows = retrieval_csv.read(place / 'runs')
  names = sorted(path.name for path in (place / 'runs/runs').iterdir())
  assert sorted((row.run, row.method) for row in rows) == [
      (name, method) for name in names for method in ('bm25', 'knn')
  ]
  count = FIELDS['data.validation_batches'] * FIELDS['data.batch_size']
  for row in rows:
    assert 2 * row.windows - 1 <= count - row.left_out <= 2 * row.windows
    assert (row.datastore, row.text) == ('train', 'validation') and row.keys % 32 == 0
  knn = [row for row in rows if row.method == 'knn']
  # The model has learned nothing, and the words of the text are few.
  assert all(row.loss_with < row.loss_without - 1 and row.weight > 0.5 for row in knn)
  text = write_report(place / 'runs').read_text()
  assert '<h2>Retrieval</h2>' in text and f'{knn[0].loss_with:.3f}' in text
  assert 'kNN language model: the loss is lower in 2 of 2' in text
  assert f'{knn[0].loss_without:.3f}' in output and not leftovers(place)


@pytest.mark.slow
def test_finished_measurements_are_not_repeated(place, capsys, monkeypatch):
  assert run(capsys, '--runs=*=0.1,seed=0', '--keys=500')[0] == 0
  before = retrieval_csv.path(place / 'runs').read_bytes()
  with monkeypatch.context() as patch:
    patch.setattr(retrieval_csv, 'add', lambda *_: pytest.fail('it is measured again'))
    assert run(capsys, '--runs=*=0.1,seed=0', '--keys=500')[0] == 0
  assert retrieval_csv.path(place / 'runs').read_bytes() == before
  assert run(capsys, '--runs=*=0.1,seed=0', '--keys=600')[0] == 0
  assert [row.keys for row in retrieval_csv.read(place / 'runs')] == [576, 576]


def test_what_a_killed_process_has_left_is_deleted(place, capsys, monkeypatch):
  """Not what a live one uses."""
  left, used = (place / 'runs' / f'.datastore.{name}' for name in ('left', 'used'))
  for folder in (left, used):
    (folder / 'store').mkdir(parents=True)
    assert leases.try_acquire(folder)
  (lease,) = left.glob('lease*')
  lease.write_text(json.dumps({**files.read_json(lease), 'pid': 2**30}))
  seen = []
  monkeypatch.setattr(continuation, 'answer', lambda *_: seen.extend(leftovers(place)))
  assert run(capsys, '--ask=alpha', '--runs=*=0.1,seed=0', '--keys=64')[0] == 0
  assert len(seen) == 2 and used in seen and leftovers(place) == [used]


@pytest.mark.slow
def test_text_that_is_added(place, capsys):
  folder = place / 'new'
  folder.mkdir()
  for seed in range(100, 130):  # the same words, backwards
    (folder / f'{seed}.txt').write_bytes(sentences(seed, 60)[::-1])
  one = '--runs=*=0.1,seed=0'
  assert run(capsys, one, '--output=store')[0] == 0
  tokens = files.read_json(place / 'store/datastore.json')['parts'][0]['windows']
  code, _, error = run(capsys, one, '--datastore=store', '--add=new')
  assert code == 0, error
  rows = {
      (row.method, row.datastore): row
      for row in retrieval_csv.read(place / 'runs')
      if row.text == 'new (held out)'
  }
  before, after = rows['knn', 'train'], rows['knn', 'train+new']
  assert before.loss_without == after.loss_without
  assert after.loss_with < before.loss_with - 0.2
  assert before.keys == 32 * tokens < after.keys
  # The datastore has the text for good.
  assert run(capsys, one, '--datastore=store')[0] == 0
  kept = [row for row in retrieval_csv.read(place / 'runs') if row.text == 'validation']
  assert {row.datastore for row in kept} == {'train', 'train+new'}


@pytest.mark.parametrize('width', [200, 130, 80, 60, 30])
def test_numbers_are_whole_at_any_width(width, capsys):
  name = 'width=64,qk_norm=layernorm,learning_rate=0.01,seed='
  numbers = 142, 28, 3.046, 2.957, 73.66, 19968, 'train', 'new (held out)', 0.63, 2.89, 'ff'
  of_knn = retrieval_csv.Row(f'{name}0', 'knn', 256, 2.59, 0.55, *numbers)
  of_bm25 = dataclasses.replace(of_knn, method='bm25', k=1, temperature=None, weight=None)
  after = dataclasses.replace(of_knn, k=1024, datastore='train+new', loss_with=2.689, keys=39936)
  other = dataclasses.replace(after, run=f'{name}1', k=512, windows=31, left_out=1)

  def shown(*rows):
    retrieve._print_rows(rows, Console(width=width))
    said, _, *lines = capsys.readouterr().out.splitlines()
    return said, [line.split() for line in lines], max(map(len, lines))

  for rows in ([of_knn, of_bm25, after], [of_knn, after, other]):
    said, lines, longest = shown(*rows)
    assert longest <= max(width, 80)
    assert (f'run {name}0, ' in said) == (rows[-1] is after)
    for k, loss, change in (('256', '2.957', '-0.089'), ('1024', '2.689', '-0.357')):
      assert any({'knn', k, '3.046', loss, change, '0.63'} <= set(line) for line in lines)
    if width in (200, 80):
      assert any('2.59' in line for line in lines) == (width == 200)


@pytest.mark.slow
def test_text_is_added_once(place, capsys, monkeypatch):
  write_text(place / 'new', range(100, 130))
  one = '--runs=*=0.1,seed=0'
  assert run(capsys, one, '--output=store', '--keys=300')[0] == 0
  arguments = [one, '--datastore=store', '--add=new']
  assert run(capsys, *arguments)[0] == 0
  path = retrieval_csv.path(place / 'runs')
  datastore, rows = (place / 'store/datastore.json').read_bytes(), path.read_bytes()
  with monkeypatch.context() as patch:
    patch.setattr(retrieval_csv, 'add', lambda *_: pytest.fail('it is measured again'))
    code, output, error = run(capsys, *arguments)
  assert code == 0 and error == '--add=new: is in the datastore already; not added again\n'
  assert 'train+new' in output and (place / 'store/datastore.json').read_bytes() == datastore
  # An interruption after the addition, before the rows were written.
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(line for line in lines if 'train+new' not in line))
  assert run(capsys, *arguments)[0] == 0
  assert path.read_bytes().count(b'train+new') == rows.count(b'train+new') == 2
  assert (place / 'store/datastore.json').read_bytes() == datastore


def test_seconds_are_those_of_all_keys(place, capsys, monkeypatch):
  """After a text is added, they include those of the datastore before."""
  write_text(place / 'new', range(100, 130))
  clock, build, add = [0.0], measure.Measurements.build, measure.Measurements.add
  for module in (retrieve, measure):
    monkeypatch.setattr(module, 'time', types.SimpleNamespace(monotonic=lambda: clock[0]))

  def slow_build(*arguments):
    clock[0] += 100
    return build(*arguments)

  def slow_add(*arguments):
    clock[0] += 7
    add(*arguments)

  monkeypatch.setattr(measure.Measurements, 'build', slow_build)
  monkeypatch.setattr(measure.Measurements, 'add', slow_add)
  code, _, error = run(capsys, '--runs=*=0.1,seed=0', '--keys=64', '--add=new')
  assert code == 0, error
  rows = retrieval_csv.read(place / 'runs')
  seconds = {(row.method, row.datastore): row.seconds for row in rows}
  assert seconds == {
      ('knn', 'train'): 107,
      ('knn', 'train+new'): 114,
      ('bm25', 'train'): 0,
      ('bm25', 'train+new'): 0,
  }


@pytest.mark.slow
def test_datastore_of_text(place, capsys):
  write_text(place / 'other', range(200, 210))
  assert run(capsys, '--datastore=other', '--runs=*=0.1,seed=0')[0] == 0
  assert {row.datastore for row in retrieval_csv.read(place / 'runs')} == {'other'}


@pytest.mark.slow
def test_parents(place, capsys):
  first, second = sorted((place / 'runs/runs').iterdir())
  for folder in (first, second):
    parents.write(folder, {'checkpoint': parents.describe(str(first))})
  assert run(capsys, '--parents')[0] == 0
  assert run(capsys, f'--runs={first.name}')[0] == 0
  rows = retrieval_csv.read(place / 'runs')
  assert [(row.run, row.model, row.method) for row in rows] == [
      (run, model, method)
      for run, model in ((str(first), 'parent'), (first.name, 'run'))
      for method in ('knn', 'bm25')
  ]
  # The first run has the parameters of its parent.
  assert (rows[0].loss_without, rows[0].loss_with) == (rows[2].loss_without, rows[2].loss_with)


@pytest.mark.slow
@pytest.mark.parametrize('length', [16, 48])
def test_parents_with_windows_of_another_length(length, place, capsys):
  """The parent has the parameters of its child, and so the same losses on the child's windows."""
  (first, *_) = sorted((place / 'runs/runs').iterdir())
  config = {**RATES[0], 'seed': 0}
  (parent,) = write_workdir(place / 'old', place / 'text', [config],
                            **{'data.sequence_length': length})  # fmt: skip
  parents.write(first, {'checkpoint': parents.describe(str(parent))})
  assert run(capsys, '--parents')[0] == 0
  assert run(capsys, f'--runs={first.name}')[0] == 0
  rows = retrieval_csv.read(place / 'runs')
  assert [row.model for row in rows] == ['parent', 'parent', 'run', 'run']
  measured = [
      dataclasses.replace(row, run='', model='run', seconds=0.0, digest='') for row in rows
  ]
  assert measured[:2] == measured[2:]


def test_a_question_is_answered_as_tuned_on_the_same_datastore(place, capsys, monkeypatch):
  (name,) = (path.name for path in (place / 'runs/runs').glob('*=0.1,*'))
  answered = []
  monkeypatch.setattr(continuation, 'answer', lambda *given: answered.append(given[-1]))

  def tuned(datastore, keys, k):
    numbers = 10, 2, 2.5, 2.25, 3.1, keys, datastore, 'validation', 0.5, 4.0, 'ff'
    return retrieval_csv.Row(name, 'knn', k, 1.5, 0.25, *numbers)

  def ask():
    assert run(capsys, '--ask=alpha', f'--runs={name}', '--keys=320')[0] == 0
    return answered.pop()

  retrieval_csv.add(place / 'runs', [tuned('other', 320, 1)])
  assert ask() is None
  retrieval_csv.add(place / 'runs', [tuned('train', 352, 2)])
  assert ask() is None
  retrieval_csv.add(place / 'runs', [tuned('train', 320, 4), tuned('train+other', 320, 8)])
  assert ask() == knn.Setting(4, 1.5, 0.25)


@pytest.mark.slow
def test_a_question(place, capsys, monkeypatch):
  monkeypatch.setattr(knn, 'spread', lambda distances: 0.125 if distances.shape == (1, 64) else 0)
  word = sentences(3, 5).decode()
  code, output, error = run(capsys, f'--ask={word}', '--runs=*=0.1,seed=0')
  assert code == 0, error
  lines = output.splitlines()
  assert sum(' (train: 0' in line for line in lines) == 5  # two passages, three neighbours
  assert sum(line.startswith('continuation with') for line in lines) == 3
  assert 'k 64, temperature 0.125, weight 0.25; not tuned: run without --ask first' in lines
  assert not retrieval_csv.read(place / 'runs') and not leftovers(place)


def test_a_run_without_parameters_does_not_take_others_along(place, capsys, monkeypatch):
  monkeypatch.setattr(display, 'PLAIN_SECONDS', 0)
  first, second = sorted((place / 'runs/runs').iterdir())
  (first / parameters.FILE).unlink()
  code, _, error = run(capsys)
  assert code == 1 and f'{first.name}/parameters.safetensors: no such file' in error
  assert f' 50%  1/2 runs finished, {second.name}, ' in error
  assert {row.run for row in retrieval_csv.read(place / 'runs')} == {second.name}


def test_windows_too_short_to_find_what_the_datastore_has(place, capsys, monkeypatch):
  monkeypatch.setattr(overlap, 'LENGTH', 33)
  code, _, error = run(capsys)
  assert code == 1 and error.count('config.data.sequence_length=32: must be at least 33') == 2
  assert not retrieval_csv.read(place / 'runs')


BAD = {
    'no run': (['--runs=x'], '--runs=x: names no finished run; one is learning_rate=0.01'),
    'several': (['--ask=a'], '--runs=*: names 2 runs; --ask, --output and a kept'),
    'no text': (['--ask= ', '--runs=*=0.1*'], '--ask: must be a text'),
    'both': (['--ask=a', '--add=text', '--runs=*=0.1*'], '--ask: answers from a datastore'),
    'no datastore': (['--datastore=gone'], '--datastore=gone: no such file or folder'),
    'empty': (['--datastore=empty'], 'empty: holds no text'),
    'nothing to add': (['--add=gone'], '--add=gone: no such file or folder'),
    'output': (['--output=text', '--runs=*=0.1*'], '--output=text: exists'),
    'keys of a kept one': (
        ['--datastore=foreign', '--keys=5', '--runs=*=0.1*'],
        '--keys: must be given without a kept --datastore, or with --add',
    ),
    'foreign': (['--datastore=foreign', '--runs=*=0.1*'], 'datastore.json: not a datastore'),
    'no parents': (['--parents'], '--parents: no finished run of --runs=* has a parent'),
    'no keys': (['--keys=0'], '--keys=0'),
    'the validation text': (['--datastore=text'], 'share 32 bytes with the datastore'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input(case, place, capsys):
  arguments, said = BAD[case]
  (place / 'empty').mkdir()
  (place / 'foreign').mkdir()
  (place / 'foreign/datastore.json').write_text('{}')
  before = {path: path.stat().st_mtime_ns for path in place.rglob('*') if path.is_file()}
  code, output, error = run(capsys, *arguments)
  assert (code, output) == (2, '') and error.count('\n') == 1 and said in error, error
  after = {path: path.stat().st_mtime_ns for path in place.rglob('*') if path.is_file()}
  assert after == before


def test_a_datastore_of_another_run(place, capsys):
  assert run(capsys, '--runs=*=0.1,seed=0', '--output=store', '--keys=300')[0] == 0
  (other,) = (place / 'runs/runs').glob('*0.01*')
  (same,) = (place / 'runs/runs').glob('*0.1*')
  arguments = ['--datastore=store', '--runs=*=0.01,seed=0']
  assert run(capsys, *arguments)[0] == 0  # both have the same initial parameters
  content = bytearray((other / parameters.FILE).read_bytes())
  content[-1] ^= 64
  (other / parameters.FILE).write_bytes(content)
  code, _, error = run(capsys, *arguments)
  assert code == 2 and f'keys of another model, that of run {same.name!r}' in error
