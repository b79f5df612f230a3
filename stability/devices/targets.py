"""Accelerators to compile for on a machine that has none of them.

The compilers of NVIDIA GPUs and of TPUs run without a device: they take a description of one. What
they cannot do is run a program, or tune it by trying variants. The descriptions of GPUs have the
fields that XLA reads from a device. Rates are those of the data sheets (`source`), which round the
memory; `memory_bytes` is what drivers report.

Needs one of the extras aot-gpu and aot-tpu.
"""

import dataclasses
import importlib.util
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from stability.errors import BadInput

GB = 1e9
TFLOPS = 1e12
# Share of a GPU's memory that jax takes, and the variables that set another.
_SHARE = 0.75
_SHARE_VARIABLES = ('XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION')
# Time from one kernel's start to the next one's, if both are short: the usual 3 to 5 microseconds
# of a CUDA launch. A TPU runs a whole program at once.
LAUNCH_SECONDS = {'gpu': 4e-6, 'tpu': 0.0}


@dataclasses.dataclass(frozen=True)
class Target:
  """One kind of accelerator. Rates are peaks, dense, per device."""

  platform: str  # gpu | tpu
  memory_bytes: float
  bytes_per_second: float  # of its memory
  link_bytes_per_second: float  # to other devices, in one direction
  bfloat16_flops: float  # per second
  float32_flops: float  # at model.matmul_precision=highest
  hardware_float32_flops: float  # at model.matmul_precision=hardware
  source: str
  topology: str  # default: number of GPUs, or shape of the TPU slice
  planned_as: str  # the platform by which placement.py plans for it
  description: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of a GPU, for XLA

  def flops_per_second(self, dtype: str, matmul_precision: str) -> float:
    """Peak rate of matrix products in FLOPs per second."""
    if dtype == 'bfloat16':
      return self.bfloat16_flops
    if matmul_precision == 'hardware':
      return self.hardware_float32_flops
    return self.float32_flops

  def usable_bytes(self, environment: Mapping[str, str]) -> float:
    """Bytes of a device's memory that runs get; BadInput if the environment has a bad share."""
    if self.platform != 'gpu':
      return self.memory_bytes
    for name in _SHARE_VARIABLES:
      if given := environment.get(name):
        try:
          share = float(given)
        except ValueError:
          share = math.nan
        if not 0 < share < math.inf:
          raise BadInput(f'{name}={given}: must be a number above 0')
        return share * self.memory_bytes
    return _SHARE * self.memory_bytes


def _gpu(
    name: str,
    *,
    cores: int,
    fpus_per_core: int,
    shared_kib: int,
    l2_mib: int,
    clock_ghz: float,
    capability: int,
    memory_bytes: int,
    bytes_per_second: float,
    **rates: Any,
) -> Target:
  """An NVIDIA GPU; what XLA is told has the fields of its GpuDeviceInfoProto."""
  shared = 1024 * shared_kib
  info = {
      'threads_per_block_limit': 1024,
      'threads_per_warp': 32,
      'shared_memory_per_block': 49152,
      'shared_memory_per_core': shared,
      'threads_per_core_limit': 2048,
      'core_count': cores,
      'fpus_per_core': fpus_per_core,
      'block_dim_limit_x': 2147483647,
      'block_dim_limit_y': 65535,
      'block_dim_limit_z': 65535,
      'memory_bandwidth': int(bytes_per_second),
      'l2_cache_size': 2**20 * l2_mib,
      'clock_rate_ghz': clock_ghz,
      'device_memory_size': memory_bytes,
      'shared_memory_per_block_optin': shared - 1024,
      'cuda_compute_capability': {'major': capability, 'minor': 0},
      'registers_per_core_limit': 65536,
      'registers_per_block_limit': 65536,
  }
  description = {
      'gpu_device_info': info,
      'platform_name': 'CUDA',
      'dnn_version_info': {'major': 9, 'minor': 8},
      'runtime_version': {'major': 13},
      'device_description_str': name,
  }
  return Target(
      platform='gpu',
      planned_as='gpu',
      memory_bytes=memory_bytes,
      bytes_per_second=bytes_per_second,
      topology='1',
      description=description,
      **rates,
  )


def _tpu(
    name: str,
    *,
    memory_bytes: float,
    bytes_per_second: float,
    link_bytes_per_second: float,
    bfloat16_flops: float,
    topology: str = '2x2',
) -> Target:
  """A TPU, on which a float32 product of full precision takes six passes of bfloat16 products."""
  return Target(
      platform='tpu',
      planned_as='tpu_v5e' if name == 'v5e' else 'tpu',
      memory_bytes=memory_bytes,
      bytes_per_second=bytes_per_second,
      link_bytes_per_second=link_bytes_per_second,
      bfloat16_flops=bfloat16_flops,
      float32_flops=bfloat16_flops / 6,
      hardware_float32_flops=bfloat16_flops,
      source=f'https://cloud.google.com/tpu/docs/{name}',
      topology=topology,
  )


