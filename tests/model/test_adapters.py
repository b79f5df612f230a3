"""Methods of fine-tuning: the function at the start, what is trained, LoRA by its definition."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stability.model import adapters, parameterization
from stability.optim import apply, optimizers
from stability.step import run_model, train_step

V = 64
SMALL = {
    'model.width': 16,
    'model.head_dim': 8,
    'model.depth': 2,
    'data.batch_size': 2,
    'data.sequence_length': 8,
    'probe.every_steps': 0,
    'optimizer.learning_rate': 0.1,
    'optimizer.weight_decay': 0.1,
    'adapter.rank': 2,
}
ROWS = np.random.default_rng(0).integers(0, V, (2, 9)).astype(np.int32)


def flat(tree):
  return flax.traverse_util.flatten_dict(tree, sep='/')


@functools.cache
def programs(static):
  made = train_step.programs(static, V)
  return made, *map(jax.jit, (made.init, made.evaluate, made.steps['quiet']))


def start(tiny, **fields):
  """A run, its state before the first update and its validation loss."""
  run = tiny(SMALL | {name.replace('__', '.'): value for name, value in fields.items()})
  _, init, evaluate, _ = programs(run.static)
  state = init(run.hparams)
  return run, state, float(evaluate({'validation': ROWS[None]}, state, 0))


def stepped(run, state, steps=1):
  for _ in range(steps):
    state, _ = programs(run.static)[3]({'batch': ROWS}, state)
  return state


def loss_of(run, params, carried=None):
  """The loss of a plain model with these parameters."""
  state = {'params': params, 'carried': carried or {}, 'hparams': run.hparams, 'step': 0}
  return float(programs(run.static)[2]({'validation': ROWS[None]}, state, 0))


KINDS = [name for name in adapters.ADAPTERS if name != 'none']
# Their share of what they train, by hand: depth 2, width 16, rank 2, hidden 64, V 64.
TRAINED = {
    'lora': 2 * (4 * 2 * (16 + 16) + 2 * 2 * (16 + 64)),
    'dora': 2 * (4 * 2 * (16 + 16) + 2 * 2 * (16 + 64)) + 2 * (4 * 16 + 64 + 16),
    'houlsby': 2 * 2 * 2 * 16 * 2,
    'ia3': 2 * (16 + 16 + 64),
    'prompt': 2 * 16,
    'norms': 2 * (16 + 16 + 8 + 8) + 16,
}


@pytest.mark.slow  # compiles three programs of each method
@pytest.mark.parametrize('kind', KINDS)
def test_method(tiny, kind):
  """The model is that without the method at first; only what the method trains changes.

  Nothing else has gradients or state of the optimizer.
  """
  _, base, base_loss = start(tiny)
  run, state, loss = start(tiny, adapter__kind=kind)
  if kind == 'prompt':
    assert loss != base_loss
  elif kind == 'dora':
    assert loss == pytest.approx(base_loss, rel=1e-6)
  else:
    assert loss == base_loss
  trained, frozen = flat(state['params']), flat(state['frozen'])
  assert not trained.keys() & frozen.keys()
  assert sum(leaf.size for leaf in trained.values()) == TRAINED[kind]
  added = {name for name in trained if adapters.is_added(tuple(name.split('/')))}
  assert (added == set(trained)) == (kind != 'norms')
  plain = flat(base['params'])
  assert {*frozen, *trained} - added == set(plain)
  for name, leaf in frozen.items():  # drawn by another program, which may round differently
    np.testing.assert_allclose(leaf, plain[name], rtol=1e-6, atol=1e-7)
  moments = [leaf.size for leaf in jax.tree.leaves(state['optimizer']) if leaf.size > 1]
  assert sum(moments) == 2 * TRAINED[kind]
  after = stepped(run, state, 2)
  assert all(
      np.array_equal(leaf, frozen[name]) for name, leaf in flat(after['frozen']).items()
  )
  assert all(not np.array_equal(leaf, trained[n]) for n, leaf in flat(after['params']).items())


OTHER_MODEL = {'model__mlp': 'swiglu', 'model__query_group': 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    'fields',
    [
        dict(adapter__kind='lora'),
        dict(adapter__kind='lora', adapter__scale='sqrt_rank', adapter__alpha=3.0),
        dict(adapter__kind='dora', adapter__matrices='query_value'),
        dict(adapter__kind='lora', adapter__init='pissa', adapter__rank=3),
        dict(adapter__kind='dora', adapter__init='pissa', adapter__matrices='mlp'),
        dict(adapter__kind='ia3', optimizer__learning_rate=1.0),
        dict(adapter__kind='ia3', optimizer__learning_rate=1.0, **OTHER_MODEL),
    ],
)
def test_merged(tiny, fields):
  """A plain model with the merged weights computes the same; pissa keeps the sum at the start."""
  of_model = {name: value for name, value in fields.items() if name.startswith('model')}
  base, plain, base_loss = start(tiny, **of_model)
  run, state, loss = start(tiny, **fields)
  if 'adapter__init' in fields:
    assert loss == pytest.approx(base_loss, rel=1e-6)
    kernel = ('block_0', 'mlp', 'up')
    residual = flat(state['frozen'])['/'.join(kernel)]
    assert np.abs(residual - flat(plain['params'])['/'.join(kernel)]).max() > 0.1
    singular = np.linalg.svd(residual, compute_uv=False)
    assert np.sum(singular > 1e-5) == 16 - run.static.adapter.rank
  after = stepped(run, state, 3)
  unmerged = float(programs(run.static)[2]({'validation': ROWS[None]}, after, 0))
  assert abs(unmerged - loss) > 0.01
  whole = adapters.joined(after['params'], after['frozen'])
  merged = jax.device_get(adapters.merged(whole, run.hparams, run.static))
  assert flat(merged).keys() == flat(plain['params']).keys()
  assert loss_of(base, merged) == pytest.approx(unmerged, rel=1e-6)


def weights_of(run, arrays):
  nested = flax.traverse_util.unflatten_dict(arrays, sep='/')
  return flat(adapters.weights(nested, run.hparams, run.static))


def test_lora_weights_by_hand(tiny):
  rng = np.random.default_rng(1)
  name = 'block_0/mlp/up'
  arrays = {
      name: rng.normal(size=(16, 64)),
      f'{name}_adapter/a': rng.normal(size=(16, 4)),
      f'{name}_adapter/b': rng.normal(size=(4, 64)),
  }
  arrays = {n: np.float32(a) for n, a in arrays.items()}
  for scale, factor in (('rank', 6 / 4), ('sqrt_rank', 6 / 2)):
    options = {'adapter.kind': 'lora', 'adapter.rank': 4, 'adapter.alpha': 6.0}
    run = tiny(SMALL | options | {'adapter.scale': scale})
    wanted = arrays[name] + factor * arrays[f'{name}_adapter/a'] @ arrays[f'{name}_adapter/b']
    found = weights_of(run, arrays)
    assert set(found) == {name}
    np.testing.assert_allclose(found[name], wanted, rtol=1e-5, atol=1e-5)
    magnitude = np.float32(rng.uniform(1, 2, 64))
    dora = tiny(SMALL | options | {'adapter.scale': scale, 'adapter.kind': 'dora'})
    found = weights_of(dora, arrays | {f'{name}_adapter/magnitude': magnitude})
    norms = np.linalg.norm(wanted, axis=0)
    np.testing.assert_allclose(found[name], magnitude * wanted / norms, rtol=1e-5, atol=1e-5)


def test_initial_lora(tiny):
  """A is uniform with a variance of 1 / (3 in), as torch.nn.Linear draws it; B is zero."""
  run = tiny(SMALL | {'adapter.kind': 'lora', 'adapter.rank': 16, 'model.width': 16})
  params = {f'block_{n}': {'mlp': {'down': np.ones((64, 16), np.float32)}} for n in range(2)}
  found = flat(adapters.added(params, run.hparams, run.static))
  a, other = (np.asarray(found[f'block_{n}/mlp/down_adapter/a']) for n in range(2))
  assert not np.any(found['block_0/mlp/down_adapter/b'])
  assert np.abs(a).max() <= 64**-0.5 and a.shape == (64, 16)
  assert np.var(a) == pytest.approx(1 / (3 * 64), rel=0.1)
  assert not np.array_equal(a, other)
  again = run.hparams | {'seed': np.int32(1)}
  b = flat(adapters.added(params, again, run.static))['block_0/mlp/down_adapter/a']
  assert not np.array_equal(a, b)


PATHS = {
    'query': ('block_0', 'attention', 'query'),
    'gate of attention': ('block_0', 'attention', 'gate'),
    'up': ('block_1', 'mlp', 'up'),
    'gate': ('block_1', 'mlp', 'gate'),
    'router': ('block_1', 'mlp', 'router'),
    'expert': ('block_1', 'mlp', 'expert_3', 'down'),
    'output': ('block_0', 'attention', 'output'),
    'embedding': ('embedding',),
    'norm': ('block_0', 'mlp_norm', 'scale'),
    'head': ('head',),
}


@pytest.mark.parametrize(
    ('matrices', 'chosen'),
    [
        ('all', {'query', 'output', 'up', 'gate', 'expert'}),
        ('attention', {'query', 'output'}),
        ('mlp', {'up', 'gate', 'expert'}),
        ('query_value', {'query'}),
    ],
)
def test_matrices(matrices, chosen):
  choose = adapters.MATRICES[matrices].make
  assert {name for name, path in PATHS.items() if choose(path)} == chosen


def rates(run, params, step=1):
  found = apply.learning_rates(params, run.hparams, np.int32(step), run.static)
  return {name: float(rate) for name, rate in flat(found).items()}


def test_rates_of_lora_plus(tiny):
  run = tiny(SMALL | {'adapter.kind': 'lora', 'adapter.rate_ratio': 16.0})
  params = {'block_0': {'mlp': {'up_adapter': {'a': np.ones((16, 2)), 'b': np.ones((2, 64))}}}}
  found = rates(run, params)
  a, b = (found[f'block_0/mlp/up_adapter/{name}'] for name in 'ab')
  assert b == pytest.approx(16 * a) and a == pytest.approx(0.05)  # half of a warm-up of 2


@pytest.mark.parametrize(
    'path, share',
    [
        ('block_0/mlp/up_adapter/a', 1 / 4),
        ('block_0/mlp/up_adapter/b', 1),
        ('block_0/mlp_adapter/down', 1 / 4),
        ('block_0/mlp_adapter/up', 1),
        ('prompt_adapter/vectors', 1),
        ('block_0/mlp/up', 1 / 4),
    ],
)
def test_rates_under_muparam(tiny, path, share):
  """Rates of matrices with the width as fan-in are divided by its ratio, not of those with r."""
  run = tiny(
      SMALL | {'parameterization.name': 'muparam_simple', 'parameterization.base_width': 4}
  )
  params = flax.traverse_util.unflatten_dict({path: np.ones((2, 2))}, sep='/')
  assert rates(run, params)[path] == pytest.approx(0.05 * share)


@pytest.mark.parametrize('name', ['standard', 'mup', 'ntk', 'mean_field'])
def test_parameterized_like(tiny, name):
  """A prompt scales with the width like an embedding; what has a rank as fan-in does not scale."""
  fields = {'name': name, 'exponents': 'full_alignment', 'base_width': 1}
  run = tiny(SMALL | {f'parameterization.{field}': value for field, value in fields.items()})
  paths = ('embedding', 'prompt_adapter/vectors', 'block_0/mlp_adapter/up')
  flat = {path: np.ones((2, 2), np.float32) for path in paths}
  tree = flax.traverse_util.unflatten_dict(flat, sep='/')
  for change in (parameterization.initial, parameterization.effective):
    found = flax.traverse_util.flatten_dict(change(tree, run.hparams, run.static), sep='/')
    np.testing.assert_array_equal(found[paths[1]], found[paths[0]])
    np.testing.assert_array_equal(found[paths[2]], 1)
  found = rates(run, tree)
  assert found[paths[1]] == found[paths[0]] and found[paths[2]] == pytest.approx(0.05)


@pytest.mark.parametrize('embedding, rms', [('learned', 0.25), ('scaled', 1), ('rmsnorm', 1)])
def test_prompt_is_drawn_like_embeddings(tiny, embedding, rms):
  options = {'adapter.kind': 'prompt', 'adapter.rank': 64, 'model.embedding': embedding}
  run = tiny(SMALL | options)
  state = train_step.programs(run.static, V).init(run.hparams)
  vectors = state['params']['prompt_adapter']['vectors']
  assert float(jnp.sqrt(jnp.mean(jnp.square(vectors)))) == pytest.approx(rms, rel=0.1)


def test_prompt_is_read_like_tokens_before_the_text(tiny):
  """A plain model with its vectors as the embeddings of two more tokens has the same logits."""
  shape = SMALL | {'model.depth': 1}
  run, plain, tokens = tiny(shape | {'adapter.kind': 'prompt'}), tiny(shape), ROWS[:, :-1]
  model, other = run_model.make(run.static, V), run_model.make(plain.static, V + 2)
  longer = np.concatenate([np.full((2, 2), [V, V + 1]), tokens], axis=1)

  @jax.jit
  def logits():
    params = other.init(jax.random.key(0), longer, plain.hparams)['params']
    expected = other.apply({'params': params}, longer, plain.hparams)
    embedding, vectors = jnp.split(params['embedding'], (V,))
    params |= {'embedding': embedding, 'head': params['head'][:, :V]}
    params['prompt_adapter'] = {'vectors': vectors}
    return model.apply({'params': params}, tokens, run.hparams), expected[:, 2:, :V]

  found, expected = logits()
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_bottleneck_by_hand():
  """The formula x + gelu(x D) U, with the gelu of tanh."""
  rng = np.random.default_rng(3)
  x, down, up = (rng.normal(size=shape) for shape in ((2, 3, 16), (16, 2), (2, 16)))
  hidden = x @ down
  hidden *= (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3))) / 2
  found = adapters.Bottleneck(2).apply({'params': {'down': down, 'up': up}}, np.float32(x))
  np.testing.assert_allclose(found, x + hidden @ up, rtol=1e-5, atol=1e-5)


def test_rates_by_layer(tiny):
  """0.5^(L - i) in block i of L = 2; the embedding is below block 1, the head above the last."""
  run = tiny(SMALL | {'optimizer.layer_rate_decay': 0.5, 'schedule.warmup_steps': 0})
  names = ['embedding', 'block_0', 'block_1', 'final_norm', 'head_reparam', 'head']
  params = {name: {'scale': np.ones(2)} for name in names} | {'head': np.ones((2, 2))}
  found = rates(run, params)
  top = rates(tiny(SMALL | {'schedule.warmup_steps': 0}), params)['head']
  ratios = [found[name if name == 'head' else f'{name}/scale'] / top for name in names]
  np.testing.assert_allclose(ratios, [0.25, 0.5, 1, 1, 1, 1], rtol=1e-6)


def test_l2_sp(tiny):
  """Parameters decay towards those of the start: the distance shrinks by the decay."""
  run = tiny(SMALL | {'optimizer.decay_target': 'start', 'schedule.warmup_steps': 0})
  rng = np.random.default_rng(2)
  old, target, move = (
      {'head': np.float32(rng.normal(size=(3, 2)))} for _ in range(3)
  )
  step = np.int32(1)
  found = apply.apply_updates(old, move, run.hparams, step, run.static, target)['head']
  zeros = jax.tree.map(np.zeros_like, old)
  kept = apply.apply_updates(
      jax.tree.map(np.ones_like, old), zeros, run.hparams, step, run.static, zeros
  )['head']
  decay = 1 - float(kept[0, 0])
  assert decay == pytest.approx(0.1, rel=0.01)  # weight_decay times the schedule's factor
  wanted = old['head'] - move['head'] - decay * (old['head'] - target['head'])
  np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
  still = apply.apply_updates(target, zeros, run.hparams, step, run.static, target)['head']
  assert np.array_equal(still, target['head'])
  state = train_step.init_state(run.static, run.hparams, old, {})
  assert np.array_equal(state['start']['head'], old['head'])


def test_frozen_parameters_are_no_arguments_of_the_optimizer(tiny):
  run = tiny(SMALL | {'adapter.kind': 'norms'})
  params = {'final_norm': {'scale': np.ones(4)}, 'head': np.ones((4, V))}
  found = adapters.parts(params, run.static)
  assert set(flat(found['params'])) == {'final_norm/scale'} and set(found['frozen']) == {'head'}
  state = optimizers.make_optimizer(run.hparams, run.static).init(found['params'])
  assert max(leaf.size for leaf in jax.tree.leaves(state)) == 4
  assert adapters.joined(**found).keys() == params.keys()
