"""Losses in chunks of tokens, compared with those of whole batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stability.step import run_model, token_chunks, train_step

B, T, V = 4, 12, 80
SMALL = {
    'data.batch_size': B,
    'data.sequence_length': T,
    'model.width': 16,
    'model.head_dim': 8,
    'objective.z_loss': 1e-2,
    'probe.every_steps': 4,
}
MODELS = {
    'default': {},
    'mu-loss': {'objective.mu_loss': 0.1},
    'tied, capped': {'model.head': 'tied', 'model.output_soft_cap': 5.0},
    'ngpt': {f'model.{part}': 'ngpt' for part in ('norm_position', 'qk_norm', 'mlp', 'head')},
    'prime length': {'data.sequence_length': 13},
    'experts': {'model.mlp': 'moe', 'model.experts': 2, 'objective.balance_loss': 0.1},
}


@pytest.mark.parametrize(
    'positions, vocabulary, length',
    [
        (64, 256, 64),
        (512, 32_101, 32),
        (512, 2_048, 512),
        (509, 32_101, 32),
        (2_048, 151_936, 16),
        (7, 10**6, 7),
    ],
)
def test_length(positions, vocabulary, length):
  assert token_chunks.length(positions, vocabulary) == length


def outcome(run, data, kind, members=None):
  """The state and metrics after two steps of a kind, of one run or of several."""
  programs = train_step.programs(run.static, V)
  step = functools.partial(programs.steps[kind], data)
  evaluate = functools.partial(programs.evaluate, data, batch=0)
  hparams = run.hparams
  if members:
    hparams = {name: np.stack([value] * members) for name, value in hparams.items()}
    hparams['seed'] = np.arange(members, dtype=np.int32)
    step, evaluate = jax.vmap(step), jax.vmap(evaluate)
  init = jax.vmap(programs.init) if members else programs.init

  def two_steps(hparams):
    state, _ = step(init(hparams))
    state, metrics = step(state)
    return state, metrics, evaluate(state=state)

  return jax.jit(two_steps)(hparams)


def assert_close(found, expected, tolerance):
  """Relative to each norm, or 1e-7: so do logits near 1 round, whose mean may be nearly 0."""
  pairs = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
  for (path, ours), theirs in pairs:
    error = np.linalg.norm(np.float64(ours) - theirs)
    assert error <= tolerance * np.linalg.norm(theirs) + 1e-7, jax.tree_util.keystr(path)


@pytest.fixture
def chunked(monkeypatch):
  def use(positions):
    monkeypatch.setattr(token_chunks, 'LOGITS', positions * V)
    monkeypatch.setattr(token_chunks, 'MIN_TOKENS', 1)

  return use


@pytest.fixture(scope='module')
def data():
  rng = np.random.default_rng(0)
  text = jnp.uint8(V * rng.random(2_001) ** 2)
  return {'text': text, 'validation': text[: 2 * B * (T + 1)].reshape(2, B, T + 1)}


@pytest.mark.parametrize(
    'name',
    [
        n if n in ('default', 'prime length') else pytest.param(n, marks=pytest.mark.slow)
        for n in MODELS
    ],
)
def test_gradients_and_measurements(tiny, chunked, name, data):
  """Those of the whole batch, to float32 rounding: in chunks of 4, or of 5, 5 and 3 of 13."""
  run = tiny(SMALL | MODELS[name])
  model = run_model.make(run.static, V)
  state = jax.jit(functools.partial(train_step.init, model, run.static))(run.hparams)
  length = run.flat['data.sequence_length']
  rows = data['text'][: B * (length + 1)].reshape(B, length + 1).astype(jnp.int32)

  def gradient():
    def function(state, rows):  # a new one, since traces are cached by function
      return train_step.gradient(model, run.static, 'probed', state, rows)

    return jax.jit(function)(state, rows)

  chunked(length)
  whole = gradient()
  chunked(5)
  found = gradient()
  assert found[1].keys() == whole[1].keys()
  assert {'loss', 'log_z', 'output_logit_max', 'activation_rms/logits'} <= found[1].keys()
  assert_close(found, whole, 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize('members', [None, 2])
@pytest.mark.parametrize('kind', ['quiet', 'sharp'])
def test_steps(tiny, chunked, kind, members, data):
  """Second derivatives too, in a population too."""
  run = tiny(SMALL | {'probe.sharpness_every_steps': 4, 'optimizer.eps': 1e-2})
  chunked(T)
  whole = outcome(run, data, kind, members)
  chunked(T // 4)
  # Adam's first steps divide by small gradients, which enlarges rounding (eps is 1e-2 for that).
  # The bisection of critical sharpness ends at another of its points, 2^(24 / 2^8) apart.
  assert_close(outcome(run, data, kind, members), whole, 1e-4 if kind == 'quiet' else 0.1)


@pytest.mark.parametrize('kind', ['quiet', 'probed'])
def test_logits_are_never_whole(tiny, chunked, kind, data):
  run = tiny(SMALL)

  def printed():
    programs = train_step.programs(run.static, V)  # new ones, since traces are cached by function
    state = jax.eval_shape(programs.init, run.hparams)
    return str(jax.make_jaxpr(programs.steps[kind])(data, state))

  sizes = (f'f32[{B},{T},{V}]', f'f32[{B * T},{V}]')
  chunked(T)
  assert any(size in printed() for size in sizes)
  chunked(T // 3)
  found = printed()
  assert f'f32[{B},{T // 3},{V}]' in found
  assert not any(size in found for size in sizes)
