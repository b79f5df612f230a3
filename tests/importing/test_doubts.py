"""What may be wrong with imported runs is said, and what settles it."""

import numpy as np
import pandas as pd
import pytest

import stability
from stability.errors import BadInput
from stability.importing import curves
from stability.importing.options import Options, as_arguments
from stability.importing.runs import Caution
from tests.helpers.imported import assembled, statuses


def cautions(imported):
  return [note for note in imported.notes if isinstance(note, Caution)]


def logs(ends, metric='loss', **columns):
  """Curves of runs a, b ... that end at these steps."""
  steps = [np.arange(1, end + 1) for end in ends]
  names = np.repeat([*'abcdef'][: len(ends)], ends)
  frame = pd.DataFrame({'run': names, 'step': np.concatenate(steps)})
  return frame.assign(**{metric: 5 - frame['step'] / 100}, **columns)


RUNS = pd.DataFrame({'name': [*'abc'], 'lr': [1e-3, 1e-2, 1e-1], 'params': '1M'})


def test_runs_that_end_early():
  found = assembled(RUNS, logs([100, 100, 33]))
  (note,) = cautions(found)
  assert statuses(found) == ['done'] * 3
  assert note.startswith('status done, though the curve ends well before') and 'state' in note
  assert 'in 1 run: c (33 of 100); ' in note
  assert not cautions(assembled(RUNS, logs([100, 100, 95])))
  assert not cautions(assembled(RUNS.assign(state=['finished'] * 2 + ['killed']),
                                logs([100, 100, 33])))  # fmt: skip
  lengths = RUNS.assign(params=['1M', '1M', '2M'])
  assert not cautions(assembled(lengths, logs([100, 100, 33])))
  assert not cautions(assembled(RUNS.assign(max_steps=[100, 100, 33]), logs([100, 100, 33])))


def test_metrics_of_final_losses():
  frame = pd.concat([logs([100, 100], 'val/loss'), logs([0, 0, 100])])
  (note,) = cautions(assembled(RUNS, frame))
  assert 'final_loss is the mean training loss of the last 5% of steps of the curve' in note
  assert note.endswith('in 1 run: c')
  found = assembled(RUNS, frame)
  assert 'final_loss is the last val/loss of the curve in 2 runs: a, b' in found.notes
  (note,) = cautions(assembled(RUNS.assign(final_loss=[3, 3, None]), logs([100] * 3)))
  assert note.endswith('of the curve in 1 run: c')
  found = assembled(RUNS, logs([100] * 3))
  assert any(note.endswith('of steps of each curve') for note in found.notes)


def test_a_validation_before_training_is_no_final_loss():
  frame = logs([100] * 3)
  frame['val/loss'] = np.where(frame['step'] == 1, 10.0, np.nan)
  found = assembled(RUNS, frame)
  assert [run.result.final_loss for run in found.runs.values()] == [pytest.approx(4.02)] * 3
  assert [run.result.initial_loss for run in found.runs.values()] == [10.0] * 3
  assert not cautions(found) and any('final_loss is the mean train' in n for n in found.notes)


def test_a_validation_long_before_the_end():
  frame = logs([100] * 3)
  for every, last in (50, 100), (45, 90), (75, 75):
    frame['val/loss'] = np.where(frame['step'] % every == 0, 4.0, np.nan)
    found = cautions(assembled(RUNS, frame))
    assert len(found) == (last < 90)
  (note,) = found
  assert note.startswith('final_loss is of a validation well before the end of the curve')
  assert 'in 3 runs: a (75 of 100), b (75 of 100), c (75 of 100); ' in note
  assert not cautions(assembled(RUNS.assign(final_loss=3.0), frame))
  assert not cautions(assembled(RUNS.assign(state='killed'), frame))


@pytest.mark.parametrize('factor', [10, 0.1])
def test_learning_rates_of_table_and_curve(factor):
  rates = [1e-3] * 100 + [1e-2] * 100 + [1e-1] * 100
  frame = logs([100] * 3).assign(lr=rates)
  assert not cautions(assembled(RUNS, frame))
  (note,) = cautions(assembled(RUNS, frame.assign(lr=factor * np.array(rates))))
  assert 'in 3 runs: a, b, c' in note
  assert f'a: 0.001 in the table, {1e-3 * factor:.4g} in the curve' in note
  stopped = assembled(RUNS.assign(state='killed'), frame.assign(lr=factor * np.array(rates)))
  assert len(cautions(stopped)) == (factor > 1)  # a lower one may be during warm-up


def test_perplexities():
  runs = RUNS.assign(final_loss=[22, 4, 4.5], initial_loss=5.5)
  (note,) = cautions(assembled(runs))
  assert 'final loss is above the initial loss in 1 run (e.g. a: 22 against 5.5)' in note
  assert 'nats?' in note
  (note,) = cautions(assembled(runs.assign(initial_loss=245.0)))
  assert 'initial loss is above 20 nats in 3 runs (e.g. a: 245)' in note
  found = assembled(runs.assign(final_loss=[5.6, 4, 4.5]))  # as of a run that diverged
  assert not cautions(found) and any('in 1 run (e.g. a: 5.6' in note for note in found.notes)


def test_failed_runs_have_not_diverged():
  runs = RUNS.assign(final_loss=[9, 5.6, 4], initial_loss=5.5)
  found = assembled(runs.assign(state=['crashed', 'finished', 'finished']))
  assert statuses(found) == ['failed', 'diverged', 'done']
  (note,) = (note for note in found.notes if 'above the initial loss' in note)
  assert 'in 1 run (e.g. b: 5.6 against 5.5), which diverged' in note


