"""A step over devices. A layout holds the executables of a static config and the state they change.

  SingleDeviceLayout  one run on one device, a Python loop over steps: fastest on a CPU
  VmappedLayout       pmap over devices of vmap over members, a loop over steps on the device
  DataParallelLayout, ShardedLayout   one run on all devices (stability/devices/multi_device.py)

All have `width` slots, each empty or holding one run, and train all of them in step. What a slot
computes depends neither on its number nor on what the other slots hold.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stability.data.host_batcher import HostBatcher
from stability.devices import compilation

Tree = Any  # of arrays
Data = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Interrupted = Callable[[], bool]  # whether to leave what is under way; asked again and again


def never() -> bool:
  """Is not interrupted."""
  return False


@dataclasses.dataclass(frozen=True)
class Programs:
  """The pure functions of one run (stability/step/train_step.py), which a layout compiles."""

  init: Callable[[Tree], Tree]  # hyperparameters -> state
  # data, state and, in a mapped axis over devices, its name
  step: Callable[..., tuple[Tree, Metrics]]
  probed_step: Callable[..., tuple[Tree, Metrics]] | None  # None: never probed
  sharp_step: Callable[..., tuple[Tree, Metrics]] | None  # probed, and sharpness; None: never
  evaluate: Callable[[Data, Tree, jax.Array], jax.Array]  # data, state, batch number -> loss


@dataclasses.dataclass(frozen=True)
class PendingMetrics:
  """Metrics on their way from the device: one array, fetched in one transfer when they are read."""

  names: Sequence[str]
  values: jax.Array  # [names], or [devices, members, names]

  def wait(self) -> None:
    """Returns once the steps are made."""
    self.values.block_until_ready()

  def read(self) -> list[dict[str, float]]:
    """One dict a slot; waits for the device."""
    rows = np.asarray(self.values).reshape(-1, len(self.names))
    return [dict(zip(self.names, map(float, row))) for row in rows]


class Layout(Protocol):
  """What training asks of its devices."""

  width: int
  members: int  # runs on a device

  def init(self, hparams: Mapping[str, np.generic]) -> Tree:
    """The state of a new run, as insert takes it."""

  def empty(self) -> Tree:
    """A state with no run in any slot."""

  def insert(self, state: Tree, slot: int, member: Tree) -> Tree:
    """The state with a run, as init or extract gave it, in one slot."""

  def extract(self, state: Tree) -> list[Tree]:
    """The runs of all slots, on the host."""

  def advance(self, state: Tree, steps: int) -> tuple[Tree, PendingMetrics]:
    """Quiet steps (at least one) and the metrics of the last; `state` must not be used again."""

  def probe(self, state: Tree, sharp: bool = False) -> tuple[Tree, PendingMetrics]:
    """One probed (or sharp) step and its metrics; `state` must not be used again."""

  def evaluate(self, state: Tree, interrupted: Interrupted) -> list[float] | None:
    """The validation loss of every slot; None if it was interrupted before all was computed."""


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
    """data: 'train' and 'validation' arrays. hparams: of any run, for its types.

    host_drawn: keep the text to train on off the device; the host draws each batch from it.
    """
    self._batcher = _batcher(data, self.width) if host_drawn else None
    self._data = jax.device_put(_on_device(data, host_drawn))
    self._batches = len(data['validation'])
    self._member = jax.eval_shape(programs.init, hparams)
    self._quiet, self._probed = PackedStep(programs.step), PackedStep(programs.probed_step)
    self._sharp = PackedStep(programs.sharp_step)
    batch = self._batch()
    lowered = {}
    if programs.sharp_step:
      lowered['sharp_step'] = _lower(self._sharp, batch, self._member, donate_argnums=1)
    if programs.probed_step:
      lowered['probed_step'] = _lower(self._probed, batch, self._member, donate_argnums=1)
    lowered |= {
        'step': _lower(self._quiet, batch, self._member, donate_argnums=1),
        'init': _lower(programs.init, hparams),
        'evaluate': _lower(programs.evaluate, self._data, self._member, np.int32(0)),
    }
    executables = compilation.compiled(lowered)
    self._init, self._step = executables['init'], executables['step']
    self._probed_step = executables.get('probed_step')
    self._sharp_step = executables.get('sharp_step')
    self._evaluate = executables['evaluate']

  def init(self, hparams):
    return jax.device_get(self._init(hparams))

  def empty(self):
    return _zeros(self._member)

  def insert(self, state, slot, member):
    del state
    if self._batcher:
      self._batcher.enter(slot, member)
    return jax.device_put(member)

  def extract(self, state):
    return [jax.device_get(state)]

  def advance(self, state, steps):
    for _ in range(steps):
      state, values = self._step(self._batch(), state)
    return state, PendingMetrics(self._quiet.names, values)

  def probe(self, state, sharp=False):
    state, values = (self._sharp_step if sharp else self._probed_step)(self._batch(), state)
    return state, PendingMetrics((self._sharp if sharp else self._probed).names, values)

  def evaluate(self, state, interrupted=never):
    batches = range(self._batches)
    losses = (self._evaluate(self._data, state, np.int32(i)) for i in batches)
    return means(losses, interrupted)

  def _batch(self) -> Data:
    """What the next step takes: the text, or its batch as the host draws it."""
    return self._data | {'train': self._batcher.draw()[0]} if self._batcher else self._data


class VmappedLayout:
  """`members` runs on each device: pmap of vmap. Slot s is member s % members of its device."""

  def __init__(
      self,
      programs: Programs,
      data: Mapping[str, np.ndarray],
      hparams: Tree,
      devices: Sequence[jax.Device],
      members: int,
      host_drawn: bool = False,
  ):
    """data: 'train' and 'validation' arrays. hparams: of any run, for its types.

    host_drawn: keep the text to train on off the devices; the host draws each batch from it.
    """
    self.width = len(devices) * members
    self.members = members
    self._devices = devices
    mesh = Mesh(np.asarray(devices), ('devices',))
    self._batcher = _batcher(data, self.width) if host_drawn else None
    whole = NamedSharding(mesh, PartitionSpec())
    self._data = jax.device_put(_on_device(data, host_drawn), whole)
    self._batches = len(data['validation'])
    self._member = jax.eval_shape(programs.init, hparams)
    self._quiet, self._probed = PackedStep(programs.step), PackedStep(programs.probed_step)
    self._sharp = PackedStep(programs.sharp_step)
    state = self.empty()
    count = np.int32(0)
    self._init = _lower(programs.init, hparams).compile()
    self._insert = self._pmap(_insert, (0, None, 0), 0)(state, self._member, self._slots(0))
    # The text is everyone's, and so are validation batches; what the host draws is a member's.
    each = {'train': 0, 'validation': None} if host_drawn else None
    batch = self._batch()
    step = jax.vmap(self._quiet, (each, 0))
    self._advance = self._pmap(_repeated(step), (each, 0, None), 1)(batch, state, count)
    if programs.probed_step:
      step = jax.vmap(self._probed, (each, 0))
      self._probed_step = self._pmap(step, (each, 0), 1)(batch, state)
    if programs.sharp_step:
      step = jax.vmap(self._sharp, (each, 0))
      self._sharp_step = self._pmap(step, (each, 0), 1)(batch, state)
    evaluate = jax.vmap(programs.evaluate, (None, 0, None))
    self._evaluate = self._pmap(evaluate, (None, 0, None))(self._data, state, count)

  def _pmap(self, function, in_axes, donate_argnums=()):
    """Over the devices; given example arguments, the result compiles."""
    mapped = jax.pmap(
        function,
        axis_name='devices',
        in_axes=in_axes,
        devices=self._devices,
        donate_argnums=donate_argnums,
    )
    return lambda *arguments: mapped.lower(*arguments).compile()

  def init(self, hparams):
    return jax.device_get(self._init(hparams))

  def empty(self):
    return _zeros(self._member, (len(self._devices), self.members))

  def insert(self, state, slot, member):
    if self._batcher:
      self._batcher.enter(slot, member)
    return self._insert(state, member, self._slots(slot))

  def _slots(self, slot: int) -> np.ndarray:
    """[devices, members]: True for the slot."""
    return (np.arange(self.width) == slot).reshape(len(self._devices), self.members)

  def extract(self, state):
    members = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), jax.device_get(state))
    leaves, structure = jax.tree.flatten(members)
    return [structure.unflatten(member) for member in zip(*leaves)]

  def advance(self, state, steps):
    calls, repeats = (steps, 1) if self._batcher else (1, steps)
    for _ in range(calls):
      state, values = self._advance(self._batch(), state, np.int32(repeats))
    return state, PendingMetrics(self._quiet.names, values)

  def probe(self, state, sharp=False):
    state, values = (self._sharp_step if sharp else self._probed_step)(self._batch(), state)
    return state, PendingMetrics((self._sharp if sharp else self._probed).names, values)

  def evaluate(self, state, interrupted=never):
    batches = range(self._batches)
    losses = (self._evaluate(self._data, state, np.int32(i)) for i in batches)
    return means(losses, interrupted)

  def memory(self) -> int:
    """Bytes that the fullest of its executables takes on a device, by XLA's account."""
    executables = [self._advance, self._evaluate]
    for name in ('_probed_step', '_sharp_step'):
      if hasattr(self, name):
        executables.append(getattr(self, name))
    found = [executable.memory_analysis() for executable in executables]
    return max(
        stats.argument_size_in_bytes
        + stats.output_size_in_bytes
        - stats.alias_size_in_bytes
        + stats.temp_size_in_bytes
        for stats in found
    )

  def _batch(self) -> Data:
    """What the next step takes: the text, or its batches as the host draws them."""
    if not self._batcher:
      return self._data
    rows = self._batcher.draw()
    lead = len(self._devices), self.members
    return self._data | {'train': rows.reshape(*lead, *rows.shape[1:])}


