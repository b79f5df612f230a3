"""A conventional training script for the same model, as a baseline for the benchmarks.

It trains one run in its own process, with the learning rate compiled in, and logs the RMS of every
tensor at each step.

  python -m launch.benchmarks.plain LEARNING_RATE DIRECTORY
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tensorboardX import SummaryWriter

from configs import benchmark
from launch.benchmarks import inputs
from stability import config as config_lib
from stability.data import batches, prepare, tokens
from stability.model import measure
from stability.model import transformer as transformer_lib
from stability.step import objective


def train(learning_rate: float, directory: Path) -> None:
  """Trains and logs one run."""
  c = benchmark.get_config()
  text = tokens.open_tokens(prepare.prepare(c.data, directory / 'data', c.data.sequence_length))
  static, hparams = config_lib.split(inputs.resolve(c))
  model = transformer_lib.Transformer(static.model, text.meta['vocabulary_size'])
  schedule = optax.warmup_cosine_decay_schedule(
      0.0, learning_rate, c.schedule.warmup_steps, c.schedule.steps, c.schedule.min_learning_rate
  )
  decay = c.optimizer.weight_decay / learning_rate
  adamw = optax.adamw(schedule, c.optimizer.beta1, c.optimizer.beta2, weight_decay=decay)
  optimizer = optax.chain(optax.clip_by_global_norm(c.optimizer.clip_norm), adamw)

  @jax.jit
  def step(params, state, batch):
    def loss_function(params):
      logits = model.apply({'params': params}, batch[:, :-1], hparams)
      return objective.objective(static, hparams, logits, batch[:, 1:], params, {})

    (_, terms), gradients = jax.value_and_grad(loss_function, has_aux=True)(params)
    updates, state = optimizer.update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    trees = {'gradient': gradients, 'parameter': params, 'update': updates}
    return params, state, terms['loss'], jax.tree.map(measure.rms, trees)

  example = jnp.zeros((1, c.data.sequence_length), jnp.int32)
  params = model.init(jax.random.key(c.seed), example, hparams)['params']
  state = optimizer.init(params)
  writer = SummaryWriter(str(directory))
  with (directory / 'metrics.jsonl').open('w') as file:
    for n in range(c.schedule.steps):
      starts = batches.window_starts(
          np,
          c.data.seed,
          n,
          batch_size=c.data.batch_size,
          sequence_length=c.data.sequence_length,
          tokens=len(text.train),
      )
      batch = batches.gather(text.train, starts, c.data.sequence_length)
      params, state, loss, internals = step(params, state, batch)
      named, _ = jax.tree_util.tree_flatten_with_path(internals)
      line = {jax.tree_util.keystr(path): float(value) for path, value in named}
      line |= {'step': n, 'loss': float(loss)}
      file.write(json.dumps(line) + '\n')
      for tag, value in line.items():
        writer.add_scalar(tag, value, n)
  writer.close()


if __name__ == '__main__':
  Path(sys.argv[2]).mkdir(parents=True)
  train(float(sys.argv[1]), Path(sys.argv[2]))
