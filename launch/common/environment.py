"""Settings of a worker to make before it imports jax: cores, XLA flags, compilation cache."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from stability.storage import files

# XLA's YNN kernels speed up matrix products on a CPU at widths from 32. LLVM's -O2 compiles faster
# than -O3 and gives equally fast steps (jaxlib 0.10.2; BUILD_NOTES.md). YNN is experimental, and an
# unknown flag makes XLA abort the process, so the flags are first tried in a separate process, once
# for each jaxlib and CPU.
CPU_FLAGS = (
    '--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT'
    ' --xla_backend_optimization_level=2'
)
# Each step allocates its buffers anew. By default glibc returns them to the system in between;
# keeping them made a step at width 128 1.6 times as fast (BUILD_NOTES.md).
GLIBC_TUNABLES = ':'.join((
    'glibc.malloc.hugetlb=1',
    f'glibc.malloc.mmap_threshold={2**30}',
    f'glibc.malloc.trim_threshold={2**33}',
    f'glibc.malloc.top_pad={2**26}',
))
_TRIAL_PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
x = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
y = jax.jit(lambda x: jnp.tanh(x @ x.T) @ x)(x)
np.testing.assert_allclose(y, np.tanh(x @ x.T) @ x, rtol=1e-3, atol=1e-3)
"""


def has_accelerator() -> bool:
  """Whether jax will find a GPU or TPU here; checks plugins and devices, without importing jax."""
  wanted = os.environ.get('JAX_PLATFORMS')
  if wanted:
    return wanted.split(',')[0] != 'cpu'
  plugins = ('jax_cuda12_plugin', 'jax_cuda13_plugin', 'libtpu')
  devices = ('/dev/nvidia0', '/dev/accel0', '/dev/vfio/0')
  return any(map(importlib.util.find_spec, plugins)) and any(map(os.path.exists, devices))


def cores() -> list[int]:
  """The CPU cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def pin(cores: Sequence[int]) -> None:
  """Pins this process, and with it XLA's thread pool, to `cores`, if the system allows it."""
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, cores)


def worker_environment() -> dict[str, str]:
  """The environment variables of a worker; those set by the user are kept."""
  cache = cache_folder()
  environment = {
      'JAX_COMPILATION_CACHE_DIR': str(cache / 'executables'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  } | os.environ
  if has_accelerator():
    return environment
  environment.setdefault('GLIBC_TUNABLES', GLIBC_TUNABLES)
  if 'ynn_fusion' not in environment.get('XLA_FLAGS', ''):
    # The last setting of a flag counts, so the user's flags come last.
    environment['XLA_FLAGS'] = f'{_cpu_flags(cache)} {environment.get("XLA_FLAGS", "")}'.strip()
  return environment


def cache_folder() -> Path:
  """The folder of compiled executables, which are valid for one jaxlib and one CPU model."""
  root = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  kind = f'jaxlib-{importlib.metadata.version("jaxlib")}-{_cpu_digest()}'
  return Path(root) / 'stability' / kind


def _cpu_digest() -> str:
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    description = sorted({line for line in lines if line.startswith(('model name', 'flags'))})
  except OSError:
    description = [platform.machine(), platform.processor()]
  return hashlib.sha256('\n'.join(description).encode()).hexdigest()[:12]


def _cpu_flags(cache: Path) -> str:
  """CPU_FLAGS if they work here, otherwise empty; the answer is cached."""
  file = cache / 'cpu_flags.json'
  answers: Mapping[str, bool] = json.loads(file.read_text()) if file.exists() else {}
  if CPU_FLAGS not in answers:
    answers = {**answers, CPU_FLAGS: _works(CPU_FLAGS)}
    with contextlib.suppress(OSError):  # if the folder cannot be written, try again next time
      files.write_json(file, answers)
  return CPU_FLAGS if answers[CPU_FLAGS] else ''


def _works(flags: str) -> bool:
  """Whether a program with these XLA flags runs and computes correctly."""
  command = [sys.executable, '-c', _TRIAL_PROGRAM]
  variables = os.environ | {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
  try:
    trial = subprocess.run(command, env=variables, capture_output=True, timeout=60, check=False)
  except subprocess.TimeoutExpired:
    return False
  return trial.returncode == 0
