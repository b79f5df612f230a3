"""Traced parameters, FLOPs and memory, compared with counts by hand and full traces."""

import functools
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from configs import base
from stability import config as config_lib
from stability import variants
from stability.devices import cost, jaxprs, shapes, traces
from stability.model import attention, kernels, mlp, norms, residuals, transformer
from stability.model.kernels import dot, kernel
from stability.optim import optimizers
from stability.step import run_model, train_step
from stability.variants import Variant

FLOAT32 = 4


def resolved(**changes):
  """base.py's config with these dotted fields, in which __ stands for the dot."""
  changed = {field.replace('__', '.'): value for field, value in changes.items()}
  flat = config_lib.flatten(base.get_config().to_dict()) | changed
  return config_lib.unflatten(config_lib.resolve(flat))


@pytest.mark.parametrize('size', ['9.2K', '590K', '42M', '4.8B'])
def test_parameters(size):
  fields = {field.replace('.', '__'): value for field, value in config_lib.size(size).items()}
  config = resolved(**fields)
  assert shapes.parameters(config) == config_lib.parameters(config)


@pytest.mark.parametrize(
    'changes',
    [
        dict(model__attention_gate='sigmoid'),
        dict(model__qk_norm='l2'),
        dict(model__norm_position='peri', model__norm='rmsnorm'),
        dict(model__depth=0),
    ],
)
def test_parameters_that_do_not_count(changes):
  config = resolved(**changes)
  assert shapes.parameters(config) == 12 * config['model']['depth'] * 64**2


def state(config):
  static, hparams = config_lib.split(config)
  init = train_step.programs(static, 256).init
  return jax.eval_shape(init, train_step.arrays(hparams))


