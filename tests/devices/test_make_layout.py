"""make_layout: which layout a sweep gets on which devices. The layouts record their arguments."""

import dataclasses
import functools
import types
from typing import Any

import jax
import numpy as np
import pytest

from configs import base
from stability import config as config_lib
from stability import hyper
from stability.data import batches, prepare
from stability.devices import make_layout as make_layout_lib
from stability.errors import BadInput
from stability.step import train_step

FIELDS = {
    'data.batch_size': 4,
    'data.sequence_length': 16,
    'data.validation_batches': 2,
    'data.source': 'synthetic',
    'model.width': 32,
    'model.depth': 1,
}


@dataclasses.dataclass
class Made:
  """A layout and the arguments it was made with."""

  kind: str
  arguments: tuple[Any, ...]  # programs, data, hparams and those of the kind
  bytes_each: float  # that a run takes

  def memory(self) -> float:
    return self.bytes_each * self.arguments[4]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  config = base.get_config().data
  config.source = 'synthetic'
  return prepare.prepare(config, tmp_path_factory.mktemp('data'), 16)


@pytest.fixture
def make(folder, monkeypatch):
  """A function that makes a layout for some runs, of a sweep of seven, on some devices."""

  def layout(
      runs=1, platform='cpu', devices=8, memory=None, bytes_each=0.0, version='', **fields
  ):
    made, tried = [], []

    def record(kind, *arguments):
      assert len(tried) == len(made) + 1  # the number of members is told before each compilation
      assert tried[-1] == (arguments[4] if kind == 'population' else 1)
      made.append(Made(kind, arguments, bytes_each))
      return made[-1]

    stats = None if memory is None else {'bytes_limit': memory}
    client = types.SimpleNamespace(platform_version=f'PJRT C API\n{version}')
    device = types.SimpleNamespace(
        platform=platform,
        device_kind='',
        compute_capability='9.0',
        memory_stats=lambda: stats,
        client=client,
    )
    monkeypatch.setattr(jax, 'local_devices', lambda: [device] * devices)
    flat = config_lib.flatten(base.get_config().to_dict()) | FIELDS | fields
    configs = hyper.expand(config_lib.unflatten(flat), hyper.sweep('seed', range(7))).configs
    sweep = types.SimpleNamespace(data={'path': str(folder)}, runs=configs)
    static, values = config_lib.split(next(iter(configs.values())))
    layouts = {kind: functools.partial(record, kind) for kind in make_layout_lib.LAYOUTS}
    found = make_layout_lib.make_layout(
        folder,
        sweep,
        static,
        train_step.arrays(values),
        runs,
        on_members=tried.append,
        layouts=layouts,
    )
    return found, made

  return layout


def test_single_on_cpu(make):
  found, _ = make(runs=20)
  assert found.kind == 'single'


def test_population_on_accelerators(make):
  found, _ = make(runs=20, platform='gpu', memory=1e9)
  assert found.kind == 'population' and found.arguments[4] == 3  # 20 on 8
  found, _ = make(runs=3, platform='gpu', memory=1e9)
  assert len(found.arguments[3]) == 3 and found.arguments[4] == 1


def test_members_are_halved_until_they_fit(make):
  """Memory is XLA's count of bytes."""
  found, made = make(runs=80, platform='gpu', memory=1e9, bytes_each=3e8)
  assert [layout.arguments[4] for layout in made] == [10, 5, 3]
  assert found is made[-1]
  _, made = make(runs=80, platform='gpu', memory=1e9, bytes_each=2e9)
  assert [layout.arguments[4] for layout in made] == [10, 5, 3, 2, 1]


def test_stated_members_are_kept(make):
  fields = {'parallel.layout': 'population', 'parallel.members': 7}
  found, made = make(runs=80, platform='gpu', memory=1e9, bytes_each=3e8, **fields)
  assert found.arguments[4] == 7 and len(made) == 1


@pytest.mark.parametrize('kind', make_layout_lib.MULTI_DEVICE)
def test_one_run_on_all_devices(make, kind):
  found, _ = make(**{'parallel.layout': kind, 'data.batch_size': 16, 'parallel.microbatches': 2})
  assert found.kind == kind and len(found.arguments[3]) == 8


@pytest.mark.parametrize('kind', make_layout_lib.MULTI_DEVICE)
@pytest.mark.parametrize(('batch_size', 'microbatches'), [(12, 1), (16, 4), (24, 2)])
def test_indivisible_batch_is_refused(make, kind, batch_size, microbatches):
  fields = {'data.batch_size': batch_size, 'parallel.microbatches': microbatches}
  with pytest.raises(BadInput, match=r'config.data.batch_size'):
    make(**{'parallel.layout': kind} | fields)


def test_processes_share_one_run_only(make, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(make_layout_lib.multihost_utils, 'process_allgather', lambda value: value)
  with pytest.raises(BadInput, match=r'config.parallel.layout=auto: must be one of data_parallel'):
    make()
  found, _ = make(**{'parallel.layout': 'sharded', 'data.batch_size': 16})
  assert found.kind == 'sharded' and found.arguments[3] == jax.devices()


def test_memory_is_that_of_the_smallest_device(monkeypatch):
  def device(memory):
    return types.SimpleNamespace(memory_stats=lambda: memory and {'bytes_limit': memory})

  for given, found in (([8e9, 4e9], 4e9), ([8e9, None], None)):
    monkeypatch.setattr(jax, 'local_devices', lambda given=given: list(map(device, given)))
    assert make_layout_lib._device_memory() == found
  monkeypatch.setattr(jax, 'local_devices', lambda: [device(8e9)])
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  gather = make_layout_lib.multihost_utils
  monkeypatch.setattr(gather, 'process_allgather', lambda own: np.array([own, 2e9]))
  assert make_layout_lib._device_memory() == 2e9


def test_large_text_stays_on_the_host(make, monkeypatch):
  assert make()[0].arguments[3] is False
  assert make(runs=2, platform='gpu', memory=1e9)[0].arguments[5] is False
  assert make(runs=2, platform='gpu', memory=2e7, bytes_each=1)[0].arguments[5] is True
  monkeypatch.setattr(batches, 'MAX_DEVICE_TOKENS', 1000)
  assert make()[0].arguments[3] is True


@pytest.mark.parametrize('remat', ['none', 'block'])
def test_remat_and_microbatches_reach_the_step(make, remat):
  found, _ = make(**{'parallel.remat': remat, 'parallel.microbatches': 2})
  step = found.arguments[0].steps['quiet'].__wrapped__
  assert step.args[0].remat is (remat == 'block') and step.args[2] == 2


@pytest.mark.parametrize(
    'platform, version, fused',
    [
        ('cpu', '', False),
        ('gpu', 'cuda 13000', True),
        ('gpu', 'ROCM 70000', False),  # it has no cuDNN
        ('tpu', '', False),
    ],
)
def test_fused_attention_on_nvidia_gpus(make, platform, version, fused):
  found, _ = make(platform=platform, version=version)
  assert (found.arguments[0].steps['quiet'].__wrapped__.args[0].fused is not None) == fused
