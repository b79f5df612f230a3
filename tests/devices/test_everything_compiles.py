"""Every variant, intervention and layout compiles for a GPU and a TPU: by hand, it takes an hour.

Of the large sizes, 1.2B has been seen to end; 4.8B on h100:8 was stopped after 20 minutes.

  pytest -m soak tests/devices/test_everything_compiles.py

Needs the extras aot-gpu and aot-tpu. Each test prints what the compiler says of its programs.
"""

import functools
import itertools
import math
import time

import pytest
from test_interventions import INTERVENTIONS

from configs import base
from stability import config as config_lib
from stability import variants
from stability.devices import ahead_of_time, hlo, placement, shapes, targets
from stability.errors import BadInput
from stability.optim import evaluation, gradient, optimizers, schedules  # noqa: F401  their tables
from stability.step import train_step

pytestmark = pytest.mark.soak
_OPTIONS = {'xla_gpu_deterministic_ops': True, 'xla_gpu_enable_triton_gemm': False}  # GPU_FLAGS
SMALL = {
    'data.batch_size': 8,
    'data.sequence_length': 32,
    'model.width': 64,
    'model.depth': 1,
    'probe.every_steps': 10,
}
PAPER = {'data.batch_size': 256, 'data.sequence_length': 512, 'probe.every_steps': 10}
LARGE = {  # sizes of the paper
    '1.2B': PAPER | {'model.width': 2048, 'model.depth': 24, 'model.head_dim': 64},
    '4.8B': PAPER | {'model.width': 4096, 'model.depth': 24, 'model.head_dim': 64},
}


@functools.cache
def mixtures():
  """Configs that together have every variant of every option and every intervention."""
  tables = [(n, t) for n, t in variants.TABLES.items() if isinstance(t, variants.Choices)]
  found = []
  for point in [*INTERVENTIONS.values(), *({name: value} for name, t in tables for value in t)]:
    for mixture in found:
      agree = all(mixture.get(option, value) == value for option, value in point.items())
      if agree and resolved(mixture | point) is not None:
        mixture.update(point)
        break
    else:
      found.append(dict(point))
  return found


def resolved(point):
  """The config of a point, or None if its options contradict each other."""
  flat = config_lib.flatten(base.get_config().to_dict()) | SMALL | point
  try:
    return config_lib.unflatten(config_lib.resolve(flat))
  except BadInput:
    return None


def compile_all(target, config, layout, **stated):
  """Compiles the programs of a config in this placement and prints a line for each."""
  whole = {'members': 1, 'microbatches': 1, 'remat': 'none'}
  compile_placed(target, config, placement.Placement(layout, **(whole | stated)))


def compile_placed(target, config, place):
  """Returns the bytes that each program needs on a device, and those of the plan."""
  found = targets.parse(target)
  try:
    devices = targets.devices(found)
  except BadInput as error:
    pytest.skip(str(error))
  shapes.trace_on_cpu()
  static, hparams = config_lib.split(config)
  used = devices if place.layout in ('data_parallel', 'sharded') else devices[:1]
  lowered = ahead_of_time.lower(
      static, train_step.arrays(hparams), 32_101, place, used, found.target.platform
  )
  estimate = placement.memory(config, place, len(used), 32_101, found.target.planned_as)
  options = _OPTIONS if found.target.platform == 'gpu' else None
  totals = {}
  for kind, program in lowered.items():
    started = time.monotonic()
    compiled = program.compile(options)
    memory, profile = compiled.memory_analysis(), hlo.profile(compiled.as_text())
    total = totals[kind] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    print(
        f'{target} {place.layout} {kind}: {time.monotonic() - started:.0f} s,'
        f' {profile.kernels} kernels, {total / 1e9:.2f} GB'
        f' ({estimate.total / 1e9:.2f} by arithmetic),'
        f' { {k: v.count for k, v in profile.collectives.items()} }'
    )
    assert profile.kernels > 0
    if found.target.platform == 'gpu':
      assert profile.unordered_scatters == 0
  return totals, estimate.total


@pytest.mark.parametrize('target', ['h100', 'v5e'])
@pytest.mark.parametrize('number', range(len(mixtures())))
def test_variants(target, number):
  point = mixtures()[number]
  config = resolved(point)
  assert config is not None, point
  compile_all(target, config, 'population', members=2)


@pytest.mark.parametrize('target', ['h100', 'v5e'])
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('stated', [{}, {'microbatches': 2}, {'remat': 'block'}], ids=str)
def test_parts(target, dtype, stated):
  compile_all(target, resolved({'model.dtype': dtype}), 'population', **stated)


@pytest.mark.parametrize(
    'target, layout', list(itertools.product(['h100:8', 'v5e:4x4'], ['data_parallel', 'sharded']))
)
def test_layouts(target, layout):
  config = resolved({'data.batch_size': 16, 'model.dtype': 'bfloat16'})
  compile_all(target, config, layout)


@pytest.mark.parametrize(
    'target, size',
    [('h100:8', '1.2B'), ('h100:8', '4.8B'), ('v5e:4x4', '1.2B'), ('v5p:2x2x2', '4.8B')],
)
def test_large_sizes(target, size):
  """Sharded in the planner's own placement, every program fits."""
  config = resolved(LARGE[size] | {'model.dtype': 'bfloat16', 'parallel.layout': 'sharded'})
  found = targets.parse(target)
  usable = found.target.usable_bytes({})
  count = math.prod(map(int, found.topology.split('x')))
  place = placement.choose(config, count, usable, found.target.planned_as, 1, 32_101)
  print(placement.describe(place))
  totals, estimated = compile_placed(target, config, place)
  assert max(totals.values()) <= usable
  assert totals['quiet'] == pytest.approx(estimated, rel=0.15)
