"""Batches drawn on the host: the same integers as a device draws, for text that it cannot hold."""

from typing import Any

import numpy as np

from stability.data import batches


class Feed:
  """Draws the batches of the runs in a layout's slots."""

  def __init__(self, text: np.ndarray, batch_size: int, sequence_length: int, slots: int):
    """text: [tokens], possibly on the disk."""
    self._text = text
    self._rows = dict(batch_size=batch_size, sequence_length=sequence_length)
    self._seed = [0] * slots
    self._last = [0] * slots  # the steps that the slot's run makes at most
    self._step = [0] * slots  # the next one, counted from 0

  def enter(self, slot: int, state: dict[str, Any]) -> None:
    """A run comes into a slot with this state: draw from its step on."""
    hyper = state['hyper']
    self._seed[slot] = int(hyper['data.seed'])
    self._last[slot] = int(hyper['schedule.steps']) - 1
    self._step[slot] = int(state['step'])

  def draw(self, steps: int) -> np.ndarray:
    """The batches of all slots' next steps: int32 [slots, steps, batch_size, T + 1].

    A run that is over keeps its state whatever it is given, and is given its last batch.
    """
    found: dict[tuple[int, int], np.ndarray] = {}  # most runs of a sweep are at the same batch
    drawn = []
    for slot, seed in enumerate(self._seed):
      wanted = [(seed, min(self._step[slot] + i, self._last[slot])) for i in range(steps)]
      for key in wanted:
        if key not in found:
          found[key] = self._batch(*key)
      drawn.append(np.stack([found[key] for key in wanted]))
      self._step[slot] += steps
    return np.stack(drawn)

  def _batch(self, seed: int, step: int) -> np.ndarray:
    starts_B = batches.window_starts(np, seed, step, tokens=len(self._text), **self._rows)
    return batches.gather(self._text, starts_B, self._rows['sequence_length'])
