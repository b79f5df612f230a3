"""The devices and cores here, the settings of workers, and the user's settings that are refused."""

import contextlib
import errno
import fnmatch
import json
import os
import subprocess
import types

import pytest

from launch.common import cgroups, environment
from stability import settings
from stability.errors import BadInput

ERRNOS = ('EACCES', 'EROFS', 'ENOSPC', 'EIO', 'ELOOP', 'ENAMETOOLONG', 'ESTALE')


@pytest.fixture
def fresh(tmp_path, monkeypatch):
  """No accelerator, no user settings, an empty cache."""
  for name in list(os.environ):
    if name.startswith(('JAX_', 'FLAX_', 'XLA_', 'GLIBC_', 'CUDA_', 'NVIDIA_', 'TPU_')):
      monkeypatch.delenv(name)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setattr(environment, 'accelerator', lambda: None)
  monkeypatch.setattr(environment, '_replaced', {})
  monkeypatch.delenv(settings.LEFT_OUT, raising=False)
  cached = (environment._try, environment._is_usable, environment._warn_of_flags)
  for function in cached:
    function.cache_clear()
  yield
  for function in cached:
    function.cache_clear()


@pytest.fixture
def tried(monkeypatch):
  """The flags that were tried; `tried.error` is the answer of each trial."""
  found = types.SimpleNamespace(flags=[], error='')

  def answer(flags, program):
    found.flags.append(flags)
    return environment._Trial(found.error, is_refused=bool(found.error))

  monkeypatch.setattr(environment, '_try', answer)
  return found


# XLA flags.


@pytest.mark.parametrize('error', ['', 'Unknown flag'])
def test_cpu_flags_are_tried_once(fresh, tried, error):
  tried.error = error
  for _ in range(2):
    variables = environment.worker_environment()
    assert variables.get('XLA_FLAGS', '') == ('' if error else settings.CPU_FLAGS)
  assert tried.flags == [settings.CPU_FLAGS]


@pytest.mark.parametrize(
    'content', ['', '[]', '3', '{"a"', '\xff', '{"FLAGS": 1}', '{"FLAGS": null}', 'a folder']
)
def test_damaged_answers(fresh, tried, content):
  file = environment.cache_folder() / 'xla_trials.json'
  file.parent.mkdir(parents=True)
  if content == 'a folder':
    file.mkdir()
  else:
    file.write_bytes(content.replace('FLAGS', settings.CPU_FLAGS).encode('latin-1'))
  assert environment.worker_environment()['XLA_FLAGS'] == settings.CPU_FLAGS
  assert tried.flags == [settings.CPU_FLAGS]
  if file.is_file():
    assert '' in json.loads(file.read_text()).values()


def test_flags_of_the_user_that_are_ours(fresh, tried, monkeypatch):
  """That a program starts with them does not show that it computes correctly."""
  environment._refusal(settings.CPU_FLAGS)
  environment.flags_error(settings.CPU_FLAGS)
  assert tried.flags == [settings.CPU_FLAGS] * 2
  environment.flags_error(settings.CPU_FLAGS)
  assert len(tried.flags) == 2


def test_answer_that_is_a_pipe(fresh, tried):
  """Reading it would wait for a writer."""
  file = environment.cache_folder() / 'xla_trials.json'
  file.parent.mkdir(parents=True)
  os.mkfifo(file)
  assert environment.worker_environment()['XLA_FLAGS'] == settings.CPU_FLAGS


LOG = 'F1128 06:31:17.308876   27392 threads.cc:220] Check failed: no thread'
DEATHS = {
    'terminated': (-15, ''),
    'killed': (-9, ''),
    'aborted by XLA': (-6, f'{LOG}\n'),
    'an error of Python': (1, 'Traceback\nMemoryError: no memory\n'),
    'too slow': (None, ''),
}


