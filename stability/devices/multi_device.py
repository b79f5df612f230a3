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

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stability.devices.layout import (
    PackedStep,
    PendingMetrics,
    Step,
    Tree,
    host_batcher,
    mean_losses,
    never,
    pack,
)
from stability.step.train_step import Programs

AXIS = 'data'


class Spread:
  """How one run is spread over devices: the shardings of its arrays, and functions of these."""

  axis: str | None  # name of the mapped axis over devices that a step is called in, if any

  def __init__(self, devices: Sequence[jax.Device]):
    self.devices = devices
    mesh = Mesh(np.asarray(devices), (AXIS,))
    self.replicated = NamedSharding(mesh, PartitionSpec())
    self.split = NamedSharding(mesh, PartitionSpec(AXIS))  # of rows [devices, B / devices, T + 1]

  def sharding(self, array: jax.ShapeDtypeStruct) -> NamedSharding:
    """The sharding of an array of the state."""
    raise NotImplementedError

  def map(self, function, state, outputs, donate=()):
    """Maps a function of (rows [B, T + 1], state) over rows [devices, B / devices, T + 1].

    Args:
      function: of (rows, state).
      state: the shardings of the state.
      outputs: the shardings of the outputs.
      donate: numbers of the arguments whose memory the outputs may take.
    """
    raise NotImplementedError

  def lower(
      self,
      steps: Mapping[str, PackedStep],
      evaluate: Callable[..., jax.Array],
      rows: jax.Array | jax.ShapeDtypeStruct,
      state: Tree,
  ) -> dict[str, jax.stages.Lowered]:
    """The programs of a run, lowered for the devices: its steps by kind, and `evaluate`.

    Args:
      steps: by kind; traced here, which sets the names of their metrics.
      evaluate: of a run (stability/step/train_step.py).
      rows: a batch [devices, B / devices, T + 1], or its shape.
      state: of the run, arrays or shapes with shardings.
    """

    def mean_loss(rows_BxT1, state):
      loss = evaluate({'validation': rows_BxT1[None]}, state, 0)
      return jax.lax.pmean(loss, self.axis) if self.axis else loss

    shardings = jax.tree.map(lambda array: array.sharding, state)
    outputs = shardings, self.replicated  # the new state and the metrics
    lowered = {
        kind: self.map(step, shardings, outputs, donate=1).lower(rows, state)
        for kind, step in steps.items()
    }
    lowered['evaluate'] = self.map(mean_loss, shardings, self.replicated).lower(rows, state)
    return lowered

  def pack(self, steps: Mapping[str, Step]) -> dict[str, PackedStep]:
    """The steps as functions of (rows [B, T + 1], state), called in the mapped axis."""

    def in_axis(step):
      return lambda rows_BxT1, state: step({'batch': rows_BxT1}, state, axis=self.axis)

    return pack({kind: in_axis(step) for kind, step in steps.items()})


class Replicated(Spread):
  """The whole state on every device.

  A step must return the same state on all devices: whatever depends on a device's part of the batch
  has to pass through a pmean or pmax before it enters the state.
  """

  axis = AXIS

  def sharding(self, array):
    del array
    return self.replicated

  def map(self, function, state, outputs, donate=()):
    del state, outputs  # all of them are replicated
    return jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=(0, None),
        out_axes=None,
        devices=self.devices,
        donate_argnums=donate,
    )


class Split(Spread):
  """Each array of the state is split over the devices along one axis."""

  axis = None

  def sharding(self, array):
    """Splits the largest axis that is divisible by the number of devices, or replicates."""
    sizes = [size if size % len(self.devices) == 0 else 0 for size in array.shape]
    if not any(sizes):
      return self.replicated
    axis = int(np.argmax(sizes))
    return NamedSharding(self.replicated.mesh, PartitionSpec(*(None,) * axis, AXIS))

  def map(self, function, state, outputs, donate=()):
    def whole_batch(rows_NxBxT1, state):
      return function(rows_NxBxT1.reshape(-1, rows_NxBxT1.shape[-1]), state)

    return jax.jit(
        whole_batch,
        in_shardings=(self.split, state),
        out_shardings=outputs,
        donate_argnums=donate,
    )


class _MultiDeviceLayout:
  """The common part of both layouts."""

  width = members = 1
  _spread_type: type[Spread]

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
    self._spread = self._spread_type(devices)
    self._validation = data['validation'].astype(np.int32)
    self._batcher = host_batcher(data, slots=1)
    run = jax.eval_shape(programs.init, hparams)
    self._shardings = jax.tree.map(self._spread.sharding, run)
    # Compiled again for the first run that has a parent.
    self._start = jax.jit(programs.init, out_shardings=self._shardings)
    self._init = self._start.lower(hparams).compile()
    self._packed = self._spread.pack(programs.steps)
    # Arrays rather than shapes: with several processes, pmap would take a shape to be that of one
    # process's part.
    lowered = self._spread.lower(
        self._packed, programs.evaluate, self._rows(self._validation[0]), self._init(hparams)
    )
    compiled = {name: program.compile() for name, program in lowered.items()}
    self._evaluate = compiled.pop('evaluate')
    self._steps = compiled

  def init(self, hparams, parent=None):
    return self._init(hparams) if parent is None else self._start(hparams, parent)

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
    rows = batch_BxT1.reshape(len(self._spread.devices), -1, batch_BxT1.shape[1])
    return _put(rows, self._spread.split)


class DataParallelLayout(_MultiDeviceLayout):
  """One run, replicated on every device."""

  _spread_type = Replicated


class ShardedLayout(_MultiDeviceLayout):
  """One run, split over the devices."""

  _spread_type = Split


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
