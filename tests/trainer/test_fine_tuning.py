"""Fine-tuning of trained runs: adapters over their weights, merged, and alone."""

import functools

import numpy as np
import pytest
from helpers import training
from helpers.training import POPULATION, Killed, kill, numbers

from launch import merge
from launch.common import app
from stability import config as config_lib
from stability.errors import BadInput
from stability.model import adapters
from stability.storage import parameters, parents, run_files, safetensors
from stability.trainer import parents as parents_lib

pytestmark = pytest.mark.slow  # compiles a layout for each method

TOKENIZER = {'tokenizer': 'synthetic', 'vocabulary_size': 64}
LORA = {'adapter.kind': 'lora', 'adapter.rank': 2}


@pytest.fixture(scope='module')
def parent(tmp_path_factory, data):
  (run,) = training.write_sweep(tmp_path_factory.mktemp('parent'), data)
  training.Training()(run)
  return run


@pytest.fixture
def fine_tune(sweep, train):
  """A function that trains runs from another one -> their folders."""

  def fine_tuned(checkpoint, points=({},), **fields):
    runs = sweep(points=points, **fields, **{'init.checkpoint': str(checkpoint)})
    for run in runs:
      record = parents_lib.Checker(TOKENIZER).record(run_files.read_config(run), {})
      parents.write(run, record)
    train(*runs)
    return runs

  return fine_tuned


def losses(run):
  result = run_files.read_result(run)
  return result.initial_loss, result.final_loss


def kept(run):
  return safetensors.read(run / parameters.FILE)[0]


@pytest.mark.parametrize('kind', [kind for kind in adapters.ADAPTERS if kind != 'none'])
def test_starts_at_the_weights_of_the_parent(parent, fine_tune, kind):
  """Bit for bit, but for dora and prompt; frozen parameters stay as they are."""
  (run,) = fine_tune(parent, **{'adapter.kind': kind, 'adapter.rank': 2})
  initial, final = losses(run)
  if kind == 'dora':
    assert initial == pytest.approx(losses(parent)[1], rel=1e-6)
  elif kind != 'prompt':
    assert initial == losses(parent)[1]
  assert final < initial
  before, after = kept(parent), kept(run)
  changed = {name for name in before if not np.array_equal(before[name], after[name])}
  assert changed == ({name for name in before if 'norm' in name} if kind == 'norms' else set())
  assert (len(after) > len(before)) == (kind != 'norms')


def test_population_and_kill(parent, fine_tune, sweep, train):
  points = [{'optimizer.learning_rate': rate} for rate in (1e-2, 1e-1)]
  together = fine_tune(parent, points, **LORA, **POPULATION)
  (alone,) = sweep(points=points[1:], **LORA, **POPULATION, **{'init.checkpoint': str(parent)})
  parents.write(alone, parents.read(together[1]))
  for step in (4, 12):  # before the first checkpoint, and after it
    train.at(alone, step, kill)
    with pytest.raises(Killed):
      train(alone)
  train(alone)
  assert numbers(alone) == numbers(together[1])
  assert all(np.array_equal(a, kept(alone)[name]) for name, a in kept(together[1]).items())


def test_merged_into_the_next_run(parent, fine_tune):
  """A run that starts from one with LoRA, DoRA or IA3 starts at its loss, as a plain model."""
  for kind in ('lora', 'dora', 'ia3'):
    (run,) = fine_tune(parent, **LORA | {'adapter.kind': kind}, **{'optimizer.learning_rate': 0.1})
    (child,) = fine_tune(run)
    assert losses(child)[0] == pytest.approx(losses(run)[1], rel=1e-6)
    assert abs(losses(run)[1] - losses(run)[0]) > 1e-4
    assert kept(child).keys() == kept(parent).keys()


def test_adapter_alone(parent, fine_tune, tmp_path):
  """The adapter of one run over the weights of another; pissa finds its remainder again.

  Over other weights than its own it would find another remainder, and is refused.
  """
  for init in ('kaiming', 'pissa'):
    fields = LORA | {'adapter.init': init}
    (run,) = fine_tune(parent, **fields, **{'optimizer.learning_rate': 0.1})
    file = tmp_path / f'{init}.safetensors'
    argv = ['merge', f'--run={run}', f'--output={file}', '--part=adapter']
    assert app.execute(merge.main, merge.FLAGS, argv) == 0
    (child,) = fine_tune(parent, **fields, **{'init.adapter': str(file)})
    assert losses(child)[0] == pytest.approx(losses(run)[1], rel=1e-5)
    assert losses(run)[1] < losses(run)[0] - 1e-4
    config = config_lib.flatten(run_files.read_config(child))
    for adapter in (file, run):
      over = config | {'init.checkpoint': f'{parent}@12', 'init.adapter': str(adapter)}
      record = functools.partial(parents_lib.Checker(TOKENIZER).record, old={})
      if init == 'kaiming':
        assert record(config_lib.unflatten(over)).keys() == {'checkpoint', 'adapter'}
        continue
      with pytest.raises(BadInput, match=r'config.init.adapter=.*pissa, fits only the very'):
        record(config_lib.unflatten(over))


def test_refused(parent, fine_tune):
  (run,) = fine_tune(parent, **{'adapter.kind': 'houlsby', 'adapter.rank': 2})
  config = config_lib.flatten(run_files.read_config(parent))

  def check(said, **fields):
    changed = config_lib.unflatten(config | {f.replace('__', '.'): v for f, v in fields.items()})
    with pytest.raises(BadInput, match=said):
      parents_lib.Checker(TOKENIZER).record(changed, {})

  check('config.adapter.kind=houlsby: cannot be merged', init__checkpoint=str(run))
  of_adapter = dict(init__checkpoint=str(parent), init__adapter=str(run))
  check(
      "config.init.adapter=.*has config.adapter.kind='houlsby', this run has 'lora'",
      **of_adapter,
      adapter__kind='lora',
  )
  check(
      r'config.init.adapter=.*down has the shape \(16, 2\), must have \(16, 3\)',
      **of_adapter,
      adapter__kind='houlsby',
      adapter__rank=3,
  )
