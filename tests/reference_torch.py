"""The paper's model, objective, optimizer and schedule in plain PyTorch: a second opinion.

Written from the description in arXiv 2309.14322 alone; it shares no code with stability/. Settings
come as a flat dict under the dotted names of configs/base.py, parameters have the names of the Flax
tree with dots (block_0.attention.query) and its shapes: [in, out].
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
    self.embedding = nn.Parameter(torch.randn(vocabulary_size, width) / math.sqrt(width))
    for i in range(self.depth):
      self.add_module(f'block_{i}', Block(c))
    self.final_norm = LayerNorm(width)
    self.head = matrix(width, vocabulary_size)

  def forward(self, tokens: Tensor) -> Tensor:
    x = F.embedding(tokens, self.embedding)
    for i in range(self.depth):
      x = self.get_submodule(f'block_{i}')(x)
    return self.final_norm(x) @ self.head


class Block(nn.Module):
  """Pre-LayerNorm: x + attention(norm(x)), then x + mlp(norm(x))."""

  def __init__(self, c: Settings):
    super().__init__()
    self.attention_norm = LayerNorm(c['model.width'])
    self.attention = Attention(c)
    self.mlp_norm = LayerNorm(c['model.width'])
    self.mlp = MLP(c['model.width'])

  def forward(self, x: Tensor) -> Tensor:
    x = x + self.attention(self.attention_norm(x))
    return x + self.mlp(self.mlp_norm(x))


class Attention(nn.Module):
  """Causal, scaled by 1/sqrt(head_dim); queries and keys are normalised before RoPE."""

  def __init__(self, c: Settings):
    super().__init__()
    width, self.head_dim = c['model.width'], c['model.head_dim']
    self.query, self.key = matrix(width, width), matrix(width, width)
    self.value, self.output = matrix(width, width), matrix(width, width)
    self.qk_norm = c['model.qk_norm'] == 'layernorm'
    if self.qk_norm:  # over head_dim; the heads share the scale
      self.qk_norm_query, self.qk_norm_key = LayerNorm(self.head_dim), LayerNorm(self.head_dim)

  def forward(self, x: Tensor) -> Tensor:
    # [batch, time, width] -> [batch, heads, time, head_dim]
    q, k, v = (
        (x @ kernel).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        for kernel in (self.query, self.key, self.value)
    )
    if self.qk_norm:
      q, k = self.qk_norm_query(q), self.qk_norm_key(k)
    out = F.scaled_dot_product_attention(rope(q), rope(k), v, is_causal=True)
    return out.transpose(1, 2).flatten(-2) @ self.output


class MLP(nn.Module):
  """Four times as wide inside, GELU in its tanh form."""

  def __init__(self, width: int):
    super().__init__()
    self.up, self.down = matrix(width, 4 * width), matrix(4 * width, width)

  def forward(self, x: Tensor) -> Tensor:
    return F.gelu(x @ self.up, approximate='tanh') @ self.down


class LayerNorm(nn.Module):
  """Over the last axis, with a scale and no bias."""

  def __init__(self, size: int):
    super().__init__()
    self.scale = nn.Parameter(torch.ones(size))

  def forward(self, x: Tensor) -> Tensor:
    return F.layer_norm(x, self.scale.shape, self.scale, eps=1e-6)


def matrix(fan_in: int, fan_out: int) -> nn.Parameter:
  """Normal, cut at two standard deviations, 1/sqrt(fan_in) of them left."""
  weights = torch.empty(fan_in, fan_out)
  std = 1 / math.sqrt(fan_in) / 0.87962566  # of the standard normal on [-2, 2]
  return nn.Parameter(nn.init.trunc_normal_(weights, std=std, a=-2 * std, b=2 * std))


@functools.cache
def turns(time: int, size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
  """Cosines and sines of rope's angles, [time, size / 2] each."""
  exponents = torch.arange(0, size, 2, dtype=torch.float64, device=device) / size
  times = torch.arange(time, dtype=torch.float64, device=device)
  angles = torch.outer(times, 10_000.0**-exponents)
  return angles.cos().to(dtype), angles.sin().to(dtype)


def rope(x: Tensor) -> Tensor:
  """Turns (x_i, x_{i + K/2}) by the angle time * 10000^(-2i/K); x is [..., time, K]."""
  cos, sin = turns(*x.shape[-2:], x.dtype, x.device)
  a, b = x.chunk(2, dim=-1)
  return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def objective(logits: Tensor, targets: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
  """What is minimised, and the cross-entropy alone: mean log p, and z_loss * mean log^2 Z."""
  loss = F.cross_entropy(logits.flatten(0, -2), targets.flatten())
  return loss + z_loss * logits.logsumexp(-1).square().mean(), loss


def schedule(c: Settings, update: int) -> float:
  """Learning rate of an update, counted from 1: linear warm-up, then half a cosine."""
  highest, lowest = c['optimizer.learning_rate'], c['schedule.min_learning_rate']
  warmup, steps = c['schedule.warmup_steps'], c['schedule.steps']
  if update < warmup:
    return highest * update / warmup
  progress = (update - warmup) / max(steps - warmup, 1)
  return lowest + (highest - lowest) * (1 + math.cos(math.pi * progress)) / 2


class AdamW:
  """Clipping by the global norm, Adam with bias correction, and decay of every parameter."""

  def __init__(self, c: Settings, parameters: Iterable[Tensor]):
    self.c = c
    self.parameters = list(parameters)
    self.updates = 0
    self.first = [torch.zeros_like(p) for p in self.parameters]
    self.second = [torch.zeros_like(p) for p in self.parameters]

  @torch.no_grad()
  def direction(self, gradients: Iterable[Tensor]) -> list[Tensor]:
    """Counts an update and returns m / (sqrt(v) + eps), both moments corrected."""
    gradients = list(gradients)
    limit = self.c['optimizer.clip_norm']
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    if limit > 0:
      scale = (limit / norm).clamp(max=1)
      gradients = [g * scale for g in gradients]
    beta1, beta2 = self.c['optimizer.beta1'], self.c['optimizer.beta2']
    self.updates += 1
    correction1, correction2 = 1 - beta1**self.updates, 1 - beta2**self.updates
    directions = []
    for m, v, g in zip(self.first, self.second, gradients, strict=True):
      m.lerp_(g, 1 - beta1)
      v.lerp_(g.square(), 1 - beta2)
      directions.append(m / correction1 / ((v / correction2).sqrt() + self.c['optimizer.eps']))
    return directions

  @torch.no_grad()
  def step(self, gradients: Iterable[Tensor]) -> None:
    """Parameters less s (LR u + decay p), or s LR (u + decay p) if coupled; s = schedule / LR."""
    directions = self.direction(gradients)
    rate = schedule(self.c, self.updates)
    decay = self.c['optimizer.weight_decay'] * rate
    if self.c['optimizer.weight_decay_kind'] == 'independent':
      decay /= self.c['optimizer.learning_rate']
    for p, u in zip(self.parameters, directions, strict=True):
      p.mul_(1 - decay).sub_(u, alpha=rate)


def train_step(model: Transformer, optimizer: AdamW, batch: Tensor, z_loss: float) -> Tensor:
  """One update on a batch [batch, time + 1]; returns the cross-entropy before it."""
  total, loss = objective(model(batch[:, :-1]), batch[:, 1:], z_loss)
  optimizer.step(torch.autograd.grad(total, list(model.parameters())))
  return loss.detach()
