"""The interface between the training loop and its devices.

A layout compiles the pure functions of one run (`Programs` of stability/step/train_step.py) for a
set of devices and trains the runs in its `width` slots in step; a slot holds one run or is empty.
What a slot computes depends neither on its number nor on the other slots.

  SingleDeviceLayout   one run on one device, a Python loop over steps: fastest on a CPU
  VmappedLayout        pmap over devices of vmap over runs, a loop over steps on the device
  DataParallelLayout   one run, replicated on all devices (stability/devices/multi_device.py)
  ShardedLayout        one run, split over all devices
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from stability.data.host_batcher import HostBatcher

Tree = Any  # of arrays
# A step takes {'text': [tokens]} and finds its batch in it, or {'batch': [B, T + 1]}; evaluate
# takes {'validation': [batches, B, T + 1]}.
Data = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Step = Callable[..., tuple[Tree, Metrics]]  # (data, state, axis=None): the mapped axis, if any
Interrupted = Callable[[], bool]  # polled; True: abandon what is under way


def never() -> bool:
  """Never interrupts."""
  return False


@dataclasses.dataclass(frozen=True)
class PendingMetrics:
  """Metrics of a step that may still be running: one array, fetched in one transfer."""

  names: Sequence[str]
  values: jax.Array  # [names], or [devices, members, names]

  def wait(self) -> None:
    """Returns once the step is done."""
    self.values.block_until_ready()

  def read(self) -> list[dict[str, float]]:
    """The metrics of each slot; waits for the step."""
    rows = np.asarray(self.values).reshape(-1, len(self.names))
    return [dict(zip(self.names, map(float, row))) for row in rows]


class Layout(Protocol):
  """What the training loop asks of its devices."""

  width: int  # slots
  members: int  # slots on each device

  def init(self, hparams: Mapping[str, np.generic]) -> Tree:
    """The state of a new run, in the form that `insert` takes."""

  def empty(self) -> Tree:
    """The state of all slots with no run in any of them."""

  def insert(self, state: Tree, slot: int, run: Tree) -> Tree:
    """The state with a run, as `init` or `extract` returns it, in one slot."""

  def extract(self, state: Tree) -> list[Tree]:
    """The state of the run in each slot, on the host."""

  def step(self, state: Tree, kind: str, steps: int = 1) -> tuple[Tree, PendingMetrics]:
    """Makes steps of one kind (`Programs.steps`) in all slots; returns the metrics of the last.

    `state` is donated: the caller must not use it again.
    """

  def evaluate(self, state: Tree, interrupted: Interrupted = never) -> list[float] | None:
    """The validation loss of each slot, or None if interrupted."""


class PackedStep:
  """A step that returns its metrics as one vector; `names` labels them once it is traced."""

  def __init__(self, step: Step):
    self._step = step
    self.names: tuple[str, ...] = ()

  def __call__(self, data: Data, state: Tree) -> tuple[Tree, jax.Array]:
    state, metrics = self._step(data, state)
    self.names = tuple(metrics)
    return state, jnp.stack([value.astype(jnp.float32) for value in metrics.values()])


def pack(steps: Mapping[str, Step]) -> dict[str, PackedStep]:
  """The steps by kind, those that take longest to compile first."""
  return {kind: PackedStep(steps[kind]) for kind in ('sharp', 'probed', 'quiet') if kind in steps}


def host_batcher(data: Mapping[str, np.ndarray], slots: int) -> HostBatcher:
  """Draws batches of the shape of the validation batches from data['text']."""
  _, batch_size, length = data['validation'].shape
  return HostBatcher(data['text'], batch_size, length - 1, slots)


def zeros(abstract: Tree, lead: tuple[int, ...] = ()) -> Tree:
  """Arrays of zeros with the types of `abstract` and leading axes in front of its shapes."""
  return jax.tree.map(lambda a: np.zeros(lead + a.shape, a.dtype), abstract)


def mean_losses(losses: Iterable[jax.Array], interrupted: Interrupted) -> list[float] | None:
  """The mean over batches of each slot's loss, in float64; None if interrupted.

  One batch is computed while the one before it is waited for, so that an interruption waits for
  two batches at most.

  Args:
    losses: of each batch, a scalar or an array with one loss per slot.
    interrupted: polled once per batch.
  """
  found: list[jax.Array] = []
  for loss in losses:
    if found:
      found[-1].block_until_ready()
    if interrupted():
      return None
    found.append(loss)
  by_slot = np.reshape(jax.device_get(found), (len(found), -1)).T  # [slots, batches]
  # Slot by slot: the rounding of a sum over one axis may depend on the length of the other.
  return [float(np.mean(of_slot, dtype=np.float64)) for of_slot in by_slot]
