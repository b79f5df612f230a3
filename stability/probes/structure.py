"""The structure of a model: its blocks, from the paths of its modules, and what it returns."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

_NUMBERED = re.compile(r'(.*?)_?(\d+)')
_ATTENTION = re.compile('attention|attn', re.IGNORECASE)

# With `/value`, a variable of Flax NNX.
_KEY_BIAS = re.compile(r'(.*[/_])?k(ey)?(_proj|_lin)?/bias(/value)?', re.IGNORECASE)

Path = tuple[str, ...]  # names of nested modules; () is the model
Number = Any  # a float or an array of one element


@dataclasses.dataclass(frozen=True)
class Logits:
  """The attention logits of a call of a module."""

  path: Path
  highest: Number
  total: Number  # the sum over unmasked query-key pairs
  pairs: Number  # the number of these pairs


@dataclasses.dataclass(frozen=True)
class Output:
  """The output of a call of a module."""

  path: Path
  mean_square: Number
  size: int  # number of elements
  is_attention: bool = False  # whether the module computes attention or is a part of one that does


def is_attention(*names: str) -> bool:
  """Whether a module with these names, its own and that of its type, computes attention."""
  return any(map(_ATTENTION.search, names))


def masked_below(lowest: float) -> float:
  """Attention logits up to this number are masked; `lowest` is the lowest one of their type.

  Masks are -inf, the lowest number or, often, -1e9 or -1e30, to which a logit may have been added.
  """
  return max(lowest / 2, -1e8)


def output_logits(output: Any, is_array: Callable[[Any], bool]) -> Any | None:
  """The logits in a model's output: `logits` of an object or a mapping, an array or the first one.

  Args:
    output: what the model returns.
    is_array: whether something is an array of floats.
  """
  if isinstance(output, Mapping):
    output = output.get('logits')
  output = getattr(output, 'logits', output)
  parts = output if isinstance(output, tuple | list) else [output]
  return next((x for x in parts if is_array(x) and x.ndim > 1), None)


def over_eps(gradient_rms: Mapping[str, Number], eps: Mapping[str, float]) -> dict[str, Number]:
  """gradient_over_eps/NAME of the parameters with a known eps, which those of one number lack.

  The gradient of a single number passes through 0, and stays there if a norm undoes its factor. The
  bias of keys is left out: without rotary positions it shifts all logits of a query alike, so that
  its gradient is 0 but for rounding errors, and is below any eps.
  """
  return {
      f'gradient_over_eps/{name}': value / eps[name]
      for name, value in gradient_rms.items()
      if name in eps and not _KEY_BIAS.fullmatch(name)
  }


def row(
    logits: Sequence[Logits],
    outputs: Sequence[Output],
    maximum: Callable[[Number, Number], Number] = max,
) -> dict[str, Number]:
  """Names what was measured in the calls of modules and joins the calls of a module.

  Returns block_0/attention_logit_max, block_0/attention_logit_mean, block_0/output_rms and
  activation_rms/block_0/NAME, for the modules NAME that a block consists of.
  """
  blocks = _blocks([x.path for x in logits], [x.path for x in outputs])
  highest, sums = {}, {}
  for found in logits:
    name = f'block_{_block_of(found.path, blocks)[1]}/attention_logit'
    old = highest.get(f'{name}_max', found.highest)
    highest[f'{name}_max'] = maximum(old, found.highest)
    _add(sums, f'{name}_mean', found.total, found.pairs)
  for found in outputs:
    block = _block_of(found.path, blocks)
    if block is not None and (name := _output_name(found, *block)) is not None:
      _add(sums, name, found.mean_square * found.size, found.size)
  means = {name: total / count for name, (total, count) in sums.items()}
  return highest | {
      name: value**0.5 if 'rms' in name else value for name, value in means.items()
  }


def _add(sums: dict[str, tuple[Number, Number]], name: str, total: Number, count: Number) -> None:
  old_total, old_count = sums.get(name, (0, 0))
  sums[name] = old_total + total, old_count + count


def _blocks(attention: Iterable[Path], called: Iterable[Path]) -> dict[Path, int]:
  """The blocks of a model and their numbers, from the paths of modules in the order of calls.

  A block is the outermost numbered part of the model that has not all of the attention in it; in a
  model whose attention was not seen, that has not all of the numbered modules. The numbers are
  those of the names, or where these repeat, as in an encoder and a decoder, the order of calls.
  """
  paths = list(dict.fromkeys(attention))
  if not paths:
    paths = [path for path in dict.fromkeys(called) if any(map(_NUMBERED.fullmatch, path))]
  found = dict.fromkeys(_block(path, paths) for path in paths)
  names = [_NUMBERED.fullmatch(path[-1]) if path else None for path in found]
  if all(names) and len({(*path[:-1], n[1]) for path, n in zip(found, names, strict=True)}) == 1:
    return {path: int(name[2]) for path, name in zip(found, names, strict=True)}
  return {path: number for number, path in enumerate(found)}


def _block(path: Path, paths: Sequence[Path]) -> Path:
  for length, name in enumerate(path, 1):
    prefix = path[:length]
    is_part = len(paths) == 1 or any(other[:length] != prefix for other in paths)
    if is_part and _NUMBERED.fullmatch(name):
      return prefix
  return path


def _block_of(path: Path, blocks: Mapping[Path, int]) -> tuple[Path, int] | None:
  """The block that contains a module, and its number."""
  for length in range(len(path) + 1):
    if path[:length] in blocks:
      return path[:length], blocks[path[:length]]
  return None


def _output_name(output: Output, block: Path, number: int) -> str | None:
  """The name of the RMS of a module's output; None if it is not logged."""
  path = output.path
  # Otherwise what computes the attention stands for a block: a part of one, or the whole model.
  is_whole = path and _NUMBERED.fullmatch(path[-1]) and not output.is_attention
  if path == block and is_whole:
    return f'block_{number}/output_rms'
  if path and len(path) - len(block) in (0, 1):
    return f'activation_rms/block_{number}/{path[-1]}'
  return None
