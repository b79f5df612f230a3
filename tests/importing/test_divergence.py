"""Which curves are those of runs that diverged."""

import math

import numpy as np
import pandas as pd
import pytest

from stability.importing import assemble, curves, runs, tables
from stability.importing.options import Options
from tests.helpers.imported import assembled, statuses

STEPS = np.arange(0, 101, 10)
LOSS = 5 - STEPS / 50


def imported(path, text):
  """The runs of curves in a file."""
  path.write_text(text)
  options = Options(initial_loss=6.0)
  return assemble.assemble(None, curves.read(path, options), options)


def with_nan(frame, **written):
  return frame.assign(run='a', lr=1e-3).to_csv(index=False, **written)


@pytest.mark.parametrize(
    ('loss', 'val_loss', 'rows'),
    [
        ([5, None, 3, 2], None, ['5.0', '', '3.0', '2.0']),  # not logged at each step
        ([5, 4, 3, None], [None, None, None, 4], ['5.0', '4.0', '3.0', '']),  # an evaluation
        ([5, 4, 3, None], None, ['5.0', '4.0', '3.0', '']),  # too short to say
        ([5, 'NaN', 4, 3], None, ['5.0', 'null', '4.0', '3.0']),  # once
        ([5, None, None, None], None, ['5.0', 'null', 'null', 'null']),  # diverged
        ([5, 4, 3, 'NaN'], None, ['5.0', '4.0', '3.0', 'null']),
    ],
)
def test_losses_that_are_missing(loss, val_loss, rows):
  logs = pd.DataFrame({'step': range(4), 'loss': loss, 'grad_norm': 1.0})
  if val_loss:
    logs['val_loss'] = val_loss
  (run,) = assembled({'lr': [1e-3]}, logs).runs.values()
  lines = run.rows.to_text().splitlines()
  assert [line.partition('"loss": ')[2].partition(',')[0] for line in lines] == rows
  assert run.result.status == ('diverged' if rows[-1] == 'null' else 'done')


def test_a_last_row_without_the_loss(tmp_path):
  frame = pd.DataFrame({'step': STEPS, 'loss': LOSS})
  last = pd.DataFrame({'step': [1000], 'runtime_total': [7.0]})
  for summary in (last, last.assign(accuracy=0.5)):
    found = imported(tmp_path / 'a.csv', with_nan(pd.concat([frame, summary])))
    assert statuses(found) == ['done'] and found.runs['a'].result.final_loss == LOSS[-1]


def test_minus_infinity_is_no_word_for_nan(tmp_path):
  """A metric with as many of them as numbers does not make the NaN of the loss `not logged`."""
  lines = ['run,lr,step,loss,log_mass']
  lines += [f'a,1e-3,{step},{"NaN" if step > 5 else 5 - step / 10},-inf' for step in range(8)]
  lines += ['a,1e-3,8,NaN,-1.0']
  assert statuses(imported(tmp_path / 'a.csv', '\n'.join(lines))) == ['diverged']


def test_late_losses_end_with_the_last_one(tmp_path):
  frame = pd.DataFrame({'step': range(100), 'loss': np.linspace(5, 4, 100)})
  last = pd.DataFrame({'step': [1000], 'accuracy': [0.5]})
  found = imported(tmp_path / 'a.csv', with_nan(pd.concat([frame, last])))
  assert found.runs['a'].result.final_loss == pytest.approx(frame['loss'][95:].mean())


def test_a_loss_logged_less_often(tmp_path):
  steps = np.arange(1049)
  frame = pd.DataFrame({'step': steps, 'loss': np.where(steps % 50, np.nan, 5 - steps / 500)})
  assert statuses(imported(tmp_path / 'a.csv', with_nan(frame))) == ['done']
  frame['loss'] = frame['loss'].where(steps < 500)  # pandas writes NaN as an empty cell
  found = imported(tmp_path / 'a.csv', with_nan(frame))
  assert statuses(found) == ['diverged']
  (note,) = (n for n in found.notes if n.startswith('diverged, as no loss is logged at the end'))
  assert isinstance(note, runs.Caution) and note.endswith('in 1 run: a')


