"""The record of one option: what it means, its default, and which values it accepts.

There is a constructor for each kind of value: integer, number, switch, choice, text and path.
"""

import contextlib
import dataclasses
import enum
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, Self

from stability import same_number, variants
from stability.config import paths
from stability.config.sizes import for_scale
from stability.errors import BadInput

SCALES = ('cpu', 'night', 'gpu', 'paper')
TYPES = {'integer': int, 'number': float, 'choice': str, 'text': str, 'path': str}  # by kind


class _Sentinel(enum.Enum):
  UNSET = 'unset'


UNSET = _Sentinel.UNSET  # means "no value" where None is a value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
  """One option of a run.

  A record that was added after the first workdirs were written must state `absent`. A value equal
  to it is left out of the hash in a run's name, so that the names of existing runs stay the same.
  In all other records, `absent` is the default at scale cpu.
  """

  name: str  # section.name
  kind: str  # a key of TYPES
  default: Any  # a value, or a mapping of scale -> value; None: unset
  doc: str  # what it means, in one sentence
  range: str  # the allowed values in words, without the variants that extensions add to a choice
  check: Callable[[Any], bool] = lambda value: True  # whether a converted value is allowed
  unit: str = ''
  source: str = ''  # paper section, arXiv id
  traced: bool = False  # an argument of the compiled step: changing it never recompiles
  switch: bool = False  # traced, but static in whether it is 0, which removes its term
  optional: bool = False  # None is allowed
  settable: bool = False  # an action may change it while the run trains
  shared: bool = False  # the same for all runs of a sweep
  label: bool = False  # a name only, on which neither programs nor numbers depend
  at_start: bool = False  # read only when a run starts: no program depends on it
  paper: Any = UNSET  # value in the paper's set-up, at which claims fix a swept intervention
  absent: Any = UNSET  # value that is assumed if a stored config lacks the field
  is_later: bool = dataclasses.field(init=False)  # whether `absent` was stated

  def __post_init__(self):
    if isinstance(self.default, Mapping) and set(self.default) != set(SCALES):
      raise BadInput(f'config.{self.name}: its default must be a value, or one for each scale')
    object.__setattr__(self, 'is_later', self.absent is not UNSET)
    if self.absent is UNSET:
      object.__setattr__(self, 'absent', self.default_at('cpu'))

  @property
  def type(self) -> type:
    """The Python type of a value."""
    return TYPES[self.kind]

  @property
  def allowed(self) -> str:
    """The allowed values in words, including variants that extensions added."""
    return ', '.join((self.range, *(variants.added(self.name) if self.kind == 'choice' else ())))

  @property
  def help(self) -> str:
    """Meaning, unit, default and allowed values, as --help shows them."""
    unit = f' Unit: {self.unit}.' if self.unit else ''
    return f'{self.doc}{unit} Default: {self.default_text}. Allowed: {self.allowed}.'

  @property
  def default_text(self) -> str:
    """The default in words: `0.01`, or `64 (cpu, night), 256 (gpu, paper)`."""
    scales: dict[str, list[str]] = {}
    for scale in SCALES:
      scales.setdefault(value_text(self.default_at(scale)), []).append(scale)
    if len(scales) == 1:
      return next(iter(scales))
    return ', '.join(f'{text} ({", ".join(names)})' for text, names in scales.items())

  def default_at(self, scale: str) -> Any:
    """The default at a scale."""
    return for_scale(scale, self.default) if isinstance(self.default, Mapping) else self.default

  def convert(self, value: Any) -> Any:
    """Converts a value to the field's type; raises BadInput, with what is allowed, if refused."""
    if value is None and self.optional:
      return None
    # The abstract types accept NumPy's numbers, and integers where a float is expected.
    kind = {int: numbers.Integral, float: numbers.Real}.get(self.type, self.type)
    if isinstance(value, kind) and not isinstance(value, bool):
      with contextlib.suppress(OverflowError):  # such as that of float(10**400)
        converted = self.type(value)
        if self.check(converted):
          value = self.normalize(converted)
          return self._local(value) if self.kind == 'path' else value
    raise self._refusal(value)

  def normalize(self, value: Any) -> Any:
    """The value that represents all numbers that are the same in float32.

    A run with 1e-3 and one with its float32, 0.0010000000474974513, thus have the same config.
    Values that are not floats are returned as they are.
    """
    is_number = self.kind == 'number' and isinstance(value, float)
    return same_number.shortest(value) if is_number else value

  def parse(self, text: str) -> Any:
    """The value that `text` on a command line means; raises BadInput if it is not allowed."""
    try:
      value = self.type(text)
    except ValueError:
      raise self._refusal(text) from None
    return self.convert(value)

  def _local(self, path: str) -> str:
    try:
      return paths.local(path)
    except BadInput as error:
      raise BadInput(f'config.{self.name}={path!r}: {error}') from None

  def _refusal(self, value: Any) -> BadInput:
    return BadInput(f'config.{self.name}={safe_repr(value)}: must be {self.allowed}')

  def to_json(self) -> dict[str, Any]:
    """The record as stored in sweep.json, for readers that do not run the code that defines it."""
    stored = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
    del stored['check']
    return {key: value for key, value in stored.items() if value is not UNSET} | {
        'range': self.allowed
    }

  @classmethod
  def from_json(cls, stored: Any) -> Self:
    """The record that to_json stored, without its check: it accepts every value of its kind."""
    if not isinstance(stored, Mapping):
      raise BadInput(f'option {safe_repr(stored)}: must be a JSON object')
    record = {}
    for field in (field for field in dataclasses.fields(cls) if field.init):
      if field.name in stored:
        record[field.name] = value = stored[field.name]
        if field.type in (str, bool) and not isinstance(value, field.type):
          raise BadInput(f'option {safe_repr(stored.get("name"))}: {field.name} has the wrong type')
      elif field.default is dataclasses.MISSING:
        raise BadInput(f'option {safe_repr(stored.get("name"))}: {field.name} is missing')
    if record['kind'] not in TYPES:
      raise BadInput(f'option {record["name"]!r}: kind must be one of {", ".join(TYPES)}')
    return cls(**record | {'check': lambda value: True})


