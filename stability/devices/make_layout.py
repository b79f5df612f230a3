"""Makes the layout of a static config: places runs by arithmetic, compiles, shrinks if needed."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from stability.data import batches, tokens
from stability.devices import placement
from stability.devices.layout import Layout
from stability.devices.multi_device import DataParallelLayout, ShardedLayout
from stability.devices.single_device import SingleDeviceLayout
from stability.devices.vmapped import VmappedLayout
from stability.errors import BadInput
from stability.optim import optimizers
from stability.step import train_step
from stability.storage.sweeps import Sweep
from stability.types import Static

LAYOUTS = {
    'single': SingleDeviceLayout,
    'population': VmappedLayout,
    'data_parallel': DataParallelLayout,
    'sharded': ShardedLayout,
}
MULTI_DEVICE = ('data_parallel', 'sharded')

# A text that takes more of a device's memory stays on the host. placement.USABLE leaves a tenth of
# the memory to the text and other uses beside the step.
TEXT_SHARE = 0.05


def make_layout(
    workdir: Path,
    sweep: Sweep,
    static: Static,
    hparams: optimizers.HParams,
    runs: int,
    max_members: int | None = None,
    on_members: Callable[[int], None] = lambda members: None,
    layouts: Mapping[str, Callable[..., Layout]] = LAYOUTS,
) -> Layout:
  """The layout that stability/devices/placement.py chooses, its programs compiled.

  Args:
    workdir: the folder of the sweep, which holds the text.
    sweep: the contents of its sweep.json.
    static: the static config that the runs to train share.
    hparams: those of any of these runs; only their types matter.
    runs: number of runs to train; a population has no more slots on a device than they need.
    max_members: limit on the runs per device, for when more ran out of memory; None: no limit.
    on_members: called with a number of runs per device before each attempt to compile.
    layouts: the layouts by their names in config.parallel.layout.

  Raises:
    BadInput: the placement that the config states is impossible, or nothing fits.
  """
  text = tokens.open_tokens(workdir / sweep.data['path'])
  data = {'text': text.train, 'validation': _validation(text, static)}
  vocabulary_size = text.meta['vocabulary_size']
  is_multiprocess = jax.process_count() > 1
  devices = jax.devices() if is_multiprocess else jax.local_devices()
  memory = _device_memory()
  kind = platform(devices[0])
  place = placement.choose(static, len(devices), memory, kind, runs, vocabulary_size)
  if is_multiprocess and place.layout not in MULTI_DEVICE:
    raise BadInput(
        f'config.parallel.layout={static.parallel.layout}: must be one of {", ".join(MULTI_DEVICE)}'
        f' on {jax.process_count()} processes'
    )
  programs = train_step.programs(
      static,
      vocabulary_size,
      microbatches=place.microbatches,
      remat=place.remat == 'block',
      fused=kind == 'gpu',
  )
  make = layouts[place.layout]
  if place.layout != 'population':
    on_members(1)
  if place.layout in MULTI_DEVICE:
    return make(programs, data, hparams, devices)
  host_drawn = len(text.train) > batches.MAX_DEVICE_TOKENS or (
      memory is not None and text.train.nbytes > TEXT_SHARE * memory
  )
  if place.layout == 'single':
    return make(programs, data, hparams, host_drawn)
  devices, members = devices[:runs], min(place.members, max_members or place.members)
  while True:
    on_members(members)
    layout = None
    try:
      layout = make(programs, data, hparams, devices, members, host_drawn)
    except Exception as error:
      if members == 1 or not is_out_of_memory(error):
        raise
    is_fixed = memory is None or members == 1 or static.parallel.members
    if layout is not None and (is_fixed or layout.memory() <= memory):
      return layout
    members = math.ceil(members / 2)  # XLA needs more memory than estimated


def platform(device: jax.Device) -> str:
  """The kind of a device: cpu, tpu, tpu_v5e, gpu (with the attention of cuDNN) or other_gpu.

  cuDNN's attention needs an NVIDIA GPU of the Ampere generation or later.
  """
  if device.platform == 'tpu':
    return 'tpu_v5e' if device.device_kind == 'TPU v5 lite' else 'tpu'
  if device.platform == 'gpu':
    is_rocm = 'rocm' in device.client.platform_version.lower()
    return 'other_gpu' if is_rocm or float(device.compute_capability) < 8 else 'gpu'
  return device.platform


def has_cudnn(device: jax.Device) -> bool:
  """Whether a device has the fused attention of cuDNN."""
  return platform(device) == 'gpu'


def is_out_of_memory(error: BaseException | None) -> bool:
  """Whether an error means that the memory of a device or of the host was exhausted."""
  if isinstance(error, jax.errors.JaxRuntimeError):
    return 'RESOURCE_EXHAUSTED' in str(error)
  return isinstance(error, MemoryError)


def _device_memory() -> float | None:
  """Bytes that may be used on every device of every process; None if unknown."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  memory = min(float(each.get('bytes_limit', 0)) for each in stats)
  if jax.process_count() > 1:
    memory = float(np.min(multihost_utils.process_allgather(np.float32(memory))))
  return memory or None


def _validation(text: tokens.Tokens, static: Static) -> np.ndarray:
  """The fixed validation batches, [batches, batch_size, sequence_length + 1]."""
  c = static.data
  starts = batches.validation_starts(
      c.validation_batches * c.batch_size, c.sequence_length, len(text.validation)
  )
  windows = batches.gather(text.validation, starts, c.sequence_length)
  return windows.reshape(c.validation_batches, c.batch_size, c.sequence_length + 1)
