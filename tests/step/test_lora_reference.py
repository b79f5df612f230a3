"""LoRA and DoRA, compared with PyTorch: by the papers' definitions, and by peft where installed."""

import flax.traverse_util
import jax
import numpy as np
import pytest

from stability.model import adapters
from stability.step import run_model, train_step

torch = pytest.importorskip('torch')

from helpers import reference_torch  # noqa: E402, which imports torch

V = 64
RANKS = [1, 3, 8]


def flat(tree, sep='.'):
  return flax.traverse_util.flatten_dict(tree, sep=sep)


def random_state(tiny, **options):
  """A run with LoRA or DoRA, and its state, in which no B is zero any more."""
  options = {name.replace('__', '.'): value for name, value in options.items()}
  run = tiny({'model.width': 16, 'model.head_dim': 8, 'adapter.alpha': 5.0} | options)
  state = jax.device_get(jax.jit(train_step.programs(run.static, V).init)(run.hparams))
  rng = np.random.default_rng(3)
  drawn = {
      name: leaf + 0.1 * np.float32(rng.normal(size=leaf.shape))
      for name, leaf in flat(state['params']).items()
  }
  return run, state | {'params': flax.traverse_util.unflatten_dict(drawn, sep='.')}


def effective(kernels, added, scale):
  """The kernels by the definitions: W + s A B, and of DoRA, its columns with learned norms."""
  found = dict(kernels)
  for name, kernel in kernels.items():
    if f'{name}_adapter.a' not in added:
      continue
    v = kernel + scale * added[f'{name}_adapter.a'] @ added[f'{name}_adapter.b']
    magnitude = added.get(f'{name}_adapter.magnitude')
    found[name] = v if magnitude is None else magnitude * v / v.detach().norm(dim=0)
  return found


@pytest.mark.slow  # compiles a gradient for each case
@pytest.mark.parametrize(
    ('kind', 'scale', 'rank'),
    [*(('lora', 'rank', rank) for rank in RANKS), ('lora', 'sqrt_rank', 4), ('dora', 'rank', 2)],
)
def test_loss_and_gradients(tiny, kind, scale, rank):
  run, state = random_state(
      tiny, adapter__kind=kind, adapter__scale=scale, adapter__rank=rank, objective__z_loss=0.0
  )
  rows = np.random.default_rng(4).integers(0, V, (2, 17)).astype(np.int32)
  model = run_model.make(run.static, V)
  found, measured, _ = jax.jit(
      lambda state, rows: train_step.gradient(model, run.static, 'quiet', state, rows)
  )(state, rows)
  network = reference_torch.Transformer(run.flat, V)
  kernels = {name: torch.tensor(leaf) for name, leaf in flat(state['frozen']).items()}
  added = {
      name: torch.tensor(leaf, requires_grad=True) for name, leaf in flat(state['params']).items()
  }
  factor = 5.0 / (rank if scale == 'rank' else rank**0.5)
  inputs, targets = (torch.tensor(part, dtype=torch.int64) for part in (rows[:, :-1], rows[:, 1:]))
  logits = torch.func.functional_call(network, effective(kernels, added, factor), (inputs,))
  loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
  loss.backward()
  assert float(measured['loss'].value) == pytest.approx(loss.item(), rel=1e-5)
  assert flat(found).keys() == added.keys()
  for name, gradient in flat(found).items():
    theirs = added[name].grad.numpy()
    assert np.linalg.norm(gradient - theirs) <= 1e-4 * np.linalg.norm(theirs), name


@pytest.mark.parametrize('rank', RANKS)
@pytest.mark.parametrize('kind', ['lora', 'rslora', 'dora'])
def test_a_layer_of_peft(tiny, kind, rank):
  """The same output of a layer and gradients of A and B."""
  peft = pytest.importorskip('peft')
  options = {
      'adapter.kind': 'dora' if kind == 'dora' else 'lora',
      'adapter.scale': 'sqrt_rank' if kind == 'rslora' else 'rank',
      'adapter.rank': rank,
      'adapter.alpha': 5.0,
  }
  run = tiny(options)
  rng = np.random.default_rng(rank)
  shapes = {'': (12, 10), '_adapter/a': (12, rank), '_adapter/b': (rank, 10)}
  arrays = {
      f'block_0/mlp/up{name}': np.float32(rng.normal(size=shape)) for name, shape in shapes.items()
  }
  kernel, a, b = arrays.values()
  theirs = torch.nn.Sequential()
  theirs.add_module('up', torch.nn.Linear(12, 10, bias=False))
  theirs.up.weight.data = torch.tensor(kernel.T)
  config = peft.LoraConfig(
      r=rank,
      lora_alpha=5.0,
      use_rslora=kind == 'rslora',
      use_dora=kind == 'dora',
      target_modules=['up'],
  )
  theirs = peft.get_peft_model(theirs, config)
  layer = theirs.base_model.model.up
  layer.lora_A['default'].weight.data = torch.tensor(a.T)
  layer.lora_B['default'].weight.data = torch.tensor(b.T)
  if kind == 'dora':
    magnitude = np.float32(rng.uniform(1, 2, 10))
    arrays['block_0/mlp/up_adapter/magnitude'] = magnitude
    layer.lora_magnitude_vector['default'].weight.data = torch.tensor(magnitude)
  x, out = (np.float32(rng.normal(size=(5, width))) for width in (12, 10))
  theirs_out = layer(torch.tensor(x))
  (theirs_out * torch.tensor(out)).sum().backward()

  def value(arrays):
    tree = flax.traverse_util.unflatten_dict(arrays, sep='/')
    weights = adapters.weights(tree, run.hparams, run.static)
    return x @ weights['block_0']['mlp']['up']

  np.testing.assert_allclose(value(arrays), theirs_out.detach().numpy(), rtol=1e-4, atol=1e-4)
  ours = jax.grad(lambda arrays: (value(arrays) * out).sum())(arrays)
  for name, weight in (('a', layer.lora_A), ('b', layer.lora_B)):
    gradient = weight['default'].weight.grad.numpy().T
    np.testing.assert_allclose(
        ours[f'block_0/mlp/up_adapter/{name}'], gradient, rtol=1e-3, atol=1e-3
    )
