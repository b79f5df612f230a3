"""Answers in the layouts of the tools, with conflicts; broken ones are refused by place."""

import dataclasses
import json
from pathlib import Path

import pytest

from stability.errors import BadInput
from stability.labels import answers, tasks
from stability.labels.answers import Answer
from stability.labels.tasks import Task
from stability.storage import files

TASKS = [
    Task(f't{n}', 'book.txt', 10 * n, 10 * n + 5, f'te\xe9 {n}', 'utf-8', 2.5, 0.1 * n, 0.1 * n)
    for n in range(4)
]
NAMES = [task.task for task in TASKS]
ABOUT = {'by': 'disagreement', 'data': '/data'}


@pytest.fixture
def folder(tmp_path):
  tasks.write(tmp_path / 'tasks', TASKS, ABOUT)
  return tmp_path / 'tasks'


def test_tasks_round_trip(folder):
  assert tasks.read(folder) == (TASKS, ABOUT)


def test_tasks_of_earlier_versions(folder):
  path = folder / 'tasks.jsonl'
  path.write_text(path.read_text().replace('"disagreement"', '"uncertainty"'))
  assert '"uncertainty"' in path.read_text()
  assert tasks.read(folder) == (TASKS, ABOUT)


@pytest.mark.parametrize(
    ('old', 'new', 'said'),
    [
        ('"t1"', '"t0"', "line 2: damaged: task 't0' is there twice"),
        ('"start": 20', '"start": "x"', 'line 3: damaged: start must be a whole number'),
        ('"encoding": "utf-8"', '"encoding": "ascii"', "line 1: damaged: encoding='ascii'"),
        ('"loss": 2.5', '"loss": []', 'line 1: damaged: loss must be a number or null'),
    ],
)
def test_damaged_tasks(folder, old, new, said):
  path = folder / 'tasks.jsonl'
  path.write_text(path.read_text().replace(old, new))
  with pytest.raises(BadInput, match=r'tasks\.jsonl, ') as error:
    tasks.read(folder)
  assert said in str(error.value)


def test_label_studio(folder, tmp_path):
  """The layout of labelstud.io/guide/task_format, without and with annotations."""
  found = json.loads((folder / 'label_studio.json').read_text())
  assert [task['data'] for task in found] == [dataclasses.asdict(task) for task in TASKS]
  assert len({task['id'] for task in found}) == 4
  assert found[1]['predictions'] == [
      {'model_version': 'disagreement', 'score': 0.1, 'result': []}
  ]
  interface = (folder / 'label_studio.xml').read_text()
  assert '<Text name="text" value="$text"/>' in interface
  assert 'name="label" toName="text"' in interface and '<Choice value="keep"/>' in interface

  def annotation(label, by, **others):
    result = {
        'id': 'x1', 'from_name': 'label', 'to_name': 'text', 'type': 'choices',
        'value': {'choices': [label]}, 'origin': 'manual',
    }  # fmt: skip
    return {'id': 7, 'completed_by': by, 'result': [result], 'was_cancelled': False, **others}

  found[0]['annotations'] = [annotation('keep', 3), annotation('drop', {'id': 4, 'email': 'b@c'})]
  found[1]['annotations'] = [annotation('drop', 3, was_cancelled=True)]
  found[2]['annotations'] = []
  found[3]['annotations'] = [annotation('unsure', {'id': 4})]
  path = tmp_path / 'export.json'
  path.write_text(json.dumps(found, indent=2))
  assert answers.read(path, NAMES) == [
      Answer('t0', 'keep', '3'), Answer('t0', 'drop', 'b@c'), Answer('t3', 'unsure', '4')
  ]