@pytest.mark.parametrize('death', DEATHS)
def test_trial_that_dies_is_not_kept(fresh, monkeypatch, capsys, death):
  """The next start tries again; this one says that it is without the flags, and records it."""
  code, err = DEATHS[death]
  ends = []

  def run(command, **_):
    ends.append(command)
    if code is None:
      raise subprocess.TimeoutExpired(command, 60)
    return subprocess.CompletedProcess(command, code, '', err)

  monkeypatch.setattr(subprocess, 'run', run)
  for _ in range(2):
    variables = environment.worker_environment()
    assert 'XLA_FLAGS' not in variables
    assert settings.recorded(variables)[settings.LEFT_OUT] == settings.CPU_FLAGS
  assert len(ends) == 1  # all workers of a launcher have the same flags
  said = capsys.readouterr().err
  assert said.startswith(f'warning: workers are without the XLA flags {settings.CPU_FLAGS}, as')
  assert said.count('\n') == 1
  environment.check_workers()
  assert settings.recorded()[settings.LEFT_OUT] == settings.CPU_FLAGS
  assert settings.LEFT_OUT not in environment.of_user()
  assert not (environment.cache_folder() / 'xla_trials.json').exists()
  monkeypatch.setenv('XLA_FLAGS', '--xla_slow=1')  # the worker will see
  environment.check()


def test_flags_that_work_are_not_recorded(fresh, tried):
  assert settings.recorded(environment.worker_environment()) == {}


