"""FLOPs and memory of a traced program, read from its jaxpr.

The size of an array is either fixed or proportional to the number of rows in the batch. A program
is traced with ROWS rows. ROWS is a prime that divides the size of no fixed array, so that every
amount can be counted as fixed or as per row.
"""

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

ROWS = 10_007

# Operations that XLA does not fuse: it stores both the arrays that they read and their results.
_UNFUSED = frozenset((
    'dot_general',
    'conv_general_dilated',
    *('gather', 'scatter', 'scatter-add', 'dynamic_slice', 'dynamic_update_slice', 'concatenate'),
    *('sort', 'top_k', 'fft'),
    *('cumsum', 'cumprod', 'cummax', 'cummin', 'cumlogsumexp'),
    *('scan', 'while', 'cond', 'pallas_call', 'custom_call', 'ffi_call'),
    *('fused_attention', 'fused_attention_gradient'),  # see traces.py
))
# Operations whose results are stored, while the arrays that they read may be computed on the fly.
_REDUCTIONS = frozenset((
    *('reduce_sum', 'reduce_max', 'reduce_min', 'reduce_prod', 'reduce_and', 'reduce_or'),
    *('argmax', 'argmin'),
))
# Views of an array, and operations whose results are generated where they are read.
_VIEWS = frozenset(('reshape', 'squeeze', 'expand_dims', 'stop_gradient', 'bitcast_convert_type'))
_GENERATED = frozenset(('broadcast_in_dim', 'iota'))
# Element-wise operations that are too expensive to be recomputed for each of several readers.
_EXPENSIVE = frozenset((
    *('exp', 'exp2', 'expm1', 'log', 'log1p', 'tanh', 'logistic', 'sqrt', 'rsqrt', 'cbrt', 'pow'),
    *('sin', 'cos', 'tan', 'atan2', 'erf', 'erfc', 'erf_inv'),
))


class Amount(NamedTuple):
  """Bytes or FLOPs: a fixed part, and a part per row of the batch."""

  fixed: float = 0
  per_row: float = 0

  @classmethod
  def of(cls, total: int) -> Self:
    """The fixed and per-row parts of a total that was traced with ROWS rows."""
    return cls(0, total / ROWS) if total % ROWS == 0 else cls(total, 0)

  def __add__(self, other: 'Amount') -> 'Amount':
    return Amount(self.fixed + other.fixed, self.per_row + other.per_row)

  def __sub__(self, other: 'Amount') -> 'Amount':
    return Amount(self.fixed - other.fixed, self.per_row - other.per_row)

  def at(self, rows: float) -> float:
    """The amount for a number of rows."""
    return self.fixed + self.per_row * rows


def nbytes(aval: Any) -> int:
  """Bytes of an array, given its abstract value (shape and dtype)."""
  return math.prod(aval.shape) * getattr(aval.dtype, 'itemsize', 4)


# FLOPs.


