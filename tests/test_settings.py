"""Environment variables that change the numbers of a run."""

import jax
import pytest

from stability import settings
from stability.errors import BadInput
from stability.storage import versions
from stability.trainer import jax_settings


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('JAX_DEFAULT_MATMUL_PRECISION', 'highest'),
        ('JAX_DISABLE_MOST_OPTIMIZATIONS', '1'),
        ('JAX_SOME_NEW_OPTION', 'x'),
        ('FLAX_ALWAYS_SHARD_VARIABLE', '0'),
        ('NVIDIA_TF32_OVERRIDE', '0'),
        ('CUBLAS_WORKSPACE_CONFIG', ':4096:8'),
        ('LIBTPU_INIT_ARGS', '--xla_tpu_x=1'),
        ('TF_CUDNN_DETERMINISTIC', '1'),
        ('ONEDNN_DEFAULT_FPMATH_MODE', 'BF16'),
        ('XLA_FLAGS', '--xla_cpu_enable_fast_math=true'),
        ('XLA_FLAGS', '--xla_allow_excess_precision=false --xla_gpu_autotune_level=0'),
        ('XLA_FLAGS', '--xla_backend_optimization_level=0'),  # not the value that programs set
        (settings.LEFT_OUT, settings.CPU_FLAGS),
    ],
)
def test_recorded(name, value):
  assert settings.recorded({name: value}) == {name: value}
  assert settings.is_setting(name)


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        *settings.REQUIRED.items(),
        ('JAX_ENABLE_X64', '1'),  # programs set it
        ('JAX_PLATFORMS', 'cpu'),
        ('JAX_COMPILATION_CACHE_DIR', '/x'),
        ('JAX_ENABLE_COMPILATION_CACHE', '0'),
        ('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0'),
        ('JAX_LOG_COMPILES', '1'),
        ('JAX_DEBUG_NANS', '1'),
        ('JAX_TRACEBACK_FILTERING', 'off'),
        ('JAX_CHECK_TRACER_LEAKS', '1'),
        ('JAX_DUMP_IR_TO', '/x'),
        ('JAX_COORDINATOR_ADDRESS', 'host:1'),
        ('TF_CPP_MIN_LOG_LEVEL', '3'),
        ('CUDNN_LOGLEVEL_DBG', '2'),
        ('XLA_FLAGS', ''),
        ('XLA_FLAGS', settings.CPU_FLAGS),
        ('XLA_FLAGS', '--xla_dump_to=/x --xla_force_host_platform_device_count=8'),
        ('PATH', '/bin'),
    ],
)
def test_not_recorded(name, value):
  assert settings.recorded({name: value}) == {}


def test_xla_flags_are_recorded_alike(tmp_path):
  """Whatever their order and where they are; the last setting of a flag counts."""
  (tmp_path / 'flags').write_text('--xla_b=2\n--xla_a\n')
  for text in (
      '--xla_a --xla_b=2',
      f'{settings.CPU_FLAGS} --xla_b=1 --xla_b=2   --xla_a',
      '--xla_dump_to="/a b" --xla_b=2 --xla_a',
      str(tmp_path / 'flags'),
  ):
    assert settings.recorded({'XLA_FLAGS': text}) == {'XLA_FLAGS': '--xla_a --xla_b=2'}


def test_an_open_quotation_mark():
  assert settings.recorded({'XLA_FLAGS': "--xla_a='b"}) == {'XLA_FLAGS': "--xla_a='b"}


def test_settings_are_part_of_the_versions(monkeypatch):
  before = versions.current()
  monkeypatch.setenv('JAX_DEFAULT_MATMUL_PRECISION', 'highest')
  now = versions.current()
  assert now == before | {'JAX_DEFAULT_MATMUL_PRECISION': 'highest'}
  change = 'JAX_DEFAULT_MATMUL_PRECISION unset -> highest'
  assert versions.changes(before, now) == [change]
  assert versions.changes(now, before) == ['JAX_DEFAULT_MATMUL_PRECISION highest -> unset']


def test_required_settings_are_those_of_jax():
  jax_settings.check()
  names = [name for name in settings.REQUIRED if name.startswith('JAX_')]
  assert all(hasattr(jax.config, name.lower()) for name in names)


@pytest.mark.parametrize(
    ('option', 'value'),
    [
        ('jax_enable_x64', True),
        ('jax_threefry_partitionable', False),
        ('jax_default_prng_impl', 'rbg'),
        ('jax_random_seed_offset', 3),
        ('jax_numpy_dtype_promotion', 'strict'),
        ('jax_numpy_rank_promotion', 'raise'),
        ('jax_legacy_prng_key', 'error'),
    ],
)
def test_settings_changed_in_the_process(option, value):
  before = getattr(jax.config, option)
  jax.config.update(option, value)
  try:
    with pytest.raises(BadInput, match=rf'^jax\.config\.{option}={value}: must be'):
      jax_settings.check()
  finally:
    jax.config.update(option, before)
  jax_settings.check()
