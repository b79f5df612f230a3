"""QK-clip: heads above the cap are scaled down to it; other heads do not change."""

import jax
import numpy as np
import pytest

from stability.step import train_step

CAP = 0.05
OPTIONS = {'model.qk_norm': 'none', 'optimizer.learning_rate': 1e-3, 'model.depth': 1}
QUERY, KEY = 'query', 'key'


def stepped(run, text, steps=1):
  programs = train_step.programs(run.static, 64)
  state = jax.jit(programs.init)(run.hparams)
  step = jax.jit(programs.steps['quiet'])
  for _ in range(steps):
    state, metrics = step({'text': text['text']}, state)
  return state, metrics


def max_by_head(params, run, text, width=32, head_dim=16, group=1):
  """The highest logit of each head on the first batch, by NumPy in float64."""
  from stability.data import batches

  starts = batches.window_starts(
      np, 0, 0, batch_size=4, sequence_length=16, tokens=len(text['text'])
  )
  rows = batches.gather(text['text'], starts, 16)[:, :-1]
  x = np.float64(params['embedding'])[rows]
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  x = x * np.float64(params['block_0']['attention_norm']['scale'])
  found = []
  frequency = 10_000.0 ** (-np.arange(head_dim // 2) / (head_dim // 2))
  turn = np.exp(1j * np.arange(16)[:, None] * frequency)
  for head in range(width // head_dim):
    q, k = (
        x @ np.float64(params['block_0']['attention'][name])[:, i * head_dim : (i + 1) * head_dim]
        for name, i in ((QUERY, head), (KEY, head // group))
    )
    half = head_dim // 2
    q, k = ((y[..., :half] + 1j * y[..., half:]) * turn for y in (q, k))
    logits = np.real(np.einsum('btk,bsk->bts', q, np.conj(k))) / np.sqrt(head_dim)
    found.append(logits[:, np.tril(np.ones((16, 16), bool))].max())
  return np.array(found)


@pytest.mark.slow
def test_heads_above_the_cap_are_scaled(tiny, text):
  plain, clipped = (tiny(OPTIONS | {'optimizer.qk_clip': cap}) for cap in (0.0, 1.0))
  start = jax.jit(train_step.programs(plain.static, 64).init)(plain.hparams)['params']
  highest = max_by_head(start, plain, text)
  low, high = sorted(highest)
  cap = float(np.float32((low + high) / 2))  # one head is above it
  clipped = tiny(OPTIONS | {'optimizer.qk_clip': cap})
  without, with_clip = stepped(plain, text)[0]['params'], stepped(clipped, text)[0]['params']
  factor = np.sqrt(np.where(highest > cap, cap / highest, 1)).repeat(16)
  attention, expected = (p['block_0']['attention'] for p in (with_clip, without))
  for name in (QUERY, KEY):
    np.testing.assert_allclose(attention[name], expected[name] * factor, rtol=1e-5)
    untouched = factor == 1
    assert untouched.sum() == 16
    close = np.testing.assert_allclose  # another program rounds differently
    close(attention[name][:, untouched], expected[name][:, untouched], rtol=1e-6, atol=1e-8)
  for name in ('value', 'output'):
    close(attention[name], expected[name], rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_shared_keys_are_not_scaled(tiny, text):
  """The query kernel of a head above the cap is scaled by cap / S; the shared key stays."""
  shared = OPTIONS | {'model.query_group': 2}
  plain = tiny(shared)
  start = jax.jit(train_step.programs(plain.static, 64).init)(plain.hparams)['params']
  highest = max_by_head(start, plain, text, group=2)
  cap = float(np.float32(highest.mean()))  # one of the two heads is above it
  clipped = tiny(shared | {'optimizer.qk_clip': cap})
  without, with_clip = stepped(plain, text)[0]['params'], stepped(clipped, text)[0]['params']
  factor = np.where(highest > cap, cap / highest, 1).repeat(16)
  assert (factor < 1).sum() == 16
  attention, expected = (p['block_0']['attention'] for p in (with_clip, without))
  np.testing.assert_allclose(attention[QUERY], expected[QUERY] * factor, rtol=1e-5)
  np.testing.assert_allclose(attention[KEY], expected[KEY], rtol=1e-6, atol=1e-8)
  assert attention[KEY].shape == (32, 16)


def test_logits_stay_near_the_cap(tiny, text):
  run = tiny(OPTIONS | {'optimizer.qk_clip': CAP, 'schedule.steps': 20})
  params = stepped(run, text, steps=10)[0]['params']
  assert max_by_head(params, run, text).max() < 1.5 * CAP


@pytest.mark.slow
def test_cap_never_reached_changes_nothing(tiny, text):
  plain, idle = (tiny(OPTIONS | {'optimizer.qk_clip': cap}) for cap in (0.0, 1e6))
  left, right = stepped(plain, text, 3), stepped(idle, text, 3)
  for a, b in zip(jax.tree.leaves(left[0]['params']), jax.tree.leaves(right[0]['params'])):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # another program rounds differently
  assert left[1].keys() == right[1].keys()  # its measurements are not logged


@pytest.mark.slow
@pytest.mark.parametrize('dtype, error', [('float32', 1e-4), ('bfloat16', 2**-9)])
def test_quiet_and_probed_steps_clip_alike(tiny, text, dtype, error):
  """In bfloat16, inputs, kernels, queries and keys are rounded by up to 2^-9; sums average that."""
  run = tiny(OPTIONS | {'optimizer.qk_clip': CAP, 'model.dtype': dtype})
  programs = train_step.programs(run.static, 64)
  state = jax.jit(programs.init)(run.hparams)
  quiet, _ = jax.jit(programs.steps['quiet'])({'text': text['text']}, state)
  probed, metrics = jax.jit(programs.steps['probed'])({'text': text['text']}, state)
  for name in (QUERY, KEY):
    a, b = (s['params']['block_0']['attention'][name] for s in (quiet, probed))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  assert float(metrics['block_0/attention_logit_max']) == pytest.approx(
      max_by_head(state['params'], run, text).max(), rel=error
  )
