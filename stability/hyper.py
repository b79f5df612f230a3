"""Functions with which config files define sweeps, and the expansion of a sweep into runs.

A sweep is a list of points; a point is a dict of dotted field -> value, as in the example. A point
may also carry the label `arm`, a name that stands for the fields of an intervention, whichever they
are: {'arm': 'muon, no decay', 'optimizer.name': 'muon', 'optimizer.weight_decay': 0.0}. The first
arm is the baseline. Likewise, the label init.parent stands for init.checkpoint in names.

Example:
  hyper.product([
      hyper.zipit([hyper.sweep('model.width', [256, 512]), hyper.sweep('model.depth', [3, 6])]),
      hyper.sweep('optimizer.learning_rate', [1e-3, 1e-2, 1e-1]),
      hyper.fixed('model.qk_norm', 'none'),
  ])
"""

import collections
import dataclasses
import difflib
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

MAX_POINTS = 100_000  # in a sweep; more are a mistake, such as an infinite iterator
MAX_NAME = 120  # characters in the name of a run


def sweep(field: str, values: Iterable[Any]) -> list[Point]:
  """A sweep with one point for each value of a field."""
  return [{field: value} for value in to_list(values, f'hyper.sweep of {field!r}')]


def to_list(values: Iterable[Any], name: str) -> list[Any]:
  """The values as a list; raises BadInput, naming `name`, if there are more than MAX_POINTS."""
  found = list(itertools.islice(values, MAX_POINTS + 1))
  if len(found) > MAX_POINTS:
    raise BadInput(f'{name}: more than {MAX_POINTS:,} points')
  return found


def fixed(field: str, value: Any) -> list[Point]:
  """A sweep with a single point, in which the field has this value."""
  return [{field: value}]


def product(sweeps: Sequence[list[Point]]) -> list[Point]:
  """All combinations of one point from each sweep; the first sweep varies slowest."""
  if math.prod(map(len, sweeps)) > MAX_POINTS:
    raise BadInput(f'hyper.product: more than {MAX_POINTS:,} points')
  return [functools.reduce(_join, points, {}) for points in itertools.product(*sweeps)]


def zipit(sweeps: Sequence[list[Point]]) -> list[Point]:
  """Joins the n-th points of all sweeps, for each n; the sweeps must have the same length."""
  lengths = {len(points) for points in sweeps}
  if len(lengths) > 1:
    raise BadInput(f'hyper.zipit: sweeps of different lengths: {sorted(lengths)}')
  return [functools.reduce(_join, points, {}) for points in zip(*sweeps)]


def chain(sweeps: Sequence[list[Point]]) -> list[Point]:
  """The points of all sweeps, one sweep after another."""
  return list(itertools.chain.from_iterable(sweeps))


def of_arms(points: Sequence[Point], names: Sequence[str]) -> list[Point]:
  """The points of the baseline, which is the first arm, and of the arms with these names.

  Raises:
    BadInput: there is no such arm; the message names the flag --arms.
  """
  known = list(dict.fromkeys(point.get('arm') for point in points))
  if known == [None]:
    raise BadInput('--arms: the points of the sweep have no arm')
  for name in names:
    if name not in known:
      shown = [str(arm) for arm in known]
      nearest = difflib.get_close_matches(name, shown, n=1, cutoff=0.0)[0]
      raise BadInput(f'--arms: {name!r}: no such arm; the nearest is {nearest!r}')
  return [point for point in points if point.get('arm') in (known[0], *names)]


def _join(left: Point, right: Point) -> Point:
  for field in sorted(left.keys() & right.keys()):
    raise BadInput(f'config.{field}: swept twice in one product or zipit')
  return left | right


@dataclasses.dataclass(frozen=True)
class Runs:
  """The runs that a config file describes."""

  # The swept ones, in order of first appearance, without those that the label `arm` stands for.
  fields: tuple[str, ...]
  configs: dict[str, Config]  # run name -> resolved config


