"""Transformations of the gradient, compared with NumPy in float64."""

import jax
import numpy as np

from stability.optim.gradient import GRADIENT

RNG = np.random.default_rng(0)
PARAMS = {
    'matrix': np.float32(RNG.normal(size=(6, 4)) * [1.0, 0.1, 10.0, 0.0]),
    'scale': np.ones(5, np.float32),
}


def draw(size=1.0):
  return jax.tree.map(lambda p: np.float32(size * RNG.normal(size=p.shape)), PARAMS)


def transformed(name, gradients, **options):
  """What the term makes of successive gradients, as traced values of a vmapped function."""
  (term,) = (term for term in GRADIENT if term.name == name)
  hparams = {f'optimizer.{option}': np.float32([value]) for option, value in options.items()}

  @jax.jit
  @jax.vmap
  def all_steps(hparams, gradients):
    transformation = term.make(hparams)

    def step(state, gradient):
      changed, state = transformation.update(gradient, state, PARAMS)
      return state, changed

    return jax.lax.scan(step, transformation.init(PARAMS), gradients)[1]

  stacked = jax.tree.map(lambda *g: np.stack(g)[None], *gradients)
  found = jax.tree.map(lambda g: np.asarray(g[0]), all_steps(hparams, stacked))
  return [jax.tree.map(lambda g, n=n: g[n], found) for n in range(len(gradients))]


def norm(tree):
  return np.sqrt(sum(np.sum(np.square(np.float64(g))) for g in jax.tree.leaves(tree)))


def scaled(tree, factor):
  return jax.tree.map(lambda g: factor * np.float64(g), tree)


def assert_equal(found, expected):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-12), found, expected)


def test_adaptive_clip_of_units():
  """Each column is clipped to the ratio times its weights' norm, or times 1e-3; vectors whole."""
  gradient = draw() | {'scale': np.float32([3, 0, 0, 0, 4])}
  (found,) = transformed('adaptive_clip', [gradient], adaptive_clip=0.3)
  g, w = np.float64(gradient['matrix']), np.float64(PARAMS['matrix'])
  limits = 0.3 * np.maximum(np.linalg.norm(w, axis=0), 1e-3)
  factors = np.minimum(1, limits / np.linalg.norm(g, axis=0))
  assert (factors < 1).any() and (factors == 1).any()
  assert_equal(found['matrix'], g * factors)
  assert_equal(found['scale'], gradient['scale'] * 0.3 * np.sqrt(5) / 5)