@pytest.mark.parametrize('key', ['label', 'labels'])
def test_doccano(folder, tmp_path, key):
  lines = files.read_lines(folder / 'doccano.jsonl')
  assert [line.pop('label') for line in lines] == [[]] * 4
  assert lines == [dataclasses.asdict(task) for task in TASKS]
  exported = [
      {'id': n, **line, key: labels, 'Comments': []}
      for n, (line, labels) in enumerate(zip(lines, [['keep'], [], ['drop'], ['unsure']]))
  ]
  files.write_lines(tmp_path / 'ann.jsonl', exported)
  assert answers.read(tmp_path / 'ann.jsonl', NAMES) == [
      Answer('t0', 'keep', 'ann'), Answer('t2', 'drop', 'ann'), Answer('t3', 'unsure', 'ann')
  ]


def test_doccano_files_of_one_name(tmp_path, monkeypatch):
  """Two people are two, even if their exports have one name."""
  monkeypatch.chdir(tmp_path)
  given = {'alice/all.jsonl': 'keep', 'bob/all.jsonl': 'drop', 'bob/all.json': 'keep', 'c': 'keep'}
  for name, label in given.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    files.write_lines(tmp_path / name, [{'task': 't0', 'label': [label]}])

  def people(*names):
    return [answer.annotator for answer in answers.read_all([*map(Path, names)], NAMES)]

  assert people('alice/all.jsonl') == people('alice/all.jsonl', 'bob/../alice/all.jsonl')[:1]
  assert people('alice/all.jsonl', 'bob/all.jsonl', 'c') == ['alice/all', 'bob/all', 'c']
  assert people('bob/all.jsonl', 'bob/all.json') == [
      f'{tmp_path}/bob/all.jsonl', f'{tmp_path}/bob/all.json'
  ]
  with pytest.raises(BadInput, match='/: cannot be read'):
    people('/')


def test_label_studio_json_min(tmp_path):
  (tmp_path / 'a.json').write_text('\ufeff[{"task": "t0", "label": "keep", "annotator": 1}]')
  assert answers.read(tmp_path / 'a.json', NAMES) == [Answer('t0', 'keep', '1')]


PLAIN = '{"task": "t0", "label": "keep", "annotator": "a"}'
BROKEN = {
    'no object': ('3', 'must be an object'),
    'no task': ('{"label": "keep", "annotator": "a"}', 'task: missing'),
    'another task': (PLAIN.replace('t0', 't9'), "task='t9': is none of the tasks"),
    'another label': (PLAIN.replace('keep', 'good'), "label='good': must be one of keep"),
    'no label': ('{"task": "t0", "annotator": "a"}', 'label=None: must be one of'),
    'a label that is a list': ('{"task": "t0", "label": [["keep"]]}', 'label=['),
    'two labels': ('{"task": "t0", "label": ["keep", "drop"]}', 'label=['),
    'nobody': ('{"task": "t0", "label": "keep"}', 'annotator: missing'),
    'annotations': ('{"data": {"task": "t0"}, "annotations": [3]}', 'annotations: not as'),
    'no data': ('{"annotations": []}', 'data must be an object'),
    'spans': (
        '{"data": {"task": "t0"}, "annotations": [{"result": [{"type": "choices"}]}]}',
        'annotations: not as Label Studio',
    ),
}


@pytest.mark.parametrize('case', BROKEN)
@pytest.mark.parametrize('unit', ['line', 'item'])
def test_broken_answers(case, unit, tmp_path):
  value, said = BROKEN[case]
  path = tmp_path / 'a.jsonl'
  path.write_text(f'{PLAIN}\n{value}\n' if unit == 'line' else f'[{PLAIN},\n\n{value}\n]')
  with pytest.raises(BadInput) as error:
    answers.read(path, NAMES)
  assert str(error.value).startswith(f'{path}, {unit} 2: {said}'), error.value


def test_a_damaged_line(tmp_path):
  (tmp_path / 'a.jsonl').write_text(f'{PLAIN}\n{{"task": \n')
  with pytest.raises(BadInput, match=r'a\.jsonl, line 2: is not JSON: Expecting value'):
    answers.read(tmp_path / 'a.jsonl', NAMES)