@pytest.mark.parametrize(('missing', 'is_named'), [(0, False), (1, True), (2, True), (3, False)])
def test_a_loss_that_is_missing_for_few_rows(tmp_path, missing, is_named):
  loss = np.where(np.arange(len(STEPS)) < len(STEPS) - missing, LOSS, np.nan)
  frame = pd.DataFrame({'step': STEPS, 'loss': loss, 'grad_norm': 1.0})
  found = imported(tmp_path / 'a.csv', with_nan(frame))
  assert statuses(found) == ['diverged' if missing == 3 else 'done']
  text = 'status done, though the last rows of the curve lack the loss'
  named = [note for note in found.notes if note.startswith(text)]
  assert len(named) == is_named and all(isinstance(note, runs.Caution) for note in named)


def test_nan_in_the_file(tmp_path):
  frame = pd.DataFrame({'step': STEPS, 'val_loss': np.where(STEPS < 50, LOSS, np.nan)})
  assert statuses(imported(tmp_path / 'a.csv', with_nan(frame, na_rep='NaN'))) == ['diverged']
  lines = frame.assign(run='a', lr=1e-3).to_dict('records')
  text = '\n'.join(str(line).replace('nan', 'NaN').replace("'", '"') for line in lines)
  assert statuses(imported(tmp_path / 'a.jsonl', text + '\n')) == ['diverged']


def test_nan_in_a_chart_export(tmp_path):
  (tmp_path / 'a.csv').write_text('Step,a - loss,b - loss\n0,5,5\n1,4,4\n2,3,NaN\n3,,NaN\n')
  logs = curves.read(tmp_path / 'a.csv', Options())
  table = tables.of_frame(pd.DataFrame({'name': [*'ab'], 'lr': [1e-3, 1e-2]}), 'runs')
  found = assemble.assemble(table, logs, Options())
  assert statuses(found) == ['done', 'diverged'] and found.runs['a'].result.steps == 2


def test_nan_in_event_files(tmp_path):
  pytest.importorskip('tensorboard')
  from tensorboardX import SummaryWriter

  for run, rate, last in ('a', 1e-3, 3.0), ('b', 1e-2, math.nan):
    with SummaryWriter(str(tmp_path / run)) as writer:
      for step in range(20):
        writer.add_scalar('lr', rate, step)
      for step, loss in (0, 5.0), (15, last):
        writer.add_scalar('loss', loss, step)
  found = assemble.assemble(None, curves.read(tmp_path, Options()), Options())
  assert [*found.runs] == ['a', 'b'] and statuses(found) == ['done', 'diverged']


def test_nan_that_fills_rows_of_other_metrics(tmp_path):
  """As json.dumps and na_rep write a table: training and evaluation in rows of their own."""
  frame = pd.DataFrame({'step': STEPS, 'loss': LOSS})
  evaluation = pd.DataFrame({'step': STEPS[::5], 'val_loss': 6.0 - STEPS[::5] / 50})
  accuracy = pd.DataFrame({'step': [101], 'accuracy': [0.5]})
  text = with_nan(pd.concat([frame, evaluation, accuracy]).sort_values('step'), na_rep='NaN')
  found = imported(tmp_path / 'a.csv', text)
  assert statuses(found) == ['done'] and found.runs['a'].result.final_loss == 4.0
  assert 'null' not in found.runs['a'].rows.to_text()


def test_nan_of_metrics_that_a_run_never_logged(tmp_path):
  """As pandas fills the table of several runs."""
  frame = pd.DataFrame({'step': STEPS, 'loss': LOSS, 'lr': 1e-3})
  other = frame.assign(lr=1e-2, grad_norm=1.0, val_loss=LOSS + 0.1, seconds=1.0 * STEPS)
  table = pd.concat([frame.assign(run='a'), other.assign(run='b')])
  found = imported(tmp_path / 'a.csv', table.to_csv(index=False, na_rep='NaN'))
  assert statuses(found) == ['done', 'done'] and 'null' not in found.runs['a'].rows.to_text()
  assert set(found.runs['a'].rows.curve.values) == {'loss', 'learning_rate'}
  assert len(found.runs['b'].rows.curve.values) == 5
  # Losses that are NaN from the start are no such metrics.
  text = table.assign(loss=np.nan).to_csv(index=False, na_rep='NaN')
  found = imported(tmp_path / 'a.csv', text)
  assert statuses(found) == ['diverged', 'done']
  assert '"loss": null' in found.runs['a'].rows.to_text()
