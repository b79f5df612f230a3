"""SingleDeviceLayout: one run on one device, with a Python loop over steps."""

from collections.abc import Mapping

import jax
import numpy as np

from stability.devices import compilation
from stability.devices.layout import (
    Data,
    PendingMetrics,
    Tree,
    host_batcher,
    mean_losses,
    never,
    pack,
    zeros,
)
from stability.step.train_step import Programs


class SingleDeviceLayout:
  """One run on one device."""

  width = members = 1

  def __init__(
      self,
      programs: Programs,
      data: Mapping[str, np.ndarray],
      hparams: Tree,
      host_drawn: bool = False,
  ):
    """Compiles the programs.

    Args:
      programs: the functions of one run.
      data: 'text' [tokens] to train on and 'validation' [batches, B, T + 1].
      hparams: those of any of the runs; only their types matter.
      host_drawn: keep the text on the host, which draws each batch from it.
    """
    self._batcher = host_batcher(data, self.width) if host_drawn else None
    self._text = None if host_drawn else jax.device_put({'text': np.asarray(data['text'])})
    self._validation = jax.device_put({'validation': np.asarray(data['validation'])})
    self._batches = len(data['validation'])
    self._run = jax.eval_shape(programs.init, hparams)
    self._start = jax.jit(programs.init)  # compiled for the first run that has a parent
    self._packed = pack(programs.steps)
    batch = self._batch()
    lowered = {
        kind: jax.jit(step, donate_argnums=1).lower(batch, self._run)
        for kind, step in self._packed.items()
    }
    lowered['init'] = jax.jit(programs.init).lower(hparams)
    lowered['evaluate'] = jax.jit(programs.evaluate).lower(self._validation, self._run, np.int32(0))
    executables = compilation.compile_shared(lowered)
    self._init = executables.pop('init')
    self._evaluate = executables.pop('evaluate')
    self._steps = executables

  def init(self, hparams, parent=None):
    if parent is None:
      return jax.device_get(self._init(hparams))
    return jax.device_get(self._start(hparams, parent))

  def empty(self):
    return zeros(self._run)

  def insert(self, state, slot, run):
    del state
    if self._batcher:
      self._batcher.enter(slot, run)
    return jax.device_put(run)

  def extract(self, state):
    return [jax.device_get(state)]

  def step(self, state, kind, steps=1):
    for _ in range(steps):
      state, values = self._steps[kind](self._batch(), state)
    return state, PendingMetrics(self._packed[kind].names, values)

  def evaluate(self, state, interrupted=never):
    batches = range(self._batches)
    losses = (self._evaluate(self._validation, state, np.int32(i)) for i in batches)
    return mean_losses(losses, interrupted)

  def _batch(self) -> Data:
    """The data of the next step."""
    return {'batch': self._batcher.draw()[0]} if self._batcher else self._text
