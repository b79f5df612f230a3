"""The interface between the training loop and its devices.

A layout compiles the pure functions of one run (`Programs` of stability/step/train_step.py) for a
set of devices. It has `width` slots, each of which holds one run or is empty, and trains the runs
in all slots in lockstep. What a slot computes depends neither on its number nor on other slots.

  SingleDeviceLayout   one run on one device, a Python loop over steps; fastest on a CPU
  VmappedLayout        pmap over devices of vmap over runs, a loop over steps on the device
  DataParallelLayout   one run, replicated on all devices (stability/devices/multi_device.py)
  ShardedLayout        one run, split over all devices
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from stability.data.host_batcher import HostBatcher
from stability.types import Data, Metrics, Tree

# A step takes {'text': [tokens]}, from which it draws its batch, or {'batch': [B, T + 1]};
# `evaluate` takes {'validation': [batches, B, T + 1]}.
# (data, state, axis=None) -> state, metrics, with the name of the mapped axis, if any.
Step = Callable[..., tuple[Tree, Metrics]]
Interrupted = Callable[[], bool]  # polled; True: abandon the current computation


def never() -> bool:
  """An `Interrupted` that never interrupts."""
  return False


@dataclasses.dataclass(frozen=True)
class PendingMetrics:
  """Metrics of a step that may still be running, in one array, fetched in one transfer."""

  names: Sequence[str]
  values: jax.Array  # [names], or [devices, members, names]

  def wait(self) -> None:
    """Waits until the step is done."""
    self.values.block_until_ready()

  def read(self) -> list[dict[str, float]]:
    """The metrics of each slot; waits for the step."""
    rows = np.asarray(self.values).reshape(-1, len(self.names))
    return [dict(zip(self.names, map(float, row))) for row in rows]


class Layout(Protocol):
  """What the training loop requires of a layout."""

  width: int  # slots
  members: int  # slots on each device

  def init(
      self, hparams: Mapping[str, np.generic], parent: Mapping[str, Tree] | None = None
  ) -> Tree:
    """The state of a new run, in the form that `insert` takes; parent: see train_step.init."""

  def empty(self) -> Tree:
    """The state of all slots while every slot is empty."""

  def insert(self, state: Tree, slot: int, run: Tree) -> Tree:
    """The state after putting a run, as returned by `init` or `extract`, into one slot."""

  def extract(self, state: Tree) -> list[Tree]:
    """The state of the run in each slot, on the host."""

  def step(self, state: Tree, kind: str, steps: int = 1) -> tuple[Tree, PendingMetrics]:
    """Makes steps of one kind, a key of `Programs.steps`, in all slots.

    Returns the new state and the metrics of the last step. `state` is donated: the caller must not
    use it again.
    """

  def evaluate(self, state: Tree, interrupted: Interrupted = never) -> list[float] | None:
    """The validation loss of each slot, or None if interrupted."""


class PackedStep:
  """A step that returns its metrics as one vector; tracing it sets their `names`."""

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
  """A HostBatcher of data['text'], whose batches have the shape of the validation batches."""
  _, batch_size, length = data['validation'].shape
  return HostBatcher(data['text'], batch_size, length - 1, slots)


def with_axes(abstract: Tree, lead: tuple[int, ...]) -> Tree:
  """The shapes of `abstract`, preceded by the axes `lead`."""
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*lead, *a.shape), a.dtype), abstract)


def zeros(abstract: Tree, lead: tuple[int, ...] = ()) -> Tree:
  """Zeros with the shapes and types of `abstract`, preceded by the axes `lead`."""
  return jax.tree.map(lambda a: np.zeros(lead + a.shape, a.dtype), abstract)


def mean_losses(losses: Iterable[jax.Array], interrupted: Interrupted) -> list[float] | None:
  """The mean over batches of each slot's loss, in float64; None if interrupted.

  While waiting for a batch, it has the next one computed, so an interruption waits for two batches
  at most.

  Args:
    losses: the loss of each batch, a scalar or an array with one loss per slot.
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
  # Slot by slot, since the rounding of a sum over one axis may depend on the length of the other.
  return [float(np.mean(of_slot, dtype=np.float64)) for of_slot in by_slot]
