"""Claims on retrieval beside finished runs, judged on the rows of report/retrieval.csv.

The rows are those of the kNN language model with the training text beside the validation text. The
thresholds were written before any sweep was measured; the losses of three runs were known then. A
ratio of at least 1.1 is a lower LR sensitivity, as in the other claims; most means at least half;
a factor of 2 is a larger model; 0.05 of recall and a ratio of 1.25 of stable rank are worse keys; a
factor of 2 is more per second, since the times are of a shared machine.

The last claim compares, in a sweep of fine-tuning, runs with a datastore beside their parents. Its
seconds are those that pass: launch.retrieve uses all cores, a run on a CPU one of them.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from stability.analysis import instability
from stability.analysis.claims import registry, tables
from stability.analysis.claims.claim import EXTENSION, AtLeast, Claim, decide
from stability.analysis.claims.evidence import Evidence
from stability.analysis.claims.undecided import NotApplicable, Undecided
from stability.analysis.results import Results, by_fields
from stability.storage.retrieval_csv import PARENT as OF_PARENT
from stability.storage.retrieval_csv import RUN, Row

WITHOUT, WITH, RECALL, RANK = 'knn_loss_without', 'knn_loss_with', 'knn_recall', 'knn_stable_rank'
PER_SECOND = 'knn_gain_per_second'  # of the parent, in nats
CHECKPOINT, PARENT, KIND = 'init.checkpoint', 'init.parent', 'adapter.kind'

_QK = {'model.qk_norm': ('layernorm', 'none')}
_RATES = {'learning_rate': 3}


def judge(results: Results, rows: Sequence[Row]) -> pd.DataFrame:
  """The verdicts, as registry.judge gives them; empty without rows of the kNN model.

  Args:
    results: the runs of a sweep.
    rows: the measurements of its runs.
  """
  used = [
      row for row in rows if (row.method, row.datastore, row.text) == ('knn', 'train', 'validation')
  ]
  if not used:
    return pd.DataFrame(columns=registry.COLUMNS)
  columns = {**_of_runs(results.runs, used), PER_SECOND: _of_parents(results.runs, used)}
  results = dataclasses.replace(results, runs=results.runs.assign(**columns))
  evidence = Evidence.from_results(by_fields(results), None)
  return registry.table([(claim, decide(claim, evidence)) for claim in CLAIMS])


def _of_runs(runs: pd.DataFrame, rows: Sequence[Row]) -> dict[str, pd.Series]:
  """The measurements of the runs themselves, by column."""
  measured = {
      row.run: {
          WITHOUT: row.loss_without,
          WITH: row.loss_with,
          RECALL: row.recall,
          RANK: row.stable_rank,
      }
      for row in rows
      if row.model == RUN
  }
  table = pd.DataFrame.from_dict(measured, orient='index', columns=[WITHOUT, WITH, RECALL, RANK])
  table = table.reindex(runs['run']).astype(float).set_index(runs.index)
  return dict(table.items())


def _of_parents(runs: pd.DataFrame, rows: Sequence[Row]) -> pd.Series:
  """The nats per second that a datastore gains beside the parent of each run."""
  if CHECKPOINT not in runs:
    return pd.Series(np.nan, runs.index)
  gains = {
      row.run: (row.loss_without - row.loss_with) / max(row.seconds, 0.01)
      for row in rows
      if row.model == OF_PARENT
  }
  return runs[CHECKPOINT].map(gains).astype(float)


def _measured(e: Evidence) -> None:
  if e.runs[WITH].isna().all():
    raise NotApplicable('no run is measured with a datastore')


def _losses(e: Evidence, column: str) -> Evidence:
  """The same runs with a measured loss, which counts as at most the initial one."""
  if e.runs[column].isna().any():
    raise Undecided(f'{e.runs[column].isna().sum()} runs are not measured with a datastore')
  return dataclasses.replace(
      e, runs=e.runs.assign(loss=np.fmin(e.runs[column], e.runs['initial_loss']))
  )


def _flatter(e: Evidence) -> pd.Series:
  logs = [
      np.log(tables.positive(_losses(e, column).lr_sensitivity())) for column in (WITHOUT, WITH)
  ]
  return np.exp((logs[0] - logs[1]).mean())


def _rescued(e: Evidence) -> pd.Series:
  """The fraction of unstable runs whose loss with neighbours is that of a stable run.

  As in instability, a loss is compared with the best one of the same size and intervention.
  """
  without, with_store = _losses(e, WITHOUT).runs, _losses(e, WITH).runs
  best = without.groupby(e.keys, dropna=False)['loss'].transform('min')
  margin = instability.MARGIN * (without['initial_loss'] - best)
  return e.fraction(with_store['loss'] <= best + margin, among=e.unstable().astype(bool))


def _worth(e: Evidence) -> pd.Series:
  """The parameters at which the model alone has the loss that a smaller one has with neighbours."""
  best = {}
  for column in (WITHOUT, WITH):
    table = _losses(e, column).best_loss()
    best[column] = table.groupby(level='parameters').min().sort_index()
  log_sizes = np.log(best[WITHOUT].index.to_numpy(float))
  found = {}
  for draw in best[WITHOUT]:
    # Where noise makes the loss rise with the size, the lower one of a smaller size counts.
    alone = np.minimum.accumulate(best[WITHOUT][draw].to_numpy())
    equal = np.interp(-best[WITH][draw].to_numpy()[:-1], -alone, log_sizes)
    found[draw] = np.exp(np.mean(equal - log_sizes[:-1]))
  return pd.Series(found)


def _by_stability(e: Evidence, column: str) -> tuple[pd.DataFrame, pd.DataFrame]:
  """Means of a number over the stable and over the unstable runs of each size that has both."""
  unstable = e.unstable().astype(bool)
  if not unstable.any():
    raise Undecided('no run is unstable')
  means = [
      e.mean(e.runs[column].where(chosen)).groupby(level='parameters').mean()
      for chosen in (~unstable, unstable)
  ]
  shared = means[0].index.intersection(means[1].index)
  if shared.empty:
    raise Undecided('no size has stable and unstable runs that are measured')
  return means[0].loc[shared], means[1].loc[shared]


def _recall_lost(e: Evidence) -> pd.Series:
  stable, unstable = _by_stability(e, RECALL)
  return (stable - unstable).mean()


def _rank_lost(e: Evidence) -> pd.Series:
  stable, unstable = _by_stability(e, RANK)
  return np.exp(np.log(stable / unstable).mean())


def _parents_measured(e: Evidence) -> None:
  if e.runs[PER_SECOND].isna().all():
    raise NotApplicable('no parent is measured with a datastore')


def _per_second(e: Evidence) -> pd.Series:
  """Nats gained per second, fine-tuning at its best rate over a datastore."""
  if missing := e.runs[CHECKPOINT][e.runs[PER_SECOND].isna()].nunique():
    raise Undecided(f'{missing} parents are not measured with a datastore')
  tuning = e.mean((e.runs['initial_loss'] - e.runs['loss']) / e.runs['seconds'])
  losses, store = e.mean(e.runs['loss']), e.mean(e.runs[PER_SECOND])
  logs = []
  for _, of_size in losses.groupby(level='parameters'):
    best = of_size.idxmin()  # of each draw
    gain = np.array([max(tuning.at[row, draw], 0) for draw, row in best.items()])
    beside = store.reindex(of_size.index).mean().to_numpy()
    if not beside[0] > 0:
      raise Undecided('a datastore raises the loss')
    with np.errstate(invalid='ignore', divide='ignore'):
      logs.append(np.log(gain / beside))
  return pd.Series(np.exp(np.mean(logs, axis=0)))


CLAIMS = (
    Claim(
        EXTENSION,
        'A nearest-neighbour language model over the training text lowers LR sensitivity: it is a'
        ' rescue without training.',
        'ratio of LR sensitivity, without / with neighbours, geometric mean',
        AtLeast(1.1),
        _flatter,
        is_ratio=True,
        where=_QK,
        min_unique=_RATES,
        precondition=_measured,
    ),
    Claim(
        EXTENSION,
        'It brings most unstable runs back to the loss of stable ones.',
        'fraction of unstable runs whose loss with neighbours is not unstable',
        AtLeast(0.5),
        _rescued,
        where=_QK,
        min_unique=_RATES,
        precondition=_measured,
    ),
    Claim(
        EXTENSION,
        'It is worth a model of twice the parameters.',
        'parameters of the model alone at equal loss / with neighbours, at most the largest trained'
        ' size, geometric mean',
        AtLeast(2),
        _worth,
        is_ratio=True,
        where=_QK,
        min_unique={'parameters': 2, **_RATES},
        precondition=_measured,
    ),
    Claim(
        EXTENSION,
        'Hidden states of unstable runs are worse keys: the next token is less often among the 16'
        ' nearest.',
        'recall at 16 of stable minus that of unstable runs, mean over sizes',
        AtLeast(0.05),
        _recall_lost,
        where=_QK,
        min_unique=_RATES,
        precondition=_measured,
    ),
    Claim(
        EXTENSION,
        'Hidden states of unstable runs have a lower stable rank.',
        'ratio of the stable rank of keys, stable / unstable runs, geometric mean over sizes',
        AtLeast(1.25),
        _rank_lost,
        is_ratio=True,
        where=_QK,
        min_unique=_RATES,
        precondition=_measured,
    ),
    Claim(
        EXTENSION,
        'Moved to other text, full fine-tuning lowers the loss more per second of work than a'
        ' datastore of that text beside the parent.',
        'nats per second, full fine-tuning at its best rate / datastore, parents trained at the'
        ' best rate, geometric mean over sizes',
        AtLeast(2),
        _per_second,
        is_ratio=True,
        where={PARENT: ('best',), KIND: ('none',)},
        min_unique=_RATES,
        covaries=('adapter.rank', 'adapter.scale', 'adapter.rate_ratio', 'adapter.alpha'),
        precondition=_parents_measured,
    ),
)
