"""Parameterizations: their table, their equality at the base width, and their training."""

import functools
import itertools

import jax
import numpy as np
import pytest
from flax import traverse_util

from stability.model import parameterization
from stability.optim import apply
from stability.step import run_model, train_step

# Optimization takes most of the compile time and does not change the results.
compiled = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})

WIDTH, BASE = 64, 16
MUPARAM = ('muparam_simple', 'muparam_intermediate', 'muparam_full')
ABC = ('standard', 'ntk', 'mup', 'mean_field')
ALL = [*itertools.product(ABC, ('none', 'full_alignment', 'no_alignment'))]
ALL += [(name, 'none') for name in MUPARAM]

# Table 1 of arXiv 2407.05872, as powers of the width n: initial variance, multiplier, and Adam's
# learning rate with full and with no alignment; of the embedding, the blocks' matrices, the head.
# The standard one is that of arXiv 2309.14322, whose embedding has the variance 1/n.
PAPER = {
    'standard': [(-1, 0, 0, 0), (-1, 0, -1, -0.5), (-1, 0, -1, -0.5)],
    'ntk': [(0, 0, 0, 0), (0, -0.5, -0.5, 0), (0, -0.5, -0.5, 0)],
    'mup': [(-1, 0.5, -0.5, -0.5), (-1, 0, -1, -0.5), (-1, -0.5, -0.5, 0)],
    'mean_field': [(0, 0, 0, 0), (0, -0.5, -0.5, 0), (0, -1, 0, 0.5)],
}
LAYERS = {
    'embedding': 0,
    'block_0/attention/query': 1,
    'block_0/attention/gate': 1,
    'block_0/mlp/up': 1,
    'block_0/mlp/down': 1,
    'head': 2,
}
OTHERS = ('final_norm/scale', 'block_0/attention/qk_norm_query/scale')


def tree_of(values):
  tree = {}
  for path, value in values.items():
    *sections, name = path.split('/')
    functools.reduce(lambda node, key: node.setdefault(key, {}), sections, tree)[name] = value
  return tree


def flat(tree):
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def run_of(tiny, name, exponents='none', width=WIDTH, base=BASE, **others):
  fields = {'name': name, 'exponents': exponents, 'base_width': base}
  overrides = {f'parameterization.{field}': value for field, value in fields.items()}
  return tiny({'model.width': width, 'model.depth': 1} | overrides | others)


def numbers(tree):
  return {path: np.squeeze(leaf)[()] for path, leaf in flat(tree).items()}


def factors(run):
  """The factors of initial parameters, weights and learning rates, by path."""
  ones = tree_of(
      {path: np.ones((1, 1), np.float32) for path in LAYERS} | dict.fromkeys(OTHERS, np.float32(1))
  )
  std = parameterization.initial(ones, run.hparams, run.static)
  multiplier = parameterization.effective(ones, run.hparams, run.static)
  rate = parameterization.learning_rates(ones, np.float32(1), run.hparams, run.static)
  return numbers(std), numbers(multiplier), numbers(rate)


@pytest.mark.parametrize('name, exponents', ALL)
def test_all_are_standard_at_the_base_width(tiny, name, exponents):
  """Bit for bit, except for the queries, which muparam_full initialises to 0."""
  std, multiplier, rate = factors(run_of(tiny, name, exponents, width=BASE))
  if name == 'muparam_full':
    assert std.pop('block_0/attention/query') == 0
  assert all(v == 1 for factor in (std, multiplier, rate) for v in factor.values())


@pytest.mark.parametrize('name', ABC)
@pytest.mark.parametrize('exponents', ['none', 'full_alignment', 'no_alignment'])
def test_powers_of_the_width_match_the_paper(tiny, name, exponents):
  std, multiplier, rate = factors(run_of(tiny, name, exponents))
  r = WIDTH / BASE
  for path, layer in LAYERS.items():
    variance, a, full, none = PAPER[name][layer]
    # The factor multiplies the standard std, which itself scales as n^-1/2.
    assert std[path] * r**-0.5 == pytest.approx(r ** (variance / 2)), path
    assert multiplier[path] == pytest.approx(r**a), path
    expected = {'none': 0, 'full_alignment': full, 'no_alignment': none}[exponents]
    assert rate[path] == pytest.approx(r**expected), path
  for path in OTHERS:
    assert std[path] == multiplier[path] == rate[path] == 1


