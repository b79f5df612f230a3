"""Layouts that train one run on all devices, of one process or of several.

  DataParallelLayout  pmap: each device holds the whole state and takes its part of the batch;
                      gradients are averaged by a pmean over the axis `data`
  ShardedLayout       jit over a mesh: parameters and optimizer state are split over the devices,
                      each array along one axis, and so is the batch (fully sharded data parallel,
                      ZeRO-3, arXiv 1910.02054)

Batches are drawn on the host; each process supplies the rows of its own devices. Steps are called
in a Python loop, whose overhead is small beside a step of a large run. With several processes, all
make the same calls in the same order, because each takes part in every computation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stability.devices.layout import (
    PendingMetrics,
    Tree,
    host_batcher,
    mean_losses,
    never,
    pack,
)
from stability.step.train_step import Programs

AXIS = 'data'


class _MultiDeviceLayout:
  """The common part of both layouts, which differ in the state's sharding and in `_map`."""

  width = members = 1
  _axis: str | None  # name of the mapped axis over devices that a step is called in, if any

  def __init__(
      self,
      programs: Programs,
      data: Mapping[str, np.ndarray],
      hparams: Tree,
      devices: Sequence[jax.Device],
  ):
    """Compiles the programs.

    Args:
      programs: the functions of one run.
      data: 'text' [tokens] to train on and 'validation' [batches, B, T + 1].
      hparams: those of any of the runs; only their types matter.
      devices: the devices of all processes; their number divides B.
    """
    self._devices = devices
    mesh = Mesh(np.asarray(devices), (AXIS,))
    self._replicated = NamedSharding(mesh, PartitionSpec())
    self._split = NamedSharding(mesh, PartitionSpec(AXIS))
    self._validation = data['validation'].astype(np.int32)
    self._batcher = host_batcher(data, slots=1)
    run = jax.eval_shape(programs.init, hparams)
    self._shardings = jax.tree.map(self._sharding, run)
    self._init = jax.jit(programs.init, out_shardings=self._shardings).lower(hparams).compile()

    def in_axis(step):
      return lambda rows_BxT1, state: step({'batch': rows_BxT1}, state, axis=self._axis)

    def evaluate(rows_BxT1, state):
      loss = programs.evaluate({'validation': rows_BxT1[None]}, state, 0)
      return jax.lax.pmean(loss, self._axis) if self._axis else loss

    self._packed = pack({kind: in_axis(step) for kind, step in programs.steps.items()})
    # Arrays rather than shapes: with several processes, pmap would take a shape to be that of one
    # process's part.
    arguments = self._rows(self._validation[0]), self._init(hparams)
    out_shardings = self._shardings, self._replicated  # of the new state and of the metrics
    self._steps = {
        kind: self._map(step, out_shardings, donate=1).lower(*arguments).compile()
        for kind, step in self._packed.items()
    }
    self._evaluate = self._map(evaluate, self._replicated).lower(*arguments).compile()

  def _sharding(self, array: jax.ShapeDtypeStruct) -> NamedSharding:
    """The sharding of an array of the state."""
    raise NotImplementedError

  def _map(self, function, out_shardings, donate=()):
    """Maps a function of (rows [B, T + 1], state) over rows [devices, B / devices, T + 1]."""
    raise NotImplementedError

  def init(self, hparams):
    return self._init(hparams)

  def empty(self):
    return None

  def insert(self, state, slot, run):
    del state
    self._batcher.enter(slot, run)
    return jax.tree.map(_put, run, self._shardings)

  def extract(self, state):
    return [jax.tree.map(_fetch, state)]

  def step(self, state, kind, steps=1):
    for _ in range(steps):
      state, values = self._steps[kind](self._rows(self._batcher.draw()[0]), state)
    return state, PendingMetrics(self._packed[kind].names, values)

  def evaluate(self, state, interrupted=never):
    losses = (self._evaluate(self._rows(b), state) for b in self._validation)
    return mean_losses(losses, interrupted)

  def _rows(self, batch_BxT1: np.ndarray) -> jax.Array:
    """A batch [B, T + 1], split over the devices: [devices, B / devices, T + 1]."""
    return _put(batch_BxT1.reshape(len(self._devices), -1, batch_BxT1.shape[1]), self._split)


class DataParallelLayout(_MultiDeviceLayout):
  """One run, replicated on every device.

  A step must return the same state on all devices: whatever depends on a device's part of the batch
  has to pass through a pmean or pmax before it enters the state.
  """

  _axis = AXIS

  def _sharding(self, array):
    del array
    return self._replicated

  def _map(self, function, out_shardings, donate=()):
    del out_shardings  # all outputs are replicated
    return jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=(0, None),
        out_axes=None,
        devices=self._devices,
        donate_argnums=donate,
    )


class ShardedLayout(_MultiDeviceLayout):
  """One run, split over the devices."""

  _axis = None

  def _sharding(self, array):
    """Splits the largest axis that is divisible by the number of devices, or replicates."""
    sizes = [size if size % len(self._devices) == 0 else 0 for size in array.shape]
    if not any(sizes):
      return self._replicated
    axis = int(np.argmax(sizes))
    return NamedSharding(self._replicated.mesh, PartitionSpec(*(None,) * axis, AXIS))

  def _map(self, function, out_shardings, donate=()):
    def whole_batch(rows_NxBxT1, state):
      return function(rows_NxBxT1.reshape(-1, rows_NxBxT1.shape[-1]), state)

    return jax.jit(
        whole_batch,
        in_shardings=(self._split, self._shardings),
        out_shardings=out_shardings,
        donate_argnums=donate,
    )


def _put(array: Any, sharding: NamedSharding) -> jax.Array:
  """Puts an array on its devices, each process on its own; a jax.Array is already there."""
  if isinstance(array, jax.Array):
    return array
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _fetch(array: jax.Array) -> np.ndarray:
  """The whole array, on the host of every process."""
  if array.is_fully_addressable or array.is_fully_replicated:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)
