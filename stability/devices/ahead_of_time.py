"""Lowers the programs of a layout for devices that need not be here."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from stability.data import tokens
from stability.devices import vmapped
from stability.devices.layout import pack
from stability.devices.multi_device import Replicated, Split
from stability.devices.placement import Placement
from stability.step import train_step
from stability.types import Static

TEXT_TOKENS = 2**20  # length of the text that a step is lowered for


def lower(
    static: Static,
    hparams: dict[str, np.generic],
    vocabulary_size: int,
    placement: Placement,
    devices: Sequence[Any],
    platform: str,
    kinds: Collection[str] = ('sharp', 'probed', 'quiet'),
) -> dict[str, jax.stages.Lowered]:
  """The programs of a placement that run at every step: the steps by kind, and `evaluate`.

  Args:
    static: the static config.
    hparams: those of any run; only their types matter.
    vocabulary_size: number of different tokens.
    placement: of the runs on the devices.
    devices: all of them, or of a population's, as many as it uses.
    platform: of the devices, as make_layout.platform names it.
    kinds: of steps; those that the config does not use are left out.
  """
  programs = train_step.programs(
      static,
      vocabulary_size,
      microbatches=placement.microbatches,
      remat=placement.remat == 'block',
      fused=platform == 'gpu',
  )
  steps = {kind: step for kind, step in programs.steps.items() if kind in kinds}
  run = jax.eval_shape(programs.init, hparams)
  data = static.data
  if placement.layout in ('data_parallel', 'sharded'):
    spread = (Split if placement.layout == 'sharded' else Replicated)(devices)
    rows = jax.ShapeDtypeStruct(
        (len(devices), data.batch_size // len(devices), data.sequence_length + 1),
        np.int32,
        sharding=spread.split,
    )
    state = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=spread.sharding(a)), run
    )
    return spread.lower(spread.pack(steps), programs.evaluate, rows, state)
  token = tokens.smallest_dtype(vocabulary_size)
  text = {'text': jax.ShapeDtypeStruct((_text_tokens(static),), token)}
  shape = data.validation_batches, data.batch_size, data.sequence_length + 1
  validation = {'validation': jax.ShapeDtypeStruct(shape, token)}
  steps = pack(steps)
  if placement.layout == 'population':
    lowered = vmapped.lower(
        steps, programs.evaluate, run, text, validation, devices, placement.members
    )
    return {name: program for name, program in lowered.items() if name != 'insert'}
  here = SingleDeviceSharding(devices[0])
  text, validation, run = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), (text, validation, run)
  )
  lowered = {kind: jax.jit(step, donate_argnums=1).lower(text, run) for kind, step in steps.items()}
  lowered['evaluate'] = jax.jit(programs.evaluate).lower(validation, run, np.int32(0))
  return lowered


def text_bytes(static: Static, vocabulary_size: int) -> int:
  """Size of the text that the steps of a single run or a population are lowered for."""
  return _text_tokens(static) * np.dtype(tokens.smallest_dtype(vocabulary_size)).itemsize


def _text_tokens(static: Static) -> int:
  return max(TEXT_TOKENS, 2 * (static.data.sequence_length + 1))
