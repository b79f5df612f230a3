"""Logs as crashes and restarts leave them: what is damaged is left out and named."""

import pytest

from stability.errors import BadInput
from stability.importing import assemble, curves, tables
from stability.importing.options import Options
from stability.importing.runs import Caution
from tests.helpers.imported import assembled, statuses

HEADER, ROWS = 'step,loss,lr\n', '0,5,0.1\n10,4,0.1\n'
JSON = '{"step": 0, "loss": 5, "lr": 0.1}\n{"step": 10, "loss": 4}\n'


def imported(path, **options):
  """The runs of curves in a file or folder."""
  options = Options(**options)
  return assemble.assemble(None, curves.read(path, options), options)


def losses(run):
  curve = run.rows.curve
  return dict(zip(curve.steps.tolist(), curve.values['loss'].tolist(), strict=True))


def named(notes, *texts):
  """Whether a warning has all these texts."""
  return any(all(text in note for text in texts) for note in notes if isinstance(note, Caution))


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        (b'', 'contains no rows'),
        (HEADER.encode(), 'contains no rows'),
        (b'time,gpu\n1,2\n3,4\n', 'has no column step'),
        (b'step,loss\n,5\n', 'step is empty in every row'),
        (b'step,note\n1,x\n', 'has no column of numbers beside the step'),
        (b'step,loss\n0,5\n1,x\n', "line 3: loss='x': must be a number"),
        (b'step,loss\n0.5,5\n', "line 2: step='0.5': must be a whole number"),
        (b'\xff\xfes\x00', 'is UTF-16; save it as UTF-8'),
        (b'a\n\xff\n', 'neither CSV nor JSON'),
        (b'step,loss\n' + b'1,2,3\n' * 20, 'has 3 cells, the header 2'),
    ],
)
def test_one_file_of_many(tmp_path, content, reason):
  (tmp_path / 'b.csv').write_bytes(content)
  with pytest.raises(BadInput, match=reason):
    curves.read(tmp_path / 'b.csv', Options())
  with pytest.raises(BadInput, match=reason):
    curves.read(tmp_path, Options())
  (tmp_path / 'a.csv').write_text(HEADER + ROWS)
  found = imported(tmp_path)
  assert [*found.runs] == ['a'] and losses(found.runs['a']) == {0: 5.0, 10: 4.0}
  assert named(found.notes, 'file left out', 'b.csv', reason)


def test_options_are_no_damage(tmp_path):
  (tmp_path / 'a.csv').write_text(HEADER + ROWS)
  (tmp_path / 'b.csv').write_text('step,val_loss_bpb,loss_bits\n0,5,1\n10,4,1\n')
  with pytest.raises(BadInput, match='--loss_unit: missing'):
    curves.read(tmp_path, Options(mapping={'loss': 'loss_bits'}))


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        (HEADER + ROWS + '20,3', 'line 4: is cut off'),
        (HEADER + ROWS + '20,3\n20,3.5,0.1\n', 'line 4: has 2 cells, the header 3'),
        (HEADER + ROWS + '20,3,020,3.5,0.1\n', 'line 4: has 5 cells, the header 3'),
        (JSON + '{"step": 20, "lo', 'line 3: is cut off'),
        (JSON + '{"step": 20, "lo\n{"step": 20, "loss": 3}\n', 'line 3: is not JSON'),
        (JSON + '7\n{"step": 20, "loss": 3}\n', 'line 3: is not a JSON object'),
        ('step,loss,lr,note\n0,5,0.1,x\n9,4,0.1,x\n10,4,0.1,"a b', 'line 4: is cut off'),
    ],
)
def test_a_damaged_line(tmp_path, text, reason):
  (tmp_path / 'a.csv').write_text(text)
  found = imported(tmp_path / 'a.csv')
  curve = found.runs['a'].rows.curve
  assert curve.steps[0] == 0 and curve.values['loss'][0] == 5.0 and len(curve.steps) > 1
  assert named(found.notes, 'lines left out', 'a.csv, ' + reason)


@pytest.mark.parametrize(
    ('again', 'names'),
    [(HEADER, {'loss', 'learning_rate'}), ('step,lr,loss,accuracy\n', None)],
)
def test_a_header_of_a_restart(tmp_path, again, names):
  rows = '10,3,0.1\n20,2,0.1\n' if names else '10,0.1,3,0.5\n20,0.1,2,0.6\n'
  (tmp_path / 'a.csv').write_text(HEADER + ROWS + again + rows)
  curve = imported(tmp_path / 'a.csv').runs['a'].rows.curve
  assert set(curve.values) == (names or {'loss', 'learning_rate', 'accuracy'})
  assert [curve.steps.tolist(), curve.values['loss'].tolist()] == [[0, 10, 20], [5.0, 3.0, 2.0]]


