"""MuonSphere, compared with NumPy in float64: exact spectral norms and singular vectors."""

import jax
import numpy as np
import pytest

from stability.errors import BadInput
from stability.model import parameterization
from stability.model.initialisation import INITIALISATION
from stability.model.parameterization import PARAMETERIZATIONS
from stability.model.spectra import to_sphere
from stability.optim import after_update
from stability.optim.optimizers import OPTIMIZERS

SHAPES = {'up': (4, 10), 'down': (10, 4), 'query': (6, 6)}  # [fan in, fan out]


def draw(rng):
  """Matrices whose singular values differ, as those of gradients do."""
  return {
      name: np.float32(rng.normal(size=(m, 1)) @ rng.normal(size=(1, n)) + rng.normal(size=(m, n)))
      for name, (m, n) in SHAPES.items()
  }


def test_directions(rng):
  """The orthogonal factor of Nesterov momentum, times sqrt(fan out / fan in); Adam elsewhere."""
  hparams = {'optimizer.beta1': 0.9, 'optimizer.beta2': 0.95, 'optimizer.eps': 1e-8}
  optimizer = OPTIMIZERS['muon_sphere'].make(hparams)
  gradients = [{'block_0': draw(rng), 'head': np.ones((3, 2), np.float32)} for _ in range(3)]
  state = optimizer.init(gradients[0])
  update = jax.jit(optimizer.update)
  for g in gradients:
    direction, state = update(g, state, g)
  np.testing.assert_allclose(direction['head'], 1, rtol=1e-5)
  for name, (m, n) in SHAPES.items():
    mean = [np.float64(g['block_0'][name]) for g in gradients]
    momentum = sum(0.9 ** (2 - t) * 0.1 * g for t, g in enumerate(mean))
    # With the bias corrections of Nesterov momentum in optax.
    nesterov = 0.9 * momentum / (1 - 0.9**4) + 0.1 * mean[-1] / (1 - 0.9**3)
    U, _, V = np.linalg.svd(nesterov, full_matrices=False)
    np.testing.assert_allclose(direction['block_0'][name], (n / m) ** 0.5 * U @ V, atol=0.02)


@pytest.mark.parametrize('name', SHAPES)
def test_sphere(name, rng):
  m, n = SHAPES[name]
  matrix = draw(rng)[name]
  found = np.asarray(jax.jit(to_sphere)(matrix))
  expected = matrix * np.sqrt(n / m) / np.linalg.norm(np.float64(matrix), 2)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_update_from_the_sphere(rng):
  """W' = W R / |W| - lr u, without weight decay; other parameters are left alone."""
  old = {'block_0': {'up': draw(rng)['up']}, 'head': np.ones((3, 2), np.float32)}
  moves = jax.tree.map(lambda w: np.float32(0.01) * rng.normal(size=w.shape), old)
  new = jax.tree.map(lambda w: 0.5 * w, old)  # decayed
  (term,) = (term for term in after_update.AFTER_UPDATE if term.name == 'muon_sphere')
  update = after_update.Update(old, moves, None, {}, 1, 0.1, {}, None)
  found = term.make(new, update)
  np.testing.assert_array_equal(found['head'], new['head'])
  expected = np.asarray(to_sphere(old['block_0']['up'])) - moves['block_0']['up']
  np.testing.assert_allclose(found['block_0']['up'], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', PARAMETERIZATIONS)
def test_what_the_model_computes_with_is_on_the_sphere(tiny, rng, name):
  """In every parameterization that is not refused, at twice its base width."""
  options = {'parameterization.name': name, 'parameterization.base_width': 16}
  try:
    run = tiny({'optimizer.name': 'muon_sphere', **options})
  except BadInput:
    assert name in ('muparam_full', 'ntk', 'mean_field')
    return
  params = {'block_0': draw(rng)}
  for term in INITIALISATION.active(run.static):
    params = term.make(params, run.hparams, run.static)
  weights = parameterization.effective(params, run.hparams, run.static)['block_0']
  for kernel, (m, n) in SHAPES.items():
    norm = np.linalg.norm(np.float64(weights[kernel]), 2)
    assert norm == pytest.approx((n / m) ** 0.5, rel=1e-4)
