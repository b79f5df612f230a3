import gzip

import numpy as np
import pytest

from stability.errors import BadInput
from stability.importing import cleaning, curves
from stability.importing.options import Options
from stability.importing.outcomes import Rows

NAN = np.nan


def read(path, **options):
  return curves.read(path, Options(**options))


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


def losses(curve):
  return dict(zip(curve.steps.tolist(), curve.values['loss'].tolist(), strict=True))


@pytest.mark.parametrize(
    ('steps', 'kept'),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([3, 2, 1, 0], [3, 2, 1, 0]),  # newest first
        ([2, 3, 0, 1], [2, 3, 0, 1]),  # two parts, swapped
        ([0, 5, 10, 15, 4, 9, 14], [0, 4, 5, 6]),  # a restart at step 4 at other steps
        ([0, 1, 2, 3, 2, 3], [0, 1, 4, 5]),  # a restart that repeats steps
        ([0, 1, 2, 3, 1, 2, 3, 2, 3], [0, 4, 7, 8]),  # two restarts
        ([0, 1, 2, 3, 1, 2, 1, 2], [0, 6, 7]),  # the later one was interrupted
        ([0, 1, 3, 2, 5, 4, 7, 6], [0, 1, 2, 3, 4, 5, 6, 7]),  # merely not in order
        ([0, 1, 1, 2], [0, 2, 3]),  # the later row of a step
    ],
)
def test_tidy(steps, kept):
  curve = cleaning.tidy(np.array(steps), {'loss': np.arange(len(steps), dtype=float)})
  assert losses(curve) == {steps[row]: float(row) for row in sorted(kept, key=lambda r: steps[r])}
  assert list(curve.steps) == sorted(curve.steps)


def test_steps_that_are_repeated_out_of_order_are_counted():
  steps, loss = np.array([3, 2, 1, 2, 0]), np.arange(5.0)
  found = cleaning.tidy(steps, {'loss': loss})
  assert losses(found) == {0: 4.0, 1: 2.0, 2: 3.0, 3: 0.0}
  assert (found.repeated, found.unordered) == (0, 1)
  apart = {'loss': np.where(loss == 3, NAN, loss), 'val_loss': np.where(loss == 3, 3, NAN)}
  assert cleaning.tidy(steps, apart).unordered == 0  # rows of a step with other metrics


def test_validation_rows_after_all_training_rows():
  """They go back without a restart: nothing is replaced."""
  values = {
      'loss': np.array([5.0, 4.0, 3.0, NAN, NAN]),
      'val_loss': np.array([NAN, NAN, NAN, 5.5, 3.5]),
  }
  curve = cleaning.tidy(np.array([0, 10, 20, 0, 20]), values)
  assert curve.repeated == 0
  np.testing.assert_array_equal(curve.values['loss'], [5, 4, 3])
  np.testing.assert_array_equal(curve.values['val_loss'], [5.5, NAN, 3.5])


def test_rows_of_one_step_are_merged():
  # W&B logs training and validation in two rows.
  values = {'loss': np.array([1, NAN, 2]), 'val_loss': np.array([NAN, 3, NAN])}
  curve = cleaning.tidy(np.array([0, 0, 1]), values)
  np.testing.assert_array_equal(curve.values['val_loss'], [3, NAN])
  assert losses(curve) == {0: 1.0, 1: 2.0}


def test_wide(tmp_path):
  path = write(
      tmp_path / 'chart.csv',
      'Step,a - x - train/loss,a - x - train/loss__MIN,b - train/loss\n0,5,4,\n10,3,2,6\n20,,,4\n',
  )
  found = read(path).by_run
  assert losses(found[('a - x',)]) == {0: 5.0, 10: 3.0}
  assert losses(found[('b',)]) == {10: 6.0, 20: 4.0}


def test_folder(tmp_path):
  write(tmp_path / 'logs' / 'a.jsonl', '{"step": 0, "loss": 5}\n{"step": 1, "loss": 4}\n')
  write(tmp_path / 'logs' / 'b' / 'metrics.csv', 'step,loss\n0,3\n1,2\n')
  found = read(tmp_path / 'logs')
  by_name = {name: curve for names, curve in found.by_run.items() for name in names}
  assert losses(by_name['a']) == {0: 5.0, 1: 4.0} and losses(by_name['b']) == {0: 3.0, 1: 2.0}
  assert len(found.files) == 2 and not found.notes.ignored


def test_files_that_are_not_read(tmp_path):
  (tmp_path / 'a.csv.gz').write_bytes(gzip.compress(b'step,loss\n0,5\n1,4\n'))
  write(tmp_path / 'config.json', '{}')
  write(tmp_path / '.hidden', '')
  found = read(tmp_path)
  assert [names[0] for names in found.by_run] == ['a']
  assert [path.name for path in found.notes.ignored] == ['config.json']


