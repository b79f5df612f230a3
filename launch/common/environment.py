"""The devices and cores here, and the settings of a worker to make before it imports jax."""

import contextlib
import dataclasses
import functools
import glob
import hashlib
import importlib.metadata
import importlib.util
import itertools
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.common import cgroups
from stability import settings
from stability.errors import BadInput
from stability.settings import CPU_FLAGS, GPU_FLAGS
from stability.storage import files

# Each step allocates its buffers anew. By default glibc returns them to the system in between;
# keeping them made a step at width 128 1.6 times as fast (BUILD_NOTES.md).
GLIBC_TUNABLES = ':'.join((
    'glibc.malloc.hugetlb=1',
    f'glibc.malloc.mmap_threshold={2**30}',
    f'glibc.malloc.trim_threshold={2**33}',
    f'glibc.malloc.top_pad={2**26}',
))
# YNN is experimental, so the flags are first tried in a separate process, once for each jaxlib and
# CPU. An unknown flag makes XLA end the process, so the user's flags are tried, too.
_TRIAL_PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
x = np.random.default_rng(0).normal(size=(64, 48)).astype(np.float32)
y = jax.jit(lambda x: jnp.tanh(x @ x.T) @ x)(x)
np.testing.assert_allclose(y, np.tanh(x @ x.T) @ x, rtol=1e-3, atol=1e-3)
"""
_START_PROGRAM = 'import jax; jax.local_devices()'  # XLA parses its flags when it starts
_TRIAL_SECONDS = 60
# Debugging switches of jax that leave nothing to train: the step is compiled ahead of time.
_REFUSED = ('JAX_DISABLE_JIT', 'JAX_NO_EXECUTION', 'JAX_NO_TRACING')
_OFF = ('', '0', 'n', 'no', 'f', 'false', 'off')  # values of a boolean setting of jax
_ON = ('1', 'y', 'yes', 't', 'true', 'on')
_GPUS = '/dev/nvidia[0-9]*'
_WSL = '/dev/dxg'  # all GPUs under WSL2, which has no file for each
# Accelerators: platform, plugins of jax, device files and the variables that may hide them.
_ACCELERATORS = (
    (
        'cuda',
        ('jax_cuda12_plugin', 'jax_cuda13_plugin'),
        (_GPUS, _WSL),
        # Not NVIDIA_VISIBLE_DEVICES, which is void in containers that get their GPUs by CDI.
        ('CUDA_VISIBLE_DEVICES', 'JAX_CUDA_VISIBLE_DEVICES'),
    ),
    (
        'tpu',
        ('libtpu',),
        ('/dev/accel[0-9]*', '/dev/vfio/[0-9]*'),
        ('TPU_VISIBLE_CHIPS', 'TPU_VISIBLE_DEVICES'),
    ),
)
_HIDDEN = re.compile(r'\s*(-.*|none|void|NoDevFiles)?\s*')  # values that leave no device visible
_replaced: dict[str, str | None] = {}  # variables that set_here has set -> what the user had set


def accelerator() -> str | None:
  """The platform (cuda, tpu ...) of the accelerator that jax will find here, or None.

  Checks plugins and devices, without importing jax.
  """
  if wanted := _wanted_platforms():
    first = wanted.split(',')[0]
    return None if first == 'cpu' else first
  for name, plugins, devices, hiding in _ACCELERATORS:
    if (
        any(map(importlib.util.find_spec, plugins))
        and any(map(glob.glob, devices))
        and not any(_HIDDEN.fullmatch(os.environ.get(variable, 'all')) for variable in hiding)
    ):
      return name
  return None


def platform_variables() -> dict[str, str]:
  """JAX_PLATFORMS=cpu where a plugin of jax is installed for its compiler alone, without a device.

  jax would try the device first, and print why it fails.
  """
  if _wanted_platforms() or accelerator() is not None:
    return {}
  plugins = itertools.chain.from_iterable(plugins for _, plugins, _, _ in _ACCELERATORS)
  return {'JAX_PLATFORMS': 'cpu'} if any(map(importlib.util.find_spec, plugins)) else {}


def set_here(variables: Mapping[str, str]) -> None:
  """Sets variables of this process that are right on this machine, and perhaps on no other."""
  for name in variables:
    _replaced.setdefault(name, os.environ.get(name))
  os.environ.update(variables)


def of_user() -> dict[str, str]:
  """The variables of this process as the user has set them, for processes on other machines."""
  before = {name: _replaced.get(name, value) for name, value in os.environ.items()}
  return {name: value for name, value in before.items() if value is not None}


def gpus() -> list[str]:
  """The GPUs that CUDA finds here, as CUDA_VISIBLE_DEVICES names them: by numbers or UUIDs."""
  # Under WSL2 the number of GPUs is unknown; most machines have one.
  files = glob.glob(_GPUS) or glob.glob(_WSL)
  numbers = [str(number) for number in range(len(files))]
  given = os.environ.get('CUDA_VISIBLE_DEVICES')
  if given is None:
    return numbers
  # CUDA reads the list up to the first entry that is no GPU.
  is_gpu = lambda entry: entry in numbers or entry.startswith(('GPU-', 'MIG-'))  # noqa: E731
  return list(dict.fromkeys(itertools.takewhile(is_gpu, map(str.strip, given.split(',')))))


def has_accelerator() -> bool:
  """Whether jax will find a GPU or TPU here."""
  return accelerator() is not None


def cores() -> list[int]:
  """The CPU cores that this process may run on."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def core_count() -> int:
  """The number of cores whose time this process may use, which a container may limit."""
  quotas = (math.ceil(quota) for quota in cgroups.cpu_quotas())
  return max(1, min([len(cores()), *quotas]))


