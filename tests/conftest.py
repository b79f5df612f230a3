"""Runs tests on eight CPU devices; shared fixtures."""

import os
import signal

from launch.common import environment

# The programs that tests start inherit signals that are ignored, as nohup and a shell's & ignore
# them, and tests send these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# jax reads these variables when it is imported. The tests compile much and compute little, and
# compilation takes half the time without LLVM's optimizations and XLA's newer emitters. Flags that
# are already set come last and take precedence: .ci/run tests the layouts with the newer emitters.
QUICK = '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = ' '.join([
    '--xla_force_host_platform_device_count=8',
    '' if environment.flags_error(QUICK) else QUICK,
    os.environ.get('XLA_FLAGS', ''),
])
os.environ['XLA_FLAGS'] = environment.worker_environment()['XLA_FLAGS']

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
import pytest

from configs import base
from stability import config as config_lib

TINY = {
    'data.batch_size': 4,
    'data.sequence_length': 16,
    'data.validation_batches': 2,
    'model.width': 32,
    'model.depth': 1,
    'model.head_dim': 16,
    'schedule.steps': 20,
    'schedule.warmup_steps': 2,
}


@dataclasses.dataclass(frozen=True)
class Run:
  """A resolved config in the forms that the modules take."""

  config: config_lib.Config
  flat: dict[str, Any]
  static: ml_collections.FrozenConfigDict
  hparams: dict[str, np.generic]


@pytest.fixture(scope='session', autouse=True)
def executables(tmp_path_factory):
  """A new compilation cache that all processes of a session share."""
  import jax

  folder = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    folder = folder.parent  # shared by all workers
  jax.config.update('jax_compilation_cache_dir', str(folder / 'executables'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)


@pytest.fixture(scope='session')
def tiny() -> Callable[..., Run]:
  """A function of overrides by dotted field that resolves configs/base.py with TINY and these."""

  def run(overrides: dict[str, Any] | None = None) -> Run:
    default = config_lib.flatten(base.get_config().to_dict())
    flat = config_lib.resolve(default | TINY | (overrides or {}))
    config = config_lib.unflatten(flat)
    static, hparams = config_lib.split(config)
    arrays = {
        field: np.float32(value) if isinstance(value, float) else np.int32(value)
        for field, value in hparams.items()
    }
    return Run(config, flat, static, arrays)

  return run


@pytest.fixture
def rng() -> np.random.Generator:
  """A generator of the test's own, so that no other test changes what it draws."""
  return np.random.default_rng(0)


@pytest.fixture(scope='session')
def text() -> dict[str, np.ndarray]:
  """Random bytes below 64: a text to train on and the validation batches of a tiny run."""
  rng = np.random.default_rng(0)

  def draw(*shape):
    return (64 * rng.random(shape) ** 2).astype(np.uint8)  # squared, so that some are frequent

  return {'text': draw(2_001), 'validation': draw(2, 4, 17)}
