"""Hyperball, compared with NumPy in float64: matrices rotate and keep their norm."""

import jax
import numpy as np
import pytest

from stability.step import train_step

OPTIONS = {
    'optimizer.name': 'hyperball',
    'optimizer.learning_rate': 0.05,
    'schedule.warmup_steps': 0,
    'optimizer.weight_decay': 0.01,
}


def steps(run, text, count):
  """The states before and after each step."""
  programs = train_step.programs(run.static, 64)
  state = jax.jit(programs.init)(run.hparams)
  step = jax.jit(programs.steps['quiet'])
  found = [state]
  for _ in range(count):
    state, metrics = step({'text': text['text']}, state)
    found.append(state)
  return found, metrics


@pytest.fixture(scope='module')
def trained(tiny, text):
  return steps(tiny(OPTIONS), text, 5)


def matrices(params):
  return {
      jax.tree_util.keystr(path): np.float64(p)
      for path, p in jax.tree_util.tree_leaves_with_path(params)
      if p.ndim == 2 and path[-1].key not in ('embedding', 'head')
  }


def test_norms_are_constant(trained):
  states, _ = trained
  first, last = matrices(states[0]['params']), matrices(states[-1]['params'])
  assert len(first) == 6
  for name, W in first.items():
    assert not np.allclose(W, last[name])
    assert np.linalg.norm(last[name]) == pytest.approx(np.linalg.norm(W), rel=1e-5)


def test_first_step_matches_the_definition(tiny, text, trained):
  """W' = R (W - lr R u / |u|) / |...|, where u is Adam's: at first, the sign of the gradient."""
  states, _ = trained
  before, after = (matrices(state['params']) for state in states[:2])
  without_decay = {'optimizer.name': 'adamw', 'optimizer.weight_decay': 0.0}
  adam, metrics = steps(tiny(OPTIONS | without_decay), text, 1)
  plain = [matrices(state['params']) for state in adam]
  rate = float(metrics['learning_rate'])
  for name, W in before.items():
    u = plain[0][name] - plain[1][name]  # the direction, times the learning rate
    R = np.linalg.norm(W)
    moved = W - rate * R * u / np.linalg.norm(u)
    np.testing.assert_allclose(after[name], R * moved / np.linalg.norm(moved), rtol=1e-3, atol=1e-5)


def test_other_parameters_are_updated_by_adam(tiny, text, trained):
  states, _ = trained
  adam, _ = steps(tiny(OPTIONS | {'optimizer.name': 'adamw'}), text, 1)
  for name in ('embedding', 'head'):
    np.testing.assert_allclose(
        states[1]['params'][name], adam[1]['params'][name], rtol=1e-5, atol=1e-7
    )