@pytest.mark.parametrize('exponents', ['full_alignment', 'no_alignment'])
@pytest.mark.parametrize('name, other', [('standard', 'ntk'), ('mup', 'mean_field')])
def test_adam_has_two_classes_of_parameterizations(tiny, name, other, exponents):
  """In a class, weights start and move alike, except for the embedding of standard."""
  effective = []
  for one in (name, other):
    std, multiplier, rate = factors(run_of(tiny, one, exponents))
    effective.append({p: (std[p] * multiplier[p], rate[p] * multiplier[p]) for p in LAYERS})
  if name == 'standard':
    assert [found.pop('embedding')[0] for found in effective] == [1, (WIDTH / BASE) ** 0.5]
  for path, found in effective[0].items():
    assert found == pytest.approx(effective[1][path]), path


def test_muparam_simple_is_standard_with_full_alignment(tiny):
  """The paper's simple muParam is a row of the table of arXiv 2407.05872."""
  simple = factors(run_of(tiny, 'muparam_simple'))
  assert simple == factors(run_of(tiny, 'standard', 'full_alignment'))


@pytest.mark.parametrize('name', MUPARAM)
def test_muparam(tiny, name):
  """Learning rates by base_fan_in / fan_in, head's std sqrt(base_fan_in) / fan_in, queries at 0."""
  std, multiplier, rate = factors(run_of(tiny, name))
  for path in (*LAYERS, *OTHERS):
    matrix = LAYERS.get(path, 0) > 0  # neither the embedding nor a scale has a fan-in of the width
    assert rate[path] == pytest.approx(BASE / WIDTH if matrix else 1), path
    assert multiplier[path] == 1
    head_std = np.sqrt(BASE) / WIDTH / WIDTH**-0.5
    expected = head_std if path == 'head' and name != 'muparam_simple' else 1
    if path.endswith('query') and name == 'muparam_full':
      expected = 0
    assert std[path] == pytest.approx(expected), path


@pytest.mark.parametrize(
    'options',
    [
        {},
        {'model.mlp_width': 48, 'model.mlp': 'swiglu'},
        {'model.mlp_width': 48, 'model.mlp': 'moe'},
        {'model.mlp_width': 48, 'adapter.kind': 'lora', 'adapter.rank': 2},
        {'model.mlp_width': 48, 'adapter.kind': 'houlsby', 'adapter.rank': 2},
    ],
    ids=str,
)
def test_muparam_of_every_matrix(tiny, options):
  """Its rate is multiplied by the ratio of its fan-ins, of which some are fixed."""
  shapes = {}
  for width in (BASE, WIDTH):
    run = run_of(tiny, 'muparam_simple', width=width, **options)
    init = functools.partial(run_model.init, run_model.make(run.static, 64), run.static)
    shapes[width], _ = jax.eval_shape(init, run.hparams)
  rates = parameterization.learning_rates(shapes[WIDTH], np.float32(1), run.hparams, run.static)
  flats = [traverse_util.flatten_dict(tree) for tree in (shapes[BASE], shapes[WIDTH], rates)]
  for path, base in flats[0].items():
    if base.ndim == 2:
      assert flats[2][path] == base.shape[0] / flats[1][path].shape[0], path


def test_muparam_full_divides_by_head_dim(tiny):
  for name in MUPARAM:
    c = parameterization.model_config(run_of(tiny, name).static)
    assert (c.attention_scale == 'inverse') == (name == 'muparam_full')
  run = run_of(tiny, 'muparam_simple')
  assert parameterization.model_config(run.static) == run.static.model