def nbytes(tree):
  return sum(jaxprs.nbytes(leaf) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize('name', optimizers.OPTIMIZERS)
def test_state_bytes(name):
  config = resolved(optimizer__name=name)
  found, expected = shapes.state_bytes(config, 256), state(config)
  assert found.params == nbytes(expected['params'])
  assert found.optimizer == pytest.approx(nbytes(expected['optimizer']), abs=100)


def test_optimizer_bytes():
  params = shapes.state_bytes(resolved(), 256).params

  def numbers(**changes):
    return shapes.state_bytes(resolved(**changes), 256).optimizer / params

  assert numbers() == pytest.approx(2, rel=1e-3)
  assert numbers(optimizer__name='lion') == pytest.approx(1, rel=1e-3)
  assert numbers(evaluation__parameters='ema') == pytest.approx(3, rel=1e-3)
  # Adafactor has a row and a column for each matrix, small or large: here of width 64.
  assert numbers(optimizer__name='adafactor') < 0.05


def test_update_bytes():
  """An update per parameter; Muon stores what it orthogonalises as well."""

  def numbers(name):
    found = shapes.state_bytes(resolved(optimizer__name=name, model__width=256), 256)
    return found.update / found.params

  assert numbers('adamw') == pytest.approx(1, rel=1e-2)
  assert numbers('muon') > 1.1


def test_flops_by_hand():
  config = resolved()
  found = shapes.step_flops(config, 256) * config['schedule']['steps']
  assert found == cost.estimated_flops(config)


def test_optimizer_flops():
  """Muon's: five iterations of three products for each matrix."""

  def flops(name):
    return shapes.step_flops(resolved(optimizer__name=name), 256)

  square, wide = 3 * 2 * 64**3, 2 * (2 * 64**2 * 256) + 2 * 64**3
  expected = 3 * 5 * (4 * square + 2 * wide)
  assert flops('muon') - flops('adamw') == expected
  assert flops('lion') == flops('adamw')


def choices():
  """A change for each value of each choice of the model, with what it needs."""
  tables = [
      *(attention.QK_NORMS, attention.SCALES, attention.WEIGHTS, attention.GATES),
      *(attention.VALUE_NORMS, attention.VALUE_RESIDUALS, norms.NORMS, mlp.MLPS),
      *(transformer.BLOCKS, transformer.EMBEDDINGS, transformer.HEADS),
      *(residuals.RESIDUALS, residuals.SKIPS, kernels.KERNELS),
  ]
  return [{table.option: name} for table in tables for name in table]


OTHERS = [
    *({'model.attention_soft_cap': 50.0}, {'model.dtype': 'bfloat16'}),
    *({'model.query_group': 2}, {'model.qk_gain': 1.2}),
]


@pytest.mark.slow  # each traces three steps
@pytest.mark.parametrize('changes', [*choices(), *OTHERS], ids=str)
def test_blocks_are_alike(changes):
  """Depths 0 and 1 give the same result for depth 3 as a trace of depth 3."""
  fields = {field.replace('.', '__'): value for field, value in changes.items()}
  config = resolved(**fields, data__batch_size=8, data__sequence_length=32, model__width=32)
  static, hparams = config_lib.split(config)
  model = run_model.make(static, 64)
  init = functools.partial(train_step.init, model, static)
  rows = jax.ShapeDtypeStruct((jaxprs.ROWS, 33), jnp.int32)
  gradient = functools.partial(train_step.gradient, model, static, 'quiet')
  full = jax.make_jaxpr(gradient)(jax.eval_shape(init, train_step.arrays(hparams)), rows)
  assert shapes.step_flops(config, 64) == pytest.approx(jaxprs.flops(full).at(8))
  moments = jaxprs.moments(full, [0] * len(full.jaxpr.outvars), 1)
  for n in (1, 8):
    found = shapes.gradient_bytes(config, 64, rows=n, shards=1, remat=False, platform='cpu').total
    assert found == pytest.approx(
        max((moment.outputs[0] + moment.rest).at(n) for moment in moments), rel=0.03
    )


@pytest.mark.parametrize('platform, least, most', [('gpu', 1.95, 2.05), ('tpu', 3.5, 4)])
def test_fused_attention_stores_no_weights(platform, least, most):
  """At twice the length, a sequence needs twice the memory; four times if weights are stored."""
  needed = []
  for length in (1024, 2048):
    config = resolved(model__dtype='bfloat16', data__sequence_length=length)
    one, two = (
        shapes.gradient_bytes(config, 64, rows=n, shards=1, remat=False, platform=platform).total
        for n in (1, 2)
    )
    needed.append(two - one)
  assert least < needed[1] / needed[0] < most


def test_architectures_share_traces():
  config = resolved(model__width=48, data__sequence_length=40)
  shapes.step_flops(config, 256)
  before = traces.gradient.cache_info().misses
  for changes in (
      dict(optimizer__name='lion'),
      dict(model__depth=7, data__batch_size=3, schedule__shape='wsd', probe__every_steps=0),
  ):
    same = resolved(model__width=48, data__sequence_length=40, **changes)
    assert shapes.architecture(same) == shapes.architecture(config)
    shapes.step_flops(same, 256)
  assert traces.gradient.cache_info().misses == before
  other = resolved(model__width=48, data__sequence_length=40, model__qk_norm='none')
  assert shapes.architecture(other) != shapes.architecture(config)


class _Gated(nn.Module):
  """An MLP from outside, with a third matrix."""

  c: object

  @nn.compact
  def __call__(self, x, hparams):
    B, T, D = x.shape
    x = x.reshape(B * T, D)
    up, gate = (dot(x, kernel(self, name, (D, 4 * D))) for name in ('up', 'gate'))
    return dot(nn.gelu(gate) * up, kernel(self, 'down', (4 * D, D))).reshape(B, T, D)


@pytest.fixture
def gated():
  variants.add_variant('model.mlp', 'geglu', Variant(_Gated, 'arXiv 2002.05202'))
  yield resolved(model__mlp='geglu')
  variants.remove_added()


def test_variant_from_outside(gated):
  ours = resolved()
  added = 3 * 4 * 64 * 64
  assert shapes.parameters(gated) - shapes.parameters(ours) == added
  tokens = ours['data']['batch_size'] * ours['data']['sequence_length']
  assert shapes.step_flops(gated, 256) - shapes.step_flops(ours, 256) == 6 * tokens * added
  found, other = (shapes.state_bytes(config, 256) for config in (gated, ours))
  assert found.params - other.params == FLOAT32 * added
  found, other = (
      shapes.gradient_bytes(config, 256, rows=16, shards=1, remat=False, platform='cpu')
      for config in (gated, ours)
  )
  hidden = FLOAT32 * tokens * 4 * 64  # one more in each block
  assert found.activations - other.activations == 3 * hidden


def test_variant_is_replaced(gated):
  """Another variant of the same name is traced anew."""
  before = shapes.parameters(gated)
  variants.remove_added()
  variants.add_variant('model.mlp', 'geglu', mlp.MLPS['gelu'])
  assert shapes.parameters(gated) < before


def test_no_accelerator_and_no_change_of_environment():
  """A launcher that is told to use a GPU traces on the CPU; its workers still get the GPU."""
  program = (
      'import os, sys; from configs import base; from stability.devices import placement, shapes\n'
      "assert 'jax' not in sys.modules\n"
      'shapes.trace_on_cpu(); import jax\n'
      'print(shapes.parameters(base.get_config().to_dict()))\n'
      "print(os.environ['JAX_PLATFORMS'], jax.devices()[0].platform)"
  )
  environment = os.environ | {'JAX_PLATFORMS': 'cuda'}
  found = subprocess.run(
      [sys.executable, '-c', program], env=environment, check=True, capture_output=True, text=True
  )
  assert found.stdout.split() == [str(12 * 3 * 64**2), 'cuda', 'cpu']