def value_text(value: Any) -> str:
  """A value of an option as a user would type it; None as `unset`."""
  return 'unset' if value is None else f'{value:g}' if isinstance(value, float) else str(value)


def safe_repr(value: Any) -> str:
  """The repr of any value, for an error message, even if its own repr fails."""
  try:
    return repr(value)
  except Exception:
    return f'(a {type(value).__name__})'


def integer(
    name: str, default: Any, doc: str, *, at_least: int = 0, bits: int = 31, **options: Any
) -> Field:
  """An integer from `at_least` to 2^bits - 1."""
  return Field(
      name=name,
      kind='integer',
      default=default,
      doc=doc,
      range=f'an integer from {at_least} to 2^{bits} - 1',
      check=lambda value: at_least <= value < 2**bits,
      **options,
  )


def number(
    name: str,
    default: Any,
    doc: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    traced: bool = True,
    **options: Any,
) -> Field:
  """A number that is finite in float32; traced by default."""

  def check(value: float) -> bool:
    # Runs compute in float32, where a value that becomes infinite or zero is not the one given.
    number = same_number.shortest(value)
    return (
        math.isfinite(number)
        and bool(number) == bool(value)
        and (at_least is None or number >= at_least)
        and (above is None or number > above)
        and (below is None or number < below)
    )

  bounds = (
      '' if above is None else f' above {above:g}',
      '' if at_least is None else f', {at_least:g} or more',
      '' if below is None else f', below {below:g}',
  )
  return Field(
      name=name,
      kind='number',
      default=default,
      doc=doc,
      range=f'a number{"".join(bounds)}, in float32',
      check=check,
      traced=traced,
      **options,
  )


def switch(name: str, default: Any, doc: str, **options: Any) -> Field:
  """A coefficient of 0 or more; 0 leaves its term out of the program."""
  return number(name, default, doc, at_least=0, switch=True, **options)


def choice(name: str, default: Any, names: tuple[str, ...], doc: str, **options: Any) -> Field:
  """One of `names`, or of the variants that extensions added to the option."""
  return Field(
      name=name,
      kind='choice',
      default=default,
      doc=doc,
      range='one of ' + ', '.join(names),
      check=lambda value: value in names or value in variants.added(name),
      **options,
  )


def text(name: str, default: Any, doc: str, *, allowed: str, **options: Any) -> Field:
  """A non-empty text; `allowed` says in words what it may be."""
  return Field(
      name=name, kind='text', default=default, doc=doc, range=allowed, check=bool, **options
  )


def path(name: str, default: Any, doc: str, *, allowed: str, **options: Any) -> Field:
  """A path in the file system; `allowed` says in words of what."""
  return Field(
      name=name, kind='path', default=default, doc=doc, range=allowed, check=bool, **options
  )
