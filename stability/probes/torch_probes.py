"""Probes of a PyTorch model, measured in the training steps for which they are asked.

  with torch_probes.measure(model, optimizer) as row:
    loss = ...
    loss.backward()
    optimizer.step()
  alarms = monitor.observe({'step': step, 'loss': loss, **row})

See README.md for what is measured and what is not seen.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode

from stability.probes import structure
from stability.probes.structure import Logits, Output, Path

_FUSED = F.scaled_dot_product_attention
_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
_DECOUPLED = ('AdamW', 'Muon')  # optimizers that decay weights apart from the update
_QUERIES, _TOKENS = 256, 1024  # measured at a time, which bounds memory


@contextlib.contextmanager
def measure(
    model: nn.Module, optimizer: Optimizer | Sequence[Optimizer] | None = None
) -> Iterator[dict[str, float]]:
  """Measures a training step: all forward and backward passes in the context, and the update.

  Without the context nothing is hooked and nothing costs time. Hooks copy the parameters while the
  optimizer works, and recompute attention logits in float32, some queries at a time.

  Args:
    model: any module; its blocks are found by the names of its modules.
    optimizer: the optimizer that makes the step, or several, also in wrappers of accelerate; None:
      updates and gradient_over_eps are not measured.

  Yields:
    A row that is filled in at the end of the context, name -> number:
      block_0/attention_logit_max, block_0/attention_logit_mean: over unmasked pairs of query and
        key, heads and batch, scaled as the softmax gets them
      block_0/output_rms, activation_rms/block_0/NAME: of a block and of the modules in it
      log_z: the mean over all tokens of the log of the softmax normaliser of the output, in nats
      gradient_rms/NAME, gradient_over_eps/NAME: before clipping, of the parameters with a gradient
      update_rms/NAME: the change of a parameter over its learning rate, without the weight decay of
        AdamW and other optimizers that decouple it; absent if the learning rate is 0
  """
  forward, row = _Forward(), {}
  given = optimizer if isinstance(optimizer, Sequence) else [optimizer] if optimizer else []
  backward = _Backward(model, [getattr(x, 'optimizer', x) for x in given])
  with contextlib.ExitStack() as hooks:
    for handle in (*forward.hooks(model), *backward.hooks()):
      hooks.callback(handle.remove)
    with forward:
      yield row
  row |= forward.row() | backward.row()


class _Forward(TorchFunctionMode):
  """Records attention logits, outputs of modules and log Z of all calls of a model."""

  def __init__(self):
    super().__init__()
    self._calls: list[tuple[Path, bool]] = []  # modules being called; whether within attention
    self._logits: list[Logits] = []
    self._outputs: list[Output] = []
    self._log_z: list[Tensor] = []  # of all tokens

  def hooks(self, model: nn.Module) -> Iterator[Any]:
    """Registers the hooks; yields their handles."""
    for name, module in model.named_modules():
      path = tuple(name.split('.')) if name else ()
      names = (name.rpartition('.')[2], type(module).__name__) if name else ()
      call = path, structure.is_attention(*names)
      yield module.register_forward_pre_hook(lambda module, args, call=call: self._enter(*call))
      yield module.register_forward_hook(
          lambda module, args, output: self._leave(output), always_call=True
      )

  def row(self) -> dict[str, float]:
    logits = [
        Logits(x.path, float(x.highest), float(x.total), float(x.pairs)) for x in self._logits
    ]
    outputs = [dataclasses.replace(x, mean_square=float(x.mean_square)) for x in self._outputs]
    found = structure.row([x for x in logits if x.pairs], outputs)
    return found | ({'log_z': float(torch.cat(self._log_z).mean())} if self._log_z else {})

  def _enter(self, path: Path, is_attention: bool) -> None:
    self._calls.append((path, is_attention or (bool(self._calls) and self._calls[-1][1])))

  @torch.no_grad()
  def _leave(self, output: Any) -> None:
    path, is_attention = self._calls.pop()
    x = output[0] if isinstance(output, tuple | list) and output else output
    if _is_float(x):
      self._outputs.append(Output(path, _mean_square(x), x.numel(), is_attention))
    logits = structure.output_logits(output, _is_float) if not path else None
    if logits is not None:
      tokens = logits.detach().flatten(0, -2).split(_TOKENS)
      self._log_z.append(torch.cat([x.float().logsumexp(-1) for x in tokens]))

  def __torch_function__(self, function, types, args=(), kwargs=None):
    kwargs = kwargs or {}
    if function is F.multi_head_attention_forward:
      with self._inside_multi_head_attention():
        return function(*args, **kwargs)
    return self._call(function, *args, **kwargs)

  @contextlib.contextmanager
  def _inside_multi_head_attention(self) -> Iterator[None]:
    """Replaces the functions that it calls: the mode is off inside a function that it handles."""
    originals = {f.__name__: f for f in (_FUSED, F.softmax)}
    for name, function in originals.items():
      setattr(F, name, lambda *args, f=function, **kwargs: self._call(f, *args, **kwargs))
    try:
      yield
    finally:
      for name, function in originals.items():
        setattr(F, name, function)

  def _call(self, function, *args, **kwargs):
    if self._calls and function is _FUSED:
      self._record(_fused_logits(*args, **kwargs))
    elif self._calls and self._calls[-1][1] and function in _SOFTMAX:
      self._record(_softmax_logits(*args, **kwargs))
    return function(*args, **kwargs)

  @torch.no_grad()
  def _record(self, parts: Iterator[tuple[Tensor, Tensor]]) -> None:
    path, _ = self._calls[-1]
    for logits, unmasked in parts:
      highest = torch.where(unmasked, logits, -torch.inf).amax()
      total = torch.where(unmasked, logits, 0.0).sum()
      self._logits.append(Logits(path, highest, total, unmasked.sum()))


def _fused_logits(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
  """Yields (logits, unmasked) of some queries of scaled_dot_product_attention.

  A mask that is added is not part of the logits; its entries near the lowest number mask a pair.
  """
  del value, dropout_p
  scale = query.shape[-1] ** -0.5 if scale is None else scale
  if enable_gqa:
    key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
  shape = *query.shape[:-1], key.shape[-2]
  keep = torch.ones(shape[-2:], dtype=torch.bool, device=query.device)
  if is_causal:
    keep = keep.tril()
  elif attn_mask is not None:
    keep = attn_mask if attn_mask.dtype == torch.bool else _is_unmasked(attn_mask)
  keep = keep.expand(shape)
  key = key.detach().float().transpose(-2, -1)
  for start in range(0, shape[-2], _QUERIES):
    rows = slice(start, start + _QUERIES)
    with torch.autocast(query.device.type, enabled=False):
      yield query[..., rows, :].detach().float() @ key * scale, keep[..., rows, :]


def _softmax_logits(
    input: Tensor, dim: int | None = None, *_: Any, **__: Any
) -> Iterator[tuple[Tensor, Tensor]]:
  """Yields (logits, unmasked) of a softmax over keys: [..., T, S] in at least three dimensions."""
  if input.ndim >= 3 and dim in (-1, input.ndim - 1):
    yield input.detach().float(), _is_unmasked(input)


def _is_unmasked(logits: Tensor) -> Tensor:
  return logits > structure.masked_below(torch.finfo(logits.dtype).min)


class _Backward:
  """Records gradients and updates of parameters."""

  def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]):
    self._names = {p: name.replace('.', '/') for name, p in model.named_parameters()}
    self._optimizers = optimizers
    self._gradients: dict[str, Tensor] = {}  # RMS by name
    self._updates: dict[str, Tensor] = {}
    self._before: dict[Tensor, Tensor] = {}  # parameters before the update
    self._eps = {
        self._names[p]: group['eps']
        for optimizer in optimizers
        if 'Muon' not in _types(optimizer)  # whose eps guards the norm of a matrix
        for group in optimizer.param_groups
        if isinstance(group.get('eps'), float) and group['eps'] > 0  # Adafactor has two
        for p in group['params']
        if p in self._names and p.numel() > 1
    }

  def hooks(self) -> Iterator[Any]:
    """Registers the hooks; yields their handles."""
    for parameter in self._names:
      if parameter.requires_grad:
        yield parameter.register_post_accumulate_grad_hook(self._after_gradient)
    for optimizer in self._optimizers:
      yield optimizer.register_step_pre_hook(self._before_update)
      yield optimizer.register_step_post_hook(self._after_update)

  def row(self) -> dict[str, float]:
    gradients = {name: float(value) for name, value in self._gradients.items()}
    return {
        **{f'gradient_rms/{name}': value for name, value in gradients.items()},
        **structure.over_eps(gradients, self._eps),
        **{f'update_rms/{name}': float(value) for name, value in self._updates.items()},
    }

  @torch.no_grad()
  def _after_gradient(self, parameter: Tensor) -> None:
    """Overwrites the RMS after each backward pass: the last one completes the gradient."""
    gradient = parameter.grad
    if gradient.is_sparse:
      gradient = gradient.to_dense()
    self._gradients[self._names[parameter]] = _mean_square(gradient).sqrt()

  def _before_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    self._before = {p: p.detach().clone() for p in self._names}

  @torch.no_grad()
  def _after_update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    types = _types(optimizer)
    for group in optimizer.param_groups:
      rate = float(group['lr'])
      is_decoupled = group.get('decoupled_weight_decay') or not types.isdisjoint(_DECOUPLED)
      decay = rate * group.get('weight_decay', 0.0) if is_decoupled else 0.0
      for p in group['params']:
        if p in self._before and p.grad is not None and rate and p.numel() > 1:
          change = (1 - decay) * self._before[p].float() - p.float()
          self._updates[self._names[p]] = _mean_square(change).sqrt() / abs(rate)
    self._before = {}


def _types(optimizer: Optimizer) -> set[str]:
  """The names of the optimizer's class and of those that it is derived from."""
  return {cls.__name__ for cls in type(optimizer).__mro__}


def _is_float(x: Any) -> bool:
  return isinstance(x, Tensor) and x.is_floating_point() and x.numel() > 0


def _mean_square(x: Tensor) -> Tensor:
  return x.detach().float().square().mean()