def flops(jaxpr: ClosedJaxpr) -> Amount:
  """FLOPs of the matrix products in a program; those in a `scan` count for every iteration.

  A loop of unknown length counts as one iteration, a conditional as its most expensive branch.
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
  """The jaxprs among the parameters of an equation, which it calls."""
  for value in eqn.params.values():
    for item in value if isinstance(value, tuple | list) else (value,):
      if isinstance(item, ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, Jaxpr):
        yield item


# Memory.


@dataclasses.dataclass(frozen=True)
class Moment:
  """The bytes that are stored at one moment of a program, without its arguments."""

  outputs: tuple[Amount, ...]  # of the program's outputs, by label
  rest: Amount  # of all other arrays


class _Operation(NamedTuple):
  name: str
  reads: list[int]  # values
  writes: list[int]
  inside: Amount  # stored inside it while it runs, if it is a loop or a conditional


def moments(
    jaxpr: ClosedJaxpr, labels: Sequence[int], count: int, *, reduces_early: bool = False
) -> list[Moment]:
  """The moments at which a program has just stored an array, by a model of XLA's fusion.

  An array is stored if it is an output, if it is the result of a reduction, if an operation that
  XLA does not fuse computes or reads it, or if it is expensive and read more than once. Any other
  array is computed where it is read, from stored arrays, which are kept until then. The arguments
  of the program are not counted.

  Args:
    jaxpr: the program.
    labels: a label for each output, from 0 to count - 1; `count` counts the output with the rest.
    count: number of labels.
    reduces_early: whether a reduction is computed as soon as its inputs are stored, so that they
      can be freed. Compilers for GPUs and TPUs do this, that for CPUs keeps the program's order.
  """
  program = _Program(jaxpr, reduces_early)
  stored = program.stored()
  sources: dict[int, frozenset[int]] = {}  # the stored arrays from which a value is computed
  made: dict[int, tuple[int, int]] = {}  # by stored array: its place in the order of operations
  storing = []  # (place, operation, the stored arrays that it reads)
  for t, operation in enumerate(program.operations):
    read = frozenset().union(*(sources.get(value, ()) for value in operation.reads))
    for value in operation.writes:
      sources[value] = frozenset([value]) if value in stored else read
    if any(value in stored for value in operation.writes):
      place = t, 0
      if reduces_early and operation.name in _REDUCTIONS:
        place = max((made[value] for value in read), default=(-1, 0))[0], t
      made |= dict.fromkeys(operation.writes, place)
      storing.append((place, operation, read))
  storing.sort(key=lambda each: each[0])
  last_read: dict[int, int] = {}  # by stored array: index of the last operation that needs it
  for t, (_, _, read) in enumerate(storing):
    last_read |= dict.fromkeys(read, t)
  end = len(storing)
  for value in program.outputs:
    last_read |= dict.fromkeys(sources.get(value, ()), end)

  label = dict(zip(program.outputs, labels))
  held = [Amount()] * (count + 1)
  freed: dict[int, list[int]] = collections.defaultdict(list)  # stored arrays, by last operation
  found = []

  def add(value: int, sign: int) -> None:
    amount, group = program.amounts[value], label.get(value, count)
    held[group] = held[group] + amount if sign > 0 else held[group] - amount

  for t, (_, operation, _) in enumerate(storing):
    new = [value for value in operation.writes if value in stored and value in last_read]
    is_in_place = new and operation.name not in _UNFUSED | _REDUCTIONS
    if is_in_place:  # overwrites the arrays that it is the last to read
      for value in freed.pop(t, ()):
        add(value, -1)
    for value in new:
      add(value, 1)
      freed[last_read[value]].append(value)
    if new:
      found.append(Moment(tuple(held[:count]), held[count] + operation.inside))
    for value in freed.pop(t, ()):
      add(value, -1)
  return found


class _Program:
  """The operations of a jaxpr that its outputs need, with calls inlined.

  A value is a number that stands for an array.
  """

  def __init__(self, jaxpr: ClosedJaxpr, reduces_early: bool):
    self._reduces_early = reduces_early  # in loops and conditionals
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
    """Appends the operations of a jaxpr; returns the values of its outputs."""
    names = dict(zip(jaxpr.constvars, constants)) | dict(zip(jaxpr.invars, arguments))

    def read(var: Any) -> int:
      if isinstance(var, Literal) or var not in names:
        return self._new(var.aval)
      return names[var]

    for eqn in jaxpr.eqns:
      reads = [read(v) for v in eqn.invars]
      called = list(_inner(eqn)) if eqn.primitive.name not in _UNFUSED else []
      if len(called) == 1 and _is_call_of(eqn, called[0]):
        inner_constants = [self._new(v.aval) for v in called[0].constvars]
        writes = self._inline(called[0], inner_constants, reads)
      else:
        writes = [self._new(v.aval) for v in eqn.outvars]
        inside = _inside(eqn, self._reduces_early)
        self.operations.append(_Operation(eqn.primitive.name, reads, writes, inside))
      names |= dict(zip(eqn.outvars, writes))
    return [read(v) for v in jaxpr.outvars]

  def stored(self) -> set[int]:
    """The values that are stored, by the rules that `moments` states."""
    readers: dict[int, list[_Operation]] = collections.defaultdict(list)
    found = set(self.outputs)
    for operation in reversed(self.operations):
      for value in operation.reads:
        # The readers of a view are readers of the array.
        is_view = operation.name in _VIEWS
        readers[value] += readers[operation.writes[0]] if is_view else [operation]
      if operation.name in _VIEWS | _GENERATED:
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


def _is_call_of(eqn: Any, inner: Jaxpr) -> bool:
  """Whether an equation is a plain call of `inner`, with inputs and outputs of the same shapes."""
  outside, within = [*eqn.invars, *eqn.outvars], [*inner.invars, *inner.outvars]
  return [v.aval.shape for v in outside] == [v.aval.shape for v in within]


def _inside(eqn: Any, reduces_early: bool) -> Amount:
  """The most that the body of a loop or conditional stores at once, not counting its outputs."""
  if eqn.primitive.name not in ('scan', 'while', 'cond'):
    return Amount()
  peaks = [Amount()]
  for inner in _inner(eqn):
    closed = ClosedJaxpr(inner, [None] * len(inner.constvars))
    found = moments(closed, [0] * len(inner.outvars), 1, reduces_early=reduces_early)
    peaks += [moment.rest for moment in found]
  return max(peaks, key=lambda amount: amount.at(ROWS))
