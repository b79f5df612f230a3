"""A layout that compiles nothing and computes almost nothing."""

import math

import numpy as np

from stability.devices.layout import never


class _PendingMetrics:
  """Metrics that are available at once."""

  def __init__(self, rows):
    self._rows = rows

  def wait(self):
    pass

  def read(self):
    return self._rows


class StubLayout:
  """Losses depend on learning rate and seed; above a rate of 1e20, runs diverge at step 9."""

  def __init__(self, members=1, devices=1):
    self.members, self.width = members, members * devices

  def init(self, hparams):
    return {
        'params': {'w': np.float64(hparams['seed'])},
        'carried': {},
        'step': np.int32(0),
        'skipped': np.int32(0),
        'diverged': np.bool_(False),
        'hparams': dict(hparams),
    }

  def empty(self):
    return [None] * self.width

  def insert(self, state, slot, run):
    return [run if n == slot else other for n, other in enumerate(state)]

  def extract(self, state):
    return [None if run is None else {**run, 'params': dict(run['params'])} for run in state]

  def step(self, state, kind, steps=1):
    for _ in range(steps):
      state, rows = zip(*map(self._step, state))
    if kind != 'quiet':
      rows = [row | {'log_z': row.get('loss', 0.0) / 2} for row in rows]
    return list(state), _PendingMetrics(list(rows))

  def evaluate(self, state, interrupted=never):
    for _ in range(3):
      if interrupted():
        return None
    return [math.nan if run is None else self._loss(run) for run in state]

  def _loss(self, run):
    return 5.0 + math.exp(-int(run['step']) / 20) - 0.1 * math.sin(float(run['params']['w']))

  def _step(self, run):
    if run is None:
      return None, {'step': 0.0, 'diverged': 1.0}
    rate = float(run['hparams']['optimizer.learning_rate'])
    row = {'step': float(run['step'] + 1), 'learning_rate': rate, 'gradient_norm': 1.0}
    if run['diverged'] or (rate > 1e20 and run['step'] == 8):
      return run | {'diverged': np.bool_(True)}, row | {'diverged': 1.0, 'loss': math.nan}
    if run['step'] < run['hparams']['schedule.steps']:
      w = np.float64(math.cos(3 * run['params']['w'] + rate))
      run = run | {'params': {'w': w}, 'step': np.int32(run['step'] + 1)}
    return run, row | {'diverged': 0.0, 'loss': self._loss(run)}
