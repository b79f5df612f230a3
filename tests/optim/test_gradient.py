"""Transformations of the gradient, compared with NumPy in float64."""

import jax
import numpy as np
import pytest

from stability.optim.gradient import GRADIENT

PARAMS = {
    'matrix': np.float32(np.random.default_rng(1).normal(size=(6, 4)) * [1.0, 0.1, 10.0, 0.0]),
    'scale': np.ones(5, np.float32),
}


def draw(rng, size=1.0):
  return jax.tree.map(lambda p: np.float32(size * rng.normal(size=p.shape)), PARAMS)


def transformed(name, gradients, **options):
  """The results of a term for successive gradients, with traced options under vmap."""
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
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-12)


def test_adaptive_clip_of_units(rng):
  """Each column is clipped to the ratio times its weights' norm, or times 1e-3; vectors whole."""
  gradient = draw(rng) | {'scale': np.float32([3, 0, 0, 0, 4])}
  (found,) = transformed('adaptive_clip', [gradient], adaptive_clip=0.3)
  g, w = np.float64(gradient['matrix']), np.float64(PARAMS['matrix'])
  limits = 0.3 * np.maximum(np.linalg.norm(w, axis=0), 1e-3)
  factors = np.minimum(1, limits / np.linalg.norm(g, axis=0))
  assert (factors < 1).any() and (factors == 1).any()
  assert_equal(found['matrix'], g * factors)
  assert_equal(found['scale'], gradient['scale'] * 0.3 * np.sqrt(5) / 5)


def test_adaptive_clip_leaves_the_head():
  """Section 4.1 of arXiv 2102.06171; PARAMS has none, so its tree is renamed."""
  params = {'head': PARAMS['matrix'], 'block_0': {'up': PARAMS['matrix']}}
  gradient = jax.tree.map(lambda p: 100 * p, params)
  (term,) = (term for term in GRADIENT if term.name == 'adaptive_clip')
  agc = term.make({'optimizer.adaptive_clip': np.float32(0.3)})
  found, _ = agc.update(gradient, agc.init(params), params)
  np.testing.assert_array_equal(found['head'], gradient['head'])
  np.testing.assert_allclose(found['block_0']['up'], 0.3 * PARAMS['matrix'], rtol=1e-5)


def zclip_reference(norms, limit):
  """The norms after ZClip, from its source code."""
  clipped = []
  for n, before in enumerate(norms):
    size = before
    if n < 25:
      clipped.append(size)
      if n == 24:
        mean, variance = np.mean(clipped), np.var(clipped)
      continue
    z = (size - mean) / (np.sqrt(variance) + 1e-6)
    if z > limit:
      size = mean + limit * np.sqrt(variance) / (z / limit)
    clipped.append(size)
    mean = 0.97 * mean + 0.03 * size
    variance = 0.97 * variance + 0.03 * (size - mean) ** 2
  return clipped


def test_zclip(rng):
  """Spikes after step 25 are clipped, the larger one more; those before pass."""
  sizes = 1 + 0.1 * rng.random(40)
  sizes[[10, 27, 35]] = 2, 3, 30
  gradients = [draw(rng, size) for size in sizes]
  norms = [norm(g) for g in gradients]
  expected = zclip_reference(norms, 2.0)
  assert expected[10] == norms[10]
  assert expected[27] < norms[27] / 1.3 and expected[35] < expected[27]
  found = transformed('zclip', gradients, zclip=2.0)
  for g, clipped, before, after in zip(gradients, found, norms, expected, strict=True):
    assert_equal(clipped, scaled(g, after / before))


def test_zclip_of_norms_that_overflow(rng):
  """They are left out of the averages, and a later one is scaled to 0."""
  gradients = [draw(rng) for _ in range(30)]
  for n in (3, 26):
    gradients[n] = scaled(gradients[n], 1e30)
  gradients = [jax.tree.map(np.float32, g) for g in gradients]
  found = transformed('zclip', gradients, zclip=2.0)
  assert all(np.isfinite(norm(g)) for g in found)
  assert norm(found[26]) == 0 and norm(found[29]) > 0.5 * norm(gradients[29])


def test_adagc(rng):
  """Global clipping in 99 steps, whose smallest norms start the averages of the tensors."""
  sizes = 0.2 * (1 + rng.random(110))
  sizes[[5, 104]] *= 20
  gradients = [draw(rng, size) for size in sizes]
  found = transformed('adagc', gradients, adagc=1.05)
  average = dict.fromkeys(PARAMS, np.inf)
  for n, (g, clipped) in enumerate(zip(gradients, found, strict=True), start=1):
    for name in PARAMS:
      size = norm(g[name])
      factor = min(1, 1.05 * average[name] / size) if n >= 100 else min(1, 1 / norm(g))
      assert_equal(clipped[name], scaled(g[name], factor))
      if n >= 100:
        average[name] = 0.98 * average[name] + 0.02 * factor * size
      else:
        average[name] = min(average[name], factor * size)
  assert norm(found[105 - 1]) < 0.1 * norm(gradients[105 - 1])


@pytest.mark.parametrize('zeros', [1, 120])
def test_adagc_starts_from_the_smallest_norm_above_0(zeros, rng):
  """Behind an output that starts from 0, the first gradients are 0, and later ones are not."""
  gradients = [draw(rng, 0.2) for _ in range(130)]
  for g in gradients[:zeros]:
    g['matrix'] = 0 * g['matrix']
  found = transformed('adagc', gradients, adagc=1.05)
  kept = [
      norm(f['matrix']) / norm(g['matrix'])
      for f, g in zip(found[zeros:], gradients[zeros:], strict=True)
  ]
  assert min(kept) > 0.3


def test_adagc_survives_a_norm_that_overflows(rng):
  gradients = [draw(rng) for _ in range(103)]
  for n in (3, 101):
    gradients[n] = jax.tree.map(np.float32, scaled(gradients[n], 1e30))
  found = transformed('adagc', gradients, adagc=1.05)
  assert norm(found[3]) == norm(found[101]) == 0
  assert 0.1 < norm(found[102]) < 1.1
