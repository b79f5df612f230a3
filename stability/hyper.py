"""The sweep vocabulary of config files, and the runs it expands to.

A sweep is a list of points; a point is a dict of dotted field -> value:

  hyper.product([
      hyper.zipit([hyper.sweep('model.width', [256, 512]), hyper.sweep('model.depth', [3, 6])]),
      hyper.sweep('optimizer.learning_rate', [1e-3, 1e-2, 1e-1]),
      hyper.fixed('model.qk_norm', 'none'),
  ])
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from stability import config as config_lib
from stability.config import Config
from stability.errors import BadInput

Point = dict[str, Any]


MAX_POINTS = 100_000  # of a sweep; more are a slip, or have no end


def sweep(field: str, values: Iterable[Any]) -> list[Point]:
  """One point for each value of one field."""
  return [{field: value} for value in at_most(values, f'hyper.sweep of {field!r}')]


def at_most(values: Iterable[Any], name: str) -> list[Any]:
  """The values as a list; BadInput if there are more than MAX_POINTS."""
  found = list(itertools.islice(values, MAX_POINTS + 1))
  if len(found) > MAX_POINTS:
    raise BadInput(f'{name}: more than {MAX_POINTS:,} points')
  return found


def fixed(field: str, value: Any) -> list[Point]:
  """One point: the field has this value."""
  return [{field: value}]


def product(sweeps: Sequence[list[Point]]) -> list[Point]:
  """Every combination; the first sweep varies slowest."""
  if math.prod(map(len, sweeps)) > MAX_POINTS:
    raise BadInput(f'hyper.product: more than {MAX_POINTS:,} points')
  return [functools.reduce(_join, points, {}) for points in itertools.product(*sweeps)]


def zipit(sweeps: Sequence[list[Point]]) -> list[Point]:
  """The sweeps side by side: the n-th points of all joined. They must be of one length."""
  lengths = {len(points) for points in sweeps}
  if len(lengths) > 1:
    raise BadInput(f'hyper.zipit: sweeps of different lengths: {sorted(lengths)}')
  return [functools.reduce(_join, points, {}) for points in zip(*sweeps)]


def chain(sweeps: Sequence[list[Point]]) -> list[Point]:
  """The sweeps one after another."""
  return list(itertools.chain.from_iterable(sweeps))


def _join(left: Point, right: Point) -> Point:
  for field in sorted(left.keys() & right.keys()):
    raise BadInput(f'config.{field}: swept twice in one product or zipit')
  return left | right


@dataclasses.dataclass(frozen=True)
class Runs:
  """The runs a config file describes."""

  fields: tuple[str, ...]  # the swept fields, in the order the config file names them
  configs: dict[str, Config]  # run name -> resolved config


def expand(
    base: Mapping[str, Any],
    points: Iterable[Point],
    overrides: Iterable[str] = (),
    seeds: int | None = None,
) -> Runs:
  """The named runs of a sweep: `base` with each point's values, all checked.

  Args:
    base: nested dicts, get_config's ConfigDict.to_dict().
    points: what get_sweep returns; [{}] gives the one run of `base`.
    overrides: dotted fields given on the command line; they may not be swept.
    seeds: repeat every point with the seeds 0 to seeds - 1; the points may not sweep the seed.
  """
  points = list(points)
  if not points:
    raise BadInput('get_sweep: describes no runs')
  for point in points:
    if not isinstance(point, Mapping) or not all(isinstance(field, str) for field in point):
      shown = config_lib.safe_repr(point)
      raise BadInput(f'get_sweep: yields {shown}, must be a dict of dotted field -> value')
  if seeds is not None:
    if any('seed' in point for point in points):
      raise BadInput(f'--seeds={seeds}: cannot be given, the sweep varies the seed itself')
    if len(points) * seeds > MAX_POINTS:
      raise BadInput(f'--seeds={seeds}: more than {MAX_POINTS:,} runs')
    points = product([points, sweep('seed', range(seeds))])
  fields = tuple(dict.fromkeys(field for point in points for field in point))
  for field in fields:
    if field in overrides:
      raise BadInput(f'config.{field}: cannot be overridden, the sweep varies it')
    if field in config_lib.FIELDS and config_lib.FIELDS[field].shared:
      raise BadInput(f'config.{field}: cannot be swept, the runs of a sweep share their data')
  flat_base = config_lib.flatten(base)
  run_labels = labels([*(field for field in fields if field != 'seed'), 'seed'])
  configs: dict[str, Config] = {}
  for point in points:
    flat = config_lib.resolve(flat_base | point)
    name = _name({label: flat[field] for field, label in run_labels.items()}, flat)
    if name in configs:
      raise BadInput(f'get_sweep: two runs are the same: {name}')
    configs[name] = config_lib.unflatten(flat)
  return Runs(fields, configs)


def labels(fields: Sequence[str]) -> dict[str, str]:
  """The shortest suffix of each field that no other of them shares."""
  found = {}
  for field in fields:
    parts = field.split('.')
    suffixes = ['.'.join(parts[-n:]) for n in range(1, len(parts) + 1)]
    taken = [other for other in fields if other != field]
    found[field] = next(
        (s for s in suffixes if not any(f'.{other}'.endswith(f'.{s}') for other in taken)), field
    )
  return found


def _name(values: Mapping[str, Any], flat: Mapping[str, Any]) -> str:
  """`width=64,qk_norm=none,learning_rate=0.01,seed=0`, safe as the name of a folder."""
  pairs = (f'{label}={value}' for label, value in values.items())
  name = quote(','.join(pairs), safe='+=,')
  name = re.sub('~', '%7E', name)  # quote leaves it, the contract does not
  if len(name) > 120:
    digest = hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()
    name = f'{name[:111]}-{digest[:8]}'
  return name