def pin(cores: Sequence[int]) -> None:
  """Pins this process, and with it XLA's thread pool, to `cores`, if the system allows it."""
  if hasattr(os, 'sched_setaffinity'):
    try:
      os.sched_setaffinity(0, cores)
    except OSError as error:
      print(f'warning: cannot run on cores {list(cores)} alone: {error}', file=sys.stderr)


def check() -> None:
  """Checks the user's settings of jax and XLA, before anything is compiled or written.

  Also sets the variables that have one right value, so it must be called before jax is imported.
  Raises BadInput for a setting with which nothing can be trained; warns of those that are ignored.
  """
  for name in _REFUSED:
    if os.environ.get(name, '').lower() not in _OFF:
      raise BadInput(f'{name}={os.environ[name]}: must not be set for training')
  if (guard := os.environ.get('JAX_TRANSFER_GUARD', '')).startswith('disallow'):
    raise BadInput(f'JAX_TRANSFER_GUARD={guard}: must be allow or log; training transfers batches')
  if (flags := settings.xla_flags_text(os.environ)) and (error := _refusal(flags)):
    raise BadInput(f'XLA_FLAGS={os.environ["XLA_FLAGS"]}: {error}')
  for name, value in settings.REQUIRED.items():
    given = os.environ.get(name, value)
    if given.lower() not in (_OFF if value in _OFF else _ON if value in _ON else (value,)):
      print(f'warning: {name}={given} is ignored: training uses {value}', file=sys.stderr)
  has_others = any(n.startswith(('JAX_', 'FLAX_')) for n in os.environ.keys() - settings.REQUIRED)
  set_here(settings.REQUIRED | platform_variables())
  if has_others:
    try:
      import flax  # noqa: F401  imports jax; both read their variables
    except (ValueError, RuntimeError) as error:
      raise BadInput(f'a JAX_ or FLAX_ variable of the environment: {error}') from error


