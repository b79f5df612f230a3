"""VmappedLayout: a population of runs, by pmap over devices of vmap over the runs on each device.

Slot s is member s % members of device s // members.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stability.devices import hlo
from stability.devices.layout import (
    Data,
    PackedStep,
    PendingMetrics,
    Tree,
    host_batcher,
    mean_losses,
    never,
    pack,
    with_axes,
    zeros,
)
from stability.step.train_step import Programs


class VmappedLayout:
  """A population with `members` runs on each device."""

  def __init__(
      self,
      programs: Programs,
      data: Mapping[str, np.ndarray],
      hparams: Tree,
      devices: Sequence[jax.Device],
      members: int,
      host_drawn: bool = False,
  ):
    """Compiles the programs.

    Args:
      programs: the functions of one run.
      data: 'text' [tokens] to train on and 'validation' [batches, B, T + 1].
      hparams: those of any of the runs; only their types matter.
      devices: the devices to use, all of one kind.
      members: number of runs on each device.
      host_drawn: keep the text on the host, which draws the batches of each run from it.
    """
    self.width = len(devices) * members
    self.members = members
    self._devices = devices
    replicated = NamedSharding(Mesh(np.asarray(devices), ('devices',)), PartitionSpec())
    self._batcher = host_batcher(data, self.width) if host_drawn else None
    self._text = (
        None if host_drawn else jax.device_put({'text': np.asarray(data['text'])}, replicated)
    )
    self._validation = jax.device_put({'validation': np.asarray(data['validation'])}, replicated)
    self._batches = len(data['validation'])
    self._run = jax.eval_shape(programs.init, hparams)
    self._start = jax.jit(programs.init)  # compiled for the first run that has a parent
    self._packed = pack(programs.steps)
    self._init = jax.jit(programs.init).lower(hparams).compile()
    lowered = lower(
        self._packed,
        programs.evaluate,
        self._run,
        self._batch(),
        self._validation,
        devices,
        members,
    )
    compiled = {name: program.compile() for name, program in lowered.items()}
    self._insert = compiled.pop('insert')
    self._evaluate = compiled.pop('evaluate')
    self._steps = compiled

  def init(self, hparams, parent=None):
    if parent is None:
      return jax.device_get(self._init(hparams))
    return jax.device_get(self._start(hparams, parent))

  def empty(self):
    return zeros(self._run, (len(self._devices), self.members))

  def insert(self, state, slot, run):
    if self._batcher:
      self._batcher.enter(slot, run)
    return self._insert(state, run, self._mask(slot))

  def _mask(self, slot: int) -> np.ndarray:
    """True at the slot, False elsewhere: [devices, members]."""
    return (np.arange(self.width) == slot).reshape(len(self._devices), self.members)

  def extract(self, state):
    runs = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), jax.device_get(state))
    leaves, structure = jax.tree.flatten(runs)
    return [structure.unflatten(run) for run in zip(*leaves)]

  def step(self, state, kind, steps=1):
    if kind == 'quiet' and not self._batcher:  # the loop over steps is on the device
      state, values = self._steps[kind](self._batch(), state, np.int32(steps))
    else:
      count = (np.int32(1),) if kind == 'quiet' else ()
      for _ in range(steps):
        state, values = self._steps[kind](self._batch(), state, *count)
    return state, PendingMetrics(self._packed[kind].names, values)

  def evaluate(self, state, interrupted=never):
    batches = range(self._batches)
    losses = (self._evaluate(self._validation, state, np.int32(i)) for i in batches)
    return mean_losses(losses, interrupted)

  def memory(self) -> int:
    """Bytes on each device that the largest executable needs, according to XLA."""
    return max(map(hlo.memory_bytes, (*self._steps.values(), self._evaluate)))

  def _batch(self) -> Data:
    """The data of the next step."""
    if not self._batcher:
      return self._text
    rows = self._batcher.draw()
    return {'batch': rows.reshape(len(self._devices), self.members, *rows.shape[1:])}


def lower(
    steps: Mapping[str, PackedStep],
    evaluate: Callable[..., jax.Array],
    run: Tree,
    data: Data,
    validation: Data,
    devices: Sequence[jax.Device],
    members: int,
) -> dict[str, jax.stages.Lowered]:
  """The programs of a population, lowered for its devices: the steps, `insert` and `evaluate`.

  Args:
    steps: those of one run, by kind.
    evaluate: that of one run.
    run: the shapes of the state of one run.
    data: the shapes of 'text' [tokens] or, drawn by the host, 'batch' [devices, members, B, T + 1].
    validation: the shapes of 'validation' [batches, B, T + 1].
    devices: those to lower for; they need not be of this machine.
    members: number of runs on each device.
  """
  state = with_axes(run, (len(devices), members))
  mask = jax.ShapeDtypeStruct((len(devices), members), bool)
  count = np.int32(0)
  data_axis = 0 if 'batch' in data else None  # each run has its own batches, or all share the text

  def mapped(function, in_axes, arguments, donate=()):
    over_devices = jax.pmap(
        function, axis_name='devices', in_axes=in_axes, devices=devices, donate_argnums=donate
    )
    return over_devices.lower(*arguments)

  lowered = {}
  for kind, step in steps.items():
    of_members = jax.vmap(step, (data_axis, 0))
    if kind == 'quiet':
      axes = (data_axis, 0, None)
      lowered[kind] = mapped(_repeat(of_members), axes, (data, state, count), 1)
    else:
      lowered[kind] = mapped(of_members, (data_axis, 0), (data, state), 1)
  lowered['insert'] = mapped(_insert, (0, None, 0), (state, run, mask), 0)
  axes = (None, 0, None)
  lowered['evaluate'] = mapped(jax.vmap(evaluate, axes), axes, (validation, state, count))
  return lowered


def _repeat(step):
  """Repeats a step in a loop on the device, which returns the metrics of the last step.

  The number of steps is an argument of the executable, so all numbers share one.
  """

  def repeated(data, state, steps):
    first = jax.eval_shape(step, data, state)[1]
    metrics = jnp.zeros(first.shape, first.dtype)
    return jax.lax.fori_loop(0, steps, lambda _, carry: step(data, carry[0]), (state, metrics))

  return repeated


def _insert(state, run, mask_M):
  """The state of a device with `run` in the slots where `mask_M` is True."""

  def choose(all_MxX, one_X):
    return jnp.where(mask_M.reshape(-1, *(1,) * one_X.ndim), one_X, all_MxX)

  return jax.tree.map(choose, state, run)