def test_two_columns_of_parameters():
  runs = RUNS.assign(final_loss=3.0, non_embedding_params=[1, 2, 3], initial_loss=5.0)
  with pytest.raises(BadInput, match='of the blocks, without embedding and head'):
    assembled(runs)


def test_sizes_that_are_not_found():
  runs = RUNS.assign(final_loss=3.0, initial_loss=5.0)
  assert not any('size of the runs' in note for note in assembled(runs).notes)
  notes = assembled(runs.drop(columns='params')).notes
  assert any('--map=parameters=COLUMN (those in the matrices' in note for note in notes)


@pytest.mark.parametrize('column', ['max_steps', 'params', 'seed', 'steps', 'tokens'])
def test_a_point_in_a_whole_number(column):
  runs = RUNS.assign(final_loss=3.0, initial_loss=5.0)
  (note,) = cautions(assembled(runs.assign(**{column: '10.000'})))
  assert note == (
      f"runs, row 0: {column}='10.000' is read as 10; if the point separates thousands, write 10000"
  )
  for text in '10000', '10.0', '1.5e3', '12.500M':
    if column != 'seed' or text != '12.500M':
      assert not cautions(assembled(runs.assign(**{column: text})))


@pytest.mark.parametrize('column', ['# Parameters', '#Params', ' # params '])
def test_a_column_of_a_number_of_parameters(column):
  runs = RUNS.rename(columns={'params': column}).assign(final_loss=3.0, initial_loss=5.0)
  found = assembled(runs)
  assert {run.parameters for run in found.runs.values()} == {10**6}
  assert found.fields == ('optimizer.learning_rate', 'seed')


def test_attention_logits_without_a_block():
  frame = logs([100] * 3).assign(attn_max=1.0)
  probe = 'block_0/attention_logit_max'
  for name in ('attention_logit_max', probe):
    for column in ('attn_max', 'Attn_Max'):
      found = assembled(RUNS, frame, mapping={name: column})
      assert probe in found.runs['a'].rows.curve.values
      assert not any('highest attention logit' in note for note in found.notes)
  assert any(f'--map={probe}=attn_max' in note for note in assembled(RUNS, frame).notes)
  with pytest.raises(BadInput, match='is given twice'):
    Options(mapping={probe: 'a', 'attention_logit_max': 'b'})


def test_columns_that_the_user_names_in_another_case(tmp_path):
  runs = RUNS.rename(columns={'lr': 'Peak'})
  assert len(assembled(runs, logs([9] * 3), mapping={'learning_rate': 'peak'}).runs) == 3
  with pytest.raises(BadInput, match='no such column'):
    assembled(RUNS, logs([9] * 3), mapping={'seed': 'sed'})
  text = 'When,{},LR\n0,5,0.1\n10,4,0.1\n'
  (tmp_path / 'a.csv').write_text(text.format('CE'))
  (tmp_path / 'b.csv').write_text(text.format('ce'))
  (tmp_path / 'c.csv').write_text('step,tag,value\n0,CE,5\n0,loss,6\n10,CE,4\n')
  options = Options(mapping={'step': 'when', 'loss': 'ce'})
  by_run = curves.read(tmp_path, options).by_run
  assert [list(curve.values['loss']) for curve in by_run.values()] == [[5, 4]] * 3


def test_the_first_update_in_tokens():
  frame = logs([100] * 3)
  frame['tokens'] = 256 * frame.pop('step')
  found = assembled(RUNS, frame, step_unit='tokens')
  assert [run.result.initial_loss for run in found.runs.values()] == [4.99] * 3
  assert any('after the first update (up to 256 tokens)' in note for note in found.notes)
  with pytest.raises(BadInput, match='has no initial loss of a'):
    assembled(RUNS, frame[frame['tokens'] > 256], step_unit='tokens')


def test_runs_that_differ_in_a_column_of_the_tool():
  runs = RUNS.assign(lr=1e-3, final_loss=3.0, initial_loss=5.0, Created=[*'xyz'], Group=[*'pqr'])
  with pytest.raises(BadInput, match=r'\(they differ in Group, Created\)'):
    assembled(runs)
  runs = pd.concat([RUNS, RUNS.assign(name=[*'xyz'])]).assign(final_loss=3.0, initial_loss=5.0)
  found = assembled(runs.assign(Group=[*'pppqqq']), group_by=('Group',))
  assert len(found.runs) == 6


def test_columns_that_differ_in_case():
  first, second = logs([10]), logs([10]).assign(run='b')
  frame = pd.concat([first, second.rename(columns={'step': 'Step', 'loss': 'Loss'})])
  found = assembled(RUNS[:2], frame)
  assert [len(run.rows.curve.steps) for run in found.runs.values()] == [10, 10]
  assert statuses(found) == ['done', 'done'] and not cautions(found)


def test_curves_without_a_table():
  frame = logs([10] * 3).assign(lr=1e-3)
  message = '^--curves, run a and --curves, run b: .*; sizes are unknown; give --runs; name'
  with pytest.raises(BadInput, match=message):
    assembled(None, frame)


def test_errors_of_frames_name_arguments():
  with pytest.raises(BadInput, match=r"^loss_unit='hartleys': must be nats"):
    stability.from_frames(RUNS, loss_unit='hartleys')
  with pytest.raises(BadInput, match=r"with columns={'final_loss': 'COLUMN'}, or .* curves$"):
    stability.from_frames(RUNS)
  with pytest.raises(BadInput, match=r'loss of a, which .*, or initial_loss$'):
    stability.from_frames(RUNS, logs([9] * 3).query('step > 2'))
  text = 'give --map=a=COLUMN (x), --group_by or --map=seed=COLUMN; --curves, run 1'
  assert as_arguments(text) == (
      "give columns={'a': 'COLUMN'} (x), group_by or columns={'seed': 'COLUMN'}; curves, run 1"
  )