def check_devices() -> None:
  """Raises BadInput if jax finds no device of the platform that the environment asks for."""
  import jax

  try:
    jax.local_devices()
  except (AssertionError, RuntimeError) as error:  # jax asserts that a plugin of cuda is there
    raise _no_device(str(error)) from error


def check_workers() -> None:
  """Checks the devices of the workers here, and records the XLA flags that they run without.

  Devices and flags are tried in separate processes, so that this one uses no accelerator.
  """
  left_out = worker_environment().get(settings.LEFT_OUT)
  if left_out:
    set_here({settings.LEFT_OUT: left_out})
  if _wanted_platforms() not in ('', 'cpu'):
    try:
      done = _run(_START_PROGRAM, {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'})
    except subprocess.TimeoutExpired:  # a worker may be more patient
      return
    if done.returncode:
      raise _no_device((done.stderr.strip().splitlines() or [''])[-1].partition(': ')[2])


def _no_device(reason: str) -> BadInput:
  reason = reason.partition(' (set JAX_PLATFORMS=')[0]
  name = 'JAX_PLATFORMS' if os.environ.get('JAX_PLATFORMS') else 'JAX_PLATFORM_NAME'
  message = f'{name}={_wanted_platforms()}: no such device can be used here'
  return BadInput(f'{message}: {reason}' if reason else message)


def _wanted_platforms() -> str:
  return os.environ.get('JAX_PLATFORMS') or os.environ.get('JAX_PLATFORM_NAME', '')


def worker_environment() -> dict[str, str]:
  """The environment variables of a worker; those set by the user are kept, except REQUIRED ones."""
  environment = {
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
      **os.environ,
      **settings.REQUIRED,
      **platform_variables(),
      **_cache_variables(),
      'PYTHONIOENCODING': 'utf-8:backslashreplace',  # of the pipes to the launcher
  }
  platform = accelerator()
  if platform is None:
    environment.setdefault('GLIBC_TUNABLES', GLIBC_TUNABLES)
    return environment | xla_flags(CPU_FLAGS, environment)
  if platform in ('cuda', 'gpu'):
    return environment | xla_flags(GPU_FLAGS, environment)
  return environment


def xla_flags(ours: str, environment: Mapping[str, str]) -> dict[str, str]:
  """XLA_FLAGS with those of our flags that the user has not set; LEFT_OUT if they do not work."""
  given = settings.xla_flags(environment)
  added = ' '.join(flag for flag in ours.split() if flag.partition('=')[0] not in given)
  if not added:
    return {}
  if error := flags_error(ours):
    _warn_of_flags(added, error)
    return {settings.LEFT_OUT: added}
  return {'XLA_FLAGS': ' '.join(filter(None, [added, settings.xla_flags_text(environment)]))}


@functools.cache  # one warning
def _warn_of_flags(left_out: str, error: str) -> None:
  print(
      f'warning: workers are without the XLA flags {left_out}, as versions.jsonl of each run'
      f' records; numbers may differ in rounding from those of other runs: {error}',
      file=sys.stderr,
  )


def cache_folder() -> Path:
  """The folder of compiled executables, which are valid for one jaxlib and one CPU model.

  It starts with ~ if this user has no home folder.
  """
  root = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  kind = f'jaxlib-{importlib.metadata.version("jaxlib")}-{_cpu_digest()}'
  return Path(root) / 'stability' / kind


def _cache_variables() -> dict[str, str]:
  """The variables of jax's compilation cache: its folder, or none if it cannot be used."""
  folder = os.environ.get('JAX_COMPILATION_CACHE_DIR') or str(cache_folder() / 'executables')
  # A cache is an optimisation: its errors must not fail a run.
  variables = {'JAX_COMPILATION_CACHE_DIR': folder, 'JAX_RAISE_PERSISTENT_CACHE_ERRORS': '0'}
  is_on = os.environ.get('JAX_ENABLE_COMPILATION_CACHE', '1').lower() not in _OFF
  if is_on and not _is_usable(folder):
    variables['JAX_ENABLE_COMPILATION_CACHE'] = '0'
  return variables


@functools.cache  # one warning
def _is_usable(folder: str) -> bool:
  """Whether a folder can be written to; otherwise prints a warning."""
  if '://' in folder:  # jax writes to it
    return True
  try:
    if folder.startswith('~'):  # neither HOME nor the user's entry in /etc/passwd is there
      raise FileNotFoundError('this user has no home folder')
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
      file.write(bytes(4096))
  except (OSError, ValueError) as error:
    print(
        f'warning: compiled executables are not kept, since {folder} cannot be written to:'
        f' {getattr(error, "strerror", None) or error}',
        file=sys.stderr,
    )
    return False
  return True


def _cpu_digest() -> str:
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    description = sorted({line for line in lines if line.startswith(('model name', 'flags'))})
  except (OSError, ValueError):
    description = [platform.machine(), platform.processor()]
  return hashlib.sha256('\n'.join(description).encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class _Trial:
  """The outcome of running a program with some XLA flags."""

  error: str = ''  # empty: it ran
  is_refused: bool = False  # XLA itself refuses the flags, as it would each time


def flags_error(flags: str) -> str:
  """Why a program with these XLA flags does not compute correctly here; empty if it does."""
  return _trial(flags, _TRIAL_PROGRAM).error


def _refusal(flags: str) -> str:
  """Why XLA refuses these flags; empty if it does not."""
  trial = _trial(flags, _START_PROGRAM)
  return trial.error if trial.is_refused else ''


def _trial(flags: str, program: str) -> _Trial:
  """Tries a program with these XLA flags; an answer that is sure to stay is kept on disk."""
  file = cache_folder() / 'xla_trials.json'
  key = f'{hashlib.sha256(program.encode()).hexdigest()[:8]} {flags}'
  try:
    answers = files.read_json(file) if file.is_file() else {}
  except (BadInput, OSError):  # it is written anew
    answers = {}
  if isinstance(error := answers.get(key), str):
    return _Trial(error, is_refused=bool(error))
  trial = _try(flags, program)
  # Anything else may have come from a signal, from a lack of memory or from a slow disk.
  if file.parts[0] != '~' and (trial.is_refused or not trial.error):
    with contextlib.suppress(OSError):  # if the folder cannot be written, try again next time
      files.write_json(file, answers | {key: trial.error})
  return trial


@functools.cache  # all workers of this launcher have the same flags
def _try(flags: str, program: str) -> _Trial:
  variables = {'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
  try:
    done = _run(program, variables, without=('JAX_', 'FLAX_'))
  except subprocess.TimeoutExpired:
    return _Trial(f'a trial of them takes more than {_TRIAL_SECONDS} s')
  if not done.returncode:
    return _Trial()
  # Lines of XLA's log: F1128 06:31:17.308876   27392 parse_flags_from_env.cc:220] MESSAGE
  messages = re.findall(r'^([EF])\d{4} .*?\] (.*)', done.stderr, re.MULTILINE)
  if done.returncode > 0 and 'F' in dict(messages):  # it exits; other fatal errors abort
    return _Trial(messages[0][1], is_refused=True)
  last = done.stderr.strip().splitlines()[-1:]
  return _Trial(': '.join([f'a trial of them ends with exit code {done.returncode}', *last]))


def _run(
    program: str, variables: Mapping[str, str], without: tuple[str, ...] = ()
) -> subprocess.CompletedProcess:
  """Runs a Python program with variables added to the environment, and some names left out."""
  kept = {name: value for name, value in os.environ.items() if not name.startswith(without)}
  return subprocess.run(
      [sys.executable, '-P', '-c', program],
      env=kept | variables,
      stdin=subprocess.DEVNULL,
      capture_output=True,
      encoding='utf-8',
      errors='replace',
      timeout=_TRIAL_SECONDS,
      check=False,
  )
