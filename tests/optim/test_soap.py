"""SOAP, compared with a NumPy implementation of the paper's algorithm in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stability.optim import soap

BETA1, BETA2, EPS, EVERY = 0.9, 0.95, 1e-8, 3


def reference(gradients):
  """Directions of one matrix; the first gradient only initialises the eigenbasis."""
  m, n = gradients[0].shape
  left, right = np.zeros((m, m)), np.zeros((n, n))
  mean, square = np.zeros((m, n)), np.zeros((m, n))
  bases, directions = None, []
  for count, g in enumerate(gradients):
    if count:
      rotated = bases[0].T @ g @ bases[1]
      mean = BETA1 * mean + (1 - BETA1) * g
      square = BETA2 * square + (1 - BETA2) * rotated**2
      first = bases[0].T @ mean @ bases[1] / (1 - BETA1**count)
      second = square / (1 - BETA2**count)
      directions.append(bases[0] @ (first / (np.sqrt(second) + EPS)) @ bases[1].T)
    else:
      directions.append(np.zeros((m, n)))
    left = BETA2 * left + (1 - BETA2) * g @ g.T
    right = BETA2 * right + (1 - BETA2) * g.T @ g
    if not count:
      bases = [np.linalg.eigh(side)[1][:, ::-1] for side in (left, right)]
    elif count % EVERY == 0:
      for axis, side in enumerate((left, right)):
        order = np.argsort(-np.diag(bases[axis].T @ side @ bases[axis]))
        bases[axis] = np.linalg.qr(side @ bases[axis][:, order])[0]
        square = np.take(square, order, axis=axis)
  return directions


@pytest.fixture(scope='module')
def gradients():
  """Gradients of full rank and with a dominant direction.

  Sides differ by 1 at most, so that the eigenbasis of the first gradient is unique up to signs.
  """
  rng = np.random.default_rng(0)

  def draw(m, n):
    strong = rng.normal(size=(m, 1)) @ rng.normal(size=(1, n))
    return [strong + 0.3 * rng.normal(size=(m, n)) for _ in range(8)]

  return {'square': draw(5, 5), 'wide': draw(3, 4), 'tall': draw(5, 4)}


def directions_of(gradients, every=EVERY):
  transformation = soap.scale_by_soap(*map(jnp.float32, (BETA1, BETA2, EPS)), jnp.int32(every))
  steps = [
      {name: np.float32(found[i]) for name, found in gradients.items()}
      for i in range(len(gradients['wide']))
  ]
  state = transformation.init(steps[0])
  update = jax.jit(transformation.update)
  found = []
  for step in steps:
    directions, state = update(step, state)
    found.append(directions)
  return found


def test_directions_match_the_algorithm(gradients):
  """Signs of eigenvectors cancel; float32 is compared with float64."""
  found = directions_of(gradients)
  for name, own in gradients.items():
    for direction, expected in zip(found, reference(own), strict=True):
      np.testing.assert_allclose(direction[name], expected, rtol=2e-3, atol=2e-3)


def test_first_update_moves_nothing(gradients):
  assert not np.any(directions_of(gradients)[0]['wide'])


def test_period_is_traced(gradients):
  """Another period gives other directions once the basis has been refined."""
  a, b = directions_of(gradients, every=1), directions_of(gradients, every=100)
  assert np.allclose(a[1]['wide'], b[1]['wide'], atol=1e-5)
  assert not np.allclose(a[-1]['wide'], b[-1]['wide'], atol=1e-2)


def test_diagonal_gradients_give_adam():
  """If gradients are diagonal with distinct entries, the eigenbasis is that of the axes."""
  rng = np.random.default_rng(1)
  diagonal = [np.diag([3.0, 2.0, 1.0] * (1 + 0.1 * rng.random(3))) for _ in range(5)]
  found = directions_of({'wide': diagonal})
  mean, square = np.zeros(3), np.zeros(3)
  for count, (g, direction) in enumerate(zip(diagonal, found, strict=True)):
    if count:
      mean = BETA1 * mean + (1 - BETA1) * np.diag(g)
      square = BETA2 * square + (1 - BETA2) * np.diag(g) ** 2
      adam = mean / (1 - BETA1**count) / np.sqrt(square / (1 - BETA2**count))
      np.testing.assert_allclose(np.diag(direction['wide']), adam, rtol=1e-4)
      off = direction['wide'] - np.diag(np.diag(direction['wide']))
      assert np.abs(off).max() < 1e-4
