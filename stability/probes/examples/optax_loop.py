"""Probes and alarms in a loop of Flax and Optax; the learning rate is far too high."""

import flax.linen as nn
import jax
import optax

import stability
from stability.probes import flax_probes

RATE, EPS = 0.3, 1e-8


class Model(nn.Module):
  @nn.compact
  def __call__(self, tokens):
    x, mask = nn.Embed(32, 64)(tokens), nn.make_causal_mask(tokens)
    return nn.Dense(32)(x + nn.MultiHeadDotProductAttention(4)(x, mask=mask))


def loss_of(params, tokens):
  logits, row = flax_probes.apply(model, params, tokens)
  return optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean(), row


@jax.jit  # for the other steps, jit one that does not return the row: XLA then drops its cost
def probed_step(params, state, tokens):
  (loss, row), grads = jax.value_and_grad(loss_of, has_aux=True)(params, tokens)
  changes, state = optimizer.update(grads, state)
  row |= flax_probes.gradients(grads, EPS) | flax_probes.updates(changes, params, RATE)
  return optax.apply_updates(params, changes), state, {'loss': loss, **row}


model, monitor, optimizer = Model(), stability.Monitor(), optax.adam(RATE, eps=EPS)
params = model.init(jax.random.key(0), jax.numpy.zeros((1, 16), int))
state = optimizer.init(params)
for step in range(12):
  tokens = jax.random.randint(jax.random.key(step), (8, 16), 0, 32)
  params, state, row = probed_step(params, state, tokens)
  for alarm in monitor.observe({'step': step, **jax.device_get(row)}):
    print(f'step {alarm.step}: {alarm.rule}: {alarm.message}')