class PackedStep:
  """A step whose metrics leave as one vector; `names` says of what, once it was traced."""

  def __init__(self, step: Callable[[Data, Tree], tuple[Tree, Metrics]]):
    self._function = step
    self.names: tuple[str, ...] = ()

  def __call__(self, data: Data, state: Tree) -> tuple[Tree, jax.Array]:
    state, metrics = self._function(data, state)
    self.names = tuple(metrics)
    return state, jnp.stack([value.astype(jnp.float32) for value in metrics.values()])


def _repeated(step):
  """A loop over steps on the device; the number of steps is an argument of the executable."""

  def repeated(data, state, steps):
    first = jax.eval_shape(step, data, state)[1]
    metrics = jnp.zeros(first.shape, first.dtype)
    return jax.lax.fori_loop(0, steps, lambda _, carry: step(data, carry[0]), (state, metrics))

  return repeated


def _insert(state, member, here_M):
  """`member` where `here_M` is True, `state` elsewhere."""

  def choose(all_MxX, one_X):
    mask = here_M.reshape(-1, *(1,) * one_X.ndim)
    return jnp.where(mask, one_X, all_MxX)

  return jax.tree.map(choose, state, member)


def _batcher(data: Mapping[str, np.ndarray], slots: int) -> HostBatcher:
  _, batch_size, length = data['validation'].shape
  return HostBatcher(data['train'], batch_size, length - 1, slots)


def _on_device(data: Mapping[str, np.ndarray], host_drawn: bool) -> dict[str, np.ndarray]:
  kept = [side for side in data if side != 'train' or not host_drawn]
  return {side: np.asarray(data[side]) for side in kept}


def _lower(function, *arguments, **options):
  return jax.jit(function, **options).lower(*arguments)


def _zeros(abstract: Tree, lead: tuple[int, ...] = ()) -> Tree:
  return jax.tree.map(lambda a: np.zeros(lead + a.shape, a.dtype), abstract)


def means(losses: Iterable[jax.Array], interrupted: Interrupted) -> list[float] | None:
  """Of the batches' losses, each of one run or of all slots, in float64; None if interrupted.

  A batch is computed while the one before it is waited for, so an interruption waits for two.
  """
  found: list[jax.Array] = []
  for loss in losses:
    if found:
      found[-1].block_until_ready()
    if interrupted():
      return None
    found.append(loss)
  each = np.reshape(jax.device_get(found), (len(found), -1)).T  # [slots, batches]
  # One slot after another: how a sum over an axis rounds may depend on how many slots there are.
  return [float(np.mean(of_slot, dtype=np.float64)) for of_slot in each]
