"""Seeds that differ in every run, as a sweep draws them."""

import numpy as np
import pandas as pd
import pytest

import stability
from stability import importing
from stability.analysis import results as results_lib
from stability.importing.options import Options
from tests.helpers.imported import assembled

NOTE = 'the seed differs in every run: the runs of a cell are numbered instead'
RATES = 10.0 ** np.linspace(-3, 0, 7)


def grid(**columns):
  """A bowl of losses with a cliff per size, which is lower for larger ones."""
  runs = pd.DataFrame([(n, r) for n in (1e4, 4e4, 16e4) for r in RATES], columns=['params', 'lr'])
  critical = 1e3 / runs['params']
  loss = 3 + 0.1 * np.log10(runs['lr'] / (critical / 3)) ** 2
  return runs.assign(loss=loss.where(runs['lr'] < critical, 4.9), initial_loss=5.0, **columns)


def seeds(imported):
  return [run.config['seed'] for run in imported.runs.values()]


def drawn(count):
  return 1000 + np.arange(count)[::-1]


def test_everything_is_as_without_seeds(tmp_path):
  found = {}
  for name, seed in (('same', {}), ('drawn', {'seed': drawn(21)})):
    importing.import_frames(grid(**seed), None, tmp_path / name, Options())
    results = stability.load(tmp_path / name)
    found[name] = [results.lr_sensitivity(), results.predict(6e5)]
  for same, of_drawn in zip(found['same'], found['drawn'], strict=True):
    pd.testing.assert_frame_equal(same, of_drawn, check_exact=True)


def test_runs_of_a_cell_are_numbered():
  runs = pd.concat([grid(method='a'), grid(method='b'), grid(method='b')])
  found = assembled(runs.assign(seed=drawn(63)))
  assert seeds(found) == [0] * 42 + [1] * 21
  assert found.notes.count(NOTE) == 1 and found.fields[0] == 'method'


@pytest.mark.parametrize('seed', [0, [0, 1, 2] * 7, [*range(6), 0, *drawn(14)]])
def test_a_seed_of_several_learning_rates_is_kept(seed):
  runs = grid(seed=seed).assign(name=[f'r{i}' for i in range(21)])
  found = assembled(runs)
  assert seeds(found) == [*runs['seed']] and NOTE not in found.notes


def test_one_learning_rate_has_nothing_to_share():
  runs = pd.DataFrame({'lr': 1e-3, 'seed': [7, 8], 'loss': 3.0})
  found = assembled(runs, initial_loss=5.0)
  assert seeds(found) == [7, 8] and NOTE not in found.notes


def test_runs_that_count_are_numbered_first():
  runs = pd.DataFrame({'lr': [1e-3, 1e-2, 1e-2], 'state': ['finished', 'crashed', 'finished']})
  runs = runs.assign(seed=drawn(3), loss=3.0, name=[*'abc'])
  assert seeds(assembled(runs, initial_loss=5.0)) == [0, 1, 0]


def test_further_runs_may_change_the_numbers(tmp_path):
  """Exports have the newest run first."""
  runs = pd.DataFrame({'lr': [1e-2, 1e-3, 1e-2], 'seed': drawn(3), 'loss': 3.0, 'name': [*'cba']})
  options = Options(initial_loss=5.0)
  importing.import_frames(runs[1:], None, tmp_path, options)
  importing.import_frames(runs, None, tmp_path, options)
  read = results_lib.load_workdir(tmp_path).runs.set_index('run')['seed']
  assert dict(read) == {'c': 0, 'b': 0, 'a': 1}
