"""Memory of a compiled program; kernels, bytes and collectives, read from its HLO text.

The text is that of `jax.stages.Compiled.as_text()` on a GPU or TPU: the program of one device, with
the shapes of its part. A loop with a known number of iterations counts that often; one without,
such as a population's loop over steps, counts once.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import jax

# Instructions that neither start a kernel nor move data.
_FREE = frozenset((
    'add-dependency',
    'after-all',
    'bitcast',
    'constant',
    'get-tuple-element',
    'opt-barrier',
    'parameter',
    'partition-id',
    'replica-id',
    'tuple',
))
COLLECTIVES = (
    'all-gather',
    'all-reduce',
    'all-to-all',
    'collective-broadcast',
    'collective-permute',
    'reduce-scatter',
    'ragged-all-to-all',
)
_HEADER = re.compile(r'(ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$')
_INSTRUCTION = re.compile(
    r'\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>.+?) (?P<operation>[a-z][\w\-]*)'
    r'\((?P<rest>.*)$'
)
# An array's type, sizes and layout; S(1) in a layout is memory on the chip.
_ARRAY = re.compile(r'\b(pred|[a-z]+[0-9]+[a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?')
_OPERAND = re.compile(r'%([\w.\-]+)')
_CALLED = re.compile(r'\b(calls|to_apply|body|condition)=%?([\w.\-]+)')
_BRANCHES = re.compile(
    r'\b(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))'
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_READS_A_PART = frozenset(('dynamic-slice', 'gather', 'slice'))


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of one kind."""

  count: int
  bytes: int  # of their results on a device


@dataclasses.dataclass(frozen=True)
class Profile:
  """What one execution of a program does on each device.

  All branches of a conditional are counted, though an execution takes one.
  """

  kernels: int
  bytes: int  # read and written by the kernels, if nothing stays in caches
  collectives: Mapping[str, Collective]
  largest: str  # shape of the largest array that a kernel writes, such as f32[64,256,32101]
  # Scatters that add in the order in which threads arrive, so that sums may round differently.
  unordered_scatters: int


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  operation: str
  operands: Sequence[str]
  rest: str  # operands and attributes


def memory_bytes(executable: jax.stages.Compiled) -> int:
  """Bytes that an executable needs on each device, according to XLA."""
  stats = executable.memory_analysis()
  outputs = stats.output_size_in_bytes - stats.alias_size_in_bytes  # not in place of arguments
  return stats.argument_size_in_bytes + outputs + stats.temp_size_in_bytes


def profile(text: str) -> Profile:
  """Reads a program's text."""
  computations, entry = _parse(text)
  counts = collections.Counter()
  moved = collections.Counter()
  written: dict[str, int] = {}
  kernels = 0

  def visit(name: str, times: int) -> None:
    nonlocal kernels
    by_name = {each.name: each for each in computations.get(name, ())}
    for each in by_name.values():
      operation = each.operation.removesuffix('-start')
      if operation == 'while':
        trips = _TRIPS.search(each.rest)
        body = dict(_CALLED.findall(each.rest))['body']
        visit(body, times * (int(trips[1]) if trips else 1))
      elif operation == 'conditional':
        for branch in _branches(each.rest):
          visit(branch, times)
      elif operation in ('call', 'async'):
        called = dict(_CALLED.findall(each.rest))
        visit(called.get('to_apply') or called['calls'], times)
      elif operation not in _FREE and not operation.endswith(('-done', '-update')):
        kernels += times
        arrays = _written(each, by_name)
        size = sum(map(_size, arrays))
        moved['bytes'] += times * (size + _read(each, by_name, computations))
        for array in arrays:
          shape = f'{array[1]}[{array[2]}]'
          written[shape] = max(written.get(shape, 0), _size(array))
        if operation in COLLECTIVES:
          counts[operation] += times
          moved[operation] += times * size

  visit(entry, 1)
  scatters = [i for c in computations.values() for i in c if i.operation == 'scatter']
  return Profile(
      kernels=kernels,
      bytes=moved['bytes'],
      collectives={kind: Collective(counts[kind], moved[kind]) for kind in sorted(counts)},
      largest=max(written, key=written.__getitem__, default=''),
      unordered_scatters=sum('unique_indices=true' not in each.rest for each in scatters),
  )


def nbytes(shape: str) -> int:
  """Bytes in the device's memory of an array or a tuple of arrays, written as HLO does."""
  return sum(map(_size, _ARRAY.finditer(shape)))


def _size(array: re.Match[str]) -> int:
  kind, sizes = array[1], array[2]
  if 'S(' in (array[3] or ''):
    return 0
  bits = 8 if kind == 'pred' else max(int(re.search(r'\d+', kind)[0]), 8)
  return math.prod(map(int, sizes.split(','))) * bits // 8 if sizes else bits // 8


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
  """The instructions of every computation, and the name of the entry."""
  computations: dict[str, list[_Instruction]] = {}
  entry, current = '', None
  for line in text.splitlines():
    if not line.startswith(' '):
      header = _HEADER.match(line)
      if header:
        current = computations.setdefault(header['name'], [])
        entry = header['name'] if line.startswith('ENTRY') else entry
    elif current is not None and (found := _INSTRUCTION.match(line)):
      operands = _OPERAND.findall(found['rest'].partition('), ')[0])
      current.append(
          _Instruction(found['name'], found['shape'], found['operation'], operands, found['rest'])
      )
  return computations, entry


def _branches(rest: str) -> list[str]:
  found = []
  for names, name in _BRANCHES.findall(rest):
    found += [each.strip().lstrip('%') for each in names.split(',')] if names else [name]
  return found


def _written(
    each: _Instruction, by_name: Mapping[str, _Instruction]
) -> list[re.Match[str]]:
  """The arrays that a kernel writes; the start of an asynchronous one has its operands, too."""
  arrays = list(_ARRAY.finditer(each.shape))
  if not each.operation.endswith('-start') or each.operation == 'all-reduce-start':
    return arrays
  shapes = [by_name[name].shape for name in each.operands if name in by_name]
  operands = sum(len(_ARRAY.findall(shape)) for shape in shapes)
  return arrays[:operands] if each.operation == 'copy-start' else arrays[operands:]


def _read(
    each: _Instruction,
    by_name: Mapping[str, _Instruction],
    computations: Mapping[str, Sequence[_Instruction]],
) -> int:
  """Bytes that a kernel reads: its operands, or the part of one that it takes a slice of."""
  sizes = [nbytes(by_name[name].shape) if name in by_name else 0 for name in each.operands]
  if each.operation in _READS_A_PART:
    return nbytes(each.shape) + sum(sizes[1:])
  called = dict(_CALLED.findall(each.rest)).get('calls')
  if each.operation == 'fusion' and called in computations:
    inner = computations[called]
    for parameter in (i for i in inner if i.operation == 'parameter'):
      users = [i for i in inner if parameter.name in i.operands]
      number = int(parameter.rest.partition(')')[0])
      if users and number < len(sizes) and all(_takes_part(user, parameter.name) for user in users):
        sizes[number] = min(sizes[number], sum(nbytes(user.shape) for user in users))
  return sum(sizes)


def _takes_part(user: _Instruction, operand: str) -> bool:
  return user.operation in _READS_A_PART and user.operands[0] == operand
