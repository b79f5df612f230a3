"""Asking a person, key by key."""

import pytest
from helpers.retrieval import sentences

from stability.errors import BadInput
from stability.labels import answers, asking, tasks
from stability.labels.tasks import Task
from stability.storage import files, leases

TASKS = [Task(f't{n}', 'a', n, n + 1, sentences(n, 5).decode(), 'utf-8', None, None, None)
         for n in range(6)]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
  tasks.write(tmp_path / 'tasks', TASKS, {'by': 'random', 'data': 'x'})
  return tmp_path / 'tasks'


def ask(folder, keys, annotator='ann', share=0.0):
  """Presses keys; returns what was shown and the answers in the file."""
  shown, waiting = [], list(keys)
  asking.ask(
      folder, TASKS, annotator, share, lambda: waiting.pop(0) if waiting else '', shown.append
  )
  lines = files.read_lines(folder / tasks.ANSWERS)
  return shown, [(line['task'], line['label'], line['annotator']) for line in lines]


def test_keys(folder):
  shown, given = ask(folder, 'kx?du')
  assert given == [('t0', 'keep', 'ann'), ('t1', 'drop', 'ann'), ('t2', 'unsure', 'ann')]
  assert shown.count(asking.HELP) == 2 and TASKS[3].text in shown and TASKS[4].text not in shown


def test_goes_on_where_it_was(folder):
  ask(folder, 'kkq')
  with (folder / tasks.ANSWERS).open('a') as file:
    file.write('{"task": "t2", "la')  # cut off by a crash
  _, given = ask(folder, 'dddd')
  assert [task for task, _, _ in given] == ['t0', 't1', 't2', 't3', 't4', 't5']
  assert ask(folder, 'kkk')[1] == given


def test_back(folder):
  _, given = ask(folder, 'bkkbbddq')
  assert given == [('t0', 'drop', 'ann'), ('t1', 'drop', 'ann')]


def test_back_leaves_the_answers_of_others(folder):
  """Another person, in another process, answers between an answer and its taking back."""
  keys, other = iter('kbd'), {'task': 't0', 'label': 'drop', 'annotator': 'bea'}

  def read_key():
    key = next(keys, '')
    if key == 'b':
      files.append_line(folder / tasks.ANSWERS, other)
    return key

  asking.ask(folder, TASKS, 'ann', 0.0, read_key, lambda _: None)
  assert files.read_lines(folder / tasks.ANSWERS) == [
      other, {'task': 't0', 'label': 'drop', 'annotator': 'ann'}
  ]


def test_own_answer_is_gone(folder):
  with pytest.raises(BadInput, match='the answer to take back is gone'):
    shown, keys = [], iter('kb')
    path = folder / tasks.ANSWERS
    asking.ask(folder, TASKS, 'ann', 0.0, lambda: next(keys), lambda _: _take_away(path, shown))


def _take_away(path, shown):
  shown.append(path)
  if path.exists():
    path.unlink()


def test_changes_wait_for_those_of_others(folder, monkeypatch):
  """Every change of the file, also that at the start, is made under the lease."""
  ask(folder, 'k')
  written = []

  def checked(write):
    def changed(*arguments):
      written.append(leases.holder(folder) is not None)
      return write(*arguments)

    return changed

  for name in ('open_atomic', 'append_line'):
    monkeypatch.setattr(files, name, checked(getattr(files, name)))
  ask(folder, 'dbu')
  assert written == [True] * 4  # the start, an answer, its taking back, another answer
  assert not list(folder.glob('*lease*'))


def test_second_opinions(folder):
  ask(folder, 'k' * 6)
  chosen = [task.task for task in TASKS if asking.wants_second(task.task, 0.5)]
  assert 0 < len(chosen) < 6
  shown, given = ask(folder, 'd' * 9, annotator='bea', share=0.5)
  assert given[6:] == [(task, 'drop', 'bea') for task in chosen]
  assert sum('a second opinion' in text for text in shown) == len(chosen)
  assert ask(folder, 'd' * 9, annotator='cy', share=0.5)[1] == given  # not a third one
  found = answers.read(folder / tasks.ANSWERS, [task.task for task in TASKS])
  decisions = answers.decide(found, [task.task for task in TASKS])
  assert [d.task for d in decisions if d.is_conflict] == chosen


def test_second_opinions_are_those_of_others(folder):
  """Neither in the session that gave the first answer nor later is the same person asked again."""
  _, given = ask(folder, 'k' * 12, share=1.0)
  assert len(given) == 6
  shown, given = ask(folder, 'd' * 12, share=1.0)
  assert len(given) == 6 and not any('a second opinion' in text for text in shown)
  found = [answers.Answer(task.task, 'keep', 'ann') for task in TASKS for _ in range(2)]
  counts = [len(asking.queue(TASKS, found, 1.0, who)) for who in ('ann', 'bea', None)]
  assert counts == [0, 6, 6]
  _, given = ask(folder, 'd' * 12, annotator='bea', share=1.0)
  assert [by for _, _, by in given] == ['ann'] * 6 + ['bea'] * 6


def test_share_of_second_opinions():
  names = [f'task {n}' for n in range(2000)]
  assert 0.17 < sum(asking.wants_second(name, 0.2) for name in names) / 2000 < 0.23
  assert not any(asking.wants_second(name, 0.0) for name in names)
  assert all(asking.wants_second(name, 1.0) for name in names)


def test_control_characters_do_not_reach_the_terminal(folder):
  task = Task('t0', 'a', 0, 9, 'a\x1b[2Jb\r\n\tc', 'utf-8', None, None, None)
  shown = []
  asking.ask(folder, [task], 'ann', 0.0, lambda: '', shown.append)
  assert shown[1] == 'a\ufffd[2Jb\ufffd\n\tc'
