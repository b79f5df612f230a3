"""A reference of the paper's model, objective, optimizers and schedule in plain PyTorch.

It is written from the descriptions in arXiv 2309.14322 and in the papers of the interventions, and
shares no code with stability/. Settings are a flat dict with the dotted names of configs/base.py.
Parameters have the names of the Flax tree, with dots (block_0.attention.query), and its shapes:
[in, out].
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Settings = Mapping[str, Any]


class Transformer(nn.Module):
  """Tokens [batch, time] -> logits [batch, time, vocabulary]."""

  def __init__(self, c: Settings, vocabulary_size: int):
    super().__init__()
    width = c['model.width']
    self.depth = c['model.depth']
    self.cap = c['model.output_soft_cap']
    self.embedding = nn.Parameter(torch.randn(vocabulary_size, width) / math.sqrt(width))
    for i in range(self.depth):
      self.add_module(f'block_{i}', Block(c))
    self.final_norm = NORMS[c['model.norm']](width)
    self.head = matrix(width, vocabulary_size)

  def forward(self, tokens: Tensor) -> Tensor:
    x = F.embedding(tokens, self.embedding)
    for i in range(self.depth):
      x = self.get_submodule(f'block_{i}')(x)
    logits = self.final_norm(x) @ self.head
    return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


class Block(nn.Module):
  """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x)); peri: x + norm(attention(norm(x)))."""

  def __init__(self, c: Settings):
    super().__init__()
    norm, peri = NORMS[c['model.norm']], c['model.norm_position'] == 'peri'
    self.attention_norm = norm(c['model.width'])
    self.attention = Attention(c)
    self.attention_output_norm = norm(c['model.width']) if peri else nn.Identity()
    self.mlp_norm = norm(c['model.width'])
    self.mlp = MLP(c['model.width'])
    self.mlp_output_norm = norm(c['model.width']) if peri else nn.Identity()

  def forward(self, x: Tensor) -> Tensor:
    x = x + self.attention_output_norm(self.attention(self.attention_norm(x)))
    return x + self.mlp_output_norm(self.mlp(self.mlp_norm(x)))


class Attention(nn.Module):
  """Causal attention; queries and keys are normalised before RoPE, logits capped after scaling."""

  def __init__(self, c: Settings):
    super().__init__()
    width, self.head_dim = c['model.width'], c['model.head_dim']
    self.query, self.key = matrix(width, width), matrix(width, width)
    self.value, self.output = matrix(width, width), matrix(width, width)
    self.gate = matrix(width, width) if c['model.attention_gate'] == 'sigmoid' else None
    self.qk_norm, self.kappa = c['model.qk_norm'], c['model.logit_scale']
    if self.qk_norm in ('layernorm', 'rmsnorm'):  # over head_dim; the heads share the scale
      norm, size = NORMS[self.qk_norm], self.head_dim
      self.qk_norm_query, self.qk_norm_key = norm(size), norm(size)
    if self.qk_norm == 'layernorm_model':
      self.qk_norm_query, self.qk_norm_key = LayerNorm(width), LayerNorm(width)
    self.scale = {'inverse_sqrt': 1 / math.sqrt(self.head_dim), 'inverse': 1 / self.head_dim}[
        c['model.attention_scale']
    ]
    if c['parameterization.name'] == 'muparam_full':
      self.scale = 1 / self.head_dim
    if self.qk_norm == 'l2':
      time = c['data.sequence_length']
      self.logit_scale = nn.Parameter(torch.tensor(math.log2(time**2 - time)))
    self.attention, self.cap = c['model.attention'], c['model.attention_soft_cap']

  def forward(self, x: Tensor) -> Tensor:
    q, k, v = x @ self.query, x @ self.key, x @ self.value
    if self.qk_norm == 'layernorm_model':
      q, k = self.qk_norm_query(q), self.qk_norm_key(k)
    # [batch, time, width] -> [batch, heads, time, head_dim]
    q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for y in (q, k, v))
    if self.qk_norm in ('layernorm', 'rmsnorm'):
      q, k = self.qk_norm_query(q), self.qk_norm_key(k)
    if self.qk_norm == 'fixed':
      q, k = (y * (self.kappa / y.square().mean(-1, keepdim=True)).sqrt() for y in (q, k))
    scale = self.scale
    if self.qk_norm == 'l2':
      q, k = F.normalize(q, dim=-1) * self.logit_scale, F.normalize(k, dim=-1)
      scale = 1.0
    out = self.attend(rope(q), rope(k), v, scale).transpose(1, 2).flatten(-2)
    if self.gate is not None:
      out = out * torch.sigmoid(x @ self.gate)
    return out @ self.output

  def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Values weighted by softmax, or by squared ReLU over the root of the sequence length."""
    if self.attention == 'softmax' and not self.cap:
      return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    logits = scale * q @ k.transpose(-1, -2)
    if self.cap:
      logits = self.cap * torch.tanh(logits / self.cap)
    time = logits.shape[-1]
    later = torch.ones(time, time, dtype=torch.bool).triu(1)
    if self.attention == 'softmax':
      return logits.masked_fill(later, -math.inf).softmax(-1) @ v
    return (logits.relu() ** 2 / math.sqrt(time)).masked_fill(later, 0) @ v


