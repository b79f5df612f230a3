"""Probes of PyTorch models against explicit computations in float64."""

import math

import numpy as np
import pytest

import stability

torch = pytest.importorskip('torch')

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import scaled_dot_product_attention  # noqa: E402

from stability.probes import torch_probes  # noqa: E402

B, T, D, H, V = 2, 7, 16, 4, 11
CAUSAL = np.tril(np.ones((T, T), bool))
PADDED = np.arange(T) < np.array([T, 4])[:, None]  # [B, S]


def sdpa(q, k, v):
  return scaled_dot_product_attention(q, k, v, is_causal=True)


def masked(q, k, v):
  mask = torch.from_numpy(PADDED[:, None, None, :])
  return F.scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=mask)


def biased(q, k, v):
  """A mask that is added; finite biases are no part of the logits."""
  bias = torch.where(torch.from_numpy(CAUSAL), 5.0, torch.finfo(torch.float32).min)
  return F.scaled_dot_product_attention(q, k, v, bias)


def scaled(q, k, v):
  return F.scaled_dot_product_attention(q, k, v, None, 0.0, True, scale=0.5)


def grouped(q, k, v):
  return F.scaled_dot_product_attention(q, k[:, :2], v[:, :2], is_causal=True, enable_gqa=True)


def explicit(softmax, lowest=-torch.inf):
  def attend(q, k, v):
    logits = q @ k.transpose(-2, -1) / math.sqrt(D // H)
    return softmax(logits.masked_fill(~torch.from_numpy(CAUSAL), lowest)) @ v

  return attend


class Attention(nn.Module):
  def __init__(self, attend):
    super().__init__()
    self.qkv = nn.Linear(D, 3 * D)
    self.attend, self.seen = attend, []

  def forward(self, x):
    q, k, v = (y.unflatten(-1, (H, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
    self.seen.append((q.detach().double().numpy(), k.detach().double().numpy()))
    return self.attend(q, k, v).transpose(1, 2).flatten(2)


class Block(nn.Module):
  def __init__(self, attend):
    super().__init__()
    self.attn, self.mlp = Attention(attend), nn.Linear(D, D)

  def forward(self, x):
    x = x + self.attn(x)
    return (x + self.mlp(x),)  # a tuple, as of Hugging Face


class Model(nn.Module):
  def __init__(self, attend=sdpa, layers=2):
    super().__init__()
    torch.manual_seed(0)
    self.embed = nn.Embedding(V, D)
    self.h = nn.ModuleList(Block(attend) for _ in range(layers))
    self.head = nn.Linear(D, V)

  def forward(self, tokens):
    x = self.embed(tokens)
    for block in self.h:
      (x,) = block(x)
    logits = self.head(x)
    return logits, F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


def tokens(seed=0):
  return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


def logits_of(module, scale=(D // H) ** -0.5):
  """The attention logits of all calls, [B, H, T, S], in float64."""
  return [q @ k.swapaxes(-1, -2) * scale for q, k in module.seen]


def rms(x):
  return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def close(value):
  return pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ('attend', 'mask', 'scale'),
    [
        (sdpa, CAUSAL, 0.5),
        (masked, PADDED[:, None, None, :], 0.5),
        (biased, CAUSAL, 0.5),
        (scaled, CAUSAL, 0.5),
        (explicit(lambda x: F.softmax(x, dim=-1)), CAUSAL, 0.5),
        (explicit(lambda x: torch.softmax(x, 3)), CAUSAL, 0.5),
        (explicit(lambda x: x.softmax(-1)), CAUSAL, 0.5),
        (explicit(nn.Softmax(dim=-1)), CAUSAL, 0.5),
        (explicit(nn.Softmax(dim=-1), -1e9), CAUSAL, 0.5),
    ],
)
def test_attention_logits(attend, mask, scale):
  model = Model(attend)
  with torch_probes.measure(model) as row:
    model(tokens())
  for number, block in enumerate(model.h):
    (logits,) = logits_of(block.attn, scale)
    found = logits[np.broadcast_to(mask, logits.shape)]
    assert row[f'block_{number}/attention_logit_max'] == close(found.max())
    assert row[f'block_{number}/attention_logit_mean'] == close(found.mean())
  assert F.softmax.__module__ == 'torch.nn.functional'


def test_scale_is_that_of_the_softmax():
  model = Model(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=3.0), layers=1)
  with torch_probes.measure(model) as row:
    model(tokens())
  (logits,) = logits_of(model.h[0].attn, 3.0)
  assert row['block_0/attention_logit_max'] == close(logits.max())


def test_grouped_queries():
  model = Model(grouped, layers=1)
  with torch_probes.measure(model) as row:
    model(tokens())
  ((q, k),) = model.h[0].attn.seen
  logits = q @ k[:, [0, 0, 1, 1]].swapaxes(-1, -2) / 2
  found = logits[np.broadcast_to(CAUSAL, logits.shape)]
  assert row['block_0/attention_logit_max'] == close(found.max())
  assert row['block_0/attention_logit_mean'] == close(found.mean())


def test_blocks_of_queries(monkeypatch):
  model = Model()
  with torch_probes.measure(model) as whole:
    model(tokens())
  monkeypatch.setattr(torch_probes, '_QUERIES', 2)
  monkeypatch.setattr(torch_probes, '_TOKENS', 3)
  with torch_probes.measure(model) as parts:
    model(tokens())
  assert parts == close(whole)


@pytest.mark.parametrize('need_weights', [False, True])
def test_multi_head_attention(need_weights):
  class Layer(nn.Module):
    def __init__(self):
      super().__init__()
      self.attention = nn.MultiheadAttention(D, H, batch_first=True)

    def forward(self, x):
      mask = ~torch.from_numpy(CAUSAL)
      return self.attention(x, x, x, attn_mask=mask, need_weights=need_weights)[0]

  torch.manual_seed(0)
  model, x = nn.Sequential(Layer(), Layer()), torch.randn(B, T, D)
  before = F.softmax, F.scaled_dot_product_attention
  with torch_probes.measure(model) as row:
    model(x)
  assert (F.softmax, F.scaled_dot_product_attention) == before
  weight = model[0].attention.in_proj_weight.detach().double().numpy()  # biases start at 0
  q, k = (
      (x.double().numpy() @ w.T).reshape(B, T, H, -1).swapaxes(1, 2)
      for w in np.split(weight, 3)[:2]
  )
  logits = q @ k.swapaxes(-1, -2) / math.sqrt(D // H)
  found = logits[np.broadcast_to(CAUSAL, logits.shape)]
  assert row['block_0/attention_logit_max'] == close(found.max())
  assert row['block_0/attention_logit_mean'] == close(found.mean())
  assert 'block_1/attention_logit_max' in row and 'block_2/attention_logit_max' not in row


def test_activations_and_log_z():
  model = Model()
  seen = {}
  for name, module in model.named_modules():
    module.register_forward_hook(lambda m, a, output, name=name: seen.update({name: output}))
  with torch_probes.measure(model) as row:
    model(tokens())
  for number in range(2):
    assert row[f'block_{number}/output_rms'] == close(rms(seen[f'h.{number}'][0].detach()))
    for name in ('attn', 'mlp'):
      expected = rms(seen[f'h.{number}.{name}'].detach())
      assert row[f'activation_rms/block_{number}/{name}'] == close(expected)
  logits = seen[''][0].detach().double().numpy()
  assert row['log_z'] == close(np.log(np.exp(logits).sum(-1)).mean())
  assert len([name for name in row if 'activation_rms' in name]) == 4


class Mixer(Attention):
  """A block whose name does not say that it computes attention."""


def test_output_of_blocks_without_a_module_of_attention():
  model, x = nn.Sequential(Mixer(sdpa), Mixer(sdpa)), torch.randn(B, T, D)
  with torch_probes.measure(model) as row:
    y = model(x).detach()
  assert row['block_1/output_rms'] == close(rms(y)) and 'block_0/output_rms' in row
  assert 'activation_rms/block_1/qkv' in row and 'activation_rms/block_1/1' not in row


def test_microbatches_are_joined():
  model = Model(layers=1)
  with torch_probes.measure(model) as row:
    for seed in range(3):
      model(tokens(seed))[1].backward()
  logits = np.stack(logits_of(model.h[0].attn))
  found = logits[np.broadcast_to(CAUSAL, logits.shape)]
  assert row['block_0/attention_logit_max'] == close(found.max())
  assert row['block_0/attention_logit_mean'] == close(found.mean())
  assert row['gradient_rms/head/weight'] == close(rms(model.head.weight.grad))


def test_gradients_are_those_before_clipping():
  model = Model()
  optimizer = torch.optim.AdamW(model.parameters(), eps=1e-6)
  with torch_probes.measure(model, optimizer) as row:
    model(tokens())[1].backward()
    expected = {n.replace('.', '/'): rms(p.grad) for n, p in model.named_parameters()}
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
  for name, value in expected.items():
    assert row[f'gradient_rms/{name}'] == close(value)
    assert row[f'gradient_over_eps/{name}'] == close(value / 1e-6)


@pytest.mark.parametrize('decay', [0.0, 0.5])
def test_updates_of_adamw(decay):
  """The second update against AdamW's definition, without learning rate and decay."""
  model, rate = Model(), 1e-2
  optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=decay)
  first, second = {}, {}
  for step in (1, 2):
    optimizer.zero_grad()
    with torch_probes.measure(model, optimizer) as row:
      model(tokens(step))[1].backward()
      optimizer.step()
    for name, p in model.named_parameters():
      g = p.grad.double().numpy()
      first[name] = 0.9 * first.get(name, 0) + 0.1 * g
      second[name] = 0.999 * second.get(name, 0) + 0.001 * g**2
  for name, moment in first.items():
    update = moment / (1 - 0.9**2) / (np.sqrt(second[name] / (1 - 0.999**2)) + 1e-8)
    expected = pytest.approx(rms(update), rel=1e-3)  # from parameters in float32
    assert row[f'update_rms/{name.replace(".", "/")}'] == expected


def test_of_a_single_number_only_the_gradient_is_measured():
  model = torch.nn.Linear(3, 1)
  optimizer = torch.optim.AdamW(model.parameters())
  with torch_probes.measure(model, optimizer) as row:
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
  assert {'gradient_rms/bias', 'gradient_over_eps/weight', 'update_rms/weight'} < row.keys()
  assert not {'gradient_over_eps/bias', 'update_rms/bias'} & row.keys()


def test_updates_of_sgd_and_their_absence():
  model = Model()
  optimizer = torch.optim.SGD(model.parameters(), 0.0)
  with torch_probes.measure(model, optimizer) as row:
    model(tokens())[1].backward()
    optimizer.step()
  assert not any(name.startswith(('update_rms/', 'gradient_over_eps/')) for name in row)
  optimizer.param_groups[0]['lr'] = 0.1
  with torch_probes.measure(model, optimizer) as row:
    optimizer.step()
  assert row['update_rms/head/weight'] == pytest.approx(rms(model.head.weight.grad), rel=1e-3)
  assert not any(name.startswith('gradient_rms/') for name in row)


@pytest.mark.skipif(not hasattr(torch.optim, 'Muon'), reason='this torch has no Muon')
def test_eps_of_muon_is_not_compared():
  """It guards the norm of a matrix."""
  model = Model()
  matrices = [p for p in model.h.parameters() if p.ndim == 2]
  with torch_probes.measure(model, torch.optim.Muon(matrices)) as row:
    model(tokens())[1].backward()
  assert any(name.startswith('gradient_rms/h/') for name in row)
  assert not any(name.startswith('gradient_over_eps/') for name in row)


def test_several_optimizers():
  model = Model()
  matrices, others = [*model.h.parameters()], [*model.embed.parameters(), *model.head.parameters()]
  optimizers = [torch.optim.SGD(matrices, 0.1), torch.optim.AdamW(others, 1e-3, eps=1e-6)]
  with torch_probes.measure(model, optimizers) as row:
    model(tokens())[1].backward()
    [optimizer.step() for optimizer in optimizers]
  names = {name.replace('.', '/') for name, _ in model.named_parameters()}
  assert {name.partition('/')[2] for name in row if name.startswith('update_rms/')} == names
  assert row['update_rms/h/0/mlp/weight'] == pytest.approx(rms(matrices[2].grad), rel=1e-3)
  assert 'gradient_over_eps/head/bias' in row and 'gradient_over_eps/h/0/mlp/weight' not in row


def test_frozen_and_sparse_parameters():
  model = Model()
  model.h.requires_grad_(False)
  model.embed.sparse = True
  with torch_probes.measure(model) as row:
    model(tokens())[1].backward()
  expected = rms(model.embed.weight.grad.to_dense())
  assert row['gradient_rms/embed/weight'] == close(expected)
  assert not any(name.startswith('gradient_rms/h/') for name in row)


def test_the_step_stays_the_same_and_nothing_stays_hooked():
  plain, measured = Model(), Model()
  for model in (plain, measured):
    optimizer = torch.optim.AdamW(model.parameters())
    context = torch_probes.measure(model, optimizer)
    row = context.__enter__() if model is measured else {}
    model(tokens())[1].backward()
    optimizer.step()
    if model is measured:
      context.__exit__(None, None, None)
  for one, other in zip(plain.parameters(), measured.parameters(), strict=True):
    assert torch.equal(one, other)
  before = dict(row)
  measured(tokens(1))[1].backward()
  optimizer.step()
  assert row == before
  assert not any(m._forward_hooks or m._forward_pre_hooks for m in measured.modules())


def test_an_error_in_the_step_leaves_no_hooks():
  model = Model()
  with pytest.raises(IndexError), torch_probes.measure(model) as row:
    model(torch.full((B, T), V))
  assert row == {} and not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize('reentrant', [True, False])
def test_activation_checkpointing(reentrant):
  model, again = Model(), Model()
  with torch_probes.measure(model) as row:
    model(tokens())[1].backward()
  for block in again.h:
    forward = block.forward
    block.forward = lambda x, f=forward: torch.utils.checkpoint.checkpoint(
        f, x, use_reentrant=reentrant
    )
  with torch_probes.measure(again) as recomputed:
    again(tokens())[1].backward()
  assert recomputed == close(row)


def test_autocast_and_low_precision():
  model = Model()
  with torch_probes.measure(model) as exact:
    model(tokens())
  with torch_probes.measure(model) as row, torch.autocast('cpu', torch.bfloat16):
    model(tokens())
  assert row['block_1/attention_logit_max'] == pytest.approx(
      exact['block_1/attention_logit_max'], rel=0.05
  )
  q, k = model.h[0].attn.seen[-1]  # the products themselves are in float32
  logits = q @ k.swapaxes(-1, -2) / 2
  assert row['block_0/attention_logit_max'] == close(logits[..., CAUSAL].max())


def test_model_without_attention():
  model = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, V))
  x = torch.randn(B, D)
  with torch_probes.measure(model) as row:
    y = model(x)
  assert row['block_2/output_rms'] == close(rms(y.detach()))
  assert row['log_z'] == close(y.double().logsumexp(-1).mean().item())
  assert not any('attention' in name for name in row)


def test_monitor_lacks_nothing():
  model, monitor = Model(), stability.Monitor()
  optimizer = torch.optim.AdamW(model.parameters())
  for step in range(12):
    optimizer.zero_grad()
    with torch_probes.measure(model, optimizer) as row:
      loss = model(tokens())[1]
      loss.backward()
      optimizer.step()
    monitor.observe({'step': step, 'loss': loss, **row})
  assert monitor.lacking == {}


@pytest.mark.parametrize('name', ['AdamW', 'Muon', 'NAdam'])
def test_decoupled_weight_decay_is_no_update(name):
  if not hasattr(torch.optim, name):
    pytest.skip(f'this PyTorch has no {name}')
  found = []
  for decay in (0.0, 0.5):
    options = {'decoupled_weight_decay': True} if name == 'NAdam' else {}
    model = Model()
    optimizer = getattr(torch.optim, name)(
        [block.mlp.weight for block in model.h], 1e-2, weight_decay=decay, **options
    )
    with torch_probes.measure(model, optimizer) as row:
      model(tokens())[1].backward()
      optimizer.step()
    found.append(row['update_rms/h/0/mlp/weight'])
  assert found[0] > 0 and found[1] == pytest.approx(found[0], rel=1e-3)
