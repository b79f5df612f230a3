"""Layouts of one run that takes all devices, of one process or of several.

  DataParallelLayout  pmap: every device holds the run and takes its part of the batch; gradients
                      meet in a pmean over the axis `data`
  ShardedLayout       jit over a mesh: parameters and optimizer state are split over the devices,
                      each array along one axis, and so is the batch (fully sharded data parallel,
                      ZeRO-3, arXiv 1910.02054)

Batches are drawn on the host, each process those rows that its devices take. A step of a large run
takes long enough for a Python loop over steps. Under several processes all of them make the same
calls in the same order, as each is one part of a computation on all devices.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stability.data.host_batcher import HostBatcher
from stability.devices import layouts

Tree = Any  # of arrays

AXIS = 'data'


class _MultiDeviceLayout:
  """What the layouts share; they differ in where state lies and how a function is mapped."""

  width = members = 1
  _axis: str | None  # the mapped axis in which a function is called

  def __init__(
      self,
      programs: layouts.Programs,
      data: Mapping[str, np.ndarray],
      hparams: Tree,
      devices: Sequence[jax.Device],
  ):
    """data: 'train' and 'validation' arrays. hparams: of any run, for its types."""
    self._devices = devices
    mesh = Mesh(np.asarray(devices), (AXIS,))
    self._whole = NamedSharding(mesh, PartitionSpec())  # on every device
    self._split = NamedSharding(mesh, PartitionSpec(AXIS))
    self._validation = data['validation'].astype(np.int32)
    _, batch_size, length = self._validation.shape
    self._batcher = HostBatcher(data['train'], batch_size, length - 1, slots=1)
    member = jax.eval_shape(programs.init, hparams)
    self._shardings = jax.tree.map(self._sharding, member)
    self._init = jax.jit(programs.init, out_shardings=self._shardings).lower(hparams).compile()

    def in_axis(step):
      return lambda rows_BxT1, state: step({'train': rows_BxT1}, state, axis=self._axis)

    def evaluate(rows_BxT1, state):
      loss = programs.evaluate({'validation': rows_BxT1[None]}, state, 0)
      return jax.lax.pmean(loss, self._axis) if self._axis else loss

    self._quiet = layouts.PackedStep(in_axis(programs.step))
    self._probed = layouts.PackedStep(in_axis(programs.probed_step))
    self._sharp = layouts.PackedStep(in_axis(programs.sharp_step))
    # Arrays, not their shapes: with several processes pmap takes a shape for one process's part.
    arguments = self._rows(self._validation[0]), self._init(hparams)
    new = self._shardings, self._whole  # state and metrics
    self._step = self._mapped(self._quiet, new, donate=1).lower(*arguments).compile()
    if programs.probed_step:
      self._probed_step = self._mapped(self._probed, new, donate=1).lower(*arguments).compile()
    if programs.sharp_step:
      self._sharp_step = self._mapped(self._sharp, new, donate=1).lower(*arguments).compile()
    self._evaluate = self._mapped(evaluate, self._whole).lower(*arguments).compile()

  def _sharding(self, array: jax.ShapeDtypeStruct) -> NamedSharding:
    """Where an array of the state lies."""
    raise NotImplementedError

  def _mapped(self, function, out_shardings, donate=()):
    """A function of some rows and the state, over [devices, batch / devices, T + 1] rows."""
    raise NotImplementedError

  def init(self, hparams):
    return self._init(hparams)

  def empty(self):
    return None

  def insert(self, state, slot, member):
    del state
    self._batcher.enter(slot, member)
    return jax.tree.map(_put, member, self._shardings)

  def extract(self, state):
    return [jax.tree.map(_fetch, state)]

  def advance(self, state, steps):
    for _ in range(steps):
      state, values = self._step(self._rows(self._batcher.draw()[0]), state)
    return state, layouts.PendingMetrics(self._quiet.names, values)

  def probe(self, state, sharp=False):
    rows = self._rows(self._batcher.draw()[0])
    state, values = (self._sharp_step if sharp else self._probed_step)(rows, state)
    return state, layouts.PendingMetrics((self._sharp if sharp else self._probed).names, values)

  def evaluate(self, state, interrupted=layouts.never):
    losses = (self._evaluate(self._rows(b), state) for b in self._validation)
    return layouts.means(losses, interrupted)

  def _rows(self, batch_BxT1: np.ndarray) -> jax.Array:
    """A batch on the devices that take its rows: [devices, batch / devices, T + 1]."""
    return _put(batch_BxT1.reshape(len(self._devices), -1, batch_BxT1.shape[1]), self._split)


class DataParallelLayout(_MultiDeviceLayout):
  """The run replicated on every device."""

  _axis = AXIS

  def _sharding(self, array):
    del array
    return self._whole

  def _mapped(self, function, out_shardings, donate=()):
    del out_shardings  # all of them whole on every device
    return jax.pmap(
        function,
        axis_name=AXIS,
        in_axes=(0, None),
        out_axes=None,
        devices=self._devices,
        donate_argnums=donate,
    )


class ShardedLayout(_MultiDeviceLayout):
  """The run split over the devices."""

  _axis = None

  def _sharding(self, array):
    """Along its largest axis that the devices divide, or whole on each of them."""
    sizes = [size if size % len(self._devices) == 0 else 0 for size in array.shape]
    if not any(sizes):
      return self._whole
    axis = int(np.argmax(sizes))
    return NamedSharding(self._whole.mesh, PartitionSpec(*(None,) * axis, AXIS))

  def _mapped(self, function, out_shardings, donate=()):
    def whole_batch(rows_NxBxT1, state):
      return function(rows_NxBxT1.reshape(-1, rows_NxBxT1.shape[-1]), state)

    return jax.jit(
        whole_batch,
        in_shardings=(self._split, self._shardings),
        out_shardings=out_shardings,
        donate_argnums=donate,
    )


def _put(array: Any, sharding: NamedSharding) -> jax.Array:
  """An array on its devices, each process serving its own; one there already stays."""
  if isinstance(array, jax.Array):
    return array
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _fetch(array: jax.Array) -> np.ndarray:
  """The whole of an array, on the host of every process."""
  if array.is_fully_addressable or array.is_fully_replicated:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)
