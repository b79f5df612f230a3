"""Statuses and losses where a table, a state and a curve say different things."""

import numpy as np
import pandas as pd
import pytest

from stability.importing.runs import Caution
from tests.helpers.imported import assembled, statuses

STEPS = np.arange(0, 201, 10)
RUNS = pd.DataFrame({'name': [*'abc'], 'lr': [1e-3, 1e-2, 1e-1], 'params': '1M'})
FINAL = {'a': 3.5, 'b': 3.0, 'c': 2.5}


def logs():
  """The curves of the runs, from 5 nats to their final loss."""
  return pd.concat(
      pd.DataFrame({'run': name, 'step': STEPS, 'loss': 5 - (5 - final) * STEPS / 200})
      for name, final in FINAL.items()
  )


def cautions(imported):
  return [note for note in imported.notes if isinstance(note, Caution)]


def losses(imported, name):
  return [getattr(run.result, f'{name}_loss') for run in imported.runs.values()]


@pytest.mark.parametrize('state', ['finished', 'crashed', 'killed', 'diverged'])
@pytest.mark.parametrize('loss', [np.inf, np.nan])
def test_a_curve_that_diverged_with_a_finite_loss_in_the_table(state, loss):
  frame = logs()
  frame.loc[(frame['run'] == 'c') & (frame['step'] > 160), 'loss'] = loss
  runs = RUNS.assign(final_loss=[*FINAL.values()], state=['finished', 'finished', state])
  found = assembled(runs, frame)
  assert statuses(found) == ['done', 'done', 'diverged']
  assert losses(found, 'final') == [3.5, 3.0, None]
  text = 'diverged by the curve, though the table has a finite final loss, in 1 run: c'
  assert text in cautions(found)


@pytest.mark.parametrize('final', [[3.5, 3.0, 2.5], None])
def test_a_diverged_state_with_a_loss_below_the_initial_one(final):
  runs = RUNS.assign(state=['finished', 'finished', 'diverged'], initial_loss=5.0)
  frame = None
  if final is None:
    frame = logs()
  else:
    runs['final_loss'] = final
  found = assembled(runs, frame)
  assert statuses(found) == ['done', 'done', 'diverged']
  assert found.runs['c'].result.final_loss is None
  text = 'diverged by the state; a final loss below the initial one is not used, in 1 run: c'
  assert text in cautions(found)
  above = assembled(runs.assign(final_loss=[3.5, 3.0, 5.5]))
  assert losses(above, 'final') == [3.5, 3.0, 5.5]


@pytest.mark.parametrize('metric', ['final_loss', 'final/val_loss', 'test_loss', 'val_loss'])
def test_a_final_loss_at_step_0_is_no_initial_loss(metric):
  """As MLflow's log_metric without a step and the hparams of TensorBoard have it."""
  frame = logs()
  is_start = frame['step'] == 0
  frame.loc[is_start, metric] = [*FINAL.values()]
  (note,) = cautions(found := assembled(RUNS, frame))
  assert losses(found, 'initial') == [5.0] * 3
  assert f'in 3 runs: a ({metric}), b ({metric}), c ({metric}); if it is a final one' in note
  given = assembled(RUNS.assign(final_loss=3.0), frame)
  assert losses(given, 'initial') == [5.0] * 3
  assert len(cautions(given)) == (metric == 'val_loss')
  # Without a training loss at the start, a value below the later ones is no initial loss either.
  later = assembled(RUNS, frame.assign(loss=frame['loss'].mask(is_start)), initial_loss=6.0)
  assert losses(later, 'initial') == [6.0] * 3


def test_validation_losses_before_training():
  frame = logs()
  frame['val_loss'] = frame['loss'].where(frame['step'] == 0) + 0.1
  found = assembled(RUNS, frame)
  assert losses(found, 'initial') == [5.1] * 3 and not cautions(found)
  frame['test_loss'] = (frame.pop('val_loss').fillna(4.0)).where(frame['step'] % 100 == 0)
  found = assembled(RUNS, frame)  # it is evaluated during training
  assert losses(found, 'initial') == [5.1] * 3 and not cautions(found)