class MLP(nn.Module):
  """One hidden layer of four times the width, with GELU in its tanh form."""

  def __init__(self, width: int):
    super().__init__()
    self.up, self.down = matrix(width, 4 * width), matrix(4 * width, width)

  def forward(self, x: Tensor) -> Tensor:
    return F.gelu(x @ self.up, approximate='tanh') @ self.down


class LayerNorm(nn.Module):
  """LayerNorm over the last axis, with a scale and no bias."""

  def __init__(self, size: int):
    super().__init__()
    self.scale = nn.Parameter(torch.ones(size))

  def forward(self, x: Tensor) -> Tensor:
    return F.layer_norm(x, self.scale.shape, self.scale, eps=1e-6)


class RMSNorm(nn.Module):
  """RMSNorm over the last axis, with a scale."""

  def __init__(self, size: int):
    super().__init__()
    self.scale = nn.Parameter(torch.ones(size))

  def forward(self, x: Tensor) -> Tensor:
    return self.scale * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


NORMS = {'layernorm': LayerNorm, 'rmsnorm': RMSNorm}


def matrix(fan_in: int, fan_out: int) -> nn.Parameter:
  """Weights from a normal truncated at two standard deviations, with a std of 1/sqrt(fan_in)."""
  weights = torch.empty(fan_in, fan_out)
  std = 1 / math.sqrt(fan_in) / 0.87962566  # std of the standard normal on [-2, 2]
  return nn.Parameter(nn.init.trunc_normal_(weights, std=std, a=-2 * std, b=2 * std))


