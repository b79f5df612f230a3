"""Numerics of one accelerator, as dicts for JSON: against the CPU, and against itself.

The functions of this module run on any device and at any size.
"""

from typing import Any

import jax
import numpy as np
import optax

from launch.benchmarks import inputs
from stability import config as config_lib
from stability.config import Config
from stability.devices import make_layout
from stability.devices.vmapped import VmappedLayout
from stability.model import attention
from stability.step import run_model, train_step

VOCABULARY = 256


def errors(config: Config, device: Any) -> dict[str, float]:
  """Relative errors of a device against the CPU, from the same parameters and the same batch.

  `logits` and `gradient` are norms of the difference over the norm on the CPU, `loss` is the
  difference over the loss.
  """
  static, hparams = config_lib.split(config)
  batch = inputs.random_data(config, VOCABULARY, 2)['validation'][0].astype(np.int32)
  cpu = jax.local_devices(backend='cpu')[0]
  found = []
  for place in (cpu, device):
    kernel = attention.fused_attention if make_layout.has_cudnn(place) else None
    model = run_model.make(static, VOCABULARY, fused=kernel)
    with jax.default_device(cpu):
      initial = train_step.programs(static, VOCABULARY).init
      state = jax.device_get(jax.jit(initial)(train_step.arrays(hparams)))

    def results(state, rows, model=model):
      params, frozen = state['params'], state.get('frozen')
      weights = run_model.weights(params, frozen, state['hparams'], static)
      logits = model.apply({'params': weights}, rows[:, :-1], state['hparams'])
      gradient, measured, _ = train_step.gradient(model, static, 'quiet', state, rows)
      return {'logits': logits, 'loss': measured['loss'].value, 'gradient': gradient}

    program = jax.jit(run_model.with_precision(static.model.matmul_precision, results))
    found.append(jax.device_get(program(*jax.device_put((state, batch), place))))
  ours, theirs = found[1], found[0]
  differences = jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), ours, theirs)
  return {
      name: float(optax.tree.norm(differences[name]) / optax.tree.norm(theirs[name]))
      for name in theirs
  }


def repeats(config: Config, members: int, steps: int) -> dict[str, float]:
  """The largest relative difference of parameters between runs that should be equal.

  twice: two equal runs. alone: a run by itself and the same run in a population of `members`. 0
  means equal bit for bit.
  """
  static, hparams = config_lib.split(config)
  data = inputs.random_data(config, VOCABULARY, 2**16)
  device = jax.local_devices()[0]
  programs = train_step.programs(static, VOCABULARY, fused=make_layout.has_cudnn(device))
  rates = np.geomspace(1e-3, 1e-1, members).tolist()
  runs = [train_step.arrays(hparams | {'optimizer.learning_rate': rate}) for rate in rates]

  def final(runs):
    layout = VmappedLayout(programs, data, runs[0], [device], len(runs))
    state = layout.empty()
    for slot, run in enumerate(runs):
      state = layout.insert(state, slot, layout.init(run))
    state, _ = layout.step(state, 'quiet', steps)
    return layout.extract(state)[0]['params']

  together = final(runs)
  return {
      'twice': _largest_difference(together, final(runs)),
      'alone': _largest_difference(together, final(runs[:1])),
  }


def _largest_difference(left: Any, right: Any) -> float:
  pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
  found = [np.linalg.norm(np.float64(a) - b) / np.linalg.norm(np.float64(b)) for a, b in pairs]
  return float(max(found))
