"""Batches drawn on the host: the same integers as a device draws, for text that it cannot hold."""

from typing import Any

import numpy as np

from stability.data import batches


class HostBatcher:
  """Draws the batches of the runs in a layout's slots."""

  def __init__(self, text: np.ndarray, batch_size: int, sequence_length: int, slots: int):
    """text: [tokens], possibly on the disk."""
    self._text = text
    self._rows = dict(batch_size=batch_size, sequence_length=sequence_length)
    self._seed = [0] * slots
    self._step = [0] * slots  # of data, the next one, counted from 0; skipped ones count
    self._last = [0] * slots  # of the slot's run

  def enter(self, slot: int, state: dict[str, Any]) -> None:
    """A run comes into a slot with this state: draw from its step on."""
    self._seed[slot] = int(state['hparams']['data.seed'])
    skipped = int(state['skipped'])
    self._step[slot] = int(state['step']) + skipped
    self._last[slot] = int(state['hparams']['schedule.steps']) - 1 + skipped

  def draw(self) -> np.ndarray:
    """The batches of all slots' next steps: int32 [slots, batch_size, T + 1].

    A run that is over keeps its state whatever it is given, and is given its last batch.
    """
    steps = map(min, self._step, self._last)
    wanted = list(zip(self._seed, steps))
    drawn = {key: self._batch(*key) for key in set(wanted)}  # most runs are at the same batch
    self._step = [step + 1 for step in self._step]
    return np.stack([drawn[key] for key in wanted])

  def _batch(self, seed: int, step: int) -> np.ndarray:
    starts_B = batches.window_starts(np, seed, step, tokens=len(self._text), **self._rows)
    return batches.gather(self._text, starts_B, self._rows['sequence_length'])