@functools.cache
def turns(time: int, size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
  """Cosines and sines of rope's angles, [time, size / 2] each."""
  exponents = torch.arange(0, size, 2, dtype=torch.float64, device=device) / size
  times = torch.arange(time, dtype=torch.float64, device=device)
  angles = torch.outer(times, 10_000.0**-exponents)
  return angles.cos().to(dtype), angles.sin().to(dtype)


def rope(x: Tensor) -> Tensor:
  """Rotates (x_i, x_{i + K/2}) by the angle time * 10000^(-2i/K); x is [..., time, K]."""
  cos, sin = turns(*x.shape[-2:], x.dtype, x.device)
  a, b = x.chunk(2, dim=-1)
  return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def objective(
    c: Settings, logits: Tensor, targets: Tensor, head: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
  """The objective and its terms; the columns of head [width, vocabulary] are output embeddings."""
  terms = {
      'loss': F.cross_entropy(logits.flatten(0, -2), targets.flatten()),
      'z_loss': c['objective.z_loss'] * logits.logsumexp(-1).square().mean(),
  }
  if c['objective.mu_loss']:
    mean = sum(head.unbind(1)) / head.shape[1]
    terms['mu_loss'] = c['objective.mu_loss'] * mean.dot(mean)
  return sum(terms.values()), terms


def schedule(c: Settings, update: int) -> float:
  """Learning rate of an update, counted from 1: linear warm-up, then the shape of the schedule.

  The shape is half a cosine, constant with a linear decay at the end (wsd), or 1 / sqrt(update)
  (rsqrt).
  """
  highest, lowest = c['optimizer.learning_rate'], c['schedule.min_learning_rate']
  warmup, steps = c['schedule.warmup_steps'], c['schedule.steps']
  if update < warmup:
    return highest * update / warmup
  if c['schedule.shape'] == 'rsqrt':
    return max(highest / math.sqrt(update / max(warmup, 1)), lowest)
  if c['schedule.shape'] == 'wsd':
    left = steps - update
    if left >= c['schedule.decay_steps']:
      return highest
    return lowest + (highest - lowest) * left / c['schedule.decay_steps']
  progress = (update - warmup) / max(steps - warmup, 1)
  return lowest + (highest - lowest) * (1 + math.cos(math.pi * progress)) / 2


class Optimizer:
  """Clipping by the global norm, a rule for each tensor, and decay of every parameter."""

  def __init__(self, c: Settings, parameters: Mapping[str, Tensor]):
    self.c = c
    self.parameters = dict(parameters)
    self.updates = 0
    self.beta1, self.beta2 = c['optimizer.beta1'], c['optimizer.beta2']
    self.eps = c['optimizer.eps']
    self.first = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
    self.second = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

  def rule(self, name: str, g: Tensor) -> Tensor:
    """The direction of one tensor, from its clipped gradient."""
    raise NotImplementedError

  def moments(self, name: str, g: Tensor) -> tuple[Tensor, Tensor]:
    """Adam's two moments, with bias correction."""
    m, v = self.first[name], self.second[name]
    m.lerp_(g, 1 - self.beta1)
    v.lerp_(g.square(), 1 - self.beta2)
    return m / (1 - self.beta1**self.updates), v / (1 - self.beta2**self.updates)

  @torch.no_grad()
  def direction(self, gradients: Iterable[Tensor]) -> dict[str, Tensor]:
    """Counts an update and returns the direction of each parameter, without the learning rate."""
    gradients = list(gradients)
    limit = self.c['optimizer.clip_norm']
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    if limit > 0:
      scale = (limit / norm).clamp(max=1)
      gradients = [g * scale for g in gradients]
    self.updates += 1
    return {n: self.rule(n, g) for n, g in zip(self.parameters, gradients, strict=True)}

  @torch.no_grad()
  def step(self, gradients: Iterable[Tensor]) -> None:
    """Subtracts s (LR u + decay p), or s LR (u + decay p) if coupled, where s = schedule / LR."""
    directions = self.direction(gradients)
    scheduled = schedule(self.c, self.updates)
    for name, p in self.parameters.items():
      rate = scheduled
      if self.c['parameterization.name'].startswith('muparam') and is_linear(name, p):
        rate = scheduled * self.c['parameterization.base_width'] / self.c['model.width']
      decay = self.c['optimizer.weight_decay']
      if self.c['optimizer.weight_decay_kind'] == 'independent':
        decay *= scheduled / self.c['optimizer.learning_rate']
      else:
        decay *= rate
      u = directions[name]
      if self.c['optimizer.learning_rate_scale'] == 'parameter_rms':
        u = u * max(p.square().mean().sqrt().item(), 1e-3)
      p.mul_(1 - decay).sub_(u, alpha=rate)


def is_linear(name: str, p: Tensor) -> bool:
  """Whether a parameter is a matrix whose fan-in grows with the width: all but the embedding."""
  return p.dim() == 2 and name != 'embedding'


class AdamW(Optimizer):
  def rule(self, name, g):
    m, v = self.moments(name, g)
    return m / (v.sqrt() + self.eps)


class AdamAtan2(Optimizer):
  def rule(self, name, g):
    m, v = self.moments(name, g)
    return torch.atan2(m, v.sqrt()) / math.atan(1)  # 1 where m = sqrt(v)


class StableAdamW(Optimizer):
  def rule(self, name, g):
    m, v = self.moments(name, g)
    rms = g.double().square().div(v.double().clamp(min=self.eps**2)).mean().sqrt().item()
    return m / (v.sqrt() + self.eps) / max(1, rms)


class Lion(Optimizer):
  def rule(self, name, g):
    m = self.first[name]
    direction = m.lerp(g, 1 - self.beta1).sign()
    m.lerp_(g, 1 - self.beta2)
    return direction


class Muon(AdamW):
  def rule(self, name, g):
    if not name.startswith('block_') or g.dim() < 2:
      return super().rule(name, g)
    m, t = self.first[name], self.updates
    m.lerp_(g, 1 - self.beta1)
    # Nesterov momentum: the bias correction of the momentum is that of the next update.
    ahead = self.beta1 * m / (1 - self.beta1 ** (t + 1))
    ahead += (1 - self.beta1) * g / (1 - self.beta1**t)
    return 0.2 * math.sqrt(max(g.shape)) * newton_schulz(ahead, self.eps)


def newton_schulz(matrix: Tensor, eps: float) -> Tensor:
  """Replaces all singular values by about 1: five iterations of an odd quintic."""
  x = matrix / (matrix.norm() + eps)
  a, b, c = 3.4445, -4.7750, 2.0315
  for _ in range(5):
    x = a * x + b * x @ x.T @ x + c * x @ x.T @ x @ x.T @ x
  return x


class Adafactor(Optimizer):
  def rule(self, name, g):
    v, rate = self.second[name], self.updates**-0.8
    v.lerp_(g.square() + 1e-30, rate)  # averaging and taking means commute
    if g.dim() == 2:
      v = v.double()
      rows, columns = v.mean(1, keepdim=True), v.mean(0, keepdim=True)
      v = rows * columns / v.mean()
    direction = (g / v.sqrt()).float()
    return direction / direction.square().mean().sqrt().clamp(min=1)


OPTIMIZERS = {
    'adamw': AdamW,
    'adam_atan2': AdamAtan2,
    'stable_adamw': StableAdamW,
    'lion': Lion,
    'muon': Muon,
    'adafactor': Adafactor,
}


def train_step(c: Settings, model: Transformer, optimizer: Optimizer, batch: Tensor) -> Tensor:
  """One update on a batch [batch, time + 1]; returns the cross-entropy before it."""
  total, terms = objective(c, model(batch[:, :-1]), batch[:, 1:], model.head)
  optimizer.step(torch.autograd.grad(total, list(model.parameters())))
  if c['model.output_centering'] == 'mean':
    with torch.no_grad():
      model.head -= model.head.mean(1, keepdim=True)
  return terms['loss'].detach()