def expand(
    base: Mapping[str, Any],
    points: Iterable[Point],
    overrides: Iterable[str] = (),
    seeds: int | None = None,
) -> Runs:
  """Expands a sweep into named runs; each has the config `base` with the values of one point.

  Args:
    base: the result of get_config as nested dicts (ConfigDict.to_dict()).
    points: the result of get_sweep; [{}] stands for a single run of `base`.
    overrides: the dotted fields given on the command line, none of which may be swept.
    seeds: if given, every point is repeated with seeds 0 to seeds - 1; the points must not sweep
      the seed.

  Raises:
    BadInput: the sweep is invalid, or two of its runs are the same.
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
      raise BadInput(f'--seeds={seeds}: must not be given, since the sweep varies the seed')
    if len(points) * seeds > MAX_POINTS:
      raise BadInput(f'--seeds={seeds}: more than {MAX_POINTS:,} runs')
    points = product([points, sweep('seed', range(seeds))])
  fields = tuple(dict.fromkeys(field for point in points for field in point))
  for field in fields:
    if field in overrides:
      raise BadInput(f'config.{field}: must not be overridden, since the sweep varies it')
    if field in config_lib.FIELDS and config_lib.FIELDS[field].shared:
      raise BadInput(f'config.{field}: must not be swept, since all runs share their data')
  flat_base = config_lib.flatten(base)
  converted: dict[tuple[str, int], Any] = {}  # most points share most values
  flats = [config_lib.resolve(flat_base | point, converted) for point in points]
  fields = _without_labelled(fields, flats)
  run_labels = _run_labels(fields)
  configs: dict[str, Config] = {}
  for flat in flats:
    name = _name({label: flat[field] for field, label in run_labels.items()}, flat)
    if name in configs:
      raise BadInput(f'get_sweep: two runs are the same: {name}')
    configs[name] = config_lib.unflatten(flat)
  return Runs(fields, configs)


def run_name(fields: Sequence[str], config: Config) -> str:
  """The name of a run in a sweep with these fields (Runs.fields)."""
  flat = config_lib.flatten(config)
  return _name({label: flat[field] for field, label in _run_labels(fields).items()}, flat)


def _run_labels(fields: Sequence[str]) -> dict[str, str]:
  return labels([*(field for field in fields if field != 'seed'), 'seed'])


def _without_labelled(
    fields: tuple[str, ...], flats: Sequence[Mapping[str, Any]]
) -> tuple[str, ...]:
  """The swept fields that `arm`, if it is swept, does not determine.

  Those of the size, the learning rate and the seed are kept in any case. The label init.parent, if
  it is swept, stands for init.checkpoint, which may differ between sizes and seeds.
  """
  if 'init.parent' in fields:
    fields = tuple(field for field in fields if field != 'init.checkpoint')
  if 'arm' not in fields:
    return fields
  values = collections.defaultdict(set)
  for flat in flats:
    if flat['arm'] is None:
      raise BadInput('get_sweep: config.arm is missing in some points, but not in all')
    for field in fields:
      values[flat['arm'], field].add(flat[field])
  kept = {'arm', *config_lib.SIZE_FIELDS, 'optimizer.learning_rate', 'seed'}
  kept |= {field for (_, field), found in values.items() if len(found) > 1}
  return tuple(field for field in fields if field in kept)


def labels(fields: Sequence[str]) -> dict[str, str]:
  """The shortest dotted suffix of each field that is not a suffix of another field."""
  found = {}
  for field in fields:
    parts = field.split('.')
    suffixes = ['.'.join(parts[-n:]) for n in range(1, len(parts) + 1)]
    others = [other for other in fields if other != field]
    found[field] = next(
        (s for s in suffixes if not any(f'.{other}'.endswith(f'.{s}') for other in others)), field
    )
  return found


def _name(values: Mapping[str, Any], flat: Mapping[str, Any]) -> str:
  """A run's name, such as `width=64,qk_norm=none,learning_rate=0.01,seed=0`; a valid folder name.

  Args:
    values: label of a swept field -> its value.
    flat: the resolved config. Its hash is appended to a name that is cut to MAX_NAME.
  """
  pairs = (f'{label}={value}' for label, value in values.items())
  name = quote(','.join(pairs), safe='+=,')
  name = re.sub('~', '%7E', name)  # quote leaves ~ as it is
  if len(name) > MAX_NAME:
    hashed = {field: value for field, value in flat.items() if not _is_implied(field, value)}
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
    name = f'{name[:MAX_NAME - 9]}-{digest[:8]}'
  return name


def _is_implied(field: str, value: Any) -> bool:
  """Whether the hash omits a field, so that adding an option to the package renames no runs."""
  record = config_lib.FIELDS[field]
  return record.is_later and value == record.absent
