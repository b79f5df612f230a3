"""The slots of a layout: the runs in them and their joint state on the devices."""

from typing import Any

from stability.devices.layout import Interrupted, Layout, PendingMetrics
from stability.trainer.run import Run


class Slots:
  """The runs that a layout trains in lockstep."""

  def __init__(self, layout: Layout, phase_steps: int):
    """Creates empty slots.

    Args:
      layout: holds the states and makes the steps.
      phase_steps: the interval in steps of the probes, which all runs in the slots must take at the
        same time; 0: no probes.
    """
    self._layout = layout
    self._phase_steps = phase_steps
    self._state = layout.empty()
    self.runs: dict[int, Run] = {}  # by slot

  @property
  def is_full(self) -> bool:
    """Whether every slot holds a run."""
    return len(self.runs) == self._layout.width

  def is_in_phase(self, run: Run) -> bool:
    """Whether the probes of a run fall on the same steps as those of the runs in the slots.

    A step is probed in all slots at once. The probed executable may round differently from the
    quiet one, so if a run were probed because its neighbour is due, its numbers would depend on
    that neighbour.
    """
    every = self._phase_steps
    return not every or all((run.step - other.step) % every == 0 for other in self.runs.values())

  def add(self, run: Run, state: Any) -> None:
    """Puts a run into a free slot."""
    slot = next(s for s in range(self._layout.width) if s not in self.runs)
    self.replace(slot, state)
    self.runs[slot] = run

  def replace(self, slot: int, state: Any) -> None:
    """Sets the state of one slot."""
    self._state = self._layout.insert(self._state, slot, state)

  def states(self) -> list[Any]:
    """The state of each slot, on the host."""
    return self._layout.extract(self._state)

  def step(self, kind: str, steps: int = 1) -> PendingMetrics:
    """Makes steps in all slots; returns the metrics of the last step.

    `kind` is quiet, probed or sharp: see step/train_step.py.
    """
    self._state, metrics = self._layout.step(self._state, kind, steps)
    return metrics

  def evaluate(self, interrupted: Interrupted) -> list[float] | None:
    """The validation loss of each slot, or None if interrupted."""
    return self._layout.evaluate(self._state, interrupted)

  def clear(self) -> None:
    """Empties all slots and creates a new state, as a failure may have destroyed the old one."""
    self.runs.clear()
    self._state = self._layout.empty()

  def release(self) -> None:
    """Drops the runs and the memory of their state; the slots must not be used again."""
    self.runs.clear()
    self._state = None
