"""What changes the numbers of a run besides its config: environment variables and the device.

REQUIRED have one right value for this package, which programs set for themselves and their workers.
All others that may change numbers are recorded with the versions (stability/storage/versions.py),
so that a resume under other settings says so and --reuse does not take over such a run.
"""

import os
import re
import shlex
from collections.abc import Mapping

# A seed stands for the same draws, and a config for the same types, whatever the environment says.
REQUIRED = {
    'JAX_ENABLE_X64': '0',
    'JAX_THREEFRY_PARTITIONABLE': '1',
    'JAX_DEFAULT_PRNG_IMPL': 'threefry2x32',
    'JAX_ENABLE_CUSTOM_PRNG': '0',
    'JAX_LEGACY_PRNG_KEY': 'allow',
    'JAX_RANDOM_SEED_OFFSET': '0',
    'JAX_NUMPY_DTYPE_PROMOTION': 'standard',
    'JAX_NUMPY_RANK_PROMOTION': 'allow',
    'FLAX_FIX_RNG_SEPARATOR': '0',
    'FLAX_PRESERVE_ADOPTED_NAMES': '0',
    'FLAX_RETURN_FROZENDICT': '0',
}

# Flags that the launcher adds to XLA_FLAGS on a CPU (launch/common/environment.py). XLA's YNN
# kernels speed up matrix products at widths from 32. LLVM's -O2 compiles faster than -O3 and gives
# equally fast steps (jaxlib 0.10.2; BUILD_NOTES.md).
CPU_FLAGS = (
    '--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT'
    ' --xla_backend_optimization_level=2'
)

# Flags that it adds on an NVIDIA GPU. Otherwise XLA adds up a scatter, such as the gradient of the
# embedding, in the order in which threads arrive, and chooses the kernels of matrix products by
# timing them, so that another process may round differently. Without timing, it takes the first
# kernel that compiles, which is Triton's with the smallest tile, and slow, unless products are left
# to cuBLAS (compiled for an H100 by jaxlib 0.10.2).
GPU_FLAGS = '--xla_gpu_deterministic_ops=true --xla_gpu_enable_triton_gemm=false'

# Holds those of these flags that a worker runs without, because a trial of them failed.
LEFT_OUT = 'STABILITY_XLA_FLAGS_LEFT_OUT'

# Settings that may change numbers. Of JAX and Flax these are all but the ones known not to, so that
# a new setting is recorded.
_RECORDED = re.compile(
    f'JAX_|FLAX_|XLA_FLAGS$|{LEFT_OUT}$|LIBTPU_INIT_ARGS$|NVIDIA_TF32_OVERRIDE$|CUBLAS|CUDNN_(?!LOG)'
    '|TF_(CUDNN|CUBLAS|DETERMINISTIC|ENABLE|XLA)|NCCL_(ALGO|PROTO)$|ONEDNN_|DNNL_'
    '|ROCBLAS_|HIPBLASLT_|MIOPEN_|NPY_DISABLE_CPU_FEATURES$'
)
_HARMLESS = re.compile(
    # Where to run, and with which other processes.
    'JAX_(PLATFORM_NAME|PLATFORMS|CPU_ENABLE_ASYNC_DISPATCH|.*VISIBLE_DEVICES|LOCAL_DEVICE_IDS|NUM_CPU_DEVICES'
    '|NUM_PROCESSES|PROCESS_ID|COORDINATOR_.*|CROSS_HOST_.*|.*TIMEOUT.*|MOCK_.*)$'
    # Caches.
    '|JAX_(.*COMPILATION_CACHE.*|PERSISTENT_CACHE_.*|RAISE_PERSISTENT_CACHE_ERRORS)$'
    # Messages, checks and dumps.
    '|JAX_(LOG.*|.*LOGGING.*|EXPLAIN_.*|DUMP_.*|TRACEBACK_.*|.*TRACEBACK.*|PPRINT_.*|DEBUG_.*'
    '|CHECK_.*|ENABLE_CHECKS|TRANSFER_GUARD.*|.*_GUARD|CAPTURED_CONSTANTS_.*|DISTRIBUTED_DEBUG)$'
    '|FLAX_(FILTER_FRAMES|PROFILE|MAX_REPR_DEPTH)$|(ONEDNN|DNNL)_VERBOSE.*|MIOPEN_(.*LOG.*|.*PATH)$'
)
_HARMLESS_FLAGS = re.compile('--xla_(dump_|force_host_platform_device_count|gpu_cuda_data_dir)')


def recorded(environment: Mapping[str, str] | None = None) -> dict[str, str]:
  """The settings of an environment, by default this process's, to record with the versions.

  XLA_FLAGS without those that the launcher sets and those that change no numbers is one setting.
  """
  environment = os.environ if environment is None else environment
  found = {
      name: value
      for name, value in sorted(environment.items())
      if is_setting(name) and not _HARMLESS.match(name) and name not in REQUIRED
  }
  ours = xla_flags({'XLA_FLAGS': f'{CPU_FLAGS} {GPU_FLAGS}'})
  flags = [
      f'{flag}{separator}{value}'
      for flag, (separator, value) in sorted(xla_flags(environment).items())
      if ours.get(flag) != (separator, value) and not _HARMLESS_FLAGS.match(flag)
  ]
  found.pop('XLA_FLAGS', None)
  return found | ({'XLA_FLAGS': ' '.join(flags)} if flags else {})


def device() -> dict[str, str]:
  """The platform and kind of the devices on which this process computes with jax."""
  import jax  # launchers do not

  first = jax.local_devices()[0]
  return {'platform': first.platform, 'kind': first.device_kind}


def is_setting(name: str) -> bool:
  """Whether this is the name of a variable that may change numbers, not of a library."""
  return bool(_RECORDED.match(name))


def xla_flags(environment: Mapping[str, str]) -> dict[str, tuple[str, str]]:
  """The flags in XLA_FLAGS, or in the file that it names: --FLAG -> ('=', value) or ('', '').

  The last setting of a flag counts.
  """
  text = xla_flags_text(environment)
  try:
    words = shlex.split(text)
  except ValueError:  # an open quotation mark; XLA says what is wrong
    words = text.split()
  return {flag: (sign, value) for flag, sign, value in (word.partition('=') for word in words)}


def xla_flags_text(environment: Mapping[str, str]) -> str:
  """XLA_FLAGS, or the content of the file that it names; as it is if there is no such file."""
  text = environment.get('XLA_FLAGS', '').strip()
  if text and not text.startswith('-'):
    try:
      with open(text) as file:
        return ' '.join(file.read().split())
    except (OSError, ValueError):  # XLA says what is wrong
      pass
  return text
