"""Target sizes: what a person asks for, and what is kept with a workdir for its reports."""

import dataclasses
import math
import numbers
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from stability import config as config_lib
from stability.errors import BadInput
from stability.storage import files

RISK = 0.05
RISKS = (0.01, 0.5)  # lower ones are not resolved by the draws
LARGEST = 1e18  # beyond it, predictions are only noise
NEXT_SIZES = 2  # number of named sizes to predict if no target is given
NEXT_FACTOR = 4  # size to predict if no named size is larger, relative to the largest trained size
_UNITS = {'K': 1e3, 'M': 1e6, 'B': 1e9, 'T': 1e12}
_ALLOWED = f'one of {", ".join(config_lib.SIZES)}, or a number up to 1e18 such as 7B or 1.3B'


@dataclasses.dataclass(frozen=True)
class Target:
  """A size to predict."""

  parameters: float
  risk: float = RISK  # the accepted probability of being unstable


def parse(text: str | float, name: str = 'target') -> float:
  """The parameters of a size: a named one such as '4.8B', or a number, also in K, M, B or T.

  Args:
    text: the size.
    name: what an error calls it.

  Raises:
    BadInput: it is neither.
  """
  if isinstance(text, str) and text in config_lib.SIZES:
    return float(config_lib.parameters(config_lib.unflatten(config_lib.size(text))))
  number, unit = re.fullmatch('(.*?)([KMBT]?)', str(text), re.IGNORECASE | re.DOTALL).groups()
  try:
    count = float(number) * _UNITS.get(unit.upper(), 1.0)
  except ValueError:
    count = math.nan
  if not 1 <= count <= LARGEST:
    raise BadInput(f'{name}={text}: must be {_ALLOWED}')
  return count


def check_size(target: Target, smallest: float, name: str = 'target') -> None:
  """Raises BadInput for a target below the smallest size of a sweep."""
  if target.parameters < smallest:
    raise BadInput(
        f'{name}={target.parameters:g}: must not be below the smallest size of the sweep,'
        f' {smallest:g} parameters'
    )


def check_risk(risk: float, name: str = 'risk') -> None:
  """Raises BadInput for a risk that cannot be predicted."""
  is_number = isinstance(risk, numbers.Real)
  if not is_number or not RISKS[0] <= risk <= RISKS[1]:
    shown = f'{risk:g}' if is_number else repr(risk)
    raise BadInput(f'{name}={shown}: must be from {RISKS[0]} to {RISKS[1]}')


def next_sizes(largest: float) -> list[float]:
  """The next named sizes above this parameter count; if there are none, one 4 times as large."""
  larger = [parameters for parameters in named_sizes() if parameters > largest]
  return larger[:NEXT_SIZES] or [NEXT_FACTOR * largest]


def named_sizes() -> list[float]:
  """The parameters of the named sizes, ascending."""
  return sorted(map(parse, config_lib.SIZES))


def load(workdir: Path) -> list[Target]:
  """The targets that are kept with a workdir, in the order in which they were first asked for.

  Raises:
    BadInput: the file is damaged.
  """
  path = _path(workdir)
  if not path.exists():
    return []
  try:
    found = [_target(entry) for entry in files.read_json(path)['targets']]
  except (BadInput, KeyError, TypeError, ValueError) as error:
    raise BadInput(
        f'{path}: damaged: must hold targets, each with parameters and risk; remove it to forget'
        ' them'
    ) from error
  return found


def merged(kept: Iterable[Target], asked: Iterable[Target]) -> list[Target]:
  """All targets, one per size, with the risk that was last asked for."""
  return list({target.parameters: target for target in (*kept, *asked)}.values())


def keep(workdir: Path, targets: Iterable[Target]) -> None:
  """Keeps these targets with a workdir, in place of those that are kept."""
  files.write_json(_path(workdir), {'targets': list(map(dataclasses.asdict, targets))})


def _target(entry: Mapping[str, float]) -> Target:
  target = Target(parse(float(entry['parameters'])), float(entry['risk']))
  check_risk(target.risk)
  return target


def _path(workdir: Path) -> Path:
  return workdir / 'targets.json'