def test_two_restarts_of_a_short_curve():
  steps = [0, 10, 20, 30, 40, 50, 20, 30, 40, 30, 40]
  logs = {'run': 'a', 'step': steps, 'loss': [9.0] * 6 + [7.0] * 3 + [3.0] * 2}
  found = assembled({'name': ['a'], 'lr': [1e-3]}, logs)
  result = found.runs['a'].result
  assert (result.final_loss, result.steps) == (3.0, 40)
  assert '1 run restarted; 6 rows are replaced by later ones' in found.notes
  logs['step'] = [0, 10, 5, 30, 20, 40, 35, 60, 50, 60, 55]
  found = assembled({'name': ['a'], 'lr': [1e-3]}, logs)
  assert found.runs['a'].result.steps == 60
  assert named(found.notes, 'rows of 1 run are not in order', '(1 left out)')


def test_a_config_and_a_summary(tmp_path, monkeypatch):
  (tmp_path / 'a.jsonl').write_text(
      '{"config": {"optimizer": "adam", "width": 8}}\n{"step": 0, "loss": 5, "lr": 0.1}\n'
      '{"step": 10, "loss": 4, "lr": 0.1}\n{"final_accuracy": 0.5}\n'
  )
  for chunk in (50_000, 3):  # the last chunk has the summary alone
    monkeypatch.setattr(tables, 'CHUNK', chunk)
    found = imported(tmp_path / 'a.jsonl')
    assert losses(found.runs['a']) == {0: 5.0, 10: 4.0}
    assert set(found.runs['a'].rows.curve.values) == {'loss', 'learning_rate'}
    assert named(found.notes, '2 rows without step, left out: from ', 'a.jsonl, line 1')
    assert not any('columns of the curves, left out' in note for note in found.notes)


def test_a_damaged_event_file(tmp_path):
  pytest.importorskip('tensorboard')
  from tensorboardX import SummaryWriter

  with SummaryWriter(str(tmp_path / 'a')) as writer:
    for step in range(20):
      writer.add_scalar('lr', 0.1, step)
      writer.add_scalar('loss', 5 - step / 10, step)
  (file,) = (tmp_path / 'a').iterdir()
  whole = file.read_bytes()

  def read(content):
    file.write_bytes(content)
    found = imported(tmp_path)
    return [*losses(found.runs['a'])][-1], named(found.notes, 'left out: ', file.name, 'is damaged')

  assert read(whole) == (19, False)
  for cut in (1, 4, 5, 20, 40):  # a trainer is still writing it
    last, is_named = read(whole[:-cut])
    assert last >= 18 and not is_named
  middle = whole.index(b'loss', len(whole) // 2)
  for place in (middle, middle - 20, middle - 29):  # an event, the checksum of its length, that
    content = bytearray(whole)
    content[place : place + 1] = b'?'
    last, is_named = read(content)
    assert content != whole and 5 < last < 15 and is_named
  assert read(whole + bytes(99)) == (19, True)


def test_a_table_of_runs_that_is_cut_off(tmp_path):
  path = tmp_path / 'runs.csv'
  path.write_text('name,lr,loss,initial_loss\na,1,3,5\nb,2,4,5\nc,3')
  options = Options()
  found = assemble.assemble(tables.read(path), None, options)
  assert [*found.runs] == ['a', 'b'] and named(found.notes, 'runs.csv, line 4: is cut off')
  path.write_text('name,lr,loss,initial_loss\na,1,3,5\nc,3\nb,2,4,5\n')
  with pytest.raises(BadInput, match='line 3: has 2 cells, the header 4'):
    tables.read(path)


LOGS = {'run': [*'aabb'], 'step': [1, 10, 5, 10], 'loss': [5.0, 3.0, 4.5, 2.0]}
RUNS = {'name': ['a', 'b'], 'lr': [1e-3, 1e-2]}


def test_one_run_without_an_initial_loss():
  found = assembled(RUNS, LOGS)
  assert statuses(found) == ['done', None]
  assert named(found.notes, 'no result', 'initial loss', '--initial_loss', ': b')
  assert not any('neither a final loss nor a curve' in note for note in found.notes)


def test_a_run_without_an_initial_loss_is_no_failed_attempt():
  runs = {'name': ['a', 'b'], 'lr': 1e-3, 'arch': ['x', 'y'], 'final_loss': 3.0}
  with pytest.raises(BadInput, match=r'have the same .* \(they differ in arch\)'):
    assembled(runs, LOGS, group_by=())


def test_a_given_initial_loss_is_of_runs_that_lack_one():
  found = assembled(RUNS, LOGS, initial_loss=6.0)
  assert [run.result.initial_loss for run in found.runs.values()] == [5.0, 6.0]
  assert 'initial_loss is 6, as given, of runs that lack one: b' in found.notes
  found = assembled(RUNS | {'initial_loss': [5.5, None]}, LOGS, initial_loss=6.0)
  assert [run.result.initial_loss for run in found.runs.values()] == [5.5, 6.0]
