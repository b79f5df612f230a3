"""Batches drawn on the host, for text that a device cannot hold."""

from typing import Any

import numpy as np

from stability.data import batches


class HostBatcher:
  """Draws the batches of the runs in a layout's slots, the same ones that a device would draw."""

  def __init__(self, text: np.ndarray, batch_size: int, sequence_length: int, slots: int):
    """Prepares empty slots.

    Args:
      text: [tokens], possibly memory-mapped.
      batch_size: windows in a batch.
      sequence_length: tokens predicted per window.
      slots: number of slots.
    """
    self._text = text
    self._sizes = dict(batch_size=batch_size, sequence_length=sequence_length)
    self._seed = [0] * slots
    self._data_step = [0] * slots  # of the next step, with skipped batches counted
    self._last_data_step = [0] * slots

  def enter(self, slot: int, state: dict[str, Any]) -> None:
    """Assigns a slot to the run with this state; its batches continue from its current step."""
    self._seed[slot] = int(state['hparams']['data.seed'])
    skipped = int(state['skipped'])
    self._data_step[slot] = int(state['step']) + skipped
    self._last_data_step[slot] = int(state['hparams']['schedule.steps']) - 1 + skipped

  def draw(self) -> np.ndarray:
    """The batch of every slot's next step: int32 [slots, batch_size, sequence_length + 1].

    A finished run gets its last batch again, which its step ignores.
    """
    steps = map(min, self._data_step, self._last_data_step)
    keys = list(zip(self._seed, steps))
    drawn = {key: self._batch(*key) for key in set(keys)}  # most runs share a seed and a step
    self._data_step = [step + 1 for step in self._data_step]
    return np.stack([drawn[key] for key in keys])

  def _batch(self, seed: int, step: int) -> np.ndarray:
    starts_B = batches.window_starts(np, seed, step, tokens=len(self._text), **self._sizes)
    return batches.gather(self._text, starts_B, self._sizes['sequence_length'])
