"""Claims on retrieval hold, do not hold and are undecided where they should be."""

import dataclasses
import itertools

import numpy as np
import pytest
from helpers import made_up

from stability.analysis import instability
from stability.analysis import results as results_lib
from stability.analysis.claims import retrieval
from stability.storage.retrieval_csv import Row

FLAT, RESCUED, WORTH, RECALL, RANK, PER_SECOND = range(6)


@pytest.fixture(scope='module')
def results(tmp_path_factory):
  """Three sizes whose loss rises steeply at high learning rates, so that some runs are unstable."""
  workdir = tmp_path_factory.mktemp('made_up')
  made_up.write_sweep(workdir, interventions=[{'model.qk_norm': 'none'}])
  return results_lib.load_workdir(workdir)


def rows(results, loss_with, recall=lambda run: 0.8, rank=lambda run: 10.0):
  """Rows in which the loss without neighbours is the final one; functions of a run."""
  runs = results.runs.assign(unstable=instability.unstable(results))
  runs['loss'] = np.fmin(runs['final_loss'], runs['initial_loss'])
  runs['best'] = runs.groupby(['parameters', *results.groups])['loss'].transform('min')
  return [
      Row(
          run.run, 'knn', 8, 1.0, 0.5, 10, 0, run.loss, float(loss_with(run)), 1.0, 100,
          'train', 'validation', recall(run), rank(run), 'ff',
      )
      for run in runs.itertuples()
  ]  # fmt: skip


def verdicts(results, measured):
  return retrieval.judge(results, measured)[['verdict', 'effect', 'reason']]


def test_neighbours_that_bring_every_run_near_the_best(results):
  found = verdicts(results, rows(results, lambda run: run.best + 0.25 * (run.loss - run.best) - 1))
  # All losses above the best of a size are a fourth.
  assert found['effect'][FLAT] == pytest.approx(4, rel=1e-6)
  assert list(found['verdict'][[FLAT, RESCUED, WORTH]]) == ['holds'] * 3
  # A loss lower by 1 is beyond the largest size, which caps it: sizes are 4 times each other.
  assert found['effect'][WORTH] == pytest.approx(8, rel=1e-6)
  assert found['effect'][RESCUED] == pytest.approx(1)


def test_neighbours_that_change_nothing(results):
  found = verdicts(results, rows(results, lambda run: run.loss))
  assert found['effect'][FLAT] == pytest.approx(1) and found['effect'][RESCUED] == 0
  assert found['effect'][WORTH] == pytest.approx(1)
  assert set(found['verdict'][:PER_SECOND]) == {'does not hold'}
  assert found['effect'][RECALL] == pytest.approx(0) and found['effect'][RANK] == pytest.approx(1)


@pytest.mark.parametrize('share, rescued', [(0.9, 1), (1.1, 0)])
def test_how_near_the_best_is_rescued(results, share, rescued):
  """The margin is that of instability, a share of what the best run has learned."""

  def loss(run):
    return run.best + share * instability.MARGIN * (run.initial_loss - run.best)

  assert verdicts(results, rows(results, loss))['effect'][RESCUED] == rescued


def test_rescued_runs_are_near_the_best_of_their_own_intervention(tmp_path):
  """That one intervention is worse at all rates leaves no fewer of its runs rescued."""
  made_up.write_sweep(tmp_path)
  both = results_lib.load_workdir(tmp_path)
  assert both.groups == ['model.qk_norm']
  near = rows(both, lambda run: run.best + 0.5 * instability.MARGIN * (run.initial_loss - run.best))
  measured = [
      dataclasses.replace(row, loss_without=row.loss_without + 0.5, loss_with=row.loss_with + 0.5)
      if 'qk_norm=none' in row.run
      else row
      for row in near
  ]
  assert verdicts(both, measured)['effect'][RESCUED] == 1