_HOPPER = {
    'cores': 132,
    'fpus_per_core': 128,
    'shared_kib': 228,
    'l2_mib': 50,
    'clock_ghz': 1.98,
    'capability': 9,
    'link_bytes_per_second': 450e9,
    'bfloat16_flops': 989 * TFLOPS,
    'float32_flops': 67 * TFLOPS,
    'hardware_float32_flops': 495 * TFLOPS,
}
TARGETS = {
    'h100': _gpu(
        'NVIDIA H100 80GB HBM3',
        memory_bytes=84_978_761_728,
        bytes_per_second=3.35e12,
        source='https://www.nvidia.com/en-us/data-center/h100/ (SXM)',
        **_HOPPER,
    ),
    'h200': _gpu(
        'NVIDIA H200',
        memory_bytes=150_000_000_000,
        bytes_per_second=4.8e12,
        source='https://www.nvidia.com/en-us/data-center/h200/ (SXM)',
        **_HOPPER,
    ),
    'a100': _gpu(
        'NVIDIA A100-SXM4-80GB',
        cores=108,
        fpus_per_core=64,
        shared_kib=164,
        l2_mib=40,
        clock_ghz=1.41,
        capability=8,
        memory_bytes=85_000_000_000,
        bytes_per_second=2.039e12,
        link_bytes_per_second=300e9,
        bfloat16_flops=312 * TFLOPS,
        float32_flops=19.5 * TFLOPS,
        hardware_float32_flops=156 * TFLOPS,
        source='https://www.nvidia.com/en-us/data-center/a100/ (80 GB SXM)',
    ),
    'v5e': _tpu(
        'v5e',
        memory_bytes=17.2 * GB,
        bytes_per_second=819e9,
        link_bytes_per_second=200e9,
        bfloat16_flops=197 * TFLOPS,
    ),
    'v5p': _tpu(
        'v5p',
        memory_bytes=102 * GB,
        bytes_per_second=2.765e12,
        link_bytes_per_second=600e9,
        bfloat16_flops=459 * TFLOPS,
        topology='2x2x1',
    ),
    'v6e': _tpu(
        'v6e',
        memory_bytes=34.4 * GB,
        bytes_per_second=1.638e12,
        link_bytes_per_second=400e9,
        bfloat16_flops=918 * TFLOPS,
    ),
}
# By platform: the module that must be there, and the extra that installs it.
_PLUGINS = {'gpu': ('jax_plugins.xla_cuda13', 'aot-gpu'), 'tpu': ('libtpu', 'aot-tpu')}
# libtpu asks the servers of a TPU machine what it is, unless it is told.
_TPU_VARIABLES = {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_MIN_LOG_LEVEL': '3',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # several processes may compile at once
}


@dataclasses.dataclass(frozen=True)
class Slice:
  """Devices to compile for: some of one kind, connected."""

  name: str  # such as h100:8
  target: Target
  topology: str


def parse(name: str) -> Slice:
  """The slice that NAME or NAME:TOPOLOGY names; raises BadInput."""
  kind, _, topology = name.partition(':')
  if kind not in TARGETS:
    raise BadInput(f'--target={name}: must be one of {", ".join(TARGETS)}')
  target = TARGETS[kind]
  topology = topology or target.topology
  sizes = topology.split('x')
  if not all(size.isdecimal() and int(size) for size in sizes):
    example = '8, a number of devices' if target.platform == 'gpu' else '4x4'
    raise BadInput(f'--target={name}: after the colon must be a topology such as {example}')
  if target.platform == 'gpu' and len(sizes) > 1:
    raise BadInput(f'--target={name}: after the colon must be a number of devices such as 8')
  return Slice(f'{kind}:{topology}', target, topology)


def of_gpu(kind: str) -> Slice | None:
  """The slice of one GPU of this kind, as jax names it; None if there is no target for it."""
  names = [name for name, target in TARGETS.items() if target.platform == 'gpu']
  return next((parse(f'{name}:1') for name in names if name.upper() in kind), None)


def check(platform: str) -> None:
  """Raises BadInput if the compiler of a platform is not installed."""
  module, extra = _PLUGINS[platform]
  try:
    is_there = importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:  # of the package that should contain it
    is_there = False
  if not is_there:
    raise BadInput(
        f"--target: the compiler for this {platform.upper()} is not installed: pip install"
        f" -e '.[{extra}]'"
    )


def devices(found: Slice) -> Sequence[Any]:
  """The devices of a slice, for a Mesh or a pmap; raises BadInput if its compiler refuses it."""
  check(found.target.platform)
  if found.target.platform == 'tpu':
    os.environ.update({k: v for k, v in _TPU_VARIABLES.items() if k not in os.environ})
  from jax.experimental import topologies

  try:
    if found.target.platform == 'gpu':
      topology = f'1x1x{found.topology}'  # slices, hosts of each, devices of each host
      description = topologies.get_topology_desc(
          platform='cuda',
          topology_name=topology,
          topology=topology,
          target_config=_text(found.target.description),
      )
    else:
      description = topologies.get_topology_desc(platform='tpu', topology_name=found.name)
  except Exception as error:  # of jaxlib, of several types
    raise BadInput(f'--target={found.name}: refused by its compiler: {reason(error)}') from error
  return description.devices


def reason(error: Exception) -> str:
  """The first line of a compiler's error, or its type if it says nothing."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _text(message: Mapping[str, Any]) -> str:
  """A message in protobuf's text format."""
  parts = []
  for name, value in message.items():
    if isinstance(value, Mapping):
      parts.append(f'{name} {{ {_text(value)} }}')
    else:
      parts.append(f'{name}: "{value}"' if isinstance(value, str) else f'{name}: {value}')
  return ' '.join(parts)