@pytest.mark.parametrize('name, exponents', [('standard', 'none'), ('mup', 'full_alignment')])
def test_embedding_rate(tiny, name, exponents):
  """The embedding's rate is multiplied by width / base_width, whatever it was; no other is."""
  plain = factors(run_of(tiny, name, exponents))[2]
  found = factors(run_of(tiny, name, exponents, **{'optimizer.embedding_rate': 'width'}))[2]
  assert found.pop('embedding') == pytest.approx(plain.pop('embedding') * WIDTH / BASE)
  assert found == plain


def test_kinds_of_other_parameters():
  """Of the parameters of an extension, matrices are hidden and all others scales."""
  params = {'block_0': {'router': np.ones((2, 3)), 'sink': np.ones(2), 'gain': np.ones(())}}
  found = parameterization.kinds(params)['block_0']
  assert found == {'router': 'hidden', 'sink': 'scale', 'gain': 'scale'}


def test_decay_with_layer_learning_rates(tiny):
  """Independent decay takes the same share of all parameters, coupled decay follows the rate."""
  ones = tree_of({path: np.ones((1, 1), np.float32) for path in LAYERS})
  zeros = jax.tree.map(np.zeros_like, ones)
  left = {}
  for kind in ('independent', 'coupled'):
    decay = {'optimizer.weight_decay_kind': kind, 'optimizer.weight_decay': 0.5}
    top = {'optimizer.learning_rate': 0.25, 'schedule.warmup_steps': 1}
    run = run_of(tiny, 'mup', 'full_alignment', **decay, **top)
    left[kind] = numbers(apply.apply_updates(ones, zeros, run.hparams, np.int32(1), run.static))
  rates = factors(run)[2]
  for path in LAYERS:
    assert left['independent'][path] == 0.5
    assert left['coupled'][path] == pytest.approx(1 - 0.5 * 0.25 * rates[path])
  assert len({float(rate) for rate in rates.values()}) == 3


def trained(tiny, text, name):
  """Effective weights at the start and after three steps, stored ones, and losses."""
  # atan2 is independent of the gradient's scale; decay is large, so that three steps show it.
  overrides = {
      'optimizer.name': 'adam_atan2',
      'optimizer.clip_norm': 0.0,
      'optimizer.weight_decay': 0.05,
      'schedule.warmup_steps': 0,
  }
  run = run_of(tiny, name, 'full_alignment', **overrides)
  programs = train_step.programs(run.static, vocabulary_size=64)
  state = compiled(programs.init)(run.hparams)
  step = compiled(programs.steps['quiet'])
  weights, losses = [], []
  for _ in range(3):
    weights.append(flat(parameterization.effective(state['params'], run.hparams, run.static)))
    state, metrics = step(text, state)
    losses.append(float(metrics['loss']))
  weights.append(flat(parameterization.effective(state['params'], run.hparams, run.static)))
  losses.append(float(compiled(programs.evaluate)(text, state, np.int32(0))))
  return weights[0], weights[-1], flat(state['params']), losses


def apart(left, right):
  """The distance of two runs' tensors, in units of the tensor's norm, by path."""
  return {p: np.linalg.norm(left[p] - right[p]) / np.linalg.norm(right[p]) for p in right}


@pytest.mark.slow
def test_mup_and_mean_field_train_alike(tiny, text):
  """The two are equivalent if eps and clipping have no effect.

  Independent decay takes the same share of each layer in both. Their stored parameters differ much,
  so the quiet step, init and evaluate must all apply the multipliers.
  """
  start, mup, stored, losses = trained(tiny, text, 'mup')
  other_start, mean_field, other_stored, other_losses = trained(tiny, text, 'mean_field')
  np.testing.assert_allclose(losses, other_losses, rtol=1e-5)
  assert max(apart(start, other_start).values()) < 1e-6
  assert max(apart(mup, mean_field).values()) < 1e-4
  assert apart(stored, other_stored)['head'] > 0.4
  assert min(apart(start, mup).values()) > 1e-2
