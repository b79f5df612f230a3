"""A run's model: its losses are the run's, its keys what the last block's MLP reads."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers.retrieval import write_text, write_workdir

from stability import config as config_lib
from stability.data import batches, tokens
from stability.errors import BadInput
from stability.model import parameterization
from stability.retrieval.model import Model
from stability.step import run_model, train_step
from stability.storage import parameters, parents, run_files, safetensors


def keys(model, windows):
  """The key of each position of windows [N, T + 1]: float32 [N, T, D]."""
  return np.concatenate([outputs.keys_NxTxD for _, outputs in model.batches(windows)])


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  place = tmp_path_factory.mktemp('model')
  fields = {'parameterization.name': 'mup', 'parameterization.base_width': 8}
  (run,) = write_workdir(place / 'runs', write_text(place / 'text'), **fields)
  return run


@pytest.fixture(scope='module')
def windows(run):
  """Twenty windows of 33 tokens."""
  (folder,) = (path for path in (run.parents[1] / 'data').iterdir() if path.is_dir())
  text = tokens.open_tokens(folder).train
  return batches.gather(text, batches.validation_starts(20, 32, len(text)), 32)


@pytest.fixture(scope='module')
def model(run):
  return Model.load(run)


def variables(run):
  """The config, its parts and the weights of a run, without Model."""
  static, hparams = config_lib.split(run_files.read_config(run))
  arrays, _ = safetensors.read(run / parameters.FILE)
  params = config_lib.unflatten({name.replace('/', '.'): array for name, array in arrays.items()})
  return static, train_step.arrays(hparams), params


@pytest.mark.slow
def test_loss_is_that_of_evaluation(run, model, windows):
  static, hparams, params = variables(run)
  state = {'params': params, 'carried': {}, 'hparams': hparams, 'step': 1}
  evaluate = train_step.programs(static, 256).evaluate
  expected = evaluate({'validation': windows[None]}, state, 0)
  assert -model.log_p(windows).mean() == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['lora', pytest.param('prompt', marks=pytest.mark.slow)])
def test_a_fine_tuned_run(kind, windows, tmp_path):
  """Its loss, too, is that of evaluation; the adapter is changed so that it does something."""
  fields = {'adapter.kind': kind, 'adapter.rank': 2, 'model.depth': 1}
  (run,) = write_workdir(tmp_path / 'runs', write_text(tmp_path / 'text'), **fields)
  arrays, metadata = safetensors.read(run / parameters.FILE)
  noise = np.random.default_rng(0)
  arrays = {
      name: array + np.float32(0.3 * ('_adapter' in name)) * noise.normal(size=array.shape)
      for name, array in arrays.items()
  }
  arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
  safetensors.write(run / parameters.FILE, arrays, metadata)
  static, hparams, params = variables(run)
  state = {'params': params, 'carried': {}, 'hparams': hparams, 'step': 1}
  evaluate = jax.jit(train_step.programs(static, 256).evaluate)
  expected = evaluate({'validation': windows[None]}, state, 0)
  model = Model.load(run)
  assert -model.log_p(windows).mean() == pytest.approx(float(expected), rel=1e-6)
  assert keys(model, windows).shape == (20, 32, 16)


def test_keys_are_the_normed_input_of_the_last_mlp(run, model, windows):
  static, hparams, params = variables(run)
  weights = parameterization.effective(params, hparams, static)
  _, found = run_model.make(static, 256).apply(
      {'params': weights},
      windows[:, :-1],
      hparams,
      capture_intermediates=lambda module, _: isinstance(module, nn.Module),
      mutable=['intermediates'],
  )
  (expected,) = found['intermediates']['block_1']['mlp_norm']['__call__']
  np.testing.assert_allclose(keys(model, windows), expected, rtol=1e-4, atol=1e-5)


def test_batches_of_any_size_are_equal(model, windows, monkeypatch):
  whole = keys(model, windows)
  monkeypatch.setattr(model, '_batch', 8)
  assert [done for done, _ in model.batches(windows)] == [
      slice(0, 8), slice(8, 16), slice(16, 20)
  ]
  np.testing.assert_allclose(keys(model, windows), whole, rtol=1e-5, atol=1e-6)


def test_next_token(model, windows):
  keys_NxTxD, log_p = keys(model, windows), model.log_p(windows)
  key, log_p_V = model.next_token(windows[3, :6])
  np.testing.assert_allclose(key, keys_NxTxD[3, 5], rtol=1e-4, atol=1e-5)
  assert log_p_V[windows[3, 6]] == pytest.approx(log_p[3, 5], rel=1e-5)
  assert np.exp(log_p_V).sum() == pytest.approx(1, rel=1e-5)
  long = np.concatenate([windows[0], windows[3, :32]])
  assert log_p_V.shape == (256,)
  assert model.next_token(long)[1][windows[3, 32]] == pytest.approx(log_p[3, 31], rel=1e-5)


def test_fingerprint(run, model):
  config = run_files.read_config(run)
  assert Model.load(run).fingerprint == model.fingerprint
  _, _, params = variables(run)
  params['block_0']['mlp']['up'] = params['block_0']['mlp']['up'] * 1.01
  assert Model(config, 256, {'params': params, 'carried': {}}).fingerprint != model.fingerprint


def test_a_parent_reads_windows_of_its_child(run, model, windows):
  entry = parents.describe(str(run))
  child = Model.of_parent(entry, 20)
  assert (Model.of_parent(entry).sequence_length, child.sequence_length) == (32, 20)
  assert child.fingerprint == model.fingerprint
  np.testing.assert_allclose(
      keys(child, windows[:, :21]), keys(model, windows)[:, :20], rtol=1e-4, atol=1e-5
  )
  key, _ = child.next_token(windows[3, :32])
  np.testing.assert_allclose(key, keys(model, windows[3:4, 12:])[0, -1], rtol=1e-4, atol=1e-5)


def test_runs_that_cannot_be_used(run, tmp_path):
  config = run_files.read_config(run)
  with pytest.raises(BadInput, match=r'no such file; config\.checkpoint\.parameters'):
    Model.load(tmp_path)
  arrays, metadata = safetensors.read(run / parameters.FILE)
  arrays['head'] = arrays['head'][:, :7]
  safetensors.write(tmp_path / parameters.FILE, arrays, metadata)
  with pytest.raises(BadInput, match=r'damaged: head must be of shape \(16, 256\)'):
    Model.load(tmp_path)
  changed = config | {'model': config['model'] | {'depth': 0}}
  with pytest.raises(BadInput, match=r'config.model.depth=0: must be at least 1'):
    Model.from_arrays(changed, 256, arrays, 'file')


def test_a_program_serves_all_runs_of_an_architecture(run, model):
  other = Model.load(run)
  assert other._forward is model._forward
  assert isinstance(jax.tree.leaves(other._hparams)[0], np.generic)
