"""launch.evaluate: losses of finished runs on other text; test_walk.py has trained ones."""

import shutil

import pytest
from helpers.retrieval import FIELDS, write_text, write_workdir

from launch import evaluate
from launch.common import app, environment
from stability.errors import BadInput
from stability.report import page
from stability.storage import files, other_text_csv, parameters, parents, sweeps

PARENT = {'optimizer.learning_rate': 1e-2, 'seed': 3}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Two runs on other text, of which one has the parameters of their parent."""
  place = tmp_path_factory.mktemp('evaluate')
  (parent,) = write_workdir(place / 'old', write_text(place / 'old_text'), [PARENT])
  points = [{'init.checkpoint': str(parent), 'seed': seed} for seed in (0, 1)]
  runs = write_workdir(place / 'runs', write_text(place / 'text', range(50, 90)), points)
  for run in runs:
    parents.write(run, {'checkpoint': parents.describe(str(parent))})
  shutil.copy(parent / parameters.FILE, runs[0] / parameters.FILE)
  return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
  """A copy of it, as the current folder; the parent stays where it was made."""
  shutil.copytree(made / 'runs', tmp_path / 'runs')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(environment, 'worker_environment', dict)  # of this process
  return tmp_path


def run(capsys, *arguments):
  argv = ['evaluate', '--workdir=runs', *arguments]
  code = app.execute(evaluate.main, evaluate.FLAGS, argv)
  return code, *capsys.readouterr()


def test_text_of_the_parent(place, capsys, monkeypatch):
  monkeypatch.setattr(page.selection, 'loss_plots', lambda *_, **__: [])
  code, output, error = run(capsys)
  assert code == 0, error
  same, other = other_text_csv.read(place / 'runs')
  assert same.text == other.text == 'parent' and same.digest == other.digest
  assert same.windows == FIELDS['data.validation_batches'] * FIELDS['data.batch_size']
  assert same.loss == same.parent_loss == other.parent_loss != other.loss
  change = (same.loss + other.loss) / 2 - same.parent_loss
  html = (place / 'runs/report/index.html').read_text()
  assert '<h2>Other text</h2>' in html and f'{change:+.3f}' in html and f'{change:+.3f}' in output
  # What is there is not measured again.
  monkeypatch.setattr(evaluate, '_loss', lambda *_: pytest.fail('it is measured again'))
  assert run(capsys)[0] == 0


def test_an_interruption_keeps_what_is_measured(place, capsys, monkeypatch):
  add = evaluate._Measurements.add

  def interrupted(measured, name):
    if measured.rows:
      raise KeyboardInterrupt
    add(measured, name)

  monkeypatch.setattr(evaluate._Measurements, 'add', interrupted)
  assert run(capsys)[0] not in (0, 1)
  assert len(other_text_csv.read(place / 'runs')) == 1


def test_any_text(place, capsys):
  write_text(place / 'third', range(100, 103), count=20)
  code, output, error = run(capsys, '--text=third', '--runs=*seed=1')
  assert code == 0, error
  (row,) = other_text_csv.read(place / 'runs')
  assert row.text == 'third' and row.parent_loss is not None
  assert f'{row.loss:.3f}' in output and f'{row.loss - row.parent_loss:+.3f}' in output
  assert 3 < row.windows < FIELDS['data.validation_batches'] * FIELDS['data.batch_size']


def test_forks(place, capsys):
  """They are measured like the runs of the sweep."""
  first = next(iter((place / 'runs/runs').glob('*seed=0')))
  name = f'{first.name}+fork1'
  shutil.copytree(first, first.with_name(name))
  sweeps.write_fork(place / 'runs', name, sweeps.Fork(first.name, 4, {}))
  code, output, error = run(capsys, '--runs=*fork1')
  assert code == 0, error
  (row,) = other_text_csv.read(place / 'runs')
  assert row.run == name and f'{row.loss:.3f}' in output


def test_text_that_the_runs_were_trained_on(made, place, capsys, monkeypatch):
  """It is named by content, in a warning, the table and the CSV file; validation text is not."""
  documents = sweeps.read_sweep(place / 'runs').data['documents']
  mixed = write_text(place / 'mixed', range(200, 220))
  one = '--runs=*seed=1'
  for split, new in (('validation', 'a.txt'), ('train', 'b.txt')):
    shutil.copy(made / 'text' / documents[split][0][0], mixed / new)
    code, output, error = run(capsys, '--text=mixed', one)
    assert code == 0 and error.count('warning') == (split == 'train')
    assert ('mixed (holds training text)' in output) == (split == 'train')
    (row,) = other_text_csv.read(place / 'runs')
    assert row.training_documents == (split == 'train')
  (line,) = [line for line in error.splitlines() if line.startswith('warning')]
  assert '--text=mixed: the runs were trained on 1 of its 22 documents (b.txt); losses' in line
  own = f'--text={made / "text"}'
  count = len(documents['train'])
  for _ in range(2):
    _, _, error = run(capsys, own, one)
    assert f'trained on {count} of its 40 documents (' in error and ', ...)' in error
    assert [row.training_documents for row in other_text_csv.read(place / 'runs')] == [1, count]
    monkeypatch.setattr(evaluate, '_loss', lambda *_: pytest.fail('it is measured again'))


def test_text_that_a_parent_was_trained_on(made, place, capsys):
  """Or the parent of the parent: it is named as far as their folders are there."""
  (oldest,) = write_workdir(place / 'oldest', write_text(place / 'oldest_text', range(300, 340)))
  shutil.copytree(made / 'old', place / 'old')
  (parent,) = (place / 'old/runs').iterdir()
  parents.write(parent, {'checkpoint': parents.describe(str(oldest))})
  for run_folder in (place / 'runs/runs').iterdir():
    parents.write(run_folder, {'checkpoint': parents.describe(str(parent))})
  mixed, texts = write_text(place / 'mixed', range(200, 220)), (made, place)
  for text, workdir, new in zip(('old_text', 'oldest_text'), ('old', 'oldest'), ('a.txt', 'b.txt')):
    documents = sweeps.read_sweep(place / workdir).data['documents']
    (folder,) = (root / text for root in texts if (root / text).exists())
    shutil.copy(folder / documents['train'][0][0], mixed / new)
    shutil.copy(folder / documents['validation'][0][0], mixed / f'validation_{new}')
  code, output, error = run(capsys, '--text=mixed')
  assert code == 0 and 'mixed (holds training text)' in output
  warnings = [line for line in error.splitlines() if line.startswith('warning')]
  assert warnings == [
      'warning: --text=mixed: their parents were trained on 2 of its 24 documents (a.txt, b.txt);'
      ' losses there may be those of memorised text'
  ]
  assert [row.training_documents for row in other_text_csv.read(place / 'runs')] == [2, 2]
  (place / 'oldest').rename(place / 'moved')
  code, _, error = run(capsys, '--text=mixed')
  assert code == 0 and 'their parents were trained on 1 of its 24 documents (a.txt)' in error
  assert (
      'warning: --text=mixed: could not be compared with the training text of these parents, whose'
      f' sweeps are gone or have other text: {oldest / parameters.FILE}\n'
  ) in error
  assert [row.training_documents for row in other_text_csv.read(place / 'runs')] == [1, 1]


def test_text_that_is_too_short(place, capsys):
  (place / 'short.txt').write_text('too short')
  code, _, error = run(capsys, '--text=short.txt')
  assert code == 2 and error == (
      'error: short.txt: holds 10 tokens; must hold at least 33, a window\n'
  )
  assert not other_text_csv.path(place / 'runs').exists()


def test_text_without_a_document(place, capsys):
  (place / 'empty').mkdir()
  code, _, error = run(capsys, '--text=empty')
  assert code == 2 and error == 'error: empty: holds no text\n'


def test_a_run_without_parameters_does_not_take_others_along(place, capsys):
  first = next(iter((place / 'runs/runs').glob('*seed=0')))
  (first / parameters.FILE).unlink()
  code, _, error = run(capsys)
  assert code == 1 and error.count('error: ') == 1 and parameters.FILE in error
  assert [row.run[-6:] for row in other_text_csv.read(place / 'runs')] == ['seed=1']


def test_a_parent_at_the_root():
  with pytest.raises(BadInput, match='its sweep is not there'):
    evaluate._text_of({'path': '/merged.safetensors'})


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--text=nowhere'], '--text=nowhere: no such file or folder; must be parent or a text'),
        (['--runs=x'], '--runs=x: names no finished run; one is '),
        (['--workdir=text'], 'text'),
    ],
)
def test_refused(place, capsys, arguments, said):
  code, _, error = run(capsys, *arguments)
  assert code == 2 and error.count('\n') == 1 and said in error
  assert not other_text_csv.path(place / 'runs').exists()


def test_no_parent(place, capsys):
  for path in place.glob('runs/runs/*/parent.json'):
    path.unlink()
  code, _, error = run(capsys)
  assert code == 2 and '--text=parent: no finished run has a parent' in error


def test_other_text_of_the_parent(place, capsys):
  for path in place.glob('runs/runs/*/parent.json'):
    record = files.read_json(path)
    record['checkpoint']['data']['sha256']['train'] = '0'
    files.write_json(path, record)
  code, _, error = run(capsys)
  assert code == 1 and error.count('has other text than when the run was prepared') == 1