def test_event_files(tmp_path):
  pytest.importorskip('tensorboard')
  from tensorboardX import SummaryWriter

  with SummaryWriter(str(tmp_path / 'a')) as writer:
    for step in range(3):
      writer.add_scalar('train/loss', 5 - step, step)
      writer.add_scalar('layers.1.max_attn_logit', step, step)
    writer.add_text('note', 'text', 0)
  ((names, curve),) = read(tmp_path).by_run.items()
  assert 'a' in names and losses(curve) == {0: 5.0, 1: 4.0, 2: 3.0}
  assert list(curve.values['block_1/attention_logit_max']) == [0, 1, 2]


def test_metrics_in_separate_files(tmp_path):
  write(tmp_path / 'a' / 'train.csv', 'step,loss\n0,5\n10,4\n20,3\n')
  write(tmp_path / 'a' / 'val.csv', 'step,val_loss\n0,6\n20,4\n')
  # The names of one file are not those of the other: the folder's name is in both.
  found = read(tmp_path).by_run
  assert [set(curve.values) for curve in found.values()] == [{'loss'}, {'val_loss'}]


def test_a_restart_in_a_chart_export(tmp_path):
  text = 'Step,a - loss,a - grad_norm\n0,5,1\n1,4,1\n2,9,9\n1,3,2\n2,2,2\n'
  ((_, curve),) = read(write(tmp_path / 'a.csv', text)).by_run.items()
  assert losses(curve) == {0: 5.0, 1: 3.0, 2: 2.0} and curve.repeated == 2
  assert list(curve.values['gradient_norm']) == [1, 2, 2]


def test_bits_become_nats(tmp_path):
  path = write(tmp_path / 'a.csv', 'step,loss,val_loss,grad_norm\n0,1,2,3\n1,1,2,3\n')
  (curve,) = read(path, loss_unit='bits').by_run.values()
  found = {name: values[0] for name, values in curve.values.items()}
  assert found == {'loss': np.log(2), 'val_loss': 2 * np.log(2), 'gradient_norm': 3.0}


@pytest.mark.parametrize('name', ['val_loss', 'final_loss'])
def test_a_validation_loss_that_the_user_names_becomes_nats(tmp_path, name):
  path = write(tmp_path / 'a.csv', 'step,train_loss,heldout_bpb\n0,1,2\n1,1,2\n')
  mapping = {name: 'heldout_bpb'}
  (curve,) = read(path, loss_unit='bits', mapping=mapping).by_run.values()
  assert list(curve.values[name]) == [2 * np.log(2)] * 2
  with pytest.raises(BadInput, match='--loss_unit: missing; heldout_bpb may be in nats or in bits'):
    read(path, mapping=mapping)


def test_mapping(tmp_path):
  path = write(tmp_path / 'a.csv', 'when,ce,q\n0,1,2\n1,1,2\n')
  mapping = {'step': 'when', 'loss': 'ce', 'block_0/attention_logit_max': 'q'}
  (curve,) = read(path, mapping=mapping).by_run.values()
  assert list(curve.values) == ['loss', 'block_0/attention_logit_max']


def test_text_is_left_out(tmp_path):
  path = write(tmp_path / 'a.csv', 'step,loss,phase\n0,1,train\n1,1,train\n')
  assert [*read(path).notes.left_out] == ['phase']


@pytest.mark.parametrize('update', ['train/global_step', 'trainer/global_step', 'iteration'])
def test_the_log_counter_is_no_step(tmp_path, update):
  text = f'_step,{update},loss\n0,100,5\n1,200,4\n2,,3\n'
  found = read(write(tmp_path / 'a.csv', text))
  ((_, curve),) = found.by_run.items()
  assert losses(curve) == {100: 5.0, 200: 4.0} and list(curve.values) == ['loss']
  assert [*found.notes.step_columns] == [update] and [*found.notes.other_steps] == ['_step']
  assert found.notes.without_step == {update: 1}
  assert [*found.notes.names] == [('loss', 'loss')]


def test_steps_of_a_chart_export(tmp_path):
  text = 'train/global_step,a - train/loss\n10,9\n20,8\n'
  (curve,) = read(write(tmp_path / 'a.csv', text)).by_run.values()
  assert losses(curve) == {10: 9.0, 20: 8.0}


