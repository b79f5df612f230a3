"""What a run keeps when it has ended."""

import json

import jax
import numpy as np
import pytest
from helpers.training import POPULATION, Killed, asks, kill

from stability import config as config_lib
from stability.data import tokens
from stability.devices import make_layout
from stability.retrieval.model import Model
from stability.step import train_step
from stability.storage import parameters, parents, run_files, safetensors, sweeps

CAPS = {'': 0.1, '@6': 2.0, '@12': pytest.approx(0.1)}  # which checkpoint -> its soft cap


def kept(run):
  return safetensors.read(run / parameters.FILE)


def loss_of(run, arrays):
  """The validation loss of parameters on the data of a run, without a layout."""
  config = run_files.read_config(run)
  static, hparams = config_lib.split(config)
  sweep = sweeps.read_sweep(run.parents[1])
  programs = train_step.programs(static, sweep.data['vocabulary_size'])
  tree = config_lib.unflatten({name.replace('/', '.'): a for name, a in arrays.items()})
  text = tokens.open_tokens(run.parents[1] / sweep.data['path'])
  batches = make_layout._validation(text, static)
  state = {'params': tree, 'carried': {}, 'hparams': train_step.arrays(hparams), 'step': 1}
  evaluate = jax.jit(programs.evaluate)
  return np.mean([evaluate({'validation': batches}, state, n) for n in range(len(batches))])


@pytest.mark.slow
def test_parameters_are_those_of_the_final_loss(sweep, train):
  (run,) = sweep()
  train(run)
  arrays, metadata = kept(run)
  assert arrays['block_0/mlp/up'].shape == (16, 64) and arrays['embedding'].dtype == np.float32
  result = run_files.read_result(run)
  assert loss_of(run, arrays) == pytest.approx(result.final_loss, rel=1e-6)
  about = {key: json.loads(value) for key, value in metadata.items()}
  assert about['config'] == run_files.read_config(run)
  assert (about['run'], about['step']) == (run.name, 24)
  assert about['data']['vocabulary_size'] == 64 and about['data']['tokenizer'] == 'synthetic'


def test_hyperparameters_that_an_action_changed(sweep, train):
  """Retrieval uses those of the end, and a run that starts from a checkpoint those of its step."""
  (run,) = sweep(**{'model.output_soft_cap': 2.0, 'checkpoint.every_steps': 6})
  train.at(run, 8, asks(run, 'set', changes={'model.output_soft_cap': 0.1}))
  train(run)
  cap = {at: parents.describe(f'{run}{at}')['config']['model']['output_soft_cap'] for at in CAPS}
  assert cap == CAPS
  sweep_data = sweeps.read_sweep(run.parents[1]).data
  text = tokens.open_tokens(run.parents[1] / sweep_data['path'])
  windows = make_layout._validation(text, config_lib.split(run_files.read_config(run))[0])
  log_p = Model.load(run).log_p(windows.reshape(-1, windows.shape[-1]))
  assert -log_p.mean() == pytest.approx(run_files.read_result(run).final_loss, rel=1e-6)


@pytest.mark.slow
def test_population(sweep, train):
  """Diverged runs keep theirs as well: those before the update that was not made."""
  rates = [1e-3, 1e30, 1e-2]
  single, population = (sweep(rates, **fields) for fields in ({}, POPULATION))
  train(*population)
  train(*single)
  for alone, member in zip(single, population):
    left, right = kept(alone)[0], kept(member)[0]
    for name in left:
      np.testing.assert_allclose(left[name], right[name], rtol=1e-3, atol=1e-5)
  assert run_files.read_result(population[1]).status == 'diverged'


def test_killed_while_it_ends(sweep, train, monkeypatch):
  """The file is there before the result, and again after a kill between both."""
  (run,) = sweep()
  with monkeypatch.context() as patch:
    patch.setattr(run_files, 'write_result', lambda *_: kill())
    with pytest.raises(Killed):
      train(run)
  before = (run / parameters.FILE).read_bytes()
  (run / parameters.FILE).write_bytes(before[:100])
  train(run)
  assert (run / parameters.FILE).read_bytes() == before


def test_types(sweep, train):
  points = [{'checkpoint.parameters': kind} for kind in ('none', 'float32', 'bfloat16')]
  none, exact, rounded = sweep(points=points)
  for run in (none, exact, rounded):
    train(run)
  assert not (none / parameters.FILE).exists()
  full, half = kept(exact)[0], kept(rounded)[0]
  for name, array in full.items():
    assert half[name].dtype == parameters._DTYPES['bfloat16']
    assert np.array_equal(half[name], array.astype(half[name].dtype))


@pytest.mark.slow
def test_average(sweep, train):
  """The parameters that are evaluated, not those that are trained."""
  points = [{'evaluation.parameters': kind} for kind in ('trained', 'ema')]
  trained, average = sweep(points=points, **{'evaluation.decay': 0.5})
  train(trained)
  train(average)
  result = run_files.read_result(average)
  assert result.final_loss != run_files.read_result(trained).final_loss
  assert loss_of(trained, kept(average)[0]) == pytest.approx(result.final_loss, rel=1e-6)
