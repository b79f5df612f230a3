"""Tables of variants: what an intervention adds its entry to.

Two kinds of table, each beside the code that uses it:

  choices(option, {...})  the variants of a choice option, one of which a run has: the optimizers
                          of optimizer.name, the norms of model.norm ...
  terms(place, [...])     terms of which a run has any number: loss terms, gradient
                          transformations, updates after the optimizer's, probes ...

A config file's own entries (get_extensions, stability/extensions.py) join the same tables. This
module imports no jax: options are checked without it.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stability.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Variant:
  """One value of a choice option."""

  make: Any  # what the table's place calls; the table says with which arguments
  source: str  # paper section or link
  reads: tuple[str, ...] = ()  # options that it reads


@dataclasses.dataclass(frozen=True)
class Term:
  """One of the terms of a place."""

  name: str  # under which it is logged, and which no other term of the place has
  make: Any  # what the place calls
  source: str  # paper section or link
  # The switch or choice option that turns it on, or option=value; None: always on.
  when: str | None = None
  reads: tuple[str, ...] = ()  # options that it reads
  needs: tuple[str, ...] = ()  # measurements that a quiet step has to take for it


TABLES: dict[str, 'Choices | Terms'] = {}  # those that are imported, by option or place

_ADDED: dict[str, dict[str, Variant]] = {}  # by option, then by name: from outside the package
_ADDED_TERMS: dict[str, dict[str, Term]] = {}  # by place, then by name
_history: list[Variant | Term] = []  # all that were added in this process


class Choices(Mapping[str, Variant]):
  """The variants of a choice option, those added from outside included."""

  def __init__(self, option: str, own: Mapping[str, Variant]):
    self.option = option
    self._own = dict(own)
    TABLES[option] = self

  def __getitem__(self, name: str) -> Variant:
    added = _ADDED.get(self.option, {})
    return self._own[name] if name in self._own else added[name]

  def __iter__(self) -> Iterator[str]:
    return iter((*self._own, *_ADDED.get(self.option, {})))

  def __len__(self) -> int:
    return len(self._own) + len(_ADDED.get(self.option, {}))


class Terms:
  """The terms of a place, those added from outside last."""

  def __init__(self, place: str, own: Sequence[Term]):
    self.place = place
    self._own = tuple(own)
    TABLES[place] = self

  def __iter__(self) -> Iterator[Term]:
    return iter((*self._own, *_ADDED_TERMS.get(self.place, {}).values()))

  def active(self, static: Mapping[str, Any]) -> list[Term]:
    """The terms that runs of a static config have, in their order."""
    return [term for term in self if term.when is None or is_on(static, term.when)]


def is_on(static: Mapping[str, Any], when: str) -> bool:
  """Whether a switch or choice option is on, neither False nor `none`; of option=value, whether."""
  option, _, wanted = when.partition('=')
  value: Any = static
  for part in option.split('.'):
    value = value[part]
  return value == wanted if wanted else value not in (False, 'none')


# The places that have terms.
PLACES = ('initialisation', 'objective', 'gradient', 'after_update', 'probes')


def added(option: str) -> tuple[str, ...]:
  """The names that a choice option has from outside."""
  return tuple(_ADDED.get(option, {}))


def add_variant(option: str, name: str, variant: Variant) -> None:
  """Adds a variant from outside; BadInput where the option has one of that name from outside."""
  if name in _ADDED.get(option, {}):
    raise BadInput(f'config.{option}: the variant {name!r} is added twice')
  _history.append(variant)
  _ADDED.setdefault(option, {})[name] = variant


def add_term(place: str, term: Term) -> None:
  """Adds a term from outside; BadInput for a place without terms, or a name that is taken."""
  if place not in PLACES:
    raise BadInput(f'term {term.name!r}: place must be one of {", ".join(PLACES)}')
  if term.name in _ADDED_TERMS.get(place, {}):
    raise BadInput(f'term {term.name!r} of {place}: added twice')
  _history.append(term)
  _ADDED_TERMS.setdefault(place, {})[term.name] = term


def revision() -> int:
  """A number that differs whenever the added entries do; 0: there are none."""
  return len(_history) if _ADDED or _ADDED_TERMS else 0


def remove_added() -> None:
  """Removes everything that was added from outside."""
  _ADDED.clear()
  _ADDED_TERMS.clear()
