"""Tables of interventions; each intervention is an entry in one of them.

There are two kinds of table, each defined next to the code that uses it:

  Choices(option, {...})  the variants of a choice option, of which each run uses one: the
                          optimizers of optimizer.name, the norms of model.norm ...
  Terms(place, [...])     terms, of which a run uses any number: loss terms, gradient
                          transformations, updates after the optimizer's, probes ...

Entries from outside the package, those of a config file (get_extensions, stability/extensions.py),
are added to the same tables. This module imports no jax, except to add a term: options are checked
without it.
"""

import dataclasses
import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stability.errors import BadInput


@dataclasses.dataclass(frozen=True)
class Variant:
  """One value of a choice option."""

  make: Any  # called where the table is used; a comment at the table gives the arguments
  source: str  # paper section or link
  reads: tuple[str, ...] = ()  # options that `make` reads


@dataclasses.dataclass(frozen=True)
class Term:
  """A term of a place."""

  name: str  # unique among the terms of the place; used in logs
  make: Any  # called by the place
  source: str  # paper section or link
  # The switch or choice option that turns the term on, or option=value; None: always on.
  when: str | None = None
  reads: tuple[str, ...] = ()  # options that `make` reads
  needs: tuple[str, ...] = ()  # measurements to take in every step, quiet ones included


TABLES: dict[str, 'Choices | Terms'] = {}  # option or place -> table, if its module is imported

# Entries from outside the package: option -> name -> variant, and place -> name -> term.
_ADDED: dict[str, dict[str, Variant]] = {}
_ADDED_TERMS: dict[str, dict[str, Term]] = {}
_history: list[Variant | Term] = []  # all entries ever added in this process


class Choices(Mapping[str, Variant]):
  """The variants of a choice option, including those from outside the package."""

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
  """The terms of a place; those from outside the package come last."""

  def __init__(self, place: str, own: Sequence[Term]):
    self.place = place
    self._own = tuple(own)
    TABLES[place] = self

  def __iter__(self) -> Iterator[Term]:
    return iter((*self._own, *_ADDED_TERMS.get(self.place, {}).values()))

  def active(self, static: Mapping[str, Any]) -> list[Term]:
    """The terms that are on in a static config, in the order of the table."""
    return [term for term in self if term.when is None or is_on(static, term.when)]


def is_on(static: Mapping[str, Any], when: str) -> bool:
  """Whether the condition `when` of a term is true in a static config.

  Args:
    static: nested dicts: section -> option -> value.
    when: `option=value`, which is true if the option has that value; or an option alone, which is
      true unless the option is False or `none`.
  """
  option, _, wanted = when.partition('=')
  value: Any = static
  for part in option.split('.'):
    value = value[part]
  return value == wanted if wanted else value not in (False, 'none')


# The places that take terms -> the modules that define their tables.
PLACES = {
    'initialisation': 'stability.model.initialisation',
    'objective': 'stability.step.objective',
    'gradient': 'stability.optim.gradient',
    'wrapper': 'stability.optim.wrappers',
    'after_update': 'stability.optim.after_update',
    'probes': 'stability.step.probes',
}


def added(option: str) -> tuple[str, ...]:
  """The values of a choice option that come from outside the package."""
  return tuple(_ADDED.get(option, {}))


def add_variant(option: str, name: str, variant: Variant) -> None:
  """Adds a variant from outside the package; raises BadInput if its name was already added."""
  if name in _ADDED.get(option, {}):
    raise BadInput(f'config.{option}: the variant {name!r} is added twice')
  _history.append(variant)
  _ADDED.setdefault(option, {})[name] = variant


def add_term(place: str, term: Term) -> None:
  """Adds a term from outside the package.

  Raises:
    BadInput: the place takes no terms, or has a term of this name.
  """
  if place not in PLACES:
    raise BadInput(f'term {term.name!r}: place must be one of {", ".join(PLACES)}')
  if term.name in _ADDED_TERMS.get(place, {}):
    raise BadInput(f'term {term.name!r} of {place}: added twice')
  importlib.import_module(PLACES[place])
  if term.name in [own.name for own in TABLES[place]]:
    raise BadInput(f'term {term.name!r} of {place}: the package has a term of this name')
  _history.append(term)
  _ADDED_TERMS.setdefault(place, {})[term.name] = term


def added_terms(place: str) -> tuple[Term, ...]:
  """The terms of a place that come from outside the package."""
  return tuple(_ADDED_TERMS.get(place, {}).values())


def revision() -> int:
  """A number that changes whenever the added entries change; 0 if there are none."""
  return len(_history) if _ADDED or _ADDED_TERMS else 0


def remove_added() -> None:
  """Removes all entries from outside the package."""
  _ADDED.clear()
  _ADDED_TERMS.clear()
