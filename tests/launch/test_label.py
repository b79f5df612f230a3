"""launch.label: from passages to tasks, answers, and a sweep that trains on what was kept."""

import io
import os
import shutil
import sys

import numpy as np
import pytest
from helpers.retrieval import write_text, write_workdir

from configs import base
from launch import label
from launch.common import app, environment, user
from stability.data import prepare, tokens
from stability.labels import tasks
from stability.storage import files, parameters, run_files, sweeps

SEEDS = [{'seed': seed} for seed in range(3)]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A sweep of three seeds."""
  place = tmp_path_factory.mktemp('label')
  write_workdir(place / 'runs', write_text(place / 'text'), SEEDS)
  (place / 'new').mkdir()
  rng = np.random.default_rng(5)
  for n in range(12):
    letters = rng.choice(list('abcdefgh \n'), 300)
    (place / 'new' / f'{n}.txt').write_text(''.join(letters))
  (place / 'new' / 'copy.txt').write_text((place / 'new' / '0.txt').read_text() + 'x')
  return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
  shutil.copytree(made, tmp_path, dirs_exist_ok=True)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(environment, 'worker_environment', dict)  # of this process
  return tmp_path


def run(capsys, *arguments):
  code = app.execute(label.main, label.FLAGS, ['label', *arguments], words=True)
  return code, *capsys.readouterr()


def select(capsys, output, *arguments):
  fixed = ['select', '--workdir=runs', '--data=new', f'--output={output}']
  code, out, error = run(capsys, *fixed, '--length=100', *arguments)
  assert code == 0, error
  return tasks.read(label.Path(output)), out


def test_selection(place, capsys):
  (found, about), out = select(capsys, 'tasks', '--count=7')
  assert about['by'] == 'disagreement' and len(about['runs']) == 3 and '7 of ' in out
  scores = [task.score for task in found]
  assert scores == sorted(scores, reverse=True) and scores == [t.disagreement for t in found]
  assert all(score > 0 for score in scores)
  for task in found:
    text = (place / 'new' / task.document).read_text()
    assert text[task.start : task.end] == task.text
  by_loss, _ = select(capsys, 'by_loss', '--count=7', '--by=loss', '--runs=seed=1')
  assert [t.score for t in by_loss[0]] == [t.loss for t in by_loss[0]]
  assert all(task.disagreement is None for task in by_loss[0])
  assert by_loss[0][0].loss >= max(task.loss for task in by_loss[0])


def test_random_selection_and_near_duplicates(place, capsys, monkeypatch):
  """Nothing is scored."""
  monkeypatch.setattr(label, '_load', lambda *_: pytest.fail('a model is loaded'))
  (found, _), out = select(capsys, 'tasks', '--by=random', '--count=999')
  assert 'near-duplicates left out' in out
  copies = [task for task in found if task.document in ('0.txt', 'copy.txt')]
  assert len(copies) <= 5  # of eight passages; ends of 12 and 13 characters differ
  again, _ = select(capsys, 'again', '--by=random', '--count=5')
  other, _ = select(capsys, 'other', '--by=random', '--count=5', '--seed=1')
  assert [t.task for t in again[0]] == [t.task for t in found[:5]] != [t.task for t in other[0]]


@pytest.mark.slow
def test_gain(place, capsys):
  """The reference is the model itself but for one seed: by their losses, nothing is gained."""
  (run_folder,) = (place / 'runs/runs').glob('seed=0')
  (found, about), _ = select(
      capsys, 'tasks', '--by=gain', f'--reference={run_folder}', '--runs=seed=0', '--count=3'
  )
  assert all(task.score == pytest.approx(0, abs=1e-5) for task in found)
  assert about['reference'] == str(run_folder)


def test_a_fork_is_no_other_seed(place, capsys):
  """It is used if it is named."""
  seed = run_files.run_dir(place / 'runs', 'seed=0')
  shutil.copytree(seed, seed.with_name('seed=0+fork1'))
  sweeps.write_fork(place / 'runs', 'seed=0+fork1', sweeps.Fork('seed=0', 4, {}))
  (_, about), _ = select(capsys, 'tasks', '--by=random')
  assert about['runs'] == ['seed=0', 'seed=1', 'seed=2']
  (_, about), _ = select(capsys, 'named', '--by=random', '--runs=*fork1')
  assert about['runs'] == ['seed=0+fork1']


@pytest.mark.parametrize('parent', ['best', None])
def test_seeds_with_parents_of_their_own(parent, place, capsys):
  """They are of one cell if the sweep has a name for all parents."""
  olds = sorted((place / 'runs/runs').iterdir())
  label_fields = {} if parent is None else {'init.parent': parent}
  points = [
      {**label_fields, 'init.checkpoint': str(old), 'seed': seed} for seed, old in enumerate(olds)
  ]
  runs = write_workdir(place / 'tuned', place / 'text', points)
  arguments = ['select', '--workdir=tuned', '--data=new', '--output=tasks']
  code, _, error = run(capsys, *arguments, '--by=random')
  assert code == 0, error
  used = tasks.read(place / 'tasks')[1]['runs']
  if parent:
    assert used == [f'parent=best,seed={seed}' for seed in range(3)]
  else:
    assert used == [runs[0].name]
    code, _, error = run(capsys, *arguments[:-1], '--output=other')
    assert code == 2 and error == (
        'error: --by=disagreement: needs two seeds or more that have finished; the one with the'
        f' lowest loss is alone: {runs[0].name}\n'
    )


def test_without_finished_runs(place, capsys):
  """A random selection needs none."""
  for path in place.glob('runs/runs/*/result.json'):
    path.unlink()
  (found, about), _ = select(capsys, 'tasks', '--by=random', '--count=5')
  assert len(found) == 5 and about['runs'] == []
  code, _, error = run(capsys, *SELECT)
  assert code == 2 and error == (
      'error: runs: no run has finished with a finite loss; --by=random needs none\n'
  )
  code, _, error = run(capsys, *SELECT, '--by=random', '--runs=seed=1')
  assert code == 2 and error == 'error: --runs=seed=1: names no finished run of runs\n'


def answer(monkeypatch, capsys, keys, *arguments):
  monkeypatch.setattr(sys, 'stdin', io.StringIO('\n'.join(keys)))
  code, out, error = run(capsys, 'ask', '--tasks=tasks', *arguments)
  assert code == 0, error
  return out


@pytest.mark.slow
def test_from_answers_to_token_files(place, capsys, monkeypatch):
  (found, _), _ = select(capsys, 'tasks', '--count=6')
  out = answer(monkeypatch, capsys, 'kkdq', '--annotator=ann', '--second=0')
  assert found[3].text in out and '3 answers given, 3 questions left' in out
  out = answer(monkeypatch, capsys, 'kku', '--annotator=ann', '--second=0')
  assert '3 answers given, 0 questions left' in out
  other = [{**vars(task), 'label': ['drop']} for task in found[:2]]
  files.write_lines(place / 'bea.jsonl', other)
  both = 'tasks/answers.jsonl,bea.jsonl'
  code, out, error = run(capsys, 'read', '--tasks=tasks', f'--answers={both}', '--output=judged')
  assert code == 0, error
  assert '8 answers to 6 of 6 tasks: 2 kept, 1 dropped, 3 undecided; annotators: 2\n' in out
  assert '2 conflicts among 2 tasks' in out
  assert f'{found[0].task}: ann: keep, bea: drop' in out
  opened = tokens.open_tokens(place / 'judged')
  expected = b'\0'.join([*(task.text.encode() for task in found), b''])
  assert opened.train.tobytes() == expected
  sweep_data = next(path for path in (place / 'runs/data').iterdir() if path.is_dir())
  assert np.array_equal(opened.validation, tokens.open_tokens(sweep_data).validation)
  data = base.get_config().data
  data.path, data.labels = 'judged', 'kept'
  kept = tokens.open_tokens(prepare.prepare(data, place / 'data', 32))
  assert kept.train.tobytes() == b'\0'.join([found[3].text.encode(), found[4].text.encode(), b''])
  entries = files.read_json(place / 'judged/labels.json')['documents']
  assert [entry['weight'] for entry in entries] == [0.5, 0.5, 0, 1, 1, 0]
  assert entries[0]['opinions'] == [['ann', 'keep'], ['bea', 'drop']]


def test_half_of_the_training_text(place, capsys):
  fixed = ['select', '--workdir=runs', '--data=train', '--length=0', '--by=random']
  code, out, error = run(capsys, *fixed, '--share=0.5', '--output=half')
  assert code == 0, error
  found, _ = tasks.read(place / 'half')
  sweep_data = next(path for path in (place / 'runs/data').iterdir() if path.is_dir())
  before = tokens.open_tokens(sweep_data)
  lengths = dict(before.meta['documents']['train'])
  for task in found:
    assert len(task.text) == lengths[task.document]
    assert (place / 'text' / task.document).read_text() == task.text
  total, chosen = sum(lengths.values()), sum(len(task.text) for task in found)
  assert total / 2 <= chosen < total / 2 + max(lengths.values())
  code, out, error = run(capsys, 'keep', '--tasks=half', '--output=kept')
  assert code == 0, error
  assert f'{len(found)} passages in the token folder kept' in out
  after = tokens.open_tokens(place / 'kept')
  assert after.train.tobytes() == b'\0'.join([*(task.text.encode() for task in found), b''])
  assert np.array_equal(after.validation, before.validation)


def test_validation_text_is_left_out(place, capsys):
  sweep_data = next(path for path in (place / 'runs/data').iterdir() if path.is_dir())
  opened = tokens.open_tokens(sweep_data)
  held_out = {name for name, _ in opened.meta['documents']['validation']}
  fixed = ['select', '--workdir=runs', '--by=random', '--count=999', '--runs=seed=0']
  code, out, error = run(capsys, *fixed, '--data=text', '--length=0', '--output=tasks')
  assert code == 0, error
  found, about = tasks.read(place / 'tasks')
  assert len(found) == about['passages'] == 40 - len(held_out)
  assert f'{len(held_out)} others left out, which share text with the validation text' in out
  assert not held_out.intersection(task.document for task in found)
  (place / 'copies').mkdir()
  shutil.copy(place / 'text' / min(held_out), place / 'copies')
  code, _, error = run(capsys, *fixed, '--data=copies', '--output=none')
  assert code == 2 and "--data=copies: all of it occurs in the sweep's validation text" in error


def test_who_answers_without_a_name(place, capsys, monkeypatch):
  def getuser():
    raise KeyError('getpwuid(): uid not found: 12345')

  monkeypatch.setattr(user.getpass, 'getuser', getuser)
  task = tasks.Task('t0', 'a', 0, 1, 'x', 'utf-8', None, None, None)
  tasks.write(place / 'tasks', [task], {'by': 'random', 'data': 'x'})
  answer(monkeypatch, capsys, 'k')
  (line,) = files.read_lines(place / 'tasks/answers.jsonl')
  assert line['annotator'] == f'uid {os.getuid()}'


SELECT = ['select', '--workdir=runs', '--data=new', '--output=x']
BAD = {
    'no word': ([], "'': must be one of select, ask, read, keep"),
    'another word': (['sort'], "'sort': must be one of select"),
    'no workdir': (['select', '--data=new', '--output=x'], '--workdir: missing'),
    'no data': (['select', '--workdir=runs', '--output=x'], '--data: missing'),
    'no such data': ([*SELECT[:2], '--data=gone', '--output=x'], '--data=\'gone\': no such'),
    'no text': ([*SELECT[:2], '--data=empty.txt', '--output=x'], '--data=empty.txt: holds nothing'),
    'output': ([*SELECT[:3], '--output=new'], '--output=new: exists'),
    'no reference': ([*SELECT, '--by=gain'], '--reference: must be given with --by=gain'),
    'reference': ([*SELECT, '--reference=runs'], '--reference: must be given with --by=gain'),
    'no run': ([*SELECT, '--by=gain', '--reference=new'], '--reference=new: must be the folder'),
    'one seed': ([*SELECT, '--runs=seed=1'], 'have finished; --runs names: seed=1'),
    'no seed': ([*SELECT, '--runs=seed=9'], '--runs=seed=9: names no finished run'),
    'rule': ([*SELECT, '--by=taste'], '--by'),
    'count': ([*SELECT, '--count=0'], '--count'),
    'no share': ([*SELECT, '--share=0'], '--share=0.0: must be above 0, and at most 1'),
    'share': ([*SELECT, '--count=2', '--share=0.5'], '--share: must be given without --count'),
    'nothing to keep': (['keep', '--tasks=new', '--output=x'], '--tasks=new: holds no tasks'),
    'no tasks': (['ask'], '--tasks: missing'),
    'foreign tasks': (['ask', '--tasks=new'], '--tasks=new: holds no tasks.jsonl'),
    'ask with count': (['ask', '--tasks=x', '--count=2'], '--count: not with ask, which takes'),
    'read with rule': (['read', '--by=loss'], '--by: not with read, which takes --tasks'),
    'keep with answers': (['keep', '--answers=x'], '--answers: not with keep, which takes'),
    'select with tasks': ([*SELECT, '--tasks=x'], '--tasks: not with select, which takes'),
    'seed': ([*SELECT, '--seed=1'], '--seed: must be given with --by=random'),
    'no answers': (['read', '--tasks=new', '--output=x'], '--answers: missing'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input(case, place, capsys):
  arguments, said = BAD[case]
  (place / 'empty.txt').write_text('\n \n')
  before = sorted(place.rglob('*'))
  code, out, error = run(capsys, *arguments)
  assert (code, out) == (2, '') and error.count('\n') == 1 and said in error, error
  assert sorted(place.rglob('*')) == before


def test_broken_answers_leave_nothing(place, capsys):
  (found, _), _ = select(capsys, 'tasks', '--count=2', '--by=random')
  (place / 'a.jsonl').write_text(f'{{"task": "{found[0].task}", "label": "yes"}}\n')
  code, _, error = run(capsys, 'read', '--tasks=tasks', '--answers=a.jsonl', '--output=judged')
  assert code == 2 and error.startswith("error: a.jsonl, line 1: label='yes': must be one of keep")
  assert not list(place.glob('*judged*'))


def test_a_seed_without_parameters(place, capsys):
  (run_files.run_dir(place / 'runs', 'seed=1') / parameters.FILE).unlink()
  code, _, error = run(capsys, *SELECT)
  assert code == 2 and 'seed=1/parameters.safetensors: no such file' in error