LONG = 'step,{},value\n0,train/ce_loss,9\n0,loss,5\n0,lr,1\n1,loss,4\n1,train/ce_loss,8\n'
TWO_LOSSES = {
    'a.csv': 'step,train/ce_loss,loss,lr\n0,9,5,1\n1,8,4,\n',
    'chart.csv': 'Step,a - train/ce_loss,a - loss,a - lr\n0,9,5,1\n1,8,4,\n',
    'metric.csv': LONG.format('metric'),
    'tag.csv': LONG.format('tag').replace('\n', ',a\n').replace('value,a', 'value,run'),
}


@pytest.mark.parametrize('file', TWO_LOSSES)
def test_the_likelier_of_two_losses(tmp_path, file):
  """In tables with a column per metric, with one per run, and with a row per metric and step."""
  path = write(tmp_path / file, TWO_LOSSES[file])
  found = read(path)
  (curve,) = found.by_run.values()
  assert losses(curve) == {0: 5.0, 1: 4.0}
  assert set(curve.values) == {'loss', 'train/ce_loss', 'learning_rate'}
  assert list(curve.values['train/ce_loss']) == [9, 8]
  assert [*found.notes.second] == [('loss', 'loss', 'train/ce_loss')]
  (curve,) = read(path, mapping={'loss': 'train/ce_loss'}).by_run.values()
  assert losses(curve) == {0: 9.0, 1: 8.0} and set(curve.values) == {'loss', 'learning_rate'}


def test_long_tables_of_several_runs(tmp_path):
  text = 'run_id,key,value,step,context\na,loss,5,0,x\nb,loss,NaN,0,x\na,loss,4,1,x\n'
  found = read(write(tmp_path / 'a.csv', text))
  assert [*found.by_run] == [('a',), ('b',)] and losses(found.by_run['a',]) == {0: 5.0, 1: 4.0}
  assert np.isinf(found.by_run['b',].values['loss']) and [*found.notes.left_out] == ['context']


def test_downloads_of_tensorboard(tmp_path):
  for tag, value in ('train_loss', 5), ('lr', 1):
    write(tmp_path / f'run-a-b-tag-{tag}.csv', f'Wall time,Step,Value\n1.5,0,{value}\n2.5,1,4\n')
  ((names, curve),) = read(tmp_path).by_run.items()
  assert names[0] == 'a-b' and losses(curve) == {0: 5.0, 1: 4.0}
  assert set(curve.values) == {'loss', 'learning_rate'}


def test_columns_that_the_user_excludes(tmp_path):
  path = write(tmp_path / 'a.csv', 'step,loss,val_loss\n0,5,6\n1,4,5\n')
  found = read(path, mapping={'loss': ''})
  ((_, curve),) = found.by_run.items()
  assert list(curve.values) == ['val_loss'] and [*found.notes.left_out] == ['loss']
  with pytest.raises(BadInput, match='has no column step'):
    read(path, mapping={'step': ''})


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('step,loss\n0.5,1\n1,2\n', "line 2: step='0.5': must be a whole number"),
        ('step,loss\n,1\n,2\n', 'step is empty in every row'),
        ('step,loss\n0,1\n1,x\n', "line 3: loss='x': must be a number"),
        ('step,loss,other\n0,1,2\n1,1,"1,000"\n', "line 3: other='1,000': must be a number"),
        ('time,loss\n0,1\n1,2\n', 'has no column step; its columns, nearest first, are time, loss'),
        ('tokens,loss\n0,1\n1,2\n', '--step_unit: missing'),
        ('step,loss_bits\n0,1\n1,2\n', None),
        ('step,val_loss\n5,1\n', 'has a single step of each run'),
        ('step\n5\n', 'has no column of numbers'),
    ],
)
def test_refused(tmp_path, text, message):
  path = write(tmp_path / 'a.csv', text)
  if message is None:
    assert read(path).by_run
  else:
    with pytest.raises(BadInput, match=message):
      read(path)


def test_tokens(tmp_path):
  path = write(tmp_path / 'a.csv', 'step,tokens,loss\n0,0,1\n1,512,2\n')
  (curve,) = read(path, step_unit='tokens').by_run.values()
  assert list(curve.steps) == [0, 512]


def test_two_columns_of_tokens(tmp_path):
  """Rows have the one that is the step as their tokens."""
  text = 'tokens,consumed_tokens,loss\n0,7,5\n512,519,4\n'
  found = read(write(tmp_path / 'a.csv', text), step_unit='tokens')
  (curve,) = found.by_run.values()
  assert list(curve.values) == ['loss'] and [*found.notes.left_out] == ['consumed_tokens']
  assert Rows(curve, 'tokens').to_text() == (
      '{"step": 0, "tokens": 0, "loss": 5.0}\n{"step": 512, "tokens": 512, "loss": 4.0}\n'
  )
