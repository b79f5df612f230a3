"""FLOPs and memory of a traced program, read from its jaxpr.

Arrays grow with the rows of a batch, or do not. A program is traced with ROWS rows, a prime that
divides the size of nothing else, so that each amount splits into a fixed part and one per row.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

ROWS = 10_007

# Operations that XLA does not fuse: they read arrays that are stored, and store what they compute.
_UNFUSED = frozenset((
    'dot_general',
    'conv_general_dilated',
    *('gather', 'scatter', 'scatter-add', 'dynamic_slice', 'dynamic_update_slice', 'concatenate'),
    *('sort', 'top_k', 'fft'),
    *('cumsum', 'cumprod', 'cummax', 'cummin', 'cumlogsumexp'),
    *('scan', 'while', 'cond', 'pallas_call', 'custom_call', 'ffi_call'),
))
# Operations that store what they compute, but compute what they read on the way.
_REDUCTIONS = frozenset((
    *('reduce_sum', 'reduce_max', 'reduce_min', 'reduce_prod', 'reduce_and', 'reduce_or'),
    *('argmax', 'argmin'),
))
# Views of an array, and arrays that are made where they are read.
_VIEWS = frozenset(('reshape', 'squeeze', 'expand_dims', 'stop_gradient', 'bitcast_convert_type'))
_MADE = frozenset(('broadcast_in_dim', 'iota'))
# Element by element, but too expensive to be computed again for each of several readers.
_EXPENSIVE = frozenset((
    *('exp', 'exp2', 'expm1', 'log', 'log1p', 'tanh', 'logistic', 'sqrt', 'rsqrt', 'cbrt', 'pow'),
    *('sin', 'cos', 'tan', 'atan2', 'erf', 'erfc', 'erf_inv'),
))


class Amount(NamedTuple):
  """Bytes or FLOPs: a fixed part, and one for each row of the batch."""

  fixed: float = 0
  per_row: float = 0

  @classmethod
  def of(cls, total: int) -> Self:
    """The parts of an amount that was traced with ROWS rows."""
    return cls(0, total / ROWS) if total % ROWS == 0 else cls(total, 0)

  def __add__(self, other: 'Amount') -> 'Amount':
    return Amount(self.fixed + other.fixed, self.per_row + other.per_row)

  def __sub__(self, other: 'Amount') -> 'Amount':
    return Amount(self.fixed - other.fixed, self.per_row - other.per_row)

  def at(self, rows: float) -> float:
    """The amount for a number of rows."""
    return self.fixed + self.per_row * rows


def nbytes(aval: Any) -> int:
  """Bytes of an array, given its shape and type."""
  return math.prod(aval.shape) * getattr(aval.dtype, 'itemsize', 4)


# FLOPs.


def flops(jaxpr: ClosedJaxpr) -> Amount:
  """FLOPs of the matrix products, those of loops counted for every iteration.

  A loop of unknown length counts once, and a condition as its most expensive branch.
  """
  return _flops(jaxpr.jaxpr, 1)


def _flops(jaxpr: Jaxpr, times: int) -> Amount:
  total = Amount()
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
      total += Amount.of(times * 2 * math.prod(eqn.outvars[0].aval.shape) * depth)
    elif eqn.primitive.name == 'scan':
      total += _flops(eqn.params['jaxpr'].jaxpr, times * eqn.params['length'])
    elif eqn.primitive.name == 'cond':
      branches = [_flops(branch.jaxpr, times) for branch in eqn.params['branches']]
      total += max(branches, key=lambda amount: amount.at(ROWS))
    else:
      for inner in _inner(eqn):
        total += _flops(inner, times)
  return total


def _inner(eqn: Any) -> Iterator[Jaxpr]:
  """The jaxprs that an equation calls."""
  for value in eqn.params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, Jaxpr):
        yield item


# Memory.


@dataclasses.dataclass(frozen=True)
class Moment:
  """The bytes that are stored at one moment of a program."""

  outputs: tuple[Amount, ...]  # by label
  rest: Amount


class _Operation(NamedTuple):
  name: str
  reads: list[int]
  writes: list[int]
  inside: Amount  # stored while it runs, by a loop's body


def moments(jaxpr: ClosedJaxpr, labels: Sequence[int], count: int) -> list[Moment]:
  """The moments of a program at which it has just stored an array, by a model of XLA's fusion.

  An array is stored if an operation that XLA does not fuse computes or reads it, if it is expensive
  and read more than once, or if it is an output. Any other array is computed where it is read, from
  stored arrays, which therefore stay until then. Arguments are not counted.

  Args:
    jaxpr: the program.
    labels: a label for each output, 0 to count - 1; count: the output belongs to the rest.
    count: number of labels.
  """
  program = _Program(jaxpr)
  stored = program.stored()
  sources: dict[int, frozenset[int]] = {}  # the stored arrays from which a value is computed
  last: dict[int, int] = {}  # where a stored array is read last
  for t, operation in enumerate(program.operations):
    read = frozenset().union(*(sources.get(value, ()) for value in operation.reads))
    for value in operation.writes:
      sources[value] = frozenset([value]) if value in stored else read
    if any(value in stored for value in operation.writes):
      last |= dict.fromkeys(read, t)
  end = len(program.operations)
  for value in program.outputs:
    last |= dict.fromkeys(sources.get(value, ()), end)

  label = dict(zip(program.outputs, labels))
  held = [Amount()] * (count + 1)
  leaving: dict[int, list[int]] = collections.defaultdict(list)
  found = []

  def add(value: int, sign: int) -> None:
    amount, where = program.amounts[value], label.get(value, count)
    held[where] = held[where] + amount if sign > 0 else held[where] - amount

  for t, operation in enumerate(program.operations):
    new = [value for value in operation.writes if value in stored and value in last]
    in_place = new and operation.name not in _UNFUSED | _REDUCTIONS
    if in_place:  # over an array that is not read again
      for value in leaving.pop(t, ()):
        add(value, -1)
    for value in new:
      add(value, 1)
      leaving[last[value]].append(value)
    if new:
      found.append(Moment(tuple(held[:count]), held[count] + operation.inside))
    for value in leaving.pop(t, ()):
      add(value, -1)
  return found


class _Program:
  """The operations of a jaxpr, calls inlined, without those that no output needs."""

  def __init__(self, jaxpr: ClosedJaxpr):
    self.amounts: list[Amount] = []  # by value
    self.operations: list[_Operation] = []
    inputs = [self._new(v.aval) for v in jaxpr.jaxpr.invars]
    constants = [self._new(v.aval) for v in jaxpr.jaxpr.constvars]
    self.outputs = self._inline(jaxpr.jaxpr, constants, inputs)
    needed, kept = set(self.outputs), []
    for operation in reversed(self.operations):
      if needed.intersection(operation.writes):
        needed.update(operation.reads)
        kept.append(operation)
    self.operations = kept[::-1]

  def _new(self, aval: Any) -> int:
    self.amounts.append(Amount.of(nbytes(aval)))
    return len(self.amounts) - 1

  def _inline(self, jaxpr: Jaxpr, constants: list[int], arguments: list[int]) -> list[int]:
    """Appends the operations of a jaxpr; returns its outputs."""
    names = dict(zip(jaxpr.constvars, constants)) | dict(zip(jaxpr.invars, arguments))

    def read(var: Any) -> int:
      if isinstance(var, Literal) or var not in names:
        return self._new(var.aval)
      return names[var]

    for eqn in jaxpr.eqns:
      reads = [read(v) for v in eqn.invars]
      called = list(_inner(eqn)) if eqn.primitive.name not in _UNFUSED else []
      if len(called) == 1 and _calls(eqn, called[0]):
        made = [self._new(v.aval) for v in called[0].constvars]
        writes = self._inline(called[0], made, reads)
      else:
        writes = [self._new(v.aval) for v in eqn.outvars]
        self.operations.append(_Operation(eqn.primitive.name, reads, writes, _inside(eqn)))
      names |= dict(zip(eqn.outvars, writes))
    return [read(v) for v in jaxpr.outvars]

  def stored(self) -> set[int]:
    """The values that are stored: see moments."""
    readers: dict[int, list[_Operation]] = collections.defaultdict(list)
    found = set(self.outputs)
    for operation in reversed(self.operations):
      for value in operation.reads:
        # A view is read by whoever reads it.
        views = operation.name in _VIEWS
        readers[value] += readers[operation.writes[0]] if views else [operation]
      if operation.name in _VIEWS | _MADE:
        found.difference_update(operation.writes)
        continue
      for value in operation.writes:
        by = readers[value]
        is_expensive = operation.name in _EXPENSIVE and len(by) > 1
        if (
            operation.name in _UNFUSED | _REDUCTIONS
            or is_expensive
            or any(reader.name in _UNFUSED for reader in by)
        ):
          found.add(value)
    return found


def _calls(eqn: Any, inner: Jaxpr) -> bool:
  """Whether an equation does what `inner` does, once."""
  outside, within = [*eqn.invars, *eqn.outvars], [*inner.invars, *inner.outvars]
  return [v.aval.shape for v in outside] == [v.aval.shape for v in within]


def _inside(eqn: Any) -> Amount:
  """The most that the body of a loop or a branch stores, its outputs apart."""
  if eqn.primitive.name not in ('scan', 'while', 'cond'):
    return Amount()
  peaks = [Amount()]
  for inner in _inner(eqn):
    closed = ClosedJaxpr(inner, [None] * len(inner.constvars))
    peaks += [moment.rest for moment in moments(closed, [0] * len(inner.outvars), 1)]
  return max(peaks, key=lambda amount: amount.at(ROWS))
