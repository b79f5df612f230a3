"""States as arrays by path, through a checkpoint and back."""

import jax
import numpy as np
import pytest

from stability.optim import optimizers
from stability.storage import checkpoints
from stability.trainer.state_arrays import from_arrays, to_arrays


@pytest.mark.parametrize('name', ['adamw', 'stable_adamw', 'lion', 'muon', 'adafactor'])
def test_checkpoint_of_optimizer(tmp_path, tiny, name):
  """Bit for bit, and in the structure of Optax's tuples, some of which have no leaves."""
  run = tiny({'optimizer.name': name})
  rng = np.random.default_rng(0)
  params = {
      'embedding': rng.normal(size=(6, 4)),
      'block_0': {'mlp': {'up': rng.normal(size=(4, 8))}},
      'final_norm': {'scale': np.ones(4)},
  }
  params = jax.tree.map(np.float32, params)
  transformation = optimizers.make_optimizer(run.hparams, run.static)
  _, state = transformation.update(params, transformation.init(params), params)
  state = jax.device_get({'params': params, 'optimizer': state, 'step': np.int32(3)})
  arrays = to_arrays(state)
  assert len(arrays) == len(jax.tree.leaves(state))
  checkpoints.save(tmp_path, 3, arrays, {}, keep=1)
  _, restored, _ = checkpoints.restore(tmp_path)
  again = from_arrays(jax.tree.map(np.zeros_like, state), restored)
  assert jax.tree.structure(again) == jax.tree.structure(state)
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
    assert a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


def test_names():
  """Checkpoints name hyperparameters as they always have."""
  state = {'hparams': {'seed': np.int32(7)}, 'params': {'w': np.ones(2)}}
  assert sorted(to_arrays(state)) == ['hyper/seed', 'params/w']


def test_hyperparameter_newer_than_the_checkpoint():
  like = {'hparams': {'seed': np.int32(7), 'evaluation.decay': np.float32(0.5)}}
  found = from_arrays(like, {'hyper/seed': np.int32(8)})
  assert found == {'hparams': {'seed': 8, 'evaluation.decay': 0.5}}


def test_missing_leaf():
  with pytest.raises(KeyError):
    from_arrays({'a': 1, 'b': 2}, {'a': np.int32(1)})