@pytest.mark.parametrize(
    'text, line',
    [
        (f'[{PLAIN}]\n]', 2),
        (f'[{PLAIN}]\n{PLAIN}', 2),
        (f'[{PLAIN}\n{PLAIN}]', 2),
        (f'[{PLAIN}', 1),
        (f'[{PLAIN},\n,{PLAIN}]', 2),
        (f'[{PLAIN}\n,]', 2),
        ('[{"task": \n]', 2),
        ('[,,]', 1),
        ('[', 1),
    ],
)
def test_a_damaged_array(text, line, tmp_path):
  path = tmp_path / 'a.json'
  path.write_text(text)
  with pytest.raises(BadInput, match=rf'a\.json: is not JSON: .*: line {line} column'):
    answers.read(path, NAMES)
  path.write_text('[ ]\n')
  assert not answers.read(path, NAMES)
  path.write_text('[' * 100_000)
  with pytest.raises(BadInput, match=r'a\.json: is not JSON: .*recursion'):
    answers.read(path, NAMES)


def test_line_ends_of_a_text(tmp_path):
  """JSON lines end with a line feed alone, as doccano writes them: without escapes."""
  text = 'one\u2028two\u2029three\x85four'
  lines = [{'text': text, 'label': ['drop'], 'task': name} for name in ('t0', 't1')]
  content = ''.join(json.dumps(line, ensure_ascii=False) + '\r\n' for line in lines)
  (tmp_path / 'ann.jsonl').write_bytes(content.encode())
  assert answers.read(tmp_path / 'ann.jsonl', NAMES) == [
      Answer('t0', 'drop', 'ann'), Answer('t1', 'drop', 'ann')
  ]


def test_no_file(tmp_path):
  with pytest.raises(BadInput, match=r'gone\.json: cannot be read'):
    answers.read(tmp_path / 'gone.json', NAMES)


def test_decisions():
  said = [
      ('t3', 'keep', 'a'), ('t0', 'keep', 'a'), ('t0', 'drop', 'b'), ('t1', 'unsure', 'b'),
      ('t2', 'unsure', 'a'), ('t2', 'keep', 'b'), ('t3', 'keep', 'b'), ('t3', 'drop', 'c'),
  ]  # fmt: skip
  found = answers.decide([Answer(*each) for each in said], NAMES)
  assert [(d.task, d.label, round(d.weight, 3), d.is_conflict) for d in found] == [
      ('t0', 'unsure', 0.5, True),
      ('t1', 'unsure', 0.0, False),
      ('t2', 'keep', 1.0, False),
      ('t3', 'keep', 0.667, True),
  ]
  assert [answer.annotator for answer in found[3].opinions] == ['a', 'b', 'c']


def test_one_vote_per_annotator():
  """The last answer of each counts: neither an earlier one nor a second one outvotes anybody."""
  said = [
      ('t0', 'keep', 'a'), ('t0', 'keep', 'a'), ('t0', 'drop', 'b'),
      ('t1', 'keep', 'a'), ('t1', 'drop', 'b'), ('t1', 'drop', 'a'), ('t2', 'keep', 'a'),
      ('t2', 'unsure', 'a'),
  ]  # fmt: skip
  found = answers.decide([Answer(*each) for each in said], NAMES)
  assert [(d.task, d.label, d.weight, d.is_conflict) for d in found] == [
      ('t0', 'unsure', 0.5, True),
      ('t1', 'drop', 0.0, False),
      ('t2', 'unsure', 0.0, False),
  ]
  assert found[1].opinions == (Answer('t1', 'drop', 'a'), Answer('t1', 'drop', 'b'))


def test_interrupted_tasks_leave_no_folder(tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(files, 'write_json', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      tasks.write(tmp_path / 'tasks', TASKS, ABOUT)
  assert not (tmp_path / 'tasks').exists()
  tasks.write(tmp_path / 'tasks', TASKS, ABOUT)
  assert [path.name for path in tmp_path.iterdir()] == ['tasks']