def test_a_known_worth(results):
  """With neighbours, the smaller two have the loss alone of a model of twice their parameters."""
  runs = results.runs.assign(loss=np.fmin(results.runs['final_loss'], results.runs['initial_loss']))
  means = runs.groupby(['parameters', 'learning_rate'])['loss'].mean()
  best = means.groupby('parameters').min()
  sizes = best.index.to_list()
  drops = {
      small: (best[small] - best[large]) / 2  # halfway on the logarithmic scale
      for small, large in itertools.pairwise(sizes)
  }
  measured = rows(results, lambda run: run.loss - drops.get(run.parameters, 0))
  assert verdicts(results, measured)['effect'][WORTH] == pytest.approx(2, rel=1e-6)


def test_worse_keys_of_unstable_runs(results):
  measured = rows(
      results,
      lambda run: run.loss,
      recall=lambda run: 0.6 if run.unstable else 0.7,
      rank=lambda run: 4.0 if run.unstable else 8.0,
  )
  found = verdicts(results, measured)
  assert found['effect'][RECALL] == pytest.approx(0.1) and found['effect'][RANK] == pytest.approx(2)
  assert list(found['verdict'][[RECALL, RANK]]) == ['holds'] * 2


def test_without_measurements(results):
  assert retrieval.judge(results, []).empty
  measured = rows(results, lambda run: run.loss)
  found = verdicts(results, measured[1:])
  assert found['verdict'][FLAT] == 'undecided'
  assert found['reason'][FLAT] == '1 runs are not measured with a datastore'


@pytest.fixture(scope='module')
def finetuned(tmp_path_factory):
  """The same sizes, of full and LoRA fine-tuning from parents trained at two rates, two seeds."""
  workdir = tmp_path_factory.mktemp('finetuned')
  interventions = [
      {'init.checkpoint': parent, 'init.parent': parent, 'adapter.kind': kind}
      for parent in ('best', '3x')
      for kind in ('none', 'lora')
  ]
  made_up.write_sweep(workdir, interventions=interventions)
  return results_lib.load_workdir(workdir)


def beside_parents(results, gain, seconds):
  return [
      Row(
          parent, 'knn', 8, 1.0, 0.5, 10, 0, 5.0, 5.0 - gain, seconds, 100,
          'train', 'validation', 0.8, 10.0, 'ff', 'parent',
      )
      for parent in results.runs['init.checkpoint'].unique()
  ]  # fmt: skip


def test_gain_per_second(finetuned):
  runs = finetuned.runs
  full = runs[(runs['adapter.kind'] == 'none') & (runs['init.parent'] == 'best')]
  means = full.groupby(['parameters', 'learning_rate'])[['initial_loss', 'final_loss', 'seconds']]
  means = means.mean()
  best = means.loc[means.groupby('parameters')['final_loss'].idxmin()]
  assert len(best) == 3
  rate = ((best['initial_loss'] - best['final_loss']) / best['seconds']).to_numpy()
  tuned = np.exp(np.log(rate).mean())
  for factor, verdict in ((3, 'holds'), (1.5, 'does not hold')):
    measured = beside_parents(finetuned, tuned * 10 / factor, 10.0)
    found = verdicts(finetuned, measured).iloc[PER_SECOND]
    assert found['effect'] == pytest.approx(factor, rel=1e-6) and found['verdict'] == verdict
  found = verdicts(finetuned, beside_parents(finetuned, -0.1, 10.0)).iloc[PER_SECOND]
  assert found['reason'] == 'a datastore raises the loss'
  of_sizes = runs['init.checkpoint'] + runs['model.width'].astype(str)
  several = dataclasses.replace(finetuned, runs=runs.assign(**{'init.checkpoint': of_sizes}))
  found = verdicts(several, beside_parents(several, 0.1, 10.0)[1:]).iloc[PER_SECOND]
  assert found['reason'] == '1 parents are not measured with a datastore'


def test_parents_that_are_not_measured(finetuned):
  measured = rows(finetuned, lambda run: run.loss)
  found = verdicts(finetuned, measured).iloc[PER_SECOND]
  assert found['reason'] == 'no parent is measured with a datastore'