def test_unknown_xla_flag(fresh, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_no_such_flag=1')
  monkeypatch.setenv('JAX_NO_TRACING', '0')
  for _ in range(2):
    with pytest.raises(BadInput, match=r'^XLA_FLAGS=.*: Unknown flag in XLA_FLAGS: --xla_no_such'):
      environment.check()
    (answer,) = json.loads((environment.cache_folder() / 'xla_trials.json').read_text()).values()
    assert answer == 'Unknown flag in XLA_FLAGS: --xla_no_such_flag=1'
    environment._try.cache_clear()


def test_user_settings_are_kept(fresh, tried, monkeypatch, tmp_path):
  mine = str(tmp_path / 'mine')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', mine)
  monkeypatch.setenv('XLA_FLAGS', '--xla_cpu_enable_fast_math=false')
  variables = environment.worker_environment()
  assert variables['JAX_COMPILATION_CACHE_DIR'] == mine
  assert variables['XLA_FLAGS'] == f'{settings.CPU_FLAGS} --xla_cpu_enable_fast_math=false'
  assert variables['GLIBC_TUNABLES'] == environment.GLIBC_TUNABLES
  monkeypatch.setenv('GLIBC_TUNABLES', 'glibc.malloc.check=1')
  assert environment.worker_environment()['GLIBC_TUNABLES'] == 'glibc.malloc.check=1'


def test_users_value_of_our_flag(fresh, tried, monkeypatch):
  """The other flags are still set, and nothing is added twice."""
  ynn, level = settings.CPU_FLAGS.split()
  monkeypatch.setenv('XLA_FLAGS', '--xla_backend_optimization_level=0')
  flags = environment.worker_environment()['XLA_FLAGS']
  assert flags == f'{ynn} --xla_backend_optimization_level=0'
  monkeypatch.setenv('XLA_FLAGS', f'{ynn} {level}')
  assert environment.worker_environment()['XLA_FLAGS'] == f'{ynn} {level}'


def test_flags_in_a_file(fresh, tried, monkeypatch, tmp_path):
  (tmp_path / 'flags').write_text('--xla_a=1\n--xla_b=2\n')
  monkeypatch.setenv('XLA_FLAGS', str(tmp_path / 'flags'))
  flags = environment.worker_environment()['XLA_FLAGS']
  assert flags == f'{settings.CPU_FLAGS} --xla_a=1 --xla_b=2'


def test_tpu_has_no_flags(fresh, monkeypatch):
  monkeypatch.setattr(environment, 'accelerator', lambda: 'tpu')
  assert not {'XLA_FLAGS', 'GLIBC_TUNABLES'} & environment.worker_environment().keys()


@pytest.mark.parametrize('platform', ['cuda', 'gpu'])
def test_gpu_is_deterministic(fresh, tried, monkeypatch, platform):
  """Unless the user wants otherwise."""
  monkeypatch.setattr(environment, 'accelerator', lambda: platform)
  variables = environment.worker_environment()
  assert variables['XLA_FLAGS'] == settings.GPU_FLAGS and 'GLIBC_TUNABLES' not in variables
  monkeypatch.setenv('XLA_FLAGS', '--xla_gpu_deterministic_ops=false')
  found = environment.worker_environment()['XLA_FLAGS'].split()
  assert found == ['--xla_gpu_enable_triton_gemm=false', '--xla_gpu_deterministic_ops=false']


def test_gpu_flags_are_known_to_xla(fresh):
  assert environment.flags_error(settings.GPU_FLAGS) == ''


# Settings of jax.


def test_required_settings(fresh, tried, monkeypatch, capsys):
  monkeypatch.setenv('JAX_ENABLE_X64', 'True')
  monkeypatch.setenv('JAX_THREEFRY_PARTITIONABLE', 'on')  # the right value
  monkeypatch.setenv('FLAX_RETURN_FROZENDICT', 'no')  # too
  assert environment.worker_environment().items() >= settings.REQUIRED.items()
  environment.check()
  assert capsys.readouterr().err == 'warning: JAX_ENABLE_X64=True is ignored: training uses 0\n'
  assert os.environ.items() >= settings.REQUIRED.items()


@pytest.mark.parametrize(
    ('name', 'refused', 'allowed'),
    [
        ('JAX_DISABLE_JIT', '1', '0'),
        ('JAX_NO_EXECUTION', 'true', 'False'),
        ('JAX_NO_TRACING', 'yes', 'no'),
        ('JAX_TRANSFER_GUARD', 'disallow_explicit', 'log'),
        ('JAX_TRANSFER_GUARD', 'disallow', 'allow'),
    ],
)
def test_switches_that_leave_nothing_to_train(fresh, name, refused, allowed, monkeypatch):
  monkeypatch.setenv(name, refused)
  with pytest.raises(BadInput, match=f'^{name}={refused}: must'):
    environment.check()
  monkeypatch.setenv(name, allowed)
  environment.check()


# Devices.


@pytest.mark.parametrize(('wanted', 'has'), [('cpu', False), ('cuda,cpu', True), ('tpu', True)])
def test_jax_platforms_decides(wanted, has, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', wanted)
  assert environment.has_accelerator() is has
  assert environment.accelerator() == (wanted.split(',')[0] if has else None)


@pytest.fixture
def gpu(monkeypatch):
  """A machine with a GPU."""
  for name in ('JAX_PLATFORMS', 'JAX_PLATFORM_NAME', 'CUDA_VISIBLE_DEVICES'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(
      environment.importlib.util, 'find_spec', lambda name: name == 'jax_cuda13_plugin' or None
  )
  monkeypatch.setattr(environment.glob, 'glob', lambda path: ['x'] if 'nvidia' in path else [])


def test_compiler_without_its_device(gpu, tried, monkeypatch):
  """A plugin that is there to compile for other machines is not asked for a device."""
  assert environment.platform_variables() == {}
  monkeypatch.setattr(environment.glob, 'glob', lambda path: [])
  assert environment.worker_environment()['JAX_PLATFORMS'] == 'cpu'
  monkeypatch.setenv('JAX_PLATFORMS', 'cuda')  # the user knows better
  assert environment.platform_variables() == {}
  monkeypatch.delenv('JAX_PLATFORMS')
  monkeypatch.setattr(environment.importlib.util, 'find_spec', lambda name: None)
  assert environment.platform_variables() == {}  # of ROCm we know nothing


@pytest.mark.parametrize(
    ('found', 'gpus'),
    [
        ((), []),
        (('/dev/dxg',), ['0']),  # WSL2
        (('/dev/nvidia0', '/dev/nvidia1'), ['0', '1']),
        (('/dev/dxg', '/dev/nvidia0', '/dev/nvidia1'), ['0', '1']),
    ],
)
def test_files_of_gpus(gpu, found, gpus, monkeypatch):
  monkeypatch.setattr(environment.glob, 'glob', lambda pattern: fnmatch.filter(found, pattern))
  assert environment.accelerator() == ('cuda' if found else None)
  assert environment.gpus() == gpus
  assert bool(environment.platform_variables()) == (not found)


@pytest.mark.parametrize(
    ('name', 'value', 'has'),
    [
        ('CUDA_VISIBLE_DEVICES', '', False),
        ('CUDA_VISIBLE_DEVICES', '-1', False),
        ('CUDA_VISIBLE_DEVICES', '-1,0', False),
        ('CUDA_VISIBLE_DEVICES', '0', True),
        ('CUDA_VISIBLE_DEVICES', 'MIG-4f0c', True),
        ('NVIDIA_VISIBLE_DEVICES', 'void', True),  # as CDI sets it in a container with GPUs
        ('TPU_VISIBLE_CHIPS', '', True),  # of another kind of device
    ],
)
def test_hidden_devices(gpu, name, value, has, monkeypatch):
  assert environment.has_accelerator()
  monkeypatch.setenv(name, value)
  assert environment.has_accelerator() is has


@pytest.mark.parametrize('wanted', ['cuda', 'rocm', 'nonsense'])
def test_platform_that_is_not_here(wanted, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', wanted)
  with pytest.raises(BadInput, match=f'^JAX_PLATFORMS={wanted}: no such device') as caught:
    environment.check_workers()
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 250


def test_platform_of_this_process(monkeypatch):
  """As a worker says it, if its devices are gone since the launcher has looked."""
  import jax

  environment.check_devices()

  def local_devices():
    raise RuntimeError("no 'tpu' (set JAX_PLATFORMS='' to choose)")

  monkeypatch.setattr(jax, 'local_devices', local_devices)
  monkeypatch.setenv('JAX_PLATFORMS', 'tpu')
  with pytest.raises(BadInput, match=r"^JAX_PLATFORMS=tpu: .* here: no 'tpu'$"):
    environment.check_devices()


# Cores.


@pytest.mark.parametrize(
    ('here', 'quotas', 'count'),
    [
        (4, [], 4),
        (4, [1.5], 2),
        (4, [0.2], 1),
        (4, [64.0, 2.5], 3),
        (4, [7.0], 4),
        (1, [2.0], 1),
    ],
)
def test_core_count(here, quotas, count, monkeypatch):
  monkeypatch.setattr(environment, 'cores', lambda: list(range(here)))
  monkeypatch.setattr(cgroups, 'cpu_quotas', lambda: iter(quotas))
  assert environment.core_count() == count


@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='this system cannot pin')
def test_pin(monkeypatch, capsys):
  before = environment.cores()
  try:
    environment.pin(before[:1])
    assert environment.cores() == before[:1]
  finally:
    environment.pin(before)
  environment.pin([10_000])  # no such core: EINVAL
  assert capsys.readouterr().err.startswith('warning: cannot run on cores [10000] alone')
  assert environment.cores() == before


# The compilation cache.


def test_cache_depends_on_jaxlib_and_cpu(fresh, monkeypatch):
  here = environment.cache_folder()
  monkeypatch.setattr(environment.importlib.metadata, 'version', lambda name: '99.0')
  elsewhere = environment.cache_folder()
  monkeypatch.setattr(environment, '_cpu_digest', lambda: 'another')
  assert len({here, elsewhere, environment.cache_folder()}) == 3


@contextlib.contextmanager
def one_warning(capsys):
  yield
  said = capsys.readouterr().err
  assert said.startswith('warning: compiled executables are not kept') and said.count('\n') == 1


def assert_no_cache():
  for _ in range(2):
    assert environment.worker_environment()['JAX_ENABLE_COMPILATION_CACHE'] == '0'


@pytest.mark.parametrize('value', ['/dev/null', '/proc', '/' + 300 * 'x', '~nobody-here/x'])
def test_cache_in_a_place_that_cannot_be_written(fresh, tried, value, monkeypatch, capsys):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', value)
  with one_warning(capsys):
    assert_no_cache()


def test_no_home(fresh, tried, monkeypatch, capsys, tmp_path):
  """A container's user has no entry in /etc/passwd; nothing is written to a folder `~`."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv('XDG_CACHE_HOME')
  monkeypatch.delenv('HOME', raising=False)
  monkeypatch.setattr('pwd.getpwuid', lambda uid: {}[uid])
  with one_warning(capsys):
    assert_no_cache()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ERRNOS)
def test_error_of_the_cache(fresh, tried, name, monkeypatch, capsys):
  def temporary_file(**_):
    raise OSError(getattr(errno, name), os.strerror(getattr(errno, name)))

  monkeypatch.setattr(environment.tempfile, 'TemporaryFile', temporary_file)
  with one_warning(capsys):
    assert_no_cache()


def test_cache_of_a_store(fresh, tried, monkeypatch, capsys):
  """The library writes to it, and warns if it cannot."""
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'gs://bucket/cache')
  monkeypatch.setenv('JAX_RAISE_PERSISTENT_CACHE_ERRORS', '1')
  variables = environment.worker_environment()
  assert variables['JAX_COMPILATION_CACHE_DIR'] == 'gs://bucket/cache'
  assert variables['JAX_RAISE_PERSISTENT_CACHE_ERRORS'] == '0'
  assert 'JAX_ENABLE_COMPILATION_CACHE' not in variables and not capsys.readouterr().err
