"""From a static config to its layout: placed by arithmetic, compiled, smaller where that fails."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils

from stability import config as config_lib
from stability.data import batches, tokens
from stability.devices import layouts, multi_device, placement
from stability.errors import BadInput
from stability.optim import optimizers
from stability.step import train_step
from stability.storage.sweeps import Sweep

MULTI_DEVICE = {
    'data_parallel': multi_device.DataParallelLayout,
    'sharded': multi_device.ShardedLayout,
}

# Larger text stays on the host: placement.USABLE leaves a tenth of the memory beside a step's own.
TEXT_SHARE = 0.05


def make_layout(
    workdir: Path,
    sweep: Sweep,
    static: ml_collections.FrozenConfigDict,
    hparams: optimizers.Hyperparameters,
    most_members: int | None = None,
    members_chosen: Callable[[int], None] = lambda members: None,
) -> layouts.Layout:
  """The layout that stability/devices/placement.py chooses, its executables compiled.

  Args:
    workdir: of the sweep, which has the text.
    sweep: sweep.json.
    static: what the runs to be trained share.
    hparams: of any of them, for its types.
    most_members: on a device, as more are known to run out of memory; None: any number.
    members_chosen: told how many are tried, before anything can go wrong with them.
  """
  text = tokens.open_tokens(workdir / sweep.data['path'])
  data = {'train': text.train, 'validation': _validation(text, static)}
  vocabulary_size = text.meta['vocabulary_size']
  together = jax.process_count() > 1  # one run on the devices of several processes
  devices = jax.devices() if together else jax.local_devices()
  memory = _device_memory()
  runs = _runs(sweep, static, most=len(devices) * placement.MOST_MEMBERS)
  place = placement.choose(static, len(devices), memory, devices[0].platform, runs, vocabulary_size)
  if together and place.layout not in MULTI_DEVICE:
    raise BadInput(
        f'config.parallel.layout={static.parallel.layout}: must be one of {", ".join(MULTI_DEVICE)}'
        f' on {jax.process_count()} processes'
    )
  programs = train_step.programs(
      static,
      vocabulary_size,
      microbatches=place.microbatches,
      remat=place.remat == 'block',
      fused=devices[0].platform == 'gpu',
  )
  if place.layout in MULTI_DEVICE:
    return MULTI_DEVICE[place.layout](programs, data, hparams, devices)
  host_drawn = len(text.train) > batches.MAX_DEVICE_TOKENS or (
      memory is not None and text.train.nbytes > TEXT_SHARE * memory
  )
  if place.layout == 'single':
    return layouts.SingleDeviceLayout(programs, data, hparams, host_drawn)
  devices, members = devices[:runs], min(place.members, most_members or place.members)
  while True:
    members_chosen(members)
    layout = None
    try:
      layout = layouts.VmappedLayout(programs, data, hparams, devices, members, host_drawn)
    except Exception as error:
      if members == 1 or not is_out_of_memory(error):
        raise
    fixed = memory is None or members == 1 or static.parallel.members
    if layout is not None and (fixed or layout.memory() <= memory):
      return layout
    members = math.ceil(members / 2)  # the arithmetic was wrong: XLA takes more


def is_out_of_memory(error: BaseException | None) -> bool:
  """Whether a device's memory, or the host's, did not suffice."""
  if isinstance(error, jax.errors.JaxRuntimeError):
    return 'RESOURCE_EXHAUSTED' in str(error)
  return isinstance(error, MemoryError)


def _runs(sweep: Sweep, static: ml_collections.FrozenConfigDict, most: int) -> int:
  """How many runs of the sweep share the static config, counted up to `most`."""
  fields = config_lib.flatten(static.to_dict())
  sharing = (c for c in sweep.runs.values() if dict(config_lib.static_fields(c)) == fields)
  return sum(1 for _ in itertools.islice(sharing, most))


def _device_memory() -> float | None:
  """Bytes that a process may take of a device, where it says so; the same on all processes."""
  stats = jax.local_devices()[0].memory_stats() or {}
  memory = float(stats.get('bytes_limit', 0))
  if jax.process_count() > 1:
    memory = float(multihost_utils.broadcast_one_to_all(np.float32(memory)))
  return memory or None


def _validation(text: tokens.Tokens, static: ml_collections.FrozenConfigDict) -> np.ndarray:
  """The fixed validation batches, [batches, batch_size, sequence_length + 1]."""
  c = static.data
  starts = batches.validation_starts(
      c.validation_batches * c.batch_size, c.sequence_length, len(text.validation)
  )
  windows = batches.gather(text.validation, starts, c.sequence_length)
  return windows.reshape(c.validation_batches, c.batch_size, c.sequence_length + 1)
